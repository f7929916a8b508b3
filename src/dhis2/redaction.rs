//! Text of a server, made fit for people: our secrets masked, control characters gone, short.
//!
//! A server, or a proxy before it, may send back what we sent: the password in a message, the whole
//! `Authorization` header in an error page. It may also send what moves a terminal's cursor, turns the direction of
//! writing, or fills a log. Every text of a server passes [`Redaction::clean`] where it enters an error or a struct that
//! callers show to people. Rows do not: they are data, and are never shown.

use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _};

use crate::auth::Credentials;

/// Longest text kept of what a server says, in characters.
pub(crate) const TEXT_CHARS_MAX: usize = 200;
/// Shown in place of a secret.
const MASK: &str = "***";
/// A shorter secret is none, and would mask parts of ordinary words.
const SECRET_BYTES_MIN: usize = 4;
/// Secrets kept, the oldest goes first: those of credentials that were replaced count, too.
const SECRETS_MAX: usize = 32;

/// Secrets that must not be shown.
#[derive(Clone, Default)]
pub struct Redaction {
    secrets: Vec<String>,
}

impl std::fmt::Debug for Redaction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redaction").field("secrets", &self.secrets.len()).finish()
    }
}

impl Redaction {
    /// Masks `credentials` from now on: the secret itself, and what the `Authorization` header makes of it.
    pub fn add_credentials(&mut self, credentials: &Credentials) {
        match credentials {
            Credentials::Basic { username, password } => {
                let pair = format!("{username}:{}", password.expose());
                self.add(&BASE64_STANDARD_NO_PAD.encode(&pair));
                self.add(&BASE64_URL_SAFE_NO_PAD.encode(&pair));
                self.add_secret(password.expose());
            }
            Credentials::Token(token) | Credentials::Bearer(token) => self.add_secret(token.expose()),
        }
    }

    /// Masks `secret` from now on, also as base64 of itself.
    fn add_secret(&mut self, secret: &str) {
        if secret.len() >= SECRET_BYTES_MIN {
            self.add(&BASE64_STANDARD_NO_PAD.encode(secret));
            self.add(secret);
        }
    }

    /// Masks `secret` from now on.
    pub(crate) fn add(&mut self, secret: &str) {
        if secret.len() < SECRET_BYTES_MIN || self.secrets.iter().any(|known| known == secret) {
            return;
        }
        if self.secrets.len() == SECRETS_MAX {
            self.secrets.remove(0);
        }
        self.secrets.push(secret.to_owned());
    }

    /// One short line, without secrets and control characters.
    pub(crate) fn clean(&self, text: &str) -> String {
        self.clean_to(text, TEXT_CHARS_MAX)
    }

    /// The same with another length.
    pub(crate) fn clean_to(&self, text: &str, chars_max: usize) -> String {
        // Before anything is replaced or cut, or a part of a secret would stay; again afterwards, since what is replaced by a
        // space may make one.
        let masked: String = self.mask(text).chars().map(|c| if Redaction::is_unfit(c) { ' ' } else { c }).collect();
        let masked = self.mask(masked.trim());
        match masked.char_indices().nth(chars_max) {
            Some((end, _)) => format!("{}…", &masked[..end]),
            None => masked,
        }
    }

    /// As [`Redaction::clean`], for what may be missing.
    pub(crate) fn clean_some(&self, text: Option<String>) -> Option<String> {
        text.map(|text| self.clean(&text))
    }

    /// Whether a character does something else than stand there: controls, invisible marks, direction of writing.
    pub fn is_unfit(c: char) -> bool {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
            || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    }

    /// Replaces every occurrence of a secret, also where it is percent-encoded or escaped as HTML and JSON do.
    pub fn mask(&self, text: &str) -> String {
        if self.secrets.is_empty() || !harvester_pacing::control!("masks") {
            return text.to_owned();
        }
        let mut masked = String::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            let end = self.secrets.iter().filter_map(|secret| secret_end(text, at, secret)).max();
            match end {
                Some(end) => {
                    masked.push_str(MASK);
                    at = end;
                }
                None => {
                    let Some(c) = text[at..].chars().next() else { break };
                    masked.push(c);
                    at += c.len_utf8();
                }
            }
        }
        masked
    }
}

/// End of `secret`, if it begins at `at`, however its characters are written. Both are at borders of characters.
fn secret_end(text: &str, at: usize, secret: &str) -> Option<usize> {
    let mut ends = vec![at];
    for wanted in secret.bytes() {
        let mut next = Vec::new();
        for from in ends {
            for end in [raw_end(text, from, wanted), escaped_end(text, from, wanted)].into_iter().flatten() {
                if !next.contains(&end) {
                    next.push(end);
                }
            }
        }
        if next.is_empty() {
            return None;
        }
        ends = next;
    }
    // A secret ends with a character, so this does as well.
    ends.into_iter().max().filter(|end| text.is_char_boundary(*end))
}

fn raw_end(text: &str, at: usize, wanted: u8) -> Option<usize> {
    (text.as_bytes().get(at) == Some(&wanted)).then_some(at + 1)
}

