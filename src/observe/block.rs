//! The progress of a run as lines of text: pure functions of the progress and the width.

use std::time::Duration;

use super::{
    numbers::{about, bytes, count, plural, rate},
    progress::{Phase, Progress},
};

/// Lines that a block has, always: a block that grows and shrinks is not calm.
const BLOCK_LINES: usize = 4;
/// Cells of the bar, at most and at least.
const BAR_CELLS: (usize, usize) = (30, 10);

/// The block for a terminal of `width` columns: always as many lines, none wider than that.
pub(crate) fn block(job: &str, progress: &Progress, now: Duration, width: usize) -> [String; BLOCK_LINES] {
    let fraction = progress.fraction();
    let head = match &progress.phase {
        Phase::Starting => format!("{job}: asking the source"),
        Phase::Finishing(stream) => format!("{job}: writing {stream}"),
        Phase::Stopping(reason) => format!("{job}: {reason}, finishing the pages in flight"),
        Phase::Ended(_) => format!("{job}: done"),
        Phase::Running => job.to_owned(),
    };
    let first = match fraction {
        Some(fraction) => {
            let cells = width.saturating_sub(job.chars().count() + 12).clamp(BAR_CELLS.1, BAR_CELLS.0);
            let percent = format!("{:>3} %", (fraction * 100.0).floor());
            match progress.phase {
                Phase::Running => join(&[job, &bar(fraction, cells), &percent], "  ", width),
                _ => join(&[&head, &percent], "  ", width),
            }
        }
        None => cut(&head, width),
    };
    let rows = match progress.expected_rows() {
        Some(expected) if expected > 0 => format!("{} of {} rows", count(progress.rows()), count(expected)),
        _ => plural(progress.rows(), "row"),
    };
    // Before the first second nobody knows how fast it goes.
    let is_paced = progress.pace.requests_per_second_limit > 0;
    let when_paced = |text: String| if is_paced { text } else { String::new() };
    let per_second = when_paced(format!("{} rows/s", rate(progress.rows_per_second(now))));
    let left = progress.remaining(now).map_or_else(String::new, |left| format!("about {} left", about(left)));
    let second = join(&["", &rows, &per_second, &left], " · ", width);
    let third = join(
        &[
            "",
            &format!("{} of {}", count(progress.partitions_finished), plural(progress.partitions, "partition")),
            &when_paced(format!(
                "{} of {} requests/s",
                rate(progress.requests_per_second(now)),
                progress.pace.requests_per_second_limit
            )),
            &when_paced(format!("{} of {} in flight", progress.pace.in_flight, progress.pace.in_flight_limit)),
            &retries(progress),
        ],
        " · ",
        width,
    );
    let fourth = waits(progress, now).map_or_else(String::new, |waits| cut(&format!("  {waits}"), width));
    [first, second, third, fourth]
}

/// One line for logs and pipes.
pub(crate) fn plain_line(job: &str, progress: &Progress, now: Duration) -> String {
    let phase = match &progress.phase {
        Phase::Starting => return format!("{job}: asking the source"),
        Phase::Running => String::new(),
        Phase::Finishing(stream) => format!("writing {stream}"),
        Phase::Stopping(reason) => format!("stopping: {reason}"),
        Phase::Ended(_) => "done".to_owned(),
    };
    let is_paced = progress.pace.requests_per_second_limit > 0;
    let when_paced = |text: String| if is_paced { text } else { String::new() };
    let percent = progress.fraction().map_or_else(String::new, |fraction| format!("{} %", (fraction * 100.0).floor()));
    let rows = match progress.expected_rows() {
        Some(expected) if expected > 0 => format!("{} of {} rows", count(progress.rows()), count(expected)),
        _ => plural(progress.rows(), "row"),
    };
    let left = progress.remaining(now).map_or_else(String::new, |left| format!("about {} left", about(left)));
    let parts = [
        phase,
        percent,
        rows,
        format!("{} of {}", count(progress.partitions_finished), plural(progress.partitions, "partition")),
        when_paced(format!("{} rows/s", rate(progress.rows_per_second(now)))),
        when_paced(format!(
            "{} of {} requests/s",
            rate(progress.requests_per_second(now)),
            progress.pace.requests_per_second_limit
        )),
        retries(progress),
        left,
        waits(progress, now).unwrap_or_default(),
    ];
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    format!("{job}: {}", parts.join(", "))
}

