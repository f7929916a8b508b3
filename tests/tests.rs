//! The proofs, in one binary: the program as people run it, against the stand-in. One file per promise.

/// The dependency arrows that must not exist.
mod architecture;
/// What is 0 is complete, whatever a server says of itself.
mod completeness;
/// What each protection is for: switched off, its test fails.
mod controls;
/// Whatever a person does wrong: the right code, what happened to what, and what to do.
mod door;
/// Whatever the server does: complete and exact, or the right code and resumable.
mod faults;
/// Questions without a run.
mod get;
/// Hostile answers and names, full disks, damaged state.
mod hostile;
/// Every file in `jobs/` is read by the program that documents it.
mod jobs;
/// Killed at any instant, the same command resumes and the files are the same.
mod kills;
/// Gentle with a server in trouble.
mod kind;
/// Whatever this machine does to a run: 0 exactly, or the right code and a plain start completes it.
mod local;
/// All of metadata: every collection, every version, whatever comes and goes.
mod metadata;
/// Packets lost, swallowed, refused.
mod network;
/// Never above the limit, close to it, and kind.
mod pace;
/// Power cuts: what was announced is there.
mod power;
/// What the loops share; kills at random instants, faults mixed at random.
mod proof;
/// The README's commands work as written.
mod readme;
/// No secret and no row in anything but the data files.
mod secrets;
/// A service manager hears when it is ready, what it waits for, and of a hang.
mod service;
/// One collection from a job file to a finished file, in every dialect.
mod spine;
/// A person can always see how a job is doing.
mod status;
/// However it is stopped, and whoever stops listening.
mod stops;
/// A folder, a job file, the program.
mod support;
/// Ended at every system call, failing sync and crash point, the run goes on.
mod syscalls;
/// One calm block on a terminal.
mod terminal;
/// What a person sees, word for word.
mod transcripts;
/// Run ids and watermarks: no run takes the place of another, and no incremental run skips a change.
mod watermarks;
