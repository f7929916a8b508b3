use std::time::Duration;

use dhis2_stand_in::{Fault, FaultRule, Latency, Match};

use crate::support::{Place, stand_in};

const SECOND: Duration = Duration::from_secs(1);

/// Twelve seconds of work at 50 a second.
const METADATA: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 5";

#[test]
fn no_second_holds_more_than_the_limit_and_each_full_one_nearly_all_of_it() {
    let stand_in = stand_in().org_units(3_000).start().unwrap();
    let place = Place::new();
    let ended = place.job(stand_in.url(), "requests_per_second = 50", METADATA).run();
    ended.assert_code(0, "limited");
    let ledger = stand_in.ledger();
    assert!(ledger.max_in_window(SECOND) <= 50, "{} in one second", ledger.max_in_window(SECOND));
    let seconds = ledger.per_second();
    let full = &seconds[2..seconds.len() - 1];
    assert!(full.len() >= 8, "only {} full seconds", full.len());
    let mean = full.iter().sum::<usize>() as f64 / full.len() as f64;
    assert!(mean >= 47.0, "{mean} a second: {full:?}");
    // A machine that runs other tests beside this one shifts a request or two from one second to the next.
    assert!(full.iter().all(|requests| *requests >= 45), "{full:?}");
    assert!(ended.report()["peak_requests_per_second"].as_u64().unwrap() <= 50);
}

#[test]
fn repeats_count_as_requests() {
    let faults = FaultRule::on(Match::Chance(7, 0.2)).act(Fault::status(500));
    let stand_in = stand_in().org_units(1_500).fault(faults).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "requests_per_second = 50", METADATA).run().assert_code(0, "limited");
    let ledger = stand_in.ledger();
    assert!(ledger.max_in_window(SECOND) <= 50, "{} in one second", ledger.max_in_window(SECOND));
    place.assert_exact(&stand_in, "organisationUnits", "with 20 % of 500");
}

#[test]
fn a_retry_after_stops_the_whole_host() {
    let wait = Fault::Status { code: 429, retry_after: Some("3".into()), body: dhis2_stand_in::Body::Html };
    let stand_in = stand_in()
        .org_units(2_000)
        .latency(Latency::Constant(Duration::from_millis(10)))
        .fault(FaultRule::on(Match::nth(30)).act(wait))
        .start()
        .unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "", METADATA).run().assert_code(0, "asked to wait");
    let seen = stand_in.ledger().requests();
    let told = seen.iter().find(|seen| seen.status == Some(429)).and_then(|seen| seen.ended).unwrap();
    // Requests that had left before the answer came are excused; nothing starts in the three seconds behind it.
    let early: Vec<_> =
        seen.iter().filter(|seen| seen.arrived > told + SECOND / 10 && seen.arrived < told + 3 * SECOND).collect();
    assert!(early.is_empty(), "{} requests came too early", early.len());
}

#[test]
fn the_session_cookie_is_reused_and_no_connection_is_wasted() {
    let stand_in = stand_in().version("2.40").org_units(2_000).start().unwrap();
    let place = Place::new();
    place.job(stand_in.url(), "in_flight = 4", METADATA).run().assert_code(0, "run");
    assert!(stand_in.session_count() <= 2, "{} sessions", stand_in.session_count());
    assert!(stand_in.ledger().connections() <= 12, "{} connections", stand_in.ledger().connections());
}
