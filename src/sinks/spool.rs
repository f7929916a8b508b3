//! The spool: one append-only log per run that decides what has been fetched.
//!
//! ```text
//! <state>/<job>/spool/                     0700
//!   20260101T000000Z.log                   0600; the run's frames (see `frame.rs`), in the order in which pages arrived:
//!     ┌─────────────┬────────────────┬────────────────┬──────────────────┬────────────────┬╌╌╌╌╌╌╌╌╌╌╌
//!     │ run header  │ page: part. 0, │ page: part. 3, │ partitions the   │ page: part. 0, │ torn tail,
//!     │ (job)       │ piece of plan  │ seq 0, records │ (or of the plan) │ seq 1, records │ if any
//!     └─────────────┴────────────────┴────────────────┴──────────────────┴────────────────┴╌╌╌╌╌╌╌╌╌╌╌
//!   20260101T000000Z.log.new               while a run is planned; never read
//! ```
//!
//! A log gets its name when its whole plan is durable and those of earlier runs are removed, so there is one log at most;
//! should a second one have been put beside it, the one with the greatest name counts.
//!
//! An append writes at the end that is known, body first and header last; if it fails (a full disk), the known end stays
//! and the next append writes over what is left of it. A sync that fails is final: what the kernel then has of the
//! unsynced pages is unknown, and a second sync would claim success.
//!
//! A recovery reads frames until one is not complete. If a valid header after that place says that the place had been
//! durable, the bytes are damaged and the spool is refused; else it is the tail that a kill or a power cut tore off, and
//! it is cut: every frame after it was younger than the last sync. The first header says so of the whole plan, so that a
//! plan is never taken for a shorter one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use harvester_actors::{
    checkpoint::{RunHeader, SpoolEntry},
    failure::{Failure, FailureClass},
    page::{FrameRange, Page, PageBody, Reject, Span},
    partition::{Partition, PartitionId, PlanPiece},
    sink::Recovered,
};

use super::{
    disk::{self, damaged, io_failure},
    frame::{self, FrameCrc, FrameHeader, FrameKind, HEADER_BYTES, HeaderError, MAGIC, PageMeta, TRAILER_BYTES},
    names,
    prepared::SUFFIX,
    reader::SpoolReader,
};

/// Bytes that are read or copied at a time: what fits a core's cache beside its copy.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;

/// What is left to do about a damaged spool.
const START_OVER: &str = "what was fetched cannot be trusted any more: run it again with `--restart`";

/// The spool of one job.
#[derive(Debug)]
pub(crate) struct SpoolLog {
    /// Where the logs are.
    dir: PathBuf,
    /// The run that is being written.
    log: Mutex<Option<Log>>,
}

/// An open log.
#[derive(Debug)]
struct Log {
    /// The file; appends and syncs use it at the same time.
    file: Arc<File>,
    /// Its name.
    path: PathBuf,
    /// The run.
    run_id: String,
    /// What its checksums begin with.
    seed: u32,
    /// Where the next frame goes.
    len: u64,
    /// How many bytes are known to be on the disk.
    durable: u64,
    /// Why nothing can be written any more.
    lost: Option<Failure>,
}

