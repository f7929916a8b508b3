//! The rooms where each area of the API becomes partitions and pages. No file here knows of sinks or checkpoints.

mod classify;
mod deleted_objects;
mod denials;
mod gate;
mod keyset;
mod kind;
mod metadata;
mod metadata_follow;
mod metadata_pages;
mod page_builder;
mod reconcile;
#[cfg(test)]
mod recorded;
mod server_clock;
mod source;

pub(crate) use classify::{Contact, classify};
pub(crate) use gate::{LimiterGate, SourceGate};
pub(crate) use keyset::{Walk, WalkedPage};
pub(crate) use kind::Extract;
pub(crate) use source::{Dhis2Source, OutageProbe, Watermarks};
