//! The window keeps the one promise about rate: any half-open 1.05 s hold at most N sends.
//!
//! A send is granted before it leaves, and between the two lie a wake-up of another thread and sometimes a new
//! connection. So the window counts, at each grant, the sends that left less than [`WINDOW`] ago and those that are granted
//! and have not left, which may do so at any moment; together they are never more than N. Proof: of N + 1 sends that left
//! within one window take the one granted last; at its grant each of the other N had either not left, or had left within the
//! window before. Then N were counted, and it was not granted. Nothing about delays is assumed.
//!
//! The 50 ms beyond a second are for the road: where delivery varies by no more than that, no second at the server holds
//! more than N arrivals either. Measured: a bucket of 200/s let 399 through in one second, this window 200.
//!
//! Within the window sends are also spread evenly, by a schedule that does not drift: at 50 a second one every 21 ms. So
//! every second of a busy run holds nearly the same number, and none a burst.
//!
//! It does not know what a request is for. Every request that leaves is recorded: retries, probes and polls too.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// Length of the window that holds N sends at most: one second, and how much delivery may vary on the way.
pub const WINDOW: Duration = Duration::from_millis(1050);

/// Pause after a start that cannot know what its predecessor sent last.
pub const COLD_START_WAIT: Duration = WINDOW;

/// Lag of the even schedule behind the clock that may be caught up with at once: more than a busy
/// machine is late with its timers, and less than would be a burst.
pub const SPREAD_SLACK: Duration = Duration::from_millis(50);

/// When to check again while all room is taken by sends that have not left. They are marked anyway when they do.
const LEAVES_SOON: Duration = Duration::from_millis(10);

/// Unit of the limit, and window of [`Window::peak_requests_per_second`].
const SECOND: Duration = Duration::from_secs(1);

/// The last sends, and what they allow.
#[derive(Clone, Debug)]
pub struct Window {
    /// N: how many sends any window may hold; at least 1.
    requests_per_second: u32,
    /// Granted, and not marked as sent.
    pending: BTreeSet<u64>,
    /// When the last sends were sent, oldest first; about N of them.
    sent: VecDeque<Instant>,
    /// When the even schedule lets the next one go.
    next: Option<Instant>,
    /// The most sends that any one second has held.
    peak: u32,
}

impl Window {
    /// A window without a past. A limit of 0 counts as 1, since it could never be kept and never be passed.
    #[must_use]
    pub fn new(requests_per_second: u32) -> Self {
        Window {
            requests_per_second: requests_per_second.max(1),
            pending: BTreeSet::new(),
            sent: VecDeque::new(),
            next: None,
            peak: 0,
        }
    }

    /// Wait of the next send; zero when it may be granted now.
    #[must_use]
    pub fn wait(&self, now: Instant) -> Duration {
        let spread = self.next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
        if !crate::control!("exact-window") {
            return spread;
        }
        let old = self.sent.partition_point(|left| now.saturating_duration_since(*left) >= WINDOW);
        let held = self.pending.len() + self.sent.len() - old;
        let Some(too_many) = (held + 1).checked_sub(self.requests_per_second as usize) else { return spread };
        if too_many == 0 {
            return spread;
        }
        // So many of those that left must grow old first.
        match self.sent.get(old + too_many - 1) {
            Some(left) => spread.max((*left + WINDOW).saturating_duration_since(now)),
            None => spread.max(LEAVES_SOON),
        }
    }

    /// Records a grant: from now on the send may leave at any moment.
    ///
    /// A send that was not due is recorded all the same: the window counts what is sent, not what should be.
    ///
    /// - `asked`: when it was asked for. Time in which nothing is asked for is not caught up with; a late timer is.
    pub fn record_grant(&mut self, send: u64, asked: Instant, now: Instant) {
        self.pending.insert(send);
        let gap = WINDOW / self.requests_per_second;
        let earliest = now.checked_sub(SPREAD_SLACK).unwrap_or(now);
        let due = self.next.map_or(asked, |next| next.max(asked)).max(earliest);
        self.next = Some(due + gap);
    }

    /// Records when a granted send left; the first call counts. For one that never left, call it when that is known.
    pub fn mark_sent(&mut self, send: u64, at: Instant) {
        if !self.pending.remove(&send) {
            return;
        }
        // Several threads send, so the calls may come in another order than the sends.
        let place = self.sent.partition_point(|left| *left <= at);
        self.sent.insert(place, at);
        let newest = self.sent.back().copied().unwrap_or(at);
        let older = self.sent.partition_point(|left| newest.duration_since(*left) >= SECOND);
        let within = u32::try_from(self.sent.len() - older).unwrap_or(u32::MAX);
        self.peak = self.peak.max(within);
        while self.sent.front().is_some_and(|left| newest.duration_since(*left) >= WINDOW) {
            self.sent.pop_front();
        }
    }

    /// Records a send that is granted and leaves at once.
    pub fn record(&mut self, now: Instant) {
        // No other send has this name: those of a limiter count up from 0.
        self.record_grant(u64::MAX, now, now);
        self.mark_sent(u64::MAX, now);
    }

