//! What analytics of events say, and what their pages lose.

use std::collections::HashSet;

use super::client::get;
use crate::{Builder, StandIn};

fn small(version: &str) -> Builder {
    StandIn::builder().version(version).org_units(130).tracked_entities(993)
}

/// First cells of an answer's rows, and its pager.
fn ask(stand_in: &StandIn, table: &str, row: usize, rest: &str) -> (Vec<String>, serde_json::Value) {
    let program = stand_in.id_of_row("programs", row).unwrap();
    let root = stand_in.id_of_row("organisationUnits", 0).unwrap();
    let got = get(stand_in, &format!("/api/analytics/{table}/query/{program}?dimension=ou:{root}{rest}")).json();
    let rows = got["rows"].as_array().unwrap_or_else(|| panic!("{got}"));
    (rows.iter().map(|row| row[0].as_str().unwrap().to_owned()).collect(), got["metaData"]["pager"].clone())
}

const ALWAYS: &str = "&startDate=2023-01-01&endDate=2024-12-31";

#[test]
fn pages_of_events_are_as_many_as_the_total_says_and_half_of_them_are_doubles() {
    for version in ["2.40", "2.42"] {
        let stand_in = small(version).start().unwrap();
        let truth = stand_in.truth_tracked("events", &stand_in.id_of_row("programs", 0).unwrap());
        let (mut ids, mut total) = (Vec::new(), 0);
        for page in 1..=30 {
            let (page, pager) = ask(&stand_in, "events", 0, &format!("{ALWAYS}&pageSize=100&page={page}"));
            ids.extend(page);
            total = usize::try_from(pager["total"].as_u64().unwrap()).unwrap();
        }
        let seen: HashSet<&String> = ids.iter().collect();
        assert_eq!((ids.len(), total), (truth.len(), truth.len()), "{version}: nothing looks wrong");
        let missing = truth.iter().filter(|id| !seen.contains(id)).count();
        assert_eq!(missing, ids.len() - seen.len(), "{version}");
        assert!(missing * 2 + 60 > total && missing * 2 < total + 60, "{version}: {missing} of {total}");
    }
}

#[test]
fn unpaged_and_by_month_nothing_is_lost() {
    for (version, table, row) in [("2.40", "events", 0), ("2.42", "events", 1), ("2.42", "enrollments", 1)] {
        let stand_in = small(version).start().unwrap();
        let truth = stand_in.truth_tracked(table, &stand_in.id_of_row("programs", row).unwrap());
        let sorted = |mut ids: Vec<String>| {
            ids.sort_unstable();
            ids
        };
        assert_eq!(sorted(ask(&stand_in, table, row, &format!("{ALWAYS}&paging=false")).0), truth, "{version} {table}");
        let mut ids = Vec::new();
        for year in [2023, 2024] {
            for month in 1..=12 {
                let last = [31, 28 + u8::from(year == 2024), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1];
                let dates = format!("&startDate={year}-{month:02}-01&endDate={year}-{month:02}-{last}&paging=false");
                ids.extend(ask(&stand_in, table, row, &dates).0);
            }
        }
        assert_eq!(sorted(ids), truth, "{version} {table}: both dates are inclusive");
    }
}

#[test]
fn a_page_beyond_the_last_is_empty_and_an_order_by_id_is_refused() {
    let stand_in = small("2.42").start().unwrap();
    let (rows, pager) = ask(&stand_in, "events", 0, &format!("{ALWAYS}&pageSize=100&page=999"));
    assert_eq!((rows.len(), pager["page"].as_u64()), (0, Some(30)), "the pager shows the last page");
    let (rows, pager) = ask(&stand_in, "enrollments", 1, &format!("{ALWAYS}&pageSize=100&page=999"));
    assert_eq!((rows.len(), pager["isLastPage"].as_bool(), pager["page"].as_u64()), (0, Some(true), Some(999)));
    let program = stand_in.id_of_row("programs", 0).unwrap();
    let root = stand_in.id_of_row("organisationUnits", 0).unwrap();
    let target = format!("/api/analytics/events/query/{program}?dimension=ou:{root}{ALWAYS}&asc=psi");
    assert_eq!(get(&stand_in, &target).status, 409);
    let bare = small("2.43").without_analytics_tables().start().unwrap();
    let program = bare.id_of_row("programs", 0).unwrap();
    let got = get(&bare, &format!("/api/analytics/events/query/{program}?dimension=ou:{root}{ALWAYS}"));
    assert_eq!((got.status, got.json()["errorCode"].as_str()), (409, Some("E7144")));
}

#[test]
fn sums_of_districts_add_up_to_the_country() {
    let stand_in = small("2.42").start().unwrap();
    let elements: Vec<String> = (0..3).map(|row| stand_in.id_of_row("dataElements", row).unwrap()).collect();
    let root = stand_in.id_of_row("organisationUnits", 0).unwrap();
    let sums = |periods: &str, units: &str| {
        let target =
            format!("/api/analytics?dimension=dx:{}&dimension=pe:{periods}&dimension=ou:{units}", elements.join(";"));
        let got = get(&stand_in, &target).json();
        let mut sums = std::collections::BTreeMap::new();
        for row in got["rows"].as_array().unwrap_or_else(|| panic!("{got}")) {
            let cell = |at: usize| row[at].as_str().unwrap().to_owned();
            *sums.entry(cell(0)).or_insert(0.0) += cell(3).parse::<f64>().unwrap();
        }
        sums
    };
    let whole = sums("2023", &root);
    let districts = sums("2023", "LEVEL-3");
    let months: Vec<String> = (1..=12).map(|month| format!("2023{month:02}")).collect();
    let months = sums(&months.join(";"), "LEVEL-2");
    assert_eq!(whole.len(), 3);
    for (element, sum) in &whole {
        assert!((districts[element] - sum).abs() < sum.abs() * 1e-9, "{element}: {districts:?} of {whole:?}");
        // What is reported by quarter or year lies in no month.
        assert!(months[element] > 0.0 && months[element] < sum * (1.0 + 1e-9), "{element}: {months:?} of {whole:?}");
    }
    let got = get(&stand_in, &format!("/api/analytics?dimension=dx:{}&dimension=ou:{root}", elements[0]));
    assert_eq!((got.status, got.json()["errorCode"].as_str()), (409, Some("E7146")));
}
