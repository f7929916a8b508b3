//! Events become log lines, at the level of whoever has to read them.
//!
//! error: act now, or data was lost; warn: recovered; info: once per job or phase; debug: per partition, and, where it is asked
//! for, per page.
//! Other people's crates are heard from `warn` up and never below, whatever is asked for: at `trace`, an HTTP library
//! writes headers, and headers hold credentials.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use harvester_actors::{events::Event, report::Outcome};
use jiff::{SignedDuration, Timestamp};
use tracing::{Level, debug, error, info, level_filters::LevelFilter, warn};
use tracing_subscriber::{Layer as _, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::{
    Observer,
    block::plain_line,
    progress::Progress,
    screen::{PLAIN_INTERVAL, ProgressMode, Screen},
    waits::{Telling, Wait, WaitTeller},
};

/// Our own crates.
const OURS: [&str; 5] = ["dhis2_harvester", "harvester", "harvester_actors", "harvester_pacing", "dhis2"];

/// What is said of each page, at `debug`: a release build has no `trace`, which other people's crates would fill.
const PAGES: &str = "harvester::pages";

/// How log lines look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line. Everything on stderr is one then: progress and report too.
    Json,
}

/// Which lines are wanted.
///
/// - `quiet`: how often `-q` was given; once leaves warnings and errors, twice errors.
/// - `verbose`: how often `-v` was given; once adds partitions, twice pages.
pub fn level(quiet: u8, verbose: u8, mode: ProgressMode) -> Level {
    match (quiet, verbose) {
        (0, 0) if mode == ProgressMode::Bar => Level::WARN,
        (0, 0) => Level::INFO,
        (0, 1) => Level::DEBUG,
        (0, _) => Level::TRACE,
        (1, _) => Level::WARN,
        (_, _) => Level::ERROR,
    }
}

/// Which crates are heard at which level.
fn targets(level: Level) -> Targets {
    let others = LevelFilter::from_level(level.min(Level::WARN));
    // What sled finds wrong with a database, the checkpoint store tells in words that help.
    let sled = if level >= Level::DEBUG { others } else { LevelFilter::OFF };
    let pages = if level >= Level::TRACE { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let targets = Targets::new().with_default(others).with_target("sled", sled).with_target(PAGES, pages);
    OURS.into_iter().fold(targets, |targets, ours| targets.with_target(ours, level))
}

/// Sets the log up, once a process; a second call changes nothing.
///
/// - `colours`: stderr is a terminal and nobody asked for `NO_COLOR`.
pub fn init(format: LogFormat, level: Level, colours: bool, screen: &Screen) {
    let targets = targets(level);
    let registry = tracing_subscriber::registry();
    // Somebody who embeds the library may have set up a log of their own: theirs stays.
    let _ = match format {
        LogFormat::Text => {
            let layer = fmt::layer().with_writer(screen.clone()).with_ansi(colours).with_target(level >= Level::TRACE);
            registry.with(layer.with_filter(targets)).try_init()
        }
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_current_span(false).with_span_list(false);
            registry.with(layer.with_writer(screen.clone()).with_filter(targets)).try_init()
        }
    };
}

/// So long from now, by the clock on the wall: RFC 3339, UTC.
pub(crate) fn clock(from_now: Duration) -> Option<String> {
    let then = Timestamp::now().checked_add(SignedDuration::try_from(from_now).ok()?).ok()?;
    Some(format!("{then:.0}"))
}

/// Writes a log line for each event that is worth one.
#[derive(Debug)]
pub struct LogObserver {
    /// The job.
    job: String,
    /// Kept between events.
    state: Mutex<LogState>,
    /// Whether progress itself goes to the log: with JSON, where nothing else may stand on stderr.
    tells_progress: bool,
    /// Whether a block on the terminal shows what it waits for.
    has_block: bool,
    /// How long a source may be gone.
    outage: Duration,
}

