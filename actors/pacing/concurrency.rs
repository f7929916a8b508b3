//! The concurrency controller learns how many requests at once a source answers well, and never asks for more.
//!
//! Three rules, the plain one first:
//!
//! 1. **Overload.** A breaker-class failure multiplies the limit by 0.7, once for all requests that were out when it did.
//!    Each clean round of answers with the limit in use adds one. Until the first trouble every single answer adds one:
//!    from 2 to 8 takes two round trips.
//! 2. **Overload that does not come from us.** Where a lower limit is known to bring just as large a share of overloads,
//!    lowering it helps nobody, and is not done. (A proxy that refuses one request in five would otherwise hold the
//!    harvest at one request at a time for ever.)
//! 3. **Latency.** Beyond a knee, more requests at once only wait longer. For each number in flight the controller keeps
//!    what an answer took. If answers at the limit take longer than at fewer in flight, by more than chance explains, the
//!    limit comes down to where the longer wait began: L × (wait at fewer ÷ wait at L). To grow, no such doubt may be left:
//!    the last step must have brought most of what it should.
//!    Only fresh answers are compared that way, since work itself grows lighter and heavier. Where stale ones raise a
//!    suspicion, or a wait has grown by more than a queue explains, or nothing is known any more, a short latency probe at three quarters of the limit makes fresh ones; so a knee that
//!    appears, moves or goes away is found. At the defaults a probe is due about every 250 answers and costs about 1 % of the
//!    speed.
//!
//! What a request is decides how long it takes, more than load does (deep pages, big org units). So answers are compared
//! within one `class` only, on a logarithmic scale, and a difference counts only beyond its standard error. Answers from
//! times when the limit was not reached teach nothing: the few quick requests of a start are no measure for pages.
//!
//! It knows nothing of rates, of the breaker, or of the queue.
//!
//! Sources of the rules: Vector's adaptive concurrency (grow only when the limit was in use, learn times only from
//! successes), Netflix' concurrency-limits (in use = half); theirs as they are do not pass `actors/scenarios/`, from which the numbers
//! come.

use std::time::Duration;

use tokio::time::Instant;

use crate::RequestOutcome;

/// Number of requests at once that the controller starts with: gentle, and enough to see whether two hinder each other.
pub const LIMIT_START: u32 = 2;

/// Part of the limit that one overload leaves.
const CUT_RATIO: f64 = 0.7;

/// Part of the limit at which a latency probe runs.
const PROBE_RATIO: f64 = 0.75;

/// Number of further answers after which a mean has lost 63 % of its weight.
///
/// Smaller finds a knee that appears sooner and probes more often.
const FADE_ANSWERS: f64 = 192.0;

/// Most answers that a mean of latencies weighs. Smaller follows a change sooner and is fooled more easily.
const WEIGHT_MAX: f64 = 16.0;

/// Most outcomes that a mean of overloads weighs: more, since each of them is only a yes or a no.
const SHARE_WEIGHT_MAX: f64 = 48.0;

/// Weight from which a mean counts: fewer answers are an anecdote.
const WEIGHT_MIN: f64 = 2.5;

/// Weight from which a mean need not be renewed.
const WEIGHT_KNOWN: f64 = 1.5;

/// Rounds for which a mean counts as fresh after it was last renewed.
const FRESH_ROUNDS: u64 = 4;

/// Least number of answers between two probes that a mere suspicion calls for.
const PROBE_AGAIN_ANSWERS: u32 = 64;

/// From which weight on a share of overloads at fewer in flight counts.
const SHARE_WEIGHT_MIN: f64 = 8.0;

/// Standard errors that a difference of latencies must exceed to count.
const DOUBT: f64 = 1.75;

/// The same for a difference of shares of overloads.
const SHARE_DOUBT: f64 = 2.0;

/// A knee below this part of the limit is worth coming down for. At 1, chance alone would keep the limit off its ceiling.
const WORTH: f64 = 0.88;

/// A queue makes waits grow with the number in flight. Where that would put the knee below this part of the number that was
/// compared with, it is no queue.
const QUEUE_RATIO: f64 = 0.7;

/// [`WORTH`] for growth, where chance may hold it up for a round but not for ever.
const WORTH_GROWING: f64 = 0.93;

