//! Whether a server's clock can be believed as the watermark of an incremental run.
//!
//! A clock that is ahead gives a watermark that lies in the future; once it is set right, the next run would skip
//! every change made in between. What a run reaches back behind its watermark covers a clock that is off by up to that much.
//!
//! In DHIS2, `serverDate` is local to the server and without a zone; `serverTimeZoneId` from 2.36 on.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};

/// How far an incremental run reaches behind the last one: more than any daylight saving shift and clock error. Rows
/// that come twice are one by their key.
pub(crate) const OVERLAP_HOURS: i64 = 2;

/// The easternmost zone, for servers that do not say theirs: nowhere is the local time later.
const EASTERNMOST_HOURS: i64 = 14;

/// By how much a server's clock is ahead of ours, at least, where that is more than the overlap covers.
///
/// - `local`: the server's date, in its own zone.
/// - `zone`: that zone's IANA id, where the server says it.
pub(crate) fn too_far_ahead(local: &str, zone: Option<&str>, now: Timestamp) -> Option<SignedDuration> {
    let local: DateTime = local.parse().ok()?;
    let in_zone = zone.and_then(|zone| TimeZone::get(zone).ok()).and_then(|zone| zone.to_timestamp(local).ok());
    let server = match in_zone {
        Some(server) => server,
        None => {
            let easternmost = SignedDuration::from_hours(EASTERNMOST_HOURS);
            TimeZone::UTC.to_timestamp(local).ok()?.checked_sub(easternmost).ok()?
        }
    };
    let ahead = server.duration_since(now);
    (ahead > SignedDuration::from_hours(OVERLAP_HOURS)).then_some(ahead)
}

/// Whether one of these watermarks lies further in the server's future than the overlap covers: its clock was ahead then,
/// and has been set back since. Both are the server's own local time, so no zone is needed.
pub(crate) fn was_ahead(watermarks: &BTreeMap<String, String>, server_date: Option<&str>) -> bool {
    let Some(Ok(now)) = server_date.map(str::parse::<DateTime>) else { return false };
    let latest = watermarks.values().filter_map(|watermark| watermark.parse::<DateTime>().ok()).max();
    latest.is_some_and(|latest| latest.duration_since(now) > SignedDuration::from_hours(OVERLAP_HOURS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_too_far_ahead_only_where_that_is_certain() {
        let now: Timestamp = "2024-05-01T10:00:00Z".parse().unwrap();
        for (local, zone, hours) in [
            ("2024-05-01T10:00:00.123", Some("Etc/UTC"), None),
            ("2024-05-01T11:59:59", Some("Etc/UTC"), None),
            ("2024-05-01T13:00:00", Some("Etc/UTC"), Some(3)),
            ("2024-05-01T13:00:00", Some("Africa/Nairobi"), None),
            ("2024-05-01T18:00:00", Some("Africa/Nairobi"), Some(5)),
            ("2024-05-01T06:00:00", Some("America/New_York"), None),
            // Behind is no harm: rows come twice.
            ("2023-05-01T06:00:00", Some("Etc/UTC"), None),
            // Somewhere it may be that late.
            ("2024-05-02T00:00:00", None, None),
            ("2024-05-02T00:00:00", Some("Nowhere/Land"), None),
            ("2024-05-02T03:00:00", None, Some(3)),
            ("no date", Some("Etc/UTC"), None),
        ] {
            let ahead = too_far_ahead(local, zone, now).map(|ahead| ahead.as_hours());
            assert_eq!(ahead, hours, "{local} in {zone:?}");
        }
    }

    #[test]
    fn a_watermark_in_the_servers_future_is_of_a_clock_that_was_ahead() {
        let watermarks = |at: &str| {
            BTreeMap::from([("a".to_owned(), "2024-04-30T00:00:00".to_owned()), ("b".to_owned(), at.to_owned())])
        };
        let now = Some("2024-05-01T10:00:00.500");
        assert!(!was_ahead(&watermarks("2024-05-01T10:00:00.500"), now));
        assert!(!was_ahead(&watermarks("2024-05-01T12:00:00"), now));
        assert!(was_ahead(&watermarks("2024-05-01T12:00:01"), now));
        assert!(!was_ahead(&watermarks("2024-05-01T12:00:01"), None));
        assert!(!was_ahead(&BTreeMap::new(), now));
    }
}