/// State between events.
#[derive(Debug, Default)]
struct LogState {
    /// When progress was last told.
    told: Duration,
    /// Which waits have been told.
    waits: WaitTeller,
    /// Whether it has been told that files are written.
    is_finishing: bool,
}

impl LogObserver {
    /// An observer of one run of a job that lets its source be gone for `outage`.
    pub fn new(job: &str, format: LogFormat, mode: ProgressMode, outage: Duration) -> Self {
        let (tells_progress, has_block) = (format == LogFormat::Json, mode == ProgressMode::Bar);
        LogObserver { job: job.to_owned(), state: Mutex::default(), tells_progress, has_block, outage }
    }

    /// Tells what it waits for, where that is news.
    fn tell_wait(&self, telling: Telling, progress: &Progress, now: Duration) {
        let job = self.job.as_str();
        let Wait { reason, remaining } = match telling {
            Telling::Waits(wait) => wait,
            Telling::Over(lasted) => return info!(job, waited_s = lasted.as_secs(), "no longer waiting"),
        };
        let until = remaining.and_then(clock);
        let gives_up_at = clock(progress.gives_up(self.outage).saturating_sub(now));
        let last_failure = progress.last_failure.as_deref();
        // A slow answer is no trouble yet, and a block shows it all the time.
        if self.has_block || progress.is_quiet(now) {
            info!(job, until, last_failure, "waiting: {reason}");
        } else {
            warn!(job, until, gives_up_at, last_failure, "waiting: {reason}");
        }
    }
}