/// The spread of answers (of the logarithm, as a variance) that is assumed before there are answers, and how much that
/// assumption weighs.
const SPREAD_ASSUMED: (f64, f64) = (0.04, 4.0);

/// Number of classes that are remembered; the one not seen for longest makes room.
const CLASSES_MAX: usize = 16;

/// What the controller recorded when a request began; passed back when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    at: Instant,
    load: f64,
    full: u64,
    probes: u32,
    /// Number in flight then, this one included.
    level: f64,
}

impl Started {
    /// When the request began.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }
}

/// Decides how many requests may be out at once.
#[derive(Clone, Debug)]
pub struct Concurrency {
    /// Never more than this; at least 1.
    ceiling: u32,
    /// Result of the rules: 1 to `ceiling`.
    limit: u32,
    /// Requests that are out.
    in_flight: u32,
    /// Requests × seconds since the beginning; a difference divided by its time is the mean number in flight.
    load: f64,
    /// Until when `load` is counted.
    load_at: Option<Instant>,
    /// Number of times the last place was taken.
    full: u64,
    /// No trouble yet: grow with each answer.
    starting: bool,
    /// Answers since the limit last changed or a round was completed.
    answers: u32,
    /// Whether the limit was in use during this round.
    reached: bool,
    /// Whether no overload ended in this round.
    clean: bool,
    /// When the limit last came down: what began before that does not bring it down again.
    cut_at: Option<Instant>,
    /// Latencies by class; the class seen last is last.
    latencies: Vec<(u64, LatencyStats)>,
    /// Shares of overloads, by number in flight at the start: refusals are quicker than answers, and would otherwise be
    /// counted at more in flight than the answers they are compared with.
    overload_share: Vec<DecayingMean>,
    probe: Option<LatencyProbe>,
    /// Number of times a probe began or ended: requests in flight meanwhile belong to neither side.
    probes: u32,
    /// Answers since the last probe.
    since_probe: u32,
}

/// A short stay below the limit, to measure latencies there.
#[derive(Clone, Copy, Debug)]
struct LatencyProbe {
    limit: u32,
    /// Further answers wanted from there.
    wanted: u32,
    /// Further answers of any kind that it may take.
    patience: u32,
}

/// The mean of a value at about one number in flight, the newest weighing most.
#[derive(Clone, Copy, Debug, Default)]
struct DecayingMean {
    /// When it was last renewed, counted in answers.
    renewed: u64,
    /// Number of answers it stands for, less what has faded.
    weight: f64,
    /// The mean number in flight.
    level: f64,
    /// The mean.
    value: f64,
}

/// Number in flight that would do.
#[derive(Clone, Copy, Debug)]
struct Knee {
    at: f64,
    /// The wait grew by more than a queue explains. It may be other work, or a server that thrashes.
    other_work: bool,
}

/// Latencies of one class of requests.
#[derive(Clone, Debug, Default)]
struct LatencyStats {
    /// The logarithm of seconds, by number in flight.
    means: Vec<DecayingMean>,
    /// Number of answers so far.
    answers: u64,
    /// Spread of answers at one number in flight: a variance, and the number of answers it stands for.
    spread: Option<(f64, f64)>,
}

impl Concurrency {
    /// A controller that starts at [`LIMIT_START`], or at the ceiling where that is lower; a ceiling of 0 counts as 1.
    #[must_use]
    pub fn new(ceiling: u32) -> Self {
        let ceiling = ceiling.max(1);
        Concurrency {
            ceiling,
            limit: LIMIT_START.min(ceiling),
            in_flight: 0,
            load: 0.0,
            load_at: None,
            full: 0,
            starting: true,
            answers: 0,
            reached: false,
            clean: true,
            cut_at: None,
            latencies: Vec::new(),
            overload_share: Vec::new(),
            probe: None,
            probes: 0,
            since_probe: PROBE_AGAIN_ANSWERS,
        }
    }

