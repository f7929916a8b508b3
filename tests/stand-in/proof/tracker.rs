//! What the tracker answers by version, what its pages lose, and where its own SQL is wrong.

use std::collections::HashSet;

use super::client::{Client, get};
use crate::{Builder, Quirk, StandIn};

fn small(version: &str) -> Builder {
    StandIn::builder().version(version).org_units(130).tracked_entities(1000)
}

fn program(stand_in: &StandIn, row: usize) -> String {
    stand_in.id_of_row("programs", row).unwrap()
}

/// Parameters that mean the whole tree, by version and kind.
fn everywhere(stand_in: &StandIn, version: &str, things: &str) -> String {
    let root = stand_in.id_of_row("organisationUnits", 0).unwrap();
    match (version, things) {
        ("2.36" | "2.40" | "2.41", _) => format!("orgUnit={root}&ouMode=DESCENDANTS"),
        (_, "events") => format!("orgUnit={root}&orgUnitMode=DESCENDANTS"),
        _ => format!("orgUnits={root}&orgUnitMode=DESCENDANTS"),
    }
}

/// Ids of all pages, in the order they came.
fn walk(stand_in: &StandIn, version: &str, things: &str, program_row: usize, order: &str) -> Vec<String> {
    let mut client = Client::connect(stand_in);
    let rows = if matches!(version, "2.36" | "2.40") { "instances" } else { things };
    let id = things.trim_end_matches('s').replace("trackedEntitie", "trackedEntity");
    let scope = everywhere(stand_in, version, things);
    let program = program(stand_in, program_row);
    let mut ids = Vec::new();
    for page in 1..=1000 {
        let target =
            format!("/api/tracker/{things}?program={program}&{scope}&fields={id}&pageSize=50&page={page}{order}");
        let got = client.get(&target).json();
        let page = got[rows].as_array().unwrap_or_else(|| panic!("{version} {things}: {got}"));
        ids.extend(page.iter().map(|row| row[&id].as_str().unwrap().to_owned()));
        if page.len() < 50 {
            break;
        }
    }
    ids
}

/// How many of the truth never came, and how many came twice.
fn missing_and_doubled(stand_in: &StandIn, things: &str, program_row: usize, ids: &[String]) -> (usize, usize) {
    let seen: HashSet<&String> = ids.iter().collect();
    let truth = stand_in.truth_tracked(things, &program(stand_in, program_row));
    let missing = truth.iter().filter(|id| !seen.contains(id)).count();
    (missing, ids.len() - seen.len())
}

#[test]
fn plain_pages_lose_rows_at_2_40_and_none_later() {
    for (version, loses) in [("2.40", true), ("2.41", true), ("2.42", false), ("2.43", false)] {
        let stand_in = small(version).start().unwrap();
        let ids = walk(&stand_in, version, "events", 0, "");
        let (missing, doubled) = missing_and_doubled(&stand_in, "events", 0, &ids);
        assert_eq!(missing, doubled, "{version}: the count is right, whatever is in it");
        assert!(if loses { (1..=9).contains(&missing) } else { missing == 0 }, "{version}: {missing} missing");
        let ids = walk(&stand_in, version, "enrollments", 1, "&order=enrolledAt:asc");
        let (missing, doubled) = missing_and_doubled(&stand_in, "enrollments", 1, &ids);
        assert_eq!(missing, doubled, "{version}");
        assert!(if loses { (2..=30).contains(&missing) } else { missing == 0 }, "{version}: {missing} missing");
    }
}

#[test]
fn ordered_by_uid_every_walk_is_exact_and_in_the_order_of_bytes() {
    for version in ["2.36", "2.40", "2.42", "2.43"] {
        let stand_in = small(version).start().unwrap();
        for (things, row, order, first, last) in [
            ("events", 0, "event", 36, 43),
            ("events", 1, "event", 36, 43),
            ("enrollments", 1, "enrollment", 36, 41),
            ("trackedEntities", 1, "trackedEntity", 36, 42),
        ] {
            let minor: u8 = version[2..].parse().unwrap();
            if (first..=last).contains(&minor) {
                let ids = walk(&stand_in, version, things, row, &format!("&order={order}:asc"));
                assert_eq!(ids, stand_in.truth_tracked(things, &program(&stand_in, row)), "{version} {things}");
            }
        }
    }
}

