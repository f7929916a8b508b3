//! Inflates a gzip answer piece by piece and takes only a complete one.
//!
//! Several members in a row are one response (RFC 1952 §2.2). Each member's checksum and length are compared, the output
//! is bounded in size and in proportion to the input. awc's own decoder is not used: it sends every piece through a
//! thread pool and refuses several members.

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Bounds of one response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InflateLimits {
    /// Bytes that come out at most.
    pub(crate) output_bytes_max: u64,
    /// Output ÷ input at most, once the output is larger than [`RATIO_FREE_BYTES`].
    pub(crate) ratio_max: u64,
}

/// Below this much output a high ratio is harmless and, in repetitive JSON, usual.
const RATIO_FREE_BYTES: u64 = 8 << 20;

/// Why a response cannot be inflated.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum InflateError {
    #[error("it is not gzip, although the server says so")]
    NotGzip,
    #[error("its gzip data are damaged: {0}")]
    Damaged(&'static str),
    #[error("its gzip data end too early")]
    Truncated,
    #[error("it inflates to more than {max} bytes")]
    TooLarge { max: u64 },
    #[error("it inflates to more than {max} times its size")]
    Bomb { max: u64 },
}

/// Position of the next byte in a member.
#[derive(Debug)]
enum Place {
    /// The ten fixed bytes; `seen` of them are in `fixed`.
    Fixed,
    /// Length of the extra field: low byte, high byte.
    ExtraLength {
        low: Option<u8>,
    },
    /// So many bytes of the extra field are left.
    Extra {
        left: u16,
    },
    /// A text that ends with a zero byte: name, then comment.
    Name,
    Comment,
    /// So many bytes of the header's checksum are left.
    HeaderCrc {
        left: u8,
    },
    /// Deflate data.
    Data,
    /// Checksum and length; `seen` of eight bytes are in `fixed`.
    Trailer,
}

const FLAG_HEADER_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;
/// Bits that RFC 1952 reserves: unknown, so the rest of the header cannot be read.
const FLAGS_RESERVED: u8 = 0b1110_0000;

/// Inflates one response.
pub(crate) struct Inflater {
    limits: InflateLimits,
    place: Place,
    fixed: [u8; 10],
    seen: usize,
    flags: u8,
    data: Decompress,
    crc: Crc,
    /// A member has begun and not ended.
    inside: bool,
    members: u32,
    input_bytes: u64,
    output_bytes: u64,
}

impl Inflater {
    pub(crate) fn new(limits: InflateLimits) -> Self {
        Inflater {
            limits,
            place: Place::Fixed,
            fixed: [0; 10],
            seen: 0,
            flags: 0,
            data: Decompress::new(false),
            crc: Crc::new(),
            inside: false,
            members: 0,
            input_bytes: 0,
            output_bytes: 0,
        }
    }

