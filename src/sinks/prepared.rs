//! Remembers which streams of a run are prepared, so that a resume does not prepare them again.
//!
//! ```text
//! <state>/<job>/spool/20260101T000000Z.organisationUnits.ndjson.done   what was prepared of which pages; 0600
//! ```
//!
//! The spool only grows, so the same passes with the same totals are the same rows; a file with the same length and time of
//! change is the same file. What is not there, not readable or does not fit is prepared again: the record saves time and decides
//! nothing.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use harvester_actors::{
    checkpoint::PassTotals,
    partition::PassId,
    sink::{Prepare, PreparedStream},
};
use serde::{Deserialize, Serialize};

use super::{disk, encode::FileFormat, finish::PART_SUFFIX};

/// What the name of a record ends with.
pub(super) const SUFFIX: &str = ".done";

/// The record of one stream.
pub(super) struct PreparedRecord {
    /// Where it is.
    path: PathBuf,
    /// The file that it is about.
    part: PathBuf,
    /// What that file is to be made of.
    passes: Vec<PassId>,
    /// See `passes`.
    totals: PassTotals,
}

/// As it is written down.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Written {
    passes: Vec<PassId>,
    totals: PassTotals,
    /// When the file was last written to: seconds since 1970, and nanoseconds.
    modified: (i64, i64),
    file: String,
    rows: u64,
    bytes: u64,
    sha256: String,
    duplicates: u64,
    newest: Option<String>,
}

impl PreparedRecord {
    /// The record of what is to be prepared, in `dir`; the file itself is in `out_dir`.
    pub(super) fn of(dir: &Path, out_dir: &Path, format: FileFormat, work: &Prepare) -> Self {
        let file = format.file_name(&work.stream.name);
        PreparedRecord {
            path: dir.join(format!("{}.{file}{SUFFIX}", work.run_id)),
            part: out_dir.join(format!("{file}{PART_SUFFIX}")),
            passes: work.passes.clone(),
            totals: work.totals,
        }
    }

    /// What has been prepared already; `None` where it must be prepared.
    ///
    /// A record that does not fit is removed: the file is about to be written again, and might come to look as it says before
    /// it is durable.
    pub(super) fn load(&self) -> Option<PreparedStream> {
        let found = self.read();
        if found.is_none()
            && let Err(error) = disk::remove_if_exists(&self.path)
        {
            tracing::debug!(%error, file = %self.path.display(), "cannot remove what no longer fits");
        }
        found
    }

    /// What the record says, where it fits.
    fn read(&self) -> Option<PreparedStream> {
        let written: Written = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        let Written { passes, totals, modified, file, rows, bytes, sha256, duplicates, newest } = written;
        let part = self.metadata().ok()?;
        let is_there = part.is_file() && (part.len(), time_of(&part)) == (bytes, modified);
        let is_same = passes == self.passes && totals == self.totals;
        (is_there && is_same).then_some(PreparedStream { file, rows, bytes, sha256, duplicates, newest })
    }

    /// Remembers what has been prepared; where that fails, it is prepared again after a death.
    pub(super) fn save(&self, prepared: &PreparedStream) {
        let PreparedStream { file, rows, bytes, sha256, duplicates, newest } = prepared.clone();
        let (passes, totals) = (self.passes.clone(), self.totals);
        let write = || -> io::Result<()> {
            let modified = time_of(&self.metadata()?);
            let written = Written { passes, totals, modified, file, rows, bytes, sha256, duplicates, newest };
            serde_json::to_writer(disk::recreate(&self.path)?, &written)?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::debug!(%error, file = %self.path.display(), "cannot remember that a stream is prepared");
        }
    }

    /// What stands under the name of the file.
    fn metadata(&self) -> io::Result<fs::Metadata> {
        fs::symlink_metadata(&self.part)
    }
}

