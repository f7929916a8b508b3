//! How far a run has come: made of events alone, without a clock or a screen of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use harvester_actors::{
    checkpoint::PassTotals,
    events::{Event, Pace},
    partition::{PartitionId, SourceIdentity, Stream, StreamId, Yield},
    report::{Outcome, Report, StreamReport},
};

/// Speeds are those of the last this much time.
const SPEED_WINDOW: Duration = Duration::from_secs(20);
/// Samples are at least this far apart, which bounds how many there are.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// A first answer that takes longer is waited for.
const FIRST_ANSWER_QUIET: Duration = Duration::from_secs(2);
/// The same of any later one: many servers think that long about a page.
const ANSWER_QUIET: Duration = Duration::from_secs(10);
/// An estimate from less than this is a guess nobody should read.
const ESTIMATE_AFTER: Duration = Duration::from_secs(3);

/// In which part of its life a run is.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Phase {
    /// Reading the checkpoint, asking the source, planning.
    #[default]
    Starting,
    /// Fetching.
    Running,
    /// Preparing the files of this stream.
    Finishing(String),
    /// A stop was asked for; why.
    Stopping(String),
    /// Over.
    Ended(Arc<Report>),
}

/// Sums at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Time since the process began.
    at: Duration,
    /// Rows fetched by this process.
    rows: u64,
    /// Requests sent by this process.
    requests: u64,
}

/// How far a run has come.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The run; empty before there is one.
    pub run_id: String,
    /// Whether it goes on from a checkpoint.
    pub resumed: bool,
    /// Who answers.
    pub source: Option<SourceIdentity>,
    /// In which part of its life it is.
    pub phase: Phase,
    /// Per stream: rows kept and so on, over all starts of the run.
    pub streams: BTreeMap<String, StreamReport>,
    /// What `["*"]` did not reach, and why.
    pub left_out: BTreeMap<String, String>,
    /// Partitions of the plan.
    pub partitions: u64,
    /// Partitions that are through.
    pub partitions_finished: u64,
    /// Partitions given up.
    pub partitions_lost: u64,
    /// Pages asked for again by this process.
    pub retries: u64,
    /// The last failure that was not final, for people.
    pub last_failure: Option<String>,
    /// Partitions whose page failed, and when each is asked for again.
    held: BTreeMap<PartitionId, Duration>,
    /// The last pace that was told.
    pub pace: Pace,
    /// When that was.
    pace_at: Duration,
    /// When the source last gave something that counts.
    answered_at: Duration,
    /// What failed before or between all fetching, and when it is asked again; `None` once the source has answered.
    asked_again: Option<(String, Duration)>,
    /// When nobody asks that any more.
    gives_up: Option<Duration>,
    /// When something last happened: an answer, a failure, a further request.
    moved_at: Duration,
    /// Rows fetched by this process.
    rows_here: u64,
    /// The streams of the plan, by id.
    planned: Arc<[Stream]>,
    /// Speeds.
    samples: VecDeque<Sample>,
}

