//! Repeats what needs the source until it succeeds, or the source has been unavailable for too long.
//!
//! An outage begins with the last answer, not with the request: a plan of many requests may take longer than an outage may.
//! A request under way is not silence, however long it takes; one that waits because the breaker is open is.

use std::{future::Future, time::Duration};

use actix::Addr;
use harvester_pacing::{Retry, RetryAnswer, breaker::OPEN_MAX, retry::ATTEMPTS_MAX};
use tokio::time::Instant;

use crate::{
    failure::{Failure, FailureClass},
    rate_limiter::{CurrentLimiter, RateLimiter},
    retry::{RetryPolicy, retry_cause},
};

/// How often the limiter is asked whether the breaker is open.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A wait between two attempts.
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    /// Why it waits.
    pub failure: &'a Failure,
    /// Failed attempts.
    pub attempts: u32,
    /// Until the next attempt.
    pub delay: Duration,
    /// Until it is given up.
    pub patience_left: Duration,
}

/// Repeats `attempt` until it succeeds, fails for good, or the source has been unavailable for `policy.outage`.
///
/// - `limiter`: knows whether the breaker is open;
/// - `last_answer`: when the source last answered anything;
/// - `last_trouble`: what a request last failed of, for the message at the end of an outage in the middle of an attempt;
/// - `on_wait`: is told of each wait.
///
/// # Errors
/// The failure that is final, or the last one of an outage.
pub async fn retry_until_outage<T, F>(
    policy: RetryPolicy,
    limiter: Option<&Addr<RateLimiter>>,
    last_answer: impl Fn() -> Option<Instant>,
    last_trouble: impl Fn() -> Option<String>,
    on_wait: impl Fn(Wait<'_>),
    attempt: impl Fn() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    // Never longer than the breaker waits, so that a source that is back is found as soon.
    let policy = RetryPolicy { retries: 0, attempts_max: u32::MAX, wait_max: OPEN_MAX, ..policy };
    let began = Instant::now();
    let silence = || last_answer().filter(|answer| *answer > began).unwrap_or(began).elapsed();
    let mut retry = Retry::new(policy.seed);
    let mut last: Option<Failure> = None;
    loop {
        let done = tokio::select! {
            done = attempt() => done,
            () = gone(limiter, policy.outage, &silence) => {
                let cause = last_trouble().or_else(|| last.take().map(|failure| failure.message));
                return Err(has_gone(policy.outage, cause));
            }
        };
        let failure = match done {
            Ok(done) => return Ok(done),
            Err(failure) => failure,
        };
        // What keeps failing although the source answers has had its chance: the failures may be the answers.
        let silence = if retry.attempts() >= ATTEMPTS_MAX { began.elapsed() } else { silence() };
        let delay = match retry.failed(retry_cause(&failure), silence, &policy) {
            RetryAnswer::RetryIn(delay) => delay,
            RetryAnswer::GiveUp | RetryAnswer::Outage | RetryAnswer::Exhausted => return Err(failure),
        };
        let patience_left = policy.outage.saturating_sub(silence);
        on_wait(Wait { failure: &failure, attempts: retry.attempts(), delay, patience_left });
        last = Some(failure);
        tokio::time::sleep(delay).await;
    }
}

/// Waits until the breaker is open and the source has been silent for `outage`.
async fn gone(limiter: Option<&Addr<RateLimiter>>, outage: Duration, silence: &impl Fn() -> Duration) {
    let Some(limiter) = limiter else { return std::future::pending().await };
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let is_open = limiter.send(CurrentLimiter).await.is_ok_and(|pace| pace.open_since.is_some());
        if is_open && silence() >= outage {
            return;
        }
    }
}