impl Observer for LogObserver {
    fn observe(&self, event: &Event, progress: &Progress, now: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let job = self.job.as_str();
        match event {
            Event::Recovered { resumed_run, cut_bytes, rebuilt } => {
                if let Some(why) = rebuilt {
                    warn!(job, why, "checkpoint store rebuilt from the spool");
                }
                match resumed_run {
                    Some(run) => info!(job, run, cut_bytes, "resuming an unfinished run"),
                    None => info!(job, "starting a new run"),
                }
            }
            // Told as the wait that it is, and not for each attempt.
            Event::SourceWaitedFor { class, attempts, delay, .. } => {
                debug!(job, class = class.as_str(), attempts, delay_s = delay.as_secs_f64(), "asked again");
            }
            Event::SourceIdentified(source) => {
                info!(job, url = %source.url, version = %source.version, "source answers");
            }
            Event::PlanReady { run_id, streams, left_out, partitions, finished, .. } => {
                info!(job, run = %run_id, streams = streams.len(), partitions, finished, "plan ready");
                if !left_out.is_empty() {
                    // One line: a server offers dozens of collections that are parts of others.
                    let collections = left_out.len();
                    info!(job, collections, "left out of `[\"*\"]`; -v and the report name each with its reason");
                }
                for left in left_out {
                    debug!(job, stream = %left.stream, reason = %left.reason, "left out");
                }
            }
            Event::PlanExtended { partitions } => debug!(job, partitions, "plan extended"),
            Event::PageWritten { stream, partition, counts, .. } => {
                let stream = progress.stream(*stream);
                debug!(target: PAGES, job, stream, %partition, rows = counts.kept, bytes = counts.bytes, "page written");
                if counts.rejected > 0 {
                    warn!(job, stream, %partition, rows = counts.rejected, "rows rejected");
                }
            }
            Event::SpanCommitted { pages, rows, spool_bytes } => {
                debug!(target: PAGES, job, pages, rows, spool_bytes, "committed")
            }
            Event::PartitionFinished(partition) => {
                debug!(job, %partition, "partition finished");
            }
            Event::PartitionReturned { partition, class, message, attempt, delay } => {
                let (class, delay_s) = (class.as_str(), delay.as_secs_f64());
                warn!(job, partition = partition.key, class, attempt, delay_s, error = %message, "page failed; will retry");
            }
            Event::PartitionFailed { partition, left_out, class, message, .. } => {
                let (partition, class) = (&partition.key, class.as_str());
                if *left_out {
                    debug!(job, %partition, class, error = %message, "left out");
                } else {
                    error!(job, %partition, class, error = %message, "partition given up");
                }
            }
            Event::FetcherDied { partition } => {
                let partition = partition.as_ref().map_or("", |partition| partition.key.as_str());
                error!(job, %partition, "fetcher panicked; its partition was returned");
            }
            Event::Reconciled { stream, reconciled } => {
                let (appeared, vanished) = (reconciled.appeared, reconciled.vanished);
                info!(job, stream = progress.stream(*stream), appeared, vanished, "numbers compared with the server's");
            }
            Event::Pace(_) => {}
            Event::Finishing { stream } => {
                if !std::mem::replace(&mut state.is_finishing, true) {
                    info!(job, streams = progress.streams.len(), "writing the files");
                }
                debug!(job, stream = progress.stream(*stream), "writing the file");
            }
            Event::Stopping { reason } => info!(job, reason = %reason, "stopping; pages in flight are being finished"),
            Event::RunEnded(report) => {
                let outcome = report.outcome.as_str();
                let rows: u64 = report.streams.values().map(|stream| stream.rows).sum();
                let (requests, retries, seconds) = (report.requests, report.retries, report.seconds);
                match (&report.error, report.outcome) {
                    // People read the report, which says the same.
                    _ if !self.tells_progress => debug!(job, outcome, rows, requests, retries, seconds, "run ended"),
                    (_, Outcome::Complete) => info!(job, outcome, rows, requests, retries, seconds, "run ended"),
                    (Some(failure), _) => {
                        let (message, next) = (&failure.message, &failure.next);
                        error!(job, outcome, exit_code = report.exit_code, rows, requests, retries, seconds,
                            error = %message, next = %next, "run ended");
                    }
                    _ => {
                        info!(job, outcome, exit_code = report.exit_code, rows, requests, retries, seconds, "run ended")
                    }
                }
            }
        }
        let waiting = progress.waiting(now).map(|(reason, remaining)| Wait { reason, remaining });
        if !matches!(event, Event::RunEnded(_)) {
            let telling = state.waits.update(waiting, now);
            if let Some(telling) = telling {
                self.tell_wait(telling, progress, now);
            }
        }
        if self.tells_progress && now.saturating_sub(state.told) >= PLAIN_INTERVAL {
            state.told = now;
            let progress = plain_line(job, progress, now);
            info!(job, %progress, "progress");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_decide_the_level() {
        use ProgressMode::{Bar, Plain};
        let table = [
            (0, 0, Bar, Level::WARN),
            (0, 0, Plain, Level::INFO),
            (0, 1, Bar, Level::DEBUG),
            (0, 2, Plain, Level::TRACE),
            (1, 0, Plain, Level::WARN),
            (2, 0, Plain, Level::ERROR),
        ];
        for (quiet, verbose, mode, expected) in table {
            assert_eq!(level(quiet, verbose, mode), expected);
        }
    }

    #[test]
    fn pages_are_told_from_vv_on_at_a_level_that_a_release_build_has() {
        let told = |verbose| targets(level(0, verbose, ProgressMode::Plain)).would_enable(PAGES, &Level::DEBUG);
        assert_eq!([told(0), told(1), told(2), told(3)], [false, false, true, true]);
        assert!(Level::DEBUG <= tracing::level_filters::STATIC_MAX_LEVEL, "compiled out");
    }

    #[test]
    fn nobody_elses_headers_are_logged_at_trace() {
        let targets = targets(Level::TRACE);
        assert!(targets.would_enable("dhis2::transport", &Level::TRACE));
        for other in ["awc::client", "actix_http::h1", "h2::codec", "rustls::conn"] {
            assert!(!targets.would_enable(other, &Level::INFO), "{other}");
        }
        assert!(targets.would_enable("sled", &Level::WARN) && targets.would_enable("awc", &Level::WARN));
        let usual = super::targets(Level::INFO);
        assert!(!usual.would_enable("sled", &Level::ERROR) && usual.would_enable("awc", &Level::WARN));
    }
}
