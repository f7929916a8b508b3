//! An error in a job file, shown with its line, without showing a secret.

use std::{fmt, ops::Range, path::PathBuf};

/// Characters of a source line that are shown at most.
const LINE_CHARACTERS_MAX: usize = 100;

/// Words that make a line suspect of holding a secret when the file could not be parsed.
const SECRET_WORDS: [&str; 6] = ["passw", "token", "bearer", "secret", "pwd", "://"];

/// An error and its span, in bytes of the text.
#[derive(Clone, Debug)]
pub(crate) struct Diagnostic {
    /// Span of the error.
    pub(crate) span: Range<usize>,
    /// The error and what is expected, as a lower-case fragment.
    pub(crate) message: String,
}

impl Diagnostic {
    /// An error with its span.
    pub(crate) fn new(span: Range<usize>, message: impl Into<String>) -> Self {
        Diagnostic { span, message: message.into() }
    }
}

/// A location in a job file, as shown to people. Holds no secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Location {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// The line, with secrets masked, cut around the location.
    shown: String,
    /// Characters of `shown` before the mark.
    indent: usize,
    /// Characters of the mark, at least one.
    width: usize,
}

/// Parts of a text that must not be shown.
pub(crate) enum Redaction<'a> {
    /// These spans.
    Spans(&'a [Range<usize>]),
    /// Unknown, since the text could not be parsed: everything after the first `=` or `:` of a suspect line.
    Suspicion,
}

impl Location {
    /// The location of a span.
    pub(crate) fn of(text: &str, span: &Range<usize>, redaction: &Redaction<'_>) -> Location {
        let start = floor(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let line = text[..start].matches('\n').count() + 1;
        let column = text[line_start..start].chars().count() + 1;
        let hidden_from = match redaction {
            Redaction::Suspicion => suspect(&text[line_start..line_end]).map(|at| line_start + at),
            Redaction::Spans(_) => None,
        };
        let hidden = |at: usize| match redaction {
            Redaction::Spans(spans) => spans.iter().any(|span| span.contains(&at)),
            Redaction::Suspicion => hidden_from.is_some_and(|from| at >= from),
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
        Location { line, column, shown, indent, width: width.min(room).max(1) }
    }
}

/// The nearest character boundary at or before `at`.
fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Offset from which a line that may hold a secret is hidden.
fn suspect(line: &str) -> Option<usize> {
    let lower = line.to_lowercase();
    let is_suspect = SECRET_WORDS.iter().any(|word| lower.contains(word));
    is_suspect.then(|| line.find(['=', ':']).map_or(0, |at| at + 1))
}

/// All errors of one job file, in the order of the file. Displays as text for people.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    /// The job file, as the person named it.
    pub path: PathBuf,
    /// Location and message; at least one.
    pub diagnostics: Vec<(Location, String)>,
}

impl Diagnostics {
    /// Resolves the spans of a text's errors to locations.
    pub(crate) fn of(
        path: PathBuf,
        text: &str,
        mut diagnostics: Vec<Diagnostic>,
        redaction: &Redaction<'_>,
    ) -> Diagnostics {
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
        let diagnostics = diagnostics
            .into_iter()
            .map(|diagnostic| (Location::of(text, &diagnostic.span, redaction), diagnostic.message))
            .collect();
        Diagnostics { path, diagnostics }
    }

    /// All on one line, for a report: `x.toml:3:1: unknown key …; x.toml:4:9: …`.
    pub fn one_line(&self) -> String {
        let path = self.path.display();
        let all: Vec<String> = self
            .diagnostics
            .iter()
            .map(|(location, message)| format!("{path}:{}:{}: {message}", location.line, location.column))
            .collect();
        all.join("; ")
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        for (location, message) in &self.diagnostics {
            let gutter = location.line.to_string();
            let blank = " ".repeat(gutter.len());
            writeln!(f, "{path}:{}:{}: {message}", location.line, location.column)?;
            writeln!(f, "{blank} |")?;
            writeln!(f, "{gutter} | {}", location.shown)?;
            writeln!(f, "{blank} | {}{}", " ".repeat(location.indent), "^".repeat(location.width))?;
        }
        match self.diagnostics.len() {
            1 => write!(f, "1 error in {path}"),
            n => write!(f, "{n} errors in {path}"),
        }
    }
}

impl std::error::Error for Diagnostics {}

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
        let location = Location::of(text, &(6..14), &Redaction::Spans(std::slice::from_ref(&value)));
        assert_eq!(location.shown, "password = *** # é");
        assert_eq!((location.line, location.column, location.indent, location.width), (2, 1, 0, 8));
        let location = Location::of(text, &value, &Redaction::Spans(std::slice::from_ref(&value)));
        assert_eq!((location.column, location.indent, location.width), (12, 11, 3));
        let location = Location::of(text, &(9..10), &Redaction::Suspicion);
        assert_eq!(location.shown, "password =***");
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark() {
        let text = format!("{{{}\"wrong\": 1}}", "\"a\": 1, ".repeat(100));
        let at = text.find("\"wrong\"").unwrap();
        let location = Location::of(&text, &(at..at + 7), &Redaction::Spans(&[]));
        let marked: String = location.shown.chars().skip(location.indent).take(location.width).collect();
        assert_eq!(marked, "\"wrong\"");
        assert!(location.shown.chars().count() <= LINE_CHARACTERS_MAX);
    }

    #[test]
    fn a_place_behind_the_end_is_the_end() {
        let location = Location::of("é", &(500..501), &Redaction::Spans(&[]));
        assert_eq!((location.line, location.column), (1, 2));
    }
}
