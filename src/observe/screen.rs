//! The screen is stderr: log lines and the block share it without tearing each other.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

use super::block::BLOCK_LINES;

/// How often the block is drawn at most.
const FRAMES_PER_SECOND: u8 = 4;
/// Columns where the terminal does not say.
const COLUMNS_DEFAULT: u16 = 80;

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
    /// Its lines, once it is drawn.
    lines: Arc<Mutex<Vec<ProgressBar>>>,
}

impl Screen {
    /// The screen of this process.
    pub fn new(mode: ProgressMode) -> Screen {
        let bars = (mode == ProgressMode::Bar)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(FRAMES_PER_SECOND)));
        Screen { mode, bars, lines: Arc::default() }
    }

    /// How progress is shown.
    pub fn mode(&self) -> ProgressMode {
        self.mode
    }

    /// Columns of the terminal.
    pub fn columns(&self) -> usize {
        let size = rustix::termios::tcgetwinsize(io::stderr()).ok().map(|size| size.ws_col);
        usize::from(size.filter(|columns| *columns > 0).unwrap_or(COLUMNS_DEFAULT))
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
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.is_empty() {
            // One bar per line; each is drawn by `block.rs`, not by a template of indicatif's.
            let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
            *lines = (0..BLOCK_LINES).map(|_| bars.add(ProgressBar::new_spinner().with_style(style.clone()))).collect();
        }
        for (bar, line) in lines.iter().zip(block) {
            bar.set_message(line.clone());
        }
    }

    /// Takes the block away: the run is over, or the process is about to leave.
    pub fn clear(&self) {
        let Some(bars) = &self.bars else { return };
        let lines = self.lines.try_lock().map(|mut lines| std::mem::take(&mut *lines)).unwrap_or_default();
        for bar in lines {
            bar.finish_and_clear();
        }
        let _ = bars.clear();
    }
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