/// Where a head's own SQL is wrong, it says so with a 409; where an order is unknown, a 400.
#[test]
fn the_sql_errors_of_each_head_are_there_and_nowhere_else() {
    let table = [
        ("enrollments", "totalPages=true", [409, 200, 200], "unique result"),
        ("enrollments", "order=createdAt:asc", [200, 409, 200], "ambiguous"),
        ("enrollments", "order=updatedAt:asc", [200, 409, 200], "ambiguous"),
        ("enrollments", "order=enrollment:asc", [200, 400, 400], "order parameter is invalid"),
        ("trackedEntities", "order=trackedEntity:asc", [200, 200, 409], "E7145"),
        ("trackedEntities", "totalPages=true", [200, 200, 200], ""),
        ("trackedEntities", "includeDeleted=true", [200, 200, 200], ""),
        ("events", "totalPages=true&includeDeleted=true&order=event:asc", [200, 200, 200], ""),
    ];
    for (at, version) in ["2.40", "2.42", "2.43"].into_iter().enumerate() {
        let stand_in = small(version).start().unwrap();
        for (things, parameters, statuses, says) in table {
            let scope = everywhere(&stand_in, version, things);
            let program = program(&stand_in, usize::from(things != "events"));
            let got = get(&stand_in, &format!("/api/tracker/{things}?program={program}&{scope}&{parameters}"));
            assert_eq!(got.status, statuses[at], "{version} {things} {parameters}");
            assert!(got.status == 200 || got.text().contains(says), "{}", got.text());
        }
        let kind = stand_in.id_of_row("trackedEntityTypes", 0).unwrap();
        let scope = everywhere(&stand_in, version, "trackedEntities");
        let target = format!("/api/tracker/trackedEntities?trackedEntityType={kind}&{scope}&includeDeleted=true");
        assert_eq!(get(&stand_in, &target).status, if version == "2.43" { 200 } else { 409 }, "{version}");
    }
}

#[test]
fn a_total_counts_what_is_there_and_deleted_rows_only_on_request() {
    let stand_in = small("2.42").start().unwrap();
    for (things, row) in [("events", 0), ("events", 1), ("enrollments", 1), ("trackedEntities", 1)] {
        let program = program(&stand_in, row);
        let scope = everywhere(&stand_in, "2.42", things);
        let base = format!("/api/tracker/{things}?program={program}&{scope}&totalPages=true&pageSize=7");
        let living = get(&stand_in, &base);
        let truth = u64::try_from(stand_in.truth_tracked(things, &program).len()).unwrap();
        assert_eq!(living.pager("total"), truth, "{things}");
        assert!(get(&stand_in, &format!("{base}&includeDeleted=true")).pager("total") > truth, "{things}");
        assert!(living.json()["pager"]["nextPage"].as_str().unwrap().ends_with("pageSize=7&page=2"));
    }
}

#[test]
fn slices_by_unit_and_by_month_add_up() {
    for version in ["2.40", "2.43"] {
        let stand_in = small(version).start().unwrap();
        let (rows, unit_name, mode) = match version {
            "2.40" => ("instances", "orgUnit", "ouMode"),
            _ => ("events", "orgUnit", "orgUnitMode"),
        };
        let program = program(&stand_in, 1);
        let mut ids = Vec::new();
        for child in 1..=stand_in.branching() {
            let unit = stand_in.id_of_row("organisationUnits", child).unwrap();
            for year in [2023, 2024] {
                for month in 1..=12 {
                    let last = [31, 28 + u8::from(year == 2024), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1];
                    let target = format!(
                        "/api/tracker/events?program={program}&{unit_name}={unit}&{mode}=DESCENDANTS&fields=event&pageSize=1000\
                         &occurredAfter={year}-{month:02}-01&occurredBefore={year}-{month:02}-{last}"
                    );
                    let got = get(&stand_in, &target).json();
                    let page = got[rows].as_array().unwrap();
                    assert!(page.len() < 1000);
                    ids.extend(page.iter().map(|row| row["event"].as_str().unwrap().to_owned()));
                }
            }
        }
        ids.sort_unstable();
        assert_eq!(ids, stand_in.truth_tracked("events", &program), "{version}");
    }
}

