//! A job file as a tree whose every key and value knows where it stands.
//!
//! TOML and JSON give the same tree, so that everything behind this file is written once.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;

/// Values may nest this deep; a job needs four levels.
const DEPTH_MAX: u32 = 32;

/// A value and where it stands, in bytes of the text.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Span in bytes of the text.
    pub(crate) span: Range<usize>,
    /// The value.
    pub(crate) value: Value,
}

/// A value of TOML or JSON.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// Any other number: no key takes one.
    Number,
    /// True or false.
    Boolean(bool),
    /// A TOML date or time without quotes, as written.
    Date(String),
    /// JSON's null.
    Null,
    /// A list.
    List(Vec<Node>),
    /// A table.
    Table(Vec<Entry>),
}

/// One key of a table.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The key.
    pub(crate) key: String,
    /// Span of the key.
    pub(crate) key_span: Range<usize>,
    /// Its value.
    pub(crate) node: Node,
}

impl Node {
    /// The entry of a key, where this is a table that has it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Table(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The value of a key, where this is a table that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    /// Name of the type, with its article.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Text(_) => "text",
            Value::Integer(_) => "a whole number",
            Value::Number => "a number with a fraction",
            Value::Boolean(_) => "true or false",
            Value::Date(_) => "a date",
            Value::Null => "null",
            Value::List(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// Reads TOML.
///
/// # Errors
/// All syntax errors that the parser finds, at least one.
pub(crate) fn read_toml(text: &str) -> Result<Node, Vec<Diagnostic>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node { span: 0..0, value: toml_table(document.get_ref()) });
    }
    Err(errors
        .iter()
        .map(|error| {
            let end = text.len();
            Diagnostic::new(error.span().unwrap_or(end..end), format!("not TOML: {}", error.message()))
        })
        .collect())
}

/// Takes over a table.
fn toml_table(table: &DeTable<'_>) -> Value {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            key_span: key.span(),
            node: toml_node(value.span(), value.get_ref()),
        })
        .collect();
    entries.sort_by_key(|entry| entry.key_span.start);
    Value::Table(entries)
}

/// Takes over a value.
fn toml_node(span: Range<usize>, value: &DeValue<'_>) -> Node {
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).map_or(Value::Number, Value::Integer)
        }
        DeValue::Float(_) => Value::Number,
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(array) => Value::List(array.iter().map(|item| toml_node(item.span(), item.get_ref())).collect()),
        DeValue::Table(table) => toml_table(table),
    };
    Node { span, value }
}

/// Reads JSON.
///
/// # Errors
/// The first syntax error, or all keys that are listed twice in one table.
pub(crate) fn read_json(text: &str) -> Result<Node, Vec<Diagnostic>> {
    // serde_json knows the grammar; the reader below only has to know where things stand.
    if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text) {
        let line_start: usize = text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        let mut at = (line_start + error.column().saturating_sub(1)).min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or_default();
        return Err(vec![Diagnostic::new(at..at + 1, format!("not JSON: {message}"))]);
    }
    let mut reader = JsonReader { text, at: 0, diagnostics: Vec::new() };
    let node = reader.node(0);
    match node {
        Some(node) if reader.diagnostics.is_empty() => Ok(node),
        Some(_) => Err(reader.diagnostics),
        None => Err(vec![Diagnostic::new(
            reader.at..reader.at + 1,
            format!("a job file nests at most {DEPTH_MAX} levels deep"),
        )]),
    }
}

/// Walks over JSON that is known to be well-formed.
struct JsonReader<'a> {
    /// All of it.
    text: &'a str,
    /// The next byte.
    at: usize,
    /// Keys that stand twice.
    diagnostics: Vec<Diagnostic>,
}

