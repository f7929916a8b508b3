//! Whatever a server says of itself: 0 only with every row, and a manifest that says what showed it; else a code and a reason.

use std::time::Duration;

use dhis2_stand_in::{Builder, Change, Envelope, Fault, FaultRule, Kept, Latency, Match, Quirk, Request, StandIn};

use crate::support::{Ended, Place, stand_in};

/// Patient enough for a loaded machine.
const LIMITS: &str = "in_flight = 2\nfirst_byte_timeout_s = 5\nstall_timeout_s = 5\noutage_s = 30";

/// Pages of 50, and a filter that all rows pass, so that a proxy has something to drop.
const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\n\
                     filters = [\"created:ge:2000-01-01\"]\npage_size = 50";

/// A server of 500 organisation units with this manner, and the job that harvests it.
fn scene(manner: impl FnOnce(Builder) -> Builder) -> (StandIn, Place) {
    let server = manner(stand_in().version("2.40").org_units(500)).start().unwrap();
    let place = Place::new();
    place.job(server.url(), LIMITS, UNITS);
    (server, place)
}

/// Runs a job that must come to its end within a minute.
fn run(place: &Place) -> Ended {
    place.ends(&["run", "job.toml", "--json", "--max-seconds", "60"])
}

/// What the manifest says showed that nothing is missing.
fn proof(place: &Place) -> String {
    place.manifest()["streams"]["organisationUnits"]["proof"].as_str().unwrap_or_default().to_owned()
}

/// A listing of many ids, not one that looks for the ends of ranges or for the total.
fn is_listing(request: &Request) -> bool {
    let size = request.param("pageSize").and_then(|size| size.parse::<u32>().ok());
    request.param("fields") == Some("id") && size.is_some_and(|size| size > 1)
}

#[test]
fn a_quiet_server_is_believed_for_its_numbers_alone() {
    let (server, place) = scene(|server| server);
    run(&place).assert_code(0, "a quiet server");
    place.assert_exact(&server, "organisationUnits", "a quiet server");
    assert_eq!(proof(&place), "total");
    assert!(!server.ledger().requests().iter().any(|seen| seen.target.contains("pageSize=1625")), "it was listed");
}

#[test]
fn control_pager_count_an_empty_page_that_counts_rows_is_no_end() {
    let empty = Fault::Envelope(Envelope::NoRows);
    let row_page = FaultRule::on(Match::nth(3)).and_full_rows_only().act(empty.clone()).times(1);
    let listing = FaultRule::on(Match::nth(1)).and(is_listing).act(empty).times(1);
    let (server, place) = scene(|server| server.fault(row_page).fault(listing));
    run(&place).assert_code(0, "an empty page and an empty listing");
    place.assert_exact(&server, "organisationUnits", "an empty page and an empty listing");
}

#[test]
fn control_pager_count_a_page_and_a_listing_that_lack_rows_are_found_out() {
    let fewer = Fault::Envelope(Envelope::FewerRows);
    let row_page = FaultRule::on(Match::nth(3)).and_full_rows_only().act(fewer.clone()).times(1);
    let listing = FaultRule::on(Match::nth(1)).and(is_listing).act(fewer).times(1);
    let (server, place) = scene(|server| server.fault(row_page).fault(listing));
    run(&place).assert_code(0, "a short page and a short listing");
    place.assert_exact(&server, "organisationUnits", "a short page and a short listing");
    assert_eq!(proof(&place), "listing");
}

#[test]
fn control_recount_rows_that_appear_behind_the_walk_are_noticed_by_the_second_count() {
    // The last page has come when they do, so that no pager of a page can tell of them.
    let (server, place) =
        scene(|server| server.after_lists("organisationUnits", 14, Change::insert("organisationUnits", 5)));
    let ended = run(&place);
    ended.assert_code(0, "rows behind the walk");
    place.assert_exact(&server, "organisationUnits", "rows behind the walk");
    assert_eq!(proof(&place), "listing", "{:?}", ended.report());
    assert_eq!(ended.report()["streams"]["organisationUnits"]["appeared"], 5);
}

#[test]
fn control_progress_a_walk_that_does_not_move_on_ends_with_7_and_its_likely_cause() {
    for quirk in [Quirk::IdGtIgnored, Quirk::IdGtInclusive, Quirk::OneFilterOnly(Kept::First)] {
        let (server, place) = scene(|server| server.quirk(quirk));
        let ended = place.ends(&["run", "job.toml", "--json", "--max-seconds", "20"]);
        ended.assert_code(7, &format!("{quirk:?}"));
        let message = ended.report()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("id:gt"), "{quirk:?}: {message}");
        let asked = server.ledger().count();
        assert!(asked < 80, "{quirk:?}: {asked} requests");
    }
}

