//! Shows progress on the screen: the block on a terminal, a line at the start and every 30 s elsewhere.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use harvester_actors::events::Event;

use super::{
    Observer,
    block::{block, plain_line},
    progress::Progress,
    screen::{PLAIN_INTERVAL, ProgressMode, Screen},
};

/// Draws at most this often; the terminal is not asked for its width more often either.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Shows progress.
#[derive(Debug)]
pub struct ProgressObserver {
    /// The terminal.
    screen: Screen,
    /// The job.
    job: String,
    /// When it was last shown; `None`: not yet.
    shown: Mutex<Option<Duration>>,
}

/// What an event makes the observer draw.
#[derive(Debug, Eq, PartialEq)]
enum DrawAction {
    /// Nothing.
    Nothing,
    /// The block.
    Block,
    /// A line.
    Line,
    /// The block goes away.
    End,
}

/// Decides what to draw at an event.
fn draw_action(mode: ProgressMode, event: &Event, since_shown: Option<Duration>) -> DrawAction {
    let is_due = |interval| since_shown.is_none_or(|since| since >= interval);
    let is_turn = matches!(
        event,
        Event::PlanReady { .. } | Event::Finishing { .. } | Event::Stopping { .. } | Event::SourceIdentified(_)
    );
    match (mode, event) {
        (ProgressMode::None, _) => DrawAction::Nothing,
        (ProgressMode::Bar, Event::RunEnded(_)) => DrawAction::End,
        (ProgressMode::Bar, _) if is_turn || is_due(DRAW_INTERVAL) => DrawAction::Block,
        // A run that is planned has something to say; the report says the rest at the end.
        (ProgressMode::Plain, Event::PlanReady { .. }) => DrawAction::Line,
        (ProgressMode::Plain, Event::Pace(_)) if since_shown.is_some() && is_due(PLAIN_INTERVAL) => DrawAction::Line,
        (ProgressMode::Bar | ProgressMode::Plain, _) => DrawAction::Nothing,
    }
}

impl ProgressObserver {
    /// An observer of one run.
    pub fn new(job: &str, screen: Screen) -> Self {
        ProgressObserver { screen, job: job.to_owned(), shown: Mutex::default() }
    }
}

impl Observer for ProgressObserver {
    fn observe(&self, event: &Event, progress: &Progress, now: Duration) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let since_shown = shown.map(|shown| now.saturating_sub(shown));
        match draw_action(self.screen.mode(), event, since_shown) {
            DrawAction::Nothing => return,
            // One column stays free: a terminal may wrap a line that fills its last one.
            DrawAction::Block => {
                self.screen.draw(&block(&self.job, progress, now, self.screen.columns().saturating_sub(1)));
            }
            DrawAction::Line => self.screen.print_progress(&plain_line(&self.job, progress, now)),
            DrawAction::End => self.screen.clear(),
        }
        *shown = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use harvester_actors::events::Pace;

    use super::*;

    #[test]
    fn a_line_comes_at_the_start_and_every_30_s_and_never_without_progress() {
        let plan = Event::PlanReady {
            run_id: String::new(),
            streams: [].into(),
            left_out: Vec::new(),
            partitions: 0,
            finished: 0,
            committed: Vec::new(),
        };
        let pace = Event::Pace(Pace::default());
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(draw_action(ProgressMode::Plain, &plan, None), DrawAction::Line);
        assert_eq!(draw_action(ProgressMode::Plain, &pace, None), DrawAction::Nothing);
        assert_eq!(draw_action(ProgressMode::Plain, &pace, seconds(29)), DrawAction::Nothing);
        assert_eq!(draw_action(ProgressMode::Plain, &pace, seconds(30)), DrawAction::Line);
        for mode in [ProgressMode::None, ProgressMode::Plain] {
            let stopping = Event::Stopping { reason: String::new() };
            assert_eq!(draw_action(mode, &stopping, seconds(1000)), DrawAction::Nothing);
        }
        assert_eq!(draw_action(ProgressMode::None, &pace, seconds(30)), DrawAction::Nothing);
        assert_eq!(draw_action(ProgressMode::Bar, &pace, Some(Duration::from_millis(100))), DrawAction::Nothing);
        assert_eq!(draw_action(ProgressMode::Bar, &pace, seconds(1)), DrawAction::Block);
    }
}
