//! Hostile answers, hostile names, full and read-only disks, damaged state: the right code, bounded memory, nothing outside
//! the folders, and the same bytes once the cause is gone.
//!
//! A later way to do harm is a row in one of the tables.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use dhis2_stand_in::{Fault, FaultRule, GzipFault, Match};

use crate::{
    proof::{SUBJECTS, Scene, Trial},
    support::{Ended, Place, side_by_side, stand_in},
};

/// Patient enough for a loaded machine, impatient with what never heals.
const LIMITS: &str = "in_flight = 2\nretries = 1\noutage_s = 4";
/// Slow enough that a run is stopped in the middle.
const SLOW: &str = "in_flight = 1\nrequests_per_second = 10";
const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 20";

/// What a process may have in memory at its peak: promise 7.
const MEMORY_KIB_MAX: u64 = 64 << 10;

/// Runs a job, watching its memory; how it ended, and the peak in KiB.
fn run_watched(trial: &Trial<'_>) -> (Option<i32>, u64) {
    let mut command = trial.command(&[], &["-q", "run", "job.toml", "--json"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    let mut code = None;
    let mut look = || {
        // The high-water mark never falls, so the last reading before the end is the peak but for the last twentieth.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(mark.unwrap_or(0));
        code = child.try_wait().unwrap();
        code.is_some()
    };
    // Two minutes: a loaded machine is slow to make a bomb.
    let _has_ended = (0..4).any(|_| crate::support::wait_until(&mut look));
    // One that has ended cannot be killed.
    let _ = child.kill();
    child.wait().unwrap();
    (code.and_then(|status| status.code()), peak)
}

#[test]
fn bombs_and_floods_cost_no_memory_and_no_row() {
    let bomb = |bytes| Fault::Gzip(GzipFault::Bomb(bytes));
    let floods = vec![
        ("256 MiB of blanks in gzip", bomb(1 << 28)),
        ("a thousand headers", Fault::Headers { count: 1_000, bytes_each: 50 }),
        ("a header of a megabyte", Fault::Headers { count: 1, bytes_each: 1 << 20 }),
    ];
    side_by_side(floods, 3, |(what, fault)| {
        let flood = FaultRule::on(Match::From(4)).and_rows_only().act(fault);
        let scene = Scene::new(&SUBJECTS[0], |server| server.fault(flood));
        let trial = scene.trial(LIMITS);
        let (code, peak) = run_watched(&trial);
        assert!(matches!(code, Some(5 | 7)), "{what}: ended with {code:?}");
        assert!(scene.server.ledger().faults() > 0, "{what} was never sent");
        assert!(peak > 0 && peak <= MEMORY_KIB_MAX, "{what}: {peak} KiB");
        assert!(!trial.folder.join("out/manifest.json").exists(), "{what}: something was published");
        scene.server.heal();
        trial.completes(&format!("{what}, healed"));
    });
}

#[test]
fn giant_and_deep_rows_are_rejected_with_a_reason_and_all_others_are_taken() {
    // In the one answer for the whole collection, behind that for its size.
    let rows = vec![
        ("a row of 50 MB", Fault::HugeRow { bytes: 50_000_000 }, "too_large"),
        ("a row 200 levels deep", Fault::DeepRow { depth: 200 }, "too_deep"),
        ("a row 100,000 levels deep", Fault::DeepRow { depth: 100_000 }, "too_deep"),
    ];
    side_by_side(rows, 3, |(what, fault, reason)| {
        let row = FaultRule::on(Match::nth(2)).and_rows_only().act(fault).times(1);
        let scene = Scene::new(&SUBJECTS[2], |server| server.fault(row));
        let trial = scene.trial("in_flight = 1");
        let (code, peak) = run_watched(&trial);
        assert_eq!(code, Some(3), "{what}");
        assert!(peak > 0 && peak <= MEMORY_KIB_MAX, "{what}: {peak} KiB");
        let rejects = fs::read_to_string(trial.folder.join("out/rejects.ndjson")).unwrap();
        assert!(rejects.contains(reason) && rejects.len() < 1_000, "{what}: {} bytes of rejects", rejects.len());
        trial.assert_rows_but_one(what);
    });
}

/// Every path below a folder.
fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            below(&path, found);
        }
        found.push(path);
    }
}