impl SpoolLog {
    /// The spool in this folder, which need not exist yet.
    pub(crate) fn new(dir: PathBuf) -> Self {
        SpoolLog { dir, log: Mutex::new(None) }
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// See `Spool::recover`.
    pub(crate) fn recover(
        &self,
        from_offset: u64,
        visit: &mut dyn FnMut(SpoolEntry) -> Result<(), Failure>,
    ) -> Result<Option<Recovered>, Failure> {
        for path in self.logs_newest_first()? {
            let Some((log, header, first)) = open_log(path)? else { continue };
            // Its name too is durable before it is handed out.
            disk::sync_dir(&self.dir).map_err(|error| io_failure("sync", &self.dir, &error))?;
            let (log, recovered) = read_log(log, header, first, from_offset, visit)?;
            *self.lock() = Some(log);
            return Ok(Some(recovered));
        }
        if from_offset > 0 {
            return Err(damaged(format!(
                "the checkpoint knows {from_offset} bytes of a spool, but there is none in `{}`",
                self.dir.display()
            ))
            .with_next(START_OVER));
        }
        Ok(None)
    }

    /// See `Spool::begin`.
    pub(crate) fn begin(&self, header: &RunHeader) -> Result<FrameRange, Failure> {
        if names::file_stem(&header.run_id) != header.run_id {
            return Err(Failure::new(FailureClass::Bug, "the run's id cannot be a file name"));
        }
        harvester_actors::crash_point!("spool.begin.before");
        let mut state = self.lock();
        *state = None;
        disk::create_dirs(&self.dir).map_err(|error| io_failure("create", &self.dir, &error))?;
        let new = self.dir.join(format!("{}.log.new", header.run_id));
        let mut log = Log {
            file: Arc::new(disk::recreate(&new).map_err(|error| io_failure("create", &new, &error))?),
            path: new,
            run_id: header.run_id.clone(),
            seed: frame::seed_of(&header.run_id),
            len: 0,
            durable: 0,
            lost: None,
        };
        let frame = log.append(FrameKind::Run, &to_json(header)?, &PageBody::Memory(Vec::new()))?;
        *state = Some(log);
        Ok(frame)
    }

    /// See `Spool::extend_plan`.
    pub(crate) fn extend_plan(&self, piece: &PlanPiece) -> Result<FrameRange, Failure> {
        let mut state = self.lock();
        open(&mut state)?.append(FrameKind::Piece, &to_json(piece)?, &PageBody::Memory(Vec::new()))
    }

    /// See `Spool::commit_plan`.
    pub(crate) fn commit_plan(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        let log = open(&mut state)?;
        let (new, path) = (log.path.clone(), self.dir.join(format!("{}.log", log.run_id)));
        if harvester_pacing::control!("plan-end") {
            log.mark_planned().map_err(|error| io_failure("write", &new, &error))?;
        }
        harvester_actors::crash_point!("spool.begin.written");
        log.file.sync_all().map_err(|error| io_failure("sync", &new, &error))?;
        log.durable = log.len;
        harvester_actors::crash_point!("spool.begin.synced");
        // Earlier runs go, durably, before this one gets its name: two logs would need a rule which one counts.
        for old in self.files()?.into_iter().filter(|old| *old != new && *old != path) {
            disk::remove_if_exists(&old).map_err(|error| io_failure("remove", &old, &error))?;
        }
        disk::sync_dir(&self.dir).map_err(|error| io_failure("sync", &self.dir, &error))?;
        harvester_actors::crash_point!("spool.begin.cleared");
        fs::rename(&new, &path).map_err(|error| io_failure("rename", &new, &error))?;
        harvester_actors::crash_point!("spool.begin.renamed");
        disk::sync_dir(&self.dir).map_err(|error| io_failure("sync", &self.dir, &error))?;
        harvester_actors::crash_point!("spool.begin.after");
        log.path = path;
        Ok(())
    }

    /// See `Spool::append`.
    pub(crate) fn append(&self, page: Page, first_child: PartitionId) -> Result<Span, Failure> {
        let mut state = self.lock();
        let log = open(&mut state)?;
        let Page { partition, pass, seq, next, halvings, counts, rejects, children, body } = page;
        let children = (first_child.0..).zip(children).map(|(id, child)| child.at(PartitionId(id))).collect();
        let frame = FrameRange::default();
        let meta = PageMeta::of(Span { partition, pass, seq, next, halvings, counts, rejects, children, frame });
        let frame = log.append(FrameKind::Page, &to_json(&meta)?, &body)?;
        Ok(meta.into_span(frame))
    }

    /// See `Spool::partitions`.
    pub(crate) fn partitions(&self, frame: FrameRange) -> Result<Vec<Partition>, Failure> {
        match self.entry(frame)? {
            SpoolEntry::Planned { piece, .. } => Ok(piece.partitions),
            SpoolEntry::Page(span) => Ok(span.children),
            SpoolEntry::Begun { .. } => Ok(Vec::new()),
        }
    }

    /// See `Spool::rejects`.
    pub(crate) fn rejects(&self, frame: FrameRange) -> Result<Vec<Reject>, Failure> {
        match self.entry(frame)? {
            SpoolEntry::Page(span) => Ok(span.rejects),
            SpoolEntry::Planned { .. } | SpoolEntry::Begun { .. } => Ok(Vec::new()),
        }
    }

    /// The entry at this place, checked as a whole.
    fn entry(&self, frame: FrameRange) -> Result<SpoolEntry, Failure> {
        let SpoolReader { file, path, seed, len } = self.reader()?;
        let unknown = || damage(&path, frame.from, "the checkpoint knows an entry there that the spool does not have");
        if frame.from >= frame.to || frame.to > len {
            return Err(unknown());
        }
        let checked =
            check_frame(&file, seed, frame.from, frame.to).map_err(|error| io_failure("read", &path, &error))?;
        let Some((header, meta)) = checked.filter(|(header, _)| header.frame_len() == Some(frame.to - frame.from))
        else {
            return Err(unknown());
        };
        read_entry(&header, &meta, frame)
            .map_err(|error| damage(&path, frame.from, &format!("the entry is whole but cannot be read: {error}")))
    }

    /// See `Spool::sync`.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        let (file, path, len) = {
            let mut state = self.lock();
            let log = open(&mut state)?;
            if let Some(lost) = &log.lost {
                return Err(lost.clone());
            }
            if log.durable == log.len {
                return Ok(());
            }
            (Arc::clone(&log.file), log.path.clone(), log.len)
        };
        harvester_actors::crash_point!("spool.sync.before");
        // Without the lock: appends go on, and what they add is not promised.
        let synced = file.sync_data();
        harvester_actors::crash_point!("spool.sync.after");
        let mut state = self.lock();
        let log = open(&mut state)?;
        match synced {
            Ok(()) => {
                log.durable = log.durable.max(len);
                Ok(())
            }
            Err(error) => {
                let failure = io_failure("sync", &path, &error);
                log.lost = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// See `Spool::discard`.
    pub(crate) fn discard(&self) -> Result<(), Failure> {
        *self.lock() = None;
        harvester_actors::crash_point!("spool.discard.before");
        let files = self.files()?;
        if files.is_empty() {
            return Ok(());
        }
        for path in files {
            disk::remove_if_exists(&path).map_err(|error| io_failure("remove", &path, &error))?;
        }
        harvester_actors::crash_point!("spool.discard.removed");
        disk::sync_dir(&self.dir).map_err(|error| io_failure("sync", &self.dir, &error))
    }

    /// Reads the pages that have been appended so far.
    pub(crate) fn reader(&self) -> Result<SpoolReader, Failure> {
        let mut state = self.lock();
        let log = open(&mut state)?;
        Ok(SpoolReader { file: Arc::clone(&log.file), path: log.path.clone(), seed: log.seed, len: log.len })
    }

    /// The state; no step leaves it half changed, so a panic in between does not matter.
    fn lock(&self) -> MutexGuard<'_, Option<Log>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every file of a spool in the folder.
    fn files(&self) -> Result<Vec<PathBuf>, Failure> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_failure("list", &self.dir, &error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| io_failure("list", &self.dir, &error))?;
            if entry
                .file_name()
                .to_str()
                .is_some_and(|name| [".log", ".log.new", SUFFIX].iter().any(|end| name.ends_with(end)))
            {
                files.push(entry.path());
            }
        }
        Ok(files)
    }