    /// Number of requests that may be in flight at the moment.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.probe.map_or(self.limit, |probe| probe.limit)
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether one more may go.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight < self.limit()
    }

    /// Notes that a request leaves. One that leaves without room, as a probe may, counts like the others.
    #[must_use]
    pub fn started(&mut self, now: Instant) -> Started {
        self.count_load(now);
        self.in_flight += 1;
        let level = f64::from(self.in_flight);
        let started = Started { at: now, load: self.load, full: self.full, probes: self.probes, level };
        if self.in_flight >= self.limit() {
            self.full += 1;
            self.reached = true;
        }
        started
    }

    /// Notes how a request ended and adapts the limit.
    ///
    /// - `class`: what kind of request it was; only equal ones are compared. 0 if unknown.
    /// - `elapsed`: what the server took; zero for "as long as it was out".
    pub fn ended(&mut self, now: Instant, started: Started, class: u64, outcome: RequestOutcome, elapsed: Duration) {
        self.count_load(now);
        let out = now.saturating_duration_since(started.at);
        let level = if out.is_zero() {
            f64::from(self.in_flight)
        } else {
            ((self.load - started.load) / out.as_secs_f64()).max(1.0)
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        match outcome {
            RequestOutcome::Answered => {
                note(&mut self.overload_share, SHARE_WEIGHT_MAX, started.level, 0.0);
                let elapsed = if elapsed.is_zero() { out } else { elapsed };
                if self.full > started.full && self.probes == started.probes {
                    self.latencies_of(class).note(level, elapsed);
                }
                self.answered(now, started, class, level);
            }
            RequestOutcome::Overloaded { .. } => {
                note(&mut self.overload_share, SHARE_WEIGHT_MAX, started.level, 1.0);
                self.overloaded(now, started);
            }
            RequestOutcome::Failed { .. } | RequestOutcome::Abandoned => {}
        }
    }

    /// Starts over gently and forgets what is known, after an outage: the source that comes back is another one.
    pub fn restart(&mut self, now: Instant) {
        self.starting = true;
        self.set_limit(LIMIT_START);
        self.cut_at = Some(now);
        self.latencies.clear();
        self.overload_share.clear();
    }

    /// Changes the ceiling: a lower one holds at once, below a higher one the limit grows as ever. A ceiling of 0 counts as 1.
    pub fn change_ceiling(&mut self, ceiling: u32) {
        self.ceiling = ceiling.max(1);
        if self.limit > self.ceiling {
            self.set_limit(self.ceiling);
        }
    }

    fn answered(&mut self, now: Instant, started: Started, class: u64, level: f64) {
        if let Some(probe) = &mut self.probe {
            if self.probes == started.probes {
                probe.wanted = probe.wanted.saturating_sub(1);
            }
            probe.patience = probe.patience.saturating_sub(1);
            if probe.wanted == 0 || probe.patience == 0 {
                self.probe = None;
                self.probes += 1;
                self.since_probe = 0;
                self.begin_round();
            }
            return;
        }

        self.since_probe = self.since_probe.saturating_add(1);
        let limit = f64::from(self.limit);
        let at_limit = level >= limit - 0.5 && self.full > started.full;
        if at_limit && !self.began_before_the_cut(started) && self.came_down_to_a_knee(now, class, level) {
            return;
        }

        // Half in use is in use while starting, as doubling is the most that it can lead to.
        if self.starting && level >= limit / 2.0 {
            self.grow(class);
            return;
        }
        self.answers += 1;
        if self.answers < self.limit {
            return;
        }
        let below = f64::from(self.limit_of_probe());
        if at_limit && self.limit > 1 && !self.latencies_of(class).known_up_to(below) {
            self.probe_below(class);
            return;
        }
        if self.reached && self.clean {
            self.grow(class);
        }
        self.begin_round();
    }

    /// Lowers the limit to a knee that fresh answers show, or probes below where they do not suffice; returns whether it did either.
    fn came_down_to_a_knee(&mut self, now: Instant, class: u64, level: f64) -> bool {
        let limit = f64::from(self.limit);
        let fresh = FRESH_ROUNDS * u64::from(self.limit);
        let has_probed = self.since_probe < PROBE_AGAIN_ANSWERS;
        let worth_it = |knee: &Knee| knee.at < limit * WORTH;
        let latencies = self.latencies_of(class);
        let known = latencies.knee(level, DOUBT, fresh).filter(worth_it);
        let suspected = latencies.knee(level, DOUBT, u64::MAX).filter(worth_it);
        if let Some(knee) = known.filter(|knee| has_probed || !knee.other_work) {
            self.starting = false;
            self.cut_at = Some(now);
            self.set_limit(knee.at.round() as u32);
            return true;
        }
        if suspected.is_some() && !has_probed {
            self.probe_below(class);
            return true;
        }
        false
    }

    fn limit_of_probe(&self) -> u32 {
        ((f64::from(self.limit) * PROBE_RATIO) as u32).max(1)
    }

    /// Learns afresh what answers of this class take at fewer in flight.
    fn probe_below(&mut self, class: u64) {
        let limit = self.limit_of_probe();
        let below = f64::from(self.limit) - 0.5;
        for mean in self.latencies_of(class).means.iter_mut().filter(|mean| mean.level < below) {
            mean.weight = 0.0;
        }
        self.starting = false;
        self.probes += 1;
        self.probe = Some(LatencyProbe { limit, wanted: limit.max(3), patience: self.limit * 4 });
        self.begin_round();
    }

    fn overloaded(&mut self, now: Instant, started: Started) {
        self.starting = false;
        if self.more_overloads_than_below(started.level) == Some(false) {
            return;
        }
        self.clean = false;
        if self.began_before_the_cut(started) {
            return;
        }
        self.cut_at = Some(now);
        self.set_limit((f64::from(self.limit) * CUT_RATIO) as u32);
        self.clean = false;
    }

    /// Whether the share of overloads at `level` is larger than at fewer in flight; `None` while too little is known.
    fn more_overloads_than_below(&self, level: f64) -> Option<bool> {
        let here = near(&self.overload_share, level)?;
        let below = merged(self.overload_share.iter().filter(|below| below.level < here.level - 0.5));
        if below.weight < SHARE_WEIGHT_MIN {
            return None;
        }
        let share = merged([&below, here]).value;
        let error = (share * (1.0 - share) * (1.0 / here.weight + 1.0 / below.weight)).sqrt();
        Some(here.value - below.value > SHARE_DOUBT * error)
    }

    /// Adds one, unless the last step brought too little, or the next is known to.
    fn grow(&mut self, class: u64) {
        let limit = f64::from(self.limit);
        let starting = self.starting;
        let latencies = self.latencies_of(class);
        let queued =
            !starting && latencies.knee(limit, 0.0, u64::MAX).is_some_and(|knee| knee.at < limit * WORTH_GROWING);
        let would_queue =
            latencies.knee(limit + 1.0, 0.0, u64::MAX).is_some_and(|knee| knee.at < (limit + 1.0) * WORTH_GROWING);
        let would_be_refused = near(&self.overload_share, limit + 1.0).is_some_and(|next| next.weight >= WEIGHT_MIN)
            && self.more_overloads_than_below(limit + 1.0) == Some(true);
        if queued || would_queue || would_be_refused {
            self.starting = false;
        } else if self.limit < self.ceiling {
            self.set_limit(self.limit + 1);
        }
        self.starting &= self.limit < self.ceiling;
    }

    fn set_limit(&mut self, limit: u32) {
        self.limit = limit.clamp(1, self.ceiling);
        if self.probe.take().is_some() {
            self.probes += 1;
        }
        self.begin_round();
    }

    fn begin_round(&mut self) {
        self.answers = 0;
        self.clean = true;
        self.reached = self.in_flight >= self.limit();
    }

    fn began_before_the_cut(&self, started: Started) -> bool {
        self.cut_at.is_some_and(|cut_at| started.at < cut_at)
    }

    fn count_load(&mut self, now: Instant) {
        let since = self.load_at.replace(now).unwrap_or(now);
        self.load += f64::from(self.in_flight) * now.saturating_duration_since(since).as_secs_f64();
    }

    /// Latencies of a class, which becomes the last seen.
    fn latencies_of(&mut self, class: u64) -> &mut LatencyStats {
        let latencies = match self.latencies.iter().position(|(known, _)| *known == class) {
            Some(index) => self.latencies.remove(index).1,
            None => {
                if self.latencies.len() == CLASSES_MAX {
                    self.latencies.remove(0);
                }
                LatencyStats::default()
            }
        };
        self.latencies.push((class, latencies));
        let last = self.latencies.len() - 1;
        &mut self.latencies[last].1
    }
}

