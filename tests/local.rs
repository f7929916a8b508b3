//! Whatever this machine does to a run: files that vanish, too few of them, a second process, kills at a bad moment. The
//! right code and a sentence, and a plain start afterwards completes the run exactly.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use dhis2_stand_in::Latency;

use crate::{
    proof::{SUBJECTS, Scene, Trial, amount},
    support::{Ended, side_by_side, wait_until},
};

/// Patient enough for a loaded machine.
const LIMITS: &str = "in_flight = 2\noutage_s = 30";

/// 30 pages in more than a second: something can happen in between.
fn slow_scene() -> Scene {
    Scene::new(&SUBJECTS[0], |server| server.latency(Latency::Constant(Duration::from_millis(100))))
}

/// Every path below a folder.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        found.push(path);
    }
    found
}

/// Starts the job, and waits until some of its pages are committed.
fn start(trial: &Trial<'_>) -> std::process::Child {
    let child = trial.command(&[], &["run", "job.toml", "--json"]).spawn().unwrap();
    let spool = trial.folder.join("state/job/spool");
    let grown = || {
        let logs = fs::read_dir(&spool).into_iter().flatten().flatten();
        logs.filter_map(|log| log.metadata().ok()).any(|log| log.len() > 40_000)
    };
    assert!(wait_until(grown), "nothing was fetched");
    child
}

#[test]
fn a_store_that_vanishes_under_a_run_ends_it_with_14_and_the_next_start_completes_it() {
    type Vanish = fn(&Path);
    let cases: Vec<(&str, Vanish)> = vec![
        ("removed", |state| fs::remove_dir_all(state.join("checkpoint")).unwrap()),
        ("moved away", |state| fs::rename(state.join("checkpoint"), state.join("elsewhere")).unwrap()),
        ("replaced by an empty one", |state| {
            fs::rename(state.join("checkpoint"), state.join("elsewhere")).unwrap();
            fs::create_dir(state.join("checkpoint")).unwrap();
        }),
        ("removed with all the job's state", |state| fs::remove_dir_all(state).unwrap()),
    ];
    let scene = slow_scene();
    side_by_side(cases, 4, |(what, vanish)| {
        let trial = scene.trial(LIMITS);
        let child = start(&trial);
        vanish(&trial.folder.join("state/job"));
        let ended = Ended::of(child.wait_with_output().unwrap());
        ended.assert_code(14, what);
        let error = &ended.report()["error"];
        assert!(error["message"].as_str().unwrap().contains("was removed or replaced"), "{what}: {error}");
        assert!(error["next"].as_str().unwrap().contains("run the same command"), "{what}: {error}");
        let again = trial.completes(what);
        assert_eq!(again.report()["resumed"], !what.contains("all"), "{what}: {again:#?}");
    });
}

#[test]
fn whatever_the_limit_of_open_files_is_a_run_completes_or_ends_with_14_and_a_sentence() {
    let scene = Scene::new(&SUBJECTS[0], |server| server);
    let codes = Mutex::new(BTreeMap::<u64, i32>::new());
    side_by_side((8..=64).collect(), 4, |limit: u64| {
        let what = format!("at most {limit} open files");
        let trial = scene.trial(LIMITS);
        let prlimit = format!("--nofile={limit}:{limit}");
        let run = trial.command(&["prlimit", &prlimit], &["run", "job.toml", "--json"]).output().unwrap();
        let ended = Ended::of(run);
        codes.lock().unwrap().insert(limit, ended.code);
        if ended.code == 0 {
            trial.assert_exact(&what);
            return;
        }
        ended.assert_code(14, &what);
        let error = &ended.report()["error"];
        assert!(error["message"].as_str().unwrap().contains(&format!("{limit} open files")), "{what}: {error}");
        assert!(error["next"].as_str().unwrap().contains("ulimit -n"), "{what}: {error}");
        if limit.is_multiple_of(8) {
            for arguments in [&["check", "job.toml"][..], &["plan", "job.toml"], &["get", "--job", "job.toml", "me"]] {
                let ended = Ended::of(trial.command(&["prlimit", &prlimit], arguments).output().unwrap());
                // One question needs fewer of them than a run.
                if arguments[0] == "get" && ended.code == 0 {
                    continue;
                }
                ended.assert_code(14, &format!("{what}: {arguments:?}"));
                let told = ended.stdout.clone() + &ended.stderr;
                assert!(told.contains(&format!("{limit} open files")), "{what}: {ended:#?}");
            }
        }
        trial.completes(&what);
    });
    let codes = codes.into_inner().unwrap();
    assert!(codes.values().any(|code| *code == 14) && codes.values().any(|code| *code == 0), "{codes:?}");
}

