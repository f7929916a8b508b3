//! The engine: when, in what order, how many at a time, and what happens after a death. It does no I/O.
//!
//! ```text
//! job file ─▶ Job ─▶ Harvest ─▶ Planner ─NextPartition─▶ Fetcher ─WritePage─▶ Writer ─EntryWritten─▶ Checkpointer ─▶ Reporter ─▶ report
//!                               ▲  ▲                      │   ▲       │   (owns the spool)       (owns the store)
//!        PartitionReturned: failed │            NextPermit│   │Permit │
//!        or too heavy              └──PlanExtended────────┼───┼───────┘ children of a page
//!                                                         ▼   │
//!                                                      RateLimiter (owns the budget of one origin)
//!
//!        Supervisor: spawns fetchers over one arbiter per core, hears of every death, spawns again, ends the run
//!
//! all partitions fetched ─▶ Source::follow(facts of each stream) ─▶ a further pass (fetched as above), or satisfied ─▶ Target
//! ```
//!
//! Data goes one way: partition → page → span → checkpoint → report. Only questions, their replies (which are the
//! back-pressure) and a partition handed back run upstream.
//!
//! **Partitions evolve.** A source answers a fetch with a page, with a page that brings further partitions, or with a split
//! of the partition into children; the page and what it brings are one entry of the spool. When nothing is left to fetch of a
//! stream, its kind says what follows of what is known ([`follow`]): a listing, a second reading, a repair are passes of
//! that stream. The plan is in the spool; in memory are a bit for each partition and where each piece of the plan is
//! ([`plan`]).
//!
//! What holds, and where it is proved (`proof.rs` loops over every port call):
//! - a page is announced only once it has its place, and committed only once the spool is durable;
//! - a death at any point costs at most the pages that were in flight, and changes no byte of the result;
//! - the spool decides, the store is its index, and recovery is the path that every start takes;
//! - a run is complete only once the kind of each stream says by what it is proved so ([`follow::Proof`]);
//! - one page per fetcher is in memory, whatever the number of pages, rows, partitions and streams.
//!
//! What is deliberately absent: HTTP, files, sled, screens. They are behind the ports [`source`], [`sink`] (a spool and a
//! target) and [`checkpoint_store`], and behind [`events::Listener`].
//!
//! # Where a change goes
//!
//! | to add | write | the compiler then asks for |
//! |---|---|---|
//! | a kind of data | a file in `src/extract/`, its request in `src/dhis2/`, a documented job in `jobs/`, a route in the stand-in | a variant of `Extract` and of `Selection` (`src/extract/kind.rs`) with an arm in each `match`; a block in `src/job/file.rs` and its meaning; the arm in `assemble::extract`; its word in `CAPABILITIES` (`src/job/load.rs`), which a test asks for |
//! | a file format | a file in `src/sinks/` that is an `Encode` | arms of `FileFormat` (`src/sinks/encode.rs`), of `job::Format` in `fingerprint` and `assemble`; its word in `src/job/file.rs` and `semantics.rs` |
//! | a target | a file in `src/sinks/` that is a [`sink::Target`], and a bench in `sinks/conformance.rs` | its arm in `assemble` |
//! | a failure class | a variant of [`failure::FailureClass`] | its word, its retry ([`retry`]), its outcome ([`report::outcome_of`]), and the kinds that decide by class; what belongs to it is decided in `src/extract/classify.rs` |
//! | a command | a file in `src/cli/`, what it asks in `src/ask.rs` | a variant of `Command` and its arm; a test asks for its examples |
//! | a metric or a screen | a file in `src/observe/` that is an `Observer`, given each event and the sums so far | its line in `cli/run.rs`; an event that it needs is a variant of [`events::Event`] and an arm in `Progress` and in each observer |

#[doc(hidden)]
pub use fail;

mod accounts;
pub mod checkpoint;
pub mod checkpoint_store;
pub mod checkpointer;
pub mod events;
pub mod failure;
pub mod fetcher;
pub mod follow;
pub mod harvest;
pub mod last_will;
pub mod outage;
pub mod page;
pub mod partition;
pub mod plan;
pub mod planner;
pub mod rate_limiter;
pub mod recovery;
pub mod report;
pub mod reporter;
pub mod retry;
pub mod sink;
pub mod source;
pub mod supervisor;
pub mod writer;

mod crash;
#[cfg(test)]
mod fakes;
#[cfg(test)]
mod proof;
