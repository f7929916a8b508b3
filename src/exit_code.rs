//! What the process says to its caller when it ends: one number, derived from the outcome alone.

use harvester_actors::report::Outcome;

/// Everything was fetched and the numbers add up.
pub const COMPLETE: u8 = 0;
/// A bug of this program.
pub const BUG: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The run finished, but rows or partitions were rejected.
pub const REJECTED: u8 = 3;
/// Files differ from their manifest, or numbers do not add up.
pub const MISMATCH: u8 = 4;
/// The source was gone for too long; the same command resumes.
pub const UNAVAILABLE: u8 = 5;
/// The source refuses this user.
pub const DENIED: u8 = 6;
/// The source refuses this query for good, or is not a DHIS2 server.
pub const REFUSED: u8 = 7;
/// Stopped by `--max-seconds`; the same command resumes.
pub const LIMIT: u8 = 10;
/// Another process holds the state folder.
pub const LOCKED: u8 = 11;
/// The checkpoint is damaged beyond rebuilding, or newer than this program.
pub const DAMAGED: u8 = 12;
/// Job or source changed since the checkpoint.
pub const CHANGED: u8 = 13;
/// This machine's storage failed.
pub const STORAGE: u8 = 14;
/// The job file is invalid.
pub const INVALID: u8 = 78;
/// Stopped by Ctrl-C (128 + 2); the same command resumes.
pub const SIGINT: u8 = 130;
/// Stopped by SIGTERM (128 + 15) or SIGHUP; the same command resumes.
pub const SIGTERM: u8 = 143;

/// Why a run is asked to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StopReason {
    /// Ctrl-C.
    Sigint,
    /// The service manager, or `kill`.
    Sigterm,
    /// The terminal went away.
    Sighup,
    /// `--max-seconds` is over.
    MaxSeconds,
}

impl StopReason {
    /// As a fragment for people.
    pub fn as_str(self) -> &'static str {
        match self {
            StopReason::Sigint => "SIGINT",
            StopReason::Sigterm => "SIGTERM",
            StopReason::Sighup => "SIGHUP",
            StopReason::MaxSeconds => "--max-seconds",
        }
    }

    /// The exit code of a process that was stopped for it.
    pub fn exit_code(self) -> u8 {
        match self {
            StopReason::Sigint => SIGINT,
            StopReason::Sigterm | StopReason::Sighup => SIGTERM,
            StopReason::MaxSeconds => LIMIT,
        }
    }
}

/// The exit code of an outcome.
///
/// - `stop`: why the run was asked to stop, if it was; decides only between the two signals.
pub fn exit_code(outcome: Outcome, stop: Option<StopReason>) -> u8 {
    match outcome {
        Outcome::Complete => COMPLETE,
        Outcome::Rejected => REJECTED,
        Outcome::Mismatch => MISMATCH,
        Outcome::Unavailable => UNAVAILABLE,
        Outcome::Denied => DENIED,
        Outcome::Refused => REFUSED,
        Outcome::Limit => LIMIT,
        Outcome::Interrupted => stop.map_or(SIGINT, StopReason::exit_code),
        Outcome::Locked => LOCKED,
        Outcome::Damaged => DAMAGED,
        Outcome::Changed => CHANGED,
        Outcome::Storage => STORAGE,
        Outcome::Invalid => INVALID,
        Outcome::Bug => BUG,
    }
}

/// Whether the same command resumes where this one stopped.
pub fn is_resumable(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Unavailable
        | Outcome::Limit
        | Outcome::Interrupted
        | Outcome::Denied
        | Outcome::Storage
        | Outcome::Bug => true,
        Outcome::Complete
        | Outcome::Rejected
        | Outcome::Mismatch
        | Outcome::Refused
        | Outcome::Locked
        | Outcome::Damaged
        | Outcome::Changed
        | Outcome::Invalid => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_those_of_the_surface() {
        let table = [
            (Outcome::Complete, 0),
            (Outcome::Bug, 1),
            (Outcome::Rejected, 3),
            (Outcome::Mismatch, 4),
            (Outcome::Unavailable, 5),
            (Outcome::Denied, 6),
            (Outcome::Refused, 7),
            (Outcome::Limit, 10),
            (Outcome::Locked, 11),
            (Outcome::Damaged, 12),
            (Outcome::Changed, 13),
            (Outcome::Storage, 14),
            (Outcome::Invalid, 78),
        ];
        for (outcome, code) in table {
            for stop in [None, Some(StopReason::Sigterm)] {
                assert_eq!(exit_code(outcome, stop), code, "{outcome:?}");
            }
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
        }
    }

    #[test]
    fn a_signal_is_told_by_its_own_code() {
        assert_eq!(exit_code(Outcome::Interrupted, Some(StopReason::Sigint)), 130);
        assert_eq!(exit_code(Outcome::Interrupted, Some(StopReason::Sigterm)), 143);
        assert_eq!(exit_code(Outcome::Interrupted, Some(StopReason::Sighup)), 143);
    }
}