/// When a file was last written to.
fn time_of(file: &fs::Metadata) -> (i64, i64) {
    (file.mtime(), file.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use harvester_actors::{page::PageCounts, sink::Cancel};
    use std::sync::Arc;

    use super::{
        super::conformance::{Pages, stream},
        *,
    };

    /// Five bytes of a stream that were prepared, in directories of their own.
    struct Prepared {
        dir: tempfile::TempDir,
        work: Prepare,
        said: PreparedStream,
    }

    impl Prepared {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("spool")).unwrap();
            fs::create_dir(dir.path().join("out")).unwrap();
            let counts = PageCounts { fetched: 2, kept: 2, ..PageCounts::default() };
            let work = Prepare {
                run_id: "20260101T000000Z".to_owned(),
                stream: stream("s"),
                passes: vec![PassId(0), PassId(2)],
                totals: PassTotals { pages: 1, counts },
                pages: Arc::new(Pages::default()),
                cancel: Cancel::default(),
            };
            let said = PreparedStream {
                file: "s.ndjson".to_owned(),
                rows: 2,
                bytes: 5,
                sha256: "0".repeat(64),
                duplicates: 1,
                newest: Some("2024-01-02T00:00:00.000".to_owned()),
            };
            let prepared = Prepared { dir, work, said };
            fs::write(prepared.part(), b"{}\n\n\n").unwrap();
            prepared.record().save(&prepared.said);
            prepared
        }

        fn record(&self) -> PreparedRecord {
            PreparedRecord::of(
                &self.dir.path().join("spool"),
                &self.dir.path().join("out"),
                FileFormat::Ndjson,
                &self.work,
            )
        }

        fn part(&self) -> PathBuf {
            self.dir.path().join("out/s.ndjson.part")
        }

        fn written(&self) -> PathBuf {
            self.dir.path().join("spool/20260101T000000Z.s.ndjson.done")
        }
    }

    #[test]
    fn a_stream_is_prepared_already_only_while_its_pages_and_its_file_are_the_same() {
        type Change = fn(&mut Prepared);
        let cases: &[(&str, Change, bool)] = &[
            ("nothing", |_| {}, true),
            ("an expectation", |it| it.work.stream.expected_rows = Some(9), true),
            ("another run", |it| it.work.run_id = "20260102T000000Z".to_owned(), false),
            ("another stream", |it| it.work.stream = stream("t"), false),
            ("a pass more", |it| it.work.passes.push(PassId(3)), false),
            ("a pass less", |it| it.work.passes.truncate(1), false),
            ("an empty page came", |it| it.work.totals.pages += 1, false),
            ("rows came", |it| it.work.totals.counts.kept += 1, false),
            ("no file", |it| fs::remove_file(it.part()).unwrap(), false),
            ("a shorter file", |it| fs::write(it.part(), b"{}\n").unwrap(), false),
            ("a longer file", |it| fs::write(it.part(), b"{}\n{}\n").unwrap(), false),
            (
                "a file of the same length that something else wrote later",
                |it| {
                    fs::write(it.part(), b"[]\n\n\n").unwrap();
                    let later = std::time::SystemTime::now() + std::time::Duration::from_millis(20);
                    fs::File::options().write(true).open(it.part()).unwrap().set_modified(later).unwrap();
                },
                false,
            ),
            (
                "a link to it",
                |it| {
                    fs::rename(it.part(), it.dir.path().join("out/x")).unwrap();
                    std::os::unix::fs::symlink("x", it.part()).unwrap();
                },
                false,
            ),
            ("no record", |it| fs::remove_file(it.written()).unwrap(), false),
            ("half a record", |it| fs::write(it.written(), b"{\"passes\":[0,").unwrap(), false),
        ];
        for (what, change, expected) in cases {
            let mut prepared = Prepared::new();
            change(&mut prepared);
            let found = prepared.record().load();
            assert_eq!(found, expected.then(|| prepared.said.clone()), "{what}");
            // What did not fit once never fits again: the file that it spoke of is about to be written over.
            let remains = prepared.record().path.exists();
            assert_eq!(remains, *expected, "{what}");
        }
    }
}
