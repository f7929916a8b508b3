//! Checks a job file against its tables and collects all errors.
//!
//! Looks at one key at a time; rules between keys are in `semantics.rs`.

use std::ops::Range;

use super::{
    diagnostic::{Diagnostic, hint, nearest},
    document::{Entry, Node, Value},
    file::{
        EVERY_KIND, FILE, KINDS, Key, Kind, LIMITS, PAGE_SIZE, Presence, SECRET_SOURCES, SINK, SOURCE, TextFormat,
        ValueType,
    },
};

/// Errors and secrets found so far.
#[derive(Debug, Default)]
pub(crate) struct CheckState {
    /// Errors, in no order.
    pub(crate) diagnostics: Vec<Diagnostic>,
    /// Pieces of the text that hold secrets and must not be shown.
    pub(crate) redacted: Vec<Range<usize>>,
    /// Whether the file's mode allows secrets in it, and the command that makes it so.
    pub(crate) inline_secrets: InlineSecrets,
}

/// Whether secrets may stand in the file.
#[derive(Debug, Default)]
pub(crate) enum InlineSecrets {
    /// No other user can read it.
    #[default]
    Allowed,
    /// Others can; this command would change that.
    Refused(String),
}

impl CheckState {
    /// Adds an error.
    pub(crate) fn add(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic::new(span.clone(), message));
    }

    /// Hides every text within a value.
    fn mask(&mut self, node: &Node) {
        match &node.value {
            Value::Table(entries) => entries.iter().for_each(|entry| self.mask(&entry.node)),
            Value::List(items) => items.iter().for_each(|item| self.mask(item)),
            Value::Boolean(_) | Value::Null => {}
            _ => self.redacted.push(node.span.clone()),
        }
    }
}

/// Checks the whole file.
pub(crate) fn check_file(root: &Node, state: &mut CheckState) {
    check_table(root, "", FILE.keys.iter(), state);
}

/// Name of a table, for people.
fn section_name(table: &str) -> String {
    match table {
        "" => "at the top of the file".to_owned(),
        "extract" => "in [[extract]]".to_owned(),
        name => format!("in [{name}]"),
    }
}

/// Checks a table's keys and, through their types, everything below.
fn check_table<'k>(node: &Node, name: &str, keys: impl Iterator<Item = &'k Key> + Clone, state: &mut CheckState) {
    let Value::Table(entries) = &node.value else {
        let what = if name.is_empty() { "a job file".to_owned() } else { format!("`{name}`") };
        state.add(&node.span, format!("{what} is a table with keys of its own, not {}", node.kind()));
        return;
    };
    let mut misspelt = Vec::new();
    for entry in entries {
        match keys.clone().find(|key| key.name == entry.key) {
            Some(key) => check_value(entry, key, state),
            None => misspelt.extend(unknown_key(entry, name, keys.clone().map(|key| key.name), state)),
        }
    }
    for key in keys {
        // One error is reported once: a misspelt key is not missing as well.
        let is_required = matches!(key.presence, Presence::Required) && !misspelt.contains(&key.name);
        if is_required && node.get(key.name).is_none() {
            let message = match key.value_type {
                ValueType::Table(table) => format!("the table [{}] is missing: {}", table.name, lower(key.doc)),
                ValueType::Extracts => "there is no [[extract]]: say what to fetch".to_owned(),
                ValueType::Date => format!("`{}` is missing {}: a day, like 2024-12-31", key.name, section_name(name)),
                _ if key.name == "version" => "`version = 1` is missing at the top of the file".to_owned(),
                _ => format!("`{}` is missing {}: {}", key.name, section_name(name), lower(key.doc)),
            };
            state.add(&node.span, message);
        }
    }
}

