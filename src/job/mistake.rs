//! One mistake of a job file, shown where it stands, without showing a secret.

use std::{fmt, ops::Range, path::PathBuf};

/// Characters of a source line that are shown at most.
const LINE_CHARACTERS_MAX: usize = 100;

/// Words that make a line suspect of holding a secret when the file could not be parsed.
const SECRET_WORDS: [&str; 6] = ["passw", "token", "bearer", "secret", "pwd", "://"];

/// A mistake and where it stands, in bytes of the text.
#[derive(Clone, Debug)]
pub(crate) struct Mistake {
    /// Where.
    pub(crate) span: Range<usize>,
    /// What is wrong and what would be right, as a lower-case fragment.
    pub(crate) message: String,
}

impl Mistake {
    /// A mistake at a place.
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Mistake { span, message: message.into() }
    }
}

/// A place of a job file as people read it. Holds no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The line, with secrets masked, cut around the place.
    shown: String,
    /// Characters of `shown` before the mark.
    indent: usize,
    /// Characters of the mark, at least one.
    width: usize,
}

/// What of a text must not be shown.
pub(crate) enum Masks<'a> {
    /// These pieces.
    Spans(&'a [Range<usize>]),
    /// Nobody knows: everything behind the first `=` or `:` of a line that looks like it.
    Suspicion,
}

impl Place {
    /// The place of a span.
    pub(crate) fn of(text: &str, span: &Range<usize>, masks: &Masks<'_>) -> Place {
        let start = floor(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let line = text[..start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        let mask_from = match masks {
            Masks::Suspicion => suspect(&text[line_start..line_end]).map(|at| line_start + at),
            Masks::Spans(_) => None,
        };
        let hidden = |at: usize| match masks {
            Masks::Spans(spans) => spans.iter().any(|span| span.contains(&at)),
            Masks::Suspicion => mask_from.is_some_and(|from| at >= from),
        };
        let (mut shown, mut before, mut width) = (Vec::new(), 0, 0);
        let mut was_hidden = false;
        for (offset, character) in text[line_start..line_end].char_indices() {
            let at = line_start + offset;
            let is_hidden = hidden(at);
            let length = shown.len();
            match (is_hidden, was_hidden) {
                (true, true) => {}
                (true, false) => shown.extend("***".chars()),
                // A control character in a job file must not reach a terminal.
                (false, _) => shown.push(if character.is_control() { ' ' } else { character }),
            }
            was_hidden = is_hidden;
            let grown = shown.len() - length;
            if at < start {
                before += grown;
            } else if at < span.end {
                width += grown;
            }
        }
        while shown.last() == Some(&' ') {
            shown.pop();
        }
        let cut = before.saturating_sub(LINE_CHARACTERS_MAX / 2);
        let cut = if shown.len() > LINE_CHARACTERS_MAX { cut } else { 0 };
        let shown: String = shown.into_iter().skip(cut).take(LINE_CHARACTERS_MAX).collect();
        let indent = before - cut;
        let room = shown.chars().count().saturating_sub(indent);
        Place { line, column, shown, indent, width: width.min(room).max(1) }
    }
}

/// The nearest place at or before `at` where a character begins.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// From where a line that looks like holding a secret is hidden.
fn suspect(line: &str) -> Option<usize> {
    let lower = line.to_lowercase();
    let is_suspect = SECRET_WORDS.iter().any(|word| lower.contains(word));
    is_suspect.then(|| line.find(['=', ':']).map_or(0, |at| at + 1))
}

/// All mistakes of one job file, in the order they stand there. Displays as people read it.
#[derive(Clone, Debug)]
pub struct Mistakes {
    /// The job file, as the person named it.
    pub path: PathBuf,
    /// Where and what; at least one.
    pub mistakes: Vec<(Place, String)>,
}

impl Mistakes {
    /// Gives the mistakes of a text their places.
    pub(crate) fn of(path: PathBuf, text: &str, mut mistakes: Vec<Mistake>, masks: &Masks<'_>) -> Mistakes {
        mistakes.sort_by_key(|mistake| mistake.span.start);
        let mistakes =
            mistakes.into_iter().map(|mistake| (Place::of(text, &mistake.span, masks), mistake.message)).collect();
        Mistakes { path, mistakes }
    }

    /// All on one line, for a report: `x.toml:3:1: unknown key …; x.toml:4:9: …`.
    pub fn one_line(&self) -> String {
        let path = self.path.display();
        let all: Vec<String> = self
            .mistakes
            .iter()
            .map(|(place, message)| format!("{path}:{}:{}: {message}", place.line, place.column))
            .collect();
        all.join("; ")
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (place, message) in &self.mistakes {
            let gutter = place.line.to_string();
            let blank = " ".repeat(gutter.len());
            writeln!(f, "{path}:{}:{}: {message}", place.line, place.column)?;
            writeln!(f, "{blank} |")?;
            writeln!(f, "{gutter} | {}", place.shown)?;
            writeln!(f, "{blank} | {}{}", " ".repeat(place.indent), "^".repeat(place.width))?;
        }
        match self.mistakes.len() {
            1 => write!(f, "1 mistake in {path}"),
            n => write!(f, "{n} mistakes in {path}"),
        }
    }
}

impl std::error::Error for Mistakes {}

/// The word of `words` nearest to `word`, if one is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(word);
    words
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&wanted, &plain(candidate)), candidate))
        .filter(|(likeness, _)| *likeness >= 0.82)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean …?` where a word is near, `; known are …` otherwise.
pub(crate) fn hint(word: &str, words: &[&str]) -> String {
    match nearest(word, words.iter().copied()) {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => format!("; known: {}", words.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_value_is_never_shown_and_the_mark_stays_under_its_word() {
        let text = "x = 1\npassword = \"canary-é\" # é\n";
        let value = 17..28;
        let place = Place::of(text, &(6..14), &Masks::Spans(std::slice::from_ref(&value)));
        assert_eq!(place.shown, "password = *** # é");
        assert_eq!((place.line, place.column, place.indent, place.width), (2, 1, 0, 8));
        let place = Place::of(text, &value, &Masks::Spans(std::slice::from_ref(&value)));
        assert_eq!((place.column, place.indent, place.width), (12, 11, 3));
        let place = Place::of(text, &(9..10), &Masks::Suspicion);
        assert_eq!(place.shown, "password =***");
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark() {
        let text = format!("{{{}\"wrong\": 1}}", "\"a\": 1, ".repeat(100));
        let at = text.find("\"wrong\"").unwrap();
        let place = Place::of(&text, &(at..at + 7), &Masks::Spans(&[]));
        let marked: String = place.shown.chars().skip(place.indent).take(place.width).collect();
        assert_eq!(marked, "\"wrong\"");
        assert!(place.shown.chars().count() <= LINE_CHARACTERS_MAX);
    }

    #[test]
    fn a_place_behind_the_end_is_the_end() {
        let place = Place::of("é", &(500..501), &Masks::Spans(&[]));
        assert_eq!((place.line, place.column), (1, 2));
    }
}
