//! Reads a store whole, and believes it only when all its values add up.
//!
//! sled may come up without some values, or with an older one of a value; the sums of `totals` and `pass/` tell. All values that
//! are older together, as they once were, are no damage: the spool knows the rest.

use harvester_actors::{
    checkpoint::{Checkpoint, PassTotals, RunHeader},
    page::{FrameRange, PageRef},
    partition::{PartitionId, PassId, PlanPiece, Position},
    plan::PlanChunk,
};
use serde::de::DeserializeOwned;
use sled::{Db, IVec};

use super::{
    format::{
        BLOCK_WORDS, CHUNK, COMPLETED, Chunk, DecodeError, FINISHED, HEADER, OPEN, PAGES, PASS, PLAN, PassSums, TOTALS,
        Totals, decode, number_of, pages_key, unpack,
    },
    run::add,
};

/// What a store holds of an unfinished run.
pub(super) struct Loaded {
    /// The run.
    pub(super) checkpoint: Checkpoint,
    /// What its values add up to.
    pub(super) totals: Totals,
    /// By pass, how many values hold its pages.
    pub(super) page_values: Vec<u32>,
}

/// Reads and checks everything; `None` where no run is unfinished. Besides what it returns, it holds one value at a time.
pub(super) fn read_all(db: &Db) -> Result<Option<Loaded>, DecodeError> {
    let Some(header) = get::<RunHeader>(db, HEADER)? else {
        if get::<String>(db, COMPLETED)?.is_none() && db.iter().next().is_some() {
            return Err(wrong("there are values of a run, but not its header"));
        }
        return Ok(None);
    };
    let totals: Totals = get(db, TOTALS)?.ok_or_else(|| wrong("its totals are missing"))?;
    let mut checkpoint = Checkpoint::new(header, totals.spool_len);
    read_plan(db, &totals, &mut checkpoint)?;
    read_partitions(db, &totals, &mut checkpoint)?;
    let page_values = read_passes(db, &totals, &mut checkpoint)?;
    read_pages(db, &page_values, &checkpoint)?;
    Ok(Some(Loaded { checkpoint, totals, page_values }))
}

/// Reads streams and passes, and where the partitions are.
fn read_plan(db: &Db, totals: &Totals, checkpoint: &mut Checkpoint) -> Result<(), DecodeError> {
    let mut parts = 0;
    for entry in scan::<PlanPiece>(db, PLAN) {
        let (n, part) = entry?;
        if n != parts || !part.partitions.is_empty() {
            return Err(wrong("a part of the plan is missing"));
        }
        parts += 1;
        let extended = checkpoint.plan.extend(&part, FrameRange::default());
        extended.map_err(|failure| DecodeError::Damaged(failure.message))?;
    }
    let mut partitions = 0;
    for entry in scan::<Chunk>(db, CHUNK) {
        let (first, Chunk(count, from, to)) = entry?;
        if first != partitions || count == 0 || from >= to || to > totals.spool_len {
            return Err(wrong("partitions of the plan are missing"));
        }
        partitions = first.checked_add(count).ok_or_else(|| wrong("the plan has too many partitions"))?;
        checkpoint.plan.chunks.push(PlanChunk { first: PartitionId(first), count, frame: FrameRange { from, to } });
    }
    if (parts, checkpoint.plan.chunks.len(), partitions)
        != (totals.plan_parts, totals.chunks as usize, totals.partitions)
    {
        return Err(wrong("the end of the plan is missing"));
    }
    Ok(())
}

/// Reads how far the partitions have come.
fn read_partitions(db: &Db, totals: &Totals, checkpoint: &mut Checkpoint) -> Result<(), DecodeError> {
    for entry in scan::<Vec<u64>>(db, FINISHED) {
        let (block, words) = entry?;
        let from = block as usize * BLOCK_WORDS;
        // A word beyond the plan would only make the set larger than it may be.
        if words.len() != BLOCK_WORDS || from > totals.partitions as usize / 64 {
            return Err(wrong("partitions have ended that the plan does not have"));
        }
        checkpoint.positions.finished.set_words(from, &words);
    }
    let mut open_pages = 0;
    for entry in scan::<Position>(db, OPEN) {
        let (partition, position) = entry?;
        let id = PartitionId(partition);
        if partition >= totals.partitions || position.is_finished() || checkpoint.positions.finished.contains(id) {
            return Err(wrong("a partition is said to be open that cannot be"));
        }
        open_pages += u64::from(position.seq);
        checkpoint.positions.open.insert(id, position);
    }
    if (checkpoint.positions.finished.len(), checkpoint.positions.open.len(), open_pages)
        != (totals.finished, totals.open as usize, totals.open_pages)
    {
        return Err(wrong("the states of its partitions do not add up to its totals"));
    }
    Ok(())
}

