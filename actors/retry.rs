//! Decides what becomes of a page that failed: asked for again and when, smaller, given up, or the end of the run.
//!
//! Pure: the planner keeps a [`RetryState`] for each partition that fails, and does what [`decide_retry`] says.

use std::time::Duration;

pub use harvester_pacing::RetryPolicy;
use harvester_pacing::{Retry, RetryAnswer, RetryCause};
use tokio::time::Instant;

use crate::{
    failure::{Failure, FailureClass, Weight},
    source::PageSize,
};

/// Halvings of a page before it counts as refused: 1,000 rows are then one.
pub const HALVINGS_MAX: u32 = 10;

/// What a failure says about the next attempt at the same request.
pub fn retry_cause(failure: &Failure) -> RetryCause {
    let retry_after = failure.retry_after;
    match failure.class {
        FailureClass::Transient => RetryCause::MayPass { retry_after },
        FailureClass::Garbled => RetryCause::Garbled { retry_after },
        FailureClass::TooHeavy
        | FailureClass::Rejected
        | FailureClass::Forbidden
        | FailureClass::Denied
        | FailureClass::Changed
        | FailureClass::Local
        | FailureClass::Damaged
        | FailureClass::Bug => RetryCause::Final,
    }
}

/// The failures of one page so far, and its waits.
#[derive(Clone, Debug)]
pub struct RetryState {
    /// Since when it has failed in a way that can mean too much weight when repeated.
    pub heavy_since: Option<Instant>,
    /// How often its pages have been halved.
    pub size: PageSize,
    /// Its failed attempts and waits.
    retry: Retry,
}

impl RetryState {
    /// No failure yet; `seed` makes its waits its own.
    pub fn new(seed: u64) -> Self {
        RetryState { heavy_since: None, size: PageSize::default(), retry: Retry::new(seed) }
    }

    /// Failed attempts at the present page.
    pub fn attempts(&self) -> u32 {
        self.retry.attempts()
    }
}

/// What becomes of a partition whose page failed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RetryDecision {
    /// The page is asked for again after this delay.
    Retry(Duration),
    /// Nothing more of it can be had, ever.
    Failed(Failure),
    /// It was only taken because everything was, and this user does not get it.
    LeftOut(Failure),
    /// Nothing more of it can be had for now.
    Unavailable(Failure),
    /// Nothing more of anything can be had.
    EndRun(Failure),
}

/// How the source has answered of late.
#[derive(Clone, Copy, Debug)]
pub struct SourceState {
    /// The present moment.
    pub now: Instant,
    /// When the latest of the pages that it gave was asked for. One that was under way when it failed says nothing.
    pub last_asked: Instant,
    /// How long it has answered nothing at all.
    pub silence: Duration,
}

/// Decides what becomes of a partition whose page failed, and keeps account in `state`.
///
/// `optional` says that the partition may be left out.
pub fn decide_retry(
    state: &mut RetryState,
    failure: Failure,
    source: SourceState,
    optional: bool,
    policy: RetryPolicy,
) -> RetryDecision {
    let mut cause = retry_cause(&failure);
    if is_too_heavy(state, &failure, source) && state.size.halvings < HALVINGS_MAX && !failure.is_smallest {
        state.size.halvings += 1;
        state.heavy_since = None;
        cause = RetryCause::MayPass { retry_after: failure.retry_after };
    }
    match state.retry.failed(cause, source.silence, &policy) {
        RetryAnswer::RetryIn(delay) => RetryDecision::Retry(delay),
        RetryAnswer::Outage => RetryDecision::EndRun(failure),
        RetryAnswer::Exhausted => RetryDecision::Unavailable(failure),
        RetryAnswer::GiveUp => match failure.class {
            FailureClass::Rejected | FailureClass::Forbidden if optional => RetryDecision::LeftOut(failure),
            FailureClass::Rejected
            | FailureClass::Forbidden
            | FailureClass::Garbled
            | FailureClass::TooHeavy
            | FailureClass::Transient => RetryDecision::Failed(failure),
            FailureClass::Denied
            | FailureClass::Changed
            | FailureClass::Local
            | FailureClass::Damaged
            | FailureClass::Bug => RetryDecision::EndRun(failure),
        },
    }
}

