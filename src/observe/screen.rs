//! The screen is stderr: log lines and the block share it without tearing each other.

use std::{
    io::{self, IsTerminal as _, Write},
    mem,
    sync::Arc,
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::{
    canvas::Canvas,
    log::LogFormat,
    redactor::Redactor,
    voice::{self, LeftOut, Show, Update, Voice, Weight},
};

/// The thread that writes to stderr.
pub(crate) const STDERR_THREAD: &str = voice::THREAD;
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

/// Stderr. Clones share it. Nothing here waits for whoever reads it but [`Screen::flush`].
#[derive(Clone, Debug)]
pub struct Screen {
    /// How progress is shown.
    mode: ProgressMode,
    /// What speaks.
    voice: Arc<Voice>,
    /// What must not be said.
    redactor: Redactor,
}

impl Screen {
    /// The screen of this process.
    pub fn new(mode: ProgressMode, format: LogFormat, redactor: Redactor) -> Screen {
        let voice = Arc::new(Voice::new(shower(mode), move |left_out| told(left_out, format)));
        Screen { mode, voice, redactor }
    }

    /// How progress is shown.
    pub fn mode(&self) -> ProgressMode {
        self.mode
    }

    /// Columns of the terminal.
    pub fn columns(&self) -> usize {
        usize::from(size().0)
    }

    /// Prints a line, or several, above the block where there is one.
    pub fn print(&self, line: &str) {
        self.voice.say(Weight::Important, (self.redactor.lines(line) + "\n").into_bytes());
    }

    /// Prints a line of progress: the first to be left out where nobody reads.
    pub fn print_progress(&self, line: &str) {
        self.voice.say(Weight::Detail, (self.redactor.message(line) + "\n").into_bytes());
    }

    /// Draws the block in place of the one before.
    pub fn draw(&self, block: &[String]) {
        if self.mode == ProgressMode::Bar {
            let lines: Vec<&str> = block.iter().map(|line| line.trim_end()).collect();
            self.voice.block(Update::Draw(self.redactor.lines(&lines.join("\n"))));
        }
    }

    /// Takes the block away: the run is over, or the process is about to leave.
    pub fn clear(&self) {
        if self.mode == ProgressMode::Bar {
            self.voice.block(Update::Clear);
        }
    }

    /// Waits until everything is shown, `limit` at most.
    pub fn flush(&self, limit: Duration) {
        self.voice.flush(limit);
    }
}

/// What shows, on the thread of the voice: it owns the block.
fn shower(mode: ProgressMode) -> impl FnMut(Show) + Send + 'static {
    let bars = (mode == ProgressMode::Bar).then(|| {
        let canvas = Box::new(Canvas::new(io::stderr(), size));
        MultiProgress::with_draw_target(ProgressDrawTarget::term_like_with_hz(canvas, FRAMES_PER_SECOND))
    });
    // One bar of several lines, once it is drawn; so all of them change at once.
    let mut block: Option<ProgressBar> = None;
    move |what| match (what, &bars) {
        (Show::Lines(lines), bars) => {
            // A stderr that is gone is no reason to stop a harvest, so not by a macro that panics.
            let write = || drop(io::stderr().write_all(&lines));
            match bars {
                Some(bars) => bars.suspend(write),
                None => write(),
            }
        }
        (Show::Block(Update::Draw(lines)), Some(bars)) => {
            let bar = block.get_or_insert_with(|| {
                // The lines are made by `block.rs`, not by a template of indicatif's.
                let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
                bars.add(ProgressBar::new_spinner().with_style(style))
            });
            bar.set_message(lines);
        }
        (Show::Block(Update::Clear), Some(bars)) => {
            if let Some(bar) = block.take() {
                bar.finish_and_clear();
            }
            let _ = bars.clear();
        }
        (Show::Block(_), None) => {}
    }
}

/// What was left out while nobody read, as a line.
fn told(left_out: LeftOut, format: LogFormat) -> Vec<u8> {
    let LeftOut { details, important } = left_out;
    let message = "lines are missing here: they were not read in time";
    let line = match format {
        LogFormat::Text => {
            format!("note: {message} ({details} of progress and details, {important} of warnings and errors)")
        }
        LogFormat::Json => {
            serde_json::json!({ "level": "WARN", "message": message, "details": details, "warnings": important })
                .to_string()
        }
    };
    (line + "\n").into_bytes()
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
        LogLine { screen: self.clone(), weight: Weight::Important, bytes: Vec::new() }
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> LogLine {
        let weight = if *of.level() <= Level::WARN { Weight::Important } else { Weight::Detail };
        LogLine { screen: self.clone(), weight, bytes: Vec::new() }
    }
}

/// One line of the log, said when it is dropped.
#[derive(Debug)]
pub struct LogLine {
    /// Where to.
    screen: Screen,
    /// How much it matters.
    weight: Weight,
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
        let line = self.screen.redactor.log_line(mem::take(&mut self.bytes));
        self.screen.voice.say(self.weight, line);
    }
}

/// How often a plain line is printed.
pub(crate) const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
