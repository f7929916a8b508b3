//! Power cuts: a file system of its own in a loop device loses whatever was not synced, at random instants, at crash points
//! and right behind the end. What had been announced as committed before the cut is there, in the store by itself too.
//!
//! The ioctl drops what was not synced; it neither tears nor reorders what was. It says nothing about drives that lie.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use dhis2_harvester::checkpoints::SledStore;
use harvester_actors::checkpoint_store::CheckpointStore;
use serde_json::Value;

use crate::{
    proof::{Lots, SUBJECTS, Scene, Setting, Tally, Trial, amount},
    support::side_by_side,
};

/// Long enough for several commits: 30 pages in about 600 ms.
const SETTING: Setting = Setting { requests_per_second: 200, in_flight: 2, latency_ms: 40, faults: 0.0, kills: 0 };

/// Cuts of one file system before the run is let go on to its end.
const CUTS_OF_A_RUN: u64 = 4;

/// Where a run dies when it is not at a random instant; the cut follows at once.
const CRASH_POINTS: [&str; 16] = [
    "run.begin.spool=return",
    "run.begin.after=return",
    "store.begin.moved=return",
    "store.begin.synced=return",
    "spool.begin.renamed=return",
    "spool.append.trailer=7*off->return",
    "spool.append.after=11*off->return",
    "spool.sync.before=1*off->return",
    "spool.sync.after=1*off->return",
    "store.commit.apply=2*off->return",
    "store.commit.flush=2*off->return",
    "store.commit.after=2*off->return",
    "finish.written=return",
    "publish.rename=return",
    "publish.manifest=return",
    "end.after=return",
];

/// Tells the kernel to drop what is not on the disk (`EXT4_IOC_SHUTDOWN`, without flushing the log). A call of Python, since
/// this crate may not.
const CUT: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// A small disk with a plug to pull.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// An empty file system; `None` where one cannot be mounted.
    fn new() -> Option<Self> {
        let disk = Disk { folder: tempfile::tempdir().unwrap() };
        File::create(disk.image()).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(disk.root()).unwrap();
        (done("mkfs.ext4", &["-q", "-F", disk.image().to_str()?]) && disk.mount()).then_some(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn mount(&self) -> bool {
        done("mount", &["-o", "loop", self.image().to_str().unwrap(), self.root().to_str().unwrap()])
    }

    fn unmount(&self) -> bool {
        done("umount", &[self.root().to_str().unwrap()])
    }

    /// Pulls the plug.
    fn cut(&self) {
        assert!(done("python3", &["-c", CUT, self.root().to_str().unwrap()]), "the power could not be cut");
    }

    /// Plugs it in again, once nobody uses it.
    fn back(&self) {
        let mut tries = 0;
        while !self.unmount() {
            tries += 1;
            assert!(tries < 200, "the disk is still in use");
        }
        assert!(self.mount(), "the disk cannot be mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.unmount() {
            done("umount", &["-l", self.root().to_str().unwrap()]);
        }
    }
}

/// Whether a program did what it was asked for.
fn done(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Pages that a log says are committed, and whether it says that the run is over.
fn announced(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let commits = lines.filter(|line| text_of(line, "message") == Some("committed"));
    commits.filter_map(|line| number_of(&line, "pages")).sum()
}

/// A member of a log line, wherever the log's format puts it.
fn member<'a>(line: &'a Value, name: &str) -> Option<&'a Value> {
    line.get(name).or_else(|| line.get("fields")?.get(name))
}

fn text_of<'a>(line: &'a Value, name: &str) -> Option<&'a str> {
    member(line, name)?.as_str()
}