/// The source has not come back.
fn has_gone(outage: Duration, cause: Option<String>) -> Failure {
    let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::new(FailureClass::Transient, format!("the source has not answered for {} s{cause}", outage.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::Arc};

    use actix::Actor;
    use futures_core::future::LocalBoxFuture;

    use super::*;
    use crate::rate_limiter::{RateLimiterSettings, SourceProbe, next_permit};

    /// One minute.
    const OUTAGE: Duration = Duration::from_secs(60);

    fn policy() -> RetryPolicy {
        RetryPolicy::new(6, OUTAGE, 1)
    }

    fn transient() -> Failure {
        Failure::new(FailureClass::Transient, "connection refused")
    }

    struct NeverBack;

    impl SourceProbe for NeverBack {
        fn probe(&self) -> LocalBoxFuture<'_, bool> {
            Box::pin(async { false })
        }
    }

    #[actix::test]
    async fn a_source_that_is_back_well_before_patience_ends_is_not_given_up() {
        tokio::time::pause();
        for seed in 0..200 {
            let began = Instant::now();
            let policy = RetryPolicy { outage: Duration::from_secs(45), seed, ..policy() };
            let ask = || async { if began.elapsed() < Duration::from_secs(30) { Err(transient()) } else { Ok(()) } };
            let asked = retry_until_outage(policy, None, || None, || None, |_| {}, ask).await;
            assert!(asked.is_ok(), "seed {seed}: given up after {:?}", began.elapsed());
        }
    }

    #[actix::test]
    async fn a_wait_for_a_permit_behind_an_open_breaker_ends_once_the_source_has_been_gone_for_too_long() {
        tokio::time::pause();
        let settings = RateLimiterSettings { requests_per_second: 200, in_flight: 8, cold_start: false, seed: 1 };
        let limiter = RateLimiter::new(settings, Arc::new(NeverBack)).start();
        let began = Instant::now();
        let waits = Cell::new(0);
        let asked = retry_until_outage(
            policy(),
            Some(&limiter),
            || None,
            || None,
            |_| waits.set(waits.get() + 1),
            || async {
                let permit = next_permit(&limiter, false).await.unwrap();
                permit
                    .end(harvester_pacing::RequestOutcome::Overloaded { retry_after: None }, Duration::from_millis(1));
                Err::<(), _>(transient())
            },
        );
        let failure =
            tokio::time::timeout(Duration::from_secs(3_600), asked).await.expect("it waits for ever").unwrap_err();
        assert_eq!(failure.class, FailureClass::Transient);
        assert!(failure.message.contains("connection refused"), "{failure}");
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(59) && took <= Duration::from_secs(62), "{took:?}");
        assert!(waits.get() > 0, "nobody was told");
    }

    #[actix::test]
    async fn an_outage_is_measured_from_the_last_answer() {
        tokio::time::pause();
        // Three minutes of a plan that gets one answer every ten seconds, and fails in between.
        let began = Instant::now();
        let answered = || Some(began + Duration::from_secs(began.elapsed().as_secs() / 10 * 10));
        let asked = retry_until_outage(
            policy(),
            None,
            answered,
            || None,
            |_| {},
            || async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if began.elapsed() > Duration::from_secs(180) { Ok(()) } else { Err(transient()) }
            },
        );
        asked.await.unwrap();
        // Nothing at all for as long as an outage may last.
        let asked =
            retry_until_outage(policy(), None, || None, || None, |_| {}, || async { Err::<(), _>(transient()) });
        let began = Instant::now();
        asked.await.unwrap_err();
        let late = began.elapsed().checked_sub(OUTAGE).expect("its patience was over too early");
        assert!(late < Duration::from_millis(10), "{late:?} late");
    }

    #[actix::test]
    async fn a_source_that_answers_with_failures_for_ever_is_given_up_as_well() {
        tokio::time::pause();
        let began = Instant::now();
        let answers = || Some(Instant::now());
        let asked =
            retry_until_outage(policy(), None, answers, || None, |_| {}, || async { Err::<(), _>(transient()) });
        let asked = tokio::time::timeout(Duration::from_secs(3_600), asked).await.expect("it asks for ever");
        assert_eq!(asked.unwrap_err(), transient());
        assert!(began.elapsed() >= OUTAGE, "{:?}", began.elapsed());
    }

    #[actix::test]
    async fn what_is_for_good_is_not_asked_again_and_what_is_garbled_three_times() {
        tokio::time::pause();
        for (class, attempts) in [(FailureClass::Rejected, 1), (FailureClass::Denied, 1), (FailureClass::Garbled, 4)] {
            let count = Cell::new(0);
            let asked = retry_until_outage(
                policy(),
                None,
                || None,
                || None,
                |_| {},
                || {
                    count.set(count.get() + 1);
                    async move { Err::<(), _>(Failure::new(class, "no")) }
                },
            );
            assert_eq!(asked.await.unwrap_err().class, class);
            assert_eq!(count.get(), attempts, "{class:?}");
        }
    }
}
