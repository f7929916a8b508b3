//! The JSON Schema of the job file, for editors: made from the same tables as the reader.

use serde_json::{Map, Value, json};

use super::file::{FILE, KINDS, Key, Presence, SECRET_SOURCES, Table, TextFormat, ValueType};

/// The schema as one JSON document.
pub fn schema() -> Value {
    let mut document = table(&FILE);
    document["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    document["title"] = json!("A job of dhis2-harvester");
    document["$defs"] = json!({ "secret": secret() });
    document
}

/// A table of fixed keys.
fn table(table: &Table) -> Value {
    object(table.keys.iter().map(|key| (key, property(key))))
}

/// An object of exactly these keys.
fn object<'k>(keys: impl Iterator<Item = (&'k Key, Value)>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for (key, property) in keys {
        if matches!(key.presence, Presence::Required) {
            required.push(json!(key.name));
        }
        properties.insert(key.name.to_owned(), property);
    }
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

/// One key.
fn property(key: &Key) -> Value {
    let mut property = match key.value_type {
        ValueType::Text(format) => text(format),
        ValueType::Word(words, _) => json!({ "enum": words }),
        ValueType::Integer(min, i64::MAX) => json!({ "const": min }),
        ValueType::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        ValueType::Boolean => json!({ "type": "boolean" }),
        ValueType::Date => json!({ "type": "string", "format": "date", "pattern": "^\\d{4}-\\d{2}-\\d{2}$" }),
        ValueType::Texts(format, may_be_empty) => json!({
            "type": "array",
            "items": text(format),
            "uniqueItems": true,
            "minItems": u8::from(!may_be_empty),
        }),
        ValueType::Secret => json!({ "$ref": "#/$defs/secret" }),
        ValueType::Map => json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        ValueType::Table(inner) => table(inner),
        ValueType::Extracts => json!({ "type": "array", "minItems": 1, "items": { "oneOf": kinds() } }),
    };
    property["description"] = json!(key.doc);
    if let Presence::Default(default) = key.presence {
        property["default"] = serde_json::from_str(default).unwrap_or(Value::Null);
    }
    property
}

/// Text of a format.
fn text(format: TextFormat) -> Value {
    match format.pattern() {
        Some(pattern) => json!({ "type": "string", "pattern": pattern }),
        None => json!({ "type": "string", "minLength": 1 }),
    }
}

/// Every kind of extract.
fn kinds() -> Vec<Value> {
    KINDS
        .iter()
        .map(|kind| {
            let mut schema = object(kind.all_keys().map(|key| (key, property(key))));
            schema["properties"]["kind"] = json!({ "const": kind.name });
            if let Some(required) = schema["required"].as_array_mut() {
                required.insert(0, json!("kind"));
            }
            schema["title"] = json!(kind.name);
            schema["description"] = json!(kind.doc);
            schema
        })
        .collect()
}

/// Sources of a secret.
fn secret() -> Value {
    let sources = SECRET_SOURCES.map(|(word, _)| {
        let value = match word {
            "command" => json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 }),
            _ => json!({ "type": "string", "minLength": 1 }),
        };
        json!({ "type": "object", "properties": { word: value }, "required": [word], "additionalProperties": false })
    });
    let mut one_of = sources.to_vec();
    one_of.push(json!({
        "type": "string",
        "minLength": 1,
        "description": "The secret itself: only in a file that no other user can read (0600).",
    }));
    json!({ "oneOf": one_of })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::job::{Job, file::EVERY_KIND};

    /// Whether the reader calls a key unknown.
    fn is_unknown(toml: &str, key: &str) -> bool {
        let found = Job::parse(Path::new("x.toml"), toml, true);
        found.is_err_and(|diagnostics| diagnostics.one_line().contains(&format!("unknown key `{key}`")))
    }

    #[test]
    fn the_schema_and_the_reader_know_the_same_keys() {
        let schema = schema();
        let (mut keys, top) = (0, &schema["properties"]);
        for name in ["source", "limits", "sink"] {
            for key in top[name]["properties"].as_object().unwrap().keys() {
                assert!(!is_unknown(&format!("[{name}]\n{key} = 1"), key), "{name}.{key}");
                assert!(is_unknown(&format!("[{name}]\n{key}x = 1"), &format!("{key}x")));
                keys += 1;
            }
        }
        for kind in top["extract"]["items"]["oneOf"].as_array().unwrap() {
            let name = kind["properties"]["kind"]["const"].as_str().unwrap();
            for key in kind["properties"].as_object().unwrap().keys() {
                let value = if key == "kind" { String::new() } else { format!("{key} = 1") };
                assert!(!is_unknown(&format!("[[extract]]\nkind = \"{name}\"\n{value}"), key), "{name}.{key}");
                keys += 1;
            }
        }
        assert!(keys > 70, "{keys}");
        // And nothing that the reader's tables know is missing in the schema.
        for kind in KINDS {
            let schemas = top["extract"]["items"]["oneOf"].as_array().unwrap();
            let schema = schemas.iter().find(|schema| schema["title"] == kind.name).unwrap();
            for key in EVERY_KIND.iter().chain(kind.keys) {
                assert!(schema["properties"].get(key.name).is_some(), "{}.{}", kind.name, key.name);
            }
        }
    }

    #[test]
    fn every_default_of_the_tables_is_json() {
        let keys = FILE.keys.iter().chain(KINDS.iter().flat_map(super::super::file::Kind::all_keys));
        for key in keys {
            if let Presence::Default(default) = key.presence {
                serde_json::from_str::<Value>(default).unwrap();
            }
        }
    }
}
