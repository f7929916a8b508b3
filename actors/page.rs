//! What travels: one page, complete and validated, on its way from a fetcher to the spool.

use std::{fmt, fs::File};

use serde::{Deserialize, Serialize};

use crate::partition::{Cursor, NewPartition, Partition, PartitionId, PassId, Position};

/// How many rows of a page went which way: `fetched = kept + filtered + rejected`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PageCounts {
    /// Rows the server sent.
    pub fetched: u64,
    /// Rows that go to the spool.
    pub kept: u64,
    /// Rows that were not asked for and are dropped on purpose (deleted ones, rows after a range's end).
    pub filtered: u64,
    /// Rows that cannot be taken; each has a [`Reject`].
    pub rejected: u64,
    /// Of these, rows that do not say which they are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub nameless: u64,
    /// Bytes of the kept rows as NDJSON, line ends included.
    pub bytes: u64,
    /// By how many rows what the server says of its pages contradicts what it sends: 0 where it says nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub miscounted: u64,
}

/// Whether nothing need be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl PageCounts {
    /// Adds another page's counts.
    pub fn add(&mut self, other: &PageCounts) {
        self.fetched += other.fetched;
        self.kept += other.kept;
        self.filtered += other.filtered;
        self.rejected += other.rejected;
        self.nameless += other.nameless;
        self.bytes += other.bytes;
        self.miscounted += other.miscounted;
    }
}

/// One thing that could not be taken; a line of `rejects.ndjson`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reject {
    /// Key of the partition.
    pub partition: String,
    /// Class of the failure: `too_large`, `garbled`, `rejected`, …
    pub class: String,
    /// What the server said, or what is wrong with the row, without its content.
    pub message: String,
    /// The row's id where one could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The kept rows of a page as records: row length and key length (each `u32`, little-endian), key, row.
///
/// A row is one line of JSON without its line end; the key is what its stream is ordered by.
pub enum PageBody {
    /// Small enough to stay in memory.
    Memory(Vec<u8>),
    /// Larger: an unlinked file that is read from its beginning.
    Spilled {
        /// Where the records are.
        file: File,
        /// How many bytes of it count.
        len: u64,
    },
}

impl PageBody {
    /// Bytes of all records.
    pub fn len(&self) -> u64 {
        match self {
            PageBody::Memory(records) => records.len() as u64,
            PageBody::Spilled { len, .. } => *len,
        }
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Appends one record to `records`.
///
/// # Panics
/// Never for rows within the client's limit (16 MiB); lengths beyond `u32` cannot be written.
pub fn push_record(records: &mut Vec<u8>, key: &[u8], row: &[u8]) {
    let row_len = u32::try_from(row.len()).expect("rows are bounded far below 4 GiB");
    let key_len = u32::try_from(key.len()).expect("keys are shorter than rows");
    records.reserve(RECORD_HEADER_BYTES + key.len() + row.len());
    records.extend_from_slice(&row_len.to_le_bytes());
    records.extend_from_slice(&key_len.to_le_bytes());
    records.extend_from_slice(key);
    records.extend_from_slice(row);
}

/// Bytes in front of key and row.
pub const RECORD_HEADER_BYTES: usize = 8;

/// Reads the two lengths in front of a record: `(row_len, key_len)`.
pub fn record_lengths(header: [u8; RECORD_HEADER_BYTES]) -> (usize, usize) {
    let [r0, r1, r2, r3, k0, k1, k2, k3] = header;
    (u32::from_le_bytes([r0, r1, r2, r3]) as usize, u32::from_le_bytes([k0, k1, k2, k3]) as usize)
}

/// One complete response of the source, counted and validated; or, without rows, the split of a partition into smaller ones.
pub struct Page {
    /// Whose page it is.
    pub partition: PartitionId,
    /// The pass of that partition.
    pub pass: PassId,
    /// Its number within the partition, counted from 0.
    pub seq: u32,
    /// Where the partition resumes after it.
    pub next: Cursor,
    /// How often the partition's next pages are halved.
    pub halvings: u32,
    /// Its numbers.
    pub counts: PageCounts,
    /// What could not be taken.
    pub rejects: Vec<Reject>,
    /// Partitions that follow from it: parts of a partition that it splits, or what its rows refer to.
    pub children: Vec<NewPartition>,
    /// The kept rows.
    pub body: PageBody,
}

impl Page {
    /// The answer to a fetch that is no page: `partition` ends, and `children` take its place.
    pub fn split(partition: &Partition, position: &Position, children: Vec<NewPartition>) -> Self {
        Page {
            partition: partition.id,
            pass: partition.pass,
            seq: position.seq,
            next: Cursor::End,
            halvings: 0,
            counts: PageCounts::default(),
            rejects: Vec::new(),
            children,
            body: PageBody::Memory(Vec::new()),
        }
    }
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Counts and places only: a row never reaches a log.
        f.debug_struct("Page")
            .field("partition", &self.partition)
            .field("seq", &self.seq)
            .field("counts", &self.counts)
            .field("children", &self.children.len())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Everything about an appended page but its rows: what a frame of the spool begins with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Span {
    /// Whose page it was.
    pub partition: PartitionId,
    /// The pass of that partition.
    pub pass: PassId,
    /// Its number within the partition.
    pub seq: u32,
    /// Where the partition resumes.
    pub next: Cursor,
    /// How often the partition's next pages are halved.
    pub halvings: u32,
    /// Its numbers.
    pub counts: PageCounts,
    /// What could not be taken.
    pub rejects: Vec<Reject>,
    /// The partitions that it brought.
    pub children: Vec<Partition>,
    /// Where its frame lies in the spool.
    pub frame: FrameRange,
}

impl Span {
    /// How far its partition has come with it.
    pub fn position(&self) -> Position {
        Position { seq: self.seq + 1, next: self.next.clone(), halvings: self.halvings }
    }

    /// What a checkpoint keeps of it.
    pub fn page_ref(&self) -> PageRef {
        let Span { partition, seq, counts, frame, .. } = self;
        PageRef { partition: *partition, seq: *seq, counts: *counts, frame: *frame }
    }
}

/// Where a committed page is, and its numbers: what a checkpoint keeps of it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PageRef {
    /// Whose page.
    pub partition: PartitionId,
    /// Its number within the partition.
    pub seq: u32,
    /// Its numbers.
    pub counts: PageCounts,
    /// Where its frame lies in the spool.
    pub frame: FrameRange,
}

/// A piece of the spool, `from..to` in bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FrameRange {
    /// First byte.
    pub from: u64,
    /// End offset, exclusive.
    pub to: u64,
}