    /// Inflates from `input` into `output` until one of them is used up. Returns how much of each was used; when the
    /// output was filled, call again with the rest of the input (which may be empty).
    pub(crate) fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), InflateError> {
        let mut used = 0;
        let mut made = 0;
        loop {
            if matches!(self.place, Place::Data) {
                let (before_in, before_out) = (self.data.total_in(), self.data.total_out());
                let status = self
                    .data
                    .decompress(&input[used..], &mut output[made..], FlushDecompress::None)
                    .map_err(|_| InflateError::Damaged("not deflate data"))?;
                // Both differences are bounded by the slices' lengths.
                let in_now = usize::try_from(self.data.total_in() - before_in).unwrap_or(usize::MAX);
                let out_now = usize::try_from(self.data.total_out() - before_out).unwrap_or(usize::MAX);
                self.crc.update(&output[made..made + out_now]);
                used += in_now;
                made += out_now;
                self.count(in_now, out_now)?;
                if status == Status::StreamEnd {
                    self.place = Place::Trailer;
                    self.seen = 0;
                    continue;
                }
                if made == output.len() || used == input.len() {
                    return Ok((used, made));
                }
                if in_now == 0 && out_now == 0 {
                    return Err(InflateError::Damaged("no progress"));
                }
                continue;
            }
            let Some(&byte) = input.get(used) else { return Ok((used, made)) };
            used += 1;
            self.count(1, 0)?;
            self.frame_byte(byte)?;
        }
    }

    /// Says whether the response was complete.
    pub(crate) fn finish(&self) -> Result<(), InflateError> {
        if self.inside || self.members == 0 { Err(InflateError::Truncated) } else { Ok(()) }
    }

    fn count(&mut self, input: usize, output: usize) -> Result<(), InflateError> {
        self.input_bytes += input as u64;
        self.output_bytes += output as u64;
        if self.output_bytes > self.limits.output_bytes_max {
            return Err(InflateError::TooLarge { max: self.limits.output_bytes_max });
        }
        if self.output_bytes > RATIO_FREE_BYTES && self.output_bytes / self.limits.ratio_max > self.input_bytes {
            return Err(InflateError::Bomb { max: self.limits.ratio_max });
        }
        Ok(())
    }

    fn frame_byte(&mut self, byte: u8) -> Result<(), InflateError> {
        match self.place {
            Place::Fixed => {
                self.fixed[self.seen] = byte;
                self.seen += 1;
                self.inside = true;
                let magic = [0x1f, 0x8b];
                if self.seen <= 2 && byte != magic[self.seen - 1] {
                    // Behind a complete member it is garbage, at the start it is no gzip at all.
                    return Err(if self.members == 0 {
                        InflateError::NotGzip
                    } else {
                        InflateError::Damaged("something follows the end")
                    });
                }
                if self.seen == 3 && byte != 8 {
                    return Err(InflateError::Damaged("unknown method"));
                }
                if self.seen == 4 {
                    self.flags = byte;
                    if byte & FLAGS_RESERVED != 0 {
                        return Err(InflateError::Damaged("unknown flags"));
                    }
                }
                if self.seen == 10 {
                    self.next_field(FLAG_EXTRA);
                }
            }
            Place::ExtraLength { low: None } => self.place = Place::ExtraLength { low: Some(byte) },
            Place::ExtraLength { low: Some(low) } => {
                let left = u16::from_le_bytes([low, byte]);
                self.place = Place::Extra { left };
                if left == 0 {
                    self.next_field(FLAG_NAME);
                }
            }
            Place::Extra { left } => {
                self.place = Place::Extra { left: left - 1 };
                if left == 1 {
                    self.next_field(FLAG_NAME);
                }
            }
            Place::Name => {
                if byte == 0 {
                    self.next_field(FLAG_COMMENT);
                }
            }
            Place::Comment => {
                if byte == 0 {
                    self.next_field(FLAG_HEADER_CRC);
                }
            }
            Place::HeaderCrc { left } => {
                self.place = if left == 1 { Place::Data } else { Place::HeaderCrc { left: left - 1 } };
            }
            // `step` handles data itself.
            Place::Data => {}
            Place::Trailer => {
                self.fixed[self.seen] = byte;
                self.seen += 1;
                if self.seen == 8 {
                    self.end_member()?;
                }
            }
        }
        Ok(())
    }

    /// Goes to the first optional field from `field` on that the flags announce, else to the data.
    fn next_field(&mut self, field: u8) {
        let order = [
            (FLAG_EXTRA, Place::ExtraLength { low: None }),
            (FLAG_NAME, Place::Name),
            (FLAG_COMMENT, Place::Comment),
            (FLAG_HEADER_CRC, Place::HeaderCrc { left: 2 }),
        ];
        let mut reached = false;
        for (flag, place) in order {
            reached |= flag == field;
            if reached && self.flags & flag != 0 {
                self.place = place;
                return;
            }
        }
        self.place = Place::Data;
    }

    fn end_member(&mut self) -> Result<(), InflateError> {
        let [a, b, c, d, e, f, g, h, ..] = self.fixed;
        if u32::from_le_bytes([a, b, c, d]) != self.crc.sum() {
            return Err(InflateError::Damaged("wrong checksum"));
        }
        if u32::from_le_bytes([e, f, g, h]) != self.crc.amount() {
            return Err(InflateError::Damaged("wrong length"));
        }
        self.members += 1;
        self.inside = false;
        self.crc.reset();
        self.data.reset(false);
        self.place = Place::Fixed;
        self.seen = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    const LIMITS: InflateLimits = InflateLimits { output_bytes_max: 64 << 20, ratio_max: 500 };

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// Inflates `packed` in pieces of `piece` bytes through an output of `room` bytes.
    fn inflate(packed: &[u8], piece: usize, room: usize, limits: InflateLimits) -> Result<Vec<u8>, InflateError> {
        let mut inflater = Inflater::new(limits);
        let mut all = Vec::new();
        let mut output = vec![0; room];
        for mut input in packed.chunks(piece) {
            loop {
                let (used, made) = inflater.step(input, &mut output)?;
                all.extend_from_slice(&output[..made]);
                input = &input[used..];
                if made < room && input.is_empty() {
                    break;
                }
            }
        }
        inflater.finish()?;
        Ok(all)
    }

    #[test]
    fn a_member_with_every_optional_field_is_read() {
        let body = gzip(b"abc");
        let mut packed = vec![0x1f, 0x8b, 8, FLAG_HEADER_CRC | FLAG_EXTRA | FLAG_NAME | FLAG_COMMENT, 0, 0, 0, 0, 0, 3];
        packed.extend_from_slice(&[2, 0, 9, 9]);
        packed.extend_from_slice(b"name\0comment\0");
        packed.extend_from_slice(&[1, 2]);
        packed.extend_from_slice(&body[10..]);
        assert_eq!(inflate(&packed, 1, 2, LIMITS), Ok(b"abc".to_vec()));
    }

    #[test]
    fn several_members_are_one_answer() {
        let packed = [gzip(b"abc"), gzip(b""), gzip(b"def")].concat();
        assert_eq!(inflate(&packed, 3, 4, LIMITS), Ok(b"abcdef".to_vec()));
    }

    #[test]
    fn every_cut_is_an_error() {
        let packed = [gzip(&b"abc".repeat(50)), gzip(b"def")].concat();
        let first = gzip(&b"abc".repeat(50)).len();
        for cut in 0..packed.len() {
            let result = inflate(&packed[..cut], 7, 64, LIMITS);
            if cut == first {
                // A whole member may be all there is; the length of the transfer and the JSON tell the rest.
                assert!(result.is_ok());
            } else {
                assert_eq!(result, Err(InflateError::Truncated), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_changed_byte_is_never_taken_for_the_truth() {
        let plain = br#"{"id":"abcdefghijk","name":"x"}"#.repeat(20);
        let packed = gzip(&plain);
        for at in 10..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] ^= 0x10;
            assert!(inflate(&damaged, 64, 64, LIMITS).is_err(), "byte {at}");
        }
    }

    #[test]
    fn plain_text_and_garbage_behind_the_end_are_errors() {
        assert_eq!(inflate(b"<html>", 64, 64, LIMITS), Err(InflateError::NotGzip));
        assert_eq!(
            inflate(&[gzip(b"abc"), b"x".to_vec()].concat(), 64, 64, LIMITS),
            Err(InflateError::Damaged("something follows the end"))
        );
    }

    #[test]
    fn a_bomb_is_stopped_by_its_ratio_and_a_large_answer_by_its_size() {
        let packed = gzip(&vec![b' '; 40 << 20]);
        assert_eq!(inflate(&packed, 1 << 14, 1 << 16, LIMITS), Err(InflateError::Bomb { max: 500 }));
        let small = InflateLimits { output_bytes_max: 1000, ..LIMITS };
        assert_eq!(inflate(&gzip(&[b'x'; 1001]), 64, 64, small), Err(InflateError::TooLarge { max: 1000 }));
        assert!(inflate(&gzip(&[b'x'; 1000]), 64, 64, small).is_ok());
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out_whatever_the_pieces(
            plain in proptest::collection::vec(0u8..8, 0..3000), piece in 1usize..200, room in 1usize..200,
        ) {
            prop_assert_eq!(inflate(&gzip(&plain), piece, room, LIMITS), Ok(plain));
        }

        #[test]
        fn garbage_never_panics(garbage in proptest::collection::vec(any::<u8>(), 0..200), piece in 1usize..50) {
            let _ = inflate(&garbage, piece, 16, LIMITS);
            let _ = inflate(&[&[0x1f, 0x8b, 8], garbage.as_slice()].concat(), piece, 16, LIMITS);
        }
    }
}
