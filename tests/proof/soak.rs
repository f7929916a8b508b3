//! A soak: one long run and many short ones, in trouble all the time. Nothing differs, and nothing grows: no memory, no
//! descriptors, no state folder. Nothing at all unless `PROOF_SOAK_SECONDS` says how long.

use std::{fs, path::Path, process::Child, time::Duration};

use dhis2_stand_in::FaultRule;
use rustix::process::Signal;
use tokio::time::Instant;

use super::{Lots, SUBJECTS, Scene, Setting, Tally, Trial, amount};
use crate::support::{not_proved, signal};

/// The promise of flat memory, in KiB: what a process holds, without the text of the program, which a debug build has twice.
const MEMORY_MAX_KIB: u64 = 64 << 10;
/// Descriptors of a process: connections in flight, two threads' machinery, spool, store, standard streams.
const DESCRIPTORS_MAX: usize = 64;
/// What stays in the state folder of a job between two runs.
const STATE_MAX_BYTES: u64 = 4 << 20;

/// The most of everything that a process was seen to hold.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    memory_kib: u64,
    descriptors: usize,
}

impl Held {
    /// Looks at a process that may have ended.
    fn look(&mut self, child: &Child) {
        let process = Path::new("/proc").join(child.id().to_string());
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let held =
            status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok());
        self.memory_kib = self.memory_kib.max(held.unwrap_or(0));
        self.descriptors = self.descriptors.max(fs::read_dir(process.join("fd")).map_or(0, Iterator::count));
    }

    fn assert_flat(self, what: &str) {
        assert!(self.memory_kib > 0 && self.memory_kib < MEMORY_MAX_KIB, "{what}: {self:?}");
        assert!(self.descriptors < DESCRIPTORS_MAX, "{what}: {self:?}");
    }
}

/// Starts the job of a trial.
fn start(trial: &Trial<'_>) -> Child {
    trial.command(&[], &["-qq", "run", "job.toml"]).stdout(std::process::Stdio::null()).spawn().unwrap()
}

/// How much a folder holds.
fn bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(|entry| size(entry.unwrap())).sum()
}

/// One process that runs for about so long, an outage in its middle.
fn one_long_run(time: Duration, seed: u64) -> Held {
    let setting = Setting { requests_per_second: 200, in_flight: 8, latency_ms: 10, faults: 0.01, kills: 0 };
    let rows = time.as_secs() * 200 * 20;
    let scene = Scene::new(&SUBJECTS[0], |server| {
        let server = server.org_units(u32::try_from(rows).unwrap()).latency(setting.latency());
        server.fault(FaultRule::mixed(seed, setting.faults))
    });
    let trial = scene.trial(&setting.limits());
    let mut child = start(&trial);
    let (began, mut held, mut outages) = (Instant::now(), Held::default(), 0);
    let code = loop {
        held.look(&child);
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        // Nothing is waited for but time: it is looked at each second.
        scene.server.ledger().wait_until(Duration::from_secs(1), |_| false);
        if outages == 0 && began.elapsed() > time / 2 {
            outages += 1;
            scene.server.down();
            scene.server.ledger().wait_until(Duration::from_secs(20), |_| false);
            scene.server.up();
        }
    };
    assert_eq!(code, Some(0), "the long run, seed {seed}");
    assert_eq!(outages, 1, "the long run was too short for its outage");
    trial.assert_exact("the long run");
    held
}

/// Runs of one state folder for so long, killed and stopped by lot; how many were complete.
fn many_short_runs(time: Duration, seed: u64, runs: &Tally) -> Held {
    let setting = Setting { requests_per_second: 1_000, in_flight: 8, latency_ms: 5, faults: 0.05, kills: 0 };
    let scene = Scene::new(&SUBJECTS[1], |server| {
        server.latency(setting.latency()).fault(FaultRule::mixed(seed, setting.faults))
    });
    let trial = scene.trial(&setting.limits());
    let (began, mut lots, mut held) = (Instant::now(), Lots::new(seed), Held::default());
    while began.elapsed() < time {
        let what = format!("short run {}, seed {seed}", runs.so_far());
        let mut child = start(&trial);
        scene.server.ledger().wait_until(Duration::from_millis(lots.below(3_000)), |_| false);
        held.look(&child);
        match lots.below(3) {
            0 => drop(child.kill()),
            1 => signal(&child, Signal::TERM),
            _ => {}
        }
        let code = child.wait().unwrap().code();
        // By lot a page is garbled four times in a row, which is for good: 3 or 7. Then the same command resumes.
        assert!(matches!(code, None | Some(0 | 3 | 7 | 143)), "{what}: {code:?}");
        if code == Some(0) {
            runs.count();
            trial.assert_exact(&what);
            let state = bytes(&trial.folder.join("state"));
            assert!(state < STATE_MAX_BYTES, "{what}: {state} bytes of state");
        }
    }
    held
}

#[test]
fn hours_of_trouble_change_no_byte_and_nothing_grows() {
    let time = Duration::from_secs(amount("soak_seconds", 0));
    if time.is_zero() {
        not_proved("PROOF_SOAK_SECONDS says how long; tests/prove does");
        return;
    }
    let seed = amount("first_seed", 1);
    let runs = Tally::default();
    let long = one_long_run(time / 2, seed);
    let short = many_short_runs(time / 2, seed, &runs);
    long.assert_flat("the long run");
    short.assert_flat("the short runs");
    assert!(runs.so_far() > time.as_secs() / 20, "only {} short runs were complete", runs.so_far());
    runs.count();
    let most = |held: Held| format!("{} MiB, {} descriptors", held.memory_kib >> 10, held.descriptors);
    runs.tell("soak", &format!("soak of {} s, at most {}; {}", time.as_secs(), most(long), most(short)));
}
