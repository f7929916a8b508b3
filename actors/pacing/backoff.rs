//! A failed thing waits longer each time, at random between nothing and a bound that doubles.
//!
//! Full jitter: the wait is uniform between zero and the bound, so that many that failed together do not come back
//! together. The bounds come from the `backoff` crate's `next_backoff`; its own jitter is switched off, because it draws
//! from a generator that cannot be seeded, reaches at most from zero to *twice* its interval, and is applied after the
//! cap (90 s for a cap of 60). The drawing is done here instead.
//!
//! That crate is no longer maintained (RUSTSEC-2025-0012). This is the only file that knows it: to replace
//! it, change `Backoff::bound`.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, SystemClock, backoff::Backoff as _, exponential};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

/// The bound of the first wait.
pub const WAIT_FIRST: Duration = Duration::from_millis(500);

/// No bound is longer than this, and so no wait, unless the server asks for more.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// How much longer each bound is than the one before.
const GROWTH: f64 = 2.0;

/// The waits of one thing that fails again and again.
///
/// It never says that enough is enough: attempts are counted where the decision is made.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// Where the bounds come from; without jitter, without an end.
    bounds: exponential::ExponentialBackoff<SystemClock>,
    /// What draws a wait below the bound.
    random: SmallRng,
}

impl Backoff {
    /// Waits that are the same for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Backoff::from_random(SmallRng::seed_from_u64(seed))
    }

    /// Waits that go on where something that failed `attempts` times stopped, for instance before a restart.
    #[must_use]
    pub fn resumed(seed: u64, attempts: u32) -> Self {
        let mut backoff = Backoff::new(seed.wrapping_add(u64::from(attempts)));
        // More steps than it takes to reach the longest wait change nothing.
        for _ in 0..attempts.min(32) {
            backoff.bound();
        }
        backoff
    }

    fn from_random(random: SmallRng) -> Self {
        let bounds: ExponentialBackoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(WAIT_FIRST)
            .with_multiplier(GROWTH)
            .with_max_interval(WAIT_MAX)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        Backoff { bounds, random }
    }

    /// How long to wait after one more failure: what the server asked for, or longer.
    ///
    /// - `retry_after`: what the server asked for; never shortened.
    /// - result: at most [`WAIT_MAX`], or `retry_after` where that is longer.
    pub fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let wait = self.bound().mul_f64(self.random.random_range(0.0..=1.0));
        wait.max(retry_after.unwrap_or_default())
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.bounds.reset();
    }

    /// The longest that the next wait may be, and one step further.
    fn bound(&mut self) -> Duration {
        // The crate answers `None` only when a longest total time is set, and none is.
        self.bounds.next_backoff().unwrap_or(WAIT_MAX).min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS_MS: [u64; 10] = [500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000];

    #[test]
    fn the_bound_doubles_from_half_a_second_to_a_minute() {
        let mut backoff = Backoff::new(1);
        for bound_ms in BOUNDS_MS {
            let bound = backoff.bound();
            assert_eq!(bound.as_millis() as u64, bound_ms);
        }
        backoff.reset();
        assert_eq!(backoff.bound().as_millis(), 500);
    }

    #[test]
    fn waits_fill_the_whole_range_down_to_nothing() {
        let waits: Vec<_> = (0..2000).map(|seed| Backoff::new(seed).next(None)).collect();
        for tenth in 0..10 {
            let within = waits.iter().filter(|wait| (wait.as_millis() / 50).min(9) == tenth).count();
            assert!((120..=280).contains(&within), "{within} of 2000 in tenth {tenth}");
        }
    }

    #[test]
    fn a_wait_is_never_shorter_than_the_server_asked() {
        let mut backoff = Backoff::new(3);
        assert_eq!(backoff.next(Some(Duration::from_secs(90))), Duration::from_secs(90));
        for _ in 0..20 {
            assert!(backoff.next(Some(Duration::from_millis(250))) >= Duration::from_millis(250));
        }
    }

    #[test]
    fn what_failed_three_times_before_a_restart_goes_on_with_the_fourth_bound() {
        assert_eq!(Backoff::resumed(1, 3).bound().as_millis(), 4000);
        assert_eq!(Backoff::resumed(1, u32::MAX).bound(), WAIT_MAX);
    }

    proptest! {
        #[test]
        fn no_wait_exceeds_its_bound_and_equal_seeds_wait_equally(seed: u64) {
            let mut backoff = Backoff::new(seed);
            let mut again = Backoff::new(seed);
            for bound_ms in BOUNDS_MS {
                let wait = backoff.next(None);
                prop_assert!(wait <= Duration::from_millis(bound_ms) + Duration::from_nanos(1));
                prop_assert_eq!(wait, again.next(None));
            }
        }
    }
}
