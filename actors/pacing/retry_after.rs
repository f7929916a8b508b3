//! `Retry-After` says how long a server asks its clients to wait, in seconds or as a date.
//!
//! Proxies send it; DHIS2 has no rate limit of its own. Dates come in three spellings
//! (RFC 9110 §5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`, `Sun Nov  6 08:49:37 1994`.
//! A weekday that does not fit its date is not held against the date: many write it by hand.

use std::time::Duration;

use jiff::{Timestamp, civil, tz::TimeZone};

/// No server is left alone for longer than this at its word: a run has ended resumably long before, and a garbled number
/// must not stop a service for years.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How far ahead a two-digit year may lie before it means the century before (RFC 9110 §5.6.7).
const YEARS_AHEAD_MAX: i64 = 50;

/// Reads the value of a `Retry-After` header.
///
/// - `now`: our clock; a date is a wait only in relation to it.
/// - result: zero for a date that has passed, never more than [`RETRY_AFTER_MAX`]; `None` for what is neither a whole
///   number of seconds nor a date, which then counts as not sent.
#[must_use]
pub fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim_matches([' ', '\t']);
    if value.is_empty() {
        return None;
    }
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are still a number, and a long one.
        let seconds = value.parse::<u64>().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let date = http_date(value, now)?;
    let seconds = u64::try_from(date.as_second().saturating_sub(now.as_second())).unwrap_or(0);
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// Reads a date in one of the three spellings of HTTP.
fn http_date(value: &str, now: Timestamp) -> Option<Timestamp> {
    let mut words = value.split([' ', ',', '-', ':']).filter(|word| !word.is_empty());
    let weekday = words.next()?;
    if !weekday.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return None;
    }
    let words: Vec<&str> = words.take(8).collect();
    let (day, month, year, hour, minute, second) = match words[..] {
        [day, month, year, hour, minute, second, "GMT" | "UTC"] => (day, month, year, hour, minute, second),
        [month, day, hour, minute, second, year] => (day, month, year, hour, minute, second),
        _ => return None,
    };
    let year = match (year.len(), number(year)?) {
        (2, year) => full_year(year, now),
        (4, year) => year,
        _ => return None,
    };
    // 60 is a leap second, which no civil time has.
    let second = number(second).filter(|second| *second <= 60)?.min(59);
    let date = civil::DateTime::new(
        i16::try_from(year).ok()?,
        month_number(month)?,
        i8::try_from(number(day)?).ok()?,
        i8::try_from(number(hour)?).ok()?,
        i8::try_from(number(minute)?).ok()?,
        i8::try_from(second).ok()?,
        0,
    );
    TimeZone::UTC.to_timestamp(date.ok()?).ok()
}

/// A number of one to four digits, and nothing else.
fn number(word: &str) -> Option<i64> {
    let digits = (1..=4).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_digit());
    if digits { word.parse().ok() } else { None }
}

/// The year that two digits mean: the one in our century, unless that lies too far ahead.
fn full_year(two_digits: i64, now: Timestamp) -> i64 {
    let this_year = i64::from(TimeZone::UTC.to_datetime(now).year());
    let year = this_year - this_year.rem_euclid(100) + two_digits;
    if year > this_year + YEARS_AHEAD_MAX { year - 100 } else { year }
}

fn month_number(name: &str) -> Option<i8> {
    const NAMES: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let index = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
    i8::try_from(index + 1).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: &str = "2026-11-24T03:00:00Z";

    fn seconds(value: &str) -> Option<u64> {
        parse(value, NOW.parse().unwrap()).map(|wait| wait.as_secs())
    }

    #[test]
    fn each_form_of_the_header() {
        let day = RETRY_AFTER_MAX.as_secs();
        for (value, expected) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 120\t", Some(120)),
            ("00000000000000000000000007", Some(7)),
            ("99999", Some(day)),
            ("99999999999999999999999999", Some(day)),
            ("Tue, 24 Nov 2026 03:01:30 GMT", Some(90)),
            ("Tue, 24 Nov 2026 03:01:60 GMT", Some(119)),
            ("Sun, 24 Nov 2026 03:01:30 GMT", Some(90)),
            ("Tue, 24 Nov 2026 03:01:30 UTC", Some(90)),
            ("Tuesday, 24-Nov-26 03:01:30 GMT", Some(90)),
            ("Tue Nov 24 03:01:30 2026", Some(90)),
            ("Thu Dec  3 03:00:00 2026", Some(day)),
            ("Tue, 24 Nov 2026 02:59:59 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(0)),
            ("Sun Nov  6 08:49:37 1994", Some(0)),
            ("", None),
            (" ", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("12 s", None),
            ("Tue, 24 Nov 2026 03:01:30", None),
            ("Tue, 24 Nov 2026 03:01:30 CET", None),
            ("Tue, 31 Feb 2026 03:01:30 GMT", None),
            ("Tue, 24 Nov 2026 25:01:30 GMT", None),
            ("Tue, 24 Nov 2026 03:01:61 GMT", None),
            ("Tue, 24 Nov 126 03:01:30 GMT", None),
            ("24 Nov 2026 03:01:30 GMT", None),
        ] {
            assert_eq!(seconds(value), expected, "{value:?}");
        }
    }

    #[test]
    fn a_two_digit_year_means_the_nearest_that_is_not_too_far_ahead() {
        let now = NOW.parse().unwrap();
        for (two_digits, year) in [(26, 2026), (27, 2027), (76, 2076), (77, 1977), (0, 2000), (99, 1999)] {
            assert_eq!(full_year(two_digits, now), year);
        }
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_sends_panics_or_stops_us_for_longer_than_a_day(value in any::<String>()) {
            prop_assert!(parse(&value, NOW.parse().unwrap()).unwrap_or_default() <= RETRY_AFTER_MAX);
        }

        #[test]
        fn nothing_that_looks_like_a_date_panics(
            value in "[A-Z][a-z]{2,8},? [0-9]{0,5}[ -][JFMASOND][a-z]{2}[ -][0-9]{0,6} [0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3}( GMT)?",
            now in -300_000_000_000i64..200_000_000_000,
        ) {
            let now = Timestamp::from_second(now).unwrap();
            prop_assert!(parse(&value, now).unwrap_or_default() <= RETRY_AFTER_MAX);
        }

        #[test]
        fn every_date_of_http_is_read_as_the_second_it_names(ahead in 0u64..86_400) {
            let now: Timestamp = NOW.parse().unwrap();
            let date = TimeZone::UTC.to_datetime(now + Duration::from_secs(ahead));
            for form in ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
                let value = date.strftime(form).to_string();
                prop_assert_eq!(parse(&value, now), Some(Duration::from_secs(ahead)), "{}", value);
            }
        }
    }
}
