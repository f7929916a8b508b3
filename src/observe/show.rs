//! Shows progress on the screen: the block on a terminal, a line at the start and every 30 s elsewhere.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use harvester_actors::events::{Event, Listener};
use tokio::time::Instant;

use super::{
    block::{block, plain_line},
    progress::Progress,
    screen::{PLAIN_INTERVAL, ProgressMode, Screen},
};

/// Draws at most this often; the terminal is not asked for its width more often either.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows progress.
#[derive(Debug)]
pub struct ProgressListener {
    /// Where.
    screen: Screen,
    /// The job.
    job: String,
    /// What is shown.
    picture: Mutex<Picture>,
}

/// What the listener keeps between events.
#[derive(Debug)]
struct Picture {
    /// When it began.
    began: Instant,
    /// How far the run has come.
    progress: Progress,
    /// When it was last shown; `None`: not yet.
    shown: Option<Duration>,
}

/// What is to be shown at an event.
#[derive(Debug, Eq, PartialEq)]
enum Showing {
    /// Nothing.
    Nothing,
    /// The block.
    Block,
    /// A line.
    Line,
    /// The block goes away.
    End,
}

/// Decides what is shown.
fn showing(mode: ProgressMode, event: &Event, since_shown: Option<Duration>) -> Showing {
    let is_due = |interval| since_shown.is_none_or(|since| since >= interval);
    let is_turn = matches!(
        event,
        Event::PlanMade { .. } | Event::Finishing { .. } | Event::Stopping { .. } | Event::SourceIdentified(_)
    );
    match (mode, event) {
        (ProgressMode::None, _) => Showing::Nothing,
        (ProgressMode::Bar, Event::RunEnded(_)) => Showing::End,
        (ProgressMode::Bar, _) if is_turn || is_due(DRAW_INTERVAL) => Showing::Block,
        // A run that is planned has something to say; the report says the rest at the end.
        (ProgressMode::Plain, Event::PlanMade { .. }) => Showing::Line,
        (ProgressMode::Plain, Event::Pace(_)) if since_shown.is_some() && is_due(PLAIN_INTERVAL) => Showing::Line,
        (ProgressMode::Bar | ProgressMode::Plain, _) => Showing::Nothing,
    }
}

impl ProgressListener {
    /// A listener for one run.
    pub fn new(job: &str, screen: Screen) -> Self {
        let picture = Picture { began: Instant::now(), progress: Progress::default(), shown: None };
        ProgressListener { screen, job: job.to_owned(), picture: Mutex::new(picture) }
    }
}

impl Listener for ProgressListener {
    fn hear(&self, event: &Event) {
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        let now = picture.began.elapsed();
        picture.progress.hear(event, now);
        let since_shown = picture.shown.map(|shown| now.saturating_sub(shown));
        match showing(self.screen.mode(), event, since_shown) {
            Showing::Nothing => return,
            // One column stays free: a terminal may wrap a line that fills its last one.
            Showing::Block => {
                self.screen.draw(&block(&self.job, &picture.progress, now, self.screen.columns().saturating_sub(1)));
            }
            Showing::Line => self.screen.print_progress(&plain_line(&self.job, &picture.progress, now)),
            Showing::End => self.screen.clear(),
        }
        picture.shown = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use harvester_actors::{events::Pace, partition::Plan};

    use super::*;

    #[test]
    fn a_line_comes_at_the_start_and_every_30_s_and_never_without_progress() {
        let plan = Event::PlanMade { run_id: String::new(), plan: Arc::new(Plan::default()), committed: Vec::new() };
        let pace = Event::Pace(Pace::default());
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(showing(ProgressMode::Plain, &plan, None), Showing::Line);
        assert_eq!(showing(ProgressMode::Plain, &pace, None), Showing::Nothing);
        assert_eq!(showing(ProgressMode::Plain, &pace, seconds(29)), Showing::Nothing);
        assert_eq!(showing(ProgressMode::Plain, &pace, seconds(30)), Showing::Line);
        for mode in [ProgressMode::None, ProgressMode::Plain] {
            let stopping = Event::Stopping { reason: String::new() };
            assert_eq!(showing(mode, &stopping, seconds(1000)), Showing::Nothing);
        }
        assert_eq!(showing(ProgressMode::None, &pace, seconds(30)), Showing::Nothing);
        assert_eq!(showing(ProgressMode::Bar, &pace, Some(Duration::from_millis(100))), Showing::Nothing);
        assert_eq!(showing(ProgressMode::Bar, &pace, seconds(1)), Showing::Block);
    }
}
