//! Turns an answer into bytes: length or chunks, compressed or not, with the places at which faults cut.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest, Md5};

use crate::answer::{Answer, reason};
use crate::clock;
use crate::request::Request;

/// How the end of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Framing {
    /// `Content-Length`.
    #[default]
    Length,
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The connection closes.
    Close,
}

/// A place in a body as it goes over the wire, framing included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Place {
    /// Before this byte, from 0.
    Byte(usize),
    /// At this share of the whole, 0 to 1.
    Fraction(f64),
    /// So many bytes before the end.
    FromEnd(usize),
    /// In the middle of the data of this chunk, from 0; of the last one if there are fewer.
    InsideChunk(usize),
    /// Right behind this chunk, before the next one's size line.
    BetweenChunks(usize),
    /// Within the size line of this chunk.
    InSizeLine(usize),
    /// Before the empty chunk that ends the body.
    BeforeLastChunk,
}

#[derive(Debug, Clone, Copy)]
struct Chunk {
    size_line: usize,
    data: usize,
    end: usize,
}

/// How an answer becomes bytes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manner {
    pub(crate) framing: Framing,
    pub(crate) gzip: Gzip,
    pub(crate) chunk_bytes: usize,
    pub(crate) closes: bool,
    /// How wrong the clock is that `Date` shows.
    pub(crate) skew_ms: i64,
}

/// What compression does to an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Gzip {
    #[default]
    Off,
    /// As a reverse proxy does it.
    Honest,
    BadCrc,
    NoTrailer,
    /// Several members one after the other: legal.
    MultiMember,
    /// The header says gzip, the body is plain.
    HeaderOnly,
    /// So many blanks inside the JSON.
    Bomb(u64),
}

/// An answer as bytes.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
    chunks: Vec<Chunk>,
    /// The connection ends behind it.
    pub(crate) closes: bool,
    pub(crate) status: u16,
}

/// Compresses in one member.
pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to a Vec does not fail.
    let _ = encoder.write_all(plain);
    encoder.finish().unwrap_or_default()
}

fn bomb(plain: &[u8], blanks: u64) -> Vec<u8> {
    let at = usize::from(!plain.is_empty());
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let _ = encoder.write_all(&plain[..at]);
    let block = vec![b' '; 64 * 1024];
    let mut left = blanks;
    while left > 0 {
        let step = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        let _ = encoder.write_all(&block[..step]);
        left -= u64::try_from(step).unwrap_or(left);
    }
    let _ = encoder.write_all(&plain[at..]);
    encoder.finish().unwrap_or_default()
}

/// Applies compression; true when the body is now marked as compressed.
fn compress(body: &mut Vec<u8>, gzip_as: &Gzip) -> bool {
    match gzip_as {
        Gzip::Off => return false,
        Gzip::HeaderOnly => {}
        Gzip::Honest => *body = gzip(body),
        Gzip::BadCrc => {
            *body = gzip(body);
            let crc = body.len() - 8;
            body[crc] ^= 0xff;
        }
        Gzip::NoTrailer => {
            *body = gzip(body);
            body.truncate(body.len() - 8);
        }
        Gzip::MultiMember => {
            let third = body.len() / 3;
            let parts = [&body[..third], &body[third..2 * third], &body[2 * third..]];
            *body = parts.iter().flat_map(|part| gzip(part)).collect();
        }
        Gzip::Bomb(blanks) => *body = bomb(body, *blanks),
    }
    true
}

/// `"0<md5 hex>"`, as the server's filter writes it.
pub(crate) fn etag(body: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("\"0");
    for byte in Md5::digest(body) {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('"');
    text
}

fn matches_etag(header: &str, tag: &str) -> bool {
    header.trim() == "*" || header.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)
}

impl Encoded {
    pub(crate) fn new(mut answer: Answer, request: &Request, manner: &Manner) -> Self {
        let mut extra: Vec<(String, String)> = Vec::new();
        let compressible = answer.content_type.as_deref().is_some_and(|kind| {
            kind.starts_with("application/json;") || kind == "application/json" || kind.starts_with("text/")
        });
        let gzip_as = match &manner.gzip {
            Gzip::Honest if !compressible || answer.body.len() < 20 || !request.accepts_gzip() => &Gzip::Off,
            other => other,
        };
        if request.method == "GET" && answer.has_etag() && !answer.body.is_empty() {
            let tag = etag(&answer.body);
            if request.header("if-none-match").is_some_and(|header| matches_etag(header, &tag)) {
                answer.status = 304;
                answer.body.clear();
                answer.content_type = None;
            }
            let weak = if *gzip_as == Gzip::Off { "" } else { "W/" };
            extra.push(("ETag".into(), format!("{weak}{tag}")));
        }
        let bodiless = answer.status == 304;
        if !bodiless && compress(&mut answer.body, gzip_as) {
            extra.push(("Content-Encoding".into(), "gzip".into()));
            extra.push(("Vary".into(), "Accept-Encoding".into()));
        }
        let framing = match manner.framing {
            Framing::Length if answer.streamed || *gzip_as == Gzip::Honest => Framing::Chunked,
            other => other,
        };
        let closes = manner.closes || answer.closes || (framing == Framing::Close && !bodiless);
        let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
        let mut line = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        line("Date", &clock::http_date(clock::wall_ms() + manner.skew_ms));
        if let Some(kind) = &answer.content_type {
            line("Content-Type", kind);
        }
        for (name, value) in answer.headers.iter().chain(&extra) {
            line(name, value);
        }
        if bodiless {
        } else if framing == Framing::Length {
            line("Content-Length", &answer.body.len().to_string());
        } else if framing == Framing::Chunked {
            line("Transfer-Encoding", "chunked");
        }
        line("Connection", if closes { "close" } else { "keep-alive" });
        head.push_str("\r\n");
        let mut encoded =
            Self { head: head.into_bytes(), body: answer.body, chunks: Vec::new(), closes, status: answer.status };
        if request.method == "HEAD" {
            encoded.body.clear();
        } else if framing == Framing::Chunked && !bodiless {
            encoded.cut_into_chunks(manner.chunk_bytes.max(1));
        }
        encoded
    }