#[test]
fn no_name_leads_out_of_the_folders() {
    let long = "x".repeat(300);
    let names =
        ["../../evil", "/evil", "a/b", "..", ".", "manifest.json", "rejects", "evil\\u0000", "-rf", "CON", &long];
    side_by_side(names.to_vec(), 4, |name| {
        let server = stand_in().org_units(60).start().unwrap();
        let place = Place::new();
        fs::create_dir(place.file("deep")).unwrap();
        place.job(server.url(), "", &format!("{UNITS}\nstream = \"{name}\""));
        let job = fs::read_to_string(place.file("job.toml")).unwrap();
        place.write("job.toml", &job.replace("\"out\"", "\"deep/out\""));
        let ended = place.run();
        assert!(matches!(ended.code, 0 | 78), "{name}: {ended:#?}");
        let mut paths = Vec::new();
        below(place.path(), &mut paths);
        let allowed = [place.file("deep/out"), place.file("state"), place.file("deep"), place.file("job.toml")];
        for path in paths {
            let is_inside = path.starts_with(&allowed[0]) || path.starts_with(&allowed[1]) || allowed.contains(&path);
            assert!(is_inside, "{name}: {} was made", path.display());
        }
        assert!(!Path::new("/evil").exists() && !Path::new("/evil.ndjson").exists(), "{name}");
        if ended.code == 0 {
            // Two files: the rows under some plain name, and the manifest, not one in the other's place.
            let files = fs::read_dir(place.file("deep/out")).unwrap().count();
            assert_eq!(files, 2, "{name}");
            place.ends(&["verify", "job.toml"]).assert_code(0, name);
        }
    });
    for collection in ["../me", "organisationUnits/../../me", "a?b=c", "%2e%2e/me"] {
        let server = stand_in().org_units(60).start().unwrap();
        let place = Place::new();
        place.job(server.url(), "outage_s = 2", &UNITS.replace("organisationUnits", collection));
        let ended = place.run();
        assert!(matches!(ended.code, 7 | 78), "{collection}: {ended:#?}");
    }
    for name in ["../evil", "..", ".hidden", "a/b", ""] {
        let place = Place::new();
        place.job("http://127.0.0.1:1", "", UNITS);
        let job = fs::read_to_string(place.file("job.toml")).unwrap();
        place.write("job.toml", &job.replace("name = \"job\"", &format!("name = \"{name}\"")));
        place.run().assert_code(78, name);
    }
}

/// The files directly in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

/// The one spool.
fn spool(state: &Path) -> PathBuf {
    let logs = files(&state.join("spool"));
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.into_iter().next().unwrap()
}

/// Keeps the first part of a file.
fn cut(path: &Path, keep: f64) {
    let mut bytes = fs::read(path).unwrap();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place"
    )]
    bytes.truncate((bytes.len() as f64 * keep) as usize);
    fs::write(path, bytes).unwrap();
}

/// Flips bits in a file, this far apart.
fn flip(path: &Path, apart: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes.iter_mut().skip(apart / 2).step_by(apart).for_each(|byte| *byte ^= 0x55);
    fs::write(path, bytes).unwrap();
}

/// Makes the spool's first head one of a later layout, with a checksum that fits.
fn newer_spool(state: &Path) {
    let path = spool(state);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] += 1;
    let run_id = path.file_stem().unwrap().to_str().unwrap();
    let seed = crc32c::crc32c(run_id.as_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &0u64.to_le_bytes()), &bytes[..32]);
    bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