impl JsonReader<'_> {
    /// The next byte that is not white space.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    /// Steps over a separator if it is the next thing.
    fn skip(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        if is_next {
            self.at += 1;
        }
        is_next
    }

    /// One value; `None` when it nests too deep.
    fn node(&mut self, depth: u32) -> Option<Node> {
        if depth > DEPTH_MAX {
            return None;
        }
        let first = self.peek()?;
        let start = self.at;
        let value = match first {
            b'{' => self.table(depth)?,
            b'[' => self.list(depth)?,
            b'"' => Value::Text(self.string()?),
            _ => {
                let bytes = self.text.as_bytes();
                while bytes
                    .get(self.at)
                    .is_some_and(|byte| !matches!(byte, b',' | b'}' | b']') && !byte.is_ascii_whitespace())
                {
                    self.at += 1;
                }
                match &self.text[start..self.at] {
                    "true" => Value::Boolean(true),
                    "false" => Value::Boolean(false),
                    "null" => Value::Null,
                    number => number.parse().map_or(Value::Number, Value::Integer),
                }
            }
        };
        Some(Node { span: start..self.at, value })
    }

    /// A table; the next byte is its brace.
    fn table(&mut self, depth: u32) -> Option<Value> {
        let mut entries: Vec<Entry> = Vec::new();
        self.at += 1;
        while !self.skip(b'}') {
            self.peek()?;
            let start = self.at;
            let key = self.string()?;
            let key_span = start..self.at;
            self.skip(b':');
            let node = self.node(depth + 1)?;
            self.skip(b',');
            if entries.iter().any(|entry| entry.key == key) {
                self.diagnostics
                    .push(Diagnostic::new(key_span.clone(), format!("`{key}` is listed here a second time")));
            }
            entries.push(Entry { key, key_span, node });
        }
        Some(Value::Table(entries))
    }

    /// A list; the next byte is its bracket.
    fn list(&mut self, depth: u32) -> Option<Value> {
        let mut items = Vec::new();
        self.at += 1;
        while !self.skip(b']') {
            items.push(self.node(depth + 1)?);
            self.skip(b',');
        }
        Some(Value::List(items))
    }

    /// A string; the next byte is its quote.
    fn string(&mut self) -> Option<String> {
        let bytes = self.text.as_bytes();
        let start = self.at;
        self.at += 1;
        while *bytes.get(self.at)? != b'"' {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_str(self.text.get(start..self.at)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree without its spans.
    fn shape(node: &Node) -> String {
        match &node.value {
            Value::Table(entries) => {
                let inner: Vec<String> =
                    entries.iter().map(|entry| format!("{}:{}", entry.key, shape(&entry.node))).collect();
                format!("{{{}}}", inner.join(","))
            }
            Value::List(items) => format!("[{}]", items.iter().map(shape).collect::<Vec<_>>().join(",")),
            Value::Text(text) => format!("{text:?}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn toml_and_json_give_the_same_tree() {
        let toml = read_toml("a = 1\nb = [\"x\", true]\n[c]\nd = { e = \"é\\\"\" }\n").unwrap();
        let json = read_json(" {\"a\": 1,\n \"b\":[\"x\" , true], \"c\":{\"d\":{\"e\":\"\\u00e9\\\"\"}}}").unwrap();
        assert_eq!(shape(&toml), shape(&json));
    }

    #[test]
    fn every_json_value_stands_where_its_span_says() {
        let text = r#"{"name": "é", "limits": {"in_flight": 8, "x": [1.5, null]}}"#;
        let node = read_json(text).unwrap();
        let in_flight = node.get("limits").and_then(|limits| limits.entry("in_flight")).unwrap();
        assert_eq!(&text[in_flight.key_span.clone()], "\"in_flight\"");
        assert_eq!(&text[in_flight.node.span.clone()], "8");
        assert_eq!(&text[node.get("name").unwrap().span.clone()], "\"é\"");
    }

    #[test]
    fn json_that_nests_without_end_is_a_mistake_and_no_crash() {
        let text = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(read_json(&text).unwrap_err()[0].message.contains("levels deep"));
    }
}