    /// The logs that have their name, the greatest name first.
    fn logs_newest_first(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut logs = self.files()?;
        logs.retain(|path| path.extension().is_some_and(|suffix| suffix == "log"));
        logs.sort_unstable();
        logs.reverse();
        Ok(logs)
    }
}

impl Log {
    /// Writes one frame at the known end, and moves the end after it once all of it is written.
    fn append(&mut self, kind: FrameKind, meta: &[u8], body: &PageBody) -> Result<FrameRange, Failure> {
        if let Some(lost) = &self.lost {
            return Err(lost.clone());
        }
        harvester_actors::crash_point!("spool.append.before");
        match self.write(kind, meta, body) {
            Ok(to) => {
                let frame = FrameRange { from: self.len, to };
                self.len = to;
                harvester_actors::crash_point!("spool.append.after");
                Ok(frame)
            }
            Err(error) => {
                // Gives the space back at once; if that fails too, the next append writes over it.
                let _ = self.file.set_len(self.len);
                Err(io_failure("append to", &self.path, &error))
            }
        }
    }

    /// Writes into the first header how far the plan goes. No process reads the log before it has its name, so this may overwrite.
    fn mark_planned(&self) -> io::Result<()> {
        let mut bytes = [0; HEADER_BYTES];
        self.file.read_exact_at(&mut bytes, 0)?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let header = FrameHeader::decode(&bytes, self.seed, 0).map_err(|_| invalid())?;
        let frame_len = header.frame_len().ok_or_else(invalid)?;
        let mut meta = vec![0; header.meta_len as usize];
        self.file.read_exact_at(&mut meta, HEADER_BYTES as u64)?;
        let bytes = FrameHeader { durable: self.len, ..header }.encode(self.seed, 0);
        let mut crc = FrameCrc::begin(self.seed, &bytes);
        crc.update(&meta);
        self.file.write_all_at(&bytes, 0)?;
        self.file.write_all_at(&crc.trailer(frame_len), frame_len - TRAILER_BYTES as u64)
    }

    /// Writes the parts of a frame, the header last; the end offset.
    fn write(&self, kind: FrameKind, meta: &[u8], body: &PageBody) -> io::Result<u64> {
        let from = self.len;
        let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "the entry is too long");
        let meta_len = u32::try_from(meta.len()).map_err(|_| too_long())?;
        let header = FrameHeader { kind, meta_len, body_len: body.len(), durable: self.durable };
        let frame_len = header.frame_len().ok_or_else(too_long)?;
        let to = from.checked_add(frame_len).ok_or_else(too_long)?;
        let header = header.encode(self.seed, from);