impl LatencyStats {
    fn note(&mut self, level: f64, elapsed: Duration) {
        // A microsecond at least: the logarithm of nothing is no number.
        let wait = elapsed.as_secs_f64().max(1e-6).ln();
        if let Some(mean) = near(&self.means, level).filter(|mean| mean.weight >= 1.0) {
            // A mean that the newcomer is not part of yet differs from it by more than the spread alone.
            let off = (wait - mean.value).powi(2) * mean.weight / (mean.weight + 1.0);
            let (spread, weight) = self.spread.unwrap_or(SPREAD_ASSUMED);
            let weight = (weight + 1.0).min(4.0 * WEIGHT_MAX);
            self.spread = Some((spread + (off - spread) / weight, weight));
        }
        note(&mut self.means, WEIGHT_MAX, level, wait);
        self.answers += 1;
        self.means[place(level)].renewed = self.answers;
    }

    /// Number in flight that would do as well as `level`, as far as answers tell; `None` while nothing else is known.
    ///
    /// Where a queue has formed, the wait grows with the number in flight and the answers per second do not: the knee is
    /// then `level` times the quicker wait over the wait at `level`.
    ///
    /// - `doubt`: how many standard errors of the difference are taken for chance.
    /// - `fresh`: most answers since a mean at fewer in flight was renewed.
    fn knee(&self, level: f64, doubt: f64, fresh: u64) -> Option<Knee> {
        let here = near(&self.means, level).filter(|here| here.weight >= WEIGHT_MIN)?;
        let spread = self.spread.unwrap_or(SPREAD_ASSUMED).0;
        let mut fewer = DecayingMean::default();
        let mut knee: Option<Knee> = None;
        // Compared with all below each number: while starting there are one or two answers at each only.
        let below = self.means.iter().filter(|mean| mean.level < here.level - 0.5);
        for mean in below.filter(|mean| self.answers - mean.renewed <= fresh) {
            fewer = merged([&fewer, mean]);
            if mean.weight > 0.0 && fewer.weight >= WEIGHT_MIN {
                let error = (spread * (1.0 / here.weight + 1.0 / fewer.weight)).sqrt();
                let longer = (here.value - fewer.value - doubt * error).max(0.0);
                let at = here.level * (-longer).exp();
                if knee.is_none_or(|knee| at.max(fewer.level) < knee.at) {
                    // Where more in flight gets less done, fewer still is not better than what was seen to work.
                    knee = Some(Knee { at: at.max(fewer.level), other_work: at < fewer.level * QUEUE_RATIO });
                }
            }
        }
        knee
    }

