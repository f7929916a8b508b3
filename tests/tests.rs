//! The proofs, in one binary: the program as people run it, against the stand-in. One file per promise.

/// The dependency arrows that must not exist.
mod architecture;
/// A run that ends with 0 is complete, whatever the server claims.
mod completeness;
/// Each protection, switched off, makes its test fail.
mod controls;
/// One collection from a job file to a finished file, in every dialect.
mod end_to_end;
/// Every fault of a server: complete and exact, or the right code and resumable.
mod faults;
/// Commands without a run.
mod get;
/// Hostile answers and names, full disks, damaged state.
mod hostile;
/// Every file in `jobs/` is read by the program that documents it.
mod jobs;
/// Killed at any instant, the same command resumes and the files are the same.
mod kills;
/// Every fault of this machine: 0 exactly, or the right code, and a plain start completes the run.
mod local;
/// All of metadata: every collection, every version, whatever comes and goes.
mod metadata;
/// Packets lost, swallowed, refused.
mod network;
/// Power cuts: what was announced is there.
mod power_cuts;
/// Shared parts of the loops; kills at random instants, faults mixed at random.
mod proof;
/// Never above the limit, and close to it.
mod rate_limit;
/// The README's commands work as written.
mod readme;
/// No secret and no row in anything but the data files.
mod secrets;
/// Little load on a server in trouble.
mod server_load;
/// A service manager is told when it is ready, what it waits for, and of a hang.
mod service;
/// Every way to stop a run, and readers that go away.
mod shutdown;
/// The state of a job can always be shown.
mod status;
/// A folder, a job file, the program.
mod support;
/// Killed at every system call, failing sync and crash point, the run resumes.
mod syscalls;
/// One calm block on a terminal.
mod terminal;
/// Transcripts of what a person sees, word for word.
mod transcripts;
/// Every error of a user: the right code, the cause and the next step.
mod user_errors;
/// Run ids and watermarks: no run takes the place of another, and no incremental run skips a change.
mod watermarks;
