//! The last look at everything that is said: no secret of ours, no control character, no endless text.
//!
//! A server's messages, titles and names are a stranger's text. Where they come in, the client masks and cuts them already;
//! this is for what slips through: a proxy that prints the `Authorization` header, a message with a terminal's escape
//! sequences, a page of HTML on one line. Masked is what is sent: the password or token, and how it looks as base64 of basic
//! authentication, percent-encoded, in JSON and in HTML. A secret shorter than four bytes is not looked for: it would
//! be found in ordinary words.

use std::{
    borrow::Cow,
    fmt::Write as _,
    sync::{Arc, PoisonError, RwLock},
};

use dhis2::Redaction;
use harvester_actors::{
    events::{Event, Listener},
    report::Report,
};

use crate::job::Credentials;

/// Characters of one message, at most.
const MESSAGE_CHARS_MAX: usize = 600;

/// What must not be said. Clones share it.
#[derive(Clone, Default)]
pub struct Redactor {
    /// The client's own masker, with every secret of this process.
    secrets: Arc<RwLock<Redaction>>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

impl Redactor {
    /// From here on, these credentials are masked.
    pub(crate) fn hide(&self, credentials: &Credentials) {
        self.secrets.write().unwrap_or_else(PoisonError::into_inner).add_credentials(credentials);
    }

    /// The text without secrets.
    pub(crate) fn mask(&self, text: &str) -> String {
        self.secrets.read().unwrap_or_else(PoisonError::into_inner).mask(text)
    }

    /// One message: masked, on one line, of bounded length, in characters that only mean themselves.
    pub(crate) fn message(&self, text: &str) -> String {
        let masked = self.mask(text);
        let mut plain: String =
            masked.chars().take(MESSAGE_CHARS_MAX).map(|c| if Redaction::is_unfit(c) { ' ' } else { c }).collect();
        let all = masked.chars().count();
        if all > MESSAGE_CHARS_MAX {
            let _ = write!(plain, "… ({} more characters)", all - MESSAGE_CHARS_MAX);
        }
        plain
    }

    /// Several lines, each of them a message.
    pub(crate) fn lines(&self, text: &str) -> String {
        let lines: Vec<String> = text.split('\n').map(|line| self.message(line)).collect();
        lines.join("\n")
    }

    /// A line of the log: masked; its colours, and the line end, are what does something else than stand for itself.
    pub(crate) fn log_line(&self, line: Vec<u8>) -> Vec<u8> {
        let text = String::from_utf8_lossy(&line);
        let mut plain = String::with_capacity(text.len());
        let masked = self.mask(&text);
        let mut rest = masked.as_str();
        while let Some(at) = rest.find(|c| Redaction::is_unfit(c) && c != '\n') {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            let colour = colour(from).unwrap_or_default();
            plain.push_str(if colour.is_empty() { " " } else { colour });
            let wild = from.chars().next().map_or(0, char::len_utf8);
            rest = &from[wild.max(colour.len())..];
        }
        plain.push_str(rest);
        plain.into_bytes()
    }

    /// A report in which every text is a message.
    pub(crate) fn report(&self, report: &Report) -> Report {
        let mut report = report.clone();
        if let Some(error) = &mut report.error {
            error.message = self.message(&error.message);
            error.next = self.message(&error.next);
        }
        for reason in report.left_out.values_mut() {
            *reason = self.message(reason);
        }
        for warning in &mut report.warnings {
            *warning = self.message(warning);
        }
        report
    }

    /// A fact in which every text that may be a stranger's is a message.
    fn event<'a>(&self, event: &'a Event) -> Cow<'a, Event> {
        let mut event = Cow::Borrowed(event);
        match &*event {
            Event::PageWritten { .. }
            | Event::PlanExtended { .. }
            | Event::SpanCommitted { .. }
            | Event::PartitionFinished(_)
            | Event::FetcherDied { .. }
            | Event::Reconciled { .. }
            | Event::Finishing { .. } => return event,
            Event::Recovered { .. }
            | Event::SourceWaitedFor { .. }
            | Event::SourceIdentified(_)
            | Event::PlanReady { .. }
            | Event::PartitionReturned { .. }
            | Event::PartitionFailed { .. }
            | Event::Pace(_)
            | Event::Stopping { .. }
            | Event::RunEnded(_) => {}
        }
        match event.to_mut() {
            Event::Recovered { rebuilt: Some(text), .. }
            | Event::SourceWaitedFor { message: text, .. }
            | Event::PartitionReturned { message: text, .. }
            | Event::PartitionFailed { message: text, .. }
            | Event::Stopping { reason: text } => *text = self.message(text),
            Event::SourceIdentified(source) => {
                source.version = self.message(&source.version);
                source.url = self.message(&source.url);
            }
            Event::PlanReady { left_out, .. } => {
                for left in left_out {
                    left.reason = self.message(&left.reason);
                }
            }
            Event::Pace(pace) => {
                if let Some(waiting) = &mut pace.waiting {
                    waiting.reason = self.message(&waiting.reason);
                }
            }
            Event::RunEnded(report) => *report = Arc::new(self.report(report)),
            // Without a text, as above.
            Event::Recovered { rebuilt: None, .. }
            | Event::PageWritten { .. }
            | Event::PlanExtended { .. }
            | Event::SpanCommitted { .. }
            | Event::PartitionFinished(_)
            | Event::FetcherDied { .. }
            | Event::Reconciled { .. }
            | Event::Finishing { .. } => {}
        }
        event
    }
}

