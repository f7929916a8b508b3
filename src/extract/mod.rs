//! The rooms where each area of the API becomes partitions and pages. No file here knows of sinks or checkpoints.

mod classify;
mod denials;
mod gate;
mod keyset;
mod metadata;
mod page_builder;
#[cfg(test)]
mod recorded;
mod server_clock;
mod source;

pub(crate) use classify::{Contact, classify};
pub(crate) use gate::{LimiterGate, SourceGate};
pub(crate) use keyset::{Walk, WalkedPage};
pub(crate) use metadata::MetadataExtract;
pub(crate) use source::{Dhis2Source, Extract, OutageProbe, Watermarks};
