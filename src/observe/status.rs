//! `status.json`: how a run is doing, for whoever asks while it runs.
//!
//! Replaced atomically about once a second and at each change of state, on a thread of its own: a slow disk must not
//! hold up the engine. A disk that refuses is told once and is no reason to stop. Not durable on purpose: it describes
//! a process, and a process does not survive a power cut.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use harvester_actors::{
    events::Event,
    report::{Outcome, Report, ReportError},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Observer,
    progress::{Phase, Progress},
    report::replace,
};
use crate::exit_code::{exit_code, is_resumable};

/// The file's name within a state folder.
pub const STATUS_FILE: &str = "status.json";
/// The file is replaced at most this often, unless the state changes.
const INTERVAL: Duration = Duration::from_secs(1);

/// The state of a run's process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The job has never run.
    New,
    /// Fetching, or about to.
    Running,
    /// Writing files, or draining before a stop.
    Finishing,
    /// Not running; the same command resumes.
    Stopped,
    /// Over, and all is there.
    Complete,
    /// Over, and something is wrong.
    Failed,
}

/// The file's content: the report so far, and what the process is doing.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// What the process is doing.
    pub state: State,
    /// What everything waits for, if everything waits.
    pub waiting_for: Option<String>,
    /// Until when, RFC 3339, UTC, where somebody knows.
    pub until: Option<String>,
    /// The process.
    pub pid: u32,
    /// Tells that process from a later one of the same number; `null` where the system does not say.
    pub pid_started: Option<u64>,
    /// When this was written, RFC 3339, UTC.
    pub updated_at: String,
    /// How far it has come.
    pub progress: Numbers,
    /// The report; its verdict is `null` while the run goes on.
    #[serde(flatten)]
    pub report: Report<Option<Outcome>, Option<u8>>,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Numbers {
    /// Partitions of the plan.
    pub partitions: u64,
    /// Partitions that are through.
    pub partitions_finished: u64,
    /// 0 to 1, where it can be said.
    pub fraction: Option<f64>,
    /// Over the last 20 s.
    pub rows_per_second: f64,
    /// Over the last 20 s.
    pub requests_per_second: f64,
    /// The job's limit.
    pub requests_per_second_limit: u32,
    /// Requests that are being answered.
    pub in_flight: u32,
    /// How many the controller allows.
    pub in_flight_limit: u32,
    /// How long it will still take, where it can be said.
    pub remaining_seconds: Option<f64>,
    /// The last failure that was not final.
    pub last_failure: Option<String>,
}

impl Status {
    /// The status of a run that goes on.
    fn of(job: &str, progress: &Progress, now: Duration, clock: Timestamp) -> Status {
        let waiting = progress.waiting(now);
        let until = waiting.as_ref().and_then(|(_, remaining)| {
            let until = clock.checked_add(SignedDuration::try_from((*remaining)?).ok()?).ok()?;
            Some(format!("{until:.0}"))
        });
        let state = match &progress.phase {
            Phase::Ended(report) => state_of(report.outcome),
            Phase::Finishing(_) | Phase::Stopping(_) => State::Finishing,
            Phase::Starting | Phase::Running => State::Running,
        };
        Status {
            state,
            waiting_for: waiting.map(|(reason, _)| reason),
            until,
            pid: process::id(),
            pid_started: started(process::id()),
            updated_at: format!("{clock:.3}"),
            progress: Numbers {
                partitions: progress.partitions,
                partitions_finished: progress.partitions_finished,
                fraction: progress.fraction(),
                rows_per_second: progress.rows_per_second(now),
                requests_per_second: progress.requests_per_second(now),
                requests_per_second_limit: progress.pace.requests_per_second_limit,
                in_flight: progress.pace.in_flight,
                in_flight_limit: progress.pace.in_flight_limit,
                remaining_seconds: progress.remaining(now).map(|remaining| remaining.as_secs_f64()),
                last_failure: progress.last_failure.clone(),
            },
            report: progress.report(job, now),
        }
    }

    /// The status as a report whose process is gone.
    pub fn from_report(report: Report) -> Status {
        let (outcome, exit_code) = (report.outcome, report.exit_code);
        Status {
            state: state_of(outcome),
            waiting_for: None,
            until: None,
            pid: 0,
            pid_started: None,
            updated_at: String::new(),
            progress: Numbers::default(),
            report: report.with_verdict(Some(outcome), Some(exit_code)),
        }
    }

    /// The report of a run that is over; `None` while it goes on.
    pub fn ended(&self) -> Option<Report> {
        let (outcome, exit_code) = self.report.outcome.zip(self.report.exit_code)?;
        Some(self.report.clone().with_verdict(outcome, exit_code))
    }