        let mut crc = FrameCrc::begin(self.seed, &header);
        crc.update(meta);
        let mut at = from + (HEADER_BYTES + meta.len()) as u64;
        match body {
            PageBody::Memory(records) => {
                crc.update(records);
                self.file.write_all_at(records, at)?;
                at += records.len() as u64;
            }
            PageBody::Spilled { file, len } => {
                let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(*len).unwrap_or(CHUNK_BYTES))];
                let mut copied = 0;
                while copied < *len {
                    let part = buffer.len().min(usize::try_from(*len - copied).unwrap_or(buffer.len()));
                    file.read_exact_at(&mut buffer[..part], copied)?;
                    crc.update(&buffer[..part]);
                    self.file.write_all_at(&buffer[..part], at)?;
                    copied += part as u64;
                    at += part as u64;
                }
            }
        }
        harvester_actors::crash_point!("spool.append.body");
        self.file.write_all_at(&crc.trailer(frame_len), at)?;
        harvester_actors::crash_point!("spool.append.trailer");
        let mut begin = Vec::with_capacity(HEADER_BYTES + meta.len());
        begin.extend_from_slice(&header);
        begin.extend_from_slice(meta);
        self.file.write_all_at(&begin, from)?;
        harvester_actors::crash_point!("spool.append.head");
        Ok(to)
    }

    /// Bytes at this place are not what was written there.
    fn damage(&self, at: u64, what: &str) -> Failure {
        damage(&self.path, at, what)
    }
}

/// The open log of a state.
fn open(state: &mut Option<Log>) -> Result<&mut Log, Failure> {
    state.as_mut().ok_or_else(|| Failure::new(FailureClass::Bug, "no run has begun in this spool"))
}

/// Bytes at this place of the spool are not what was written there.
pub(crate) fn damage(path: &Path, at: u64, what: &str) -> Failure {
    damaged(format!("`{}` is damaged at byte {at}: {what}", path.display())).with_next(START_OVER)
}

/// Serialises a meta.
fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, Failure> {
    // Fails for maps with keys that are no strings only; the vocabulary has none.
    serde_json::to_vec(value)
        .map_err(|error| Failure::new(FailureClass::Bug, format!("cannot be written as JSON: {error}")))
}

/// Opens a log and reads its first frame; `None` when the file ends before that frame does: no run ever began in it.
fn open_log(path: PathBuf) -> Result<Option<(Log, RunHeader, FrameRange)>, Failure> {
    let io = |error: io::Error| io_failure("read", &path, &error);
    let file = disk::open_to_write(&path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let run_id = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
    let seed = frame::seed_of(&run_id);
    if len < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(io)?;
    let frame_header = match FrameHeader::decode(&bytes, seed, 0) {
        Ok(frame_header) => frame_header,
        Err(HeaderError::Newer(version)) => {
            return Err(damaged(format!(
                "`{}` was written by a newer program (format {version}, this one knows {})",
                path.display(),
                frame::VERSION
            ))
            .with_next("resume with the newer program, or start over with `--restart`"));
        }
        Err(HeaderError::Invalid) => return Err(damage(&path, 0, "the run's header does not fit its checksum")),
    };
    let to = frame_header.frame_len().unwrap_or(u64::MAX);
    if to > len {
        return Ok(None);
    }
    let whole = check_frame(&file, seed, 0, len).map_err(io)?.filter(|(header, _)| header.kind == FrameKind::Run);
    let Some((_, meta)) = whole else {
        return Err(damage(&path, 0, "the run's header does not fit its checksum"));
    };
    let header: RunHeader = serde_json::from_slice(&meta)
        .map_err(|error| damage(&path, 0, &format!("the run's header cannot be read: {error}")))?;
    if header.run_id != run_id {
        return Err(damage(&path, 0, "it is another run's, renamed"));
    }
    let durable = frame_header.durable.max(to);
    let log = Log { file: Arc::new(file), path, run_id, seed, len: to, durable, lost: None };
    Ok(Some((log, header, FrameRange { from: 0, to })))
}

/// Reads the frames from `from_offset` on, and cuts a torn tail. Everything is durable before it is visited.
fn read_log(
    mut log: Log,
    header: RunHeader,
    first: FrameRange,
    from_offset: u64,
    visit: &mut dyn FnMut(SpoolEntry) -> Result<(), Failure>,
) -> Result<(Log, Recovered), Failure> {
    let path = log.path.clone();
    let io = |error: io::Error| io_failure("read", &path, &error);
    // A process that was killed left pages that only the kernel knows; the caller may record them as durable at once.
    log.file.sync_all().map_err(|error| io_failure("sync", &path, &error))?;
    let len = log.file.metadata().map_err(io)?.len();
    let mut at = first.to;
    if len < log.durable {
        return Err(log.damage(len, &format!("it ends there, but the run's plan goes on to byte {}", log.durable)));
    }
    if from_offset == 0 {
        visit(SpoolEntry::Begun { header, frame: first })?;
    } else {
        if from_offset > len {
            return Err(log.damage(len, &format!("it ends there, but {from_offset} bytes of it had been committed")));
        }
        if !ends_a_frame(&log, first, from_offset).map_err(io)? {
            return Err(log.damage(from_offset, "the last committed entry does not end there, or is not whole"));
        }
        at = from_offset;
    }
    while at < len {
        let Some((header, meta)) = check_frame(&log.file, log.seed, at, len).map_err(io)? else {
            if at < log.durable {
                return Err(log.damage(at, "a part of the run's plan does not fit its checksum"));
            }
            if let Some(later) = find_proof_of_damage(&log, at, len).map_err(io)? {
                return Err(log.damage(at, &format!("the entry at byte {later} was written after it had been synced")));
            }
            break;
        };
        // Lengths have been checked against the file's.
        let frame = FrameRange { from: at, to: at + header.frame_len().unwrap_or_default() };
        let unreadable = |error| log.damage(at, &format!("the entry is whole but cannot be read: {error}"));
        if header.kind == FrameKind::Run {
            return Err(log.damage(at, "a second run begins there"));
        }
        visit(read_entry(&header, &meta, frame).map_err(unreadable)?)?;
        at = frame.to;
    }
    harvester_actors::crash_point!("spool.recover.read");
    if at < len && !harvester_pacing::control!("torn-tail") {
        // What a log does that only appends: the torn bytes stay, and what comes next follows them.
        at = len;
    }
    if at < len {
        log.file.set_len(at).map_err(|error| io_failure("cut", &path, &error))?;
        harvester_actors::crash_point!("spool.recover.cut");
        log.file.sync_all().map_err(|error| io_failure("sync", &path, &error))?;
    }
    harvester_actors::crash_point!("spool.recover.synced");
    (log.len, log.durable) = (at, at);
    Ok((log, Recovered { len: at, cut_bytes: len - at }))
}

/// The entry of a frame that has been checked.
fn read_entry(header: &FrameHeader, meta: &[u8], frame: FrameRange) -> serde_json::Result<SpoolEntry> {
    Ok(match header.kind {
        FrameKind::Run => SpoolEntry::Begun { header: serde_json::from_slice(meta)?, frame },
        FrameKind::Piece => SpoolEntry::Planned { piece: serde_json::from_slice(meta)?, frame },
        FrameKind::Page => SpoolEntry::Page(serde_json::from_slice::<PageMeta>(meta)?.into_span(frame)),
    })
}

/// Whether a whole frame ends at this place.
fn ends_a_frame(log: &Log, first: FrameRange, at: u64) -> io::Result<bool> {
    if at <= first.to {
        return Ok(at == first.to);
    }
    if at - first.to < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Ok(false);
    }
    let mut trailer = [0; TRAILER_BYTES];
    log.file.read_exact_at(&mut trailer, at - TRAILER_BYTES as u64)?;
    let Some(from) = at.checked_sub(frame::trailer_len(&trailer)).filter(|from| *from >= first.to) else {
        return Ok(false);
    };
    let frame = check_frame(&log.file, log.seed, from, at)?;
    Ok(frame.is_some_and(|(header, _)| header.frame_len() == Some(at - from)))
}

