//! How one value of the store looks as bytes, so that damage, a wrong place and a newer program are told apart.
//!
//! ```text
//!  0         1          5
//!  ├─────────┼──────────┼──────────────┐
//!  │ version │ CRC32C   │ JSON         │
//!  │ 2       │ u32 LE   │              │
//!  └─────────┴──────────┴──────────────┘
//! ```
//!
//! The checksum covers key, version and JSON. This envelope stays the same for all versions; the JSON may change.
//!
//! | key | value | written |
//! |---|---|---|
//! | `header` | the run's header; absent when no run is unfinished | once |
//! | `plan/<n>` | streams, passes and what was left out: a [`PlanPiece`](harvester_actors::partition::PlanPiece) without partitions | once |
//! | `chunk/<first>` | [`Chunk`]: where the partitions from `first` on lie in the spool | once |
//! | `pages/<pass><n>` | committed pages of a pass, at most [`PAGES_MAX`], in the order of the spool | once |
//! | `pass/<pass>` | [`PassSums`]: what the pages of the pass must add up to | by each commit with pages of the pass |
//! | `finished/<block>` | [`BLOCK_WORDS`] words of the set of finished partitions | by each commit that finishes one of them |
//! | `open/<partition>` | how far a partition has come that has begun and not ended | by each commit with pages of it |
//! | `totals` | [`Totals`]: what the rest must add up to | by each commit |
//! | `completed` | the id of the run that was recorded as complete | once |
//!
//! Numbers in keys are four bytes, big-endian, so that keys sort as numbers do. What is written once is found by counting,
//! and everything else only ever grows: a value that is missing or older than the others changes a sum.

use harvester_actors::{
    checkpoint::PassTotals,
    failure::{Failure, FailureClass},
    page::{FrameRange, PageCounts, PageRef},
    partition::{PartitionId, PassId},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of the JSON.
pub(crate) const VERSION: u8 = 2;

/// Bytes in front of the JSON.
const ENVELOPE_BYTES: usize = 5;

/// Pages in one value.
pub(crate) const PAGES_MAX: usize = 256;

/// Words in one value of the set of finished partitions.
pub(crate) const BLOCK_WORDS: usize = 64;

/// Partitions in one value of the set of finished partitions.
pub(crate) const BLOCK_PARTITIONS: u32 = 64 * BLOCK_WORDS as u32;

/// Key of the run's header.
pub(crate) const HEADER: &[u8] = b"header";

/// Key of [`Totals`].
pub(crate) const TOTALS: &[u8] = b"totals";

/// Key of the last complete run.
pub(crate) const COMPLETED: &[u8] = b"completed";

/// What keys of parts of the plan begin with.
pub(crate) const PLAN: &[u8] = b"plan/";

/// What keys of [`Chunk`]s begin with.
pub(crate) const CHUNK: &[u8] = b"chunk/";

/// What keys of pages begin with.
pub(crate) const PAGES: &[u8] = b"pages/";

/// What keys of [`PassSums`] begin with.
pub(crate) const PASS: &[u8] = b"pass/";

/// What keys of blocks of finished partitions begin with.
pub(crate) const FINISHED: &[u8] = b"finished/";

/// What keys of open partitions begin with.
pub(crate) const OPEN: &[u8] = b"open/";

/// A key of one number.
pub(crate) fn key(prefix: &[u8], number: u32) -> Vec<u8> {
    [prefix, &number.to_be_bytes()].concat()
}

/// Key of value `n` with pages of a pass.
pub(crate) fn pages_key(pass: PassId, n: u32) -> Vec<u8> {
    [PAGES, &pass.0.to_be_bytes(), &n.to_be_bytes()].concat()
}

/// The number behind the prefix of a key; `None` where something else is there.
pub(crate) fn number_of(prefix: &[u8], key: &[u8]) -> Option<u32> {
    key.strip_prefix(prefix)?.try_into().ok().map(u32::from_be_bytes)
}

/// Where some partitions of the plan lie in the spool: how many, first byte, end offset.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Chunk(pub(crate) u32, pub(crate) u64, pub(crate) u64);

/// A committed page in few bytes: partition, number, first byte, end offset; then its counts in the order of their fields.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct PageRow(u32, u32, u64, u64, u64, u64, u64, u64, u64, u64, u64);

impl From<PageRef> for PageRow {
    fn from(page: PageRef) -> Self {
        let PageRef { partition, seq, counts, frame: FrameRange { from, to } } = page;
        let PageCounts { fetched, kept, filtered, rejected, nameless, bytes, miscounted } = counts;
        PageRow(partition.0, seq, from, to, fetched, kept, filtered, rejected, nameless, bytes, miscounted)
    }
}

impl From<PageRow> for PageRef {
    fn from(row: PageRow) -> Self {
        let PageRow(partition, seq, from, to, fetched, kept, filtered, rejected, nameless, bytes, miscounted) = row;
        let counts = PageCounts { fetched, kept, filtered, rejected, nameless, bytes, miscounted };
        PageRef { partition: PartitionId(partition), seq, counts, frame: FrameRange { from, to } }
    }
}

/// What the pages of a pass must add up to.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PassSums {
    /// Values that hold its pages.
    pub(crate) values: u32,
    /// Its pages, and the sum of their numbers.
    pub(crate) totals: PassTotals,
}

