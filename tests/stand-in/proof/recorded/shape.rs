//! Compares two bodies by their form: members, types, the pager's numbers, the sentences of an error; not by content.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Objects whose members are named by ids, periods or dimensions.
const MAPS: &[&str] = &["sharing.users", "sharing.userGroups", "metaData.items", "metaData.dimensions", "settings"];

/// What a body looks like.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// `envelope.rows[].member` to the types found there.
    types: BTreeMap<String, BTreeSet<&'static str>>,
    /// Lists that were empty wherever they occurred.
    empty: BTreeSet<String>,
    /// Pager numbers and texts of an error, which must be equal.
    facts: BTreeMap<String, String>,
}

impl Shape {
    /// The form of a body; of one that is no JSON only its kind.
    pub(super) fn of(body: &[u8]) -> Self {
        let mut shape = Self::default();
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => {
                shape.walk(&value, "");
                shape.note_facts(&value);
            }
            Err(_) => shape.note("body", kind(body)),
        }
        shape
    }

    fn note(&mut self, name: &str, value: String) {
        self.facts.insert(name.to_owned(), value);
    }

    fn walk(&mut self, value: &Value, path: &str) {
        let name = match value {
            Value::Null => "null",
            Value::Bool(_) => "flag",
            Value::Number(_) => "number",
            Value::String(_) => "text",
            Value::Array(_) => "list",
            Value::Object(_) => "object",
        };
        self.types.entry(path.to_owned()).or_default().insert(name);
        match value {
            Value::Array(items) => {
                let inner = format!("{path}[]");
                if items.is_empty() && !self.types.contains_key(&inner) {
                    self.empty.insert(path.to_owned());
                } else if !items.is_empty() {
                    self.empty.remove(path);
                }
                for item in items {
                    self.walk(item, &inner);
                }
            }
            Value::Object(members) => {
                let by_key = MAPS.iter().any(|map| path.ends_with(map));
                for (name, value) in members {
                    let name = if by_key { "*" } else { name };
                    let inner = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    self.walk(value, &inner);
                }
            }
            _ => {}
        }
    }

    fn note_facts(&mut self, value: &Value) {
        for name in ["message", "errorCode", "error"] {
            if let Some(text) = value[name].as_str() {
                self.note(name, without_ids(text));
            }
        }
        for (prefix, pager) in
            [("", value), ("pager.", &value["pager"]), ("metaData.pager.", &value["metaData"]["pager"])]
        {
            for name in ["page", "pageSize", "pageCount", "total", "isLastPage"] {
                if !pager[name].is_null() {
                    self.note(&format!("{prefix}{name}"), pager[name].to_string());
                }
            }
        }
    }

    /// Adds the members of another answer of the same request with more rows.
    pub(super) fn widen(&mut self, more: &Self) {
        for (path, types) in &more.types {
            self.types.entry(path.clone()).or_default().extend(types);
        }
        self.empty.retain(|path| more.empty.contains(path));
    }

    /// Whether a list, or an object, of the other lies on the way to `path` and has nothing in it here.
    fn hides(&self, path: &str) -> bool {
        let deep = |list: &str| list.contains('[') || list.contains('.');
        self.empty.iter().filter(|list| deep(list)).any(|list| path.starts_with(&format!("{list}[]")))
    }

    /// What `other` lacks or has wrong, and what it has besides; only the outermost member of each.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.facts.contains_key("body") != other.facts.contains_key("body") {
            let kind = |shape: &Self| shape.facts.get("body").map_or("json", String::as_str).to_owned();
            return vec![format!("body {} for {}", kind(other), kind(self))];
        }
        for (path, types) in &self.types {
            match other.types.get(path) {
                None if !other.hides(path) => found.push(format!("missing {path}")),
                Some(theirs) => {
                    let (types, theirs) = (without_null(types), without_null(theirs));
                    if !types.is_empty() && !theirs.is_empty() && types != theirs {
                        found.push(format!("type {path} {} for {}", words(&theirs), words(&types)));
                    }
                }
                None => {}
            }
        }
        for path in other.types.keys() {
            if !self.types.contains_key(path) && !self.hides(path) {
                found.push(format!("extra {path}"));
            }
        }
        let outermost = |line: &String| {
            !found.iter().any(|outer| {
                line.strip_prefix(outer.as_str()).is_some_and(|rest| rest.starts_with('.') || rest.starts_with('['))
            })
        };
        let mut kept: Vec<String> = found.iter().filter(|line| outermost(line)).cloned().collect();
        for name in self.facts.keys().chain(other.facts.keys()).collect::<BTreeSet<_>>() {
            let (ours, theirs) = (self.facts.get(name), other.facts.get(name));
            if ours != theirs {
                let text = |fact: Option<&String>| fact.map_or("-", String::as_str).to_owned();
                kept.push(format!("value {name} {} for {}", text(theirs), text(ours)));
            }
        }
        kept
    }
}

fn without_null(types: &BTreeSet<&'static str>) -> BTreeSet<&'static str> {
    types.iter().copied().filter(|name| *name != "null").collect()
}

fn words(types: &BTreeSet<&'static str>) -> String {
    types.iter().copied().collect::<Vec<_>>().join("|")
}

/// Ids in a sentence become `*`, since the country has others.
fn without_ids(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric();
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if is_word(c) {
            word.push(c);
            continue;
        }
        // Written without a mixture of cases or digits it is a word of eleven letters.
        let mixed = word.chars().any(|c| c.is_ascii_digit())
            || (word.chars().skip(1).any(|c| c.is_ascii_uppercase()) && word.chars().any(|c| c.is_ascii_lowercase()));
        out.push_str(if word.len() == 11 && mixed { "*" } else { &word });
        word.clear();
        out.push(c);
    }
    out.trim_end().to_owned()
}

/// What a body is that is no JSON.
fn kind(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    if text.is_empty() {
        "nothing".into()
    } else if lower.starts_with("<!doctype html") || lower.starts_with("<html") || lower.starts_with("<h1") {
        "html".into()
    } else if let Some(xml) = text.strip_prefix("<?xml") {
        let root = xml.split('<').nth(1).unwrap_or_default();
        format!("xml {}", root.split([' ', '>']).next().unwrap_or_default())
    } else {
        format!("text {}", text.lines().next().unwrap_or_default())
    }
}

#[test]
fn what_is_missing_wrong_or_besides_is_told_apart() {
    let recorded = Shape::of(br#"{"pager":{"page":1,"total":9},"rows":[{"id":"a","n":1,"deep":{"x":[],"y":null}}]}"#);
    let ours = Shape::of(
        br#"{"pager":{"page":2,"total":9},"rows":[{"id":"a","n":"1","deep":{"x":[{"z":1}],"y":3},"more":{"a":1}}]}"#,
    );
    assert_eq!(
        recorded.differences(&ours),
        ["type rows[].n text for number", "extra rows[].more", "value pager.page 2 for 1"]
    );
    let none = Shape::of(br#"{"pager":{"page":1,"total":9},"rows":[]}"#);
    assert_eq!(recorded.differences(&none), ["missing rows[]"]);
    assert_eq!(Shape::of(b"pong").differences(&Shape::of(b"<html>")), ["value body html for text pong"]);
    let refusal = |id: &str| Shape::of(format!(r#"{{"message":"no {id} found"}}"#).as_bytes());
    assert_eq!(refusal("uIDoiSLoQFy").differences(&refusal("A4rZVCv5GzO")), [""; 0]);
    assert_eq!(refusal("displayname").differences(&refusal("A4rZVCv5GzO")).len(), 1);
}
