//! Reads the `fields` parameter.

use std::iter::Peekable;
use std::str::Chars;

/// What becomes of a member's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Transform {
    #[default]
    None,
    Size,
    IsEmpty,
    IsNotEmpty,
}

/// One word of a `fields` list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Field {
    /// A member, a preset with its colon, or `*`.
    pub(crate) name: String,
    /// `!name`.
    pub(crate) excluded: bool,
    pub(crate) rename: Option<String>,
    pub(crate) transform: Transform,
    /// What stands in the brackets; empty when there are none.
    pub(crate) nested: Vec<Field>,
}

/// Reads `id,name,parent[id,code],!href,:owner,x~rename(y)`. Never fails: what makes no sense is a name nobody has.
pub(crate) fn parse(text: &str) -> Vec<Field> {
    list(&mut text.chars().peekable(), 0)
}

fn list(chars: &mut Peekable<Chars<'_>>, depth: usize) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut name = String::new();
    let mut nested = Vec::new();
    let mut finish = |name: &mut String, nested: &mut Vec<Field>| {
        let word = std::mem::take(name);
        if !word.trim().is_empty() {
            fields.push(field(word.trim(), std::mem::take(nested)));
        }
    };
    let mut parentheses = 0u32;
    while let Some(character) = chars.next() {
        match character {
            '(' => {
                parentheses += 1;
                name.push('(');
            }
            ')' => {
                parentheses = parentheses.saturating_sub(1);
                name.push(')');
            }
            ',' if parentheses == 0 => finish(&mut name, &mut nested),
            '[' if depth < 8 => nested = list(chars, depth + 1),
            ']' => break,
            other => name.push(other),
        }
    }
    finish(&mut name, &mut nested);
    fields
}

fn field(word: &str, nested: Vec<Field>) -> Field {
    let word = word.replace("::", "~").replace('|', "~");
    let mut parts = word.split('~');
    let head = parts.next().unwrap_or_default();
    let (excluded, name) = match head.strip_prefix('!') {
        Some(rest) => (true, rest),
        None => (false, head),
    };
    let mut read = Field { name: name.into(), excluded, nested, ..Field::default() };
    for part in parts {
        match part {
            "size" => read.transform = Transform::Size,
            "isEmpty" => read.transform = Transform::IsEmpty,
            "isNotEmpty" => read.transform = Transform::IsNotEmpty,
            _ => {
                read.rename =
                    part.strip_prefix("rename(").and_then(|rest| rest.strip_suffix(')')).map(Into::into).or(read.rename)
            }
        }
    }
    read
}

/// Whether a preset or a name covers a member. Presets are decided by the caller's facts about the member.
pub(crate) fn covers(field: &Field, name: &str, owned: bool, simple: bool) -> bool {
    match field.name.as_str() {
        "*" | ":all" => true,
        ":owner" | ":persisted" => owned,
        ":simple" => simple,
        ":identifiable" => matches!(name, "id" | "name" | "code" | "created" | "lastUpdated" | "href"),
        ":nameable" => {
            matches!(name, "id" | "name" | "shortName" | "description" | "code" | "created" | "lastUpdated" | "href")
        }
        ":idName" => matches!(name, "id" | "name"),
        ":id" => name == "id",
        ":code" => name == "code",
        plain => plain == name,
    }
}

/// The members of a JSON object in their order, values as raw text.
pub(crate) fn members(json: &str) -> Vec<(String, String)> {
    struct Pairs(Vec<(String, String)>);
    impl<'de> serde::Deserialize<'de> for Pairs {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Pairs;
                fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    formatter.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                    let mut pairs = Vec::new();
                    while let Some((key, value)) = map.next_entry::<String, Box<serde_json::value::RawValue>>()? {
                        pairs.push((key, value.get().to_owned()));
                    }
                    Ok(Pairs(pairs))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    serde_json::from_str::<Pairs>(json).map_or_else(|_| Vec::new(), |pairs| pairs.0)
}

/// Keeps the named members of a JSON object, or of every object in an array; text as it was. What is neither stays.
pub(crate) fn select(json: &str, fields: &[Field]) -> String {
    let json = json.trim();
    if json.starts_with('[') {
        let items: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(json).unwrap_or_default();
        let kept: Vec<String> = items.iter().map(|item| select(item.get(), fields)).collect();
        return format!("[{}]", kept.join(","));
    }
    if !json.starts_with('{') {
        return json.to_owned();
    }
    let mut out = String::from("{");
    for (name, value) in members(json) {
        if fields.iter().any(|field| field.excluded && field.name == name) {
            continue;
        }
        let Some(field) = fields.iter().rev().find(|field| !field.excluded && covers(field, &name, true, true)) else {
            continue;
        };
        if out.len() > 1 {
            out.push(',');
        }
        let shown = field.rename.as_deref().unwrap_or(&name);
        let value = if field.nested.is_empty() { value } else { select(&value, &field.nested) };
        out.push_str(&format!("\"{shown}\":{value}"));
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_with_its_brackets_and_transformers() {
        let fields = parse("id,parent[id,code[x]],!href,:owner,name~rename(label),users::size");
        let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["id", "parent", "href", ":owner", "name", "users"]);
        assert_eq!(fields[1].nested[1].nested[0].name, "x");
        assert!(fields[2].excluded);
        assert_eq!(fields[4].rename.as_deref(), Some("label"));
        assert_eq!(fields[5].transform, Transform::Size);
    }

    #[test]
    fn selecting_keeps_order_and_bytes() {
        let json = r#"{"b":1.10,"a":{"x":1e-7,"y":2},"c":[{"x":1},{"x":2,"y":3}]}"#;
        assert_eq!(select(json, &parse("a[x],b,c[y]")), r#"{"b":1.10,"a":{"x":1e-7},"c":[{},{"y":3}]}"#);
        assert_eq!(select(json, &parse("*,!c")), r#"{"b":1.10,"a":{"x":1e-7,"y":2}}"#);
    }
}