fn number_of(line: &Value, name: &str) -> Option<u64> {
    let value = member(line, name)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// What the store says by itself, read from a copy: pages of the unfinished run. `None`: it knows of no unfinished run.
fn pages_in_store(trial: &Trial<'_>, what: &str) -> Option<u64> {
    let copy = tempfile::tempdir().unwrap();
    let from = trial.folder.join("state/job/checkpoint");
    let to = copy.path().join("checkpoint");
    if !from.exists() {
        return None;
    }
    assert!(done("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let loaded = runtime.block_on(Arc::new(SledStore::open(to)).load());
    let checkpoint = loaded.unwrap_or_else(|failure| panic!("{what}: the store by itself: {failure:?}"));
    Some(checkpoint?.totals.iter().map(|totals| totals.pages).sum())
}

#[test]
fn what_was_announced_before_a_power_cut_is_there_and_the_files_are_the_same() {
    let wanted = amount("cuts", 3);
    if Disk::new().is_none() {
        assert!(amount("cuts", 0) == 0, "this proof needs root and loop devices");
        println!("NOT PROVED HERE: no loop device can be mounted, so no power was cut");
        return;
    }
    let cuts = Tally::default();
    let scene = Scene::new(&SUBJECTS[0], |server| server.latency(SETTING.latency()));
    side_by_side((0..4).collect(), 4, |worker: u64| {
        let mut round = 0;
        while cuts.so_far() < wanted {
            let seed = worker * 1_000 + round;
            round += 1;
            one_disk(&scene, seed, wanted, &cuts);
        }
    });
    cuts.tell("cut", "power cuts at random instants, crash points and the end");
}

/// Cuts the power of one run several times, then lets it end, and cuts once more.
fn one_disk(scene: &Scene, seed: u64, wanted: u64, cuts: &Tally) {
    let disk = Disk::new().expect("a disk");
    let trial = scene.trial_in(disk.root(), &SETTING.limits());
    // The job file is the person's; it was there before.
    assert!(done("sync", &["-f", disk.root().to_str().unwrap()]));
    let log = disk.folder.path().join("log");
    let mut lots = Lots::new(seed);
    for cut in 0..CUTS_OF_A_RUN {
        let before = pages_in_store(&trial, "before").unwrap_or(0);
        let at_crash_point = cfg!(feature = "failpoints") && lots.below(2) == 0;
        let point = CRASH_POINTS[usize::try_from(lots.below(CRASH_POINTS.len() as u64)).unwrap()];
        let life = Duration::from_millis(if cut == 0 { 50 + lots.below(700) } else { 1_050 + lots.below(600) });
        let what = if at_crash_point {
            format!("seed {seed}, cut {cut} at {point}")
        } else {
            format!("seed {seed}, cut {cut} after {life:?}")
        };
        let mut command = trial.command(&[], &["-vvv", "--log-format", "json", "run", "job.toml", "--json"]);
        command.stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        if at_crash_point {
            command.env("FAILPOINTS", point);
        }
        let mut child = command.spawn().unwrap();
        if at_crash_point {
            child.wait().unwrap();
        } else {
            // A random instant is the point here: nothing is waited for.
            scene.server.ledger().wait_until(life, |_| false);
        }
        // Only what was visible before the cut counts.
        let committed = announced(&log);
        let over = child.try_wait().unwrap();
        disk.cut();
        // One that has ended cannot be killed.
        let _ = child.kill();
        child.wait().unwrap();
        disk.back();
        cuts.count();
        if over.is_some_and(|status| status.success()) {
            trial.assert_exact(&format!("{what}, behind its end"));
            return;
        }
        if let Some(found) = pages_in_store(&trial, &what) {
            assert!(found >= before + committed, "{what}: {found} pages of {before} and {committed} are left");
        } else {
            // No unfinished run: it never began, or its files are published and it only had to be put away.
            let published = trial.folder.join("out/manifest.json").exists();
            assert!(published || before + committed == 0, "{what}: the store forgot {before} and {committed} pages");
        }
        if cuts.so_far() >= wanted {
            break;
        }
    }
    let what = format!("seed {seed}, after the cuts");
    trial.completes(&what);
    disk.cut();
    disk.back();
    cuts.count();
    trial.assert_exact(&format!("{what}, cut behind the end"));
}
