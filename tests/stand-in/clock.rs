//! Tells the time as a DHIS2 server writes it: local, zone-less, in milliseconds.
//!
//! Calendar arithmetic is done by hand, since two dates are written per rendered row.

use std::time::{SystemTime, UNIX_EPOCH};

const MS_PER_DAY: i64 = 86_400_000;

/// The clock of the server's own machine: the wall clock moved into the server's zone, or a fixed instant that only
/// commands move.
#[derive(Debug, Clone)]
pub(crate) struct ServerClock {
    /// Local civil time in milliseconds, counted as if it were UTC; `None` follows the wall clock.
    pub(crate) fixed_ms: Option<i64>,
    /// Added to the wall clock: a server whose clock is wrong.
    pub(crate) skew_ms: i64,
    /// Minutes east of Greenwich.
    pub(crate) offset_minutes: i32,
    /// IANA name shown as `serverTimeZoneId`.
    pub(crate) zone: String,
}

impl Default for ServerClock {
    fn default() -> Self {
        Self { fixed_ms: None, skew_ms: 0, offset_minutes: 0, zone: "Etc/UTC".into() }
    }
}

impl ServerClock {
    /// Local civil time in milliseconds.
    pub(crate) fn now_ms(&self) -> i64 {
        self.fixed_ms.unwrap_or_else(|| wall_ms() + self.skew_ms + i64::from(self.offset_minutes) * 60_000)
    }
}

/// Milliseconds since the epoch by this machine's wall clock.
pub(crate) fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Days since 1970-01-01 of a civil date.
pub(crate) fn days(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

/// Year, month and day of days since 1970-01-01.
pub(crate) fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// Appends `2024-05-01T10:11:12.345`.
pub(crate) fn write_local(out: &mut Vec<u8>, ms: i64) {
    let (year, month, day) = civil(ms.div_euclid(MS_PER_DAY));
    let rest = ms.rem_euclid(MS_PER_DAY);
    let mut text = *b"0000-00-00T00:00:00.000";
    let mut put = |at: usize, width: usize, value: i64| {
        let mut rest = u32::try_from(value).unwrap_or(0);
        for slot in text[at..at + width].iter_mut().rev() {
            *slot = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            rest /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, rest / 3_600_000);
    put(14, 2, rest / 60_000 % 60);
    put(17, 2, rest / 1000 % 60);
    put(20, 3, rest % 1000);
    out.extend_from_slice(&text);
}

/// `2024-05-01T10:11:12.345`.
pub(crate) fn local(ms: i64) -> String {
    let mut out = Vec::with_capacity(23);
    write_local(&mut out, ms);
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads `2024`, `2024-05`, `2024-05-01` and any of these times: `T10`, `T10:11`, `T10:11:12`, `T10:11:12.345`
/// (a trailing `Z` is tolerated).
pub(crate) fn parse_local(text: &str) -> Option<i64> {
    let text = text.trim().trim_end_matches('Z');
    let (date, time) = match text.split_once(['T', ' ']) {
        Some((date, time)) => (date, time),
        None => (text, ""),
    };
    let mut date = date.split('-');
    let year: i64 = date.next()?.parse().ok()?;
    let month: i64 = date.next().map_or(Some(1), |part| part.parse().ok())?;
    let day: i64 = date.next().map_or(Some(1), |part| part.parse().ok())?;
    if date.next().is_some() || !(1..=12).contains(&month) || !(1..=31).contains(&day) || !(1..=9999).contains(&year) {
        return None;
    }
    let mut ms = days(year, month, day) * MS_PER_DAY;
    if !time.is_empty() {
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        for (part, unit_ms) in time.split(':').zip([3_600_000, 60_000, 1000]) {
            ms += part.parse::<i64>().ok()? * unit_ms;
        }
        let digits: String = fraction.chars().chain("000".chars()).take(3).collect();
        ms += digits.parse::<i64>().ok()?;
    }
    Some(ms)
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, from milliseconds since the epoch.
pub(crate) fn http_date(ms: i64) -> String {
    let day_number = ms.div_euclid(MS_PER_DAY);
    let (year, month, day) = civil(day_number);
    let week =
        ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(day_number.rem_euclid(7)).unwrap_or(0)];
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months[usize::try_from(month - 1).unwrap_or(0)];
    let rest = ms.rem_euclid(MS_PER_DAY) / 1000;
    format!("{week}, {day:02} {month} {year} {:02}:{:02}:{:02} GMT", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_survive_writing_and_reading() {
        for text in
            ["1970-01-01T00:00:00.000", "2000-02-29T23:59:59.999", "2024-05-01T10:11:12.345", "1969-12-31T00:00:00.001"]
        {
            assert_eq!(local(parse_local(text).unwrap()), text);
        }
        assert_eq!(parse_local("2024-01-31"), parse_local("2024-01-31T00:00:00.000"));
        assert_eq!(parse_local("2024-01-31T08:30:00.5Z"), parse_local("2024-01-31T08:30:00.500"));
        assert_eq!(parse_local("yesterday"), None);
        assert_eq!(parse_local("2024-13-01"), None);
    }

    #[test]
    fn an_http_date_is_written_as_the_rfc_shows_it() {
        assert_eq!(http_date(784_111_777_000), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
