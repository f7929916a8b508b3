//! Holds a job file against its tables and collects everything that does not fit.
//!
//! Looks at one key at a time; what several keys mean together is `meaning.rs`'s.

use std::ops::Range;

use super::{
    document::{Entry, Node, Value},
    file::{EVERY_KIND, FILE, Form, KINDS, Key, Kind, LIMITS, Need, PAGE_SIZE, SECRET_WAYS, SINK, SOURCE, Shape},
    mistake::{Mistake, hint, nearest},
};

/// What has been found wrong so far.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Mistakes, in no order.
    pub(crate) mistakes: Vec<Mistake>,
    /// Pieces of the text that hold secrets and must not be shown.
    pub(crate) masks: Vec<Range<usize>>,
    /// Whether the file's mode allows a secret to stand in it, and how to make it so.
    pub(crate) inline_secrets: InlineSecrets,
}

/// Whether secrets may stand in the file.
#[derive(Debug, Default)]
pub(crate) enum InlineSecrets {
    /// Nobody else can read it.
    #[default]
    Allowed,
    /// Others can; this command would change that.
    Refused(String),
}

impl Findings {
    /// Adds a mistake.
    pub(crate) fn add(&mut self, span: &Range<usize>, message: impl Into<String>) {
        self.mistakes.push(Mistake::new(span.clone(), message));
    }

    /// Hides every text within a value.
    fn mask(&mut self, node: &Node) {
        match &node.value {
            Value::Table(entries) => entries.iter().for_each(|entry| self.mask(&entry.node)),
            Value::List(items) => items.iter().for_each(|item| self.mask(item)),
            Value::Boolean(_) | Value::Null => {}
            _ => self.masks.push(node.span.clone()),
        }
    }
}

/// Checks the whole file.
pub(crate) fn check_file(root: &Node, findings: &mut Findings) {
    check_table(root, "", FILE.keys.iter(), findings);
}

/// Where a table stands, for people.
fn place_of(table: &str) -> String {
    match table {
        "" => "at the top of the file".to_owned(),
        "extract" => "in [[extract]]".to_owned(),
        name => format!("in [{name}]"),
    }
}

