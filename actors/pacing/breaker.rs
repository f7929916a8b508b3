//! The breaker stops all requests to a source that is down and lets one probe at a time find out when it is back.
//!
//! ```text
//!             a streak of 5 overloads (more for a source that
//!             often refuses), or more than half of 20
//!   closed ──────────────────────────────────────────────────▶ open ◀───────────┐
//!     ▲                                                          │ its time is up │ no
//!     └───────────────────── yes ────────── half open ◀──────────┘                │
//!                                                └────────────────────────────────┘
//! ```
//!
//! A source, or the proxy before it, that refuses one request in five at all times makes five refusals in a row about
//! every four thousand requests, without any outage. So the streak that opens the breaker is as long as chance alone makes it
//! once in a hundred thousand times.
//!
//! It opens for one second first, then for two, four and so on up to eight: never longer, so that a harvest goes on
//! within ten seconds of the source's return. A probe is one ping: over a long outage that is one small request each
//! eight seconds.
//! The time counts from one probe's start to the next one's, so a probe that runs into its time limit delays nothing.
//! It starts over only when an ordinary request is answered: a source whose ping works while its database does not would
//! otherwise be tried every second.
//!
//! It does not limit the length of an outage; callers that do use [`Breaker::open_since`].

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use crate::RequestOutcome;

/// Streak of overloads that opens the breaker, where overloads are rare.
pub const OVERLOAD_STREAK: u32 = 5;

/// Probability that the streak that opens it comes by chance, given how often the source refuses.
const CHANCE_MAX: f64 = 1e-5;

/// After how many further outcomes an outcome has lost 63 % of its weight in how often the source refuses.
const FADE_OUTCOMES: f64 = 200.0;

/// So many answered requests are assumed before the first.
const OUTCOMES_ASSUMED: f64 = 20.0;

/// Number of the last outcomes that the other rule looks at.
pub const OUTCOMES_SEEN: usize = 20;

/// More overloads than this among the last [`OUTCOMES_SEEN`] open the breaker.
pub const OVERLOADS_SEEN_MAX: usize = 10;

/// Length of the first opening before a probe.
pub const OPEN_FIRST: Duration = Duration::from_secs(1);

/// Longest opening: less than the ten seconds within which a run resumes after an outage.
pub const OPEN_MAX: Duration = Duration::from_secs(8);

/// Whether requests pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BreakerState {
    /// All pass.
    Closed,
    /// None passes; a probe is due at `until`.
    Open {
        /// When the next probe is due.
        until: Instant,
    },
    /// One probe is under way, and nothing else passes.
    HalfOpen,
}

/// Counts signs of load and decides whether requests pass.
#[derive(Clone, Debug)]
pub struct Breaker {
    state: BreakerState,
    /// Overloads since the last outcome that was none.
    streak: u32,
    /// Outcomes before those, and the overloads among them, less what has faded.
    before: (f64, f64),
    /// The last outcomes, oldest first; `true` is an overload.
    seen: VecDeque<bool>,
    /// Length of the next opening.
    open_next: Duration,
    /// When the breaker left `Closed`.
    open_since: Option<Instant>,
    /// When it last closed again: what began before that says nothing about now.
    closed_at: Option<Instant>,
    /// When the probe under way began.
    probe_began: Option<Instant>,
}

impl Default for Breaker {
    fn default() -> Self {
        Breaker {
            state: BreakerState::Closed,
            streak: 0,
            before: (OUTCOMES_ASSUMED, 0.0),
            seen: VecDeque::with_capacity(OUTCOMES_SEEN),
            open_next: OPEN_FIRST,
            open_since: None,
            closed_at: None,
            probe_began: None,
        }
    }
}

impl Breaker {
    /// Takes note of how an ordinary request ended; probes have [`Breaker::probe_ended`].
    ///
    /// - `began`: when it was sent. One that began before the breaker last closed belongs to the outage and is ignored, as
    ///   is everything that ends while the breaker is not closed.
    /// - result: whether this opened it.
    pub fn record(&mut self, now: Instant, began: Instant, outcome: RequestOutcome) -> bool {
        if self.state != BreakerState::Closed || self.closed_at.is_some_and(|closed_at| began < closed_at) {
            return false;
        }
        let overloaded = match outcome {
            RequestOutcome::Abandoned => return false,
            RequestOutcome::Overloaded { .. } => true,
            RequestOutcome::Answered => {
                self.open_next = OPEN_FIRST;
                false
            }
            RequestOutcome::Failed { .. } => false,
        };
        if overloaded {
            self.streak += 1;
        } else {
            self.end_streak();
        }
        if self.seen.len() == OUTCOMES_SEEN {
            self.seen.pop_front();
        }
        self.seen.push_back(overloaded);

        let overloads = self.seen.iter().filter(|overloaded| **overloaded).count();
        let opens =
            self.streak >= self.streak_max() || (self.seen.len() == OUTCOMES_SEEN && overloads > OVERLOADS_SEEN_MAX);
        if opens {
            self.open_since = Some(now);
            self.open(now, now);
        }
        opens
    }

