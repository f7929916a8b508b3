//! One frame of the spool as bytes: enough to tell a whole frame from anything else, wherever one starts to read.
//!
//! ```text
//!  0        7         8      9      12         16         24        32         36         36+m      36+m+b
//!  ├────────┼─────────┼──────┼──────┼──────────┼──────────┼─────────┼──────────┼──────────┼─────────┼──────────┬─────────┐
//!  │ F7     │ version │ kind │ zero │ meta len │ body len │ durable │ hdr CRC  │   meta   │  body   │ all len  │ all CRC │
//!  │ hspool │ 1       │      │      │ u32 = m  │ u64 = b  │ u64     │ u32      │ JSON     │ records │ u64      │ u32     │
//!  └────────┴─────────┴──────┴──────┴──────────┴──────────┴─────────┴──────────┴──────────┴─────────┴──────────┴─────────┘
//! ```
//!
//! All numbers are little-endian; both checksums are CRC32C. They begin with the run's id and the frame's place, so that
//! a frame is valid in one file and at one place only. The header's own checksum lets its lengths be believed before the
//! body is read. The trailer repeats the whole length, so that a reader can step back over a frame. `durable` says how
//! many bytes of the spool had been synced when the frame was written: bytes before that place were on the disk, so if
//! they are wrong now, they have been damaged; bytes after it may simply never have got there before a power cut.
//!
//! Rows are UTF-8, and the lengths in front of them are far below 2³⁰: the first byte of the magic, `F7`, cannot be
//! followed by the rest of it inside a body.

use harvester_actors::{
    page::{FrameRange, PageCounts, PageRef, Reject, Span},
    partition::{Cursor, Partition, PartitionId, PassId},
};
use serde::{Deserialize, Serialize};

/// What every frame begins with.
pub(crate) const MAGIC: [u8; 7] = *b"\xF7hspool";

/// Version of this layout.
pub(crate) const VERSION: u8 = 1;

/// Bytes in front of the meta.
pub(crate) const HEADER_BYTES: usize = 36;

/// Bytes after the body.
pub(crate) const TRAILER_BYTES: usize = 12;

/// What a frame holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FrameKind {
    /// The first frame: a `RunHeader`, no body.
    Run,
    /// A page: [`PageMeta`], and its records.
    Page,
    /// A `PlanPiece`, no body.
    Piece,
}

impl FrameKind {
    /// Its byte.
    fn byte(self) -> u8 {
        match self {
            FrameKind::Run => 1,
            FrameKind::Page => 2,
            FrameKind::Piece => 3,
        }
    }

    /// The kind of a byte.
    fn of(byte: u8) -> Option<FrameKind> {
        match byte {
            1 => Some(FrameKind::Run),
            2 => Some(FrameKind::Page),
            3 => Some(FrameKind::Piece),
            _ => None,
        }
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FrameHeader {
    /// What it holds.
    pub(crate) kind: FrameKind,
    /// Bytes of the meta.
    pub(crate) meta_len: u32,
    /// Bytes of the body.
    pub(crate) body_len: u64,
    /// How many bytes of the spool were durable when it was written.
    pub(crate) durable: u64,
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum HeaderError {
    /// They are something else, or damaged.
    Invalid,
    /// They begin like a frame of a later version of this layout.
    Newer(u8),
}

impl FrameHeader {
    /// Bytes of the whole frame; `None` when the lengths are absurd.
    pub(crate) fn frame_len(&self) -> Option<u64> {
        self.body_len.checked_add(u64::from(self.meta_len) + (HEADER_BYTES + TRAILER_BYTES) as u64)
    }

    /// The header's bytes, for place `from` of the run whose seed this is.
    pub(crate) fn encode(&self, seed: u32, from: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = VERSION;
        bytes[8] = self.kind.byte();
        bytes[12..16].copy_from_slice(&self.meta_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        let crc = header_crc(seed, from, &bytes);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header at place `from`.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES], seed: u32, from: u64) -> Result<FrameHeader, HeaderError> {
        if bytes[..7] != MAGIC {
            return Err(HeaderError::Invalid);
        }
        let crc = u32::from_le_bytes(array(&bytes[32..36]));
        if bytes[7] != VERSION {
            // Ours with a damaged version byte, or a layout that is not known here.
            let mut ours = *bytes;
            ours[7] = VERSION;
            let is_ours = bytes[7] < VERSION || header_crc(seed, from, &ours) == crc;
            return Err(if is_ours { HeaderError::Invalid } else { HeaderError::Newer(bytes[7]) });
        }
        if crc != header_crc(seed, from, bytes) || bytes[9..12] != [0; 3] {
            return Err(HeaderError::Invalid);
        }
        let header = FrameHeader {
            kind: FrameKind::of(bytes[8]).ok_or(HeaderError::Invalid)?,
            meta_len: u32::from_le_bytes(array(&bytes[12..16])),
            body_len: u64::from_le_bytes(array(&bytes[16..24])),
            durable: u64::from_le_bytes(array(&bytes[24..32])),
        };
        header.frame_len().and_then(|len| from.checked_add(len)).ok_or(HeaderError::Invalid)?;
        Ok(header)
    }
}

/// Reads a header with a checksum that fits, and asserts that it is written as it was read; for `tests/fuzz`.
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub fn fuzz_header(bytes: &[u8; HEADER_BYTES], from: u64) {
    let seed = seed_of("20260101T000000Z");
    // As it is, most likely damaged: it may be refused, and no more.
    let _ = FrameHeader::decode(bytes, seed, from);
    let mut whole = *bytes;
    let crc = header_crc(seed, from, &whole);
    whole[32..].copy_from_slice(&crc.to_le_bytes());
    if let Ok(header) = FrameHeader::decode(&whole, seed, from) {
        assert_eq!(header.encode(seed, from), whole);
        assert!(header.frame_len().and_then(|len| from.checked_add(len)).is_some());
    }
}

/// What the checksums of a run begin with.
pub(crate) fn seed_of(run_id: &str) -> u32 {
    crc32c::crc32c(run_id.as_bytes())
}

/// Checksum of a header without its own four last bytes.
fn header_crc(seed: u32, from: u64, bytes: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &from.to_le_bytes()), &bytes[..32])
}

/// The checksum over a whole frame, as its bytes go by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameCrc(u32);

impl FrameCrc {
    /// Begins with the header.
    pub(crate) fn begin(seed: u32, header: &[u8; HEADER_BYTES]) -> Self {
        FrameCrc(crc32c::crc32c_append(seed, header))
    }

