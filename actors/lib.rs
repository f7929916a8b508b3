//! The engine: when, in what order, how many at a time, and what happens after a death. It does no I/O.
//!
//! ```text
//! job file ─▶ Job ─▶ Harvest ─▶ Planner ─NextPartition─▶ Fetcher ─WritePage─▶ Writer ─PageWritten─▶ Checkpointer ─▶ Reporter ─▶ report
//!                                  ▲                      │   ▲          (owns the spool)       (owns the store)
//!                                  │            NextPermit│   │Permit
//!         PartitionReturned: failed┘                      ▼   │
//!         or too heavy                                 RateLimiter (owns the budget of one origin)
//!
//!                  Supervisor: hires fetchers over one arbiter per core, hears of every death, hires again, ends the run
//! ```
//!
//! Data goes one way: partition → page → span → checkpoint → report. Only questions, their replies (which are the
//! back-pressure) and a partition handed back run upstream. The whole picture, with its bounds, is `design.md` §4.
//!
//! What holds, and where it is proved (`proof.rs` loops over every port call):
//! - a page is announced only once it has its place, and committed only once the spool is durable;
//! - a death at any point costs at most the pages that were in flight, and changes no byte of the result;
//! - the spool decides, the store is its index, and recovery is the path that every start takes;
//! - a run is complete only once each stream is proved so: by numbers that agree, or by a listing ([`reconcile`]);
//! - one page per fetcher is in memory, whatever the number of pages, rows, partitions and streams.
//!
//! What is deliberately absent: HTTP, files, sled, screens. They stand behind the three ports [`source`], [`sink`] and
//! [`checkpoint_store`], and behind [`events::Listener`].

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
