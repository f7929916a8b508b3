//! Every quirk shows as its name says, in the ledger too, and the truth stays what it was.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::Value;

use super::client::{Client, get, keyset};
use crate::{Builder, Change, Collation, Kept, Quirk, StandIn};

const UNITS: &str = "organisationUnits";

fn odd(quirk: Quirk) -> StandIn {
    small().quirk(quirk).start().unwrap()
}

fn small() -> Builder {
    StandIn::builder().org_units(200).server_date("2024-05-01")
}

/// The ids of a list of organisation units, and its total.
fn ids(stand_in: &StandIn, query: &str) -> (Vec<String>, u64) {
    let got = get(stand_in, &format!("/api/{UNITS}?fields=id&{query}"));
    let ids = got.rows(UNITS).iter().map(|row| id_of(row)).collect();
    (ids, got.pager("total"))
}

fn id_of(row: &str) -> String {
    serde_json::from_str::<Value>(row).unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn sets_come_in_another_order_each_time_and_lists_do_not() {
    let stand_in = odd(Quirk::ShuffledSets { seed: 7 });
    let differ = |collection: &str, member: &str| {
        let page = || {
            let got = get(&stand_in, &format!("/api/{collection}?fields=id,{member}&paging=false&order=id:asc"));
            got.json()[collection].as_array().unwrap().clone()
        };
        let (first, second) = (page(), page());
        for (one, other) in first.iter().zip(&second) {
            let items = |row: &Value| {
                let mut items: Vec<String> = row[member].as_array().unwrap().iter().map(Value::to_string).collect();
                items.sort();
                (row["id"].clone(), items)
            };
            assert_eq!(items(one), items(other), "{collection}.{member}");
        }
        first != second
    };
    let table = [
        ("organisationUnitGroups", "organisationUnits", true),
        ("organisationUnitGroups", "organisationUnits[id,name]", true),
        ("organisationUnits", "children", true),
        ("dataSets", "organisationUnits", true),
        ("categories", "categoryOptions", false),
        ("categoryCombos", "categories", false),
        ("sections", "dataElements", false),
    ];
    for (collection, member, shuffles) in table {
        let name = member.split('[').next().unwrap();
        assert_eq!(stand_in.sets(collection).contains(&name), shuffles, "{collection}.{member}");
        if !member.contains('[') {
            assert_eq!(differ(collection, member), shuffles, "{collection}.{member}");
        }
    }
    let truth = stand_in.truth("dataSets", ":owner");
    assert_eq!(truth, stand_in.truth("dataSets", ":owner"));
    let plain = small().start().unwrap();
    assert_eq!(get(&plain, "/api/dataSets?fields=:owner&paging=false&order=id:asc").rows("dataSets"), truth);
    assert!(stand_in.ledger().quirks("shuffled sets") > 10);
    assert_eq!(plain.ledger().quirks("shuffled sets"), 0);
}

#[test]
fn the_schemas_say_which_lists_are_sets() {
    for (version, attributes_are_listed) in [("2.40", true), ("2.42", false), ("2.43", false)] {
        let stand_in = small().version(version).start().unwrap();
        let schemas = get(&stand_in, "/api/schemas?fields=plural,properties").json();
        let lists = |collection: &str, ordered: bool| {
            let schema = schemas["schemas"].as_array().unwrap().iter().find(|schema| schema["plural"] == collection);
            let properties = schema.unwrap()["properties"].as_array().unwrap();
            let lists = properties.iter().filter(|it| it["collection"] == true && it["ordered"] == ordered);
            lists.map(|it| it["collectionName"].as_str().unwrap().to_owned()).collect::<HashSet<_>>()
        };
        for collection in stand_in.collections() {
            let (sets, kept) = (lists(collection, false), lists(collection, true));
            assert!(sets.is_disjoint(&kept), "{version} {collection}");
            for name in stand_in.sets(collection) {
                assert!(sets.contains(name), "{version} {collection}.{name}");
            }
            assert!(!sets.contains("attributeValues") || attributes_are_listed, "{version} {collection}");
        }
        assert_eq!(lists(UNITS, false).contains("attributeValues"), attributes_are_listed, "{version}");
        assert!(lists("categories", true).contains("categoryOptions"));
        assert!(lists("userRoles", false).contains("authorities"));
        let units = schemas["schemas"].as_array().unwrap().iter().find(|schema| schema["plural"] == UNITS).unwrap();
        let names = |name: &str| units["properties"].as_array().unwrap().iter().any(|it| it["name"] == name);
        assert!(names("child") && names("translation") && !names("children"), "an item's name, as in the field");
    }
}

#[test]
fn a_replica_that_lags_lacks_the_rows_made_last_and_counts_without_them() {
    let stand_in = odd(Quirk::LaggingReplica { seed: 3, share: 0.5, rows: 30 });
    let all: HashSet<String> = stand_in.ids(UNITS).into_iter().collect();
    assert_eq!(all.len(), 200);
    let mut seen = [0, 0];
    let mut lacking: Option<Vec<String>> = None;
    for _ in 0..40 {
        let (found, total) = ids(&stand_in, "paging=true&pageSize=1000");
        assert_eq!(found.len() as u64, total);
        let lags = stand_in.ledger().requests().last().unwrap().quirks.contains(&"lagging replica");
        assert_eq!(total, if lags { 170 } else { 200 });
        seen[usize::from(lags)] += 1;
        if lags {
            let found: HashSet<String> = found.into_iter().collect();
            let mut missing: Vec<String> = all.difference(&found).cloned().collect();
            missing.sort();
            assert_eq!(*lacking.get_or_insert_with(|| missing.clone()), missing, "always the same rows");
        }
    }
    assert!(seen[0] > 10 && seen[1] > 10, "{seen:?}");
    // Asked for by name, they are not there either.
    let one = lacking.unwrap()[0].clone();
    let named: HashSet<u64> = (0..40).map(|_| ids(&stand_in, &format!("filter=id:in:[{one}]")).1).collect();
    let single: HashSet<u16> = (0..40).map(|_| get(&stand_in, &format!("/api/{UNITS}/{one}")).status).collect();
    assert_eq!((named, single), (HashSet::from([0, 1]), HashSet::from([200, 404])));
    // What is inserted pushes the border on.
    stand_in.insert(UNITS, 30);
    let totals: HashSet<u64> = (0..40).map(|_| ids(&stand_in, "pageSize=1").1).collect();
    assert_eq!(totals, HashSet::from([200, 230]));
}

#[test]
fn an_order_is_ignored_or_turned_round() {
    let plain = small().start().unwrap();
    let ignoring = odd(Quirk::OrderIgnored);
    assert_eq!(ids(&ignoring, "order=id:asc&pageSize=1000").0, ids(&plain, "pageSize=1000").0);
    assert_eq!(ignoring.ledger().quirks("order ignored"), 1);
    let turning = odd(Quirk::OrderDescending);
    let mut down = plain.ids(UNITS);
    down.reverse();
    assert_eq!(ids(&turning, "order=id:asc&pageSize=1000").0, down);
    assert_eq!(ids(&turning, "pageSize=1000").0, ids(&plain, "pageSize=1000").0, "nobody ordered anything");
    assert_eq!(turning.ledger().quirks("order descending"), 1);
    for odd in [&ignoring, &turning] {
        assert_eq!(odd.ids(UNITS), plain.ids(UNITS));
    }
}

#[test]
fn a_filter_may_compare_otherwise_than_the_order_does() {
    let stand_in = odd(Quirk::FiltersCollate(Collation::CaseInsensitive));
    let in_order = stand_in.ids(UNITS);
    let middle = &in_order[100];
    let (found, total) = ids(&stand_in, &format!("order=id:asc&pageSize=1000&filter=id:gt:{middle}"));
    let expected: Vec<String> = in_order
        .iter()
        .filter(|id| Collation::CaseInsensitive.compare(id, middle) == std::cmp::Ordering::Greater)
        .cloned()
        .collect();
    assert_eq!((found, total), (expected.clone(), expected.len() as u64));
    assert_ne!(expected, in_order[101..]);
    let (rows, _) = keyset(&stand_in, UNITS, "id", 20);
    let walked: HashSet<String> = rows.iter().map(|row| id_of(row)).collect();
    assert!(walked.len() < 200, "a walk by keyset loses rows");
    assert!(stand_in.ledger().quirks("filters collate otherwise") > 1);
}

#[test]
fn id_gt_is_ignored_or_inclusive_and_a_proxy_keeps_one_filter() {
    let plain = small().start().unwrap();
    let all = plain.ids(UNITS);
    let middle = &all[100];
    let behind = format!("order=id:asc&pageSize=1000&filter=id:gt:{middle}");
    let ignoring = odd(Quirk::IdGtIgnored);
    assert_eq!(ids(&ignoring, &behind), (all.clone(), 200));
    let inclusive = odd(Quirk::IdGtInclusive);
    assert_eq!(ids(&inclusive, &behind), (all[100..].to_vec(), 100));
    assert_eq!(ids(&plain, &behind), (all[101..].to_vec(), 99));
    assert_eq!((ignoring.ledger().quirks("id:gt ignored"), inclusive.ledger().quirks("id:gt inclusive")), (1, 1));
    // Other filters are kept.
    let level = format!("{behind}&filter=level:eq:2");
    let (leveled, _) = ids(&plain, "order=id:asc&pageSize=1000&filter=level:eq:2");
    assert_eq!(ids(&ignoring, &level).0, leveled);
    let first = odd(Quirk::OneFilterOnly(Kept::First));
    let last = odd(Quirk::OneFilterOnly(Kept::Last));
    assert_eq!(ids(&first, &level).0, all[101..]);
    assert_eq!(ids(&last, &level).0, leveled);
    assert_eq!(ids(&last, &behind).0, all[101..], "one is not too many");
    assert_eq!((first.ledger().quirks("filter dropped"), last.ledger().quirks("filter dropped")), (1, 1));
    let sent = &first.ledger().requests()[0].target;
    assert!(sent.contains("id:gt") && sent.contains("level:eq"), "the ledger holds what was sent: {sent}");
}

#[test]
fn another_database_takes_over_at_a_request_and_nothing_breaks_off() {
    let stand_in = small().at_request(4, Change::Database { seed: 2 }).start().unwrap();
    let (before, id) = (stand_in.ids(UNITS), |stand_in: &StandIn| {
        get(stand_in, "/api/system/info").json()["systemId"].as_str().unwrap().to_owned()
    });
    let old = id(&stand_in);
    let mut client = Client::connect(&stand_in);
    let cookie = client.get("/api/me").cookie().unwrap();
    let first = client.get(&format!("/api/{UNITS}?fields=id&order=id:asc&pageSize=1000"));
    let second = client.get(&format!("/api/{UNITS}?fields=id&order=id:asc&pageSize=1000"));
    let rows = |got: &super::client::Got| got.rows(UNITS).iter().map(|row| id_of(row)).collect::<Vec<_>>();
    assert_eq!(rows(&first), before);
    assert_eq!(rows(&second), stand_in.ids(UNITS));
    let (mine, theirs): (HashSet<_>, HashSet<_>) = (before.into_iter().collect(), rows(&second).into_iter().collect());
    assert!(mine.is_disjoint(&theirs) && theirs.len() == 200);
    assert_ne!(id(&stand_in), old);
    let alone = super::client::get_with(&stand_in, "/api/me", &[("Cookie", &cookie)]);
    assert_eq!(alone.status, 302, "its sessions are its own");
}

#[test]
fn rows_come_and_go_all_the_time_and_the_survivors_are_known() {
    let stand_in = StandIn::builder()
        .org_units(400)
        .size("dataElements", 500)
        .steadily(200, Change::insert("dataElements", 1))
        .steadily(200, Change::delete_some("dataElements", 1))
        .start()
        .unwrap();
    stand_in.mark();
    let all: HashSet<String> = stand_in.ids("dataElements").into_iter().collect();
    let mut client = Client::connect(&stand_in);
    let mut asked = 0;
    while stand_in.vanished("dataElements").len() < 40 {
        assert_eq!(client.get("/api/dataElements?fields=id&pageSize=1").status, 200);
        asked += 1;
        std::thread::park_timeout(Duration::from_millis(10));
        assert!(asked < 10_000, "nothing happens");
    }
    let (appeared, vanished) = (stand_in.appeared("dataElements"), stand_in.vanished("dataElements"));
    assert_eq!(appeared.len(), vanished.len());
    assert_eq!(stand_in.count("dataElements"), 500);
    let survivors: HashSet<String> = stand_in.truth_survivors("dataElements").into_iter().collect();
    let vanished: HashSet<String> = vanished.into_iter().collect();
    assert_eq!(survivors, all.difference(&vanished).cloned().collect());
    assert!(survivors.len() < 500);
    assert_eq!(stand_in.count(UNITS), 400);
}

#[test]
fn a_clock_that_is_ahead_shows_in_what_is_saved() {
    let ahead = StandIn::builder().org_units(30).clock_skew_ms(3_600_000).start().unwrap();
    let right = StandIn::builder().org_units(30).start().unwrap();
    let saved = |stand_in: &StandIn| {
        let id = stand_in.insert(UNITS, 1).remove(0);
        let date = get(stand_in, &format!("/api/{UNITS}/{id}")).json()["lastUpdated"].as_str().unwrap().to_owned();
        let info = get(stand_in, "/api/system/info").json()["serverDate"].as_str().unwrap().to_owned();
        [date, info].map(|text| crate::clock::parse_local(&text).unwrap())
    };
    let (ahead, right) = (saved(&ahead), saved(&right));
    for (ahead, right) in ahead.iter().zip(right) {
        let minutes = (ahead - right) as f64 / 60_000.0;
        assert!((59.0..61.0).contains(&minutes), "{minutes}");
    }
}
