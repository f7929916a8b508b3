//! Reads what has been appended: whole pages, proved by their checksums.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf, sync::Arc};

use harvester_actors::{
    failure::Failure,
    page::{FrameRange, PageRef, RECORD_HEADER_BYTES, record_lengths},
};

use super::{
    disk::io_failure,
    frame::{FrameCrc, FrameHeader, FrameKind, HEADER_BYTES, PageMeta, TRAILER_BYTES},
    spool::{CHUNK_BYTES, damage},
};

/// One row in the spool.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    /// Where its record begins.
    pub(crate) at: u64,
    /// What its stream is ordered by.
    pub(crate) key: &'a [u8],
}

/// Reads pages that have been appended; holds its own handle, so that a discard does not disturb it.
#[derive(Clone, Debug)]
pub(crate) struct SpoolReader {
    /// The log.
    pub(crate) file: Arc<File>,
    /// Its name, for failures.
    pub(crate) path: PathBuf,
    /// What its checksums begin with.
    pub(crate) seed: u32,
    /// How long it was when the reader was made.
    pub(crate) len: u64,
}

impl SpoolReader {
    /// Hands each record of a page to `visit`, in the page's order.
    ///
    /// The checksum covers the whole frame and is known after its last record only: what `visit` has made of the
    /// records must be thrown away when this fails. `buffer` is scratch space, kept between pages.
    ///
    /// # Errors
    /// `Damaged` when the spool does not hold this page; `Local` when it cannot be read; what `visit` returns.
    pub(crate) fn page(
        &self,
        page: &PageRef,
        buffer: &mut Vec<u8>,
        mut visit: impl FnMut(Record<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let FrameRange { from, to } = page.frame;
        let bad = |at: u64, what: &str| damage(&self.path, at, what);
        if to > self.len || to.saturating_sub(from) < (HEADER_BYTES + TRAILER_BYTES) as u64 {
            return Err(bad(from, "the checkpoint knows an entry there that the spool does not have"));
        }
        let body_end = to - TRAILER_BYTES as u64;
        if buffer.len() < CHUNK_BYTES {
            buffer.resize(CHUNK_BYTES, 0);
        }
        // `buffer[..filled]` are the bytes from `base` on; `pos` is how far they are used up.
        let (mut base, mut filled, mut pos) = (from, 0, 0);
        let fill = |buffer: &mut Vec<u8>, base: u64, filled: &mut usize| {
            let left = body_end - (base + *filled as u64);
            let part = (buffer.len() - *filled).min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.file.read_exact_at(&mut buffer[*filled..*filled + part], base + *filled as u64);
            *filled += part;
            read.map_err(|error| io_failure("read", &self.path, &error))
        };

        fill(buffer, base, &mut filled)?;
        let header_bytes = buffer.first_chunk::<HEADER_BYTES>().filter(|_| filled >= HEADER_BYTES);
        let Some((header_bytes, header)) = header_bytes.and_then(|bytes| {
            let header = FrameHeader::decode(bytes, self.seed, from).ok()?;
            (header.kind == FrameKind::Page && header.frame_len() == Some(to - from)).then_some((*bytes, header))
        }) else {
            return Err(bad(from, "there is no page where the checkpoint knows one"));
        };
        let meta_end = HEADER_BYTES + header.meta_len as usize;
        if meta_end > filled {
            buffer.resize(buffer.len().max(meta_end), 0);
            fill(buffer, base, &mut filled)?;
        }
        let mut crc = FrameCrc::begin(self.seed, &header_bytes);
        crc.update(&buffer[HEADER_BYTES..filled]);
        let meta: Option<PageMeta> = serde_json::from_slice(&buffer[HEADER_BYTES..meta_end]).ok();
        if !meta.is_some_and(|meta| meta.is_of(page)) {
            return Err(bad(from, "the page there is not the one that the checkpoint knows"));
        }

        pos += meta_end;
        let mut records = 0;
        loop {
            let left = body_end - (base + pos as u64);
            let ready = filled - pos;
            let need = match buffer[pos..filled].first_chunk::<RECORD_HEADER_BYTES>() {
                Some(lengths) => {
                    let (row_len, key_len) = record_lengths(*lengths);
                    let need = RECORD_HEADER_BYTES + key_len + row_len;
                    if need as u64 > left {
                        return Err(bad(base + pos as u64, "a row is longer than its page"));
                    }
                    if need <= ready {
                        let key = &buffer[pos + RECORD_HEADER_BYTES..][..key_len];
                        visit(Record { at: base + pos as u64, key })?;
                        records += 1;
                        pos += need;
                        continue;
                    }
                    need
                }
                None if left == 0 => break,
                None if left < RECORD_HEADER_BYTES as u64 => {
                    return Err(bad(base + pos as u64, "a row is longer than its page"));
                }
                None => RECORD_HEADER_BYTES,
            };
            buffer.copy_within(pos..filled, 0);
            (base, filled, pos) = (base + pos as u64, ready, 0);
            if buffer.len() < need {
                buffer.resize(need, 0);
            }
            fill(buffer, base, &mut filled)?;
            crc.update(&buffer[ready..filled]);
        }
        let mut trailer = [0; TRAILER_BYTES];
        self.file.read_exact_at(&mut trailer, body_end).map_err(|error| io_failure("read", &self.path, &error))?;
        if trailer != crc.trailer(to - from) {
            return Err(bad(from, "the page does not fit its checksum"));
        }
        if records != page.counts.kept {
            return Err(bad(from, &format!("the page holds {records} rows and says {}", page.counts.kept)));
        }
        Ok(())
    }
}
