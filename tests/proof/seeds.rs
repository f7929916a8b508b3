//! Faults mixed at random, at limits, latencies and concurrency from a table, some runs killed besides: same files, same limit.

use std::time::Duration;

use dhis2_stand_in::FaultRule;

use super::{Lots, SETTINGS, SUBJECTS, Scene, Tally, amount, at_once};
use crate::support::side_by_side;

#[test]
fn whatever_mix_of_faults_comes_the_files_are_the_same_and_no_second_holds_more_than_the_limit() {
    let seeds = Tally::default();
    let first = amount("first_seed", 1);
    side_by_side((first..first + amount("seeds", 8)).collect(), at_once(), |seed: u64| {
        let place = usize::try_from(seed).unwrap();
        let setting = SETTINGS[place % SETTINGS.len()];
        let subject = &SUBJECTS[place / SETTINGS.len() % SUBJECTS.len()];
        let what = format!("seed {seed}, {}, {setting:?}", subject.name);
        let faults = FaultRule::mixed(seed, setting.faults);
        let scene = Scene::new(subject, |server| server.latency(setting.latency()).fault(faults));
        let trial = scene.trial(&setting.limits());
        let mut lots = Lots::new(seed);
        for _ in 0..setting.kills {
            trial.run_and_kill(Duration::from_millis(200 + lots.below(1_500)));
        }
        let mut ended = trial.run();
        // By lot the same page may be garbled four times in a row, which is for good: 7. Then the same command resumes.
        for _ in 0..3 {
            if !matches!(ended.code, 3 | 7) {
                break;
            }
            assert!(setting.faults >= 0.1, "{what}: {ended:?}");
            ended = trial.run();
        }
        ended.assert_code(0, &what);
        trial.assert_exact(&what);
        let peak = scene.server.ledger().max_in_window(Duration::from_secs(1));
        assert!(peak <= setting.requests_per_second, "{what}: {peak} requests in one second");
        seeds.count();
    });
    seeds.tell("seed", "mixed faults, with and without kills");
}