/// A sentence of the tables as a fragment.
fn lower(doc: &str) -> String {
    let mut characters = doc.trim_end_matches('.').chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

/// Says what an unknown key may have been meant to be, and returns that.
fn unknown_key<'k>(
    entry: &Entry,
    table: &str,
    known: impl Iterator<Item = &'k str>,
    state: &mut CheckState,
) -> Option<&'k str> {
    let known: Vec<&str> = known.collect();
    let likely = nearest(&entry.key, known.iter().copied());
    let lower = entry.key.to_lowercase();
    let secretive = ["password", "token", "bearer"];
    if secretive.contains(&likely.unwrap_or_default())
        || ["passw", "pwd", "token", "secret", "bearer"].iter().any(|word| lower.contains(word))
        || nearest(&entry.key, secretive).is_some()
    {
        state.mask(&entry.node);
    }
    let elsewhere = || {
        let tables = [&FILE, &SOURCE, &LIMITS, &SINK];
        let table_of = |name: &str| tables.iter().find(|t| t.keys.iter().any(|key| key.name == name)).map(|t| t.name);
        if table == "extract" {
            let kinds: Vec<&str> = KINDS
                .iter()
                .filter(|kind| kind.all_keys().any(|key| key.name == entry.key))
                .map(|kind| kind.name)
                .collect();
            if !kinds.is_empty() {
                return Some(format!("belongs to kind {}", kinds.join(", ")));
            }
        }
        match table_of(&entry.key) {
            Some("") => Some("belongs at the top of the file, above the first [table]".to_owned()),
            Some(name) => Some(format!("belongs in [{name}]")),
            None => KINDS
                .iter()
                .any(|kind| kind.all_keys().any(|key| key.name == entry.key))
                .then(|| "belongs in [[extract]]".to_owned()),
        }
    };
    let message = match (likely, elsewhere()) {
        (_, Some(elsewhere)) => format!("unknown key `{}` {}; it {elsewhere}", entry.key, section_name(table)),
        (Some(likely), None) => {
            format!("unknown key `{}` {}; did you mean `{likely}`?", entry.key, section_name(table))
        }
        (None, None) => format!("unknown key `{}` {}; known: {}", entry.key, section_name(table), known.join(", ")),
    };
    state.add(&entry.key_span, message);
    likely
}