/// What the other values must add up to: a value that got lost, or came back from an earlier time, does not go unseen.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Totals {
    /// Bytes of the spool that are known here.
    pub(crate) spool_len: u64,
    /// Parts of the plan.
    pub(crate) plan_parts: u32,
    /// Chunks of partitions.
    pub(crate) chunks: u32,
    /// Partitions of the plan.
    pub(crate) partitions: u32,
    /// Partitions that have ended.
    pub(crate) finished: u32,
    /// Partitions that have begun and not ended.
    pub(crate) open: u32,
    /// Pages of these partitions.
    pub(crate) open_pages: u64,
    /// The sum over all passes.
    pub(crate) pages: PassSums,
}

/// Why stored bytes are not a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum DecodeError {
    /// They are not what was written.
    Damaged(String),
    /// A newer program wrote them.
    Newer(u8),
}

/// The bytes of a value under its key.
pub(crate) fn encode(key: &[u8], value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![VERSION, 0, 0, 0, 0];
    serde_json::to_writer(&mut bytes, value)
        .map_err(|error| Failure::new(FailureClass::Bug, format!("cannot be written as JSON: {error}")))?;
    let crc = checksum(key, VERSION, &bytes[ENVELOPE_BYTES..]);
    bytes[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The value of these bytes, found under this key.
pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, DecodeError> {
    let damaged = |what: &str| DecodeError::Damaged(format!("the value of `{}` {what}", key.escape_ascii()));
    let Some((envelope, json)) = bytes.split_first_chunk::<ENVELOPE_BYTES>() else {
        return Err(damaged("is too short"));
    };
    let [version, crc @ ..] = *envelope;
    if u32::from_le_bytes(crc) != checksum(key, version, json) {
        return Err(damaged("does not fit its checksum"));
    }
    match version {
        VERSION => serde_json::from_slice(json).map_err(|error| damaged(&format!("cannot be read: {error}"))),
        newer if newer > VERSION => Err(DecodeError::Newer(newer)),
        // No such program has been released: what it left is rebuilt from the spool, or refused together with it.
        _ => Err(damaged("was written by an older program")),
    }
}

/// Reads bytes as every value of the store, as they are and under a checksum that fits; for `tests/fuzz`.
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub fn fuzz_value(bytes: &[u8]) {
    fn read<T: DeserializeOwned + Serialize>(key: &[u8], bytes: &[u8]) {
        let _ = decode::<T>(key, bytes);
        let mut encoded = vec![VERSION, 0, 0, 0, 0];
        encoded.extend_from_slice(bytes);
        let crc = checksum(key, VERSION, bytes);
        encoded[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
        if let Ok(value) = decode::<T>(key, &encoded)
            && let Ok(again) = encode(key, &value)
        {
            assert!(decode::<T>(key, &again).is_ok(), "what was read cannot be read again");
        }
    }
    read::<harvester_actors::checkpoint::RunHeader>(HEADER, bytes);
    read::<harvester_actors::partition::PlanPiece>(&key(PLAN, 7), bytes);
    read::<Chunk>(&key(CHUNK, 7), bytes);
    read::<Vec<PageRow>>(&pages_key(PassId(7), 3), bytes);
    read::<PassSums>(&key(PASS, 7), bytes);
    read::<Vec<u64>>(&key(FINISHED, 7), bytes);
    read::<harvester_actors::checkpoint::PartitionState>(&key(OPEN, 7), bytes);
    read::<Totals>(TOTALS, bytes);
    read::<String>(COMPLETED, bytes);
}

/// Checksum of a value in its place.
fn checksum(key: &[u8], version: u8, json: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(key), &[version]), json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_valid_under_its_own_key_only() {
        let bytes = encode(b"span/1", &7u64).unwrap();
        assert_eq!(decode::<u64>(b"span/1", &bytes), Ok(7));
        assert!(matches!(decode::<u64>(b"span/2", &bytes), Err(DecodeError::Damaged(_))));
    }

    #[test]
    fn a_value_of_a_newer_program_is_told_from_a_damaged_one_and_from_an_older_one() {
        let mut bytes = encode(b"header", &"x").unwrap();
        bytes[0] = VERSION + 1;
        assert!(matches!(decode::<String>(b"header", &bytes), Err(DecodeError::Damaged(_))), "a flipped version byte");
        let of_version = |version| {
            let mut bytes = bytes.clone();
            bytes[0] = version;
            let crc = checksum(b"header", version, &bytes[ENVELOPE_BYTES..]);
            bytes[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
            decode::<String>(b"header", &bytes)
        };
        assert_eq!(of_version(VERSION + 1), Err(DecodeError::Newer(VERSION + 1)));
        assert_eq!(of_version(VERSION), Ok("x".to_owned()));
        assert!(matches!(of_version(VERSION - 1), Err(DecodeError::Damaged(_))));
    }

    #[test]
    fn keys_sort_as_their_numbers_do_and_give_them_back() {
        let at = |pass, n| pages_key(PassId(pass), n);
        assert!(at(1, 255) < at(1, 256) && at(1, u32::MAX) < at(2, 0) && at(255, 0) < at(256, 0));
        assert_eq!(number_of(OPEN, &key(OPEN, 70_000)), Some(70_000));
        assert_eq!(
            (number_of(OPEN, &key(CHUNK, 7)), number_of(PAGES, &at(1, 2)), number_of(OPEN, OPEN)),
            (None, None, None)
        );
    }

    proptest! {
        #[test]
        fn a_page_survives_its_row(numbers in any::<[u64; 9]>(), partition: u32, seq: u32) {
            let [from, to, fetched, kept, filtered, rejected, nameless, bytes, miscounted] = numbers;
            let counts = PageCounts { fetched, kept, filtered, rejected, nameless, bytes, miscounted };
            let page = PageRef { partition: PartitionId(partition), seq, counts, frame: FrameRange { from, to } };
            let text = serde_json::to_string(&PageRow::from(page)).unwrap();
            prop_assert_eq!(PageRef::from(serde_json::from_str::<PageRow>(&text).unwrap()), page);
        }

        #[test]
        fn any_flipped_bit_is_damage(spool_len: u64, open_pages: u64, bit: prop::sample::Index) {
            let totals = Totals { spool_len, partitions: 3, open_pages, ..Totals::default() };
            let mut bytes = encode(TOTALS, &totals).unwrap();
            prop_assert_eq!(decode::<Totals>(TOTALS, &bytes), Ok(totals));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(decode::<Totals>(TOTALS, &bytes), Err(DecodeError::Damaged(_))));
        }

        #[test]
        fn arbitrary_bytes_are_read_without_a_panic(key in prop::collection::vec(any::<u8>(), 0..20), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(decode::<Totals>(&key, &bytes).is_err());
        }
    }
}