/// Makes the store's header one of a later program, with a checksum that fits.
fn newer_store(state: &Path) {
    let store = sled::open(state.join("checkpoint")).unwrap();
    let mut bytes = store.get("header").unwrap().unwrap().to_vec();
    bytes[0] += 1;
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(b"header"), &bytes[..1]), &bytes[5..]);
    bytes[1..5].copy_from_slice(&crc.to_le_bytes());
    store.insert("header", bytes).unwrap();
    store.flush().unwrap();
}

/// What happened to an unfinished run's state, and the code of the next run: 0 (the same bytes), or 12.
type Damage = (&'static str, fn(&Path), i32);

/// The table.
const DAMAGES: [Damage; 20] = [
    ("nothing", |_| {}, 0),
    ("the store is gone", |state| fs::remove_dir_all(state.join("checkpoint")).unwrap(), 0),
    (
        "the store is an empty folder",
        |state| files(&state.join("checkpoint")).iter().for_each(|path| fs::remove_file(path).unwrap()),
        0,
    ),
    ("the store's files are empty", |state| files(&state.join("checkpoint")).iter().for_each(|path| cut(path, 0.0)), 0),
    ("the store is cut at a tenth", |state| cut(&state.join("checkpoint/db"), 0.1), 0),
    ("the store is cut in half", |state| cut(&state.join("checkpoint/db"), 0.5), 0),
    ("the store is cut near its end", |state| cut(&state.join("checkpoint/db"), 0.99), 0),
    ("the store's bits have flipped", |state| flip(&state.join("checkpoint/db"), 97), 0),
    ("the store's configuration is garbled", |state| flip(&state.join("checkpoint/conf"), 3), 0),
    ("the store is newer", newer_store, 12),
    ("the spool is gone", |state| fs::remove_file(spool(state)).unwrap(), 12),
    ("the spool is empty", |state| cut(&spool(state), 0.0), 12),
    ("the spool is cut at a tenth", |state| cut(&spool(state), 0.1), 12),
    ("the spool is cut in half", |state| cut(&spool(state), 0.5), 12),
    ("the spool is newer", newer_spool, 12),
    (
        "garbage is behind the spool",
        |state| {
            let path = spool(state);
            let mut bytes = fs::read(&path).unwrap();
            bytes.extend([0x5a; 3_000]);
            fs::write(path, bytes).unwrap();
        },
        0,
    ),
    (
        "store and spool are gone",
        |state| {
            fs::remove_dir_all(state.join("checkpoint")).unwrap();
            fs::remove_file(spool(state)).unwrap();
        },
        0,
    ),
    ("the record of the job is gone", |state| fs::remove_file(state.join("job.json")).unwrap(), 0),
    ("the record of the job is garbled", |state| flip(&state.join("job.json"), 2), 0),
    ("the status is garbled", |state| fs::write(state.join("status.json"), "{").unwrap(), 0),
];

#[test]
fn damaged_state_is_rebuilt_to_the_same_bytes_or_refused_with_12_and_restart_helps() {
    let scene = Scene::new(&SUBJECTS[0], |server| server);
    side_by_side(DAMAGES.to_vec(), 5, |(what, damage, code)| {
        let trial = scene.trial(SLOW);
        let stopped = trial.command(&[], &["-q", "run", "job.toml", "--max-seconds", "2"]).output().unwrap();
        Ended::of(stopped).assert_code(10, what);
        let state = trial.folder.join("state/job");
        let len = fs::metadata(spool(&state)).unwrap().len();
        assert!(len > 10_000, "{what}: only {len} bytes are in the spool");
        let limits = fs::read_to_string(trial.folder.join("job.toml")).unwrap();
        fs::write(trial.folder.join("job.toml"), limits.replace(SLOW, LIMITS)).unwrap();
        damage(&state);
        if code == 0 {
            let ended = trial.completes(what);
            // What is in the spool is not asked for again, whatever became of the store.
            assert_eq!(ended.report()["resumed"], what != "store and spool are gone", "{what}: {ended:#?}");
            return;
        }
        for _ in 0..2 {
            let ended = trial.run();
            ended.assert_code(code, what);
            assert!(!ended.report()["error"]["next"].as_str().unwrap().is_empty(), "{what}: nothing to do next");
        }
        assert!(!trial.folder.join("out/manifest.json").exists(), "{what}: something was published");
        if what == "the store is newer" {
            let is_kept =
                sled::open(state.join("checkpoint")).unwrap().get("header").unwrap().is_some_and(|it| it[0] > 1);
            assert!(is_kept, "{what}: what the newer program knew was thrown away");
        }
        let ended = Ended::of(trial.command(&[], &["run", "job.toml", "--restart"]).output().unwrap());
        // What a newer program wrote may only go when somebody says so; `--restart` says so.
        ended.assert_code(0, &format!("{what}, --restart"));
        trial.assert_exact(&format!("{what}, --restart"));
    });
}

/// Whether a command did what it was asked for.
fn done(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    /// Mounts it; `None` where that cannot be done.
    fn mount(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let options = format!("size={size},mode=0700");
        done("mount", &["-t", "tmpfs", "-o", &options, "tmpfs", at.to_str()?]).then_some(Small(at))
    }

    /// Changes what it can take.
    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        assert!(done("mount", &["-o", &options, self.0.to_str().unwrap()]), "cannot {options}");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        done("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

#[test]
fn a_full_disk_ends_with_14_and_room_completes_the_run() {
    let scene = Scene::new(&SUBJECTS[0], |server| server);
    // Sizes between nothing and enough: the run ends in the spool, in the store, and while it finishes.
    let sizes = ["16k", "64k", "128k", "256k", "280k", "300k", "320k", "360k", "400k"];
    let cases = ["state", "out"].into_iter().flat_map(|room| sizes.map(|size| (room, size))).collect();
    let full = std::sync::Mutex::new(Vec::new());
    side_by_side(cases, 4, |(room, size): (&str, &str)| {
        let what = format!("{size} for {room}");
        let trial = scene.trial(LIMITS);
        let Some(small) = Small::mount(trial.folder.join(room), size) else {
            println!("NOT PROVED HERE: no tmpfs can be mounted, so no disk was full");
            full.lock().unwrap().push(("state", 0));
            full.lock().unwrap().push(("out", 0));
            return;
        };
        let ended = trial.run();
        match ended.code {
            0 => trial.assert_exact(&what),
            code => {
                assert_eq!(code, 14, "{what}: {ended:#?}");
                full.lock().unwrap().push((room, code));
                assert!(!ended.report()["error"]["next"].as_str().unwrap().is_empty(), "{what}: nothing to do next");
                let status = Ended::of(trial.command(&[], &["status", "job.toml"]).output().unwrap());
                assert!(matches!(status.code, 0 | 14), "{what}: status on a full disk: {status:#?}");
                small.remount("size=64m");
                trial.completes(&format!("{what}, then 64m"));
            }
        }
    });
    let full = full.into_inner().unwrap();
    for room in ["state", "out"] {
        assert!(full.iter().any(|(of, _)| *of == room), "{room} was never full");
    }
}

#[test]
fn a_read_only_disk_ends_with_14_before_a_row_is_asked_for() {
    for room in ["state", "out"] {
        let scene = Scene::new(&SUBJECTS[0], |server| server);
        let trial = scene.trial(LIMITS);
        let Some(small) = Small::mount(trial.folder.join(room), "64m") else {
            println!("NOT PROVED HERE: no tmpfs can be mounted, so no disk was read-only");
            return;
        };
        small.remount("ro");
        trial.run().assert_code(14, room);
        assert!(scene.server.ledger().count() < 10, "{room}: rows were asked for");
        small.remount("rw");
        trial.completes(&format!("{room}, writable again"));
    }
}