    /// Whether an ordinary request may be sent.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.state == BreakerState::Closed
    }

    /// Starts the probe when one is due. After `true` the caller must report how it ended.
    ///
    /// Due is: the breaker is open, its time is up, and no probe is under way.
    #[must_use]
    pub fn try_start_probe(&mut self, now: Instant) -> bool {
        match self.state {
            BreakerState::Open { until } if until <= now => {
                self.state = BreakerState::HalfOpen;
                self.probe_began = Some(now);
                true
            }
            _ => false,
        }
    }

    /// Closes the breaker after a probe that was answered, or opens it for longer than before.
    ///
    /// Without a probe under way it does nothing.
    pub fn probe_ended(&mut self, now: Instant, answered: bool) {
        let BreakerState::HalfOpen = self.state else { return };
        let began = self.probe_began.take().unwrap_or(now);
        if answered {
            self.state = BreakerState::Closed;
            self.streak = 0;
            self.seen.clear();
            self.open_since = None;
            self.closed_at = Some(now);
        } else {
            self.open(now, began);
        }
    }

    /// State of the breaker.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Since when no ordinary request has passed; `None` while they do. A failed probe does not change it.
    #[must_use]
    pub fn open_since(&self) -> Option<Instant> {
        self.open_since
    }

    /// Ends a streak, and counts it and the outcome that ended it in the source's share of overloads.
    fn end_streak(&mut self) {
        let overloads = f64::from(std::mem::take(&mut self.streak));
        let (outcomes_before, overloads_before) = self.before;
        let fade = (-(overloads + 1.0) / FADE_OUTCOMES).exp();
        self.before = (outcomes_before * fade + overloads + 1.0, overloads_before * fade + overloads);
    }

    /// Length of a streak that is not chance any more.
    fn streak_max(&self) -> u32 {
        let (outcomes, overloads) = self.before;
        let chance = CHANCE_MAX.ln() / (overloads / outcomes).ln();
        // A share of 0 makes it 0; the other rule opens the breaker before the share comes near 1.
        OVERLOAD_STREAK.max(chance.ceil().min(f64::from(u16::MAX)) as u32)
    }

    fn open(&mut self, now: Instant, from: Instant) {
        self.state = BreakerState::Open { until: (from + self.open_next).max(now) };
        self.open_next = (self.open_next * 2).min(OPEN_MAX);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OVERLOADED: RequestOutcome = RequestOutcome::Overloaded { retry_after: None };
    const FAILED: RequestOutcome = RequestOutcome::Failed { retry_after: None };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Outcomes as letters: o(verloaded), a(nswered), f(ailed), x (abandoned).
    fn record_all(breaker: &mut Breaker, now: Instant, outcomes: &str) {
        for letter in outcomes.chars() {
            let outcome = match letter {
                'o' => OVERLOADED,
                'a' => RequestOutcome::Answered,
                'f' => FAILED,
                _ => RequestOutcome::Abandoned,
            };
            breaker.record(now, now, outcome);
        }
    }

    #[test]
    fn what_opens_it_and_what_does_not() {
        for (outcomes, opens) in [
            ("oooo", false),
            ("ooooo", true),
            ("ooooaoooo", false),
            ("oooofoooo", false),
            ("ooooxo", true),
            ("ffffffffff", false),
            // 10 of 20, 11 of 20, 10 of 19
            ("oaoaoaoaoaoaoaoaoaoa", false),
            ("oaoaoaoaoaoaoaoaoaoo", true),
            ("oaoaoaoaoaoaoaoaoao", false),
            // the window moves on
            ("oaoaoaoaoaoaoaoaoaoaaaaaaaaaoooo", false),
        ] {
            let mut breaker = Breaker::default();
            record_all(&mut breaker, Instant::now(), outcomes);
            assert_eq!(!breaker.allows(), opens, "{outcomes}");
        }
    }

    #[test]
    fn the_row_that_opens_it_is_longer_where_the_source_always_refuses_some() {
        for (usual, row) in [("a", 5), ("aaaaaaaaaaaaaaaaaaao", 5), ("aaaao", 8), ("ffffffffffffffffffo", 5)] {
            let mut breaker = Breaker::default();
            record_all(&mut breaker, Instant::now(), &usual.repeat(1_000 / usual.len()));
            // The usual ends in an overload or not; the streak is counted from a request that is answered.
            record_all(&mut breaker, Instant::now(), "a");
            record_all(&mut breaker, Instant::now(), &"o".repeat(row - 1));
            assert!(breaker.allows(), "{usual}: {}", breaker.streak_max());
            record_all(&mut breaker, Instant::now(), "o");
            assert!(!breaker.allows(), "{usual}: {}", breaker.streak_max());
        }
    }

    #[test]
    fn an_outage_does_not_make_the_next_one_harder_to_see() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..5 {
            record_all(&mut breaker, now, &"a".repeat(100));
            record_all(&mut breaker, now, "ooooo");
            assert!(!breaker.allows());
            let BreakerState::Open { until } = breaker.state() else { panic!("open") };
            assert!(breaker.try_start_probe(until));
            breaker.probe_ended(now, true);
        }
    }

    #[test]
    fn only_one_probe_begins_and_only_when_its_time_has_come() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        assert!(!breaker.try_start_probe(start));
        record_all(&mut breaker, start, "ooooo");
        assert!(!breaker.try_start_probe(start + Duration::from_millis(999)));
        assert!(breaker.try_start_probe(start + s(1)));
        assert!(!breaker.try_start_probe(start + s(1)), "one at a time");
        assert!(!breaker.allows());
        breaker.probe_ended(start + s(2), true);
        assert!(breaker.allows());
        assert_eq!(breaker.open_since(), None);
    }

    #[test]
    fn probes_begin_after_1_2_4_and_then_every_8_seconds() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        record_all(&mut breaker, start, "ooooo");
        let mut began = Vec::new();
        for tenth in 0..500 {
            let now = start + Duration::from_millis(100) * tenth;
            if breaker.try_start_probe(now) {
                began.push((now - start).as_secs());
                // Each runs into a time limit of one second: the next is due all the same.
                breaker.probe_ended(now + s(1), false);
                assert_eq!(breaker.open_since(), Some(start));
            }
        }
        assert_eq!(began, [1, 3, 7, 15, 23, 31, 39, 47]);
    }

    #[test]
    fn a_ping_that_works_while_nothing_else_does_is_not_tried_every_second() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        let mut waits = Vec::new();
        for _ in 0..5 {
            record_all(&mut breaker, now, "ooooo");
            let BreakerState::Open { until } = breaker.state() else { panic!("open") };
            waits.push((until - now).as_secs());
            now = until;
            assert!(breaker.try_start_probe(now));
            breaker.probe_ended(now, true);
        }
        assert_eq!(waits, [1, 2, 4, 8, 8]);
        record_all(&mut breaker, now, "aooooo");
        assert_eq!(breaker.state(), BreakerState::Open { until: now + s(1) });
    }

    #[test]
    fn requests_that_began_in_an_outage_do_not_reopen_it_when_they_time_out_at_last() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        record_all(&mut breaker, start, "ooooo");
        assert!(breaker.try_start_probe(start + s(1)));
        breaker.probe_ended(start + s(1), true);
        for _ in 0..8 {
            assert!(!breaker.record(start + s(600), start, OVERLOADED));
        }
        assert!(breaker.allows());
        record_all(&mut breaker, start + s(600), "ooooo");
        assert!(!breaker.allows());
    }

    proptest! {
        #[test]
        fn an_open_breaker_always_offers_a_probe_within_eight_seconds(
            steps in prop::collection::vec((0u64..3000, 0u8..6, any::<bool>()), 1..200),
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::default();
            for (wait_ms, outcome, answered) in steps {
                now += Duration::from_millis(wait_ms);
                let letter = ["o", "o", "o", "o", "a", "f"][usize::from(outcome)];
                record_all(&mut breaker, now, letter);
                if breaker.try_start_probe(now) {
                    breaker.probe_ended(now + Duration::from_millis(wait_ms), answered);
                    now += Duration::from_millis(wait_ms);
                }
                match breaker.state() {
                    BreakerState::Closed => prop_assert_eq!(breaker.open_since(), None),
                    BreakerState::Open { until } => {
                        prop_assert!(until <= now + OPEN_MAX);
                        prop_assert!(breaker.open_since().is_some());
                    }
                    BreakerState::HalfOpen => prop_assert!(false, "every probe was ended"),
                }
            }
        }
    }
}
