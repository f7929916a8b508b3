//! A run has as many open files as it needs, or does not begin: half way, a connection that cannot be opened looks like a
//! server that is gone, and a thread that cannot wake another is a bug.
//!
//! A soft limit that is too low is raised as far as the hard one allows.

use std::{fs, thread};

use harvester_actors::failure::Failure;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What every run has open: lock, spool, store, status, the files of a stream that is being finished (of a large sort one for
/// each of at most four levels), what names are looked up with, and the wake-ups of two runtimes. 22 were the most seen; the
/// rest is for what is opened for a moment.
const FILES_OF_A_RUN: u64 = 36;

/// What each arbiter has open: its runtime's wake-ups.
const FILES_OF_AN_ARBITER: u64 = 4;

/// What each request in flight has open: its connection, and the page that is too large for memory.
const FILES_OF_A_REQUEST: u64 = 2;

/// Open files that this process may have, and those that it needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpenFiles {
    /// What the system allows; `None`: as many as it has.
    pub limit: Option<u64>,
    /// What a run needs at most.
    pub needed: u64,
    /// `limits.in_flight`, which they are needed for.
    in_flight: u32,
}

impl OpenFiles {
    /// Raises the soft limit where it is too low for a run, and says what became of it.
    pub fn raised_for(in_flight: u32) -> OpenFiles {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let needed = needed(open_now(), in_flight, cores as u64);
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let wanted = Rlimit { current: raised(current, maximum, needed), maximum };
        let limit = match setrlimit(Resource::Nofile, wanted) {
            Ok(()) => wanted.current,
            Err(_) => current,
        };
        OpenFiles { limit, needed, in_flight }
    }

    /// Whether they are enough.
    pub fn are_enough(&self) -> bool {
        self.limit.is_none_or(|limit| limit >= self.needed)
    }

    /// What is wrong with them.
    pub fn message(&self) -> String {
        let limit = self.limit.map_or_else(|| "any number of".to_owned(), |limit| limit.to_string());
        format!(
            "this process may have {limit} open files, and a run with in_flight = {} needs up to {}",
            self.in_flight, self.needed
        )
    }

    /// What to do about it.
    pub fn next(&self) -> String {
        format!(
            "raise the limit (ulimit -n {}, or LimitNOFILE= in the systemd unit), then run the same command",
            self.needed.next_power_of_two()
        )
    }
}

/// Makes sure that there are enough open files for a run.
///
/// # Errors
/// `Local` when the hard limit is too low.
pub fn ensure(in_flight: u32) -> Result<(), Failure> {
    let files = OpenFiles::raised_for(in_flight);
    if files.are_enough() || !harvester_pacing::control!("open-files") {
        return Ok(());
    }
    Err(Failure::local(files.message()).with_next(files.next()))
}

/// How many open files a run has at most.
///
/// - `open_now`: what is open before it begins.
fn needed(open_now: u64, in_flight: u32, cores: u64) -> u64 {
    let in_flight = u64::from(in_flight);
    open_now + FILES_OF_A_RUN + FILES_OF_AN_ARBITER * cores.min(in_flight) + FILES_OF_A_REQUEST * in_flight
}

/// The soft limit to ask for: what is wanted, as far as the hard one allows, and never lower than it is.
fn raised(current: Option<u64>, maximum: Option<u64>, wanted: u64) -> Option<u64> {
    let current = current?;
    Some(current.max(maximum.map_or(wanted, |maximum| wanted.min(maximum))))
}

/// How many files are open now: those of the shell, and what a service manager handed over.
fn open_now() -> u64 {
    // One of them is the folder that is being read.
    let count = fs::read_dir("/proc/self/fd").map(|open| open.count().saturating_sub(1));
    count.unwrap_or(3) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_as_far_as_wanted_and_allowed_and_never_lowered() {
        // (soft, hard, wanted, soft afterwards)
        let cases = [
            (Some(16), Some(4096), 160, Some(160)),
            (Some(16), Some(24), 160, Some(24)),
            (Some(16), None, 160, Some(160)),
            (Some(1024), Some(4096), 160, Some(1024)),
            (None, None, 160, None),
        ];
        for (current, maximum, wanted, expected) in cases {
            assert_eq!(raised(current, maximum, wanted), expected, "{current:?} of {maximum:?}");
        }
    }

    #[test]
    fn more_requests_and_more_cores_need_more_files_and_too_few_are_said() {
        assert_eq!(needed(3, 1, 8), 3 + 36 + 4 + 2);
        assert_eq!(needed(3, 8, 2), 3 + 36 + 8 + 16);
        assert_eq!(needed(3, 8, 64), 3 + 36 + 32 + 16);
        assert!(needed(3, 256, 64) < 1024, "the usual limit is enough for much");
        let files = |limit| OpenFiles { limit, needed: 63, in_flight: 8 };
        assert!(files(None).are_enough() && files(Some(63)).are_enough() && !files(Some(62)).are_enough());
        let few = files(Some(24));
        assert_eq!(few.message(), "this process may have 24 open files, and a run with in_flight = 8 needs up to 63");
        assert!(few.next().contains("ulimit -n 64"), "{}", few.next());
    }
}
