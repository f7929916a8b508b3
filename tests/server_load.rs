use std::time::Duration;

use dhis2_stand_in::{Fault, FaultRule, Latency, Match};

use crate::support::{Place, stand_in};

const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 20";

#[test]
fn the_concurrency_settles_at_the_servers_knee_and_the_run_does_not_collapse() {
    let knee = Latency::Knee { service: Duration::from_millis(40), at: 4, refuses_above: None };
    let stand_in = stand_in().org_units(6_000).latency(knee).start().unwrap();
    let place = Place::new();
    let ended = place.job(stand_in.url(), "in_flight = 16", UNITS).run();
    ended.assert_code(0, "a knee at 4");
    let seen = stand_in.ledger().requests();
    let later = &seen[seen.len() / 2..];
    let mean = later.iter().map(|seen| seen.in_flight).sum::<usize>() as f64 / later.len() as f64;
    assert!((2.5..=5.5).contains(&mean), "{mean} in flight on average once it has settled");
    place.assert_exact(&stand_in, "organisationUnits", "beyond a knee");
}

#[test]
fn during_an_outage_nothing_is_sent_but_probes_and_the_run_goes_on_by_itself() {
    let stand_in = stand_in().org_units(3_000).latency(Latency::Constant(Duration::from_millis(20))).start().unwrap();
    let ledger = stand_in.ledger();
    let outage = FaultRule::on(Match::From(40)).act(Fault::status(503)).lasting(Duration::from_secs(15));
    stand_in.add_fault(outage);
    let place = Place::new();
    let ended = place.job(stand_in.url(), "in_flight = 8", UNITS).run();
    ended.assert_code(0, "an outage of 15 s");
    let seen = ledger.requests();
    let began = seen.iter().find(|seen| seen.status == Some(503)).unwrap().arrived;
    let ended_at = seen.iter().rev().find(|seen| seen.status == Some(503)).unwrap().arrived;
    let during = seen.iter().filter(|seen| {
        seen.arrived > began + Duration::from_secs(3) && seen.arrived <= ended_at && !seen.path().ends_with("/ping")
    });
    assert_eq!(during.count(), 0, "other requests than probes during the outage");
    let next = seen.iter().find(|seen| seen.arrived > ended_at && !seen.path().ends_with("/ping")).unwrap();
    assert!(next.arrived - began < Duration::from_secs(25), "it took {:?} to go on", next.arrived - began);
    place.assert_exact(&stand_in, "organisationUnits", "after the outage");
}
