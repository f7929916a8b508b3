//! The plan as it is made and as it is known: pieces that go to the spool, and an index that stays in memory.
//!
//! Partitions may be a million; in memory there is a bit for each, and for each piece of the plan where it lies in the spool.

use futures_core::future::LocalBoxFuture;

use crate::{
    failure::{Failure, FailureClass},
    page::FrameRange,
    partition::{LeftOut, NewPartition, Partition, PartitionId, Pass, PassId, PlanPiece, Stream, StreamId, Yield},
};

/// Partitions in one piece of the plan: enough to be cheap to write, few enough to be read for one of them.
pub const PIECE_PARTITIONS_MAX: usize = 256;

/// Takes the pieces of a plan while it is made.
pub trait PlanOutlet {
    /// Takes the next piece; it is complete when all have been taken.
    fn take(&mut self, piece: PlanPiece) -> LocalBoxFuture<'_, Result<(), Failure>>;
}

/// Keeps a plan in memory: for `harvester plan` and for tests.
impl PlanOutlet for Vec<PlanPiece> {
    fn take(&mut self, piece: PlanPiece) -> LocalBoxFuture<'_, Result<(), Failure>> {
        self.push(piece);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Makes a plan: gives streams, passes and partitions their places, and hands them on piece by piece.
pub struct PlanBuilder<'a> {
    /// Where pieces go.
    outlet: &'a mut dyn PlanOutlet,
    /// The piece in hand.
    piece: PlanPiece,
    /// Names of all streams so far.
    names: Vec<String>,
    /// Passes so far.
    passes: u32,
    /// Partitions so far.
    partitions: u32,
}

impl<'a> PlanBuilder<'a> {
    /// An empty plan.
    pub fn new(outlet: &'a mut dyn PlanOutlet) -> Self {
        PlanBuilder { outlet, piece: PlanPiece::default(), names: Vec::new(), passes: 0, partitions: 0 }
    }

    /// Adds a stream with its first pass, which gives its rows.
    ///
    /// # Errors
    /// `Rejected` when there is one of that name.
    pub fn add_stream(&mut self, stream: Stream, selection: serde_json::Value) -> Result<PassId, Failure> {
        if self.names.contains(&stream.name) {
            let message = format!("two extracts give a stream named `{}`", stream.name);
            return Err(Failure::new(FailureClass::Rejected, message)
                .with_next("name one of them with stream = \"…\" in the job file"));
        }
        let id = StreamId(self.names.len() as u32);
        self.names.push(stream.name.clone());
        self.piece.streams.push(stream);
        let pass = PassId(self.passes);
        self.passes += 1;
        self.piece.passes.push(Pass { stream: id, yields: Yield::Rows, selection });
        Ok(pass)
    }

    /// Adds a partition.
    ///
    /// # Errors
    /// Those of the outlet.
    pub async fn add_partition(&mut self, partition: NewPartition) -> Result<(), Failure> {
        self.piece.partitions.push(partition.at(PartitionId(self.partitions)));
        self.partitions += 1;
        if self.piece.partitions.len() >= PIECE_PARTITIONS_MAX {
            self.outlet.take(std::mem::take(&mut self.piece)).await?;
        }
        Ok(())
    }

    /// Notes what `["*"]` does not reach.
    pub fn leave_out(&mut self, left_out: LeftOut) {
        self.piece.left_out.push(left_out);
    }

    /// Hands on the last piece.
    ///
    /// # Errors
    /// Those of the outlet.
    pub async fn finish(self) -> Result<(), Failure> {
        self.outlet.take(self.piece).await
    }
}

/// Where some partitions of the plan are written down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PlanChunk {
    /// The first of them; the others follow.
    pub first: PartitionId,
    /// How many there are, at least one.
    pub count: u32,
    /// The entry of the spool that holds them.
    pub frame: FrameRange,
}

/// What is known of a plan without reading it: all but its partitions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PlanIndex {
    /// The streams, indexed by [`StreamId`].
    pub streams: Vec<Stream>,
    /// The passes, indexed by [`PassId`].
    pub passes: Vec<Pass>,
    /// What `["*"]` did not reach.
    pub left_out: Vec<LeftOut>,
    /// Where the partitions are, in order.
    pub chunks: Vec<PlanChunk>,
}

