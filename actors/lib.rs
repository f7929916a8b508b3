//! The engine: when, in what order, how many. No I/O.
#![recursion_limit = "256"]

pub mod checkpoint;
pub mod checkpoint_store;
pub mod events;
pub mod failure;
pub mod page;
pub mod partition;
pub mod report;
pub mod sink;
pub mod source;
