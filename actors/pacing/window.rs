//! The window keeps the one promise about rate: any half-open 1.05 s hold at most N sends.
//!
//! It remembers the times of the last N sends and lets the next go only when the Nth before it is [`WINDOW`] old. So sends
//! i and i + N are at least that far apart, whatever the askers do: bursts, retry storms and idle times cannot add up.
//! The 50 ms beyond a second are for the road: where delivery varies by no more than that, no second at the server holds
//! more than N arrivals either. Measured (faults.md §4): a bucket of 200/s let 399 through in one second, this 200.
//!
//! It knows nothing of why somebody sends. Every request that leaves is recorded: retries, probes and polls too.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// How long no more than N sends may take: one second, and how much delivery may vary on the way.
pub const WINDOW: Duration = Duration::from_millis(1050);

/// How long to send nothing after a start that cannot know what its predecessor sent last.
pub const COLD_START_WAIT: Duration = WINDOW;

/// What the limit is worded in, and what [`Window::peak_requests_per_second`] counts over.
const SECOND: Duration = Duration::from_secs(1);

/// The times of the last sends, and what they allow.
#[derive(Clone, Debug)]
pub struct Window {
    /// N: how many sends any window may hold; at least 1.
    requests_per_second: u32,
    /// When the last sends left, oldest first; never more than N.
    sends: VecDeque<Instant>,
    /// The most sends that any one second has held.
    peak: u32,
}

impl Window {
    /// A window without a past. A limit of 0 counts as 1, since it could never be kept and never be passed.
    #[must_use]
    pub fn new(requests_per_second: u32) -> Self {
        Window { requests_per_second: requests_per_second.max(1), sends: VecDeque::new(), peak: 0 }
    }

