//! What all commands share: the screen, stdout, the state directory, and how errors are reported.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Write as _},
    panic,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use harvester_actors::{
    failure::Failure,
    report::{Outcome, outcome_of},
};

use super::{Global, LogFormat, Progress, state_dir};
use crate::{
    exit_code::{self, exit_code},
    job::{Credentials, Diagnostics, Job, JobError, secret::process_environment},
    observe::{
        ProgressMode, Redactor, Screen,
        log::{self, LogFormat as Format},
        screen::{STDERR_THREAD, is_terminal},
        words::{self, After},
    },
};

/// How long the end of a process waits for its output to be read.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// What all commands share.
#[derive(Debug)]
pub(super) struct CommandContext {
    /// Stderr.
    pub(super) screen: Screen,
    /// Masks secrets in everything that is printed.
    pub(super) redactor: Redactor,
    /// Log format on stderr.
    pub(super) format: Format,
    /// Count of `-q`.
    pub(super) quiet: u8,
    /// Count of `-v`.
    pub(super) verbose: u8,
    /// Parent of the state directories of all jobs, or why it is not known.
    state_dir: Result<PathBuf, String>,
    /// Whether it was given with `--state-dir`.
    is_state_dir_given: bool,
}

/// Why a command failed, and the next step to suggest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct CommandError {
    /// Decides the exit code.
    pub(super) outcome: Outcome,
    /// Thing and cause; may have several lines.
    pub(super) message: String,
    /// The same on one line, for reports.
    pub(super) one_line: String,
    /// What to do or type.
    pub(super) next: String,
}

impl CommandError {
    /// An error with a message of one line.
    pub(super) fn new(outcome: Outcome, message: impl Into<String>, next: impl Into<String>) -> Self {
        let message = message.into();
        CommandError { outcome, one_line: message.clone(), message, next: next.into() }
    }

    /// The job file asks for what this version does not have.
    pub(super) fn unsupported(diagnostics: &Diagnostics) -> Self {
        CommandError {
            outcome: Outcome::Invalid,
            message: diagnostics.to_string(),
            one_line: diagnostics.one_line(),
            next: "take it out of the job file; CHANGELOG.md says what each version can do".to_owned(),
        }
    }
}

impl From<JobError> for CommandError {
    fn from(error: JobError) -> Self {
        CommandError {
            outcome: Outcome::Invalid,
            message: error.to_string(),
            one_line: error.one_line(),
            next: error.next().to_owned(),
        }
    }
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        let outcome = outcome_of(failure.class);
        let next = failure.next.unwrap_or_else(|| words::next_step(outcome, After::Question).to_owned());
        CommandError::new(outcome, failure.message, next)
    }
}