impl Progress {
    /// Takes one event into account.
    ///
    /// - `now`: time since the process began.
    pub fn apply(&mut self, event: &Event, now: Duration) {
        match event {
            Event::Pace(pace) if pace.requests == self.pace.requests => {}
            Event::Pace(_) | Event::PartitionReturned { .. } | Event::PartitionFailed { .. } => self.moved_at = now,
            Event::SourceWaitedFor { .. } => self.moved_at = now,
            Event::Recovered { .. }
            | Event::SourceIdentified(_)
            | Event::PlanReady { .. }
            | Event::PlanExtended { .. }
            | Event::PageWritten { .. }
            | Event::SpanCommitted { .. }
            | Event::PartitionFinished(_)
            | Event::FetcherDied { .. }
            | Event::Reconciled { .. }
            | Event::Finishing { .. }
            | Event::Stopping { .. }
            | Event::RunEnded(_) => {
                (self.answered_at, self.moved_at) = (now, now);
                self.asked_again = None;
                self.gives_up = None;
            }
        }
        match event {
            Event::Recovered { resumed_run, .. } => {
                self.resumed = resumed_run.is_some();
                self.run_id = resumed_run.clone().unwrap_or_default();
            }
            Event::SourceWaitedFor { message, delay, patience_left, .. } => {
                self.asked_again = Some((message.clone(), now + *delay));
                self.gives_up = Some(now + *patience_left);
                self.last_failure = Some(message.clone());
            }
            Event::SourceIdentified(source) => self.source = Some(source.clone()),
            Event::PlanReady { run_id, streams, left_out, partitions, finished, committed } => {
                self.run_id.clone_from(run_id);
                self.planned = Arc::clone(streams);
                (self.partitions, self.partitions_finished) = (*partitions, *finished);
                self.left_out.extend(left_out.iter().map(|left| (left.stream.clone(), left.reason.clone())));
                for (place, stream) in streams.iter().enumerate() {
                    self.streams.entry(stream.name.clone()).or_default().expected = stream.expected_rows;
                    self.count(StreamId(place as u32), committed.get(place).copied().unwrap_or_default());
                }
                if self.phase == Phase::Starting {
                    self.phase = Phase::Running;
                }
            }
            Event::PlanExtended { partitions } => self.partitions += partitions,
            Event::PageWritten { stream, yields, partition, counts } => {
                self.held.remove(partition);
                match yields {
                    Yield::Rows => {
                        self.count(*stream, PassTotals { pages: 1, counts: *counts });
                        self.rows_here += counts.fetched;
                    }
                    Yield::Keys => {}
                }
            }
            Event::PartitionFinished(partition) => {
                self.held.remove(partition);
                self.partitions_finished += 1;
            }
            Event::PartitionReturned { partition, message, delay, .. } => {
                self.retries += 1;
                self.held.insert(partition.id, now + *delay);
                self.last_failure = Some(format!("{}: {message}", partition.key));
            }
            Event::PartitionFailed { partition, stream, left_out, message, .. } => {
                self.held.remove(&partition.id);
                self.partitions_lost += 1;
                if *left_out {
                    self.left_out.insert(self.stream(*stream).to_owned(), message.clone());
                }
            }
            Event::Reconciled { stream, reconciled } => {
                let name = self.stream(*stream).to_owned();
                let report = self.streams.entry(name).or_default();
                report.appeared = Some(reconciled.appeared);
                report.vanished = Some(reconciled.vanished);
            }
            Event::Pace(pace) => {
                self.pace = pace.clone();
                self.pace_at = now;
                self.sample(now);
            }
            Event::Finishing { stream } => {
                self.phase = Phase::Finishing(self.stream(*stream).to_owned());
            }
            Event::Stopping { reason } => self.phase = Phase::Stopping(reason.clone()),
            Event::RunEnded(report) => {
                self.phase = Phase::Ended(Arc::clone(report));
                self.pace.waiting = None;
                self.held.clear();
            }
            Event::SpanCommitted { .. } | Event::FetcherDied { .. } => {}
        }
    }

    /// The report so far; its verdict comes with the end.
    pub(super) fn report(&self, job: &str, now: Duration) -> Report<Option<Outcome>, Option<u8>> {
        if let Phase::Ended(report) = &self.phase {
            return (**report).clone().with_verdict(Some(report.outcome), Some(report.exit_code));
        }
        Report {
            resumed: self.resumed,
            run_id: self.run_id.clone(),
            streams: self.streams.clone(),
            requests: self.pace.requests,
            retries: self.retries,
            seconds: now.as_secs_f64(),
            peak_requests_per_second: self.pace.peak_requests_per_second,
            left_out: self.left_out.clone(),
            ..Report::new(job, None, None)
        }
    }

    /// Adds pages of rows to their stream.
    fn count(&mut self, stream: StreamId, totals: PassTotals) {
        let PassTotals { pages, counts } = totals;
        let name = self.stream(stream).to_owned();
        let stream = self.streams.entry(name).or_default();
        stream.rows += counts.kept;
        stream.bytes += counts.bytes;
        stream.filtered += counts.filtered;
        stream.rejected += counts.rejected;
        stream.pages += pages;
    }

