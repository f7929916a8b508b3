//! Numbers as people read them.

use std::time::Duration;

/// `12 034 567`
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 page`, `2 pages`: for words that take an `s`.
pub fn plural(number: u64, word: &str) -> String {
    if number == 1 { format!("1 {word}") } else { format!("{} {word}s", count(number)) }
}

/// `512 B`, `1.5 KiB`, `34.2 MiB`.
pub fn bytes(number: u64) -> String {
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = number as f64;
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        // 1023.96 KiB would read "1024.0 KiB".
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{number} B") } else { format!("{value:.1} {unit}") }
}

/// `0.4 s`, `12 s`, `2 min 05 s`, `1 h 03 min`, `2 d 04 h`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", (duration.as_secs_f64() * 10.0).floor() / 10.0),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A wait or an estimate, where nobody wants tenths: `40 s`, `3 min`, `2 h 10 min`, `2 d 04 h`.
pub fn about(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().ceil() as u64;
    match seconds {
        0..90 => format!("{seconds} s"),
        90..3600 => format!("{} min", seconds.div_ceil(60)),
        _ => self::duration(Duration::from_secs(seconds.div_ceil(60) * 60)),
    }
}

/// `8 123`, `8.2`, `0`: something per second.
pub fn rate(per_second: f64) -> String {
    if per_second <= 0.0 {
        "0".to_owned()
    } else if per_second < 9.95 {
        format!("{per_second:.1}")
    } else {
        count(per_second.round() as u64)
    }
}

/// `1 retry`, `1 234 retries`.
pub fn retries(number: u64) -> String {
    if number == 1 { "1 retry".to_owned() } else { format!("{} retries", count(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_like_numbers() {
        let counts = [(0, "0"), (999, "999"), (1000, "1 000"), (12_034_567, "12 034 567")];
        for (number, text) in counts {
            assert_eq!(count(number), text);
        }
        let sizes =
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024 * 1024 - 1, "1.0 MiB"), (35_861_299, "34.2 MiB")];
        for (number, text) in sizes {
            assert_eq!(bytes(number), text);
        }
        assert_eq!([plural(0, "page"), plural(1, "page"), plural(2000, "page")], ["0 pages", "1 page", "2 000 pages"]);
        assert_eq!([rate(0.0), rate(0.25), rate(9.96), rate(8123.4)], ["0", "0.2", "10", "8 123"]);
    }

    #[test]
    fn times_read_like_times() {
        let times = [
            (400, "0.4 s"),
            (9_990, "9.9 s"),
            (12_000, "12 s"),
            (125_000, "2 min 05 s"),
            (3_780_000, "1 h 03 min"),
            (187_200_000, "2 d 04 h"),
        ];
        for (millis, text) in times {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
        let waits = [(0, "0 s"), (39_100, "40 s"), (91_000, "2 min"), (3_600_000, "1 h 00 min")];
        for (millis, text) in waits {
            assert_eq!(about(Duration::from_millis(millis)), text);
        }
    }
}
