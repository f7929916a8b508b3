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
//! | `pages/<pass><n>` | committed pages of a pass, at most [`PAGES_MAX`], in the order of the spool: see [`pack`] | once |
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

/// Pages in one value. sled keeps some thousand values in memory that were read last, however small its cache is to be.
pub(crate) const PAGES_MAX: usize = 64;

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

/// Numbers of a page.
const PAGE_NUMBERS: usize = 11;

/// Pages in few bytes: for each page how many numbers follow, and these, of which trailing zeros are left out.
///
/// Their order is: partition (less that of the page before), length of the frame, fetched, bytes, distance to the frame
/// before, number within the partition, filtered, rejected, nameless, miscounted, and by how much the counts of rows do
/// not add up. Most pages need four.
pub(crate) fn pack(pages: &[PageRef]) -> Vec<i64> {
    let mut packed = Vec::with_capacity(pages.len() * (PAGE_NUMBERS / 2));
    let (mut last_partition, mut last_to) = (0, 0);
    for PageRef { partition, seq, counts, frame: FrameRange { from, to } } in pages {
        let PageCounts { fetched, kept, filtered, rejected, nameless, bytes, miscounted } = *counts;
        let kept_by_sum = fetched.wrapping_sub(filtered).wrapping_sub(rejected);
        // Nothing is lost by wrapping: a difference of two such numbers has as many values as each of them.
        let numbers: [i64; PAGE_NUMBERS] = [
            i64::from(partition.0) - last_partition,
            to.wrapping_sub(*from).cast_signed(),
            fetched.cast_signed(),
            bytes.cast_signed(),
            from.wrapping_sub(last_to).cast_signed(),
            i64::from(*seq),
            filtered.cast_signed(),
            rejected.cast_signed(),
            nameless.cast_signed(),
            miscounted.cast_signed(),
            kept.wrapping_sub(kept_by_sum).cast_signed(),
        ];
        let used = numbers.iter().rposition(|number| *number != 0).map_or(0, |last| last + 1);
        packed.push(used as i64);
        packed.extend_from_slice(&numbers[..used]);
        (last_partition, last_to) = (i64::from(partition.0), *to);
    }
    packed
}

/// The pages that [`pack`] was given; `None` where these numbers are not of pages.
pub(crate) fn unpack(mut packed: &[i64]) -> Option<Vec<PageRef>> {
    let mut pages = Vec::new();
    let (mut last_partition, mut last_to) = (0_i64, 0_u64);
    while let Some((used, rest)) = packed.split_first() {
        let used = usize::try_from(*used).ok().filter(|used| *used <= PAGE_NUMBERS && *used <= rest.len())?;
        let mut numbers = [0; PAGE_NUMBERS];
        numbers[..used].copy_from_slice(&rest[..used]);
        packed = &rest[used..];
        let [partition, len, fetched, bytes, distance, seq, filtered, rejected, nameless, miscounted, excess] = numbers;
        let partition = u32::try_from(last_partition.checked_add(partition)?).ok()?;
        let from = last_to.wrapping_add(distance.cast_unsigned());
        let to = from.wrapping_add(len.cast_unsigned());
        let [fetched, bytes, filtered, rejected, nameless, miscounted, excess] =
            [fetched, bytes, filtered, rejected, nameless, miscounted, excess].map(i64::cast_unsigned);
        let kept = fetched.wrapping_sub(filtered).wrapping_sub(rejected).wrapping_add(excess);
        let counts = PageCounts { fetched, kept, filtered, rejected, nameless, bytes, miscounted };
        let seq = u32::try_from(seq).ok()?;
        pages.push(PageRef { partition: PartitionId(partition), seq, counts, frame: FrameRange { from, to } });
        (last_partition, last_to) = (i64::from(partition), to);
    }
    Some(pages)
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
    read::<Vec<i64>>(&pages_key(PassId(7), 3), bytes);
    if let Some(pages) = serde_json::from_slice::<Vec<i64>>(bytes).ok().and_then(|packed| unpack(&packed)) {
        assert_eq!(unpack(&pack(&pages)), Some(pages), "what was read cannot be read again");
    }
    read::<PassSums>(&key(PASS, 7), bytes);
    read::<Vec<u64>>(&key(FINISHED, 7), bytes);
    read::<harvester_actors::partition::Position>(&key(OPEN, 7), bytes);
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
    fn pages_that_follow_each_other_take_few_numbers() {
        let page = |n: u64| PageRef {
            partition: PartitionId(7 + n as u32),
            seq: 0,
            counts: PageCounts { fetched: 1000, kept: 1000, bytes: 50_000, ..PageCounts::default() },
            frame: FrameRange { from: 900 + n * 52_000, to: 900 + (n + 1) * 52_000 },
        };
        let packed = pack(&[page(0), page(1), page(2)]);
        assert_eq!(packed[..6], [5, 7, 52_000, 1000, 50_000, 900]);
        assert_eq!(packed[6..], [4, 1, 52_000, 1000, 50_000, 4, 1, 52_000, 1000, 50_000]);
        assert_eq!((unpack(&[4, 1, 2]), unpack(&[12]), unpack(&[-1]), unpack(&[1, -1])), (None, None, None, None));
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
        fn pages_survive_being_packed(pages in prop::collection::vec((any::<[u64; 9]>(), any::<u32>(), any::<u32>()), 0..5)) {
            let pages: Vec<PageRef> = pages
                .into_iter()
                .map(|([from, to, fetched, kept, filtered, rejected, nameless, bytes, miscounted], partition, seq)| {
                    let counts = PageCounts { fetched, kept, filtered, rejected, nameless, bytes, miscounted };
                    PageRef { partition: PartitionId(partition), seq, counts, frame: FrameRange { from, to } }
                })
                .collect();
            let text = serde_json::to_string(&pack(&pages)).unwrap();
            prop_assert_eq!(unpack(&serde_json::from_str::<Vec<i64>>(&text).unwrap()), Some(pages));
        }

        #[test]
        fn arbitrary_numbers_are_unpacked_without_a_panic(packed in prop::collection::vec(prop_oneof![-2i64..12, any::<i64>()], 0..40)) {
            if let Some(pages) = unpack(&packed) {
                prop_assert_eq!(unpack(&pack(&pages)), Some(pages));
            }
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