    /// A stream's name, for people.
    pub fn stream(&self, stream: StreamId) -> &str {
        self.planned.get(stream.0 as usize).map_or("", |stream| stream.name.as_str())
    }

    /// Remembers the sums of this moment.
    fn sample(&mut self, now: Duration) {
        if self.samples.back().is_some_and(|last| now.saturating_sub(last.at) < SAMPLE_INTERVAL) {
            return;
        }
        self.samples.push_back(Sample { at: now, rows: self.rows_here, requests: self.pace.requests });
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|second| now.saturating_sub(second.at) >= SPEED_WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// Rows kept so far, over all starts.
    pub fn rows(&self) -> u64 {
        self.streams.values().map(|stream| stream.rows).sum()
    }

    /// Rows the server announced, where it did for every stream.
    pub fn expected_rows(&self) -> Option<u64> {
        if self.streams.is_empty() {
            return None;
        }
        self.streams.values().map(|stream| stream.expected).sum()
    }

    /// Speed over the last 20 s, by what is counted.
    fn speed(&self, now: Duration, of: impl Fn(&Sample) -> u64, sum_now: u64) -> f64 {
        let Some(first) = self.samples.front() else { return 0.0 };
        let elapsed = now.saturating_sub(first.at).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
        let grown = sum_now.saturating_sub(of(first)) as f64;
        if elapsed < 0.5 { 0.0 } else { grown / elapsed }
    }

    /// Rows a second.
    pub fn rows_per_second(&self, now: Duration) -> f64 {
        self.speed(now, |sample| sample.rows, self.rows_here)
    }

    /// Requests a second.
    pub fn requests_per_second(&self, now: Duration) -> f64 {
        // Requests are known as of the last pace.
        self.speed(now.min(self.pace_at), |sample| sample.requests, self.pace.requests)
    }

    /// How much is done, 0 to 1, by rows where their number is known, else by partitions.
    pub fn fraction(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a bar has fewer steps than that")]
        let part = |done: u64, all: u64| (all > 0).then(|| (done as f64 / all as f64).min(1.0));
        match self.expected_rows() {
            Some(expected) if expected > 0 => part(self.rows(), expected),
            _ => part(self.partitions_finished + self.partitions_lost, self.partitions),
        }
    }

    /// How long it will still take, where that can be said.
    pub fn remaining(&self, now: Duration) -> Option<Duration> {
        let first = self.samples.front()?;
        if self.phase != Phase::Running || now.saturating_sub(first.at) < ESTIMATE_AFTER || self.waiting(now).is_some()
        {
            return None;
        }
        let left = self.expected_rows()?.checked_sub(self.rows())?;
        let speed = self.rows_per_second(now);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = left as f64 / speed;
        (speed > 0.0 && seconds < 1e9).then(|| Duration::from_secs_f64(seconds))
    }

    /// What everything waits for, and how long still.
    pub fn waiting(&self, now: Duration) -> Option<(String, Option<Duration>)> {
        let Some(waiting) = self.pace.waiting.as_ref() else {
            if let Some((failure, again_at)) = &self.asked_again {
                let remaining = Some(again_at.saturating_sub(now)).filter(|remaining| !remaining.is_zero());
                return Some((failure.clone(), remaining));
            }
            if let Some(remaining) = self.all_are_held(now) {
                return Some(("all remaining partitions are waiting to retry".to_owned(), Some(remaining)));
            }
            return self.is_quiet(now).then(|| ("the source to answer what it was asked".to_owned(), None));
        };
        let since = now.saturating_sub(self.pace_at);
        let remaining = waiting.remaining.map(|remaining| remaining.saturating_sub(since));
        // A wait that is as good as over is none.
        (remaining != Some(Duration::ZERO)).then(|| (waiting.reason.clone(), remaining))
    }

    /// Whether requests are under way and nothing has happened for a while.
    pub(super) fn is_quiet(&self, now: Duration) -> bool {
        let enough = match self.phase {
            Phase::Starting => FIRST_ANSWER_QUIET,
            Phase::Running => ANSWER_QUIET,
            Phase::Finishing(_) | Phase::Stopping(_) | Phase::Ended(_) => return false,
        };
        self.pace.in_flight > 0 && now.saturating_sub(self.moved_at) >= enough
    }

    /// When the run ends unless the source answers, in time since the process began.
    ///
    /// - `outage`: how long the source may be gone.
    pub(super) fn gives_up(&self, outage: Duration) -> Duration {
        self.gives_up.unwrap_or(self.answered_at + outage)
    }

    /// How long nothing is asked for because every partition that is left has failed a moment ago.
    fn all_are_held(&self, now: Duration) -> Option<Duration> {
        let left = self.partitions.saturating_sub(self.partitions_finished + self.partitions_lost);
        let until = self.held.values().min()?;
        (self.held.len() as u64 == left).then(|| until.saturating_sub(now)).filter(|remaining| !remaining.is_zero())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use harvester_actors::{
        events::Waiting,
        failure::FailureClass,
        page::PageCounts,
        partition::{Partition, PassId},
    };

    use super::*;

    fn stream(name: &str, expected_rows: Option<u64>) -> Stream {
        Stream { name: name.to_owned(), expected_rows, optional: false, watermark: None }
    }

    pub(in crate::observe) fn partition(id: u32) -> Arc<Partition> {
        Arc::new(Partition {
            id: PartitionId(id),
            pass: PassId(0),
            key: format!("part/{id}"),
            selection: serde_json::Value::Null,
            requests: None,
            expected_rows: None,
        })
    }

    fn counts(rows: u64) -> PageCounts {
        PageCounts { fetched: rows, kept: rows, bytes: rows * 100, ..PageCounts::default() }
    }

    fn page(partition: u32, rows: u64) -> Event {
        let (stream, yields) = if partition == 2 { (1, Yield::Keys) } else { (partition, Yield::Rows) };
        Event::PageWritten { stream: StreamId(stream), yields, partition: PartitionId(partition), counts: counts(rows) }
    }

    /// A plan of two streams and three partitions, the last of which lists keys.
    fn plan_ready(finished: u64, committed: Vec<PassTotals>) -> Event {
        Event::PlanReady {
            run_id: "20260101T000000Z".to_owned(),
            streams: [stream("organisationUnits", Some(80_000)), stream("dataElements", Some(20_000))].into(),
            left_out: Vec::new(),
            partitions: 3,
            finished,
            committed,
        }
    }

    /// A run of two streams, 30 s old: 30 000 of 100 000 rows, 300 requests.
    pub(in crate::observe) fn half_way() -> (Progress, Duration) {
        let mut progress = Progress::default();
        progress.apply(&plan_ready(0, Vec::new()), Duration::ZERO);
        for second in 0..=30 {
            let now = Duration::from_secs(second);
            if second > 0 {
                progress.apply(&page(0, 1000), now);
            }
            let pace = Pace {
                requests: second * 10,
                requests_per_second_limit: 200,
                peak_requests_per_second: 12,
                in_flight: 7,
                in_flight_limit: 8,
                waiting: None,
            };
            progress.apply(&Event::Pace(pace), now);
        }
        progress.apply(&Event::PartitionFinished(PartitionId(1)), Duration::from_secs(30));
        (progress, Duration::from_secs(30))
    }

    #[test]
    fn speeds_and_the_estimate_are_those_of_the_last_seconds() {
        let (progress, now) = half_way();
        assert_eq!((progress.rows(), progress.expected_rows()), (30_000, Some(100_000)));
        assert!((progress.rows_per_second(now) - 1000.0).abs() < 50.0, "{}", progress.rows_per_second(now));
        assert!((progress.requests_per_second(now) - 10.0).abs() < 0.5);
        assert_eq!(progress.fraction(), Some(0.3));
        let remaining = progress.remaining(now).unwrap().as_secs();
        assert!((66..=74).contains(&remaining), "{remaining}");
        assert!(progress.samples.len() < 50);
    }

    #[test]
    fn a_wait_counts_down_and_stops_the_estimate() {
        let (mut progress, now) = half_way();
        let waiting = Waiting { reason: "Retry-After".to_owned(), remaining: Some(Duration::from_secs(40)) };
        progress.apply(&Event::Pace(Pace { waiting: Some(waiting), ..Pace::default() }), now);
        let later = now + Duration::from_secs(15);
        assert_eq!(progress.waiting(later), Some(("Retry-After".to_owned(), Some(Duration::from_secs(25)))));
        assert_eq!(progress.remaining(later), None);
    }

    #[test]
    fn a_source_that_thinks_for_long_is_waited_for() {
        let (mut progress, now) = half_way();
        let pace = progress.pace.clone();
        let wait = |progress: &mut Progress, seconds| {
            let now = now + Duration::from_secs(seconds);
            progress.apply(&Event::Pace(pace.clone()), now);
            progress.waiting(now).map(|(reason, _)| reason)
        };
        assert_eq!(wait(&mut progress, 9), None);
        assert!(wait(&mut progress, 11).unwrap().contains("to answer"));
        progress.apply(&page(0, 10), now + Duration::from_secs(12));
        assert_eq!(wait(&mut progress, 13), None);
        let mut first = Progress::default();
        assert_eq!(wait(&mut first, 0), None);
        assert!(wait(&mut first, 2).is_some(), "the first answer");
    }

    #[test]
    fn a_run_whose_last_partitions_have_all_failed_says_how_long_it_waits() {
        let (mut progress, now) = half_way();
        let returned = |id, seconds| Event::PartitionReturned {
            partition: partition(id),
            class: FailureClass::Transient,
            message: "502".to_owned(),
            attempt: 1,
            delay: Duration::from_secs(seconds),
        };
        progress.apply(&returned(0, 9), now);
        assert_eq!(progress.waiting(now), None, "the other partition is still fetched");
        progress.apply(&returned(2, 30), now);
        let wait = |progress: &Progress, seconds| progress.waiting(now + Duration::from_secs(seconds));
        assert_eq!(wait(&progress, 4).unwrap().1, Some(Duration::from_secs(5)));
        assert_eq!(wait(&progress, 9), None, "one of them is asked for again");
        progress.apply(&page(0, 10), now);
        assert_eq!(wait(&progress, 4), None);
    }

    #[test]
    fn listed_keys_are_no_rows() {
        let (mut progress, now) = half_way();
        progress.apply(&page(2, 500), now);
        assert_eq!(progress.rows(), 30_000);
    }

    #[test]
    fn a_resumed_run_begins_with_what_is_committed_and_with_no_speed() {
        let mut progress = Progress::default();
        let committed = [5, 1].map(|pages| PassTotals { pages, counts: counts(500) }).to_vec();
        progress.apply(
            &Event::Recovered { resumed_run: Some("r".to_owned()), cut_bytes: 0, rebuilt: None },
            Duration::ZERO,
        );
        progress.apply(&plan_ready(1, committed), Duration::ZERO);
        progress.apply(&page(0, 500), Duration::ZERO);
        assert_eq!((progress.rows(), progress.partitions_finished, progress.resumed), (1500, 1, true));
        let pages = |stream: &str| progress.streams[stream].pages;
        assert_eq!((pages("organisationUnits"), pages("dataElements")), (6, 1));
        assert!(progress.rows_per_second(Duration::from_secs(5)) < 1.0);
    }

    #[test]
    fn a_failure_is_counted_and_kept_with_its_partition() {
        let (mut progress, now) = half_way();
        let returned = Event::PartitionReturned {
            partition: partition(1),
            class: FailureClass::Transient,
            message: "503".to_owned(),
            attempt: 1,
            delay: Duration::from_secs(1),
        };
        progress.apply(&returned, now);
        assert_eq!((progress.retries, progress.last_failure.as_deref()), (1, Some("part/1: 503")));
    }
}