#[test]
fn a_low_limit_that_may_be_raised_is_raised() {
    let scene = Scene::new(&SUBJECTS[0], |server| server);
    let trial = scene.trial("in_flight = 4\noutage_s = 30");
    let run = trial.command(&["prlimit", "--nofile=16:1024"], &["run", "job.toml", "--json"]).output().unwrap();
    Ended::of(run).assert_code(0, "a soft limit of 16");
    trial.assert_exact("a soft limit of 16");
}

#[test]
fn a_second_process_is_refused_also_when_the_lock_file_is_deleted() {
    let scene = slow_scene();
    let trial = scene.trial(LIMITS);
    let child = start(&trial);
    fs::remove_file(trial.folder.join("state/job/lock")).unwrap();
    trial.run().assert_code(11, "a second process");
    let first = Ended::of(child.wait_with_output().unwrap());
    first.assert_code(0, "the first process");
    trial.assert_exact("two processes");
}

#[test]
fn a_link_in_place_of_the_lock_file_is_not_followed() {
    let scene = Scene::new(&SUBJECTS[0], |server| server);
    let trial = scene.trial(LIMITS);
    fs::create_dir_all(trial.folder.join("state/job")).unwrap();
    for target in ["theirs", "nowhere"] {
        fs::write(trial.folder.join("theirs"), "kept").unwrap();
        symlink(trial.folder.join(target), trial.folder.join("state/job/lock")).unwrap();
        let ended = trial.run();
        ended.assert_code(14, target);
        assert!(ended.stderr.contains("is a symbolic link"), "{target}: {ended:#?}");
        assert!(!trial.folder.join("nowhere").exists(), "{target}: something was made behind the link");
        fs::remove_file(trial.folder.join("state/job/lock")).unwrap();
    }
    assert_eq!(fs::read_to_string(trial.folder.join("theirs")).unwrap(), "kept");
    trial.completes("without the link");
}

#[test]
fn two_runs_with_a_state_of_their_own_never_write_to_one_folder_at_once() {
    let scene = slow_scene();
    // Longer than the second run waits for what may be over in a moment.
    let trial = scene.trial("requests_per_second = 8\nin_flight = 2\noutage_s = 30");
    fs::create_dir(trial.folder.join("out")).unwrap();
    let child = start(&trial);
    let other = ["--state-dir", "elsewhere", "run", "job.toml", "--json"];
    let second = Ended::of(trial.command(&[], &other).output().unwrap());
    second.assert_code(14, "a second run");
    assert!(second.stderr.contains("another run is writing to"), "{second:#?}");
    Ended::of(child.wait_with_output().unwrap()).assert_code(0, "the first run");
    trial.assert_exact("the first run");
    Ended::of(trial.command(&[], &other).output().unwrap()).assert_code(0, "the second, alone");
    trial.assert_exact("the second, alone");
}

/// Whether strace works here; says so loudly when not.
fn has_strace() -> bool {
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).stdout(Stdio::null()).status();
    let works = works.is_ok_and(|status| status.success());
    assert!(works || amount("syscalls", 0) == 0, "strace is needed for this proof");
    if !works {
        crate::support::not_proved("strace is missing, so no system call was disturbed");
    }
    works
}

#[test]
fn a_probe_of_the_disk_that_is_killed_leaves_nothing_behind() {
    if !has_strace() {
        return;
    }
    let scene = Scene::new(&SUBJECTS[0], |server| server);
    let mut cases = Vec::new();
    for command in ["run", "check"] {
        // Before a row is asked for there are few calls, and the probe's are among them.
        for (call, times) in [("write", 6), ("fsync", 6), ("unlink", 3), ("unlinkat", 3)] {
            cases.extend((1..=times).map(|at| (command, call, at)));
        }
    }
    side_by_side(cases, 4, |(command, call, at)| {
        let what = format!("{command} killed at {call} number {at}");
        let trial = scene.trial(LIMITS);
        fs::create_dir(trial.folder.join("out")).unwrap();
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=SIGKILL:when={at}"));
        let tracer = ["strace", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        trial.command(&tracer, &["-q", command, "job.toml"]).output().unwrap();
        let names: Vec<_> = below(&trial.folder);
        let left = names.iter().find(|path| path.file_name().unwrap().to_string_lossy().contains("harvester-check"));
        assert_eq!(left, None, "{what}");
    });
}
