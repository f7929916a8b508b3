//! What every command needs to speak: the screen, stdout, the state folder, and how a failure is told.

use std::{
    ffi::OsString,
    io::{self, ErrorKind, Write as _},
    panic,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use harvester_actors::{failure::Failure, harvest::outcome_of, report::Outcome};

use super::{Global, LogFormat, Progress, state_dir};
use crate::{
    exit_code::{self, exit_code},
    job::{Credentials, Job, JobError, Mistakes, secret::process_environment},
    observe::{
        ProgressMode, Redactor, Screen,
        log::{self, LogFormat as Format},
        screen::{STDERR_THREAD, is_terminal},
    },
};

/// How long the end of a process waits for somebody to read what it has said.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// What every command needs.
#[derive(Debug)]
pub(super) struct Door {
    /// Stderr.
    pub(super) screen: Screen,
    /// What must not be said.
    pub(super) redactor: Redactor,
    /// How stderr looks.
    pub(super) format: Format,
    /// How often `-q` was given.
    pub(super) quiet: u8,
    /// How often `-v` was given.
    pub(super) verbose: u8,
    /// Where runs keep their state, or why that is not known.
    state_dir: Result<PathBuf, String>,
    /// Whether somebody said so.
    is_state_dir_given: bool,
}

/// A command that cannot go on: what happened and what to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stuck {
    /// How the command ends.
    pub(super) outcome: Outcome,
    /// What happened to what; may have several lines.
    pub(super) message: String,
    /// The same on one line, for reports.
    pub(super) one_line: String,
    /// What to do or type.
    pub(super) next: String,
}

impl Stuck {
    /// A command that cannot go on.
    pub(super) fn new(outcome: Outcome, message: impl Into<String>, next: impl Into<String>) -> Self {
        let message = message.into();
        Stuck { outcome, one_line: message.clone(), message, next: next.into() }
    }

    /// The job file has mistakes that only this version has.
    pub(super) fn mistakes(mistakes: &Mistakes) -> Self {
        Stuck {
            outcome: Outcome::Invalid,
            message: mistakes.to_string(),
            one_line: mistakes.one_line(),
            next: "take it out of the job file; CHANGELOG.md says what each version can do".to_owned(),
        }
    }
}

impl From<JobError> for Stuck {
    fn from(error: JobError) -> Self {
        Stuck {
            outcome: Outcome::Invalid,
            message: error.to_string(),
            one_line: error.one_line(),
            next: error.next().to_owned(),
        }
    }
}

impl From<Failure> for Stuck {
    fn from(failure: Failure) -> Self {
        let outcome = outcome_of(failure.class);
        let next = failure.next.unwrap_or_else(|| default_next(outcome).to_owned());
        Stuck::new(outcome, failure.message, next)
    }
}

/// What to do where nobody said anything better.
fn default_next(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unavailable => "try again later, or see whether the address is right",
        Outcome::Denied => "check user name, password or token",
        Outcome::Refused => "check the url, the path and what is asked for",
        Outcome::Storage => "free space, or check the folder's permissions",
        Outcome::Damaged => "begin anew with --restart",
        Outcome::Changed => "undo the change, or begin anew with --restart",
        Outcome::Bug => "report it, with the output of the same command and -v",
        Outcome::Complete
        | Outcome::Rejected
        | Outcome::Mismatch
        | Outcome::Limit
        | Outcome::Interrupted
        | Outcome::Locked
        | Outcome::Invalid => "see `harvester --help`",
    }
}