/// Reads what the pages of each pass must add up to; by pass, how many values hold them.
fn read_passes(db: &Db, totals: &Totals, checkpoint: &mut Checkpoint) -> Result<Vec<u32>, DecodeError> {
    let mut page_values = Vec::new();
    let mut sum = PassSums::default();
    for entry in scan::<PassSums>(db, PASS) {
        let (pass, sums) = entry?;
        let place = pass as usize;
        if place >= checkpoint.plan.passes.len() {
            return Err(wrong("there are pages of a pass that the plan does not have"));
        }
        checkpoint.totals.resize(place + 1, Default::default());
        checkpoint.totals[place] = sums.totals;
        page_values.resize(place + 1, 0);
        page_values[place] = sums.values;
        sum.values += sums.values;
        add(&mut sum.totals, &sums.totals);
    }
    if sum == totals.pages { Ok(page_values) } else { Err(wrong("its passes do not add up to its totals")) }
}

/// Goes through the pages of each pass.
fn read_pages(db: &Db, page_values: &[u32], checkpoint: &Checkpoint) -> Result<(), DecodeError> {
    for (pass, values) in (0..).map(PassId).zip(page_values) {
        let mut sum = PassTotals::default();
        let mut read = 0;
        let mut end = 0;
        for entry in db.scan_prefix([PAGES, &pass.0.to_be_bytes()].concat()) {
            let (key, value) = entry.map_err(from_sled)?;
            if key != pages_key(pass, read) {
                return Err(wrong("pages are missing"));
            }
            read += 1;
            for page in decode_pages(&key, &value)? {
                let is_known = checkpoint.positions.finished.contains(page.partition)
                    || checkpoint.positions.open.get(&page.partition).is_some_and(|position| page.seq < position.seq);
                let FrameRange { from, to } = page.frame;
                if !is_known || from < end || from >= to || to > checkpoint.spool_len {
                    return Err(wrong("a page does not fit what is known of its partition"));
                }
                end = to;
                add(&mut sum, &PassTotals { pages: 1, counts: page.counts });
            }
        }
        if read != *values || sum != checkpoint.totals_of(pass) {
            return Err(wrong("the pages of a pass do not add up to its totals"));
        }
    }
    Ok(())
}

/// The pages of one value.
pub(super) fn decode_pages(key: &[u8], value: &[u8]) -> Result<Vec<PageRef>, DecodeError> {
    unpack(&decode::<Vec<i64>>(key, value)?).ok_or_else(|| wrong("its pages cannot be read"))
}

/// The value under a key.
pub(super) fn get<T: DeserializeOwned>(db: &Db, key: &[u8]) -> Result<Option<T>, DecodeError> {
    db.get(key).map_err(from_sled)?.map(|value| decode(key, &value)).transpose()
}

/// The values whose keys are a prefix and a number, by number.
fn scan<'a, T: DeserializeOwned + 'a>(
    db: &Db,
    prefix: &'a [u8],
) -> impl Iterator<Item = Result<(u32, T), DecodeError>> + use<'a, T> {
    let read = move |(key, value): (IVec, IVec)| {
        let number = number_of(prefix, &key).ok_or_else(|| wrong("there is a key that no program writes"))?;
        Ok((number, decode(&key, &value)?))
    };
    db.scan_prefix(prefix).map(move |entry| entry.map_err(from_sled).and_then(read))
}

/// Values that do not add up.
fn wrong(what: &str) -> DecodeError {
    DecodeError::Damaged(what.to_owned())
}

/// sled cannot read what it wrote.
pub(super) fn from_sled(error: sled::Error) -> DecodeError {
    DecodeError::Damaged(error.to_string())
}
