//! Where rows go: a spool that takes pages as they arrive, and a target where all rows appear when all are there.
//!
//! `frame` → `spool` → `reader` → `order` (with `sorter` and `merge`) → `finish` → `publish` → `verify` is the way of a row.
//! `file_spool` is the [`Spool`](harvester_actors::sink::Spool), with `keys` to compare what it holds; `files` is the
//! [`Target`](harvester_actors::sink::Target), with `prepared` to do nothing twice. Every spool and every target passes
//! `conformance`.
//!
//! Places where a test can end the process (`FAILPOINTS=name=return`, feature `failpoints`), in the order of a run:
//!
//! | name | what has happened |
//! |---|---|
//! | `spool.begin.before` | nothing of the new run |
//! | `spool.begin.written`, `.synced` | header and plan are in `<run>.log.new`; they are durable |
//! | `spool.begin.cleared` | spools of earlier runs are gone, durably |
//! | `spool.begin.renamed`, `.after` | `<run>.log` has its name; durably |
//! | `spool.append.before` | nothing of the page |
//! | `spool.append.body`, `.trailer`, `.head` | its rows, then its trailer, then its header are written |
//! | `spool.append.after` | the known end is after it |
//! | `spool.sync.before`, `.after` | around the fdatasync |
//! | `spool.recover.read`, `.cut`, `.synced` | all frames are read; the torn tail is cut; durably |
//! | `finish.before`, `.written`, `.synced` | nothing; a stream's `.part` is written; durably |
//! | `publish.manifest_part`, `.begun` | the new manifest is durable under a scratch name; as `manifest.json.part` |
//! | `publish.rename` | one more file has its final name |
//! | `publish.rejects`, `.dir` | all have, `rejects.ndjson` too; durably |
//! | `publish.manifest`, `.after` | the manifest has its final name; durably |
//! | `spool.discard.before`, `.removed` | around the removal of the spool |

mod disk;
mod duplicates;
mod encode;
mod file_spool;
mod files;
mod finish;
mod frame;
mod keys;
mod merge;
mod names;
mod order;
mod prepared;
mod publish;
mod reader;
mod sorter;
mod spool;
mod verify;

#[cfg(test)]
mod conformance;

#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use frame::fuzz_header;

pub(crate) use disk::{create_dirs, probe, recreate, sync_dir};
pub use encode::FileFormat;
pub use file_spool::FileSpool;
pub use files::{FilesSettings, FilesTarget};
pub use verify::{FileMismatch, Problem, Verification, Whose, is_of_another_job, is_unpublished, verify};
