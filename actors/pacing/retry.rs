//! Whether and when a failed request is sent again: one decision for pages, plans, single requests and a client by itself.
//!
//! Pure: the caller says what the failure is worth and how long nothing has succeeded; it waits, or gives up, as it is told.

use std::time::Duration;

use crate::backoff::{Backoff, WAIT_MAX};

/// Responses to one request that may be complete but wrong before that is final.
pub const GARBLED_MAX: u32 = 3;

/// Attempts at one request, however well other requests do, before it is given up.
pub const ATTEMPTS_MAX: u32 = 30;

/// What a failure says about the next attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryCause {
    /// The same request may succeed later.
    MayPass {
        /// How long the server asked clients to wait.
        retry_after: Option<Duration>,
    },
    /// The response was complete but wrong: it may have been a proxy's, or is what the server means.
    Garbled {
        /// How long the server asked clients to wait.
        retry_after: Option<Duration>,
    },
    /// The same request fails again.
    Final,
}

/// When a request is given up.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts after the first that are made however long nothing has succeeded.
    pub retries: u32,
    /// How long nothing may succeed before a request is given up after those; also the longest wait that a server may ask for.
    pub outage: Duration,
    /// Attempts after which it is given up although other requests succeed.
    pub attempts_max: u32,
    /// The longest wait, unless the server asks for a longer one.
    pub wait_max: Duration,
    /// Makes the waits reproducible.
    pub seed: u64,
}

impl RetryPolicy {
    /// So many retries, then until nothing has succeeded for `outage`; at most [`ATTEMPTS_MAX`] attempts.
    #[must_use]
    pub fn new(retries: u32, outage: Duration, seed: u64) -> Self {
        RetryPolicy { retries, outage, attempts_max: ATTEMPTS_MAX, wait_max: WAIT_MAX, seed }
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RetryAnswer {
    /// Send it again after this delay.
    RetryIn(Duration),
    /// Give it up for good.
    GiveUp,
    /// Give up for now: nothing has succeeded for too long, or the server asks for too long a wait.
    Outage,
    /// Give this request up for now: other requests succeed, and this one has failed too often.
    Exhausted,
}

/// The failures of one request so far.
#[derive(Clone, Debug)]
pub struct Retry {
    /// Failed attempts.
    attempts: u32,
    /// Of these, responses that were complete but wrong.
    garbled: u32,
    /// Its waits.
    backoff: Backoff,
}

impl Retry {
    /// No failure yet; equal seeds wait equally.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Retry { attempts: 0, garbled: 0, backoff: Backoff::new(seed) }
    }

    /// Failed attempts so far.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Forgets the failures, after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
        self.garbled = 0;
        self.backoff.reset();
    }

    /// Decides after one more failure.
    ///
    /// - `silence`: how long nothing has succeeded.
    pub fn failed(&mut self, cause: RetryCause, silence: Duration, policy: &RetryPolicy) -> RetryAnswer {
        self.attempts += 1;
        let retry_after = match cause {
            RetryCause::MayPass { retry_after } => retry_after,
            RetryCause::Garbled { retry_after } => {
                self.garbled += 1;
                if self.garbled > GARBLED_MAX {
                    return RetryAnswer::GiveUp;
                }
                retry_after
            }
            RetryCause::Final => return RetryAnswer::GiveUp,
        };
        let is_over = self.attempts > policy.retries && silence >= policy.outage;
        if is_over || retry_after.is_some_and(|wait| wait > policy.outage) {
            return RetryAnswer::Outage;
        }
        if self.attempts >= policy.attempts_max {
            return RetryAnswer::Exhausted;
        }
        let wait = self.backoff.next(None).min(policy.wait_max);
        // A last time when patience ends: a source that is back by then is not given up.
        let left = policy.outage.saturating_sub(silence);
        let wait = if left.is_zero() { wait } else { wait.min(left) };
        RetryAnswer::RetryIn(wait.max(retry_after.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAY_PASS: RetryCause = RetryCause::MayPass { retry_after: None };
    const GARBLED: RetryCause = RetryCause::Garbled { retry_after: None };
    const MINUTE: Duration = Duration::from_secs(60);

    /// After how many failures of one kind a request is given up, and how.
    fn given_up(cause: RetryCause, silence: Duration, policy: RetryPolicy) -> (u32, RetryAnswer) {
        let mut retry = Retry::new(7);
        loop {
            match retry.failed(cause, silence, &policy) {
                RetryAnswer::RetryIn(wait) => assert!(wait <= policy.wait_max),
                answer => return (retry.attempts(), answer),
            }
        }
    }

    #[test]
    fn each_cause_has_its_own_end() {
        let page = RetryPolicy::new(6, MINUTE, 1);
        let once_more = RetryPolicy { attempts_max: 2, ..RetryPolicy::new(1, Duration::MAX, 1) };
        let wait = |seconds| RetryCause::MayPass { retry_after: Some(Duration::from_secs(seconds)) };
        for (cause, silence, policy, end) in [
            (MAY_PASS, Duration::ZERO, page, (30, RetryAnswer::Exhausted)),
            (MAY_PASS, MINUTE, page, (7, RetryAnswer::Outage)),
            (MAY_PASS, MINUTE, RetryPolicy::new(0, MINUTE, 1), (1, RetryAnswer::Outage)),
            (MAY_PASS, Duration::ZERO, once_more, (2, RetryAnswer::Exhausted)),
            (MAY_PASS, Duration::ZERO, RetryPolicy::new(5, Duration::ZERO, 1), (6, RetryAnswer::Outage)),
            (GARBLED, Duration::ZERO, page, (4, RetryAnswer::GiveUp)),
            (RetryCause::Final, Duration::ZERO, page, (1, RetryAnswer::GiveUp)),
            (wait(61), Duration::ZERO, page, (1, RetryAnswer::Outage)),
        ] {
            assert_eq!(given_up(cause, silence, policy), end, "{cause:?} after {silence:?} of {policy:?}");
        }
    }

    #[test]
    fn a_wait_is_as_long_as_the_server_asks_and_else_ends_with_patience() {
        for seed in 0..100 {
            let mut retry = Retry::new(seed);
            for silence in 0..59 {
                let silence = Duration::from_secs(silence);
                let policy = RetryPolicy { attempts_max: u32::MAX, ..RetryPolicy::new(0, MINUTE, seed) };
                let asked = RetryCause::MayPass { retry_after: Some(Duration::from_secs(40)) };
                let RetryAnswer::RetryIn(wait) = retry.failed(asked, silence, &policy) else { panic!("given up") };
                assert!(wait >= Duration::from_secs(40));
                let RetryAnswer::RetryIn(wait) = retry.failed(MAY_PASS, silence, &policy) else { panic!("given up") };
                assert!(silence + wait <= MINUTE, "seed {seed}: {silence:?} and {wait:?}");
            }
        }
    }

    #[test]
    fn a_success_makes_the_next_failure_the_first_one() {
        let policy = RetryPolicy::new(0, MINUTE, 1);
        let mut retry = Retry::new(1);
        for _ in 0..100 {
            assert!(matches!(retry.failed(GARBLED, Duration::ZERO, &policy), RetryAnswer::RetryIn(_)));
            retry.reset();
        }
        assert_eq!(retry.attempts(), 0);
    }
}
