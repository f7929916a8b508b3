//! Ended at every writing system call, at every failing sync and at every named crash point, each job goes on and its files
//! are the same.
//!
//! strace counts the calls of each thread by itself, so the Nth call is that of the thread that first has N. What a call
//! does besides writing files (waking another thread) is killed too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    proof::{SUBJECTS, Scene, Setting, Tally, amount, at_once},
    support::side_by_side,
};

/// The calls that change what a restart finds, and how far apart those are that get killed: there are 400 of `write`,
/// nearly all to wake a thread.
const WRITING: [(&str, u64); 10] = [
    ("pwrite64", 1),
    ("fsync", 1),
    ("fdatasync", 1),
    ("sync_file_range", 1),
    ("rename", 1),
    ("ftruncate", 1),
    ("unlink", 1),
    ("mkdir", 1),
    ("fchmod", 1),
    ("write", 5),
];

/// A short run: 30 pages in about half a second.
const SETTING: Setting = Setting { requests_per_second: 1_000, in_flight: 2, latency_ms: 4, faults: 0.0, kills: 0 };

/// SIGKILL and SIGABRT as [`crate::proof::Trial::run_with`] tells them.
const KILLED: i32 = -10;
const ABORTED: i32 = -7;

/// Whether strace works here; says so loudly when not.
fn has_strace() -> bool {
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).stdout(Stdio::null()).status();
    let works = works.is_ok_and(|status| status.success());
    assert!(works || amount("syscalls", 0) == 0, "strace is needed for this proof");
    if !works {
        #[expect(clippy::print_stdout, reason = "a proof that did not happen is said loudly")]
        {
            println!("NOT PROVED HERE: strace is missing, so no system call was disturbed");
        }
    }
    works
}

/// A trial is over after so many calls of one kind in a default run.
fn calls_max() -> u64 {
    amount("syscalls", 2)
}

fn scene() -> Scene {
    Scene::new(&SUBJECTS[0], |server| server.latency(SETTING.latency()))
}

#[test]
fn killed_at_any_writing_system_call_the_run_goes_on_and_the_file_is_the_same() {
    if !has_strace() {
        return;
    }
    let (scene, kills) = (scene(), Tally::default());
    let deep = AtomicU64::new(0);
    let beyond = Mutex::new(BTreeSet::new());
    let calls = (0..calls_max()).flat_map(|at| WRITING.map(|(call, stride)| (call, 1 + at * stride))).collect();
    side_by_side(calls, at_once(), |(call, at): (&str, u64)| {
        if beyond.lock().unwrap().contains(call) {
            return;
        }
        let what = format!("killed at {call} number {at}");
        let trial = scene.trial(&SETTING.limits());
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={at}"));
        let tracer = ["strace", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        match trial.run_with(&tracer, "") {
            KILLED => {
                kills.count();
                deep.fetch_add(u64::from(at > 1), Ordering::Relaxed);
                trial.completes(&what);
            }
            code => {
                assert_eq!(code, 0, "{what}: neither killed nor complete");
                trial.assert_exact(&what);
                beyond.lock().unwrap().insert(call);
            }
        }
    });
    assert!(kills.so_far() >= 6, "only {} calls were disturbed", kills.so_far());
    // strace 6.1 with `--seccomp-bpf` kills at the first call of a kind, never at a later one, and says nothing.
    let deep = deep.into_inner();
    assert!(deep >= 4, "only {deep} of {} kills were behind the first call of their kind", kills.so_far());
    kills.tell("kill", "SIGKILL at writing system calls");
}

#[test]
fn a_failing_sync_ends_the_run_with_14_and_the_next_run_completes_it() {
    if !has_strace() {
        return;
    }
    let (scene, failures) = (scene(), Tally::default());
    let codes = Mutex::new(BTreeMap::<(&str, i32), u64>::new());
    let beyond = Mutex::new(BTreeSet::new());
    let calls =
        (1..=calls_max()).flat_map(|at| ["fdatasync", "fsync", "sync_file_range"].map(|call| (call, at))).collect();
    side_by_side(calls, at_once(), |(call, at): (&str, u64)| {
        if beyond.lock().unwrap().contains(call) {
            return;
        }
        let what = format!("EIO at {call} number {at}");
        let trial = scene.trial(&SETTING.limits());
        let log = trial.folder.join("strace").display().to_string();
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=EIO:when={at}"));
        let code = trial.run_with(&["strace", "-f", "-o", &log, "-e", &trace, "-e", &inject], "");
        if !fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
            assert_eq!(code, 0, "{what}: nothing failed");
            beyond.lock().unwrap().insert(call);
            return;
        }
        failures.count();
        *codes.lock().unwrap().entry((call, code)).or_default() += 1;
        assert_eq!(code, 14, "{what}");
        trial.completes(&format!("{what}, then again"));
    });
    let codes = codes.into_inner().unwrap();
    assert!(codes.get(&("fdatasync", 14)).is_some_and(|count| *count > 0), "no commit failed: {codes:?}");
    assert!(codes.get(&("fsync", 14)).is_some_and(|count| *count > 0), "nothing else failed: {codes:?}");
    failures.tell("eio", "EIO at syncs");
}

