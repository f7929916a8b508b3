//! Answers `/api/dataStore` and `/api/userDataStore`: namespaces, keys, values, and the query over a namespace (2.38 and
//! later), which has no total.
//!
//! Sources: recorded `ds-*` and `uds` (2.40, 2.42, 2.43).

use crate::answer::{Answer, NO_STORE};
use crate::clock;
use crate::country::{hash_text, mix, uid_of, uid_text};
use crate::request::Request;
use crate::rows::push_text;
use crate::world::World;

const NAMESPACES: &[(&str, u32)] = &[("café data", 3), ("settings", 130)];

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    push_text(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

fn listed(items: &[String]) -> Answer {
    Answer::json(200, format!("[{}]", items.join(",")).into_bytes()).with_header("Cache-Control", NO_STORE)
}

fn key(number: u32) -> String {
    format!("key-{number:03}")
}

/// A value as it was put in: blanks, numbers and all.
fn value(number: u32) -> String {
    if number < 9 {
        format!("{{\"n\": {number}, \"t\": \"é\\n\", \"x\": 1.10, \"deep\": {{\"a\": [1, 2, {{\"b\": null}}]}}}}")
    } else {
        number.to_string()
    }
}

fn saved_ms(number: u32) -> i64 {
    (clock::days(2023, 6, 1) + i64::from(number % 200)) * 86_400_000
}

/// `/api/dataStore`.
pub(crate) fn namespaces() -> Answer {
    let names: Vec<String> = NAMESPACES.iter().map(|(name, _)| quoted(name)).collect();
    listed(&names)
}

/// `/api/userDataStore`: nobody keeps anything here.
pub(crate) fn of_user() -> Answer {
    listed(&[])
}

fn size(namespace: &str) -> Option<u32> {
    NAMESPACES.iter().find(|(name, _)| *name == namespace).map(|(_, keys)| *keys)
}

fn no_namespace(world: &World, namespace: &str) -> Answer {
    let message = format!("Namespace not found: '{namespace}'");
    let mut answer = Answer::coded_message(&world.dialect, 404, &message, Some("E1005"));
    answer.headers.retain(|(name, _)| name != "Cache-Control");
    answer.with_header("Cache-Control", NO_STORE)
}

/// `/api/dataStore/{namespace}`: keys, or entries where `fields` asks for them.
pub(crate) fn entries(world: &World, request: &Request, namespace: &str) -> Answer {
    let Some(keys) = size(namespace) else { return no_namespace(world, namespace) };
    let since = request.param("lastUpdated").and_then(clock::parse_local);
    let found: Vec<u32> = (0..keys).filter(|number| since.is_none_or(|since| saved_ms(*number) >= since)).collect();
    if request.param("fields").is_none() || world.dialect.minor < 38 {
        let keys: Vec<String> = found.iter().map(|number| quoted(&key(*number))).collect();
        return listed(&keys);
    }
    let number = |name: &str, default: usize| {
        request.param(name).and_then(|text| text.parse().ok()).filter(|number| *number > 0).unwrap_or(default)
    };
    let (page, size) = (number("page", 1), number("pageSize", 50));
    // Without paging the pager is there all the same (recorded: `ds-query-paging-false`).
    let shown = if request.param("paging") == Some("false") {
        0..found.len()
    } else {
        let from = (page - 1).saturating_mul(size).min(found.len());
        from..from.saturating_add(size).min(found.len())
    };
    let rows: Vec<String> = found[shown]
        .iter()
        .map(|number| format!("{{\"key\":\"{}\",\"value\":{}}}", key(*number), value(*number)))
        .collect();
    let rows = format!("[{}]", rows.join(","));
    let body = if request.param("headless") == Some("true") {
        rows
    } else {
        format!("{{\"pager\":{{\"page\":{page},\"pageSize\":{size}}},\"entries\":{rows}}}")
    };
    Answer::json(200, body.into_bytes()).with_header("Cache-Control", NO_STORE)
}

fn number_of(namespace: &str, wanted: &str) -> Option<u32> {
    (0..size(namespace)?).find(|number| key(*number) == wanted)
}

fn no_key(world: &World, namespace: &str, wanted: &str) -> Answer {
    let message = format!("Key '{wanted}' not found in namespace '{namespace}'");
    Answer::coded_message(&world.dialect, 404, &message, Some("E1005"))
}

/// `/api/dataStore/{namespace}/{key}`.
pub(crate) fn entry(world: &World, namespace: &str, wanted: &str) -> Answer {
    match number_of(namespace, wanted) {
        Some(number) => Answer::json(200, value(number).into_bytes()),
        None => no_key(world, namespace, wanted),
    }
}

/// `/api/dataStore/{namespace}/{key}/metaData`.
pub(crate) fn about(world: &World, namespace: &str, wanted: &str) -> Answer {
    let Some(number) = number_of(namespace, wanted) else { return no_key(world, namespace, wanted) };
    let external = world.dialect.external_sharing;
    let saved = clock::local(saved_ms(number));
    let id = uid_of(mix(hash_text(namespace) ^ u64::from(number)));
    let owner = uid_of(hash_text("admin"));
    let user = format!(
        "{{\"id\":\"{}\",\"code\":\"admin\",\"name\":\"admin admin\",\"displayName\":\"admin admin\",\"username\":\"admin\"}}",
        uid_text(&owner)
    );
    let old = if external {
        ",\"externalAccess\":false,\"publicAccess\":\"rw------\",\"userGroupAccesses\":[],\"userAccesses\":[]"
    } else {
        ""
    };
    let (externalize, shared) = if external { ("\"externalize\":true,", "\"external\":false,") } else { ("", "") };
    let body = format!(
        "{{\"created\":\"{saved}\",\"lastUpdated\":\"{saved}\",\"translations\":[]{old},\"createdBy\":{user},\"favorites\":[],\"lastUpdatedBy\":{user},\
         \"sharing\":{{\"owner\":\"{}\",{shared}\"users\":{{}},\"userGroups\":{{}},\"public\":\"rw------\"}},\"namespace\":{},\"key\":{},\
         \"access\":{{\"manage\":true,{externalize}\"write\":true,\"read\":true,\"update\":true,\"delete\":true}},\"favorite\":false,\"user\":{user},\
         \"id\":\"{}\",\"attributeValues\":[]}}",
        uid_text(&owner),
        quoted(namespace),
        quoted(wanted),
        uid_text(&id)
    );
    Answer::json(200, body.into_bytes())
}