/// FrameHeader and meta of the frame at `from`, when all of it lies before `end` and fits its checksums.
///
/// The body goes through the checksum in pieces.
fn check_frame(file: &File, seed: u32, from: u64, end: u64) -> io::Result<Option<(FrameHeader, Vec<u8>)>> {
    let room = end - from;
    if room < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, from)?;
    let Ok(header) = FrameHeader::decode(&bytes, seed, from) else { return Ok(None) };
    let Some(frame_len) = header.frame_len().filter(|len| *len <= room) else { return Ok(None) };
    let mut crc = FrameCrc::begin(seed, &bytes);
    let mut meta = vec![0; header.meta_len as usize];
    file.read_exact_at(&mut meta, from + HEADER_BYTES as u64)?;
    crc.update(&meta);
    let mut at = from + HEADER_BYTES as u64 + u64::from(header.meta_len);
    let body_end = at + header.body_len;
    let mut buffer = vec![0; CHUNK_BYTES.min(usize::try_from(header.body_len).unwrap_or(CHUNK_BYTES))];
    while at < body_end {
        let part = buffer.len().min(usize::try_from(body_end - at).unwrap_or(buffer.len()));
        file.read_exact_at(&mut buffer[..part], at)?;
        crc.update(&buffer[..part]);
        at += part as u64;
    }
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, at)?;
    Ok((trailer == crc.trailer(frame_len)).then_some((header, meta)))
}

