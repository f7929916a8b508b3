//! A service manager hears when it is ready, how it is doing and what it waits for, and notices a hang.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use dhis2_stand_in::{Body, Fault, FaultRule, Latency, Match, StandIn};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::Pid,
};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::support::{Ended, Place, side_by_side, signal, stand_in, wait_until};

const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";

/// What the unit's `WatchdogSec=` would be. The program tells its pace once a second, so not less than two of them.
const WATCHDOG: Duration = Duration::from_secs(3);

/// A service manager that only listens.
struct Manager {
    /// What has been heard, and when.
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Manager {
    /// Starts the job of a place as its service.
    fn start(place: &Place) -> (Manager, Child) {
        let path = place.file("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let writes = Arc::clone(&heard);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
                writes.lock().unwrap().push((Instant::now(), text));
            }
        });
        let child = place
            .harvester(&["run", "job.toml", "--progress", "none"])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        (Manager { heard }, child)
    }

    /// Every line that has been heard, with its time.
    fn lines(&self) -> Vec<(Instant, String)> {
        let heard = self.heard.lock().unwrap();
        heard.iter().flat_map(|(at, text)| text.lines().map(|line| (*at, line.to_owned()))).collect()
    }

    /// When a line was first heard.
    fn first(&self, is_it: impl Fn(&str) -> bool) -> Option<Instant> {
        self.lines().iter().find(|(_, line)| is_it(line)).map(|(at, _)| *at)
    }

    /// The longest time between two feedings of the watchdog, from `since` on and until now.
    fn longest_without_food(&self, since: Instant) -> Duration {
        let fed = self.lines().into_iter().filter(|(at, line)| line == "WATCHDOG=1" && *at > since).map(|(at, _)| at);
        let times: Vec<Instant> = std::iter::once(since).chain(fed).chain([Instant::now()]).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
    }
}

/// Lets time go by: what is asserted behind it is that nothing happens.
fn let_pass(time: Duration) {
    let until = Instant::now() + time;
    assert!(wait_until(|| Instant::now() >= until));
}

fn slow() -> StandIn {
    stand_in()
        .org_units(3_000)
        .password_check(Duration::from_millis(700))
        .latency(Latency::Constant(Duration::from_millis(80)))
        .start()
        .unwrap()
}

#[test]
fn it_is_ready_after_the_login_says_how_it_is_doing_and_that_it_stops() {
    let server = slow();
    let place = Place::new();
    place.job(server.url(), "in_flight = 1", UNITS);
    let (manager, child) = Manager::start(&place);
    let ended = Ended::of(child.wait_with_output().unwrap());
    ended.assert_code(0, "as a service");
    let lines: Vec<String> = manager.lines().into_iter().map(|(_, line)| line).collect();
    assert_eq!(lines[0], "STATUS=reading the checkpoint", "{lines:?}");
    assert!(lines[1].starts_with("EXTEND_TIMEOUT_USEC="), "{lines:?}");
    let logged_in = server.ledger().requests().into_iter().find(|seen| seen.has_credentials).unwrap().ended.unwrap();
    let ready = manager.first(|line| line == "READY=1").unwrap();
    assert!(ready > logged_in, "ready {:?} before the login", logged_in - ready);
    assert_eq!(lines.iter().filter(|line| *line == "READY=1").count(), 1, "{lines:?}");
    let rows = |line: &str| line.starts_with("STATUS=") && line.contains("partitions, ") && line.contains(" rows (");
    assert!(manager.first(rows).unwrap() >= ready, "{lines:?}");
    assert!(lines.iter().any(|line| line.ends_with(", writing organisationUnits")), "{lines:?}");
    assert!(manager.longest_without_food(ready) < WATCHDOG, "{lines:?}");
    assert!(lines[lines.len() - 3..].contains(&"STOPPING=1".to_owned()), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("STATUS=") && line.contains("3 000 rows")), "{lines:?}");
}

#[test]
fn a_retry_after_of_ten_minutes_is_told_and_does_not_miss_the_watchdog() {
    // In ranges, whose fetchers ask the limiter meanwhile; in one partition, which nobody asks for until then; and before
    // there is a plan.
    side_by_side(vec![(3_000, 20), (600, 12), (600, 2)], 3, |(org_units, from)| is_left_alone(org_units, from));
}

