//! What an outcome is called, and what to do after it. No other file puts outcomes into words.

use harvester_actors::report::Outcome;

/// The headline of an outcome.
pub(crate) fn headline(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => "complete",
        Outcome::Rejected => "finished with rejects",
        Outcome::Mismatch => "the numbers do not add up",
        Outcome::Unavailable => "the source is not available",
        Outcome::Denied => "the source rejected the credentials",
        Outcome::Refused => "the source refuses",
        Outcome::Limit => "stopped by --max-seconds",
        Outcome::Interrupted => "stopped",
        Outcome::Locked => "another process is running this job",
        Outcome::Damaged => "the checkpoint is damaged",
        Outcome::Changed => "job or source does not match the saved state",
        Outcome::Storage => "local storage failed",
        Outcome::Invalid => "the job file is invalid",
        Outcome::Bug => "internal error",
    }
}

/// What ended so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum After {
    /// A run, which can be resumed.
    Run,
    /// A command without a run: one question, a plan, a check.
    Question,
}

/// What to do next, where what failed does not know better.
pub(crate) fn next_step(outcome: Outcome, after: After) -> &'static str {
    let of = |run, question| if after == After::Run { run } else { question };
    let help = "see `harvester --help`";
    match outcome {
        Outcome::Complete => of("nothing", help),
        Outcome::Rejected => of("look at rejects.ndjson", help),
        Outcome::Mismatch => {
            of("run the same command again to compare again, or with --restart to fetch everything again", help)
        }
        Outcome::Unavailable => {
            of("run the same command to resume", "try again later, or see whether the address is right")
        }
        Outcome::Limit | Outcome::Interrupted => of("run the same command to resume", help),
        Outcome::Denied => {
            of("check user name, password or token, then run the same command", "check user name, password or token")
        }
        Outcome::Refused => {
            of("check url, collections, fields and filters of the job", "check the url, the path and what is asked for")
        }
        Outcome::Locked => of("wait for the other process, or stop it", help),
        Outcome::Damaged => "start over with --restart",
        Outcome::Changed => "undo the change, or start over with --restart",
        Outcome::Storage => of(
            "free space or repair the disk, then run the same command to resume",
            "free space, or check the folder's permissions",
        ),
        Outcome::Invalid => of("correct the job file", help),
        Outcome::Bug => of(
            "run the same command to resume, and report the bug",
            "report it, with the output of the same command and -v",
        ),
    }
}
