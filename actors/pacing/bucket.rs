//! The bucket spreads the sends of a window: a few every 50 ms or so.
//!
//! These are the numbers for a leaky bucket. leaky-bucket re-arms its timer from *now*, so each tick's overshoot is lost
//! for good: ticks of 5 ms cost 14 % of the rate, ticks of 50 ms about none (measured with leaky-bucket 1.1). Hence a tick releases the
//! smallest number of sends that makes it at least 50 ms long. On a busy machine a tick comes several milliseconds late, and a
//! bucket that is exactly as fast as the limit then costs more of it than the window does (measured: 44/s of 50/s at a
//! load of five per core). So the bucket is a tenth faster, and the exact bound is the window's.
//! It holds no more than one tick's worth and starts empty, so that an idle time earns no burst.

use std::time::Duration;

/// The shortest tick that a leaky bucket keeps without losing a noticeable part of the rate.
const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// Rate of the bucket in percent of the limit: so much lateness costs nothing. More would leave gaps at the end of each
/// window.
const HEADROOM_PERCENT: u64 = 110;

/// Settings of a leaky bucket for one limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BucketSettings {
    /// Sends that one tick releases, and that the bucket may hold: refill and max.
    pub permits: u32,
    /// Interval of the ticks; at least 50 ms.
    pub interval: Duration,
}

impl BucketSettings {
    /// The settings for `requests_per_second`; 0 counts as 1.
    #[must_use]
    pub fn of(requests_per_second: u32) -> Self {
        let per_100_s = u64::from(requests_per_second.max(1)) * HEADROOM_PERCENT;
        let permits = (per_100_s * INTERVAL_MIN.as_millis() as u64).div_ceil(100_000).max(1);
        let interval_ns = u128::from(permits) * 100_000_000_000 / u128::from(per_100_s);
        let interval = Duration::from_nanos(u64::try_from(interval_ns).unwrap_or(u64::MAX));
        BucketSettings { permits: u32::try_from(permits).unwrap_or(u32::MAX), interval }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bucket_of_common_limits() {
        for (requests_per_second, permits, interval_us) in [
            (0, 1, 909_090),
            (1, 1, 909_090),
            (5, 1, 181_818),
            (20, 2, 90_909),
            (50, 3, 54_545),
            (200, 11, 50_000),
            (2000, 110, 50_000),
        ] {
            let settings = BucketSettings::of(requests_per_second);
            assert_eq!(
                (settings.permits, settings.interval.as_micros()),
                (permits, interval_us),
                "{requests_per_second}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_bucket_is_a_tenth_faster_than_the_limit_in_the_smallest_steps_of_50_ms(requests_per_second in 1u32..) {
            let settings = BucketSettings::of(requests_per_second);
            let faster = f64::from(requests_per_second) * 1.1;
            let rate = f64::from(settings.permits) / settings.interval.as_secs_f64();
            prop_assert!((rate / faster - 1.0).abs() < 1e-6, "{rate}");
            prop_assert!(settings.interval >= INTERVAL_MIN);
            prop_assert!(settings.permits == 1 || f64::from(settings.permits - 1) / faster < 0.05);
        }
    }
}