/// The escape sequence for a colour with which a text begins.
fn colour(text: &str) -> Option<&str> {
    let numbers = text.strip_prefix("\u{1b}[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then(|| &text[..2 + end + 1])
}

/// Tells every fact on, cleaned.
pub(crate) struct Redacting<L> {
    /// Who hears it.
    pub(crate) listener: L,
    /// What must not be said.
    pub(crate) redactor: Redactor,
}

impl<L: Listener> Listener for Redacting<L> {
    fn on_event(&self, event: &Event) {
        self.listener.on_event(&self.redactor.event(event));
    }
}

#[cfg(test)]
mod tests {
    use harvester_actors::partition::LeftOut;

    use super::*;
    use crate::job::Secret;

    fn redactor(password: &str) -> Redactor {
        let redactor = Redactor::default();
        redactor.hide(&Credentials::Basic { username: "anna".to_owned(), password: Secret::new(password) });
        redactor
    }

    #[test]
    fn a_secret_is_masked_in_every_form_in_which_it_may_come_back() {
        let redactor = redactor("p&ss \"wörd\"/+");
        for (text, expected) in [
            ("sent p&ss \"wörd\"/+ by anna", "sent *** by anna"),
            (r#"{"password":"p&ss \"wörd\"/+"}"#, r#"{"password":"***"}"#),
            ("?p=p%26ss%20%22w%C3%B6rd%22%2F%2B&x", "?p=***&x"),
            ("<b>p&amp;ss &quot;wörd&quot;/+</b>", "<b>***</b>"),
            ("Basic YW5uYTpwJnNzICJ3w7ZyZCIvKw==.", "Basic ***==."),
            ("twice p&ss \"wörd\"/+p&ss \"wörd\"/+", "twice ******"),
            ("nothing of it: p&ss", "nothing of it: p&ss"),
        ] {
            assert_eq!(redactor.mask(text), expected, "{text}");
        }
        let token = Redactor::default();
        token.hide(&Credentials::Token(Secret::new("d2pat_x")));
        token.hide(&Credentials::Bearer(Secret::new("d2pat_x_and_more")));
        assert_eq!(token.mask("d2pat_x_and_more d2pat_x"), "*** ***");
        assert_eq!(super::tests::redactor("abc").mask("the alphabet: abc"), "the alphabet: abc");
        assert_eq!(format!("{token:?}"), "Redactor { .. }");
    }

    #[test]
    fn a_message_is_one_short_line_that_does_nothing_to_a_terminal() {
        let redactor = redactor("canary-pw");
        assert_eq!(redactor.message("a\u{1b}[2J\r\nb\u{202e}c\u{9b}\t"), "a [2J  b c  ");
        let long = redactor.message(&"é".repeat(10_000));
        assert_eq!(long.chars().filter(|c| *c == 'é').count(), MESSAGE_CHARS_MAX);
        assert!(long.ends_with("… (9400 more characters)"), "{long}");
        // Masked before it is cut: half a secret is a secret.
        let cut = redactor.message(&format!("{}canary-pw", "x".repeat(MESSAGE_CHARS_MAX - 4)));
        assert!(!cut.contains("cana"), "{cut}");
        assert_eq!(redactor.lines("a\u{7}\n\nb"), "a \n\nb");
    }

    #[test]
    fn a_line_of_the_log_keeps_its_colours_and_nothing_else() {
        let redactor = redactor("canary-pw");
        for (line, expected) in [
            (
                "\u{1b}[2m2024\u{1b}[0m \u{1b}[1;31mERROR\u{1b}[0m canary-pw\n",
                "\u{1b}[2m2024\u{1b}[0m \u{1b}[1;31mERROR\u{1b}[0m ***\n",
            ),
            ("a\u{1b}[2Jb\u{1b}]0;title\u{7}\u{202e}\u{1b}", "a [2Jb ]0;title   "),
            ("é\u{1b}[", "é ["),
        ] {
            assert_eq!(String::from_utf8(redactor.log_line(line.as_bytes().to_vec())).unwrap(), expected);
        }
    }

    #[test]
    fn every_text_of_a_report_and_a_plan_is_clean() {
        let redactor = redactor("canary-pw");
        let mut report = crate::observe::report::without_run(
            "x",
            harvester_actors::report::Outcome::Refused,
            "canary-pw",
            "canary-pw",
        );
        report.left_out.insert("a".to_owned(), "canary-pw".to_owned());
        report.warnings.push("canary-pw".to_owned());
        let left_out = LeftOut { stream: "a".to_owned(), reason: "canary-pw".to_owned() };
        for event in [
            Event::RunEnded(Arc::new(report)),
            Event::PlanReady {
                run_id: String::new(),
                streams: [].into(),
                left_out: vec![left_out],
                partitions: 0,
                finished: 0,
                committed: Vec::new(),
            },
            Event::Stopping { reason: "canary-pw".to_owned() },
            Event::SourceWaitedFor {
                class: harvester_actors::failure::FailureClass::Transient,
                message: "canary-pw".to_owned(),
                attempts: 1,
                delay: Default::default(),
                patience_left: Default::default(),
            },
        ] {
            let told = format!("{:?}", redactor.event(&event));
            assert!(!told.contains("canary-pw") && told.contains("***"), "{told}");
        }
    }
}
