use std::time::Duration;

use dhis2_stand_in::Latency;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::support::{Place, stand_in};

/// Kills of one run: enough to hit every phase several times. The long proof is a script (`tests/bench`).
const KILLS: u32 = 40;

/// A page may be asked for again when it was in flight at a kill, or behind the last commit: commits come every 100 ms,
/// and a loaded machine is late.
const UNCOMMITTED: Duration = Duration::from_millis(600);

#[test]
fn killed_at_random_instants_the_run_goes_on_and_the_file_is_the_same() {
    let stand_in = stand_in().org_units(6_000).latency(Latency::Constant(Duration::from_millis(40))).start().unwrap();
    let ledger = stand_in.ledger();
    let place = Place::new();
    place.job(
        stand_in.url(),
        "in_flight = 4",
        "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50",
    );
    let mut seed: u64 = 0x5eed;
    let mut kills = Vec::new();
    let mut completed = false;
    for kill in 0..KILLS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let life_ms = 5 + (seed >> 33) % 1_400;
        let mut child = place.start();
        // A random instant is the point here: nothing is waited for.
        ledger.wait_until(Duration::from_millis(life_ms), |_| false);
        completed = child.try_wait().unwrap().is_some();
        if completed {
            assert!(kill > 5, "the run was over after {kill} kills");
            break;
        }
        child.kill().unwrap();
        kills.push(Instant::now());
        child.wait().unwrap();
    }
    if !completed {
        let ended = place.run();
        ended.assert_code(0, "after the kills");
        assert_eq!(ended.report()["resumed"], true);
    }
    place.assert_exact(&stand_in, "organisationUnits", "after the kills");
    place.ends(&["verify", "job.toml"]).assert_code(0, "verify");

    // What was asked for twice was in flight at a kill or not yet committed.
    let pages: Vec<_> = ledger.requests().into_iter().filter(|seen| seen.target.contains("id:gt")).collect();
    for (place, first) in pages.iter().enumerate() {
        let Some(again) = pages[place + 1..].iter().find(|other| other.target == first.target) else { continue };
        let excused = kills
            .iter()
            .any(|kill| *kill >= first.arrived && *kill <= again.arrived && *kill - first.arrived <= UNCOMMITTED);
        assert!(excused, "{} was asked for again although it was committed", first.target);
    }
    // Restarts did not send more than the limit in any second either.
    assert!(ledger.max_in_window(Duration::from_secs(1)) <= 200);
}

#[test]
fn a_checkpoint_store_that_is_deleted_or_damaged_is_rebuilt_and_the_file_is_the_same() {
    for damage in ["delete", "garble", "empty"] {
        let stand_in =
            stand_in().org_units(3_000).latency(Latency::Constant(Duration::from_millis(40))).start().unwrap();
        let ledger = stand_in.ledger();
        let place = Place::new();
        place.job(
            stand_in.url(),
            "in_flight = 4",
            "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50",
        );
        let mut child = place.start();
        assert!(ledger.wait_until(Duration::from_secs(30), |seen| seen.len() > 40), "nothing happened");
        child.kill().unwrap();
        child.wait().unwrap();
        let store = place.file("state/job/checkpoint");
        match damage {
            "delete" => std::fs::remove_dir_all(&store).unwrap(),
            _ => {
                let files: Vec<_> = std::fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).collect();
                for file in files.into_iter().filter(|file| file.is_file()) {
                    let mut bytes = if damage == "garble" { std::fs::read(&file).unwrap() } else { Vec::new() };
                    bytes.iter_mut().step_by(17).for_each(|byte| *byte ^= 0x55);
                    std::fs::write(&file, bytes).unwrap();
                }
            }
        }
        let ended = place.run();
        ended.assert_code(0, damage);
        assert_eq!(ended.report()["resumed"], true, "{damage}");
        place.assert_exact(&stand_in, "organisationUnits", damage);
    }
}

#[test]
fn a_stop_drains_and_says_how_to_go_on() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 143)] {
        let what = format!("{signal:?}");
        let stand_in =
            stand_in().org_units(3_000).latency(Latency::Constant(Duration::from_millis(60))).start().unwrap();
        let ledger = stand_in.ledger();
        let place = Place::new();
        place.job(
            stand_in.url(),
            "in_flight = 4",
            "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50",
        );
        let child = place.harvester(&["run", "job.toml"]).spawn().unwrap();
        assert!(ledger.wait_until(Duration::from_secs(30), |seen| seen.len() > 20), "nothing happened");
        crate::support::signal(&child, signal);
        let ended = crate::support::Ended::of(child.wait_with_output().unwrap());
        ended.assert_code(code, &what);
        assert!(ended.stderr.contains("run the same command to resume"), "{what}: {}", ended.stderr);
        place.run().assert_code(0, "the same command");
        place.assert_exact(&stand_in, "organisationUnits", &what);
        assert_eq!(
            ledger.asked_twice().iter().filter(|(target, _)| target.contains("id:gt")).count(),
            0,
            "{what}: a stop that drains costs no page"
        );
    }
}