/// Checks one value against its key's type.
fn check_value(entry: &Entry, key: &Key, state: &mut CheckState) {
    let (name, node) = (key.name, &entry.node);
    match (key.value_type, &node.value) {
        (ValueType::Text(format), Value::Text(text)) => {
            if format == TextFormat::Url && text.contains(['@', '?', '#']) {
                state.mask(node);
            }
            if let Err(why) = format.check(text) {
                state.add(&node.span, format!("`{name}` {why}"));
            }
        }
        (ValueType::Text(_), _) => {
            state.add(&node.span, format!("`{name}` takes text in quotes, not {}", node.kind()));
        }
        (ValueType::Word(words, later), Value::Text(text)) => {
            if later.contains(&text.as_str()) {
                state.add(
                    &node.span,
                    format!("`{name} = \"{text}\"` is not available in this version; available: {}", words.join(", ")),
                );
            } else if !words.contains(&text.as_str()) {
                state.add(&node.span, format!("unknown {name} `{text}`{}", hint(text, words)));
            }
        }
        (ValueType::Word(words, _), _) => {
            state.add(&node.span, format!("`{name}` takes one of {}, not {}", words.join(", "), node.kind()));
        }
        (ValueType::Integer(min, max), Value::Integer(number)) => {
            if name == "version" && *number > max.min(super::file::VERSION) {
                state.add(
                    &node.span,
                    format!("the file is of version {number}, this program reads version 1: use a newer program"),
                );
            } else if !(min..=max).contains(number) {
                let range = if max == i64::MAX { format!("is {min}") } else { format!("takes {min} to {max}") };
                state.add(&node.span, format!("`{name}` {range}, not {number}"));
            }
        }
        (ValueType::Integer(min, max), _) => {
            let range = if max == i64::MAX { String::new() } else { format!(" from {min} to {max}") };
            state.add(&node.span, format!("`{name}` takes a whole number{range}, not {}", node.kind()));
        }
        (ValueType::Boolean, Value::Boolean(_)) => {}
        (ValueType::Boolean, _) => {
            state.add(&node.span, format!("`{name}` takes true or false, not {}", node.kind()));
        }
        (ValueType::Date, Value::Text(text) | Value::Date(text)) => {
            if text.parse::<jiff::civil::Date>().is_err() || text.len() != "2024-12-31".len() {
                state.add(&node.span, format!("`{name}` is not a valid date; write it as 2024-12-31"));
            }
        }
        (ValueType::Date, _) => {
            state.add(&node.span, format!("`{name}` takes a day like \"2024-12-31\", not {}", node.kind()));
        }
        (ValueType::Texts(format, may_be_empty), Value::List(items)) => {
            check_texts(node, name, format, may_be_empty, items, state);
        }
        (ValueType::Texts(..), Value::Text(text)) => {
            state.add(&node.span, format!("`{name}` takes a list: [\"{text}\"]"));
        }
        (ValueType::Texts(..), _) => {
            state.add(&node.span, format!("`{name}` takes a list of texts, not {}", node.kind()));
        }
        (ValueType::Secret, _) => check_secret(name, node, state),
        (ValueType::Map, Value::Table(entries)) => {
            for variable in entries {
                if !matches!(variable.node.value, Value::Text(_)) {
                    state.add(
                        &variable.node.span,
                        format!("`{name}.{}` takes text in quotes, not {}", variable.key, variable.node.kind()),
                    );
                }
            }
        }
        (ValueType::Map, _) => {
            state.add(&node.span, format!("`{name}` takes a table of texts, not {}", node.kind()));
        }
        (ValueType::Table(table), _) => check_table(node, table.name, table.keys.iter(), state),
        (ValueType::Extracts, Value::List(items)) if items.iter().all(|item| matches!(item.value, Value::Table(_))) => {
            if items.is_empty() {
                state.add(&node.span, "there is no [[extract]]: say what to fetch");
            }
            items.iter().for_each(|item| check_extract(item, state));
        }
        (ValueType::Extracts, Value::Table(_)) => {
            state.add(&node.span, "an extract has two brackets, since there may be several: [[extract]]");
            check_extract(node, state);
        }
        (ValueType::Extracts, _) => {
            state.add(&node.span, format!("`extract` takes a list of tables, not {}", node.kind()));
        }
    }
}

/// Checks the items of a list.
fn check_texts(
    node: &Node,
    name: &str,
    format: TextFormat,
    may_be_empty: bool,
    items: &[Node],
    state: &mut CheckState,
) {
    if items.is_empty() && !may_be_empty {
        let all = if format.allows_wildcard() { ", or [\"*\"] for all" } else { "" };
        state.add(&node.span, format!("`{name}` is empty: name at least one{all}"));
    }
    let mut seen: Vec<&str> = Vec::new();
    for item in items {
        let Value::Text(text) = &item.value else {
            state.add(&item.span, format!("`{name}` is a list of texts in quotes, and this is {}", item.kind()));
            continue;
        };
        if let Err(why) = format.check(text) {
            state.add(&item.span, format!("each of `{name}` {why}"));
        } else if seen.contains(&text.as_str()) {
            state.add(&item.span, format!("`{text}` is listed twice in `{name}`"));
        } else if format.allows_wildcard() && text == "*" && items.len() > 1 {
            state.add(&item.span, format!("`*` means all of them: it must be alone in `{name}`"));
        }
        seen.push(text);
    }
}

