//! How one value of the store looks as bytes, so that damage, a wrong place and a newer program are told apart.
//!
//! ```text
//!  0         1          5
//!  ├─────────┼──────────┼──────────────┐
//!  │ version │ CRC32C   │ JSON         │
//!  │ 1       │ u32 LE   │              │
//!  └─────────┴──────────┴──────────────┘
//! ```
//!
//! The checksum covers key, version and JSON. This envelope stays the same for all versions; the JSON may change.
//!
//! | key | value |
//! |---|---|
//! | `header` | the run's header, its plan without the partitions; absent when no run is unfinished |
//! | `plan/<partition>` | one partition of the plan |
//! | `progress` | [`Progress`]: what the rest must add up to |
//! | `state/<partition>` | how far a partition that has begun has come |
//! | `span/<partition><seq>` | one committed page |
//! | `ended` | the id of the run that was recorded as complete |
//!
//! Numbers in keys are four bytes, big-endian, so that keys sort as numbers do.

use harvester_actors::{
    failure::{Failure, FailureClass},
    page::PageCounts,
    partition::PartitionId,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Version of the JSON.
pub(crate) const VERSION: u8 = 1;

/// Bytes in front of the JSON.
const ENVELOPE_BYTES: usize = 5;

/// Key of the run's header.
pub(crate) const HEADER: &[u8] = b"header";

/// Key of [`Progress`].
pub(crate) const PROGRESS: &[u8] = b"progress";

/// Key of the last complete run.
pub(crate) const ENDED: &[u8] = b"ended";

/// Key of one partition of the plan.
pub(crate) fn plan_key(partition: PartitionId) -> Vec<u8> {
    [b"plan/".as_slice(), &partition.0.to_be_bytes()].concat()
}

/// Key of a partition's state.
pub(crate) fn state_key(partition: PartitionId) -> Vec<u8> {
    [b"state/".as_slice(), &partition.0.to_be_bytes()].concat()
}

/// Key of a page.
pub(crate) fn span_key(partition: PartitionId, seq: u32) -> Vec<u8> {
    [b"span/".as_slice(), &partition.0.to_be_bytes(), &seq.to_be_bytes()].concat()
}

/// What the other values must add up to: a value that got lost, or came back from an earlier time, does not go unseen.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Progress {
    /// Bytes of the spool that are known here.
    pub(crate) spool_len: u64,
    /// Partitions of the plan.
    pub(crate) partitions: u64,
    /// Pages committed.
    pub(crate) pages: u64,
    /// Sum of their numbers.
    pub(crate) counts: PageCounts,
}

/// Why stored bytes are no value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// They are not what was written.
    Damaged(String),
    /// A newer program wrote them.
    Newer(u8),
}

/// The bytes of a value under its key.
pub(crate) fn seal(key: &[u8], value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![VERSION, 0, 0, 0, 0];
    serde_json::to_writer(&mut bytes, value)
        .map_err(|error| Failure::new(FailureClass::Bug, format!("cannot be written as JSON: {error}")))?;
    let crc = checksum(key, VERSION, &bytes[ENVELOPE_BYTES..]);
    bytes[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The value of these bytes, found under this key.
pub(crate) fn unseal<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, Fault> {
    let name = || key.escape_ascii().to_string();
    let Some((envelope, json)) = bytes.split_first_chunk::<ENVELOPE_BYTES>() else {
        return Err(Fault::Damaged(format!("the value of `{}` is too short", name())));
    };
    let [version, crc @ ..] = *envelope;
    if u32::from_le_bytes(crc) != checksum(key, version, json) {
        return Err(Fault::Damaged(format!("the value of `{}` does not fit its checksum", name())));
    }
    if version > VERSION {
        return Err(Fault::Newer(version));
    }
    serde_json::from_slice(json).map_err(|error| Fault::Damaged(format!("the value of `{}`: {error}", name())))
}

/// Reads bytes as every value of the store, as they are and under a checksum that fits; for `tests/fuzz`.
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub fn fuzz_value(bytes: &[u8]) {
    fn read<T: DeserializeOwned + Serialize>(key: &[u8], bytes: &[u8]) {
        let _ = unseal::<T>(key, bytes);
        let mut sealed = vec![VERSION, 0, 0, 0, 0];
        sealed.extend_from_slice(bytes);
        let crc = checksum(key, VERSION, bytes);
        sealed[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
        if let Ok(value) = unseal::<T>(key, &sealed)
            && let Ok(again) = seal(key, &value)
        {
            assert!(unseal::<T>(key, &again).is_ok(), "what was read cannot be read again");
        }
    }
    read::<harvester_actors::checkpoint::RunHeader>(HEADER, bytes);
    read::<Progress>(PROGRESS, bytes);
    read::<harvester_actors::partition::Partition>(&plan_key(PartitionId(7)), bytes);
    read::<harvester_actors::checkpoint::PartitionState>(&state_key(PartitionId(7)), bytes);
    read::<harvester_actors::page::Span>(&span_key(PartitionId(7), 3), bytes);
    read::<String>(ENDED, bytes);
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
        let bytes = seal(b"span/1", &7u64).unwrap();
        assert_eq!(unseal::<u64>(b"span/1", &bytes), Ok(7));
        assert!(matches!(unseal::<u64>(b"span/2", &bytes), Err(Fault::Damaged(_))));
    }

    #[test]
    fn a_value_of_a_newer_program_is_told_from_a_damaged_one() {
        let mut bytes = seal(b"header", &"x").unwrap();
        bytes[0] = VERSION + 1;
        assert!(matches!(unseal::<String>(b"header", &bytes), Err(Fault::Damaged(_))), "a flipped version byte");
        let crc = checksum(b"header", VERSION + 1, &bytes[ENVELOPE_BYTES..]);
        bytes[1..ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(unseal::<String>(b"header", &bytes), Err(Fault::Newer(VERSION + 1)));
    }

    #[test]
    fn keys_sort_as_their_numbers_do() {
        let at = |partition, seq| span_key(PartitionId(partition), seq);
        assert!(at(1, 255) < at(1, 256) && at(1, u32::MAX) < at(2, 0) && at(255, 0) < at(256, 0));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_damage(spool_len: u64, pages: u64, bit: prop::sample::Index) {
            let progress = Progress { spool_len, partitions: 3, pages, counts: PageCounts::default() };
            let mut bytes = seal(PROGRESS, &progress).unwrap();
            prop_assert_eq!(unseal::<Progress>(PROGRESS, &bytes), Ok(progress));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(matches!(unseal::<Progress>(PROGRESS, &bytes), Err(Fault::Damaged(_))));
        }

        #[test]
        fn arbitrary_bytes_are_read_without_a_panic(key in prop::collection::vec(any::<u8>(), 0..20), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(unseal::<Progress>(&key, &bytes).is_err());
        }
    }
}