/// The place of a valid header after `bad` that was written when the bytes at `bad` were already durable.
fn find_proof_of_damage(log: &Log, bad: u64, len: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut base = bad + 1;
    while base.saturating_add(HEADER_BYTES as u64) <= len {
        let part = buffer.len().min(usize::try_from(len - base).unwrap_or(buffer.len()));
        log.file.read_exact_at(&mut buffer[..part], base)?;
        let mut i = 0;
        while let Some(found) = buffer[i..part].iter().position(|byte| *byte == MAGIC[0]) {
            i += found;
            let Some(bytes) = buffer[i..part].first_chunk::<HEADER_BYTES>() else { break };
            let at = base + i as u64;
            if FrameHeader::decode(bytes, log.seed, at).is_ok_and(|header| header.durable > bad) {
                return Ok(Some(at));
            }
            i += 1;
        }
        // The next piece begins with what could be the front of a header.
        base += (part - (HEADER_BYTES - 1)) as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use harvester_actors::{
        page::PageRef,
        partition::{PassId, Yield},
    };

    use super::{
        super::conformance::{child, header, page, plan, spilled},
        *,
    };

    const RUN: &str = "20260101T000000Z";

    /// A small spool: its bytes, its entries, and how far it was durable when each was appended.
    struct Sample {
        bytes: Vec<u8>,
        entries: Vec<(SpoolEntry, FrameRange, u64)>,
    }

    /// How many entries of the sample are the plan.
    const PLANNED: usize = 2;

    /// A plan of one stream with two partitions.
    fn two_partitions() -> PlanPiece {
        plan(&["s"], &[(0, Yield::Rows, 2)])
    }

    /// Begins this run in this directory.
    fn begun(dir: &Path, run_id: &str) -> SpoolLog {
        let spool = SpoolLog::new(dir.to_path_buf());
        spool.begin(&header(run_id)).unwrap();
        spool.extend_plan(&two_partitions()).unwrap();
        spool.commit_plan().unwrap();
        spool
    }

    fn sample() -> Sample {
        let dir = tempfile::tempdir().unwrap();
        let spool = SpoolLog::new(dir.path().to_path_buf());
        let first = spool.begin(&header(RUN)).unwrap();
        let mut entries = vec![(SpoolEntry::Begun { header: header(RUN), frame: first }, first, 0)];
        let extend = |entries: &mut Vec<_>, piece: PlanPiece, durable| {
            let frame = spool.extend_plan(&piece).unwrap();
            entries.push((SpoolEntry::Planned { piece, frame }, frame, durable));
            frame.to
        };
        let append = |entries: &mut Vec<_>, page, durable| {
            let span = spool.append(page, PartitionId(2)).unwrap();
            let frame = span.frame;
            entries.push((SpoolEntry::Page(span), frame, durable));
            frame.to
        };
        let mut durable = extend(&mut entries, two_partitions(), 0);
        spool.commit_plan().unwrap();
        append(&mut entries, page(0, 0, &[("a", r#"{"id":"a"}"#), ("b", r#"{"id":"b"}"#)]), durable);
        durable = append(&mut entries, page(1, 0, &[]), durable);
        spool.sync().unwrap();
        append(&mut entries, spilled(page(1, 1, &[("c", r#"{"id":"c"}"#)])), durable);
        extend(&mut entries, plan(&[], &[(0, Yield::Keys, 0)]), durable);
        let children = vec![child(PassId(0), "part")];
        append(&mut entries, Page { children, ..page(0, 1, &[("d", r#"{"id":"d"}"#)]) }, durable);
        Sample { bytes: fs::read(dir.path().join(format!("{RUN}.log"))).unwrap(), entries }
    }

    /// Recovers a spool of these bytes; what it visited, and what it left of the file.
    fn recover(bytes: &[u8], from_offset: u64) -> (Result<Option<Recovered>, Failure>, Vec<SpoolEntry>, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{RUN}.log"));
        fs::write(&path, bytes).unwrap();
        let mut entries = Vec::new();
        let found = SpoolLog::new(dir.path().to_path_buf()).recover(from_offset, &mut |entry| {
            entries.push(entry);
            Ok(())
        });
        (found, entries, fs::read(path).unwrap())
    }

    #[test]
    fn a_spool_cut_at_any_length_is_its_whole_frames_and_no_more() {
        let Sample { bytes, entries } = sample();
        let (header_end, plan_end) = (entries[0].1.to, entries[PLANNED - 1].1.to);
        for cut in 0..=bytes.len() {
            let whole: Vec<_> = entries.iter().take_while(|(_, frame, _)| frame.to <= cut as u64).collect();
            let (found, visited, left) = recover(&bytes[..cut], 0);
            if (header_end..plan_end).contains(&(cut as u64)) {
                assert_eq!(found.unwrap_err().class, FailureClass::Damaged, "cut to {cut}: a shorter plan");
                assert_eq!(left.len(), cut, "a refused spool is left as it is");
                continue;
            }
            let expected: Vec<_> = whole.iter().map(|(entry, _, _)| entry.clone()).collect();
            assert_eq!(visited, expected, "cut to {cut}");
            match whole.last() {
                None => assert_eq!(found, Ok(None), "cut to {cut}"),
                Some((_, frame, _)) => {
                    let cut_bytes = cut as u64 - frame.to;
                    assert_eq!(found, Ok(Some(Recovered { len: frame.to, cut_bytes })), "cut to {cut}");
                    assert_eq!(left.len() as u64, frame.to, "cut to {cut}");
                }
            }
            // The store knew all of it.
            let (found, visited, left) = recover(&bytes[..cut], bytes.len() as u64);
            if cut < bytes.len() {
                assert_eq!(found.unwrap_err().class, FailureClass::Damaged, "cut to {cut}");
                assert_eq!(left.len(), cut, "a refused spool is left as it is");
            }
            assert!(visited.is_empty());
        }
    }

    #[test]
    fn a_plan_that_lost_its_end_is_damage_however_little_is_after_it() {
        let Sample { bytes, entries } = sample();
        let plan_end = usize::try_from(entries[PLANNED - 1].1.to).unwrap();
        // Nothing has been fetched, and the store is empty, or knows the header only.
        for from_offset in [0, entries[0].1.to] {
            let (found, visited, _) = recover(&bytes[..plan_end], from_offset);
            assert_eq!(found.unwrap().unwrap().len, plan_end as u64);
            assert_eq!(visited.last(), Some(&entries[PLANNED - 1].0));
            for at in (usize::try_from(entries[1].1.from).unwrap()..plan_end).step_by(5) {
                let mut flipped = bytes[..plan_end].to_vec();
                flipped[at] ^= 1;
                for damaged in [&flipped, &bytes[..at]] {
                    let (found, _, left) = recover(damaged, from_offset);
                    assert_eq!(found.unwrap_err().class, FailureClass::Damaged, "byte {at} from {from_offset}");
                    assert_eq!(left, damaged, "a refused spool is left as it is");
                }
            }
        }
    }

    #[test]
    fn a_flipped_byte_is_damage_where_it_had_been_durable_and_else_the_end_of_the_spool() {
        let Sample { bytes, entries } = sample();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= [1, 0x80, 0xFF][at % 3];
            let place = entries.iter().position(|(_, frame, _)| (at as u64) < frame.to).unwrap();
            let frame = entries[place].1;
            let was_durable =
                place < PLANNED || entries[place + 1..].iter().any(|(_, _, durable)| *durable > frame.from);
            let (found, visited, left) = recover(&bytes, 0);
            if was_durable {
                assert_eq!(found.unwrap_err().class, FailureClass::Damaged, "byte {at}");
                assert_eq!(left, bytes, "a refused spool is left as it is");
            } else {
                let cut_bytes = bytes.len() as u64 - frame.from;
                assert_eq!(found, Ok(Some(Recovered { len: frame.from, cut_bytes })), "byte {at}");
            }
            let expected: Vec<_> = entries[..visited.len()].iter().map(|(entry, _, _)| entry.clone()).collect();
            assert_eq!(visited, expected, "byte {at}");
            assert!(visited.len() <= place, "byte {at}: nothing of the frame or after it");
        }
    }

    #[test]
    fn a_page_with_a_flipped_byte_is_never_read_as_whole() {
        let Sample { bytes, entries } = sample();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{RUN}.log"));
        fs::write(&path, &bytes).unwrap();
        let file = disk::open_to_write(&path).unwrap();
        let reader = SpoolReader {
            file: Arc::new(disk::open_to_read(&path).unwrap()),
            path,
            seed: frame::seed_of(RUN),
            len: bytes.len() as u64,
        };
        let mut buffer = Vec::new();
        for (entry, frame, _) in &entries {
            let SpoolEntry::Page(span) = entry else { continue };
            let page = span.page_ref();
            reader.page(&page, &mut buffer, |_| Ok(())).unwrap();
            for at in frame.from..frame.to {
                let byte = bytes[usize::try_from(at).unwrap()];
                file.write_all_at(&[byte ^ 4], at).unwrap();
                let failure = reader.page(&page, &mut buffer, |_| Ok(())).unwrap_err();
                assert_eq!(failure.class, FailureClass::Damaged, "byte {at}");
                assert!(!failure.message.contains("{\""), "no row in {failure}");
                file.write_all_at(&[byte], at).unwrap();
            }
            type Change = fn(&mut PageRef);
            let changes: [Change; 5] = [
                |page| page.partition.0 += 1,
                |page| page.seq += 1,
                |page| page.counts.kept += 1,
                |page| page.frame.to += 1,
                |page| page.frame.from -= 1,
            ];
            for (place, change) in changes.iter().enumerate() {
                let mut other = page;
                change(&mut other);
                let failure = reader.page(&other, &mut buffer, |_| Ok(())).unwrap_err();
                assert_eq!(failure.class, FailureClass::Damaged, "change {place}");
            }
        }
    }

    #[test]
    fn pages_torn_out_of_order_by_a_power_cut_are_a_torn_tail() {
        let Sample { mut bytes, entries } = sample();
        // Of three unsynced frames the first never reached the disk, and the others did.
        let lost = entries[4].1;
        bytes[usize::try_from(lost.from).unwrap()..usize::try_from(lost.to).unwrap()].fill(0);
        let (found, visited, _) = recover(&bytes, 0);
        assert_eq!(found.unwrap().unwrap().len, lost.from);
        assert_eq!(visited.len(), 4);
        let (found, visited, _) = recover(&bytes, lost.from);
        assert_eq!(found.unwrap().unwrap().len, lost.from);
        assert_eq!(visited.len(), 0);
    }

    #[test]
    fn a_failed_append_leaves_a_spool_that_the_next_one_continues() {
        let dir = tempfile::tempdir().unwrap();
        let spool = begun(dir.path(), RUN);
        let append = |page| spool.append(page, PartitionId(2));
        let first = append(page(0, 0, &[("a", "{}")])).unwrap();
        let row = "x".repeat(3 * CHUNK_BYTES);
        let mut bad = spilled(page(0, 1, &[("b", &row)]));
        if let PageBody::Spilled { len, .. } = &mut bad.body {
            *len += 1000;
        }
        let failure = append(bad).unwrap_err();
        assert_eq!(failure.class, FailureClass::Local);
        assert!(failure.message.starts_with("cannot append to `"), "{failure}");
        let second = append(page(0, 1, &[("b", "{}")])).unwrap();
        assert_eq!(second.frame.from, first.frame.to);
        let mut pages = Vec::new();
        let recovered = SpoolLog::new(dir.path().to_path_buf()).recover(0, &mut |entry| {
            pages.extend(if let SpoolEntry::Page(span) = entry { Some(span) } else { None });
            Ok(())
        });
        assert_eq!((pages, recovered.unwrap().unwrap().cut_bytes), (vec![first, second], 0));
    }

    #[test]
    fn of_two_logs_the_greater_name_counts_and_a_beginning_that_was_not_finished_never_does() {
        let dir = tempfile::tempdir().unwrap();
        let log = |run: &str| {
            let dir = tempfile::tempdir().unwrap();
            begun(dir.path(), run);
            fs::read(dir.path().join(format!("{run}.log"))).unwrap()
        };
        let (old, new, newest) = ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z");
        fs::write(dir.path().join(format!("{old}.log")), log(old)).unwrap();
        fs::write(dir.path().join(format!("{new}.log")), log(new)).unwrap();
        fs::write(dir.path().join(format!("{newest}.log")), &log(newest)[..50]).unwrap();
        fs::write(dir.path().join("20260104T000000Z.log.new"), log("20260104T000000Z")).unwrap();
        let mut runs = Vec::new();
        let spool = SpoolLog::new(dir.path().to_path_buf());
        let found = spool.recover(0, &mut |entry| {
            runs.extend(if let SpoolEntry::Begun { header, .. } = entry { Some(header.run_id) } else { None });
            Ok(())
        });
        assert_eq!((found.unwrap().is_some(), runs), (true, vec![new.to_owned()]));

        fs::write(dir.path().join(format!("{newest}.log")), log(old)).unwrap();
        let failure = SpoolLog::new(dir.path().to_path_buf()).recover(0, &mut |_| Ok(())).unwrap_err();
        assert_eq!(failure.class, FailureClass::Damaged, "a renamed log is not what its name says");
    }

    #[test]
    fn a_plan_that_is_committed_removes_earlier_logs_and_records_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        begun(dir.path(), "20260101T000000Z").append(page(0, 0, &[]), PartitionId(2)).unwrap();
        for name in [
            "20260101T000000Z.s.ndjson.done",
            "20250101T000000Z.log",
            "20260104T000000Z.log.new",
            "20260105T000000Z.s.ndjson.done",
            "notes.txt",
            "log",
        ] {
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        let names = || {
            let names =
                fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort_unstable();
            names
        };
        let before = names();
        let spool = SpoolLog::new(dir.path().to_path_buf());
        spool.begin(&header("20260105T000000Z")).unwrap();
        spool.extend_plan(&two_partitions()).unwrap();
        let mut begun: Vec<_> = before.clone();
        begun.push("20260105T000000Z.log.new".to_owned());
        begun.sort_unstable();
        assert_eq!(names(), begun, "nothing is removed before the plan is complete");
        spool.commit_plan().unwrap();
        assert_eq!(names(), ["20260105T000000Z.log", "log", "notes.txt"]);
        spool.discard().unwrap();
        assert_eq!(names(), ["log", "notes.txt"]);
    }

    #[test]
    fn a_spool_of_a_newer_program_is_refused_and_says_so() {
        let Sample { mut bytes, .. } = sample();
        bytes[7] = frame::VERSION + 1;
        bytes[33] ^= 1;
        let (found, _, left) = recover(&bytes, 0);
        let failure = found.unwrap_err();
        assert_eq!(failure.class, FailureClass::Damaged);
        assert!(failure.next.unwrap().contains("newer program"));
        assert_eq!(left, bytes);
    }
}
