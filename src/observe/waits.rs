//! Which waits are worth a line: each within two seconds, a long one every half minute, and no flood of short ones.

use std::time::Duration;

/// What is waited for, and how long still, where anybody knows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Wait {
    /// Why, as a fragment.
    pub(crate) reason: String,
    /// How long still.
    pub(crate) remaining: Option<Duration>,
}

/// A shorter wait is over before anybody has read of it.
const WORTH_TELLING: Duration = Duration::from_secs(1);
/// A wait that goes on is told again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Within that time, one for the same reason is told again only where it takes so much longer than was said.
const MUCH_LONGER: Duration = Duration::from_secs(10);
/// The end of a shorter wait is no news.
const END_WORTH_TELLING: Duration = Duration::from_secs(10);

/// What is to be told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Telling {
    /// It waits.
    Waits(Wait),
    /// It does not wait any more; how long it did.
    Over(Duration),
}

/// Remembers which waits have been told.
#[derive(Clone, Debug, Default)]
pub(crate) struct WaitTeller {
    /// Since when it waits, if it does.
    since: Option<Duration>,
    /// What was told last.
    told: Option<Told>,
}

/// A wait that was told.
#[derive(Clone, Debug)]
struct Told {
    reason: String,
    /// How long it was to take still, where that was said.
    remaining: Option<Duration>,
    /// When it was told.
    at: Duration,
}

impl WaitTeller {
    /// What is to be told of what it waits for now. Times are since the process began.
    pub(crate) fn update(&mut self, waiting: Option<Wait>, now: Duration) -> Option<Telling> {
        let Some(wait) = waiting else {
            let since = self.since.take()?;
            // Only what was told needs an end.
            let is_told = self.told.as_ref().is_some_and(|told| told.at >= since);
            let lasted = now.saturating_sub(since);
            return (is_told && lasted >= END_WORTH_TELLING).then_some(Telling::Over(lasted));
        };
        let lasts = now.saturating_sub(*self.since.get_or_insert(now));
        if wait.remaining.is_some_and(|remaining| lasts + remaining <= WORTH_TELLING) {
            return None;
        }
        let is_known = self.told.as_ref().is_some_and(|told| {
            let is_much_longer = match (told.remaining, wait.remaining) {
                (Some(told), Some(remaining)) => remaining > told + MUCH_LONGER,
                (told, remaining) => told.is_some() && remaining.is_none(),
            };
            told.reason == wait.reason && now.saturating_sub(told.at) < AGAIN_AFTER && !is_much_longer
        });
        if is_known {
            return None;
        }
        self.told = Some(Told { reason: wait.reason.clone(), remaining: wait.remaining, at: now });
        Some(Telling::Waits(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// The seconds at which something is told when `waits` says each second what it waits for and how long still.
    fn told(until: u64, waits: impl Fn(u64) -> Option<(&'static str, Option<u64>)>) -> Vec<u64> {
        let mut teller = WaitTeller::default();
        let wait = |(reason, remaining): (&str, Option<u64>)| Wait {
            reason: reason.to_owned(),
            remaining: remaining.map(seconds),
        };
        let at =
            |second: &u64| matches!(teller.update(waits(*second).map(wait), seconds(*second)), Some(Telling::Waits(_)));
        (0..until).filter(at).collect()
    }

    #[test]
    fn a_wait_is_told_at_once_and_every_half_minute() {
        assert_eq!(told(100, |now| Some(("Retry-After", Some(600 - now)))), [0, 30, 60, 90]);
        assert_eq!(told(65, |_| Some(("the source does not answer", None))), [0, 30, 60]);
        assert_eq!(
            told(40, |_| Some(("asked again soon, and again", Some(1)))),
            [1, 31],
            "many short waits are a long one"
        );
    }

    #[test]
    fn another_reason_and_a_much_longer_wait_are_told_at_once() {
        assert_eq!(told(10, |now| Some((if now < 5 { "an outage" } else { "Retry-After" }, Some(60 - now)))), [0, 5]);
        assert_eq!(told(10, |now| Some(("Retry-After", Some(if now < 5 { 5 - now + 2 } else { 60 })))), [0, 5]);
        assert_eq!(told(10, |now| Some(("x", (now < 5).then_some(20)))), [0, 5]);
    }

    #[test]
    fn short_waits_are_no_flood() {
        // A server that asks for two seconds after each answer.
        assert!(told(60, |now| (now % 3 > 0).then_some(("Retry-After", Some(2)))).len() <= 3);
        assert_eq!(told(60, |now| (now % 2 > 0).then_some(("a predecessor", Some(1)))), Vec::<u64>::new());
    }

    #[test]
    fn the_end_of_a_long_wait_is_told() {
        let mut teller = WaitTeller::default();
        let wait = || Some(Wait { reason: "an outage".to_owned(), remaining: None });
        teller.update(wait(), seconds(3));
        assert_eq!(teller.update(None, seconds(5)), None);
        assert_eq!(teller.update(None, seconds(50)), None);
        assert!(teller.update(wait(), seconds(60)).is_some());
        assert_eq!(teller.update(None, seconds(75)), Some(Telling::Over(seconds(15))));
    }
}