fn is_left_alone(org_units: u32, from: u64) {
    let asked = Fault::Status { code: 503, retry_after: Some("599".into()), body: Body::Html };
    let server = stand_in().org_units(org_units).fault(FaultRule::on(Match::From(from)).act(asked)).start().unwrap();
    let place = Place::new();
    place.job(server.url(), "outage_s = 3600", UNITS);
    let (manager, child) = Manager::start(&place);
    let waits =
        |line: &str| line.starts_with("STATUS=") && line.contains(", waiting 10 min: the source asked clients to wait");
    assert!(wait_until(|| manager.first(waits).is_some()), "{:?}", manager.lines());
    let since = manager.first(waits).unwrap();
    let asked_before = server.ledger().count();
    assert!(asked_before as u64 >= from, "{asked_before} requests");
    let_pass(3 * WATCHDOG);
    assert!(manager.longest_without_food(since) < WATCHDOG, "{:?}", manager.lines());
    assert_eq!(server.ledger().count(), asked_before, "it was asked during its Retry-After");
    signal(&child, Signal::TERM);
    Ended::of(child.wait_with_output().unwrap()).assert_code(143, "SIGTERM");
    assert!(manager.first(|line| line == "STOPPING=1").is_some(), "{:?}", manager.lines());
    assert!(manager.first(|line| line.ends_with("stopping: SIGTERM")).is_some(), "{:?}", manager.lines());
}

#[test]
fn a_server_that_is_gone_at_the_start_is_waited_for_with_words_and_food() {
    let server = stand_in().org_units(60).start().unwrap();
    server.down();
    let place = Place::new();
    place.job(server.url(), "", UNITS);
    let (manager, child) = Manager::start(&place);
    let waits = |line: &str| line.starts_with("STATUS=asking the source, waiting") && line.contains("does not answer");
    assert!(wait_until(|| manager.first(waits).is_some()), "{:?}", manager.lines());
    let since = manager.first(waits).unwrap();
    let_pass(2 * WATCHDOG);
    assert!(manager.longest_without_food(since) < WATCHDOG, "{:?}", manager.lines());
    assert_eq!(manager.first(|line| line == "READY=1"), None);
    server.up();
    Ended::of(child.wait_with_output().unwrap()).assert_code(0, "when it is back");
    assert!(manager.first(|line| line == "READY=1").is_some());
}

/// A thread that stands still until this is dropped, while its process goes on. To be dropped by the thread that made it.
struct Frozen(Pid);

impl Frozen {
    /// Freezes the main thread of a child, where the supervisor lives, and all other actors but the fetchers.
    fn main_thread(child: &Child) -> Self {
        let thread = Pid::from_raw(child.id().try_into().unwrap());
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        Frozen(thread)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // One that has died meanwhile needs no thawing.
        let _ = ptrace::detach(self.0, None);
    }
}

/// What each thread of a process has been doing: its id, and whether it is stopped by a tracer.
fn threads(child: &Child) -> Vec<(u32, bool)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
    let stat = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("stat")).unwrap();
        let state = text.rsplit(") ").next().unwrap().chars().next().unwrap();
        (task.file_name().to_str().unwrap().parse().unwrap(), state == 't')
    };
    tasks.map(|task| stat(task.unwrap())).collect()
}

#[test]
fn a_supervisor_whose_thread_hangs_misses_the_watchdog_and_the_next_process_goes_on() {
    let server = slow();
    let place = Place::new();
    place.job(server.url(), "in_flight = 1", UNITS);
    let (manager, mut child) = Manager::start(&place);
    assert!(wait_until(|| manager.first(|line| line == "READY=1").is_some()), "{:?}", manager.lines());
    assert!(server.ledger().wait_until(Duration::from_secs(30), |seen| seen.len() > 10));
    let frozen = Frozen::main_thread(&child);
    let since = Instant::now();
    let_pass(2 * WATCHDOG);
    let threads = threads(&child);
    assert!(threads.len() > 2, "{threads:?}");
    assert!(threads.iter().all(|(thread, stopped)| *stopped == (*thread == child.id())), "{threads:?}");
    assert!(manager.longest_without_food(since) > WATCHDOG, "{:?}", manager.lines());
    // As the service manager does it then.
    signal(&child, Signal::ABORT);
    drop(frozen);
    child.wait().unwrap();
    let ended = place.run();
    ended.assert_code(0, "the next one");
    assert_eq!(ended.report()["resumed"], true);
    place.assert_exact(&server, "organisationUnits", "the next one");
}
