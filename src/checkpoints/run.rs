//! Which values a commit writes: those that its entries change, and no others, whatever the size of the run.
//!
//! Whether an entry follows what is known is for [`Checkpoint::apply`] to say. It is applied to a copy of the checkpoint that
//! is kept between commits, without those parts that grow with the plan and that no rule looks at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use harvester_actors::{
    checkpoint::{Checkpoint, PassTotals, SpoolEntry},
    failure::Failure,
    page::PageRef,
    partition::{PartitionId, PassId, PlanPiece},
};
use serde::Serialize;

use super::format::{
    BLOCK_PARTITIONS, BLOCK_WORDS, CHUNK, Chunk, FINISHED, HEADER, OPEN, PAGES_MAX, PASS, PLAN, PassSums, TOTALS,
    Totals, encode, key, pack, pages_key,
};

/// An unfinished run, as the values on the disk say it.
#[derive(Clone, Debug)]
pub(crate) struct LiveRun {
    /// How far it has come. Of the plan's chunks it has the last one only.
    pub(crate) checkpoint: Checkpoint,
    /// What the values add up to.
    pub(crate) totals: Totals,
    /// By pass, how many values hold its pages; passes at the end that have none may be absent.
    pub(crate) page_values: Vec<u32>,
}

/// What changes on the disk, all of it at once.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    /// Keys and their new bytes.
    pub(crate) put: Vec<(Vec<u8>, Vec<u8>)>,
    /// Keys that have no value any more.
    pub(crate) removed: Vec<Vec<u8>>,
}

impl Writes {
    /// Adds one value.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: &impl Serialize) -> Result<(), Failure> {
        let value = encode(&key, value)?;
        self.put.push((key, value));
        Ok(())
    }
}

impl LiveRun {
    /// A run of which only its header is known, and what is written of it.
    pub(crate) fn begin(checkpoint: Checkpoint) -> Result<(Self, Writes), Failure> {
        let totals = Totals { spool_len: checkpoint.spool_len, ..Totals::default() };
        let mut writes = Writes::default();
        writes.put(HEADER.to_vec(), &checkpoint.header)?;
        writes.put(TOTALS.to_vec(), &totals)?;
        Ok((LiveRun { checkpoint, totals, page_values: Vec::new() }, writes))
    }

    /// A run that has been read.
    pub(crate) fn resumed(mut checkpoint: Checkpoint, totals: Totals, page_values: Vec<u32>) -> Self {
        keep_last_chunk(&mut checkpoint);
        LiveRun { checkpoint, totals, page_values }
    }

    /// How many values hold pages of a pass.
    pub(crate) fn page_values_of(&self, pass: PassId) -> u32 {
        self.page_values.get(pass.0 as usize).copied().unwrap_or(0)
    }

    /// Applies entries, and says what is to be written.
    ///
    /// # Errors
    /// `Damaged` when one does not follow; this value is not to be used any more then.
    pub(crate) fn apply(&mut self, entries: &[Arc<SpoolEntry>]) -> Result<Writes, Failure> {
        let mut part = PlanPiece::default();
        let mut pages: BTreeMap<PassId, Vec<PageRef>> = BTreeMap::new();
        // By partition, how many pages of it were known while it was open.
        let mut touched: BTreeMap<PartitionId, Option<u32>> = BTreeMap::new();
        let known_chunks = self.checkpoint.plan.chunks.len();
        for entry in entries {
            if let SpoolEntry::Page(span) = &**entry {
                let open = || self.checkpoint.positions.open.get(&span.partition).map(|position| position.seq);
                touched.entry(span.partition).or_insert_with(open);
            }
            self.checkpoint.apply(entry)?;
            match &**entry {
                SpoolEntry::Planned { piece, .. } => {
                    part.streams.extend_from_slice(&piece.streams);
                    part.passes.extend_from_slice(&piece.passes);
                    part.left_out.extend_from_slice(&piece.left_out);
                }
                SpoolEntry::Page(span) => pages.entry(span.pass).or_default().push(span.page_ref()),
                // Has been refused.
                SpoolEntry::Begun { .. } => {}
            }
        }

        let mut writes = Writes::default();
        if !part.is_empty() {
            writes.put(key(PLAN, self.totals.plan_parts), &part)?;
            self.totals.plan_parts += 1;
        }
        for chunk in &self.checkpoint.plan.chunks[known_chunks..] {
            writes.put(key(CHUNK, chunk.first.0), &Chunk(chunk.count, chunk.frame.from, chunk.frame.to))?;
            self.totals.chunks += 1;
        }
        keep_last_chunk(&mut self.checkpoint);
        for (pass, pages) in pages {
            self.write_pages(pass, &pages, &mut writes)?;
        }
        self.write_partitions(&touched, &mut writes)?;
        self.totals.spool_len = self.checkpoint.spool_len;
        self.totals.partitions = self.checkpoint.plan.partitions();
        writes.put(TOTALS.to_vec(), &self.totals)?;
        Ok(writes)
    }

    /// Writes further pages of a pass.
    fn write_pages(&mut self, pass: PassId, pages: &[PageRef], writes: &mut Writes) -> Result<(), Failure> {
        let place = pass.0 as usize;
        if self.page_values.len() <= place {
            self.page_values.resize(place + 1, 0);
        }
        for pages in pages.chunks(PAGES_MAX) {
            writes.put(pages_key(pass, self.page_values[place]), &pack(pages))?;
            self.page_values[place] += 1;
            self.totals.pages.values += 1;
            for page in pages {
                add(&mut self.totals.pages.totals, &PassTotals { pages: 1, counts: page.counts });
            }
        }
        let sums = PassSums { values: self.page_values[place], totals: self.checkpoint.totals_of(pass) };
        writes.put(key(PASS, pass.0), &sums)
    }

    /// Writes how far partitions have come.
    fn write_partitions(
        &mut self,
        touched: &BTreeMap<PartitionId, Option<u32>>,
        writes: &mut Writes,
    ) -> Result<(), Failure> {
        let mut blocks = BTreeSet::new();
        for (partition, was_open) in touched {
            self.totals.open_pages -= u64::from(was_open.unwrap_or(0));
            if let Some(position) = self.checkpoint.positions.open.get(partition) {
                self.totals.open_pages += u64::from(position.seq);
                writes.put(key(OPEN, partition.0), position)?;
            } else {
                blocks.insert(partition.0 / BLOCK_PARTITIONS);
                writes.removed.extend(was_open.map(|_| key(OPEN, partition.0)));
            }
        }
        for block in blocks {
            let words = self.checkpoint.positions.finished.words(block as usize * BLOCK_WORDS, BLOCK_WORDS);
            writes.put(key(FINISHED, block), &words)?;
        }
        self.totals.finished = self.checkpoint.positions.finished.len();
        // Partitions are numbered with 32 bits.
        self.totals.open = u32::try_from(self.checkpoint.positions.open.len()).unwrap_or(u32::MAX);
        Ok(())
    }
}

/// Adds the totals of a pass.
pub(crate) fn add(sum: &mut PassTotals, more: &PassTotals) {
    sum.pages += more.pages;
    sum.counts.add(&more.counts);
}

/// Forgets all chunks but the last one, which says where the next begins.
fn keep_last_chunk(checkpoint: &mut Checkpoint) {
    let chunks = &mut checkpoint.plan.chunks;
    if chunks.len() > 1 {
        chunks.drain(..chunks.len() - 1);
        chunks.shrink_to_fit();
    }
}
