//! Where a run's progress is kept: an index of the spool that is cheap to open.
//!
//! `format` says how a value looks, `run` which values a commit writes, `load` what they must add up to, and `sled` keeps them
//! on disk; every store passes `conformance`.
//!
//! Places where a test can end the process (`FAILPOINTS=name=return`, feature `failpoints`), in the order of a run:
//!
//! | name | what has happened |
//! |---|---|
//! | `store.begin.before`, `.moved` | nothing; the store of an earlier run is out of the way |
//! | `store.begin.synced`, `.after` | the header is durable; the earlier store is removed |
//! | `store.commit.before`, `.apply` | nothing of the batch; sled has it in memory |
//! | `store.commit.flush` | sled has written it |
//! | `store.commit.fsync`, `.after` | it is durable |
//! | `store.end.before`, `.after` | around the commit that records a run as complete |

mod format;
mod load;
mod run;
mod sled;

#[cfg(test)]
mod conformance;

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use format::fuzz_value;
pub use sled::SledStore;
