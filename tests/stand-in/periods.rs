//! Reads and lists the periods of the ISO calendar that data sets here use.
//!
//! Ids as DHIS2 writes them: `2023`, `2023S1`, `2023Q1`, `202301`, `2023W1`, `20230131`.

use crate::clock::days;

/// What is reported about: days since the epoch, both inclusive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period {
    pub(crate) start: i64,
    pub(crate) end: i64,
    pub(crate) id: String,
}

/// Years in which something was reported.
pub(crate) const REPORTED_YEARS: std::ops::RangeInclusive<i64> = 2023..=2024;

/// Monday of the first ISO week of a year.
fn first_monday(year: i64) -> i64 {
    let fourth = days(year, 1, 4);
    // 1970-01-01 was a Thursday.
    fourth - (fourth + 3).rem_euclid(7)
}

fn month_end(year: i64, month: i64) -> i64 {
    if month == 12 { days(year, 12, 31) } else { days(year, month + 1, 1) - 1 }
}

impl Period {
    /// Reads an id; `None` when it is no period.
    pub(crate) fn parse(id: &str) -> Option<Self> {
        let year: i64 = id.get(..4).filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()?;
        let rest = &id[4..];
        let months = |first: i64, count: i64| (days(year, first, 1), month_end(year, first + count - 1));
        let number = |text: &str, most: i64| {
            let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<i64>().ok().filter(|number| plain && (1..=most).contains(number))
        };
        let (start, end) = if rest.is_empty() {
            months(1, 12)
        } else if let Some(half) = rest.strip_prefix('S') {
            months(number(half, 2)? * 6 - 5, 6)
        } else if let Some(quarter) = rest.strip_prefix('Q') {
            months(number(quarter, 4)? * 3 - 2, 3)
        } else if let Some(week) = rest.strip_prefix('W') {
            let start = first_monday(year) + 7 * (number(week, 53)? - 1);
            (start, start + 6)
        } else if rest.len() == 2 {
            months(number(rest, 12)?, 1)
        } else if rest.len() == 4 {
            let day = days(year, number(&rest[..2], 12)?, number(&rest[2..], 31)?);
            (day, day)
        } else {
            return None;
        };
        Some(Self { start, end, id: id.to_owned() })
    }

    /// All periods of a data set's type in the years in which something was reported.
    pub(crate) fn all(period_type: &str) -> Vec<Self> {
        let mut ids: Vec<String> = Vec::new();
        for year in REPORTED_YEARS {
            match period_type {
                "Monthly" => ids.extend((1..=12).map(|month| format!("{year}{month:02}"))),
                "Quarterly" => ids.extend((1..=4).map(|quarter| format!("{year}Q{quarter}"))),
                "Weekly" => ids.extend((1..=52).map(|week| format!("{year}W{week}"))),
                _ => ids.push(year.to_string()),
            }
        }
        ids.iter().filter_map(|id| Self::parse(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read_as_the_calendar_has_them() {
        for (id, start, end) in [
            ("2023", (2023, 1, 1), (2023, 12, 31)),
            ("202302", (2023, 2, 1), (2023, 2, 28)),
            ("2024Q4", (2024, 10, 1), (2024, 12, 31)),
            ("2023S2", (2023, 7, 1), (2023, 12, 31)),
            ("2024W1", (2024, 1, 1), (2024, 1, 7)),
            ("2023W1", (2023, 1, 2), (2023, 1, 8)),
            ("20240229", (2024, 2, 29), (2024, 2, 29)),
        ] {
            let period = Period::parse(id).unwrap();
            let day = |(year, month, day)| days(year, month, day);
            assert_eq!((period.start, period.end), (day(start), day(end)), "{id}");
        }
        for bad in ["2023-99", "202313", "2023Q5", "2023W", "", "soon", "2023Q+1"] {
            assert_eq!(Period::parse(bad), None, "{bad}");
        }
        assert_eq!(Period::all("Monthly").len(), 24);
        assert_eq!(Period::all("Weekly")[51].id, "2023W52");
    }
}