#[test]
fn data_values_of_an_event_are_a_set_and_come_in_any_order_where_sets_do() {
    let first = |stand_in: &StandIn| {
        let scope = everywhere(stand_in, "2.42", "events");
        let target =
            format!("/api/tracker/events?program={}&{scope}&order=event:asc&pageSize=20", program(stand_in, 0));
        get(stand_in, &target).rows("events")
    };
    let plain = small("2.42").start().unwrap();
    assert_eq!(first(&plain), first(&plain));
    let odd = small("2.42").quirk(Quirk::ShuffledSets { seed: 4 }).start().unwrap();
    let (one, other) = (first(&odd), first(&odd));
    assert_ne!(one, other);
    let sorted = |rows: Vec<String>| {
        let bytes = |row: String| {
            let mut bytes = row.into_bytes();
            bytes.sort_unstable();
            bytes
        };
        rows.into_iter().map(bytes).collect::<Vec<_>>()
    };
    assert_eq!(sorted(one), sorted(other), "the same members, in another order");
}

#[test]
fn the_old_lists_are_there_until_2_41_with_the_pager_of_their_version() {
    for (version, pager) in [
        ("2.25", r#"{"pager":{"page":1,"pageCount":0,"total":0,"pageSize":7},"events""#),
        ("2.36", r#"{"pager":{"page":3,"pageSize":7,"isLastPage":false},"events""#),
        ("2.41", r#"{"pager":{"page":3,"pageSize":7,"isLastPage":false},"events""#),
    ] {
        let stand_in = small(version).start().unwrap();
        let root = stand_in.id_of_row("organisationUnits", 0).unwrap();
        let (single, registering) = (program(&stand_in, 0), program(&stand_in, 1));
        let everywhere = "ouMode=DESCENDANTS";
        let got =
            get(&stand_in, &format!("/api/events?program={single}&orgUnit={root}&{everywhere}&pageSize=7&page=3"));
        assert!(got.text().starts_with(pager), "{version}: {}", &got.text()[..120]);
        for (things, id, program, unit, truth) in [
            ("events", "event", &single, "orgUnit", "events"),
            ("enrollments", "enrollment", &registering, "ou", "enrollments"),
            ("trackedEntityInstances", "trackedEntityInstance", &registering, "ou", "trackedEntities"),
        ] {
            let target =
                format!("/api/{things}?program={program}&{unit}={root}&{everywhere}&skipPaging=true&fields={id}");
            let got = get(&stand_in, &target).json();
            let rows = got[things].as_array().unwrap_or_else(|| panic!("{version} {got}"));
            let mut ids: Vec<String> = rows.iter().map(|row| row[id].as_str().unwrap().to_owned()).collect();
            ids.sort_unstable();
            assert_eq!(ids, stand_in.truth_tracked(truth, program), "{version} {things}");
            assert!(got.get("pager").is_none());
        }
        let target = format!("/api/trackedEntityInstances?program={registering}&ou={root}&{everywhere}");
        assert!(
            get(&stand_in, &target).json().get("pager").is_none(),
            "{version}: no pager unless a total is asked for"
        );
        assert!(get(&stand_in, &format!("{target}&totalPages=true")).pager("total") > 900);
    }
    assert_eq!(get(&small("2.42").start().unwrap(), "/api/events?orgUnit=x").status, 404);
}
