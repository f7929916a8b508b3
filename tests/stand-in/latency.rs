//! Says how long the server thinks about a request, given how many it is thinking about.

use std::time::Duration;

use crate::country::mix;

/// How slow the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Latency {
    /// As fast as this machine.
    #[default]
    None,
    /// Always so long.
    Constant(Duration),
    /// Between two bounds, by a seeded lot.
    Jitter {
        /// The least.
        min: Duration,
        /// The most.
        max: Duration,
        /// Two runs of one seed are alike, request by request.
        seed: u64,
    },
    /// Up to `at` requests at once take `service` each; above, time grows with the load (`service × load ÷ at`), and
    /// above `refuses_above` there is a 503.
    Knee {
        /// Time of one request on an idle server.
        service: Duration,
        /// Requests at once that cost nothing extra.
        at: usize,
        /// Requests at once above which it answers 503.
        refuses_above: Option<usize>,
    },
}

/// What the load makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thought {
    Takes(Duration),
    TooBusy,
}

impl Latency {
    /// For the `number`th request, with `load` being thought about, this one included.
    pub(crate) fn thought(self, number: u64, load: usize) -> Thought {
        match self {
            Self::None => Thought::Takes(Duration::ZERO),
            Self::Constant(time) => Thought::Takes(time),
            Self::Jitter { min, max, seed } => {
                let spread = u64::try_from(max.saturating_sub(min).as_micros()).unwrap_or(u64::MAX);
                let lot = mix(mix(seed) ^ number) % spread.saturating_add(1);
                Thought::Takes(min + Duration::from_micros(lot))
            }
            Self::Knee { refuses_above: Some(most), .. } if load > most => Thought::TooBusy,
            Self::Knee { service, at, .. } => {
                let at = u32::try_from(at.max(1)).unwrap_or(u32::MAX);
                let load = u32::try_from(load).unwrap_or(u32::MAX).max(at);
                Thought::Takes(service * load / at)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_grows_behind_the_knee_and_then_it_refuses() {
        let knee = Latency::Knee { service: Duration::from_millis(100), at: 4, refuses_above: Some(10) };
        for (load, ms) in [(1, 100), (4, 100), (5, 125), (8, 200), (10, 250)] {
            assert_eq!(knee.thought(1, load), Thought::Takes(Duration::from_millis(ms)), "load {load}");
        }
        assert_eq!(knee.thought(1, 11), Thought::TooBusy);
    }

    #[test]
    fn jitter_stays_between_its_bounds_and_repeats_itself() {
        let (min, max) = (Duration::from_millis(10), Duration::from_millis(30));
        let jitter = Latency::Jitter { min, max, seed: 3 };
        for number in 0..1000 {
            let Thought::Takes(time) = jitter.thought(number, 1) else { panic!() };
            assert!(time >= min && time <= max);
            assert_eq!(jitter.thought(number, 9), Thought::Takes(time));
        }
    }
}