#[test]
fn get_all_takes_no_empty_page_for_the_end_and_goes_round_in_no_circle() {
    let get = |place: &Place| place.ends(&["get", "organisationUnits?fields=id", "--all", "--job", "job.toml"]);
    let lists = |rule: FaultRule| rule.and_path("/api/organisationUnits");

    let empty = lists(FaultRule::on(Match::nth(2))).act(Fault::Envelope(Envelope::NoRows)).times(1);
    let (server, place) = scene(|server| server.org_units(2_500).fault(empty));
    let ended = get(&place);
    ended.assert_code(0, "an empty page that counts rows");
    assert_eq!(ended.stdout.lines().count(), server.count("organisationUnits"), "an empty page that counts rows");

    // One that never sends what it counts has sent less than everything.
    let empty = lists(FaultRule::on(Match::From(2))).act(Fault::Envelope(Envelope::NoRows));
    let (_server, place) = scene(|server| server.org_units(2_500).fault(empty));
    let ended = get(&place);
    ended.assert_code(7, "nothing but empty pages");
    assert!(ended.stderr.contains("counts 1500 more rows"), "{}", ended.stderr);

    for quirk in [Quirk::IdGtIgnored, Quirk::IdGtInclusive] {
        let (server, place) = scene(|server| server.org_units(2_500).quirk(quirk));
        let ended = get(&place);
        ended.assert_code(7, &format!("{quirk:?}"));
        assert!(ended.stderr.contains("id:gt"), "{quirk:?}: {}", ended.stderr);
        let asked = server.ledger().count();
        assert!(asked < 20, "{quirk:?}: {asked} requests");
    }
}

#[test]
fn replicas_of_which_one_lags_never_end_with_0_and_rows_missing() {
    let mut told = 0;
    for seed in 1..=12 {
        let quirk = Quirk::LaggingReplica { seed, share: 0.5, rows: 120 };
        let (server, place) = scene(|server| server.quirk(quirk));
        let ended = run(&place);
        match ended.code {
            0 => place.assert_exact(&server, "organisationUnits", &format!("seed {seed}")),
            4 => told += u32::from(ended.report()["error"]["message"].as_str().unwrap().contains("contradicts itself")),
            // Pages that jump to and fro are no walk.
            7 => {}
            _ => panic!("seed {seed}: {ended:#?}"),
        }
    }
    assert!(told > 0, "no seed showed the contradiction");
}

#[test]
fn under_steady_change_it_ends_and_every_row_that_lived_through_the_run_is_there() {
    let server = stand_in().version("2.42").org_units(2_500).latency(Latency::Constant(Duration::from_millis(30)));
    let server = server
        .steadily(250, Change::insert("organisationUnits", 1))
        .steadily(250, Change::delete_some("organisationUnits", 1))
        .start()
        .unwrap();
    let place = Place::new();
    place.job(server.url(), LIMITS, UNITS);
    server.mark();
    let ended = run(&place);
    ended.assert_code(0, "250 inserts and deletes a second");
    let rows = place.rows("organisationUnits");
    let lived = server.truth_survivors("organisationUnits");
    assert!(lived.len() < 2_400, "nothing changed");
    let lost = lived.iter().filter(|id| !rows.iter().any(|row| row.contains(&format!("\"id\":\"{id}\"")))).count();
    assert_eq!(lost, 0, "of {} rows that lived through the run", lived.len());
}

#[test]
fn another_database_that_answers_without_an_outage_is_13_and_nothing_is_published() {
    for from in [6, 14] {
        let (_server, place) = scene(|server| server.at_request(from, Change::Database { seed: 77 }));
        let ended = run(&place);
        ended.assert_code(13, &format!("from request {from} on"));
        assert!(ended.report()["error"]["message"].as_str().unwrap().contains("systemId"), "{ended:#?}");
        assert!(!place.file("out/manifest.json").exists(), "from request {from} on: something was published");
    }
}

#[test]
fn an_outage_of_500s_halves_no_page() {
    let outage = FaultRule::on(Match::From(8)).act(Fault::status(500)).lasting(Duration::from_secs(4));
    let (server, place) = scene(|server| server.fault(outage));
    run(&place).assert_code(0, "four seconds of 500");
    place.assert_exact(&server, "organisationUnits", "four seconds of 500");
    let seen = server.ledger().requests();
    assert!(seen.iter().filter(|seen| seen.status == Some(500)).count() >= 3, "there was no outage");
    let pages = seen.iter().filter(|seen| seen.target.contains("fields=:owner"));
    for page in pages {
        assert!(page.target.contains("pageSize=50"), "a page was made smaller: {}", page.target);
    }
}