/// Checks a table's keys and, through their shapes, everything below.
fn check_table<'k>(node: &Node, name: &str, keys: impl Iterator<Item = &'k Key> + Clone, findings: &mut Findings) {
    let Value::Table(entries) = &node.value else {
        let what = if name.is_empty() { "a job file".to_owned() } else { format!("`{name}`") };
        findings.add(&node.span, format!("{what} is a table with keys of its own, not {}", node.kind()));
        return;
    };
    let mut misspelt = Vec::new();
    for entry in entries {
        match keys.clone().find(|key| key.name == entry.key) {
            Some(key) => check_value(entry, key, findings),
            None => misspelt.extend(unknown_key(entry, name, keys.clone().map(|key| key.name), findings)),
        }
    }
    for key in keys {
        // One mistake is told once: a misspelt key is not missing as well.
        let is_required = matches!(key.need, Need::Required) && !misspelt.contains(&key.name);
        if is_required && node.get(key.name).is_none() {
            let message = match key.shape {
                Shape::Table(table) => format!("the table [{}] is missing: {}", table.name, lower(key.doc)),
                Shape::Extracts => "there is no [[extract]]: say what to fetch".to_owned(),
                Shape::Date => format!("`{}` is missing {}: a day, like 2024-12-31", key.name, place_of(name)),
                _ if key.name == "version" => "`version = 1` is missing at the top of the file".to_owned(),
                _ => format!("`{}` is missing {}: {}", key.name, place_of(name), lower(key.doc)),
            };
            findings.add(&node.span, message);
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
    findings: &mut Findings,
) -> Option<&'k str> {
    let known: Vec<&str> = known.collect();
    let likely = nearest(&entry.key, known.iter().copied());
    let lower = entry.key.to_lowercase();
    let secretive = ["password", "token", "bearer"];
    if secretive.contains(&likely.unwrap_or_default())
        || ["passw", "pwd", "token", "secret", "bearer"].iter().any(|word| lower.contains(word))
        || nearest(&entry.key, secretive).is_some()
    {
        findings.mask(&entry.node);
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
        (_, Some(elsewhere)) => format!("unknown key `{}` {}; it {elsewhere}", entry.key, place_of(table)),
        (Some(likely), None) => {
            format!("unknown key `{}` {}; did you mean `{likely}`?", entry.key, place_of(table))
        }
        (None, None) => format!("unknown key `{}` {}; known: {}", entry.key, place_of(table), known.join(", ")),
    };
    findings.add(&entry.key_span, message);
    likely
}

/// Checks one value against its key's shape.
fn check_value(entry: &Entry, key: &Key, findings: &mut Findings) {
    let (name, node) = (key.name, &entry.node);
    match (key.shape, &node.value) {
        (Shape::Text(form), Value::Text(text)) => {
            if form == Form::Url && text.contains(['@', '?', '#']) {
                findings.mask(node);
            }
            if let Err(why) = form.check(text) {
                findings.add(&node.span, format!("`{name}` {why}"));
            }
        }
        (Shape::Text(_), _) => {
            findings.add(&node.span, format!("`{name}` takes text in quotes, not {}", node.kind()));
        }
        (Shape::Word(words, later), Value::Text(text)) => {
            if later.contains(&text.as_str()) {
                findings.add(
                    &node.span,
                    format!("`{name} = \"{text}\"` is not available in this version; available: {}", words.join(", ")),
                );
            } else if !words.contains(&text.as_str()) {
                findings.add(&node.span, format!("`{text}` is no {name}{}", hint(text, words)));
            }
        }
        (Shape::Word(words, _), _) => {
            findings.add(&node.span, format!("`{name}` takes one of {}, not {}", words.join(", "), node.kind()));
        }
        (Shape::Whole(min, max), Value::Integer(number)) => {
            if name == "version" && *number > max.min(super::file::VERSION) {
                findings.add(
                    &node.span,
                    format!("the file is of version {number}, this program reads version 1: use a newer program"),
                );
            } else if !(min..=max).contains(number) {
                let range = if max == i64::MAX { format!("is {min}") } else { format!("takes {min} to {max}") };
                findings.add(&node.span, format!("`{name}` {range}, not {number}"));
            }
        }
        (Shape::Whole(min, max), _) => {
            let range = if max == i64::MAX { String::new() } else { format!(" from {min} to {max}") };
            findings.add(&node.span, format!("`{name}` takes a whole number{range}, not {}", node.kind()));
        }
        (Shape::Boolean, Value::Boolean(_)) => {}
        (Shape::Boolean, _) => {
            findings.add(&node.span, format!("`{name}` takes true or false, not {}", node.kind()));
        }
        (Shape::Date, Value::Text(text) | Value::Date(text)) => {
            if text.parse::<jiff::civil::Date>().is_err() || text.len() != "2024-12-31".len() {
                findings.add(&node.span, format!("`{name}` is no day that exists: write it like 2024-12-31"));
            }
        }
        (Shape::Date, _) => {
            findings.add(&node.span, format!("`{name}` takes a day like \"2024-12-31\", not {}", node.kind()));
        }
        (Shape::Texts(form, may_be_empty), Value::List(items)) => {
            check_texts(node, name, form, may_be_empty, items, findings);
        }
        (Shape::Texts(..), Value::Text(text)) => {
            findings.add(&node.span, format!("`{name}` takes a list: [\"{text}\"]"));
        }
        (Shape::Texts(..), _) => {
            findings.add(&node.span, format!("`{name}` takes a list of texts, not {}", node.kind()));
        }
        (Shape::Secret, _) => check_secret(name, node, findings),
        (Shape::Map, Value::Table(entries)) => {
            for variable in entries {
                if !matches!(variable.node.value, Value::Text(_)) {
                    findings.add(
                        &variable.node.span,
                        format!("`{name}.{}` takes text in quotes, not {}", variable.key, variable.node.kind()),
                    );
                }
            }
        }
        (Shape::Map, _) => {
            findings.add(&node.span, format!("`{name}` takes a table of texts, not {}", node.kind()));
        }
        (Shape::Table(table), _) => check_table(node, table.name, table.keys.iter(), findings),
        (Shape::Extracts, Value::List(items)) if items.iter().all(|item| matches!(item.value, Value::Table(_))) => {
            if items.is_empty() {
                findings.add(&node.span, "there is no [[extract]]: say what to fetch");
            }
            items.iter().for_each(|item| check_extract(item, findings));
        }
        (Shape::Extracts, Value::Table(_)) => {
            findings.add(&node.span, "an extract has two brackets, since there may be several: [[extract]]");
            check_extract(node, findings);
        }
        (Shape::Extracts, _) => {
            findings.add(&node.span, format!("`extract` takes a list of tables, not {}", node.kind()));
        }
    }
}

/// Checks the items of a list.
fn check_texts(node: &Node, name: &str, form: Form, may_be_empty: bool, items: &[Node], findings: &mut Findings) {
    if items.is_empty() && !may_be_empty {
        let all = if form.knows_all() { ", or [\"*\"] for all" } else { "" };
        findings.add(&node.span, format!("`{name}` is empty: name at least one{all}"));
    }
    let mut seen: Vec<&str> = Vec::new();
    for item in items {
        let Value::Text(text) = &item.value else {
            findings.add(&item.span, format!("`{name}` is a list of texts in quotes, and this is {}", item.kind()));
            continue;
        };
        if let Err(why) = form.check(text) {
            findings.add(&item.span, format!("each of `{name}` {why}"));
        } else if seen.contains(&text.as_str()) {
            findings.add(&item.span, format!("`{text}` stands twice in `{name}`"));
        } else if form.knows_all() && text == "*" && items.len() > 1 {
            findings.add(&item.span, format!("`*` means all of them: it stands alone in `{name}`"));
        }
        seen.push(text);
    }
}

/// Checks one extract by its kind.
fn check_extract(node: &Node, findings: &mut Findings) {
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let Some(kind_node) = node.get("kind") else {
        findings.add(&node.span, format!("`kind` is missing in [[extract]]; known: {}", names.join(", ")));
        return;
    };
    if let Some(kind) = kind_of(node) {
        check_table(node, "extract", with_kind(kind.all_keys()), findings);
        return;
    }
    match &kind_node.value {
        Value::Text(text) => findings.add(&kind_node.span, format!("`{text}` is no kind{}", hint(text, &names))),
        _ => findings.add(&kind_node.span, format!("`kind` takes text in quotes, not {}", kind_node.kind())),
    }
    // The kind is unknown, but a key that no kind has is a mistake all the same.
    if let Value::Table(entries) = &node.value {
        for entry in entries {
            let is_known = |key: &Key| key.name == entry.key;
            if entry.key != "kind" && !KINDS.iter().any(|kind| kind.all_keys().any(is_known)) {
                let known = EVERY_KIND.iter().map(|key| key.name).chain([PAGE_SIZE.name]);
                let known = known.chain(KINDS.iter().flat_map(|kind| kind.keys.iter().map(|key| key.name)));
                let _ = unknown_key(entry, "extract", known, findings);
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
    static KIND: Key =
        Key { name: "kind", shape: Shape::Text(Form::Any), need: Need::Required, doc: "What kind of data." };
    std::iter::once(&KIND).chain(keys)
}

/// Checks where a secret comes from.
fn check_secret(name: &str, node: &Node, findings: &mut Findings) {
    let ways = SECRET_WAYS.map(|(_, example)| example).join(", ");
    let entries = match &node.value {
        Value::Text(text) => {
            findings.mask(node);
            if text.is_empty() {
                findings.add(&node.span, format!("`{name}` is empty"));
            } else if let InlineSecrets::Refused(cure) = &findings.inline_secrets {
                let message = format!(
                    "`{name}` stands here for everybody who can read this file; write {}, or close the file with: {cure}",
                    SECRET_WAYS[0].1
                );
                findings.add(&node.span, message);
            }
            return;
        }
        Value::Table(entries) => entries,
        _ => {
            findings.mask(node);
            findings.add(&node.span, format!("`{name}` takes one of {ways}"));
            return;
        }
    };
    for entry in entries {
        let words = SECRET_WAYS.map(|(word, _)| word);
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
                    findings.add(&entry.node.span, format!("`{name}.{}` {problem}", entry.key));
                }
            }
            ("command", Value::List(items)) => {
                let is_text = |item: &Node| matches!(&item.value, Value::Text(_));
                if items.is_empty() || !items.iter().all(is_text) {
                    findings.add(
                        &entry.node.span,
                        format!("`{name}.command` takes the program and its arguments: [\"pass\", \"dhis2\"]"),
                    );
                }
            }
            ("command", _) => findings.add(
                &entry.node.span,
                format!("`{name}.command` takes a list, since no shell reads it: [\"pass\", \"dhis2\"]"),
            ),
            ("env" | "file" | "credential", _) => findings.add(
                &entry.node.span,
                format!("`{name}.{}` takes text in quotes, not {}", entry.key, entry.node.kind()),
            ),
            _ => {
                findings.mask(&entry.node);
                findings
                    .add(&entry.key_span, format!("`{}` is no way to a secret{}", entry.key, hint(&entry.key, &words)));
            }
        }
    }
    if entries.len() != 1 {
        findings.add(&node.span, format!("`{name}` takes exactly one of {ways}"));
    }
}
