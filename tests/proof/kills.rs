//! Killed at random instants, each job goes on and its files are the same.

use std::time::Duration;

use super::{Lots, SUBJECTS, Scene, Setting, Tally, amount, at_once};
use crate::support::side_by_side;

/// Kills of one run before it is let go on to its end.
const KILLS_OF_A_RUN: u64 = 12;

#[test]
fn killed_at_random_instants_every_job_goes_on_and_its_files_are_the_same() {
    let wanted = amount("kills", 12);
    let kills = Tally::default();
    let setting = Setting { requests_per_second: 200, in_flight: 2, latency_ms: 20, faults: 0.0, kills: 0 };
    let scenes: Vec<_> =
        SUBJECTS.iter().map(|subject| Scene::new(subject, |server| server.latency(setting.latency()))).collect();
    side_by_side((0..at_once() as u64).collect(), at_once(), |worker| {
        let mut round = 0;
        while kills.so_far() < wanted {
            let seed = worker * 1_000 + round;
            let scene = &scenes[usize::try_from(seed).unwrap() % scenes.len()];
            let what = format!("{}, seed {seed}", scene.subject.name);
            let trial = scene.trial(&setting.limits());
            let mut lots = Lots::new(seed);
            let mut ended = false;
            for _ in 0..KILLS_OF_A_RUN {
                // A start after a kill waits 1.05 s: most of what matters comes behind that.
                let life_ms = if lots.below(4) == 0 { lots.below(1_100) } else { 1_000 + lots.below(500) };
                ended = trial.run_and_kill(Duration::from_millis(life_ms));
                if ended || kills.count() >= wanted {
                    break;
                }
            }
            // One that had ended may have begun anew, or not: a further run is exact in either case.
            if ended && trial.folder.join("out/manifest.json").exists() {
                trial.assert_exact(&what);
            }
            trial.completes(&what);
            round += 1;
        }
    });
    kills.tell("kill", "SIGKILL at random instants");
}