    /// Changes the limit and keeps the past: a lower one holds at once, a higher one from the next send on. A limit of 0 counts
    /// as 1.
    pub fn change(&mut self, requests_per_second: u32) {
        self.requests_per_second = requests_per_second.max(1);
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
            let asked = now;
            loop {
                let wait = window.wait(now);
                if wait.is_zero() {
                    break;
                }
                now += wait;
            }
            window.record_grant(0, asked, now);
            window.mark_sent(0, now);
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
        // 525 ms is the even gap of two in a window.
        assert_eq!(window.wait(start + Duration::from_millis(1050)), Duration::from_millis(525));
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
            let took = *sent.last().unwrap() - start + WINDOW / limit;
            let rate = sent.len() as f64 / took.as_secs_f64();
            assert!(rate >= 0.94 * f64::from(limit), "{rate} of {limit}");
        }
    }

    #[test]
    fn the_peak_is_the_fullest_second_so_far() {
        let start = Instant::now();
        let mut window = Window::new(10);
        send_all(&mut window, start, &[0, 110, 110, 560, 110, 110, 5000]);
        // 0, 110, 220, 780, 890 are within one second; 1000 is not within one of the first.
        assert_eq!(window.peak_requests_per_second(), 5);
    }

    #[test]
    fn a_lowered_limit_holds_at_once_for_sends_that_are_already_out() {
        let start = Instant::now();
        let mut window = Window::new(10);
        let mut sent = send_all(&mut window, start, &[0; 8]);
        let now = *sent.last().unwrap();
        window.change(3);
        assert_eq!(window.requests_per_second(), 3);
        assert_eq!(window.wait(now), WINDOW - (now - sent[5]));
        let after = send_all(&mut window, now, &[0; 20]);
        assert_eq!(most_within(&after, WINDOW), 3);
        sent.extend(after);
        assert_eq!(most_within(&sent, WINDOW), 8);
    }

    #[test]
    fn a_raised_limit_lets_no_more_through_than_the_new_one_and_nearly_as_many() {
        for (low, high) in [(1, 10), (3, 50), (20, 200)] {
            let mut window = Window::new(low);
            let mut sent = send_all(&mut window, Instant::now(), &[0; 20]);
            let raised_at = *sent.last().unwrap();
            window.change(high);
            sent.extend(send_all(&mut window, raised_at, &vec![0; 5 * high as usize]));
            assert_eq!(most_within(&sent, WINDOW), high as usize);
            let took = (*sent.last().unwrap() - raised_at).as_secs_f64();
            assert!(took <= 5.0 * 1.05 + 1.05 / f64::from(low), "{low} to {high}: {took} s");
        }
    }

    #[test]
    fn a_saturated_second_holds_no_fewer_than_the_even_share_whatever_the_start_was() {
        let start = Instant::now();
        // A start with gaps, as of a plan being made; then a storm.
        let mut wanted = vec![0, 0, 0, 90, 0, 300, 0, 0];
        wanted.extend(vec![0; 50 * 20]);
        let sent = send_all(&mut Window::new(50), start, &wanted);
        for second in 2..18 {
            let from = start + Duration::from_secs(second);
            let within = sent.iter().filter(|sent| **sent >= from && **sent < from + SECOND).count();
            assert!((47..=48).contains(&within), "{within} in second {second}");
        }
    }

    #[test]
    fn a_send_that_is_granted_and_has_not_left_keeps_its_room_until_it_has() {
        let start = Instant::now();
        let mut window = Window::new(3);
        for (send, at) in [(0, 0), (1, 400), (2, 800)] {
            window.record_grant(send, start, start + Duration::from_millis(at));
        }
        window.mark_sent(1, start + Duration::from_millis(401));
        window.mark_sent(2, start + Duration::from_millis(801));
        // The first hangs in a connection; it may leave at any moment.
        let now = start + Duration::from_millis(1_200);
        assert_eq!(window.wait(now), Duration::from_millis(251));
        window.mark_sent(0, now);
        assert_eq!(window.wait(now), Duration::from_millis(251));
        window.mark_sent(0, now + Duration::from_millis(500));
        assert_eq!(window.wait(now + Duration::from_millis(251)), Duration::ZERO);
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
        fn no_stretch_holds_more_than_the_limit_however_long_sends_take_to_leave(
            limit in 1u32..20,
            delays_ms in prop::collection::vec(prop_oneof![6 => 0u64..3, 2 => 0u64..400, 1 => 0u64..4_000], 1..300),
        ) {
            let mut window = Window::new(limit);
            let start = Instant::now();
            let mut now = start;
            let mut out: Vec<(Instant, u64)> = Vec::new();
            let mut all = Vec::new();
            for (send, delay) in delays_ms.iter().enumerate() {
                loop {
                    out.sort();
                    while let Some((at, send)) = out.first().copied().filter(|(at, _)| *at <= now) {
                        window.mark_sent(send, at);
                        all.push(at);
                        out.remove(0);
                    }
                    let wait = window.wait(now);
                    if wait.is_zero() {
                        break;
                    }
                    now += wait;
                }
                window.record_grant(send as u64, now, now);
                out.push((now + Duration::from_millis(*delay), send as u64));
            }
            all.extend(out.iter().map(|(at, _)| *at));
            prop_assert!(most_within(&all, WINDOW) <= limit as usize);
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