/// End of an escape that stands for `wanted`.
fn escaped_end(text: &str, at: usize, wanted: u8) -> Option<usize> {
    let rest = &text.as_bytes()[at..];
    let number = |digits: &[u8], radix| u32::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok();
    let (byte, length) = match rest {
        [b'+', ..] => (u32::from(b' '), 1),
        [b'%', high, low, ..] => (number(&[*high, *low], 16)?, 3),
        [b'\\', b'u', digits @ ..] => (number(digits.get(..4)?, 16)?, 6),
        [b'\\', escaped @ (b'"' | b'\\' | b'/' | b'\''), ..] => (u32::from(*escaped), 2),
        [b'&', entity @ ..] => {
            let end = entity.iter().take(8).position(|byte| *byte == b';')?;
            let byte = match &entity[..end] {
                b"amp" => u32::from(b'&'),
                b"lt" => u32::from(b'<'),
                b"gt" => u32::from(b'>'),
                b"quot" => u32::from(b'"'),
                b"apos" => u32::from(b'\''),
                [b'#', b'x' | b'X', digits @ ..] => number(digits, 16)?,
                [b'#', digits @ ..] => number(digits, 10)?,
                _ => return None,
            };
            (byte, end + 2)
        }
        _ => return None,
    };
    (byte == u32::from(wanted)).then_some(at + length)
}

/// Cuts a text that is not a server's, or that came before any secret was sent, to a bounded single line.
pub(crate) fn said(text: &str) -> String {
    Redaction::default().clean(text)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    fn redaction(username: &str, password: &str) -> Redaction {
        let mut redaction = Redaction::default();
        let credentials = Credentials::Basic { username: username.to_owned(), password: password.into() };
        redaction.add_credentials(&credentials);
        redaction.add_credentials(&Credentials::Token("d2pat_0123456789".into()));
        redaction
    }

    #[test]
    fn a_secret_is_masked_however_it_is_written() {
        let redaction = redaction("reader", "p&ss wörd\"1");
        for (came, shown) in [
            ("Bad credentials p&ss wörd\"1 for reader", "Bad credentials *** for reader"),
            ("?password=p%26ss%20w%C3%B6rd%221&x", "?password=***&x"),
            ("?password=p%26ss+w%c3%b6rd%221", "?password=***"),
            ("<b>p&amp;ss wörd&quot;1</b>", "<b>***</b>"),
            ("p&#38;ss wörd&#x22;1", "***"),
            (r#"{"j_password":"p&ss wörd\"1"}"#, r#"{"j_password":"***"}"#),
            (r"p\u0026ss wörd\u00221", "***"),
            ("Authorization: Basic cmVhZGVyOnAmc3Mgd8O2cmQiMQ==", "Authorization: Basic ***=="),
            ("token d2pat_0123456789d2pat_0123456789", "token ******"),
            ("p&ss\nwörd\"1", "***"),
            ("p&ss wörd", "p&ss wörd"),
            ("% & \\ \\u %4 &#; &amp", "% & \\ \\u %4 &#; &amp"),
        ] {
            assert_eq!(redaction.clean(came), shown, "{came}");
        }
    }

    #[test]
    fn a_secret_across_the_border_of_what_is_kept_leaves_no_part() {
        let redaction = redaction("reader", "hunter2-canary");
        for before in TEXT_CHARS_MAX - 20..TEXT_CHARS_MAX + 5 {
            let shown = redaction.clean(&format!("{}hunter2-canary tail", "x".repeat(before)));
            assert!(!shown.contains("hunt"), "{shown}");
        }
    }

    #[test]
    fn what_moves_a_terminal_is_replaced() {
        let came = "\u{1b}[31mred\u{9b}2J\r\nnew\u{202e}line\u{200b}\u{2066}x\u{7f}\u{feff}";
        assert_eq!(said(came), "[31mred 2J  new line  x");
        assert_eq!(said(" Région “ñ” 日本 "), "Région “ñ” 日本");
    }

    proptest! {
        #[test]
        fn no_text_of_a_server_shows_a_secret_or_moves_a_terminal(
            password in "[a-z%&+\\\\ é\u{1F980}]{4,12}",
            pieces in prop::collection::vec(any::<String>(), 0..6),
            forms in prop::collection::vec(0usize..6, 0..6),
        ) {
            prop_assume!(password.trim() == password && password.len() >= SECRET_BYTES_MIN);
            let redaction = redaction("reader", &password);
            let pair = format!("reader:{password}");
            let basic = base64::prelude::BASE64_STANDARD.encode(&pair);
            let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string();
            let mut text = String::new();
            for (position, piece) in pieces.iter().enumerate() {
                text.push_str(piece);
                match forms.get(position) {
                    Some(0) => text.push_str(&password),
                    Some(1) => text.push_str(&encoded),
                    Some(2) => text.push_str(&encoded.to_lowercase()),
                    Some(3) => text.push_str(&basic),
                    Some(4) => text.push_str(&password.replace(' ', "\n")),
                    Some(5) => text.push_str("d2pat_0123456789"),
                    _ => {}
                }
            }
            let shown = redaction.clean(&text);
            for secret in [password.as_str(), &encoded, basic.trim_end_matches('='), "d2pat_0123456789"] {
                prop_assert!(!shown.contains(secret), "{shown:?} shows {secret:?}");
            }
            prop_assert!(shown.chars().count() <= TEXT_CHARS_MAX + 1);
            prop_assert!(!shown.chars().any(Redaction::is_unfit), "{shown:?}");
        }

        #[test]
        fn an_ordinary_text_is_shown_as_it_is(text in "[a-zA-Z0-9äöü`'.,:;() -]{0,190}") {
            prop_assert_eq!(redaction("reader", "hunter2-canary").clean(&text), text.trim());
        }
    }
}