    /// Whether anything is known about `level` and below.
    fn known_up_to(&self, level: f64) -> bool {
        merged(self.means.iter().filter(|mean| mean.level <= level + 0.5)).weight >= WEIGHT_KNOWN
    }
}

/// Readings as one.
fn merged<'a>(means: impl IntoIterator<Item = &'a DecayingMean>) -> DecayingMean {
    let mut all = DecayingMean::default();
    for mean in means.into_iter().filter(|mean| mean.weight > 0.0) {
        all.weight += mean.weight;
        all.level += (mean.level - all.level) * mean.weight / all.weight;
        all.value += (mean.value - all.value) * mean.weight / all.weight;
    }
    all
}

/// Index for a number in flight: one each up to 8, then one for each eighth more.
fn place(level: f64) -> usize {
    if level < 8.5 { level.round() as usize } else { 8 + ((level / 8.0).ln() / 1.125_f64.ln()).round() as usize }
}

/// The mean at about `level`.
fn near(means: &[DecayingMean], level: f64) -> Option<&DecayingMean> {
    means.get(place(level)).filter(|mean| mean.weight > 0.0)
}

/// Adds one value at `level`; all means fade a little.
fn note(means: &mut Vec<DecayingMean>, weight_max: f64, level: f64, value: f64) {
    let place = place(level);
    if means.len() <= place {
        means.resize(place + 1, DecayingMean::default());
    }
    for mean in means.iter_mut() {
        mean.weight *= 1.0 - 1.0 / FADE_ANSWERS;
    }
    let mean = &mut means[place];
    mean.weight = (mean.weight + 1.0).min(weight_max);
    mean.level += (level - mean.level) / mean.weight;
    mean.value += (value - mean.value) / mean.weight;
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    const OVERLOADED: RequestOutcome = RequestOutcome::Overloaded { retry_after: None };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Fetchers that always have work, in front of a server that is a function.
    struct Loop<Server> {
        controller: Concurrency,
        fetchers: u32,
        now: Instant,
        began: Instant,
        out: Vec<(Instant, Started, RequestOutcome)>,
        random: SmallRng,
        server: Server,
        /// Limits after each end.
        limits: Vec<u32>,
        answered: u32,
        overloaded: u32,
    }

    /// In: how many are out, this one included; something random in 0..1. Out: how long, and how it ends.
    impl<Server: FnMut(u32, f64) -> (Duration, RequestOutcome)> Loop<Server> {
        fn new(ceiling: u32, fetchers: u32, seed: u64, server: Server) -> Self {
            let now = Instant::now();
            Loop {
                controller: Concurrency::new(ceiling),
                fetchers,
                now,
                began: now,
                out: Vec::new(),
                random: SmallRng::seed_from_u64(seed),
                server,
                limits: Vec::new(),
                answered: 0,
                overloaded: 0,
            }
        }

        fn run(&mut self, ends: usize) {
            for _ in 0..ends {
                while self.controller.has_room() && (self.out.len() as u32) < self.fetchers {
                    let started = self.controller.started(self.now);
                    let (takes, outcome) = (self.server)(self.controller.in_flight(), self.random.random());
                    self.out.push((self.now + takes, started, outcome));
                }
                let next = (0..self.out.len()).min_by_key(|index| self.out[*index].0).unwrap();
                let (at, started, outcome) = self.out.remove(next);
                self.now = at;
                self.controller.ended(at, started, 0, outcome, Duration::ZERO);
                self.limits.push(self.controller.limit);
                self.answered += u32::from(outcome == RequestOutcome::Answered);
                self.overloaded += u32::from(outcome == OVERLOADED);
            }
        }

        fn per_second(&self) -> f64 {
            f64::from(self.answered) / (self.now - self.began).as_secs_f64()
        }

        fn mean_limit_of_last(&self, ends: usize) -> f64 {
            let last = &self.limits[self.limits.len() - ends..];
            last.iter().sum::<u32>() as f64 / ends as f64
        }
    }

    fn answers(takes: Duration) -> (Duration, RequestOutcome) {
        (takes, RequestOutcome::Answered)
    }

    /// Twice as many beyond the knee wait twice as long.
    fn knee_at(knee: f64) -> impl Fn(u32) -> f64 {
        move |in_flight| 0.1 * (f64::from(in_flight) / knee).max(1.0)
    }

    #[test]
    fn it_starts_at_two_and_never_above_its_ceiling() {
        assert_eq!(Concurrency::new(8).limit(), 2);
        assert_eq!(Concurrency::new(1).limit(), 1);
        assert_eq!(Concurrency::new(0).limit(), 1);
        let mut quick = Loop::new(5, 20, 1, |_, _| answers(ms(10)));
        quick.run(2000);
        assert_eq!(quick.limits.iter().max(), Some(&5));
    }

    #[test]
    fn two_hundred_pages_of_100_ms_get_90_percent_of_what_eight_connections_can_do() {
        let mut constant = Loop::new(8, 8, 1, |_, _| answers(ms(100)));
        constant.run(200);
        let share = constant.per_second() / 80.0;
        assert!(share >= 0.92, "{share}");
        constant.run(2000);
        assert!(constant.per_second() / 80.0 >= 0.97, "{}", constant.per_second());
    }

    #[test]
    fn the_few_quick_requests_of_a_start_are_no_measure_for_pages() {
        // One after the other, as a login and the like are; then many at once, as counting is.
        for (at_once, quick, quick_ms) in [(1, 12, 5), (1, 12, 40), (4, 12, 5), (4, 30, 20), (8, 12, 5), (8, 100, 5)] {
            let mut started = 0;
            let mut pages = Loop::new(8, at_once, 1, move |_, _| {
                started += 1;
                answers(ms(if started <= quick { quick_ms } else { 100 }))
            });
            pages.run(quick);
            pages.fetchers = 8;
            pages.began = pages.now;
            pages.answered = 0;
            pages.run(200);
            let share = pages.per_second() / 80.0;
            assert!(share >= 0.88, "{quick} quick ones of {quick_ms} ms, {at_once} at once: {share}");
        }
    }

    #[test]
    fn jitter_is_not_taken_for_load() {
        for seed in 0..20 {
            // 50 to 150 ms at random
            let mut jitter = Loop::new(8, 8, seed, |_, random| answers(Duration::from_secs_f64(0.05 + 0.1 * random)));
            jitter.run(2000);
            let share = jitter.per_second() / 80.0;
            assert!(share >= 0.93, "seed {seed}: {share}");
        }
    }

    #[test]
    fn rare_answers_that_take_ten_times_as_long_are_not_taken_for_load() {
        for seed in 0..20 {
            let mut tail = Loop::new(8, 8, seed, |_, random| answers(if random < 0.05 { ms(1000) } else { ms(90) }));
            tail.run(2000);
            let share = tail.per_second() / (8.0 / 0.1355);
            assert!(share >= 0.9, "seed {seed}: {share}");
        }
    }

    #[test]
    fn a_knee_at_four_is_found_and_kept() {
        for seed in 0..20 {
            let wait = knee_at(4.0);
            let mut knee =
                Loop::new(8, 8, seed, |out, random| answers(Duration::from_secs_f64(wait(out) * (0.9 + 0.2 * random))));
            knee.run(400);
            knee.run(1600);
            let mean = knee.mean_limit_of_last(1600);
            assert!((3.0..=5.2).contains(&mean), "seed {seed}: {mean}");
            assert!(knee.per_second() >= 36.0, "seed {seed}: {}", knee.per_second());
        }
    }

    #[test]
    fn a_server_that_collapses_beyond_four_is_not_driven_there() {
        for seed in 0..20 {
            // cubic: eight at once get a quarter of what four get
            let mut collapse = Loop::new(8, 8, seed, |out, random| {
                let wait = 0.1 * (f64::from(out) / 4.0).powi(3).max(1.0);
                answers(Duration::from_secs_f64(wait * (0.9 + 0.2 * random)))
            });
            collapse.run(2000);
            let mean = collapse.mean_limit_of_last(1600);
            assert!((3.0..=5.0).contains(&mean), "seed {seed}: {mean}");
            assert!(collapse.per_second() >= 32.0, "seed {seed}: {}", collapse.per_second());
        }
    }

    #[test]
    fn a_knee_that_appears_later_is_found_and_one_that_goes_away_is_left() {
        for seed in 0..10 {
            let mut served = 0;
            let mut moving = Loop::new(8, 8, seed, move |out, random| {
                served += 1;
                let knee = if (1000..3000).contains(&served) { 4.0 } else { 100.0 };
                answers(Duration::from_secs_f64(knee_at(knee)(out) * (0.9 + 0.2 * random)))
            });
            moving.run(1000);
            assert!(moving.mean_limit_of_last(500) >= 7.0, "seed {seed}: {}", moving.mean_limit_of_last(500));
            moving.run(2000);
            assert!(moving.mean_limit_of_last(1000) <= 5.5, "seed {seed}: {}", moving.mean_limit_of_last(1000));
            moving.run(2000);
            assert!(moving.mean_limit_of_last(1000) >= 6.5, "seed {seed}: {}", moving.mean_limit_of_last(1000));
        }
    }

    #[test]
    fn pages_that_become_five_times_as_heavy_do_not_keep_it_low() {
        for seed in 0..10 {
            let mut served = 0;
            let mut heavy = Loop::new(8, 8, seed, move |_, random| {
                served += 1;
                let wait = if served < 500 { 0.1 } else { 0.5 };
                answers(Duration::from_secs_f64(wait * (0.8 + 0.4 * random)))
            });
            heavy.run(1000);
            assert!(heavy.mean_limit_of_last(400) >= 6.0, "seed {seed}: {}", heavy.mean_limit_of_last(400));
            assert!(heavy.mean_limit_of_last(100) >= 7.0, "seed {seed}: {}", heavy.mean_limit_of_last(100));
        }
    }

    #[test]
    fn a_server_that_refuses_more_than_four_at_once_is_rarely_asked_for_more() {
        let mut refuses = Loop::new(8, 8, 1, |out, _| if out > 4 { (ms(20), OVERLOADED) } else { answers(ms(100)) });
        refuses.run(2000);
        let mean = refuses.mean_limit_of_last(1600);
        assert!((3.0..=5.0).contains(&mean), "{mean}");
        assert!(refuses.overloaded <= 100, "{} of 2000", refuses.overloaded);
        assert!(refuses.per_second() >= 34.0, "{}", refuses.per_second());
    }

    #[test]
    fn one_refusal_in_five_that_has_nothing_to_do_with_load_does_not_hold_it_down() {
        for seed in 0..20 {
            let mut dice =
                Loop::new(8, 8, seed, |_, random| if random < 0.2 { (ms(100), OVERLOADED) } else { answers(ms(100)) });
            dice.run(2000);
            let per_second = 2000.0 / (dice.now - dice.began).as_secs_f64();
            assert!(per_second >= 55.0, "seed {seed}: {per_second}");
        }
    }

    #[test]
    fn failures_that_were_out_together_cut_once() {
        let now = Instant::now();
        let mut controller = Concurrency { limit: 8, ..Concurrency::new(8) };
        let out: Vec<_> = (0..8).map(|_| controller.started(now)).collect();
        for started in out {
            controller.ended(now + ms(100), started, 0, OVERLOADED, ms(100));
        }
        assert_eq!(controller.limit(), 5);
        let next = controller.started(now + ms(100));
        controller.ended(now + ms(200), next, 0, OVERLOADED, ms(100));
        assert_eq!(controller.limit(), 3);
    }

    #[test]
    fn resets_truncations_and_abandoned_requests_teach_nothing() {
        let now = Instant::now();
        let mut controller = Concurrency { limit: 8, ..Concurrency::new(8) };
        for outcome in [RequestOutcome::Failed { retry_after: None }, RequestOutcome::Abandoned] {
            let started = controller.started(now);
            controller.ended(now + ms(1), started, 0, outcome, ms(1));
        }
        assert_eq!((controller.limit(), controller.in_flight()), (8, 0));
        assert!(controller.latencies.is_empty());
    }

    #[test]
    fn a_limit_that_nobody_uses_does_not_grow_far() {
        let mut idle = Loop::new(64, 3, 1, |_, _| answers(ms(100)));
        idle.run(500);
        assert!(idle.controller.limit() <= 7, "{}", idle.controller.limit());
    }

    #[test]
    fn it_starts_over_gently_after_an_outage_and_keeps_to_a_changed_ceiling() {
        let mut quick = Loop::new(8, 8, 1, |_, _| answers(ms(10)));
        quick.run(100);
        assert_eq!(quick.controller.limit(), 8);
        quick.controller.restart(quick.now);
        assert_eq!(quick.controller.limit(), 2);
        quick.controller.change_ceiling(4);
        quick.run(200);
        assert_eq!(quick.limits[100..].iter().max(), Some(&4));
        quick.controller.change_ceiling(6);
        assert_eq!(quick.controller.limit(), 4, "it grows from there");
        quick.run(400);
        assert_eq!(quick.controller.limit(), 6);
    }

    #[test]
    fn classes_are_compared_with_themselves_and_their_number_is_bounded() {
        let now = Instant::now();
        let mut controller = Concurrency { limit: 8, ..Concurrency::new(8) };
        for class in 0..1000 {
            controller.in_flight = 7;
            let started = controller.started(now + ms(class));
            controller.ended(now + ms(class + 1), started, class, RequestOutcome::Answered, ms(1));
        }
        assert_eq!(controller.latencies.len(), CLASSES_MAX);
        assert_eq!(controller.limit(), 8);
    }

    #[test]
    fn a_hundred_in_flight_need_few_places() {
        assert_eq!((1..=8).map(|level| place(f64::from(level))).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
        let places: Vec<_> = (1..=1000).map(|level| place(f64::from(level))).collect();
        assert!(places.is_sorted());
        assert!(places.last().unwrap() < &64);
    }
}
