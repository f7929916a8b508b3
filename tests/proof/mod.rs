//! What all loops share: the table of jobs, the table of settings, how much is to be tried, and who counts it.
//!
//! A later kind of data is proved by a row in [`SUBJECTS`], a later way to disturb by a row in [`SETTINGS`] or a loop over
//! both. In the default run every loop is a few seconds long; `tests/prove` sets `PROOF_<WHAT>` and makes it long.

use std::{
    fs,
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use dhis2_stand_in::{Builder, Latency, StandIn};

use crate::support::{Ended, PASSWORD, stand_in, truth};

mod kills;
mod manners;
mod outages;
mod seeds;
mod soak;

/// One finished file of a job: its stem, and what must be in it, line by line.
type Stream = (&'static str, fn(&StandIn) -> Vec<String>);

/// A small job whose result is known.
#[derive(Debug)]
pub(crate) struct Subject {
    /// For messages.
    pub(crate) name: &'static str,
    /// The `[[extract]]` tables.
    pub(crate) extracts: &'static str,
    /// The server.
    pub(crate) server: fn() -> Builder,
    /// The files.
    streams: &'static [Stream],
}

/// Every job that the loops go over. A new kind is a row.
pub(crate) static SUBJECTS: [Subject; 3] = [
    Subject {
        name: "metadata by keyset, 30 pages",
        extracts: "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 20",
        server: || stand_in().version("2.40").org_units(600),
        streams: &[("organisationUnits", |server| truth(server, "organisationUnits"))],
    },
    Subject {
        name: "two collections in ranges, chunked and compressed",
        extracts: "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\", \"dataElements\"]\npage_size = 30",
        server: || {
            let framing = dhis2_stand_in::Framing::Chunked;
            stand_in().version("2.43").org_units(450).size("dataElements", 450).framing(framing).gzip()
        },
        streams: &[
            ("organisationUnits", |server| truth(server, "organisationUnits")),
            ("dataElements", |server| truth(server, "dataElements")),
        ],
    },
    Subject {
        name: "a whole table at once, in no order",
        extracts: "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]",
        server: || stand_in().version("2.30").org_units(600),
        streams: &[("organisationUnits", |server| truth(server, "organisationUnits"))],
    },
];

/// Limits and latency under which the loops run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// `requests_per_second`.
    pub(crate) requests_per_second: usize,
    /// `in_flight`.
    pub(crate) in_flight: usize,
    /// How long the server thinks.
    pub(crate) latency_ms: u64,
    /// Share of requests that go wrong.
    pub(crate) faults: f64,
    /// Kills of one run, besides.
    pub(crate) kills: u64,
}

/// What the mixed loop goes over. A new corner is a row.
pub(crate) const SETTINGS: [Setting; 8] = [
    Setting { requests_per_second: 200, in_flight: 8, latency_ms: 0, faults: 0.05, kills: 0 },
    Setting { requests_per_second: 200, in_flight: 1, latency_ms: 5, faults: 0.15, kills: 0 },
    Setting { requests_per_second: 50, in_flight: 4, latency_ms: 20, faults: 0.10, kills: 0 },
    Setting { requests_per_second: 15, in_flight: 16, latency_ms: 0, faults: 0.05, kills: 0 },
    Setting { requests_per_second: 200, in_flight: 32, latency_ms: 30, faults: 0.20, kills: 0 },
    Setting { requests_per_second: 100, in_flight: 8, latency_ms: 10, faults: 0.10, kills: 2 },
    Setting { requests_per_second: 20, in_flight: 2, latency_ms: 40, faults: 0.10, kills: 3 },
    Setting { requests_per_second: 1000, in_flight: 16, latency_ms: 2, faults: 0.30, kills: 1 },
];

impl Setting {
    /// The `[limits]`: patient, since what goes wrong here heals.
    pub(crate) fn limits(&self) -> String {
        format!(
            "requests_per_second = {}\nin_flight = {}\nfirst_byte_timeout_s = 5\nstall_timeout_s = 5\noutage_s = 120",
            self.requests_per_second, self.in_flight
        )
    }

    /// The server's latency.
    pub(crate) fn latency(&self) -> Latency {
        match self.latency_ms {
            0 => Latency::None,
            ms => Latency::Constant(Duration::from_millis(ms)),
        }
    }
}

/// A server and its truth, for as many trials as wanted.
pub(crate) struct Scene {
    pub(crate) subject: &'static Subject,
    pub(crate) server: StandIn,
    truth: Vec<(&'static str, Vec<u8>)>,
}

impl Scene {
    /// Starts the subject's server.
    pub(crate) fn new(subject: &'static Subject, change: impl FnOnce(Builder) -> Builder) -> Self {
        let server = change((subject.server)()).start().unwrap();
        let file = |rows: Vec<String>| rows.iter().flat_map(|row| [row.as_bytes(), b"\n"].concat()).collect();
        let truth = subject.streams.iter().map(|(stem, truth)| (*stem, file(truth(&server)))).collect();
        Scene { subject, server, truth }
    }

    /// A trial in a folder of its own.
    pub(crate) fn trial(&self, limits: &str) -> Trial<'_> {
        let own = tempfile::tempdir().unwrap();
        let folder = own.path().to_owned();
        Trial { own: Some(own), ..self.trial_in(folder, limits) }
    }

    /// A trial in this folder.
    pub(crate) fn trial_in(&self, folder: PathBuf, limits: &str) -> Trial<'_> {
        let job = format!(
            "version = 1\nname = \"job\"\n\n[source]\nurl = \"{}\"\nusername = \"admin\"\n\
             password = {{ env = \"DHIS2_PASSWORD\" }}\n\n[limits]\n{limits}\n\n{}\n\n\
             [sink]\nkind = \"files\"\ndirectory = \"out\"\n",
            self.server.url(),
            self.subject.extracts
        );
        fs::write(folder.join("job.toml"), job).unwrap();
        Trial { scene: self, folder, own: None }
    }
}