#[test]
fn control_denial_a_401_after_a_success_is_asked_again_twice_and_never_more() {
    let hiccup = FaultRule::on(Match::nth(9)).act(Fault::Unauthorized).times(1);
    let (server, place) = scene(|server| server.fault(hiccup));
    run(&place).assert_code(0, "one hiccup");
    place.assert_exact(&server, "organisationUnits", "one hiccup");

    let (server, place) = scene(|server| server.fault(FaultRule::on(Match::From(9)).act(Fault::Unauthorized)));
    let ended = run(&place);
    ended.assert_code(6, "refused from now on");
    let seen = server.ledger().requests();
    let refused: Vec<_> = seen.iter().filter(|seen| seen.status == Some(401)).collect();
    let pings = refused.iter().filter(|seen| seen.target.ends_with("/api/system/ping")).count();
    let targets: Vec<_> = refused.iter().map(|seen| seen.target.as_str()).collect();
    assert_eq!(pings, 2, "{targets:#?}");
    // Those two that were on their way when the first one was refused, each once more without the cookie, and no others.
    assert!(refused.len() - pings <= 4, "{} were refused", refused.len());
}

#[test]
fn what_is_no_list_of_objects_with_ids_is_left_out_of_all_and_the_rest_is_0() {
    let server = stand_in().version("2.42").org_units(20).start().unwrap();
    let place = Place::new();
    place.job(server.url(), LIMITS, "[[extract]]\nkind = \"metadata\"\ncollections = [\"*\"]");
    let ended = run(&place);
    ended.assert_code(0, "all of it");
    let report = ended.report();
    let reason = report["left_out"]["dataStores"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("no list of objects with ids"), "{:#}", report["left_out"]);
}

#[test]
fn a_server_that_is_not_there_ends_every_command_with_5_once_patience_is_over() {
    let (server, place) = scene(|server| server);
    let url = server.url().to_owned();
    server.down();
    place.job(&url, "connect_timeout_s = 1\noutage_s = 3", UNITS);
    for arguments in
        [&["run", "job.toml"][..], &["plan", "job.toml"], &["check", "job.toml"], &["get", "me", "--job", "job.toml"]]
    {
        let began = tokio::time::Instant::now();
        place.ends(arguments).assert_code(5, &format!("{arguments:?}"));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(2_900) && took < Duration::from_secs(25), "{arguments:?}: {took:?}");
    }
}

#[test]
fn a_wrong_token_is_6_for_every_command_whatever_status_says_so() {
    // 401 until 2.41; 400 `Checksum validation failed` with `WWW-Authenticate: ApiToken` later.
    for version in ["2.40", "2.42", "2.43"] {
        let server = stand_in().version(version).org_units(20).start().unwrap();
        let place = Place::new();
        let job = format!(
            "version = 1\nname = \"job\"\n\n[source]\nurl = \"{}\"\ntoken = {{ env = \"DHIS2_PASSWORD\" }}\n\n{UNITS}\n\n\
             [sink]\nkind = \"files\"\ndirectory = \"out\"\n",
            server.url()
        );
        place.write("job.toml", &job);
        for arguments in [&["check", "job.toml"][..], &["plan", "job.toml"], &["run", "job.toml"]] {
            let mut command = place.harvester(arguments);
            let ended = Ended::of(command.env("DHIS2_PASSWORD", "d2pat_wrong").output().unwrap());
            ended.assert_code(6, &format!("{version}: {arguments:?}"));
            assert!(ended.stderr.contains("token") || ended.stdout.contains("token"), "{version}: {ended:#?}");
        }
    }
}

#[test]
fn rows_asked_for_by_their_ids_that_come_in_part_are_asked_for_again() {
    let by_ids = |request: &Request| request.params("filter").any(|filter| filter.starts_with("id:in:"));
    // Twice: what did not come behind the second listing either would count as missing.
    let repairs = FaultRule::on(Match::First(2)).and(by_ids).act(Fault::Envelope(Envelope::FewerRows));
    let appeared = Change::insert("organisationUnits", 20);
    let (server, place) = scene(|server| server.after_lists("organisationUnits", 14, appeared).fault(repairs));
    let ended = run(&place);
    ended.assert_code(0, "answers to ids in part");
    place.assert_exact(&server, "organisationUnits", "answers to ids in part");
    assert_eq!(ended.report()["streams"]["organisationUnits"]["appeared"], 20);
    assert_eq!(server.ledger().faults(), 2);
}
