//! The screen is stderr: log lines and the block share it without tearing each other.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use super::canvas::Canvas;

/// How often the block is drawn at most.
const FRAMES_PER_SECOND: u8 = 4;
/// Columns where the terminal does not say.
const COLUMNS_DEFAULT: u16 = 80;
/// Lines where the terminal does not say.
const LINES_DEFAULT: u16 = 24;

/// How progress is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProgressMode {
    /// A block that is redrawn in place.
    Bar,
    /// A line now and then.
    Plain,
    /// Not at all.
    None,
}

/// Stderr. Clones share it.
#[derive(Clone, Debug)]
pub struct Screen {
    /// How progress is shown.
    mode: ProgressMode,
    /// The block, where there is one.
    bars: Option<MultiProgress>,
    /// The block as one bar of several lines, once it is drawn; so all of them change at once.
    block: Arc<Mutex<Option<ProgressBar>>>,
}

impl Screen {
    /// The screen of this process.
    pub fn new(mode: ProgressMode) -> Screen {
        let bars = (mode == ProgressMode::Bar).then(|| {
            let canvas = Box::new(Canvas::new(io::stderr(), size));
            MultiProgress::with_draw_target(ProgressDrawTarget::term_like_with_hz(canvas, FRAMES_PER_SECOND))
        });
        Screen { mode, bars, block: Arc::default() }
    }

    /// How progress is shown.
    pub fn mode(&self) -> ProgressMode {
        self.mode
    }

    /// Columns of the terminal.
    pub fn columns(&self) -> usize {
        usize::from(size().0)
    }

    /// Prints one line, above the block where there is one.
    pub fn print(&self, line: &str) {
        // A stderr that is gone is no reason to stop a harvest, so not by a macro that panics.
        let write = || drop(writeln!(io::stderr(), "{line}"));
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// Draws the block in place of the one before.
    pub fn draw(&self, block: &[String]) {
        let Some(bars) = &self.bars else { return };
        let mut shown = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = shown.get_or_insert_with(|| {
            // The lines are made by `block.rs`, not by a template of indicatif's.
            let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            bars.add(ProgressBar::new_spinner().with_style(style))
        });
        let lines: Vec<&str> = block.iter().map(|line| line.trim_end()).collect();
        bar.set_message(lines.join("\n"));
    }

    /// Takes the block away: the run is over, or the process is about to leave.
    pub fn clear(&self) {
        let Some(bars) = &self.bars else { return };
        // Whoever holds it is drawing; a process that leaves at once does not wait for that.
        let shown = self.block.try_lock().ok().and_then(|mut block| block.take());
        if let Some(bar) = shown {
            bar.finish_and_clear();
        }
        let _ = bars.clear();
    }
}

/// Columns and lines of the terminal.
fn size() -> (u16, u16) {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok();
    let or = |found: Option<u16>, default| found.filter(|found| *found > 0).unwrap_or(default);
    (or(size.map(|size| size.ws_col), COLUMNS_DEFAULT), or(size.map(|size| size.ws_row), LINES_DEFAULT))
}

/// Whether stderr is a terminal on which a block can be redrawn.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Every line of the log goes through the screen.
impl<'a> MakeWriter<'a> for Screen {
    type Writer = LogLine;

    fn make_writer(&'a self) -> LogLine {
        LogLine { screen: self.clone(), bytes: Vec::new() }
    }
}

/// One line of the log, printed when it is dropped.
#[derive(Debug)]
pub struct LogLine {
    /// Where to.
    screen: Screen,
    /// What.
    bytes: Vec<u8>,
}

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogLine {
    fn drop(&mut self) {
        let write = || {
            // A stderr that is gone is no reason to stop a harvest.
            let _ = io::stderr().write_all(&self.bytes);
        };
        match &self.screen.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

/// How often a plain line is printed.
pub(crate) const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
