//! What the stand-in says when nothing is wrong, version by version.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use proptest::prelude::*;

use super::client::{Client, End, basic, get, get_with, keyset};
use crate::{Builder, Change, Collation, Latency, StandIn, User};

fn small(version: &str) -> Builder {
    StandIn::builder().version(version).org_units(130).server_date("2024-05-01T10:11:12.345")
}

fn versions() -> impl Iterator<Item = String> {
    (25..=43).map(|minor| format!("2.{minor}"))
}

fn at(version: &str) -> u8 {
    version[2..].parse().unwrap()
}

#[test]
fn every_collection_of_every_version_is_listed_as_its_truth() {
    for version in versions() {
        let stand_in = small(&version).start().unwrap();
        let mut client = Client::connect(&stand_in);
        assert!(stand_in.collections().len() >= 30, "{version}");
        for collection in stand_in.collections() {
            let got = client.get(&format!("/api/{collection}?paging=false&fields=:owner"));
            assert_eq!(got.status, 200, "{version} {collection}");
            let base = stand_in.url().to_owned();
            let mut rows = got.rows(collection);
            let mut truth = stand_in.truth(collection, ":owner");
            assert!(rows.iter().all(|row| !row.contains(&base)), "{version} {collection}: owned members name no host");
            rows.sort_unstable();
            truth.sort_unstable();
            assert_eq!(rows, truth, "{version} {collection}");
            assert!(got.json().get("pager").is_none());
        }
    }
}