/// Checks one extract by its kind.
fn check_extract(node: &Node, state: &mut CheckState) {
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let Some(kind_node) = node.get("kind") else {
        state.add(&node.span, format!("`kind` is missing in [[extract]]; known: {}", names.join(", ")));
        return;
    };
    if let Some(kind) = kind_of(node) {
        check_table(node, "extract", with_kind(kind.all_keys()), state);
        return;
    }
    match &kind_node.value {
        Value::Text(text) => state.add(&kind_node.span, format!("unknown kind `{text}`{}", hint(text, &names))),
        _ => state.add(&kind_node.span, format!("`kind` takes text in quotes, not {}", kind_node.kind())),
    }
    // The kind is unknown, but a key that no kind has is an error all the same.
    if let Value::Table(entries) = &node.value {
        for entry in entries {
            let is_known = |key: &Key| key.name == entry.key;
            if entry.key != "kind" && !KINDS.iter().any(|kind| kind.all_keys().any(is_known)) {
                let known = EVERY_KIND.iter().map(|key| key.name).chain([PAGE_SIZE.name]);
                let known = known.chain(KINDS.iter().flat_map(|kind| kind.keys.iter().map(|key| key.name)));
                let _ = unknown_key(entry, "extract", known, state);
            }
        }
    }
}

/// The kind of an extract, where it has a right one.
pub(crate) fn kind_of(node: &Node) -> Option<&'static Kind> {
    match &node.get("kind")?.value {
        Value::Text(text) => KINDS.iter().find(|kind| kind.name == text),
        _ => None,
    }
}

/// The key `kind` itself in front of the others.
fn with_kind(keys: impl Iterator<Item = &'static Key> + Clone) -> impl Iterator<Item = &'static Key> + Clone {
    /// Its words are checked before.
    static KIND: Key = Key {
        name: "kind",
        value_type: ValueType::Text(TextFormat::Any),
        presence: Presence::Required,
        doc: "What kind of data.",
    };
    std::iter::once(&KIND).chain(keys)
}

/// Checks where a secret comes from.
fn check_secret(name: &str, node: &Node, state: &mut CheckState) {
    let sources = SECRET_SOURCES.map(|(_, example)| example).join(", ");
    let entries = match &node.value {
        Value::Text(text) => {
            state.mask(node);
            if text.is_empty() {
                state.add(&node.span, format!("`{name}` is empty"));
            } else if let InlineSecrets::Refused(cure) = &state.inline_secrets {
                let message = format!(
                    "`{name}` is readable by other users of this machine; write {}, or close the file with: {cure}",
                    SECRET_SOURCES[0].1
                );
                state.add(&node.span, message);
            }
            return;
        }
        Value::Table(entries) => entries,
        _ => {
            state.mask(node);
            state.add(&node.span, format!("`{name}` takes one of {sources}"));
            return;
        }
    };
    for entry in entries {
        let words = SECRET_SOURCES.map(|(word, _)| word);
        match (entry.key.as_str(), &entry.node.value) {
            ("env" | "file" | "credential", Value::Text(text)) => {
                let problem = match entry.key.as_str() {
                    _ if text.trim().is_empty() => Some("must not be empty"),
                    "env" if text.contains(['$', '=', '\0', '{', ' ']) => {
                        Some("takes the variable's bare name, without $ and without braces")
                    }
                    "credential" if text.contains('/') => Some("takes a name, not a path"),
                    _ => None,
                };
                if let Some(problem) = problem {
                    state.add(&entry.node.span, format!("`{name}.{}` {problem}", entry.key));
                }
            }
            ("command", Value::List(items)) => {
                let is_text = |item: &Node| matches!(&item.value, Value::Text(_));
                if items.is_empty() || !items.iter().all(is_text) {
                    state.add(
                        &entry.node.span,
                        format!("`{name}.command` takes the program and its arguments: [\"pass\", \"dhis2\"]"),
                    );
                }
            }
            ("command", _) => state.add(
                &entry.node.span,
                format!("`{name}.command` takes a list, since no shell reads it: [\"pass\", \"dhis2\"]"),
            ),
            ("env" | "file" | "credential", _) => state.add(
                &entry.node.span,
                format!("`{name}.{}` takes text in quotes, not {}", entry.key, entry.node.kind()),
            ),
            _ => {
                state.mask(&entry.node);
                state.add(
                    &entry.key_span,
                    format!("`{}` is not a source of a secret{}", entry.key, hint(&entry.key, &words)),
                );
            }
        }
    }
    if entries.len() != 1 {
        state.add(&node.span, format!("`{name}` takes exactly one of {sources}"));
    }
}
