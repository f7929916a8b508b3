//! One test's folder with its job file, and the program started in it.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use dhis2_stand_in::{Builder, StandIn, User};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

/// The password that the stand-in knows and nothing may show.
pub(crate) const PASSWORD: &str = "district-canary-pw";

/// A stand-in with the user that the jobs name.
pub(crate) fn stand_in() -> Builder {
    StandIn::builder().user(User::superuser("admin", PASSWORD))
}

/// A folder of its own for one test; gone with the value.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    /// An empty folder.
    pub(crate) fn new() -> Self {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes `job.toml` for the server at `url`: `limits` and `extracts` are TOML text.
    pub(crate) fn job(&self, url: &str, limits: &str, extracts: &str) -> &Self {
        let text = format!(
            "version = 1\nname = \"job\"\n\n[source]\nurl = \"{url}\"\nusername = \"admin\"\n\
             password = {{ env = \"DHIS2_PASSWORD\" }}\n\n[limits]\n{limits}\n\n{extracts}\n\n\
             [sink]\nkind = \"files\"\ndirectory = \"out\"\n"
        );
        self.write("job.toml", &text);
        self
    }

    /// Writes a file that only its owner may read.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(self.file(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The program, to be started in this folder.
    pub(crate) fn harvester(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_harvester"));
        command
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("STATE_DIRECTORY", self.file("state"))
            .env("DHIS2_PASSWORD", PASSWORD)
            // What `tests/prove` switches off, it switches off in the program.
            .envs(std::env::var_os("HARVESTER_CONTROL").map(|control| ("HARVESTER_CONTROL", control)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn ends(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.harvester(arguments).output().unwrap())
    }

    /// Runs the job to its end.
    pub(crate) fn run(&self) -> Ended {
        self.ends(&["run", "job.toml", "--json"])
    }

    /// Starts the job and lets it go on.
    pub(crate) fn start(&self) -> Child {
        self.harvester(&["run", "job.toml", "--json"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The lines of a finished file.
    pub(crate) fn rows(&self, stream: &str) -> Vec<String> {
        let text = fs::read(self.file(&format!("out/{stream}.ndjson"))).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{stream} does not end with a line end");
        text.lines().map(str::to_owned).collect()
    }

    /// The manifest.
    pub(crate) fn manifest(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file("out/manifest.json")).unwrap()).unwrap()
    }

    /// Asserts that a finished file is the stand-in's truth, row for row.
    pub(crate) fn assert_exact(&self, stand_in: &StandIn, collection: &str, what: &str) {
        let (rows, truth) = (self.rows(collection), truth(stand_in, collection));
        let first = rows.iter().zip(&truth).position(|(row, true_row)| row != true_row);
        assert_eq!(first.map(|place| (&rows[place], &truth[place])), None, "{what}: a row of {collection} differs");
        assert_eq!(rows.len(), truth.len(), "{what}: rows of {collection}");
    }
}

/// The rows of a finished file: the stand-in's truth, whatever its collation, in the order of the ids' bytes.
pub(crate) fn truth(stand_in: &StandIn, collection: &str) -> Vec<String> {
    let mut rows = Vec::new();
    stand_in.truth_rows(collection, ":owner", |id, row| {
        rows.push((id.to_owned(), String::from_utf8(row.to_vec()).unwrap()));
    });
    rows.sort_unstable();
    rows.into_iter().map(|(_, row)| row).collect()
}

/// How the program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The exit code; -1 after a signal.
    pub(crate) code: i32,
    /// What went to stdout.
    pub(crate) stdout: String,
    /// What went to stderr.
    pub(crate) stderr: String,
}

impl Ended {
    /// Reads what a process left.
    pub(crate) fn of(output: Output) -> Self {
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The report of `run --json`.
    pub(crate) fn report(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no report: {error}\n{self:?}"))
    }

    /// Asserts the exit code, and that the report names the same.
    pub(crate) fn assert_code(&self, code: i32, what: &str) -> &Self {
        assert_eq!(self.code, code, "{what}: {self:#?}");
        self
    }
}

/// Says that a proof cannot happen on this machine.
#[expect(clippy::print_stdout, reason = "a proof that did not happen is said loudly")]
pub(crate) fn not_proved(why: &str) {
    println!("NOT PROVED HERE: {why}");
}

/// Waits until something holds, half a minute at most; whether it does. Asks twenty times a second.
pub(crate) fn wait_until(mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if holds() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        thread::park_timeout(Duration::from_millis(50));
    }
}

/// Sends a signal to a process that was started here.
pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Does `work` for each case, several at a time: most of a run is waiting.
pub(crate) fn side_by_side<T: Send>(cases: Vec<T>, at_once: usize, work: impl Fn(T) + Sync) {
    let (give, take) = mpsc::channel();
    cases.into_iter().for_each(|case| give.send(case).unwrap());
    drop(give);
    let take = std::sync::Mutex::new(take);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let case = take.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                    match case {
                        Ok(case) => work(case),
                        Err(_) => return,
                    }
                }
            });
        }
    });
}