impl PlanIndex {
    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        self.chunks.last().map_or(0, |chunk| chunk.first.0 + chunk.count)
    }

    /// The pass with this id. Ids come from the plan itself, which has been checked.
    pub fn pass(&self, id: PassId) -> &Pass {
        &self.passes[id.0 as usize]
    }

    /// The stream with this id; likewise.
    pub fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[id.0 as usize]
    }

    /// The streams with their ids.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        (0..).map(StreamId).zip(&self.streams)
    }

    /// The passes of a stream, the oldest first.
    pub fn passes_of(&self, stream: StreamId) -> impl Iterator<Item = (PassId, &Pass)> {
        (0..).map(PassId).zip(&self.passes).filter(move |(_, pass)| pass.stream == stream)
    }

    /// Takes a piece that lies at `frame`.
    ///
    /// # Errors
    /// `Damaged` when it does not follow what is there.
    pub fn extend(&mut self, piece: &PlanPiece, frame: FrameRange) -> Result<(), Failure> {
        self.streams.extend_from_slice(&piece.streams);
        self.left_out.extend_from_slice(&piece.left_out);
        for pass in &piece.passes {
            if pass.stream.0 as usize >= self.streams.len() {
                return Err(damaged("a pass is of a stream that the plan does not have".to_owned()));
            }
            self.passes.push(pass.clone());
        }
        self.add_partitions(&piece.partitions, frame)
    }

    /// Takes partitions that lie at `frame`.
    ///
    /// # Errors
    /// `Damaged` when they do not follow those that are there.
    pub fn add_partitions(&mut self, partitions: &[Partition], frame: FrameRange) -> Result<(), Failure> {
        let Some(first) = partitions.first() else { return Ok(()) };
        for (id, partition) in (self.partitions()..).zip(partitions) {
            if partition.id.0 != id {
                return Err(damaged(format!("partition {} is at place {id}", partition.id)));
            }
            if partition.pass.0 as usize >= self.passes.len() {
                return Err(damaged(format!("partition `{}` is of a pass that the plan does not have", partition.key)));
            }
        }
        let count = partitions.len() as u32;
        self.chunks.push(PlanChunk { first: first.id, count, frame });
        Ok(())
    }
}

/// A set of partitions: a bit for each.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PartitionSet {
    /// 64 partitions each; the trailing ones that are 0 may be absent.
    words: Vec<u64>,
    /// How many are in it.
    len: u32,
}

impl PartitionSet {
    /// Adds one; whether it was not in it before.
    pub fn insert(&mut self, id: PartitionId) -> bool {
        let (word, bit) = (id.0 as usize / 64, 1 << (id.0 % 64));
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let is_new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += u32::from(is_new);
        is_new
    }

    /// Whether one is in it.
    pub fn contains(&self, id: PartitionId) -> bool {
        self.words.get(id.0 as usize / 64).is_some_and(|word| word & (1 << (id.0 % 64)) != 0)
    }

    /// How many are in it.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Words `from..from + count`, for a store; those behind the last one are 0.
    pub fn words(&self, from: usize, count: usize) -> Vec<u64> {
        (from..from + count).map(|place| self.words.get(place).copied().unwrap_or(0)).collect()
    }

    /// Puts words back that [`words`](Self::words) gave.
    pub fn set_words(&mut self, from: usize, words: &[u64]) {
        for (place, word) in (from..).zip(words) {
            if *word == 0 && place >= self.words.len() {
                continue;
            }
            if place >= self.words.len() {
                self.words.resize(place + 1, 0);
            }
            self.len = self.len - self.words[place].count_ones() + word.count_ones();
            self.words[place] = *word;
        }
    }
}

/// A plan that contradicts itself.
fn damaged(message: String) -> Failure {
    Failure::new(FailureClass::Damaged, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_into_it_and_survives_as_words() {
        let mut set = PartitionSet::default();
        let ids = [0, 1, 63, 64, 4_096, 1_000_000].map(PartitionId);
        assert!(ids.iter().all(|id| set.insert(*id)) && !set.insert(ids[2]));
        assert_eq!((set.len(), set.contains(PartitionId(2)), set.contains(PartitionId(9_999_999))), (6, false, false));
        let mut copy = PartitionSet::default();
        for block in 0..300 {
            copy.set_words(block * 64, &set.words(block * 64, 64));
        }
        assert!(ids.iter().all(|id| copy.contains(*id)) && copy.len() == 6);
    }

    #[test]
    fn pieces_that_do_not_follow_each_other_are_damage() {
        let stream = Stream { name: "s".into(), expected_rows: None, optional: false, watermark: None };
        let pass = Pass { stream: StreamId(0), yields: Yield::Rows, selection: serde_json::Value::Null };
        let partition = |id, pass| Partition {
            id: PartitionId(id),
            pass: PassId(pass),
            key: "k".into(),
            selection: serde_json::Value::Null,
            requests: None,
            expected_rows: None,
        };
        let first = PlanPiece { streams: vec![stream], passes: vec![pass.clone()], ..PlanPiece::default() };
        for (partitions, is_right) in [
            (vec![partition(0, 0), partition(1, 0)], true),
            (vec![partition(1, 0)], false),
            (vec![partition(0, 1)], false),
            (vec![partition(0, 0), partition(2, 0)], false),
        ] {
            let mut index = PlanIndex::default();
            index.extend(&first, FrameRange::default()).unwrap();
            assert_eq!(index.add_partitions(&partitions, FrameRange::default()).is_ok(), is_right, "{partitions:?}");
        }
        let lost = PlanPiece { passes: vec![pass], ..PlanPiece::default() };
        assert!(PlanIndex::default().extend(&lost, FrameRange::default()).is_err());
    }
}