    /// Reads a state folder's status. A process that ended without a clean shutdown is `Stopped`, whatever it wrote last.
    ///
    /// # Errors
    /// `NotFound` when there is none; others when it cannot be read or understood.
    pub fn read(folder: &Path) -> io::Result<Status> {
        let mut status: Status = serde_json::from_slice(&fs::read(folder.join(STATUS_FILE))?)?;
        let is_alive = started(status.pid).is_some() && started(status.pid) == status.pid_started;
        if matches!(status.state, State::Running | State::Finishing) && !is_alive {
            status.state = State::Stopped;
            status.waiting_for = None;
            status.until = None;
            status.report.outcome = Some(Outcome::Interrupted);
            status.report.exit_code = Some(exit_code(Outcome::Interrupted, None));
            status.report.error = Some(ReportError {
                class: "stopped".to_owned(),
                message: format!("process {} ended without a clean shutdown", status.pid),
                next: "run the same command to resume".to_owned(),
            });
        }
        Ok(status)
    }
}

/// The state that an outcome leaves.
fn state_of(outcome: Outcome) -> State {
    match outcome {
        Outcome::Complete => State::Complete,
        outcome if is_resumable(outcome) => State::Stopped,
        _ => State::Failed,
    }
}

/// When a process started, in ticks since the machine did: field 22 of `/proc/PID/stat`; `None` when it is not there.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may hold blanks and brackets itself.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// What is to be written next.
#[derive(Debug, Default)]
struct Slot {
    /// The newest status; a newer one replaces it.
    next: Option<Status>,
    /// Nothing comes any more.
    closed: bool,
}

/// Keeps `status.json` and, at the end, `report.json`.
#[derive(Debug)]
pub struct StatusObserver {
    /// The job.
    job: String,
    /// The state folder.
    folder: PathBuf,
    /// Kept between events.
    state: Mutex<StatusState>,
    /// What the thread writes next.
    slot: Arc<(Mutex<Slot>, Condvar)>,
    /// The thread.
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// State between events.
#[derive(Debug, Default)]
struct StatusState {
    /// When a status was last handed to the thread.
    written: Option<Duration>,
    /// The run has begun, so the folder is ours to write to.
    is_ours: bool,
}

impl StatusObserver {
    /// An observer of one run, writing into its state folder from the first event of the run on.
    ///
    /// A run that never begins (locked, or another job's folder) writes nothing.
    ///
    /// # Errors
    /// When the thread cannot be made.
    pub fn new(job: &str, folder: &Path) -> io::Result<Self> {
        let slot: Arc<(Mutex<Slot>, Condvar)> = Arc::default();
        let (shared, path) = (Arc::clone(&slot), folder.join(STATUS_FILE));
        let writer = thread::Builder::new().name("status".to_owned()).spawn(move || write_all(&shared, &path))?;
        Ok(StatusObserver {
            job: job.to_owned(),
            folder: folder.to_owned(),
            state: Mutex::default(),
            slot,
            writer: Mutex::new(Some(writer)),
        })
    }

    /// Waits until the last status is written.
    fn close(&self) {
        self.slot.0.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.slot.1.notify_one();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }
}

/// The thread: writes the newest status until nothing comes any more.
fn write_all(slot: &(Mutex<Slot>, Condvar), path: &Path) {
    let mut has_warned = false;
    loop {
        let status = {
            let guard = slot.0.lock().unwrap_or_else(PoisonError::into_inner);
            let mut guard = slot
                .1
                .wait_while(guard, |slot| slot.next.is_none() && !slot.closed)
                .unwrap_or_else(PoisonError::into_inner);
            match guard.next.take() {
                Some(status) => status,
                None => return,
            }
        };
        let text = serde_json::to_vec(&status).unwrap_or_default();
        match replace(path, &text) {
            Ok(()) => has_warned = false,
            Err(error) if !has_warned => {
                has_warned = true;
                tracing::warn!(%error, path = %path.display(), "cannot write the status; the run continues");
            }
            Err(_) => {}
        }
    }
}

impl Observer for StatusObserver {
    fn observe(&self, event: &Event, progress: &Progress, now: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let end = match event {
            Event::RunEnded(report) => Some(report),
            _ => {
                state.is_ours = true;
                None
            }
        };
        if !state.is_ours {
            return;
        }
        let is_due = state.written.is_none_or(|written| now.saturating_sub(written) >= INTERVAL);
        if is_due || end.is_some() || is_turn(event) {
            state.written = Some(now);
            let status = Status::of(&self.job, progress, now, Timestamp::now());
            self.slot.0.lock().unwrap_or_else(PoisonError::into_inner).next = Some(status);
            self.slot.1.notify_one();
        }
        if let Some(report) = end {
            self.close();
            if let Err(error) = super::report::keep(report, &self.folder) {
                tracing::warn!(%error, folder = %self.folder.display(), "cannot keep the report");
            }
        }
    }
}

/// Whether an event changes the state.
fn is_turn(event: &Event) -> bool {
    matches!(event, Event::PlanReady { .. } | Event::Finishing { .. } | Event::Stopping { .. })
}

impl Drop for StatusObserver {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use harvester_actors::events::{Listener as _, Pace, Waiting};