/// What it waits for, for `STATUS=` of a service manager too: `waiting 40 s: Retry-After`.
pub(crate) fn waits(progress: &Progress, now: Duration) -> Option<String> {
    let (reason, remaining) = progress.waiting(now)?;
    Some(match remaining {
        Some(remaining) => format!("waiting {}: {reason}", about(remaining)),
        None => format!("waiting: {reason}"),
    })
}

/// Bytes fetched, for the status line.
pub(crate) fn fetched_bytes(progress: &Progress) -> String {
    bytes(progress.streams.values().map(|stream| stream.bytes).sum())
}

/// `3 retries`; nothing where there were none.
fn retries(progress: &Progress) -> String {
    match progress.retries {
        0 => String::new(),
        1 => "1 retry".to_owned(),
        retries => format!("{} retries", count(retries)),
    }
}

/// A bar of `cells` cells.
fn bar(fraction: f64, cells: usize) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a bar has few cells")]
    let full = (fraction * cells as f64).floor() as usize;
    format!("{}{}", "█".repeat(full.min(cells)), "░".repeat(cells - full.min(cells)))
}

/// Joins the parts that are not empty, dropping the last ones that do not fit. A first part that is empty indents.
fn join(parts: &[&str], separator: &str, width: usize) -> String {
    let mut line = String::new();
    let mut begun = false;
    for (index, part) in parts.iter().enumerate() {
        if part.is_empty() {
            if index == 0 {
                line.push_str("  ");
            }
            continue;
        }
        let longer = if begun { format!("{line}{separator}{part}") } else { format!("{line}{part}") };
        if begun && longer.chars().count() > width {
            break;
        }
        line = longer;
        begun = true;
    }
    cut(&line, width)
}

/// Cuts a line that is too wide.
fn cut(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let mut line: String = line.chars().take(width.saturating_sub(1)).collect();
    line.push('…');
    line
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use harvester_actors::{
        events::{Event, Pace, Waiting},
        partition::StreamId,
    };

    use super::*;
    use crate::observe::progress::tests::half_way;

    #[test]
    fn a_block_has_its_lines_and_fits_at_every_width() {
        let (mut progress, now) = half_way();
        let mut shown = String::new();
        let draw = |title: &str, progress: &Progress, shown: &mut String| {
            for width in [40, 80, 120] {
                let lines = block("sierra-leone", progress, now, width);
                assert!(lines.iter().all(|line| line.chars().count() <= width), "{lines:?}");
                writeln!(shown, "== {title}, {width} columns\n{}", lines.join("\n")).unwrap();
            }
            writeln!(shown, "== {title}, plain\n{}\n", plain_line("sierra-leone", progress, now)).unwrap();
        };
        draw("starting", &Progress::default(), &mut shown);
        draw("running", &progress, &mut shown);
        progress.retries = 3;
        let waiting = Waiting {
            reason: "the source asked for it (Retry-After)".to_owned(),
            remaining: Some(Duration::from_secs(40)),
        };
        let pace = Pace { waiting: Some(waiting), ..progress.pace.clone() };
        progress.apply(&Event::Pace(pace), now);
        draw("waiting", &progress, &mut shown);
        progress.pace.waiting = None;
        progress.apply(&Event::Finishing { stream: StreamId(0) }, now);
        draw("finishing", &progress, &mut shown);
        progress.apply(&Event::Stopping { reason: "SIGINT".to_owned() }, now);
        draw("stopping", &progress, &mut shown);
        insta::assert_snapshot!("block", shown);
        for width in 0..40 {
            assert!(
                block("sierra-leone", &progress, now, width).iter().all(|line| line.chars().count() <= width.max(1))
            );
        }
    }
}
