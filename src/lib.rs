//! `dhis2-harvester`: takes data out of a DHIS2 server. Nothing lost, nothing twice, never above the limit.
//!
//! The rooms, in the order a job goes through them:
//!
//! | room | what it does |
//! |---|---|
//! | [`cli`] | the command line: one file per command |
//! | [`job`] | a job file as written, and as meant |
//! | [`service`] | lock, signals, service manager |
//! | `assemble`, `ask`, `checkpoint_health` | a job becomes a harvest, or a question |
//! | `extract` | areas of the API become partitions and pages |
//! | [`sinks`] | pages become a spool, and files |
//! | [`checkpoints`] | what survives a death |
//! | [`observe`] | what people and machines see |
//!
//! When, in what order and how many is decided in the crate `harvester-actors`; the wire is the crate `dhis2`.

pub mod checkpoints;
pub mod cli;
pub mod exit_code;
pub mod job;
pub mod observe;
pub mod service;
pub mod sinks;

mod ask;
mod assemble;
mod checkpoint_health;
mod extract;
mod job_record;

pub use cli::main;