    use super::*;
    use crate::observe::{Observers, progress::tests::half_way, report::without_run};

    fn recovered() -> Event {
        Event::Recovered { resumed_run: None, cut_bytes: 0, rebuilt: None }
    }

    #[test]
    fn a_status_has_every_key_of_a_report() {
        let mut report = without_run("x", Outcome::Complete, "", "");
        report.left_out.insert("a".to_owned(), "b".to_owned());
        report.watermarks.insert("a".to_owned(), "b".to_owned());
        report.warnings.push("a".to_owned());
        let keys = serde_json::to_value(&report).unwrap();
        let status = serde_json::to_value(Status::from_report(report)).unwrap();
        for key in keys.as_object().unwrap().keys() {
            assert_eq!(status.get(key), keys.get(key), "{key}");
        }
        for key in ["state", "waiting_for", "until"] {
            assert!(status.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn a_wait_is_told_with_its_end() {
        let (mut progress, now) = half_way();
        let waiting = Waiting { reason: "Retry-After".to_owned(), remaining: Some(Duration::from_secs(40)) };
        progress.apply(&Event::Pace(Pace { waiting: Some(waiting), ..Pace::default() }), now);
        let clock: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let status = Status::of("x", &progress, now, clock);
        assert_eq!(status.waiting_for.as_deref(), Some("Retry-After"));
        assert_eq!(status.until.as_deref(), Some("2026-01-01T00:00:40Z"));
        assert_eq!(status.state, State::Running);
    }

    #[test]
    fn the_end_is_on_the_disk_when_it_has_been_heard() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Observers::default().with(StatusObserver::new("x", folder.path()).unwrap());
        listener.on_event(&recovered());
        let mut report = without_run("x", Outcome::Interrupted, "stopped", "go on");
        report.exit_code = 143;
        listener.on_event(&Event::RunEnded(Arc::new(report.clone())));
        let status = Status::read(folder.path()).unwrap();
        assert_eq!((status.state, status.report.exit_code), (State::Stopped, Some(143)));
        let kept: Report =
            serde_json::from_slice(&fs::read(folder.path().join(super::super::report::REPORT_FILE)).unwrap()).unwrap();
        assert_eq!(kept, report);
    }

    #[test]
    fn a_run_that_never_began_leaves_the_folder_of_another_alone() {
        let folder = tempfile::tempdir().unwrap();
        let listener = Observers::default().with(StatusObserver::new("x", folder.path()).unwrap());
        listener.on_event(&Event::RunEnded(Arc::new(without_run("x", Outcome::Locked, "", ""))));
        drop(listener);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_that_is_gone_is_stopped_and_a_living_one_runs() {
        let folder = tempfile::tempdir().unwrap();
        let write = |pid, pid_started| {
            let mut status = Status::of("x", &Progress::default(), Duration::ZERO, Timestamp::now());
            status.pid = pid;
            status.pid_started = pid_started;
            fs::write(folder.path().join(STATUS_FILE), serde_json::to_vec(&status).unwrap()).unwrap();
            Status::read(folder.path()).unwrap()
        };
        assert_eq!(write(process::id(), started(process::id())).state, State::Running);
        // The number now belongs to another process.
        let other = write(process::id(), Some(1));
        assert_eq!((other.state, other.report.exit_code), (State::Stopped, Some(130)));
        assert!(other.report.error.unwrap().message.contains("ended without a clean shutdown"));
        assert_eq!(write(u32::MAX, Some(1)).state, State::Stopped);
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_nothing() {
        let listener = Observers::default().with(StatusObserver::new("x", Path::new("/nonexistent")).unwrap());
        listener.on_event(&recovered());
        listener.on_event(&Event::RunEnded(Arc::new(without_run("x", Outcome::Complete, "", ""))));
    }
}