impl CommandContext {
    /// Reads the environment, and sets the log up.
    pub(super) fn new(global: &Global) -> Self {
        let format = match global.log_format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        };
        let is_set = |name: &str| process_environment(name).is_some_and(|value| !value.is_empty());
        let is_dumb = process_environment("TERM").is_none_or(|term| term == "dumb");
        let mode = progress_mode(global.progress, format, global.quiet, is_terminal() && !is_dumb);
        let redactor = Redactor::default();
        let screen = Screen::new(mode, format, redactor.clone());
        let level = log::level(global.quiet, global.verbose, mode);
        log::init(format, level, is_terminal() && !is_dumb && !is_set("NO_COLOR"), &screen);
        let state_dir = state_dir::resolve(global.state_dir.as_deref(), &process_environment);
        let (quiet, verbose) = (global.quiet, global.verbose);
        CommandContext {
            screen,
            redactor,
            format,
            quiet,
            verbose,
            state_dir,
            is_state_dir_given: global.state_dir.is_some(),
        }
    }

    /// Reports panics as internal errors, with their location. The message is printed only if it is a constant: a
    /// formatted one may hold a row.
    pub(super) fn install_panic_hook(&self) {
        let (format, screen) = (self.format, self.screen.clone());
        panic::set_hook(Box::new(move |bug| {
            let place = bug.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let what = bug.payload().downcast_ref::<&'static str>().copied().unwrap_or("details are withheld");
            let line = match format {
                Format::Text => format!("error: internal error at {place}: {what}"),
                Format::Json => {
                    serde_json::json!({ "level": "ERROR", "message": "internal error", "at": place, "what": what })
                        .to_string()
                }
            };
            if thread::current().name() == Some(STDERR_THREAD) {
                // The thread that prints is the one that panicked.
                let _ = writeln!(io::stderr(), "{line}");
            } else {
                screen.print(&line);
            }
        }));
    }

    /// Parent of the state directories of all jobs.
    pub(super) fn state_dir(&self) -> Result<PathBuf, CommandError> {
        self.state_dir
            .clone()
            .map_err(|message| CommandError::new(Outcome::Invalid, message, "say where with --state-dir DIR"))
    }

    /// Parent of the state directories of all jobs: `usual` unless `--state-dir` is given.
    pub(super) fn state_dir_or(&self, usual: &Path) -> Result<PathBuf, CommandError> {
        if self.is_state_dir_given { self.state_dir() } else { Ok(usual.to_owned()) }
    }

    /// Reads a job.
    pub(super) fn job(&self, path: &Path) -> Result<Job, CommandError> {
        Ok(Job::load(path)?)
    }

    /// Resolves the job's credentials; returns a warning too if they are kept unsafely.
    pub(super) fn credentials(&self, job: &Job) -> Result<(Credentials, Option<String>), CommandError> {
        let resolved = job.source.credentials.resolve(&process_environment).map_err(|error| {
            CommandError::new(Outcome::Invalid, format!("{}: {error}", job.path.display()), error.next)
        })?;
        self.redactor.hide(&resolved.0);
        Ok(resolved)
    }

    /// Prints text for people on stderr, unless `-q` or JSON is asked for.
    pub(super) fn notice(&self, text: &str) {
        if self.format == Format::Text && self.quiet == 0 {
            self.screen.print(text.trim_end());
        }
    }

    /// Prints the error and the next step on stderr; returns the exit code.
    pub(super) fn report_error(&self, error: &CommandError) -> u8 {
        let code = exit_code(error.outcome, None);
        match self.format {
            Format::Text => {
                self.screen.print(&format!("error: {}", error.message));
                if !error.next.is_empty() {
                    self.screen.print(&format!("next:  {}", error.next));
                }
            }
            Format::Json => {
                let (error, next) = (self.redactor.message(&error.one_line), self.redactor.message(&error.next));
                tracing::error!(exit_code = code, error, next, "cannot go on");
            }
        }
        code
    }

    /// Reports an error in the command line that clap cannot detect; returns the exit code.
    pub(super) fn usage_error(&self, message: &str, next: &str) -> u8 {
        self.report_error(&CommandError::new(Outcome::Invalid, message, next));
        exit_code::USAGE
    }

    /// Writes text for people to stdout; returns the exit code.
    pub(super) fn write_text(&self, text: &str) -> u8 {
        self.write_stdout(self.redactor.lines(text).as_bytes())
    }

    /// Writes data to stdout; returns the exit code. A closed pipe is not an error.
    pub(super) fn write_stdout(&self, bytes: &[u8]) -> u8 {
        // On a terminal, stdout and stderr are one text: keep the order.
        self.flush();
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => exit_code::COMPLETE,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => exit_code::COMPLETE,
            Err(error) => self.report_error(&CommandError::new(
                Outcome::Storage,
                format!("cannot write to stdout: {error}"),
                "see whether the disk that it goes to is full",
            )),
        }
    }

    /// Waits until all output is written, a second at most: a reader that has stopped reading must not delay the exit.
    pub(super) fn flush(&self) {
        self.screen.flush(FLUSH_LIMIT);
    }

    /// Reads an environment variable.
    pub(super) fn environment(name: &str) -> Option<OsString> {
        process_environment(name)
    }
}

/// Chooses how progress is shown.
fn progress_mode(wanted: Progress, format: Format, quiet: u8, is_terminal: bool) -> ProgressMode {
    match (wanted, format) {
        // With JSON, progress is a line of the log.
        (_, Format::Json) | (Progress::None, _) => ProgressMode::None,
        (Progress::Auto, _) if quiet > 0 => ProgressMode::None,
        // A block cannot be redrawn in a file.
        (Progress::Auto | Progress::Bar, _) if is_terminal => ProgressMode::Bar,
        (Progress::Auto | Progress::Bar | Progress::Plain, _) => ProgressMode::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_bar_only_on_a_terminal_and_only_for_people() {
        use Format::{Json, Text};
        use ProgressMode as Mode;
        let table = [
            (Progress::Auto, Text, 0, true, Mode::Bar),
            (Progress::Auto, Text, 0, false, Mode::Plain),
            (Progress::Auto, Text, 1, true, Mode::None),
            (Progress::Bar, Text, 1, true, Mode::Bar),
            (Progress::Bar, Text, 0, false, Mode::Plain),
            (Progress::Plain, Text, 0, true, Mode::Plain),
            (Progress::None, Text, 0, true, Mode::None),
            (Progress::Bar, Json, 0, true, Mode::None),
        ];
        for (wanted, format, quiet, is_terminal, expected) in table {
            assert_eq!(progress_mode(wanted, format, quiet, is_terminal), expected, "{wanted:?}");
        }
    }
}
