//! What data values look like by version, and how they go wrong.

use std::collections::BTreeSet;

use serde_json::Value;

use super::client::{basic, get, get_with};
use crate::{Builder, Fault, FaultRule, Match, StandIn, User};

fn small(version: &str) -> Builder {
    StandIn::builder().version(version).org_units(130).server_date("2025-06-01T12:00:00.000")
}

fn ids(stand_in: &StandIn) -> (String, String) {
    (stand_in.id_of_row("dataSets", 0).unwrap(), stand_in.id_of_row("organisationUnits", 0).unwrap())
}

/// Full keys of an answer's rows, with what the envelope says put back.
fn keys(answer: &Value) -> BTreeSet<Vec<String>> {
    let rows = answer["dataValues"].as_array().cloned().unwrap_or_default();
    let names = ["dataElement", "period", "orgUnit", "categoryOptionCombo", "attributeOptionCombo"];
    let count = rows.len();
    let keys: BTreeSet<Vec<String>> = (rows.iter())
        .map(|row| {
            let text = |name: &&str| row[*name].as_str().or(answer[*name].as_str()).unwrap().to_owned();
            names.iter().map(text).collect()
        })
        .collect();
    assert_eq!(keys.len(), count, "no key comes twice");
    keys
}

#[test]
fn slices_by_month_and_by_unit_add_up_to_the_truth_in_every_version() {
    for version in ["2.25", "2.37", "2.38", "2.40", "2.42", "2.43"] {
        let stand_in = small(version).start().unwrap();
        let (set, root) = ids(&stand_in);
        let base = format!("/api/dataValueSets?dataSet={set}&children=true");
        let truth = stand_in.truth_data_values(&set);
        assert!(truth.len() > 3000, "{version}: {}", truth.len());
        let whole = get(&stand_in, &format!("{base}&orgUnit={root}&startDate=2023-01-01&endDate=2024-12-31"));
        let rows: BTreeSet<String> = whole.rows("dataValues").into_iter().collect();
        if version != "2.43" {
            assert!(truth.iter().all(|row| rows.contains(row)), "{version}");
        }
        // Elements that another set reports by year come too, whatever set is asked for.
        let monthly = |key: &Vec<String>| key[1].len() == 6 && !key[1].contains('Q');
        let all: BTreeSet<Vec<String>> = keys(&whole.json()).into_iter().filter(monthly).collect();
        assert!(all.len() == truth.len() && rows.len() > truth.len(), "{version}");
        let mut by_slice = BTreeSet::new();
        for year in [2023, 2024] {
            for month in 1..=12 {
                for child in 1..=stand_in.branching() {
                    let unit = stand_in.id_of_row("organisationUnits", child).unwrap();
                    let slice = get(&stand_in, &format!("{base}&orgUnit={unit}&period={year}{month:02}"));
                    by_slice.extend(keys(&slice.json()));
                }
            }
        }
        assert_eq!(by_slice, all, "{version}");
        let inside = get(&stand_in, &format!("{base}&orgUnit={root}&startDate=2023-01-02&endDate=2023-02-28")).json();
        assert!(keys(&inside).iter().all(|key| key[1] == "202302"), "{version}: only what lies inside wholly");
    }
}