    /// How long the next send must wait; zero when it may leave now.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        if self.sends.len() < self.requests_per_second as usize {
            return Duration::ZERO;
        }
        match self.sends.front() {
            Some(oldest) => (*oldest + WINDOW).saturating_duration_since(now),
            None => Duration::ZERO,
        }
    }

    /// Remembers a send that leaves at `now`.
    ///
    /// A send that was not due is remembered all the same: the window counts what left, not what should have.
    pub fn record(&mut self, now: Instant) {
        // A clock that steps back, which tokio's does not, would make older sends look younger: they are kept in order.
        let now = self.sends.back().map_or(now, |last| now.max(*last));
        if self.sends.len() >= self.requests_per_second as usize {
            self.sends.pop_front();
        }
        self.sends.push_back(now);
        let older = self.sends.partition_point(|sent| now.duration_since(*sent) >= SECOND);
        let within = u32::try_from(self.sends.len() - older).unwrap_or(u32::MAX);
        self.peak = self.peak.max(within);
    }

    /// Lowers the limit and keeps the past. A higher limit changes nothing.
    pub fn lower(&mut self, requests_per_second: u32) {
        self.requests_per_second = self.requests_per_second.min(requests_per_second.max(1));
        while self.sends.len() > self.requests_per_second as usize {
            self.sends.pop_front();
        }
    }

    /// N.
    #[must_use]
    pub fn requests_per_second(&self) -> u32 {
        self.requests_per_second
    }

    /// The most sends that any one second has held so far.
    #[must_use]
    pub fn peak_requests_per_second(&self) -> u32 {
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The most of `times` that one half-open stretch of `length` holds.
    fn most_within(times: &[Instant], length: Duration) -> usize {
        let mut times = times.to_vec();
        times.sort();
        let mut from = 0;
        let mut most = 0;
        for (to, time) in times.iter().enumerate() {
            while *time - times[from] >= length {
                from += 1;
            }
            most = most.max(to + 1 - from);
        }
        most
    }

    /// Sends when `wanted` says so and the window allows it, and returns when that was.
    fn send_all(window: &mut Window, start: Instant, wanted_ms: &[u64]) -> Vec<Instant> {
        let mut now = start;
        let mut sent = Vec::new();
        for delay in wanted_ms {
            now += Duration::from_millis(*delay);
            loop {
                let wait = window.wait(now);
                if wait.is_zero() {
                    break;
                }
                now += wait;
            }
            window.record(now);
            sent.push(now);
        }
        sent
    }

    #[test]
    fn the_send_after_a_full_window_waits_until_the_first_is_1050_ms_old() {
        let start = Instant::now();
        let mut window = Window::new(2);
        window.record(start);
        window.record(start + Duration::from_millis(400));
        assert_eq!(window.wait(start + Duration::from_millis(400)), Duration::from_millis(650));
        assert_eq!(window.wait(start + Duration::from_millis(1049)), Duration::from_millis(1));
        assert_eq!(window.wait(start + Duration::from_millis(1050)), Duration::ZERO);
        window.record(start + Duration::from_millis(1050));
        assert_eq!(window.wait(start + Duration::from_millis(1050)), Duration::from_millis(400));
    }

    #[test]
    fn an_idle_hour_earns_nothing() {
        let start = Instant::now();
        let mut window = Window::new(3);
        send_all(&mut window, start, &[0, 0, 0]);
        let later = start + Duration::from_secs(3600);
        let sent = send_all(&mut window, later, &[0; 9]);
        assert_eq!(most_within(&sent, WINDOW), 3);
    }

    #[test]
    fn a_saturated_sender_gets_more_than_94_percent() {
        for limit in [1, 7, 50, 200, 2000] {
            let start = Instant::now();
            let sent = send_all(&mut Window::new(limit), start, &vec![0; limit as usize * 60]);
            let took = *sent.last().unwrap() - start + WINDOW;
            let rate = sent.len() as f64 / took.as_secs_f64();
            assert!(rate >= 0.94 * f64::from(limit), "{rate} of {limit}");
        }
    }

    #[test]
    fn the_peak_is_the_fullest_second_so_far() {
        let start = Instant::now();
        let mut window = Window::new(10);
        send_all(&mut window, start, &[0, 100, 100, 700, 99, 1, 5000]);
        // 0, 100, 200, 900, 999 are within one second; 1000 is not within one of the first.
        assert_eq!(window.peak_requests_per_second(), 5);
    }

    #[test]
    fn a_lowered_limit_holds_at_once_for_sends_that_are_already_out() {
        let start = Instant::now();
        let mut window = Window::new(10);
        let mut sent = send_all(&mut window, start, &[0; 8]);
        window.lower(3);
        window.lower(5);
        assert_eq!(window.requests_per_second(), 3);
        assert_eq!(window.wait(start), WINDOW);
        let after = send_all(&mut window, start, &[0; 20]);
        assert_eq!(most_within(&after, WINDOW), 3);
        sent.extend(after);
        assert_eq!(most_within(&sent, WINDOW), 8);
    }

    proptest! {
        #[test]
        fn no_stretch_of_1050_ms_holds_more_than_the_limit(
            limit in 1u32..40,
            // Mostly storms, sometimes a pause, sometimes a leap of the clock by hours.
            wanted_ms in prop::collection::vec(prop_oneof![8 => 0u64..3, 3 => 0u64..400, 1 => 0u64..9_000_000], 1..400),
        ) {
            let sent = send_all(&mut Window::new(limit), Instant::now(), &wanted_ms);
            prop_assert!(most_within(&sent, WINDOW) <= limit as usize);
        }

        #[test]
        fn no_second_of_arrivals_holds_more_than_the_limit_while_delivery_varies_by_50_ms(
            limit in 1u32..40,
            jitter_ms in prop::collection::vec(0u64..=50, 400),
            wanted_ms in prop::collection::vec(prop_oneof![9 => 0u64..3, 1 => 0u64..400], 1..400),
        ) {
            let sent = send_all(&mut Window::new(limit), Instant::now(), &wanted_ms);
            let arrived: Vec<_> =
                sent.iter().zip(&jitter_ms).map(|(sent, jitter)| *sent + Duration::from_millis(*jitter)).collect();
            prop_assert!(most_within(&arrived, SECOND) <= limit as usize);
        }
    }
}
