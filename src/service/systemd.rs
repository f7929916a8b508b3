//! Tells the service manager how the run is doing, and that it is alive.
//!
//! Alive means two things: the supervisor tells its pulse, and something has been heard lately that shows progress, or a
//! known wait with an end. The watchdog is fed by the pulse and by nothing else, no timer of its own and no page that still
//! arrives: when the supervisor hangs, the service manager restarts the process, which resumes.

use std::{
    io,
    os::unix::{ffi::OsStrExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use harvester_actors::events::Event;

use crate::observe::{Observer, fetched_bytes, numbers::count, progress::Phase, progress::Progress, waits};

/// `STATUS=` is told at most this often, unless the phase changes, or a wait begins or ends.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Asked for while recovering or draining, which may take longer than the unit's timeouts.
const EXTENSION: Duration = Duration::from_secs(60);
/// Without any progress and without a known wait for this long, the watchdog is no longer fed: longer than the longest
/// answer a server may think about at the defaults.
const PATIENCE_MIN: Duration = Duration::from_secs(900);

/// Where the service manager listens.
#[derive(Debug)]
enum Address {
    /// A socket in the file system.
    Path(PathBuf),
    /// A socket in Linux's abstract name space.
    Abstract(Vec<u8>),
}

/// Tells the service manager what happens. Does nothing where there is none.
#[derive(Debug)]
pub struct SystemdObserver {
    /// Where to, and through what; `None` outside of a service.
    socket: Option<(UnixDatagram, Address)>,
    /// How often the watchdog wants to be fed; `None`: never.
    watchdog: Option<Duration>,
    /// How long nothing may happen before it is a hang.
    patience: Duration,
    /// Kept between events.
    state: Mutex<SystemdState>,
}

/// State between events.
#[derive(Debug, Default)]
struct SystemdState {
    /// When something last showed that the run is alive.
    alive: Duration,
    /// Requests sent and in flight when last told: a change shows life.
    requests: (u64, u32),
    /// When the watchdog was last fed.
    fed: Option<Duration>,
    /// When `STATUS=` was last told.
    told: Option<Duration>,
    /// Whether the `STATUS=` that was told last said that the run waits.
    told_waiting: bool,
    /// `READY=1` has been said.
    is_ready: bool,
}

impl SystemdObserver {
    /// An observer for the service manager of this process.
    ///
    /// - `notify_socket`, `watchdog_usec`: the environment variables `NOTIFY_SOCKET` and `WATCHDOG_USEC`.
    /// - `first_byte_timeout`: how long the job lets the server think; the watchdog is at least that patient.
    ///
    /// # Errors
    /// When the service manager cannot be reached although it says it can.
    pub fn new(
        notify_socket: Option<&std::ffi::OsStr>,
        watchdog_usec: Option<&str>,
        first_byte_timeout: Duration,
    ) -> io::Result<Self> {
        let socket = match notify_socket.filter(|path| !path.is_empty()) {
            None => None,
            Some(path) => {
                let address = match path.as_bytes() {
                    [b'@', name @ ..] => Address::Abstract(name.to_vec()),
                    _ => Address::Path(Path::new(path).to_owned()),
                };
                Some((UnixDatagram::unbound()?, address))
            }
        };
        let usec: Option<u64> = watchdog_usec.and_then(|text| text.parse().ok()).filter(|usec| *usec > 0);
        let listener = SystemdObserver {
            socket,
            // Half of what the service manager waits: one message may be late.
            watchdog: usec.map(|usec| Duration::from_micros(usec) / 2),
            patience: PATIENCE_MIN.max(first_byte_timeout + Duration::from_secs(60)),
            state: Mutex::default(),
        };
        listener.send(&format!("STATUS=reading the checkpoint\nEXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()));
        Ok(listener)
    }

    /// Sends one message. A service manager that does not listen is no reason to stop a harvest.
    fn send(&self, message: &str) {
        use std::os::linux::net::SocketAddrExt as _;
        let Some((socket, address)) = &self.socket else { return };
        let sent = match address {
            Address::Path(path) => socket.send_to(message.as_bytes(), path),
            Address::Abstract(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|address| socket.send_to_addr(message.as_bytes(), &address)),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }

    /// The messages for an event, given the time since the beginning.
    fn messages(&self, state: &mut SystemdState, event: &Event, progress: &Progress, now: Duration) -> Vec<String> {
        let mut messages = Vec::new();
        let has_wait_with_end =
            || progress.waiting(now).is_some_and(|(_, remaining)| remaining.is_some_and(|left| !left.is_zero()));
        let shows_life = match event {
            // A pace comes by the clock: it shows life only when it tells of something new.
            Event::Pace(pace) => {
                let requests = (pace.requests, pace.in_flight);
                let is_new = std::mem::replace(&mut state.requests, requests) != requests;
                // A large stream may be sorted and hashed for longer than anybody should be patient with a source.
                let writes_files = matches!(progress.phase, Phase::Finishing(_));
                is_new || writes_files || has_wait_with_end()
            }
            Event::Recovered { .. }
            | Event::SourceWaitedFor { .. }
            | Event::SourceIdentified(_)
            | Event::PlanReady { .. }
            | Event::PlanExtended { .. }
            | Event::PageWritten { .. }
            | Event::SpanCommitted { .. }
            | Event::PartitionFinished(_)
            | Event::PartitionReturned { .. }
            | Event::PartitionFailed { .. }
            | Event::FetcherDied { .. }
            | Event::Reconciled { .. }
            | Event::Finishing { .. }
            | Event::Stopping { .. }
            | Event::RunEnded(_) => true,
        };
        if shows_life {
            state.alive = now;
        }
        let extension = format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros());
        match event {
            Event::PlanReady { .. } if !state.is_ready => {
                state.is_ready = true;
                messages.push("READY=1".to_owned());
            }
            Event::Recovered { .. } | Event::SourceIdentified(_) if !state.is_ready => messages.push(extension),
            Event::Stopping { .. } => messages.extend(["STOPPING=1".to_owned(), extension]),
            Event::RunEnded(_) => messages.push("STOPPING=1".to_owned()),
            // Counting what is to be planned may take long, and so may a wait.
            Event::Pace(_) if !state.is_ready && shows_life => messages.push(extension),
            // Draining may take a page's time.
            Event::Pace(_) if matches!(progress.phase, Phase::Stopping(_)) && shows_life => {
                messages.push(extension);
            }
            _ => {}
        }
        let is_turn = matches!(
            event,
            Event::PlanReady { .. } | Event::Finishing { .. } | Event::Stopping { .. } | Event::RunEnded(_)
        );
        let is_waiting = waits(progress, now).is_some();
        let is_turn = is_turn || is_waiting != state.told_waiting;
        if is_turn || state.told.is_none_or(|told| now.saturating_sub(told) >= STATUS_INTERVAL) {
            state.told = Some(now);
            state.told_waiting = is_waiting;
            messages.push(format!("STATUS={}", status(progress, now)));
        }
        if let (Some(interval), Event::Pace(_)) = (self.watchdog, event) {
            let is_due = state.fed.is_none_or(|fed| now.saturating_sub(fed) >= interval);
            if is_due && now.saturating_sub(state.alive) < self.patience {
                state.fed = Some(now);
                messages.push("WATCHDOG=1".to_owned());
            }
        }
        messages
    }
}

/// `12/40 partitions, 1 234 567 rows (1.1 GiB), waiting 40 s: Retry-After`
fn status(progress: &Progress, now: Duration) -> String {
    let sums = format!(
        "{}/{} partitions, {} rows ({})",
        progress.partitions_finished,
        progress.partitions,
        count(progress.rows()),
        fetched_bytes(progress)
    );
    let phase = match &progress.phase {
        Phase::Starting => {
            let waits = waits(progress, now).map_or_else(String::new, |waits| format!(", {waits}"));
            return format!("asking the source{waits}");
        }
        Phase::Running => waits(progress, now),
        Phase::Finishing(stream) => Some(format!("writing {stream}")),
        Phase::Stopping(reason) => Some(format!("stopping: {reason}")),
        Phase::Ended(report) => Some(report.outcome.as_str().to_owned()),
    };
    // One line: a line end would begin another message.
    let text = phase.map_or(sums.clone(), |phase| format!("{sums}, {phase}"));
    text.replace(['\n', '\r'], " ")
}

impl Observer for SystemdObserver {
    fn observe(&self, event: &Event, progress: &Progress, now: Duration) {
        if self.socket.is_none() {
            return;
        }
        let messages = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            self.messages(&mut state, event, progress, now)
        };
        if !messages.is_empty() {
            self.send(&messages.join("\n"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use harvester_actors::{
        events::{Listener as _, Pace, Waiting},
        partition::PartitionId,
        report::Outcome,
    };

    use super::*;
    use crate::observe::{Observers, report::without_run};

    fn plan_made() -> Event {
        Event::PlanReady {
            run_id: "r".to_owned(),
            streams: [].into(),
            left_out: Vec::new(),
            partitions: 0,
            finished: 0,
            committed: Vec::new(),
        }
    }

    fn pace(requests: u64, waiting: Option<Duration>) -> Event {
        let waiting = waiting.map(|left| Waiting { reason: "Retry-After".to_owned(), remaining: Some(left) });
        Event::Pace(Pace { requests, waiting, ..Pace::default() })
    }

    /// How often the watchdog is fed within an hour of events, one a second.
    fn feedings(event: impl Fn(u64) -> Event) -> Vec<u64> {
        let listener = SystemdObserver::new(None, Some("60000000"), Duration::from_secs(600)).unwrap();
        let mut state = listener.state.lock().unwrap();
        let (mut progress, mut fed) = (Progress::default(), Vec::new());
        for second in 0..3600 {
            let (event, now) = (event(second), Duration::from_secs(second));
            progress.apply(&event, now);
            let messages = listener.messages(&mut state, &event, &progress, now);
            if messages.iter().any(|message| message == "WATCHDOG=1") {
                fed.push(second);
            }
        }
        fed
    }

    #[test]
    fn the_watchdog_is_fed_while_there_is_progress_or_a_known_wait_and_not_in_a_hang() {
        let working = feedings(|second| pace(second, None));
        let waiting = feedings(|second| pace(0, Some(Duration::from_secs(3601 - second))));
        for fed in [&working, &waiting] {
            assert!(fed.windows(2).all(|pair| pair[1] - pair[0] <= 30), "{fed:?}");
            assert!(*fed.last().unwrap() >= 3570);
        }
        let hanging = feedings(|_| pace(7, None));
        assert!(*hanging.last().unwrap() <= PATIENCE_MIN.as_secs(), "{hanging:?}");
        assert!(!hanging.is_empty());
        let unsupervised = feedings(|second| Event::PartitionFinished(PartitionId(u32::try_from(second).unwrap())));
        assert!(unsupervised.is_empty(), "partitions that finish are no pulse: {unsupervised:?}");
    }

    #[test]
    fn the_start_may_take_as_long_as_something_moves_or_is_waited_for() {
        let listener = SystemdObserver::new(None, None, Duration::ZERO).unwrap();
        let mut state = listener.state.lock().unwrap();
        let mut progress = Progress::default();
        let mut is_extended = |event: &Event, second| {
            let now = Duration::from_secs(second);
            progress.apply(event, now);
            let messages = listener.messages(&mut state, event, &progress, now);
            messages.iter().any(|message| message.starts_with("EXTEND_TIMEOUT_USEC="))
        };
        assert!(is_extended(&pace(1, None), 1));
        assert!(!is_extended(&pace(1, None), 2), "nothing moves");
        assert!(is_extended(&pace(1, Some(Duration::from_secs(599))), 3));
        is_extended(&plan_made(), 4);
        assert!(!is_extended(&pace(9, None), 5), "it is ready");
    }

    #[test]
    fn a_wait_is_told_when_it_begins_and_when_it_ends() {
        let listener = SystemdObserver::new(None, None, Duration::ZERO).unwrap();
        let mut state = listener.state.lock().unwrap();
        let (mut progress, mut told) = (Progress::default(), Vec::new());
        for second in 0..8_u64 {
            let left = (2..5).contains(&second).then(|| Duration::from_secs(600));
            let event = if second == 0 { plan_made() } else { pace(second, left) };
            let now = Duration::from_secs(second);
            progress.apply(&event, now);
            let messages = listener.messages(&mut state, &event, &progress, now);
            told.extend(
                messages.into_iter().filter(|m| m.starts_with("STATUS=")).map(|m| (second, m.contains("waiting"))),
            );
        }
        assert_eq!(told, [(0, false), (2, true), (5, false)]);
    }

    #[test]
    fn the_service_manager_hears_ready_status_and_stopping() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let observer = SystemdObserver::new(Some(path.as_os_str()), None, Duration::ZERO).unwrap();
        let listener = Observers::default().with(observer);
        let hear = || {
            let mut buffer = [0; 4096];
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert!(hear().starts_with("STATUS=reading the checkpoint\nEXTEND_TIMEOUT_USEC="));
        listener.on_event(&plan_made());
        assert_eq!(hear(), "READY=1\nSTATUS=0/0 partitions, 0 rows (0 B)");
        listener.on_event(&Event::Stopping { reason: "SIGTERM".to_owned() });
        let said = hear();
        assert!(
            said.starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=60000000\nSTATUS=")
                && said.ends_with("stopping: SIGTERM")
        );
        listener.on_event(&Event::RunEnded(Arc::new(without_run("x", Outcome::Interrupted, "", ""))));
        assert!(hear().contains("STOPPING=1"));
    }

    #[test]
    fn an_abstract_socket_is_heard_too() {
        use std::os::linux::net::SocketAddrExt as _;
        let name = format!("harvester-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let path = std::ffi::OsString::from(format!("@{name}"));
        let _listener = SystemdObserver::new(Some(&path), None, Duration::ZERO).unwrap();
        let mut buffer = [0; 4096];
        assert!(manager.recv(&mut buffer).unwrap() > 0);
    }

    #[test]
    fn outside_of_a_service_nothing_is_sent() {
        let listener = SystemdObserver::new(None, None, Duration::ZERO).unwrap();
        listener.observe(&plan_made(), &Progress::default(), Duration::ZERO);
        assert!(!listener.state.lock().unwrap().is_ready);
    }

    /// What `systemd-analyze` says of the unit in `jobs/`; `None` where there is no systemd on this machine.
    fn analysed(arguments: &[&str]) -> Option<(bool, String)> {
        let folder = tempfile::tempdir().unwrap();
        let unit = include_str!("../../jobs/harvester@.service").replace("/usr/local/bin/harvester", "/bin/true");
        let path = folder.path().join("harvester@test.service");
        std::fs::write(&path, unit).unwrap();
        let output = std::process::Command::new("systemd-analyze").args(arguments).arg(&path).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    #[test]
    fn systemd_finds_nothing_wrong_with_the_unit_and_little_exposed() {
        let Some((is_right, said)) = analysed(&["verify"]) else { return };
        // It prints misspelt keys, and exits with 0 all the same.
        assert!(is_right && said.is_empty(), "{said}");
        let Some((is_tight, said)) = analysed(&["security", "--offline=true", "--threshold=15"]) else { return };
        assert!(is_tight, "{said}");
    }

    #[test]
    fn the_unit_is_not_restarted_where_trying_again_helps_nobody() {
        use crate::exit_code;
        let unit = include_str!("../../jobs/harvester@.service");
        let line = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus=")).unwrap();
        let codes: Vec<u8> = line.split(' ').map(|code| code.parse().unwrap()).collect();
        assert_eq!(
            codes,
            [
                exit_code::USAGE,
                exit_code::REJECTED,
                exit_code::MISMATCH,
                exit_code::DENIED,
                exit_code::REFUSED,
                exit_code::LIMIT,
                exit_code::LOCKED,
                exit_code::DAMAGED,
                exit_code::CHANGED,
                exit_code::INVALID,
            ]
        );
    }
}
