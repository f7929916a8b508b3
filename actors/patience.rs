//! Asks a source again and again until it answers, or has been gone for too long.
//!
//! It is gone from its last answer on, not from the beginning of whatever is asked: a plan of many requests may take longer
//! than an outage may. A request under way is no silence, however long it takes; one that waits for its permit because the
//! breaker is open is.

use std::{future::Future, time::Duration};

use actix::Addr;
use harvester_pacing::{Backoff, breaker::OPEN_MAX};
use tokio::time::Instant;

use crate::{
    failure::{Failure, FailureClass},
    rate_limiter::{CurrentLimiter, RateLimiter},
    retry::{GARBLED_MAX, RetryPolicy},
};

/// How often the limiter is asked whether the breaker is open.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A wait of somebody who asks patiently.
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    /// Why it waits.
    pub failure: &'a Failure,
    /// How often it has been asked.
    pub attempts: u32,
    /// How long it is until it is asked again.
    pub delay: Duration,
    /// How long it may take until nobody asks any more.
    pub patience_left: Duration,
}

/// Sends `ask` until it succeeds, fails for good, or the source has been gone for `patience.outage`.
///
/// - `limiter`: who knows whether the breaker is open;
/// - `last_answer`: when the source last answered anything;
/// - `last_trouble`: what a request last failed of, for the sentence at the end of an outage in the middle of `ask`;
/// - `tell`: hears of each wait.
///
/// # Errors
/// The failure that is for good: not transient, or garbled more than [`GARBLED_MAX`] times, or the last one of an outage.
pub async fn patiently<T, F>(
    patience: RetryPolicy,
    limiter: Option<&Addr<RateLimiter>>,
    last_answer: impl Fn() -> Option<Instant>,
    last_trouble: impl Fn() -> Option<String>,
    tell: impl Fn(Wait<'_>),
    ask: impl Fn() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let began = Instant::now();
    let silence = || last_answer().filter(|answer| *answer > began).unwrap_or(began).elapsed();
    let mut backoff = Backoff::new(patience.seed);
    let mut garbled = 0;
    let mut last: Option<Failure> = None;
    for attempts in 1.. {
        let asked = tokio::select! {
            asked = ask() => asked,
            () = gone(limiter, patience.outage, &silence) => {
                let cause = last_trouble().or_else(|| last.take().map(|failure| failure.message));
                return Err(has_gone(patience.outage, cause));
            }
        };
        let failure = match asked {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        match failure.class {
            FailureClass::Transient => {}
            FailureClass::Garbled if garbled < GARBLED_MAX => garbled += 1,
            _ => return Err(failure),
        }
        let patience_left = patience.outage.saturating_sub(silence());
        // Whoever is asked to come back later than patience lasts, or has none left, stops here.
        let is_over = patience_left.is_zero() || failure.retry_after.is_some_and(|wish| wish > patience_left);
        if is_over && failure.class == FailureClass::Transient {
            return Err(failure);
        }
        let mut delay = backoff.next(failure.retry_after);
        if failure.retry_after.is_none() {
            // Never longer than the breaker waits, and a last time when patience ends: a source that is back by then is not
            // given up.
            delay = delay.min(OPEN_MAX);
            if failure.class == FailureClass::Transient {
                delay = delay.min(patience_left);
            }
        }
        tell(Wait { failure: &failure, attempts, delay, patience_left });
        last = Some(failure);
        tokio::time::sleep(delay).await;
    }
    unreachable!("the loop above has no end")
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

    const PATIENCE: RetryPolicy = RetryPolicy { retries: 6, outage: Duration::from_secs(60), seed: 1 };

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
            let patience = RetryPolicy { outage: Duration::from_secs(45), seed, ..PATIENCE };
            let ask = || async { if began.elapsed() < Duration::from_secs(30) { Err(transient()) } else { Ok(()) } };
            let asked = patiently(patience, None, || None, || None, |_| {}, ask).await;
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
        let asked = patiently(
            PATIENCE,
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
        let asked = patiently(
            PATIENCE,
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
        let asked = patiently(PATIENCE, None, || None, || None, |_| {}, || async { Err::<(), _>(transient()) });
        let began = Instant::now();
        asked.await.unwrap_err();
        let late = began.elapsed().checked_sub(PATIENCE.outage).expect("its patience was over too early");
        assert!(late < Duration::from_millis(10), "{late:?} late");
    }

    #[actix::test]
    async fn what_is_for_good_is_not_asked_again_and_what_is_garbled_three_times() {
        tokio::time::pause();
        for (class, attempts) in [(FailureClass::Rejected, 1), (FailureClass::Denied, 1), (FailureClass::Garbled, 4)] {
            let count = Cell::new(0);
            let asked = patiently(
                PATIENCE,
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