/// Everything that a run syncs (by itself, or as the folder that holds a name) or renames, below the trial's folder; and how
/// often it is tried, where a run does it more than once.
const SYNCED: [(&str, &str, u64); 17] = [
    ("fsync", "state", 1),
    ("fsync", "state/job", 2),
    ("fsync", "state/job/job.json.part", 2),
    ("rename", "state/job/job.json.part", 2),
    ("fsync", "state/job/spool", 2),
    ("fsync", "state/job/checkpoint", 2),
    ("fsync", "state/job/checkpoint/conf", 2),
    ("fsync", "state/job/checkpoint/db", 2),
    ("fsync", "state/job/checkpoint/blobs", 1),
    ("rename", "state/job/checkpoint", 1),
    ("fsync", "out", 2),
    ("fsync", "out/organisationUnits.ndjson.part", 1),
    ("rename", "out/organisationUnits.ndjson.part", 1),
    ("fsync", "out/manifest.json.part.new", 1),
    ("rename", "out/manifest.json.part.new", 1),
    ("rename", "out/manifest.json.part", 1),
    ("fsync", ".", 1),
];

/// What is for people to read: that it cannot be written is said, and is no reason to end a run.
const HARMLESS: [(&str, &str, u64); 2] =
    [("rename", "state/job/status.json.part", 2), ("rename", "state/job/report.json.part", 1)];

#[test]
fn a_failing_sync_or_rename_of_anything_that_counts_ends_with_14_whenever_it_happens() {
    if !has_strace() {
        return;
    }
    let (scene, failures) = (scene(), Tally::default());
    let failed = Mutex::new(BTreeSet::new());
    let each_time =
        |(call, path, times): (&'static str, &'static str, u64)| (1..=times).map(move |at| (call, path, at));
    let cases = SYNCED.into_iter().chain(HARMLESS).flat_map(each_time).collect();
    side_by_side(cases, at_once(), |(call, path, at): (&str, &str, u64)| {
        let what = format!("EIO at {call} of {path}, number {at}");
        let trial = scene.trial(&SETTING.limits());
        let log = trial.folder.join("strace").display().to_string();
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error=EIO:when={at}"));
        // A path is compared as the program writes it, an open file by its whole path.
        let of = trial.folder.join(path).display().to_string();
        let tracer = ["strace", "-f", "-o", &log, "-P", &of, "-P", path, "-e", &trace, "-e", &inject];
        let code = trial.run_with(&tracer, "");
        let is_harmless = HARMLESS.iter().any(|harmless| harmless.1 == path);
        match fs::read_to_string(&log).unwrap().contains("(INJECTED)") {
            true => {
                failures.count();
                failed.lock().unwrap().insert((call, path));
                assert_eq!(code, if is_harmless { 0 } else { 14 }, "{what}");
            }
            // Another thread of this run did the work of the one that did it so often before.
            false => assert_eq!(code, 0, "{what}: nothing failed"),
        }
        trial.completes(&format!("{what}, then again"));
    });
    let failed = failed.into_inner().unwrap();
    let never: Vec<_> = SYNCED.iter().chain(&HARMLESS).filter(|case| !failed.contains(&(case.0, case.1))).collect();
    assert!(never.is_empty(), "a run never does {never:?}");
    failures.tell("eio", "EIO at syncs and renames of each file");
}

