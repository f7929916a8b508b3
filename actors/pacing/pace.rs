//! The pace spreads the sends of a window: k of them every k/N seconds, in the coarsest steps that stay kind.
//!
//! These are the numbers for a leaky bucket. leaky-bucket re-arms its timer from *now*, so each tick's overshoot is lost
//! for good: ticks of 5 ms cost 14 % of the rate, ticks of 50 ms about none (crates.md A3). Hence k is the smallest
//! number of sends whose share of a second is at least 50 ms. The bucket holds no more than one tick's worth and starts
//! empty, so that it never adds more than k to a window; the exact bound is the window's, not the bucket's.

use std::time::Duration;

/// The shortest tick that a leaky bucket keeps without losing a noticeable part of the rate.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// How a leaky bucket is to be set for one limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// How many sends one tick releases, and how many the bucket may hold: refill and max.
    pub permits: u32,
    /// How often it ticks; at least 50 ms.
    pub interval: Duration,
}

impl Pace {
    /// The pace for `requests_per_second`; 0 counts as 1.
    #[must_use]
    pub fn of(requests_per_second: u32) -> Self {
        let requests_per_second = u64::from(requests_per_second.max(1));
        let permits = (requests_per_second * INTERVAL_MIN.as_millis() as u64).div_ceil(1000).max(1);
        let interval = Duration::from_nanos(permits * 1_000_000_000 / requests_per_second);
        Pace { permits: u32::try_from(permits).unwrap_or(u32::MAX), interval }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_pace_of_common_limits() {
        for (requests_per_second, permits, interval_ms) in
            [(0, 1, 1000), (1, 1, 1000), (5, 1, 200), (20, 1, 50), (50, 3, 60), (200, 10, 50), (2000, 100, 50)]
        {
            let pace = Pace::of(requests_per_second);
            assert_eq!((pace.permits, pace.interval), (permits, Duration::from_millis(interval_ms)));
        }
    }

    proptest! {
        #[test]
        fn a_pace_is_the_limit_in_the_smallest_steps_of_50_ms_or_more(requests_per_second in 1u32..) {
            let pace = Pace::of(requests_per_second);
            let rate = f64::from(pace.permits) / pace.interval.as_secs_f64();
            prop_assert!((rate / f64::from(requests_per_second) - 1.0).abs() < 1e-6, "{rate}");
            prop_assert!(pace.interval >= INTERVAL_MIN);
            prop_assert!(pace.permits == 1 || f64::from(pace.permits - 1) / f64::from(requests_per_second) < 0.05);
        }
    }
}
