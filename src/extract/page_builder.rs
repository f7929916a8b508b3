//! A page under construction: rows become records, in memory first, in an unlinked file when there are many.

use std::{fs::File, io::Write};

use harvester_actors::{
    failure::Failure,
    page::{Page, PageBody, PageCounts, Reject, push_record},
    partition::{Cursor, Partition, Position},
};

/// Records kept in memory before a page goes to a file: a page of the default size fits, a whole table does not.
pub(crate) const SPILL_BYTES: usize = 2 * 1024 * 1024;

/// Collects the records of one page.
pub(crate) struct PageBuilder {
    /// Records that are not in the file.
    records: Vec<u8>,
    /// Where records are once there were too many, and how many bytes of them.
    file: Option<(File, u64)>,
    /// The numbers so far.
    pub(crate) counts: PageCounts,
    /// What could not be taken so far.
    pub(crate) rejects: Vec<Reject>,
}

impl PageBuilder {
    /// An empty page.
    pub(crate) fn new() -> Self {
        PageBuilder { records: Vec::new(), file: None, counts: PageCounts::default(), rejects: Vec::new() }
    }

    /// Takes a row: `line` is one line of JSON, its line end included or not.
    pub(crate) fn keep(&mut self, key: &str, line: &[u8]) {
        let row = line.strip_suffix(b"\n").unwrap_or(line);
        push_record(&mut self.records, key.as_bytes(), row);
        self.counts.fetched += 1;
        self.counts.kept += 1;
        self.counts.bytes += row.len() as u64 + 1;
    }

    /// Drops a row on purpose.
    pub(crate) fn filter(&mut self) {
        self.counts.fetched += 1;
        self.counts.filtered += 1;
    }

    /// Notes a row that cannot be taken.
    pub(crate) fn reject(&mut self, reject: Reject) {
        self.counts.fetched += 1;
        self.counts.rejected += 1;
        self.counts.nameless += u64::from(reject.id.is_none());
        self.rejects.push(reject);
    }

    /// Moves records to the file if there are too many for the memory. To be called between two chunks.
    ///
    /// # Errors
    /// `Local` when the temporary folder has no room.
    pub(crate) async fn spill(&mut self) -> Result<(), Failure> {
        if self.records.len() < SPILL_BYTES {
            return Ok(());
        }
        let (file, len, records) = append(self.file.take(), std::mem::take(&mut self.records)).await?;
        self.records = records;
        self.file = Some((file, len));
        Ok(())
    }

    /// The page, complete.
    ///
    /// # Errors
    /// As [`PageBuilder::spill`].
    pub(crate) async fn finish(
        mut self,
        partition: &Partition,
        position: &Position,
        next: Cursor,
    ) -> Result<Page, Failure> {
        let body = match self.file.take() {
            None => PageBody::Memory(self.records),
            Some(spilled) => {
                let (file, len, _) = append(Some(spilled), self.records).await?;
                PageBody::Spilled { file, len }
            }
        };
        let (counts, rejects) = (self.counts, self.rejects);
        Ok(Page { next, counts, rejects, body, ..Page::split(partition, position, Vec::new()) })
    }
}

/// Appends records to the page's file, or begins one; returns the emptied buffer for its memory.
async fn append(file: Option<(File, u64)>, mut records: Vec<u8>) -> Result<(File, u64, Vec<u8>), Failure> {
    let written = tokio::task::spawn_blocking(move || {
        let (mut file, len) = match file {
            Some(spilled) => spilled,
            None => (tempfile::tempfile()?, 0),
        };
        file.write_all(&records)?;
        let len = len + records.len() as u64;
        records.clear();
        Ok::<_, std::io::Error>((file, len, records))
    });
    let failed = |error: &dyn std::fmt::Display| {
        let folder = std::env::temp_dir();
        Failure::local(format!("cannot write a large page to `{}`: {error}", folder.display()))
            .with_next("free space there, or point TMPDIR to a larger disk, then run the same command to resume")
    };
    written.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}