/// Every `crash_point!("name")` of the program, found in its source.
fn crash_points() -> Vec<String> {
    let mut names = BTreeSet::new();
    let mut folders =
        vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), Path::new(env!("CARGO_MANIFEST_DIR")).join("actors")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            names.extend(
                text.split("crash_point!(\"")
                    .skip(1)
                    .filter_map(|rest| rest.split_once('"'))
                    .map(|(name, _)| name.to_owned()),
            );
        }
    }
    names.into_iter().collect()
}

#[test]
fn there_are_crash_points_in_every_room_that_writes() {
    let names = crash_points();
    for room in
        ["spool.append.", "spool.recover.", "store.commit.", "store.begin.", "finish.", "publish.", "commit.sync."]
    {
        assert!(names.iter().any(|name| name.starts_with(room)), "none of {room} in {names:?}");
    }
}

/// What a crash point does.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// The process aborts.
    Abort,
    /// One thread panics.
    Panic,
}

/// Crash points that no run of the job above passes, with the reason.
const NOT_PASSED: [&str; 0] = [];

#[test]
fn dead_at_any_crash_point_of_a_first_run_or_of_a_resume_the_run_goes_on_and_the_file_is_the_same() {
    if !cfg!(feature = "failpoints") {
        println!("NOT PROVED HERE: needs `--features failpoints`; tests/prove has them");
        return;
    }
    let (scene, deaths) = (scene(), Tally::default());
    let passed = Mutex::new(BTreeSet::new());
    let names = crash_points();
    let passings = [0, 1, 3].into_iter().take(usize::try_from(amount("passings", 3)).unwrap());
    let mut cases = Vec::new();
    for skipped in passings {
        for resumed in [false, true] {
            cases.extend(names.iter().map(|name| (name, skipped, resumed, Death::Abort)));
        }
        cases.extend(names.iter().map(|name| (name, skipped, skipped == 1, Death::Panic)));
    }
    side_by_side(cases, at_once(), |(name, skipped, resumed, death)| {
        let what = format!("{death:?} at {name} behind {skipped} passings, resumed: {resumed}");
        let trial = scene.trial(&SETTING.limits());
        if resumed {
            // With a torn tail, so that the recovery has something to cut.
            let code = trial.run_with(&[], "spool.append.trailer=9*off->return");
            assert_eq!(code, ABORTED, "{what}: the first run did not die");
        }
        let action = match death {
            Death::Abort => "return",
            Death::Panic => "panic",
        };
        match (death, trial.run_with(&[], &format!("{name}={skipped}*off->1*{action}"))) {
            (Death::Abort, ABORTED) => {
                deaths.count();
                passed.lock().unwrap().insert(name);
            }
            // Not passed so often.
            (_, 0) => trial.assert_exact(&what),
            (Death::Panic, 1 | 14) => {
                deaths.count();
            }
            (_, code) => panic!("{what}: ended with {code}"),
        }
        trial.completes(&what);
    });
    let passed = passed.into_inner().unwrap();
    let never: Vec<_> =
        names.iter().filter(|name| !passed.contains(name) && !NOT_PASSED.contains(&name.as_str())).collect();
    assert!(never.is_empty(), "no run passed {never:?}");
    deaths.tell("kill", "abort or panic at crash points, first runs and resumes");
}
