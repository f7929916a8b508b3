//! Recovery brings store and spool together at every start, by the one path that a live run also takes.
//!
//! The spool decides, the store is its index. What the spool has and the store does not know is read and committed; a
//! store that is empty, damaged or late is rebuilt; a spool that lacks what the store knows to be durable is damaged.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    checkpoint::{Checkpoint, SpoolEntry},
    checkpoint_store::CheckpointStore,
    failure::{Failure, FailureClass},
    sink::Spool,
};

/// Entries between two commits of a rebuild: each commit costs a sync, each entry some memory.
const ENTRIES_PER_COMMIT: usize = 1_000;

/// Partitions between two commits of a rebuild: an entry that holds a piece of the plan is larger than a page's.
const PARTITIONS_PER_COMMIT: usize = 10_000;

/// What a start found.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The unfinished run, if there is one.
    pub checkpoint: Option<Checkpoint>,
    /// Bytes of a torn tail that was cut off.
    pub cut_bytes: u64,
    /// Why the store was rebuilt, if it was.
    pub rebuilt: Option<String>,
}

/// Reads store and spool, and brings the store up to the spool.
///
/// # Errors
/// `Damaged` when the spool lacks or garbles what was durable, or when either was written by a newer program;
/// `Local` when this machine fails.
pub async fn recover(spool: &Arc<dyn Spool>, store: &Arc<dyn CheckpointStore>) -> Result<Recovery, Failure> {
    let (stored, mut rebuilt) = match Arc::clone(store).load().await {
        Ok(stored) => (stored, None),
        // A store that was written by a newer program says what to do about it; it is not ours to rebuild.
        Err(failure) if failure.class == FailureClass::Damaged && failure.next.is_none() => {
            (None, Some(failure.message))
        }
        Err(failure) => return Err(failure),
    };
    let completed = match &rebuilt {
        None => Arc::clone(store).last_completed_run().await?,
        Some(_) => None,
    };
    let known = stored.as_ref().map_or(0, |checkpoint| checkpoint.spool_len);
    let was_empty = stored.is_none();

    let (recovered, checkpoint) = read_spool(spool, store, known, stored, completed).await?;
    let Some(recovered) = recovered else {
        return match checkpoint {
            Some(_) => Err(Failure::new(FailureClass::Damaged, "the checkpoint knows of a run whose spool is gone")),
            None => Ok(Recovery { checkpoint: None, cut_bytes: 0, rebuilt: None }),
        };
    };
    if checkpoint.is_none() {
        // The process died between recording the end of a run and removing its spool.
        Arc::clone(spool).discard().await?;
        return Ok(Recovery::default());
    }
    if was_empty && rebuilt.is_none() {
        rebuilt = Some("it was empty, the spool is not".to_owned());
    }
    Ok(Recovery { checkpoint, cut_bytes: recovered.cut_bytes, rebuilt })
}

/// Reads the spool of a run that has just been planned into the store, as a start does that finds the store empty.
///
/// # Errors
/// Those of [`recover`].
pub async fn rebuild(spool: &Arc<dyn Spool>, store: &Arc<dyn CheckpointStore>) -> Result<Checkpoint, Failure> {
    let (_, checkpoint) = read_spool(spool, store, 0, None, None).await?;
    checkpoint.ok_or_else(|| Failure::new(FailureClass::Bug, "a plan was committed, and there is no run"))
}

/// Reads the spool from byte `known` on, and applies its entries to `checkpoint` and the store.
async fn read_spool(
    spool: &Arc<dyn Spool>,
    store: &Arc<dyn CheckpointStore>,
    known: u64,
    checkpoint: Option<Checkpoint>,
    completed: Option<String>,
) -> Result<(Option<crate::sink::Recovered>, Option<Checkpoint>), Failure> {
    let (entries, read) = mpsc::channel(16);
    let visit = move |entry| {
        entries.blocking_send(entry).map_err(|_| Failure::new(FailureClass::Bug, "the recovery has stopped reading"))
    };
    let recovering = Arc::clone(spool).recover(known, Box::new(visit));
    let (recovered, indexed) = tokio::join!(recovering, index(read, checkpoint, completed, store));
    // Where both failed, the spool failed because nobody took its entries any more.
    let checkpoint = indexed?;
    Ok((recovered?, checkpoint))
}

/// Applies the spool's entries to `checkpoint` and commits them to the store, a bounded number at a time. Of a run that
/// is `completed` nothing is applied.
async fn index(
    mut entries: mpsc::Receiver<SpoolEntry>,
    mut checkpoint: Option<Checkpoint>,
    completed: Option<String>,
    store: &Arc<dyn CheckpointStore>,
) -> Result<Option<Checkpoint>, Failure> {
    let mut batch = Vec::new();
    let mut partitions = 0;
    let mut left_over = false;
    while let Some(entry) = entries.recv().await {
        match (&entry, &mut checkpoint) {
            (SpoolEntry::Begun { header, .. }, None) if Some(&header.run_id) == completed.as_ref() => left_over = true,
            _ if left_over => {}
            (SpoolEntry::Begun { header, frame }, None) => {
                Arc::clone(store).begin(header.clone(), frame.to).await?;
                checkpoint = Some(Checkpoint::new(header.clone(), frame.to));
            }
            (_, Some(checkpoint)) => {
                checkpoint.apply(&entry)?;
                partitions += match &entry {
                    SpoolEntry::Planned { piece, .. } => piece.partitions.len(),
                    SpoolEntry::Begun { .. } | SpoolEntry::Page(_) => 0,
                };
                batch.push(Arc::new(entry));
            }
            (SpoolEntry::Page(_) | SpoolEntry::Planned { .. }, None) => {
                return Err(Failure::new(FailureClass::Damaged, "the spool does not begin with its header"));
            }
        }
        if batch.len() >= ENTRIES_PER_COMMIT || partitions >= PARTITIONS_PER_COMMIT {
            Arc::clone(store).commit(std::mem::take(&mut batch)).await?;
            partitions = 0;
        }
    }
    if !batch.is_empty() {
        Arc::clone(store).commit(batch).await?;
    }
    Ok(checkpoint)
}