#[test]
fn nothing_found_has_the_form_of_its_version() {
    for (version, form) in [
        ("2.25", r#"{"dataSet":"S","period":"201001","orgUnit":"U"}"#),
        ("2.37", r#"{"dataSet":"S","period":"201001","orgUnit":"U"}"#),
        ("2.38", r#"{"dataSet":"S","completeDate":null,"period":"201001","orgUnit":"U","dataValues":[]}"#),
        ("2.42", r#"{"dataSet":"S","completeDate":null,"period":"201001","orgUnit":"U","dataValues":[]}"#),
        ("2.43", r#"{"dataSet":"S","period":"201001","orgUnit":"U","dataValues":[]}"#),
    ] {
        let stand_in = small(version).start().unwrap();
        let (set, unit) = ids(&stand_in);
        let got = get(&stand_in, &format!("/api/dataValueSets?dataSet={set}&period=201001&orgUnit={unit}"));
        assert_eq!(got.text().replace(&set, "S").replace(&unit, "U"), form, "{version}");
        assert!(got.header("ETag").is_none() && got.header("Content-Length").is_none(), "{version}: streamed");
    }
}

#[test]
fn outside_the_users_tree_there_are_zero_bytes_or_a_409() {
    for (version, status) in [("2.36", 409), ("2.37", 200), ("2.38", 409), ("2.39", 200), ("2.42", 200), ("2.43", 409)]
    {
        let stand_in = small(version)
            .user(User::superuser("admin", "district"))
            .user(User::limited("half", "h", 100).of_branches(&[0]))
            .start()
            .unwrap();
        let set = ids(&stand_in).0;
        let ask = |child: usize| {
            let unit = stand_in.id_of_row("organisationUnits", child).unwrap();
            let target = format!("/api/dataValueSets?dataSet={set}&period=202301&orgUnit={unit}&children=true");
            get_with(&stand_in, &target, &[("Authorization", &basic("half", "h"))])
        };
        assert!(!keys(&ask(1).json()).is_empty(), "{version}: inside");
        let outside = ask(2);
        assert_eq!(outside.status, status, "{version}");
        assert_eq!(outside.bytes().is_empty(), status == 200, "{version}");
        let told = outside.text().contains("E2012");
        assert_eq!(told, status == 409, "{version}");
    }
}

#[test]
fn a_cut_database_answers_short_by_thousands_and_a_500_since_2_43() {
    for version in ["2.38", "2.40", "2.42", "2.43"] {
        let stand_in = small(version).start().unwrap();
        let (set, root) = ids(&stand_in);
        let target = format!(
            "/api/dataValueSets?dataSet={set}&startDate=2023-01-01&endDate=2024-12-31&orgUnit={root}&children=true"
        );
        let all = keys(&get(&stand_in, &target).json());
        let mut seen = BTreeSet::new();
        for seed in 0..12 {
            stand_in.heal();
            stand_in.add_fault(FaultRule::on(Match::always()).act(Fault::ExportCut { seed }));
            let got = get(&stand_in, &target);
            if version == "2.43" {
                assert_eq!(got.status, 500);
                continue;
            }
            let some = keys(&got.json());
            assert!(
                got.status == 200 && some.len().is_multiple_of(1000) && some.is_subset(&all) && some.len() < all.len()
            );
            seen.insert(some.len());
            assert_eq!(get(&stand_in, "/api/me").status, 200, "nothing else is concerned");
        }
        assert!(version == "2.43" || seen.len() > 2, "{version}: {seen:?}");
    }
}

#[test]
fn last_updated_is_five_hours_late_in_new_york_until_2_42() {
    for (version, hours_lost) in [("2.42", 5), ("2.43", 0)] {
        let stand_in = small(version).time_zone("America/New_York", -300).start().unwrap();
        let (set, root) = ids(&stand_in);
        let base = format!("/api/dataValueSets?dataSet={set}&orgUnit={root}&children=true");
        let all = get(&stand_in, &format!("{base}&startDate=2020-01-01&endDate=2030-01-01")).json();
        let newest = all["dataValues"].as_array().unwrap().iter().map(|row| {
            crate::clock::parse_local(row["lastUpdated"].as_str().unwrap().split('+').next().unwrap()).unwrap()
        });
        // As the server's own people would write it.
        let newest_local = newest.max().unwrap() - 300 * 60_000;
        let found = |earlier_hours: i64| {
            let since = crate::clock::local(newest_local - earlier_hours * 3_600_000);
            !keys(&get(&stand_in, &format!("{base}&lastUpdated={since}")).json()).is_empty()
        };
        for hours in 0..8 {
            assert_eq!(found(hours), hours >= hours_lost, "{version}: {hours} h before the newest");
        }
    }
}

#[test]
fn deleted_values_come_to_those_who_ask_for_them() {
    let stand_in = small("2.40").start().unwrap();
    let (set, root) = ids(&stand_in);
    let target = format!("/api/dataValueSets?dataSet={set}&period=202303&orgUnit={root}&children=true");
    let with = get(&stand_in, &format!("{target}&includeDeleted=true")).rows("dataValues");
    let deleted: Vec<&String> = with.iter().filter(|row| row.ends_with(r#","deleted":true}"#)).collect();
    let without = get(&stand_in, &target).rows("dataValues");
    assert!(!deleted.is_empty() && with.len() == without.len() + deleted.len());
    assert!(without.iter().all(|row| with.contains(row) && row.contains(r#""comment":"#)));
}