#[test]
fn a_walk_by_keyset_is_the_truth_in_order_in_every_version() {
    for version in versions() {
        for collation in [Collation::C, Collation::CaseInsensitive] {
            let stand_in = small(&version).collation(collation).start().unwrap();
            for fields in [":owner", "id"] {
                let (rows, _) = keyset(&stand_in, "organisationUnits", fields, 50);
                assert_eq!(rows, stand_in.truth("organisationUnits", fields), "{version} {collation:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_walk_by_keyset_visits_every_id_once(seed in 0u64..1000, org_units in 0u32..400, page_size in 1usize..120, c in any::<bool>()) {
        let collation = if c { Collation::C } else { Collation::CaseInsensitive };
        let stand_in = StandIn::builder().seed(seed).org_units(org_units).collation(collation).start().unwrap();
        let (rows, requests) = keyset(&stand_in, "organisationUnits", "id", page_size);
        prop_assert_eq!(rows.len(), org_units as usize);
        prop_assert_eq!(rows.iter().collect::<HashSet<_>>().len(), rows.len());
        prop_assert_eq!(rows, stand_in.truth("organisationUnits", "id"));
        prop_assert_eq!(requests, (org_units as usize).div_ceil(page_size) + 1);
    }
}

#[test]
fn collations_differ_in_order_and_agree_in_content() {
    let ids = |collation| small("2.40").collation(collation).start().unwrap().ids("organisationUnits");
    let (c, other) = (ids(Collation::C), ids(Collation::CaseInsensitive));
    assert!(c.is_sorted());
    assert_ne!(c, other);
    assert_eq!(c.iter().collect::<HashSet<_>>(), other.iter().collect::<HashSet<_>>());
}

#[test]
fn two_stand_ins_of_one_seed_hold_the_same_rows_and_another_seed_holds_others() {
    let rows = |seed| small("2.40").seed(seed).start().unwrap().truth("dataElements", ":owner");
    assert_eq!(rows(1), rows(1));
    assert_ne!(rows(1), rows(2));
}

#[test]
fn names_and_numbers_are_awkward_and_every_row_is_json() {
    let stand_in = StandIn::builder().org_units(3000).start().unwrap();
    let all = stand_in.truth("organisationUnits", ":owner").join("\n");
    for needle in [
        r#"\""#,
        r"\\",
        r"\n",
        r"\t",
        r"\u0001",
        "é",
        "诊所",
        "🏥",
        "<b>",
        r"caf\u00e9",
        r"\ud83c\udfe5",
        "1.10",
        "-0.0",
        "1e-7",
        "12345678901234567890123",
    ] {
        assert!(all.contains(needle), "{needle}");
    }
    let mut names = HashMap::new();
    stand_in.truth_rows("organisationUnits", "*", |_, row| {
        let row: serde_json::Value = serde_json::from_slice(row).unwrap();
        *names.entry(row["name"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        assert_eq!(row["path"].as_str().unwrap().split('/').count() - 1, row["level"].as_u64().unwrap() as usize);
        assert_eq!(row["parent"].is_null(), row["level"] == 1);
    });
    assert!(names["Health Post"] > 10);
}

#[test]
fn a_page_behind_the_last_repeats_it_up_to_2_30_and_is_empty_from_2_31() {
    for version in versions() {
        let stand_in = small(&version).start().unwrap();
        let mut client = Client::connect(&stand_in);
        let last = client.get("/api/organisationUnits?page=3");
        let behind = client.get("/api/organisationUnits?page=4");
        assert_eq!(
            (last.pager("page"), last.pager("pageCount"), last.pager("total"), last.pager("pageSize")),
            (3, 3, 130, 50)
        );
        assert_eq!(last.rows("organisationUnits").len(), 30);
        assert_eq!(behind.pager("page"), 3, "{version}");
        if at(&version) <= 30 {
            assert_eq!(behind.rows("organisationUnits"), last.rows("organisationUnits"), "{version}");
        } else {
            assert_eq!(behind.rows("organisationUnits").len(), 0, "{version}");
        }
        let nothing = client.get("/api/organisationUnits?pageSize=0");
        assert_eq!((nothing.rows("organisationUnits").len(), nothing.pager("pageSize")), (0, 1));
        assert_eq!(client.get("/api/organisationUnits?page=0").pager("page"), 1);
        let wrong = if at(&version) <= 36 { 500 } else { 400 };
        assert_eq!(client.get("/api/organisationUnits?page=two").status, wrong, "{version}");
    }
}

#[test]
fn the_pager_comes_first_and_its_next_page_may_lie() {
    let stand_in = small("2.40").next_page_base("https://internal:8443").start().unwrap();
    let got = get(&stand_in, "/api/organisationUnits?page=2");
    assert!(got.text().starts_with(r#"{"pager":{"page":2,"total":130,"pageSize":50,"nextPage":"#));
    assert!(got.text().contains(r#""nextPage":"https://internal:8443/api/organisationUnits?page=3""#));
    assert!(!get(&stand_in, "/api/organisationUnits?page=3").text().contains("nextPage"));
}

#[test]
fn an_unordered_list_is_by_name_then_by_what_the_version_adds() {
    for version in ["2.25", "2.32", "2.33", "2.43"] {
        let stand_in = StandIn::builder().version(version).org_units(600).start().unwrap();
        let list = get(&stand_in, "/api/organisationUnits?paging=false&fields=id,name,created").json();
        let rows = list["organisationUnits"].as_array().unwrap();
        let mut equal_names = 0;
        for pair in rows.windows(2) {
            let name = |row: &serde_json::Value| row["name"].as_str().unwrap().to_lowercase();
            assert!(name(&pair[0]) <= name(&pair[1]), "{version}");
            if name(&pair[0]) == name(&pair[1]) {
                equal_names += 1;
                if at(version) <= 32 {
                    assert!(pair[0]["created"].as_str() >= pair[1]["created"].as_str(), "{version}");
                } else {
                    assert!(pair[0]["id"].as_str() < pair[1]["id"].as_str(), "{version}");
                }
            }
        }
        assert!(equal_names > 5);
    }
}

#[test]
fn ties_are_unstable_where_that_is_switched_on() {
    let lists = |builder: Builder| {
        let stand_in = builder.version("2.32").org_units(600).start().unwrap();
        let mut client = Client::connect(&stand_in);
        let mut one = || client.get("/api/organisationUnits?paging=false").rows("organisationUnits");
        (one(), one())
    };
    let (first, second) = lists(StandIn::builder());
    assert_eq!(first, second);
    let (first, second) = lists(StandIn::builder().unstable_ties());
    assert_ne!(first, second);
    assert_eq!(first.iter().collect::<HashSet<_>>(), second.iter().collect::<HashSet<_>>());
}

#[test]
fn of_several_orders_2_42_takes_the_first_and_2_41_any() {
    // Counts, over pairs of orders, in how many the first one leads.
    let leads = |version: &str| {
        let stand_in = small(version).start().unwrap();
        let mut client = Client::connect(&stand_in);
        let pairs =
            [("level:asc", "id:asc"), ("id:asc", "level:asc"), ("level:desc", "id:asc"), ("id:asc", "level:desc")];
        let first_leads = pairs.iter().filter(|(first, second)| {
            let mut rows = |orders: &str| {
                client
                    .get(&format!("/api/organisationUnits?paging=false&fields=id,level&{orders}"))
                    .rows("organisationUnits")
            };
            let both = rows(&format!("order={first}&order={second}"));
            if first.starts_with("id") {
                both == rows(&format!("order={first}"))
            } else {
                let level = |row: &str| row.split("\"level\":").nth(1).unwrap_or_default()[..1].to_owned();
                let levels: Vec<String> = both.iter().map(|row| level(row)).collect();
                levels.is_sorted() || levels.iter().rev().is_sorted()
            }
        });
        first_leads.count()
    };
    assert_eq!(leads("2.42"), 4);
    assert_eq!(leads("2.41"), 2, "by their hash, in whichever order they are written");
}

#[test]
fn filters_pick_what_their_names_say() {
    let stand_in = small("2.41").start().unwrap();
    let mut client = Client::connect(&stand_in);
    let mut rows: Vec<serde_json::Value> = Vec::new();
    stand_in.truth_rows("organisationUnits", "*", |_, row| rows.push(serde_json::from_slice(row).unwrap()));
    let text = |row: &serde_json::Value, member: &str| row[member].as_str().map(ToOwned::to_owned);
    let id = |at: usize| text(&rows[at], "id").unwrap();
    let (a, b) = (id(30), id(90));
    let code = rows.iter().find_map(|row| text(row, "code")).unwrap();
    let root = rows.iter().find(|row| row["level"] == 1).map(|row| text(row, "id").unwrap()).unwrap();
    type Test<'a> = Box<dyn Fn(&serde_json::Value) -> bool + 'a>;
    let table: Vec<(String, Test<'_>)> = vec![
        (format!("id:gt:{a}"), Box::new(|row| text(row, "id").unwrap() > a)),
        (format!("id:ge:{a}"), Box::new(|row| text(row, "id").unwrap() >= a)),
        (format!("id:lt:{a}"), Box::new(|row| text(row, "id").unwrap() < a)),
        (format!("id:le:{a}"), Box::new(|row| text(row, "id").unwrap() <= a)),
        (format!("id:gte:{a}"), Box::new(|row| text(row, "id").unwrap() >= a)),
        (
            format!("id:lte:{a}&filter=id:gt:{}", id(10)),
            Box::new(|row| (id(10) < text(row, "id").unwrap()) && text(row, "id").unwrap() <= a),
        ),
        (format!("id:in:[{b},{a},{b},nobodyHere1]"), Box::new(|row| [&a, &b].contains(&&text(row, "id").unwrap()))),
        (format!("id:in:[{a},{b}]&filter=id:gt:{a}"), Box::new(|row| text(row, "id").unwrap() == b)),
        (format!("id:!in:[{a},{b}]"), Box::new(|row| ![&a, &b].contains(&&text(row, "id").unwrap()))),
        (format!("id:eq:{b}"), Box::new(|row| text(row, "id").unwrap() == b)),
        (format!("id:!eq:{b}"), Box::new(|row| text(row, "id").unwrap() != b)),
        ("id:gt:A".into(), Box::new(|row| text(row, "id").unwrap().as_str() > "A")),
        ("id:gt:zzzzzzzzzzzz".into(), Box::new(|_| false)),
        (format!("code:eq:{}", code.replace(' ', "%20")), Box::new(|row| text(row, "code").as_deref() == Some(&code))),
        ("code:null".into(), Box::new(|row| row.get("code").is_none())),
        ("code:!null".into(), Box::new(|row| row.get("code").is_some())),
        ("name:like:Health".into(), Box::new(|row| text(row, "name").unwrap().contains("Health"))),
        ("name:like:hEALTH".into(), Box::new(|row| text(row, "name").unwrap().contains("hEALTH"))),
        ("name:ilike:hEALTH".into(), Box::new(|row| text(row, "name").unwrap().to_lowercase().contains("health"))),
        ("name:!ilike:clinic".into(), Box::new(|row| !text(row, "name").unwrap().to_lowercase().contains("clinic"))),
        ("name:$ilike:bo".into(), Box::new(|row| text(row, "name").unwrap().to_lowercase().starts_with("bo"))),
        ("level:eq:3".into(), Box::new(|row| row["level"] == 3)),
        ("level:gt:3".into(), Box::new(|row| row["level"].as_u64() > Some(3))),
        ("level:in:[1,2]".into(), Box::new(|row| row["level"] == 1 || row["level"] == 2)),
        ("lastUpdated:ge:2018-01-01".into(), Box::new(|row| text(row, "lastUpdated").unwrap().as_str() >= "2018")),
        (
            "lastUpdated:lt:2018-01-01T00:00:00.000".into(),
            Box::new(|row| text(row, "lastUpdated").unwrap().as_str() < "2018"),
        ),
        (
            "created:gt:2017-06".into(),
            Box::new(|row| text(row, "created").unwrap().as_str() > "2017-06-01T00:00:00.000"),
        ),
        (format!("parent.id:eq:{root}"), Box::new(|row| row["parent"]["id"] == root.as_str())),
        ("level:eq:1&filter=level:eq:2&rootJunction=OR".into(), Box::new(|row| row["level"].as_u64() < Some(3))),
        (
            format!("id:eq:{a}&filter=id:eq:{b}&rootJunction=OR"),
            Box::new(|row| [&a, &b].contains(&&text(row, "id").unwrap())),
        ),
        ("parent:null".into(), Box::new(|row| row.get("parent").is_none())),
    ];
    for (filter, holds) in &table {
        let got = client.get(&format!("/api/organisationUnits?paging=false&order=id:asc&fields=id&filter={filter}"));
        let found: Vec<String> = got.rows("organisationUnits");
        let expected: Vec<String> =
            rows.iter().filter(|row| holds(row)).map(|row| format!("{{\"id\":{}}}", row["id"])).collect();
        assert_eq!(found, expected, "{filter}");
        let unordered = client.get(&format!("/api/organisationUnits?paging=false&fields=id&filter={filter}"));
        let unordered: HashSet<String> = unordered.rows("organisationUnits").into_iter().collect();
        assert_eq!(unordered, expected.into_iter().collect(), "{filter} without an order");
    }
}

#[test]
fn a_filter_nobody_understands_is_a_409_up_to_2_41_and_a_400_from_2_42_on() {
    for (version, status) in [("2.25", 409), ("2.41", 409), ("2.42", 400), ("2.43", 400)] {
        let stand_in = small(version).start().unwrap();
        for filter in ["bogus:eq:1", "id:almost:x", "id", "parent.bogus:eq:x", "name.x:eq:y", "id:in:a", "id:gt:"] {
            let got = get(&stand_in, &format!("/api/organisationUnits?filter={filter}"));
            assert_eq!(
                (got.status, got.json()["httpStatusCode"].as_u64()),
                (status, Some(u64::from(status))),
                "{version} {filter}"
            );
        }
        assert_eq!(
            get(&stand_in, "/api/organisationUnits?fields=id,bogus,parent[nothing]&filter=id:!null").status,
            200
        );
    }
    for (operator, first, last) in [("ieq:x", 41, 43), ("empty", 26, 43), ("^like:x", 25, 25)] {
        for minor in [25, 26, 30, 41, 43] {
            let stand_in = small(&format!("2.{minor}")).start().unwrap();
            let known = get(&stand_in, &format!("/api/organisationUnits?filter=name:{operator}")).status == 200;
            assert_eq!(known, (first..=last).contains(&minor), "{operator} in 2.{minor}");
        }
    }
}

#[test]
fn fields_name_presets_nested_members_exclusions_and_new_names() {
    let stand_in = small("2.40").start().unwrap();
    let id = &stand_in.ids("organisationUnits")[7];
    let one = |fields: &str| {
        get(&stand_in, &format!("/api/organisationUnits?filter=id:eq:{id}&fields={fields}")).json()["organisationUnits"]
            [0]
        .clone()
    };
    let names = |value: &serde_json::Value| -> HashSet<String> { value.as_object().unwrap().keys().cloned().collect() };
    let set = |names: &[&str]| -> HashSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    assert_eq!(
        names(&get(&stand_in, "/api/organisationUnits").json()["organisationUnits"][0]),
        set(&["id", "displayName"])
    );
    assert_eq!(names(&one("id,parent%5Bid,level%5D")["parent"]), set(&["id", "level"]));
    assert_eq!(names(&one("parent%5Bparent%5Bid,name%5D%5D")["parent"]["parent"]), set(&["id", "name"]));
    assert!(!names(&one(":owner,!path,!parent")).contains("path"));
    assert_eq!(names(&one("id~rename(uid)")), set(&["uid"]));
    assert_eq!(
        one("children::size,level")["children"],
        serde_json::json!(one("children")["children"].as_array().unwrap().len())
    );
    let (owner, all) = (names(&one(":owner")), names(&one("*")));
    assert!(owner.is_subset(&all));
    for derived in ["href", "displayName", "access", "children", "leaf"] {
        assert!(!owner.contains(derived) && all.contains(derived), "{derived}");
    }
    assert_eq!(names(&one(":identifiable")).iter().filter(|name| *name == "path").count(), 0);
    assert!(!owner.contains("sharing"), "organisation units are not shared, whatever `*` says");
    assert_eq!(names(&one("sharing")["sharing"]), set(&["external", "users", "userGroups"]));
    let shared = get(&stand_in, "/api/dataElements?fields=sharing%5Bpublic%5D&pageSize=1").json();
    assert_eq!(shared["dataElements"][0]["sharing"], serde_json::json!({"public": "rw------"}));
}

#[test]
fn one_object_is_its_row_and_a_stranger_is_a_404() {
    let stand_in = small("2.40").start().unwrap();
    let id = &stand_in.ids("dataElements")[3];
    let got = get(&stand_in, &format!("/api/dataElements/{id}?fields=:owner"));
    assert_eq!(got.text(), stand_in.truth("dataElements", ":owner")[3]);
    let got = get(&stand_in, "/api/dataElements/nobodyHere1");
    assert_eq!((got.status, got.json()["errorCode"].as_str()), (404, Some("E1005")));
    // Where DHIS2 has nothing to say its container speaks.
    for (version, status, kind, outside) in [
        ("2.39", 404, "application/json", 404),
        ("2.40", 404, "application/json", 404),
        ("2.42", 404, "text/html;charset=utf-8", 301),
    ] {
        let stand_in = small(version).start().unwrap();
        let got = get(&stand_in, "/api/nonsense");
        assert_eq!((got.status, got.header("Content-Type")), (status, Some(kind)), "{version}");
        assert_eq!(got.text().contains("servlet"), version == "2.40");
        let html = get(&stand_in, "/nonsense");
        assert_eq!(html.status, outside, "{version}");
        assert!(outside == 301 || html.header("Content-Type").unwrap().starts_with("text/html"));
    }
}

#[test]
fn version_numbers_in_paths_suffixes_and_slashes_are_taken_as_each_version_does() {
    for (version, accepted, refused) in [
        ("2.25", [23, 25], [22, 26]),
        ("2.37", [28, 38], [27, 39]),
        ("2.40", [28, 42], [26, 43]),
        ("2.43", [28, 43], [27, 44]),
    ] {
        let stand_in = small(version).start().unwrap();
        for number in accepted {
            assert_eq!(get(&stand_in, &format!("/api/{number}/dataSets.json")).status, 200, "{version} {number}");
        }
        for number in refused {
            assert_eq!(get(&stand_in, &format!("/api/{number}/dataSets")).status, 404, "{version} {number}");
        }
        assert_eq!(get(&stand_in, "/api/dataSets/").text(), get(&stand_in, "/api/dataSets").text());
        let packed = get(&stand_in, "/api/dataSets.json.gz");
        assert_eq!(
            (packed.header("Content-Type"), packed.header("Content-Encoding")),
            (Some("application/json+gzip"), None)
        );
        let plain = String::from_utf8(packed.unpacked().unwrap()).unwrap();
        assert_eq!(crate::fields::members(&plain), crate::fields::members(&get(&stand_in, "/api/dataSets").text()));
        assert_eq!(get(&stand_in, "/api/dataSets.xml").status, 406);
        let asked = get_with(
            &stand_in,
            "/api/dataSets",
            &[("Authorization", &basic("admin", "district")), ("Accept", "application/xml")],
        );
        assert_eq!(asked.status, 406);
    }
    let stand_in = small("2.40").context_path("/dhis").start().unwrap();
    assert!(stand_in.url().ends_with("/dhis"));
    assert_eq!(get(&stand_in, "/dhis/api/me").status, 200);
    assert_eq!(get(&stand_in, "/api/me").status, 404);
}

#[test]
fn system_info_says_what_its_version_says_to_whom() {
    for version in versions() {
        let minor = at(&version);
        let stand_in = small(&version)
            .user(User::superuser("admin", "district"))
            .user(User::limited("reader", "r", 50))
            .start()
            .unwrap();
        let super_info = get(&stand_in, "/api/system/info");
        let other = get_with(&stand_in, "/api/system/info", &[("Authorization", &basic("reader", "r"))]).json();
        let info = super_info.json();
        assert_eq!(info["version"], format!("{version}.1"));
        assert_eq!(info["serverDate"], "2024-05-01T10:11:12.345");
        assert_eq!(info.get("serverTimeZoneId").is_some(), minor >= 36, "{version}");
        assert!(info.get("systemId").is_some() && info["databaseInfo"].get("name").is_some());
        assert_eq!(other.get("systemId").is_some(), minor >= 27, "{version}");
        assert!(other["databaseInfo"].get("name").is_none() && other.get("javaVersion").is_none());
        let picked = get(&stand_in, "/api/system/info?fields=version").json();
        assert_eq!(picked.as_object().unwrap().len() == 1, minor >= 38, "{version}");
        assert_eq!(super_info.header("ETag").is_none(), minor >= 38);
        let me = get(&stand_in, "/api/me").json();
        assert_eq!(
            (me.get("username").is_some(), me.get("userCredentials").is_some()),
            (minor >= 38, minor <= 40),
            "{version}"
        );
        assert_eq!(me["authorities"], serde_json::json!(["ALL"]));
    }
}

#[test]
fn a_ping_says_pong_below_system_and_nothing_at_all_elsewhere() {
    let script = ("X-Requested-With", "XMLHttpRequest");
    let auth = basic("admin", "district");
    for version in versions() {
        let minor = at(&version);
        let stand_in = small(&version).start().unwrap();
        let anonymous = get_with(&stand_in, "/api/ping", &[script]);
        let known = get(&stand_in, "/api/ping");
        assert_eq!(known.status, if minor >= 37 { 200 } else { 404 }, "{version}");
        let refused = if minor >= 28 { 401 } else { 302 };
        assert_eq!(anonymous.status, if minor >= 42 { 200 } else { refused }, "{version}");
        for ping in [&anonymous, &known].into_iter().filter(|ping| ping.status == 200) {
            let nothing = (ping.header("Content-Type"), ping.header("Content-Length"), ping.header("ETag"));
            assert_eq!(nothing, (None, Some("0"), None), "{version}");
        }
        assert_eq!(get_with(&stand_in, "/api/system/ping", &[]).status, 302, "{version}");
        assert_eq!(get(&stand_in, "/api/system/ping").text(), "pong", "{version}");
        let as_json = get_with(
            &stand_in,
            "/api/system/ping",
            &[("Authorization", &auth), ("Accept", "application/json"), script],
        );
        assert!(as_json.header("Content-Type").unwrap().starts_with("application/json"), "{version}");
        assert_eq!(as_json.text(), if minor >= 38 { "pong" } else { "\"pong\"" }, "{version}");
    }
}

#[test]
fn a_token_nobody_has_is_a_401_and_a_400_where_its_checksum_is_looked_at_first() {
    for version in versions().filter(|version| at(version) >= 37) {
        let stand_in = small(&version).start().unwrap();
        let got = get_with(&stand_in, "/api/system/info", &[("Authorization", "ApiToken d2pat_nobodys")]);
        let checked = at(&version) >= 42;
        assert_eq!(got.status, if checked { 400 } else { 401 }, "{version}");
        assert_eq!(got.header("WWW-Authenticate"), Some("ApiToken"), "{version}");
        assert_eq!(got.header("Connection") == Some("close"), checked, "{version}");
        let text = if checked {
            r#"{"httpStatus":"Bad Request","httpStatusCode":400,"status":"ERROR","message":"Checksum validation failed"}"#
        } else {
            r#"{"httpStatus":"Unauthorized","httpStatusCode":401,"status":"ERROR","message":"The API token does not exists."}"#
        };
        assert_eq!(got.text(), text, "{version}");
    }
}

#[test]
fn a_wrong_clock_shows_in_the_body_and_in_the_head() {
    let right = StandIn::builder().start().unwrap();
    let wrong = StandIn::builder().clock_skew_ms(-7_200_000).time_zone("Asia/Kolkata", 330).start().unwrap();
    let read = |stand_in: &StandIn| {
        let got = get(stand_in, "/api/system/info");
        let local = crate::clock::parse_local(got.json()["serverDate"].as_str().unwrap()).unwrap();
        (local, got.header("Date").unwrap().to_owned())
    };
    let (right_local, right_date) = read(&right);
    let (wrong_local, wrong_date) = read(&wrong);
    let minutes = (wrong_local - right_local) as f64 / 60_000.0;
    assert!((209.9..211.0).contains(&minutes), "{minutes}: two hours late, five and a half east");
    assert_ne!(right_date, wrong_date);
    assert_eq!(get(&wrong, "/api/system/info").json()["serverTimeZoneId"], "Asia/Kolkata");
}

#[test]
fn ids_are_capped_and_rights_can_be_asked_for() {
    let stand_in = small("2.40")
        .user(User::superuser("admin", "district"))
        .user(User::limited("reader", "r", 50))
        .start()
        .unwrap();
    for (limit, count) in [("", 1), ("?limit=10", 10), ("?limit=20000", 10_000)] {
        let codes = get(&stand_in, &format!("/api/system/id{limit}")).json();
        assert_eq!(codes["codes"].as_array().unwrap().len(), count);
    }
    assert_eq!(get(&stand_in, "/api/me/authorization/F_X").text(), "true");
    assert_eq!(
        get_with(&stand_in, "/api/me/authorization/F_X", &[("Authorization", &basic("reader", "r"))]).text(),
        "false"
    );
    assert_eq!(get(&stand_in, "/api/system/objectCounts").json()["objectCounts"]["organisationUnit"], 130);
}

#[test]
fn schemas_lead_to_every_collection_and_to_what_is_no_list_of_objects_besides() {
    for version in versions() {
        let stand_in = small(&version).start().unwrap();
        let schemas =
            get(&stand_in, "/api/schemas?fields=plural,relativeApiEndpoint,persisted,identifiableObject").json();
        let schemas = schemas["schemas"].as_array().unwrap();
        let usable: HashSet<&str> = schemas
            .iter()
            .filter(|schema| schema["persisted"] == true && schema["identifiableObject"] == true)
            .filter_map(|schema| schema["relativeApiEndpoint"].as_str())
            .map(|endpoint| &endpoint[1..])
            .collect();
        // An array of namespaces, and a 400 while versioning is off: recorded from 2.40 on.
        let besides: &[&str] = if at(&version) >= 40 { &["dataStore", "metadata/version"] } else { &[] };
        let expected: HashSet<&str> = stand_in.collections().into_iter().chain(besides.iter().copied()).collect();
        assert_eq!(usable, expected, "{version}");
        assert!(schemas.len() >= usable.len() + 5);
        assert!(schemas.iter().all(|schema| schema.get("klass").is_none()));
    }
    let stand_in = small("2.40").start().unwrap();
    let one = get(&stand_in, "/api/schemas/dataElement").json();
    assert!(
        one["properties"]
            .as_array()
            .unwrap()
            .iter()
            .any(|property| property["name"] == "valueType" && property["owner"] == true)
    );
    assert_eq!(get(&stand_in, "/api/schemas/nothing").status, 404);
    let has = |version: &str, name| small(version).start().unwrap().collections().contains(&name);
    assert!(has("2.33", "reportTables") && !has("2.34", "reportTables"));
    assert!(!has("2.33", "visualizations") && has("2.34", "visualizations"));
}

#[test]
fn deleted_objects_exist_from_2_27_and_are_the_superusers_from_2_29() {
    for version in versions() {
        let minor = at(&version);
        let stand_in = small(&version)
            .user(User::superuser("admin", "district"))
            .user(User::limited("reader", "r", 50))
            .start()
            .unwrap();
        let victim = stand_in.ids("dataElements")[4].clone();
        assert!(stand_in.delete("dataElements", &victim));
        let got = get(&stand_in, "/api/deletedObjects?klass=DataElement&deletedAt=2024-01-01");
        let other = get_with(&stand_in, "/api/deletedObjects", &[("Authorization", &basic("reader", "r"))]);
        if minor <= 26 {
            assert_eq!((got.status, other.status), (404, 404), "{version}");
            continue;
        }
        assert_eq!(other.status, if minor <= 28 { 200 } else { 403 }, "{version}");
        let rows = got.rows("deletedObjects");
        assert_eq!(rows.len(), 1, "{version}");
        assert!(rows[0].starts_with(&format!(r#"{{"klass":"DataElement","uid":"{victim}""#)), "{}", rows[0]);
        assert!(rows[0].contains(r#""deletedAt":"2024-05-01T10:11:12.345""#));
        assert_eq!(got.pager("total"), 1);
        let all = get(&stand_in, "/api/deletedObjects?paging=false").rows("deletedObjects");
        assert_eq!(all, stand_in.truth_deleted());
        assert!(all.len() > 5);
        assert_eq!(get(&stand_in, "/api/deletedObjects?pageSize=2&page=2").rows("deletedObjects"), all[2..4]);
    }
}

#[test]
fn totals_are_a_minute_old_from_2_31_to_2_36_and_fresh_elsewhere() {
    for version in versions() {
        let stand_in = small(&version).start().unwrap();
        let mut client = Client::connect(&stand_in);
        let mut total = |query: &str| client.get(&format!("/api/organisationUnits?pageSize=1{query}")).pager("total");
        assert_eq!(total(""), 130);
        stand_in.insert("organisationUnits", 3);
        let stale = (31..=36).contains(&at(&version));
        assert_eq!(total(""), if stale { 130 } else { 133 }, "{version}");
        assert_eq!(total("&filter=id:!null"), 133, "{version}: other filters were not asked for before");
    }
}

#[test]
fn a_limited_user_sees_a_share_and_another_total() {
    let stand_in = small("2.40")
        .user(User::superuser("admin", "district"))
        .user(User::limited("reader", "r", 60))
        .start()
        .unwrap();
    let all = stand_in.truth("organisationUnits", "id");
    let seen = stand_in.truth_for("reader", "organisationUnits", "id");
    assert!((50..110).contains(&seen.len()));
    let got = get_with(
        &stand_in,
        "/api/organisationUnits?order=id:asc&fields=id&pageSize=1000",
        &[("Authorization", &basic("reader", "r"))],
    );
    assert_eq!(got.rows("organisationUnits"), seen);
    assert_eq!(got.pager("total"), seen.len() as u64);
    let hidden = all.iter().find(|row| !seen.contains(row)).unwrap();
    let hidden = &hidden[7..18];
    assert_eq!(
        get_with(&stand_in, &format!("/api/organisationUnits/{hidden}"), &[("Authorization", &basic("reader", "r"))])
            .status,
        403
    );
    let gone = get_with(
        &stand_in,
        &format!("/api/organisationUnits?order=id:asc&fields=id&filter=id:gt:{hidden}&pageSize=1000"),
        &[("Authorization", &basic("reader", "r"))],
    );
    assert!(seen.ends_with(&gone.rows("organisationUnits")));
}

#[test]
fn a_collection_may_refuse_everybody() {
    let stand_in = small("2.40").refuse_collection("users", 403).refuse_collection("routes", 404).start().unwrap();
    assert_eq!(get(&stand_in, "/api/users").json()["httpStatus"], "Forbidden");
    assert_eq!(get(&stand_in, "/api/routes").status, 404);
    assert_eq!(get(&stand_in, "/api/userRoles").status, 200);
    assert!(StandIn::builder().refuse_collection("nonsense", 403).start().is_err());
}

#[test]
fn the_truth_changes_while_it_is_read_and_survivors_are_known() {
    let stand_in = small("2.40")
        .after_lists("organisationUnits", 1, Change::insert("organisationUnits", 7))
        .after_lists("organisationUnits", 2, Change::delete_some("organisationUnits", 5))
        .after_lists("organisationUnits", 3, Change::update_some("organisationUnits", 4))
        .every_lists("dataElements", 2, Change::insert("dataElements", 1))
        .start()
        .unwrap();
    stand_in.mark();
    let before: HashSet<String> = stand_in.ids("organisationUnits").into_iter().collect();
    let (rows, _) = keyset(&stand_in, "organisationUnits", "id", 20);
    let after: HashSet<String> = stand_in.ids("organisationUnits").into_iter().collect();
    let survivors = stand_in.truth_survivors("organisationUnits");
    assert_eq!((stand_in.appeared("organisationUnits").len(), stand_in.vanished("organisationUnits").len()), (7, 5));
    assert_eq!(after.len(), 132);
    assert_eq!(survivors.iter().cloned().collect::<HashSet<_>>(), before.intersection(&after).cloned().collect());
    for id in &survivors {
        assert_eq!(rows.iter().filter(|row| row.contains(id.as_str())).count(), 1);
    }
    let updated = get(
        &stand_in,
        "/api/organisationUnits?filter=lastUpdated:ge:2024-05-01T10:11:12.345&fields=id,name&paging=false",
    );
    assert_eq!(updated.text().matches("(rev 1)").count(), 4);
    for list in 1..=4 {
        get(&stand_in, "/api/dataElements");
        assert_eq!(stand_in.appeared("dataElements").len(), list / 2);
    }
    assert!(stand_in.set_server_date("2024-06-01"));
    let id = &survivors[0];
    assert!(stand_in.update("organisationUnits", id) && !stand_in.update("organisationUnits", "nobodyHere1"));
    assert_eq!(
        get(&stand_in, &format!("/api/organisationUnits/{id}")).json()["lastUpdated"],
        "2024-06-01T00:00:00.000"
    );
    assert!(stand_in.delete("organisationUnits", id) && !stand_in.delete("organisationUnits", id));
    assert_eq!(get(&stand_in, &format!("/api/organisationUnits/{id}")).status, 404);
}

#[test]
fn default_objects_may_be_left_out_after_paging() {
    let stand_in = small("2.40").start().unwrap();
    let with = get(&stand_in, "/api/categoryCombos?order=id:asc&fields=id,name");
    let without = get(&stand_in, "/api/categoryCombos?order=id:asc&fields=id,name&defaults=EXCLUDE");
    assert!(with.text().contains(r#""name":"default","id":"bjDvmb4bfuf""#));
    assert!(!without.text().contains("bjDvmb4bfuf"));
    assert_eq!(without.rows("categoryCombos").len() + 1, with.rows("categoryCombos").len());
    assert_eq!(without.pager("total"), with.pager("total"));
    for (collection, id) in
        [("categoryOptionCombos", "HllvX50cXC0"), ("categoryOptions", "xYerKDKCefk"), ("categories", "GLevLNI9wkl")]
    {
        assert_eq!(get(&stand_in, &format!("/api/{collection}/{id}")).status, 200);
    }
}

#[test]
fn an_etag_spares_the_body_and_a_proxy_weakens_it() {
    let stand_in = small("2.40").start().unwrap();
    let target = "/api/organisationUnits?order=id:asc";
    let auth = basic("admin", "district");
    let first = get(&stand_in, target);
    let tag = first.header("ETag").unwrap().to_owned();
    assert!(tag.starts_with("\"0") && tag.len() == 35, "{tag}");
    assert_eq!(first.header("Content-Length").unwrap(), first.bytes().len().to_string());
    assert_eq!(first.header("Cache-Control"), Some("no-cache, private"));
    let again = get_with(&stand_in, target, &[("Authorization", &auth), ("If-None-Match", &tag)]);
    assert_eq!((again.status, again.end), (304, End::Whole));
    stand_in.insert("organisationUnits", 1);
    assert_eq!(get_with(&stand_in, target, &[("Authorization", &auth), ("If-None-Match", &tag)]).status, 200);
    let packing = small("2.40").gzip().start().unwrap();
    let packed = get_with(&packing, target, &[("Authorization", &auth), ("Accept-Encoding", "gzip")]);
    assert_eq!(
        (packed.header("Content-Encoding"), packed.header("Transfer-Encoding")),
        (Some("gzip"), Some("chunked"))
    );
    assert_eq!(packed.header("ETag").unwrap(), format!("W/{}", get(&packing, target).header("ETag").unwrap()));
    assert_eq!(packed.unpacked().unwrap(), get(&packing, target).bytes());
    assert_eq!(get(&packing, target).header("Content-Encoding"), None, "not asked for");
}

#[test]
fn sessions_are_opened_as_each_version_opens_them() {
    let builder = |version: &str| small(version).user(User::superuser("admin", "district").with_token("d2pat_x"));
    for version in versions().filter(|version| at(version) >= 37) {
        let stand_in = builder(&version).start().unwrap();
        let by_password = get(&stand_in, "/api/me");
        let by_token = get_with(&stand_in, "/api/me", &[("Authorization", "ApiToken d2pat_x")]);
        assert!(by_password.cookie().is_some_and(|cookie| cookie.starts_with("JSESSIONID=")), "{version}");
        assert_eq!(by_token.cookie().is_some(), at(&version) <= 41, "{version}");
        let expiry = by_password.headers.iter().filter(|(_, value)| value.starts_with("SESSION_EXPIRE=")).count();
        assert_eq!(expiry == 1, at(&version) == 43, "{version}");
    }
    let stand_in = builder("2.36").start().unwrap();
    for _ in 0..5 {
        get(&stand_in, "/api/me");
    }
    assert_eq!(stand_in.session_count(), 5, "a client without a jar leaves sessions behind");
    let cookie = get(&stand_in, "/api/me").cookie().unwrap();
    let auth = basic("admin", "district");
    let reused = get_with(&stand_in, "/api/me", &[("Authorization", &auth), ("Cookie", &cookie)]);
    assert_eq!((reused.status, reused.cookie()), (200, None));
    assert_eq!(get_with(&stand_in, "/api/me", &[("Cookie", &cookie)]).status, 200);
    stand_in.oust_sessions("admin");
    let ousted = get_with(&stand_in, "/api/me", &[("Authorization", &auth), ("Cookie", &cookie)]);
    assert_eq!(ousted.status, 302);
    assert!(ousted.header("Location").unwrap().ends_with("logout.action"));
    stand_in.lose_sessions();
    let lost = get_with(&stand_in, "/api/me", &[("Cookie", &cookie), ("X-Requested-With", "XMLHttpRequest")]);
    assert_eq!(lost.status, 401);
    let seen = stand_in.ledger().requests();
    assert!(seen.iter().filter(|seen| seen.has_cookie).count() >= 4);
    assert_eq!(seen.last().unwrap().user, None);
}

#[test]
fn logins_by_form_and_by_json_open_a_session() {
    let old = small("2.40").start().unwrap();
    let form = Client::connect(&old).send(
        "POST",
        "/dhis-web-commons-security/login.action",
        &[],
        "j_username=admin&j_password=district",
    );
    assert_eq!(form.status, 302);
    assert_eq!(get_with(&old, "/api/me", &[("Cookie", &form.cookie().unwrap())]).status, 200);
    let page = get_with(&old, "/dhis-web-commons/security/login.action", &[]);
    assert_eq!((page.status, page.header("Content-Type").unwrap().starts_with("text/html")), (200, true));
    let new = small("2.41").start().unwrap();
    let mut client = Client::connect(&new);
    let json = client.send("POST", "/api/auth/login", &[], r#"{"username":"admin","password":"district"}"#);
    assert_eq!(json.json()["loginStatus"], "SUCCESS");
    assert_eq!(get_with(&new, "/api/me", &[("Cookie", &json.cookie().unwrap())]).status, 200);
    assert_eq!(client.send("POST", "/api/auth/login", &[], r#"{"username":"admin","password":"x"}"#).status, 401);
}

#[test]
fn the_gist_is_always_paged_and_counts_only_when_asked() {
    let stand_in = small("2.40").start().unwrap();
    let got = get(&stand_in, "/api/organisationUnits/gist?fields=id&pageSize=60&page=3&total=true");
    assert_eq!((got.pager("total"), got.rows("organisationUnits").len()), (130, 10));
    assert!(!get(&stand_in, "/api/organisationUnits/gist").text().contains("total"));
    let bare = get(&stand_in, "/api/organisationUnits/gist?headless=true&pageSize=2").json();
    assert_eq!(bare.as_array().unwrap().len(), 2);
    assert_eq!(get(&small("2.36").start().unwrap(), "/api/organisationUnits/gist").status, 404);
}

#[test]
fn the_ledger_knows_who_asked_what_and_how_many_at_once() {
    let stand_in = small("2.40").latency(Latency::Constant(Duration::from_secs(1))).start().unwrap();
    let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(&stand_in)).collect();
    let auth = basic("admin", "district");
    for client in &mut clients {
        client.write("GET", "/api/me", &[("Authorization", &auth), ("User-Agent", "t/1"), ("X-Request-ID", "r-1")], "");
    }
    let ledger = stand_in.ledger();
    assert!(ledger.wait_until(Duration::from_secs(20), |seen| seen.len() == 5));
    for client in &mut clients {
        assert_eq!(client.read("GET").status, 200);
    }
    assert!(ledger.wait_until(Duration::from_secs(20), |seen| seen.iter().all(|seen| seen.ended.is_some())));
    assert_eq!((ledger.max_in_flight(), ledger.in_flight(), ledger.connections()), (5, 0, 5));
    assert_eq!(ledger.max_in_window(Duration::from_secs(60)), 5);
    assert_eq!(ledger.asked_twice(), [("/api/me".to_owned(), 5)]);
    assert_eq!(ledger.with_credentials(), 5);
    let seen = &ledger.requests()[4];
    assert_eq!(
        (seen.status, seen.user.as_deref(), seen.user_agent.as_deref(), seen.request_id.as_deref()),
        (Some(200), Some("admin"), Some("t/1"), Some("r-1"))
    );
    assert!(seen.body_bytes > 100);
    assert_eq!(clients[0].get("/api/me").status, 200, "connections are kept");
    assert_eq!(ledger.connections(), 5);
    assert!(!format!("{:?}", ledger.requests()).contains(&auth));
}

#[test]
fn the_ledger_is_written_to_a_file_as_it_happens() {
    let path = std::env::temp_dir().join(format!("stand-in-ledger-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let stand_in = small("2.40").ledger_file(&path).start().unwrap();
    get(&stand_in, "/api/me");
    assert!(stand_in.ledger().wait_until(Duration::from_secs(20), |seen| seen.iter().all(|seen| seen.ended.is_some())));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0]["event"].as_str(), lines[1]["event"].as_str()), (Some("arrived"), Some("ended")));
    assert_eq!((lines[1]["status"].as_u64(), lines[1]["has_credentials"].as_bool()), (Some(200), Some(true)));
    assert!(!text.contains("Basic"));
    std::fs::remove_file(&path).unwrap();
}