    /// Takes the next bytes of meta and body.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0 = crc32c::crc32c_append(self.0, bytes);
    }

    /// The trailer of a frame of this length.
    pub(crate) fn trailer(mut self, frame_len: u64) -> [u8; TRAILER_BYTES] {
        let len = frame_len.to_le_bytes();
        self.update(&len);
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&len);
        bytes[8..].copy_from_slice(&self.0.to_le_bytes());
        bytes
    }
}

/// The length a trailer names; to be believed only together with the header it leads to.
pub(crate) fn trailer_len(trailer: &[u8; TRAILER_BYTES]) -> u64 {
    u64::from_le_bytes(array(&trailer[..8]))
}

/// A slice of known length as an array.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// The meta of a page: a [`Span`] without its place, which the frame's own place says.
#[derive(Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageMeta {
    /// Whose page.
    partition: PartitionId,
    /// The pass of that partition.
    pass: PassId,
    /// Its number.
    seq: u32,
    /// Where the partition resumes.
    next: Cursor,
    /// How often the partition's next pages are halved.
    #[serde(default, skip_serializing_if = "is_zero")]
    halvings: u32,
    /// Its numbers.
    counts: PageCounts,
    /// What could not be taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rejects: Vec<Reject>,
    /// The partitions that it brought.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) children: Vec<Partition>,
}

/// Whether nothing need be written.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl PageMeta {
    /// The meta of a span.
    pub(crate) fn of(span: Span) -> Self {
        let Span { partition, pass, seq, next, halvings, counts, rejects, children, frame: _ } = span;
        PageMeta { partition, pass, seq, next, halvings, counts, rejects, children }
    }

    /// The span of a meta.
    pub(crate) fn into_span(self, frame: FrameRange) -> Span {
        let PageMeta { partition, pass, seq, next, halvings, counts, rejects, children } = self;
        Span { partition, pass, seq, next, halvings, counts, rejects, children, frame }
    }

    /// Whether it is the page that a checkpoint knows.
    pub(crate) fn is_of(&self, page: &PageRef) -> bool {
        (self.partition, self.seq, self.counts) == (page.partition, page.seq, page.counts)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: FrameHeader = FrameHeader { kind: FrameKind::Page, meta_len: 70, body_len: 1 << 33, durable: 4096 };

    #[test]
    fn a_head_is_valid_in_its_own_run_and_place_only() {
        let bytes = HEADER.encode(seed_of("20260101T000000Z"), 512);
        assert_eq!(FrameHeader::decode(&bytes, seed_of("20260101T000000Z"), 512), Ok(HEADER));
        assert_eq!(FrameHeader::decode(&bytes, seed_of("20260101T000001Z"), 512), Err(HeaderError::Invalid));
        assert_eq!(FrameHeader::decode(&bytes, seed_of("20260101T000000Z"), 513), Err(HeaderError::Invalid));
    }

    #[test]
    fn any_flipped_bit_of_a_head_makes_it_invalid_and_none_makes_it_newer() {
        let good = HEADER.encode(7, 99);
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&bytes, 7, 99), Err(HeaderError::Invalid), "bit {bit}");
        }
    }

    #[test]
    fn a_layout_of_a_later_version_is_told_from_damage() {
        let mut bytes = HEADER.encode(7, 99);
        bytes[7] = VERSION + 1;
        let crc = header_crc(7, 99, &bytes);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes, 7, 99), Err(HeaderError::Newer(VERSION + 1)));
    }

    #[test]
    fn lengths_beyond_the_end_of_all_files_are_no_head() {
        let absurd = FrameHeader { body_len: u64::MAX - 10, ..HEADER };
        assert_eq!(FrameHeader::decode(&absurd.encode(7, 0), 7, 0), Err(HeaderError::Invalid));
        let far = FrameHeader { body_len: u64::MAX - 1000, ..HEADER };
        assert_eq!(FrameHeader::decode(&far.encode(7, 5000), 7, 5000), Err(HeaderError::Invalid));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_without_a_panic(bytes in any::<[u8; HEADER_BYTES]>(), seed: u32, from: u64) {
            let _ = FrameHeader::decode(&bytes, seed, from);
            let mut begins_well = bytes;
            begins_well[..7].copy_from_slice(&MAGIC);
            let _ = FrameHeader::decode(&begins_well, seed, from);
        }

        #[test]
        fn every_head_survives_its_bytes(meta_len: u32, body_len in 0..u64::MAX / 4, durable: u64, from in 0..u64::MAX / 4) {
            let header = FrameHeader { kind: FrameKind::Run, meta_len, body_len, durable };
            prop_assert_eq!(FrameHeader::decode(&header.encode(3, from), 3, from), Ok(header));
        }
    }
}