/// One job in one folder, from its first start to its complete end.
pub(crate) struct Trial<'a> {
    scene: &'a Scene,
    pub(crate) folder: PathBuf,
    /// Removes the folder.
    #[expect(dead_code, reason = "kept for its drop")]
    own: Option<tempfile::TempDir>,
}

impl Trial<'_> {
    /// The program, behind `wrapper` (a tracer, or nothing), in the trial's folder.
    pub(crate) fn command(&self, wrapper: &[&str], arguments: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_harvester");
        let mut words = wrapper.iter().copied().chain([program]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("STATE_DIRECTORY", self.folder.join("state"))
            .env("DHIS2_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(control) = std::env::var_os("HARVESTER_CONTROL") {
            command.env("HARVESTER_CONTROL", control);
        }
        command
    }

    /// Runs the job to its end, or its death.
    pub(crate) fn run(&self) -> Ended {
        Ended::of(self.command(&[], &["run", "job.toml", "--json"]).output().unwrap())
    }

    /// Runs the job with crash points; the exit code, or -1 minus the signal.
    pub(crate) fn run_with(&self, wrapper: &[&str], failpoints: &str) -> i32 {
        let mut command = self.command(wrapper, &["-q", "run", "job.toml", "--json"]);
        let status =
            command.env("FAILPOINTS", failpoints).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        // strace ends by the signal that ended what it traced.
        status.code().unwrap_or_else(|| -1 - status.signal().unwrap_or(0))
    }

    /// Runs the job, kills it after so long; whether it had ended by then.
    pub(crate) fn run_and_kill(&self, life: Duration) -> bool {
        let mut command = self.command(&[], &["-q", "run", "job.toml", "--json"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // A random instant is the point here: nothing is waited for.
        self.scene.server.ledger().wait_until(life, |_| false);
        let ended = child.try_wait().unwrap().is_some();
        // One that has ended cannot be killed.
        let _ = child.kill();
        child.wait().unwrap();
        ended
    }

    /// Runs the job until it is complete, and asserts every byte of the result.
    pub(crate) fn completes(&self, what: &str) -> Ended {
        let ended = self.run();
        ended.assert_code(0, what);
        self.assert_exact(what);
        ended
    }

    /// Asserts that the finished files are the server's truth, byte for byte.
    pub(crate) fn assert_rows(&self, what: &str) {
        let out = self.folder.join("out");
        for (stem, truth) in &self.scene.truth {
            let found = fs::read(out.join(format!("{stem}.ndjson"))).unwrap();
            let same = found.iter().zip(truth).take_while(|(found, true_byte)| found == true_byte).count();
            assert!(found == *truth, "{what}: {stem} differs from byte {same} on ({} of {})", found.len(), truth.len());
        }
    }

    /// Asserts that the finished files are the server's truth but for one row.
    pub(crate) fn assert_rows_but_one(&self, what: &str) {
        let lines = |bytes: &[u8]| bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        for (stem, truth) in &self.scene.truth {
            let (found, truth) =
                (lines(&fs::read(self.folder.join("out").join(format!("{stem}.ndjson"))).unwrap()), lines(truth));
            let kept = truth.iter().filter(|row| found.contains(row));
            assert!(found.iter().eq(kept), "{what}: {stem} has rows of its own, or in another order");
            assert_eq!(found.len() + 1, truth.len(), "{what}: {stem}");
        }
    }

    /// Asserts that the finished files are the server's truth, byte for byte, that the manifest says so, and that nothing
    /// unfinished is left beside them.
    pub(crate) fn assert_exact(&self, what: &str) {
        self.assert_rows(what);
        let out = self.folder.join("out");
        let verified = Ended::of(self.command(&[], &["verify", "job.toml"]).output().unwrap());
        verified.assert_code(0, &format!("{what}: verify"));
        let mut names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name.to_string_lossy().contains(".part") || name.to_string_lossy().starts_with('.'));
        assert!(names.is_empty(), "{what}: {names:?} is left");
    }
}

/// How much of something is to be tried: `PROOF_<WHAT>`, else `usual`.
pub(crate) fn amount(what: &str, usual: u64) -> u64 {
    let set = std::env::var_os(format!("PROOF_{}", what.to_uppercase()));
    set.map_or(usual, |text| text.to_str().and_then(|text| text.parse().ok()).expect("PROOF_* is a number"))
}

/// How many trials run side by side: most of each is waiting.
pub(crate) fn at_once() -> usize {
    usize::try_from(amount("at_once", 6)).unwrap()
}

/// Counts what was tried, for the table of `tests/prove`: a JSON line in the file that `PROOF_TALLY` names.
#[derive(Debug, Default)]
pub(crate) struct Tally(AtomicU64);

impl Tally {
    /// One more.
    pub(crate) fn count(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// So many up to now.
    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Writes the sum down, once nothing has differed.
    pub(crate) fn tell(&self, kind: &str, proof: &str) {
        let trials = self.so_far();
        let Some(path) = std::env::var_os("PROOF_TALLY") else { return };
        static FILE: OnceLock<Mutex<fs::File>> = OnceLock::new();
        let open = || Mutex::new(fs::OpenOptions::new().create(true).append(true).open(Path::new(&path)).unwrap());
        let mut file = FILE.get_or_init(open).lock().unwrap_or_else(PoisonError::into_inner);
        let line = serde_json::json!({ "kind": kind, "proof": proof, "trials": trials });
        writeln!(file, "{line}").unwrap();
    }
}

/// Numbers by lot, the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Lots(u64);

impl Lots {
    /// Printed by whoever fails, so that it can be tried again.
    pub(crate) fn new(seed: u64) -> Self {
        Lots(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }
}