/// Whether a failure means that the page is too heavy, by itself or because it comes again.
fn is_too_heavy(state: &mut RetryState, failure: &Failure, source: SourceState) -> bool {
    if failure.class != FailureClass::Transient || failure.weight == Weight::Unsaid {
        return failure.class == FailureClass::TooHeavy;
    }
    let since = *state.heavy_since.get_or_insert(source.now);
    let others_came = source.last_asked > since || !harvester_pacing::control!("outage-weight");
    since < source.now && (failure.weight == Weight::HeavyIfRepeated || others_came)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(601);

    fn policy() -> RetryPolicy {
        RetryPolicy::new(6, Duration::from_secs(600), 1)
    }

    /// A source of which pages come.
    fn good() -> SourceState {
        let now = Instant::now();
        SourceState { now, last_asked: now + LONG, silence: Duration::ZERO }
    }

    /// What is decided when one page fails in the same way again and again, until it is not asked for again.
    fn decide(failure: &Failure, silence: Duration, optional: bool) -> (u32, RetryDecision, u32) {
        let mut source = SourceState { silence, ..good() };
        let mut state = RetryState::new(7);
        for attempt in 1.. {
            source.now += Duration::from_secs(1);
            let decision = decide_retry(&mut state, failure.clone(), source, optional, policy());
            if !matches!(decision, RetryDecision::Retry(_)) {
                return (attempt, decision, state.size.halvings);
            }
        }
        unreachable!("the loop above has no end")
    }

    #[test]
    fn each_class_has_its_own_end() {
        use FailureClass as C;
        let short = Duration::ZERO;
        for (class, silence, optional, attempts, end) in [
            (C::Transient, short, false, 30, "unavailable"),
            (C::Transient, LONG, false, 7, "end"),
            (C::Garbled, short, false, 4, "failed"),
            (C::Garbled, LONG, false, 4, "failed"),
            (C::TooHeavy, short, false, 11, "failed"),
            (C::Rejected, short, false, 1, "failed"),
            (C::Rejected, short, true, 1, "left out"),
            (C::Forbidden, short, false, 1, "failed"),
            (C::Forbidden, short, true, 1, "left out"),
            (C::Denied, short, true, 1, "end"),
            (C::Changed, short, false, 1, "end"),
            (C::Local, short, false, 1, "end"),
            (C::Damaged, short, false, 1, "end"),
            (C::Bug, short, false, 1, "end"),
        ] {
            let (after, decision, _) = decide(&Failure::new(class, "it failed"), silence, optional);
            let word = match decision {
                RetryDecision::Retry(_) => "retry",
                RetryDecision::Failed(_) => "failed",
                RetryDecision::LeftOut(_) => "left out",
                RetryDecision::Unavailable(_) => "unavailable",
                RetryDecision::EndRun(_) => "end",
            };
            assert_eq!((after, word), (attempts, end), "{class:?}, silent for {silence:?}, optional: {optional}");
        }
    }

    #[test]
    fn a_page_that_fails_twice_is_halved_where_it_is_the_pages_own_fault_and_then_has_new_luck() {
        let outage = SourceState { last_asked: good().now, silence: Duration::from_secs(9), ..good() };
        for (weight, mut source, halvings) in [
            (Weight::HeavyIfRepeated, good(), [0, 1, 1, 2, 2, 3]),
            (Weight::HeavyIfRepeated, outage, [0, 1, 1, 2, 2, 3]),
            (Weight::HeavyIfOthersCome, good(), [0, 1, 1, 2, 2, 3]),
            (Weight::HeavyIfOthersCome, outage, [0; 6]),
            (Weight::Unsaid, good(), [0; 6]),
        ] {
            let failure = Failure::new(FailureClass::Transient, "504").with_weight(weight);
            let mut state = RetryState::new(7);
            let halved = halvings.map(|_| {
                source.now += Duration::from_secs(1);
                assert!(matches!(
                    decide_retry(&mut state, failure.clone(), source, false, policy()),
                    RetryDecision::Retry(_)
                ));
                state.size.halvings
            });
            assert_eq!(halved, halvings, "{weight:?}, {source:?}");
        }
    }

    #[test]
    fn a_wait_the_server_asks_for_is_kept_and_one_beyond_the_outage_ends_the_run() {
        let asked = |seconds| {
            let failure = Failure::new(FailureClass::Transient, "503");
            let failure = failure.with_retry_after(Some(Duration::from_secs(seconds)));
            decide_retry(&mut RetryState::new(7), failure, good(), false, policy())
        };
        assert!(matches!(asked(90), RetryDecision::Retry(delay) if delay >= Duration::from_secs(90)));
        assert!(matches!(asked(601), RetryDecision::EndRun(_)));
    }
}