    fn cut_into_chunks(&mut self, chunk_bytes: usize) {
        let plain = std::mem::take(&mut self.body);
        self.body.reserve(plain.len() + plain.len() / chunk_bytes * 8 + 16);
        for piece in plain.chunks(chunk_bytes) {
            let size_line = self.body.len();
            self.body.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            let data = self.body.len();
            self.body.extend_from_slice(piece);
            self.chunks.push(Chunk { size_line, data, end: self.body.len() });
            self.body.extend_from_slice(b"\r\n");
        }
        self.body.extend_from_slice(b"0\r\n\r\n");
    }

    /// Where a place is in this body: at most one byte short of its end.
    pub(crate) fn offset(&self, place: Place) -> usize {
        let last = self.body.len().saturating_sub(1);
        let chunk = |number: usize| self.chunks.get(number.min(self.chunks.len().saturating_sub(1)));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a length"
        )]
        let at = match place {
            Place::Byte(byte) => byte,
            Place::Fraction(share) => (self.body.len() as f64 * share.clamp(0.0, 1.0)) as usize,
            Place::FromEnd(bytes) => self.body.len().saturating_sub(bytes.max(1)),
            Place::InsideChunk(number) => {
                chunk(number).map_or(last / 2, |chunk| usize::midpoint(chunk.data, chunk.end))
            }
            Place::BetweenChunks(number) => chunk(number).map_or(last / 2, |chunk| chunk.end + 2),
            Place::InSizeLine(number) => chunk(number).map_or(last / 2, |chunk| chunk.size_line + 1),
            Place::BeforeLastChunk => self.chunks.last().map_or(last, |chunk| chunk.end + 2),
        };
        at.min(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(framing: Framing, body: &[u8]) -> Encoded {
        let answer = Answer::json(200, body.to_vec());
        let request = Request::new("GET", "/api/x", vec![("accept-encoding".into(), "gzip".into())], "");
        Encoded::new(answer, &request, &Manner { framing, chunk_bytes: 10, ..Manner::default() })
    }

    #[test]
    fn places_lie_where_their_names_say() {
        let chunked = encoded(Framing::Chunked, b"0123456789abcdefghijXYZ");
        let at = |place| String::from_utf8_lossy(&chunked.body[..chunked.offset(place)]).into_owned();
        assert_eq!(at(Place::InsideChunk(0)), "a\r\n01234");
        assert_eq!(at(Place::BetweenChunks(0)), "a\r\n0123456789\r\n");
        assert_eq!(at(Place::InSizeLine(1)), "a\r\n0123456789\r\na");
        assert_eq!(at(Place::BeforeLastChunk), "a\r\n0123456789\r\na\r\nabcdefghij\r\n3\r\nXYZ\r\n");
        assert_eq!(at(Place::FromEnd(1)).len(), chunked.body.len() - 1);
        assert_eq!(at(Place::Byte(10_000)).len(), chunked.body.len() - 1);
        let plain = encoded(Framing::Length, b"0123456789");
        assert_eq!(plain.offset(Place::Fraction(0.5)), 5);
        assert_eq!(plain.offset(Place::Fraction(1.0)), 9);
    }

    #[test]
    fn an_etag_is_a_zero_and_the_md5_of_the_plain_body() {
        assert_eq!(etag(b"abc"), "\"0900150983cd24fb0d6963f7d28e17f72\"");
        let plain = String::from_utf8(encoded(Framing::Length, b"abc").head).unwrap();
        assert!(plain.contains("ETag: \"0900150983cd24fb0d6963f7d28e17f72\"\r\n"), "{plain}");
        let answer = Answer::json(200, vec![b'a'; 100]);
        let request = Request::new("GET", "/api/x", vec![("accept-encoding".into(), "gzip".into())], "");
        let manner = Manner { gzip: Gzip::Honest, chunk_bytes: 4096, ..Manner::default() };
        let head = String::from_utf8(Encoded::new(answer, &request, &manner).head).unwrap();
        assert!(head.contains("ETag: W/\"0") && head.contains("Transfer-Encoding: chunked"), "{head}");
    }

    #[test]
    fn an_answer_that_was_seen_before_has_no_body() {
        for tag in [
            "\"0900150983cd24fb0d6963f7d28e17f72\"",
            "W/\"0900150983cd24fb0d6963f7d28e17f72\"",
            "\"x\", \"0900150983cd24fb0d6963f7d28e17f72\"",
        ] {
            let request = Request::new("GET", "/api/x", vec![("if-none-match".into(), tag.into())], "");
            let encoded = Encoded::new(Answer::json(200, b"abc".to_vec()), &request, &Manner::default());
            assert_eq!((encoded.status, encoded.body.len()), (304, 0), "{tag}");
        }
    }
}