impl Door {
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
        Door { screen, redactor, format, quiet, verbose, state_dir, is_state_dir_given: global.state_dir.is_some() }
    }

    /// From here on a panic is told as what it is: a bug at a place. Its text is told only where it is a constant of
    /// ours; one that was formatted may hold a row.
    pub(super) fn report_bugs(&self) {
        let (format, screen) = (self.format, self.screen.clone());
        panic::set_hook(Box::new(move |bug| {
            let place = bug.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
            let what = bug.payload().downcast_ref::<&'static str>().copied().unwrap_or("details are withheld");
            let line = match format {
                Format::Text => format!("error: a bug of this program at {place}: {what}"),
                Format::Json => {
                    serde_json::json!({ "level": "ERROR", "message": "a bug of this program", "at": place, "what": what })
                        .to_string()
                }
            };
            if thread::current().name() == Some(STDERR_THREAD) {
                // Nobody else is left to say it.
                let _ = writeln!(io::stderr(), "{line}");
            } else {
                screen.print(&line);
            }
        }));
    }

    /// Where runs keep their state.
    pub(super) fn state_dir(&self) -> Result<PathBuf, Stuck> {
        self.state_dir
            .clone()
            .map_err(|message| Stuck::new(Outcome::Invalid, message, "say where with --state-dir DIR"))
    }

    /// Where runs keep their state: `usual` unless somebody said otherwise.
    pub(super) fn state_dir_or(&self, usual: &Path) -> Result<PathBuf, Stuck> {
        if self.is_state_dir_given { self.state_dir() } else { Ok(usual.to_owned()) }
    }

    /// Reads a job.
    pub(super) fn job(&self, path: &Path) -> Result<Job, Stuck> {
        Ok(Job::load(path)?)
    }

    /// Fetches the job's secret, and what is wrong with how it is kept.
    pub(super) fn credentials(&self, job: &Job) -> Result<(Credentials, Option<String>), Stuck> {
        let resolved =
            job.source.credentials.resolve(&process_environment).map_err(|error| {
                Stuck::new(Outcome::Invalid, format!("{}: {error}", job.path.display()), error.next)
            })?;
        self.redactor.hide(&resolved.0);
        Ok(resolved)
    }

    /// Says something to people, unless they asked for quiet or for JSON.
    pub(super) fn say(&self, text: &str) {
        if self.format == Format::Text && self.quiet == 0 {
            self.screen.print(text.trim_end());
        }
    }

    /// Tells why the command ends, and returns its exit code.
    pub(super) fn fail(&self, stuck: &Stuck) -> u8 {
        let code = exit_code(stuck.outcome, None);
        match self.format {
            Format::Text => {
                self.screen.print(&format!("error: {}", stuck.message));
                if !stuck.next.is_empty() {
                    self.screen.print(&format!("next:  {}", stuck.next));
                }
            }
            Format::Json => {
                let (error, next) = (self.redactor.message(&stuck.one_line), self.redactor.message(&stuck.next));
                tracing::error!(exit_code = code, error, next, "cannot go on");
            }
        }
        code
    }

    /// A command line that clap could not find wrong.
    pub(super) fn usage(&self, message: &str, next: &str) -> u8 {
        self.fail(&Stuck::new(Outcome::Invalid, message, next));
        exit_code::USAGE
    }

    /// Writes text for people to stdout, and returns the exit code of that.
    pub(super) fn text(&self, text: &str) -> u8 {
        self.data(self.redactor.lines(text).as_bytes())
    }

    /// Writes data to stdout, and returns the exit code of that. A reader that goes away is no error.
    pub(super) fn data(&self, bytes: &[u8]) -> u8 {
        // On a terminal both are one text, in the order in which it was said.
        self.flush();
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Ok(()) => exit_code::COMPLETE,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => exit_code::COMPLETE,
            Err(error) => self.fail(&Stuck::new(
                Outcome::Storage,
                format!("cannot write to stdout: {error}"),
                "see whether the disk that it goes to is full",
            )),
        }
    }

    /// Waits until everything that was said is shown, a second at most: a reader that stands still must not hold the exit.
    pub(super) fn flush(&self) {
        self.screen.flush(FLUSH_LIMIT);
    }

    /// The environment, for those who need a variable.
    pub(super) fn environment(name: &str) -> Option<OsString> {
        process_environment(name)
    }
}

/// How progress is shown.
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
