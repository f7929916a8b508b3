//! The checkpoint store on disk: what a commit has acknowledged survives a kill and a power cut, and damage is seen.
//!
//! ```text
//! <state>/<job>/checkpoint/      0700; one sled database per run
//!   conf  db  blobs/  snap.*     sled's own; 0600
//! <state>/<job>/checkpoint.old/  only while a new run replaces an old one
//! ```
//!
//! sled 0.34 does not fsync on Linux (`flush` is a `sync_file_range`; after power cuts it lost acknowledged commits or
//! came up empty). So one function writes, [`SledStore::commit_durable`], which syncs every file and folder of the database itself.
//!
//! sled may panic on damage, on open and later; it is called behind a guard. It may also come up with an older state,
//! or without some values: [`Progress`](super::format::Progress) says what the values must add up to, and a load reads all of
//! them. A state that is older and whole is no damage: the spool knows the rest.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError, mpsc},
    thread,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use harvester_actors::{
    checkpoint::{Batch, Checkpoint, PartitionState, RunHeader},
    checkpoint_store::CheckpointStore,
    failure::{Failure, FailureClass},
    page::Span,
    partition::{Partition, PartitionId},
    sink::{SpanIterator, SpanReader},
};
use sled::{Config, Db, Mode};
use tokio::task::spawn_blocking;

use super::format::{self, ENDED, Fault, HEADER, PROGRESS, Progress, plan_key, seal, span_key, state_key, unseal};

/// sled's page cache. The default is 1 GiB; 8 MiB of it were some 20 MiB of memory in a soak of 60,000 pages, and no faster.
const CACHE_BYTES: u64 = 1024 * 1024;

/// How often a lock that is held is asked for again, and how long between: five seconds in all, for loaded machines. (Half a
/// second was once too short in a test run; whether somebody else runs this job is decided by the state lock before.)
const LOCK_ASKED_MAX: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How long a flush may take before another is begun beside it, and how many are: two minutes in all, for a disk in trouble.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
const FLUSHES_MAX: u32 = 24;

/// What to do about a store that fails while the spool is whole.
const REBUILT: &str = "run the same command: the store is rebuilt from the spool";

/// A [`CheckpointStore`] in a folder. All its work happens on blocking threads.
#[derive(Debug)]
pub struct SledStore {
    dir: PathBuf,
    state: Mutex<State>,
}

/// Where the store stands.
#[derive(Debug)]
enum State {
    /// Nothing is open.
    Closed,
    /// The database is open.
    Open(Opened),
    /// It was not usable, or a commit failed: the same answer to everything, except that `begin` may start anew.
    Lost { failure: Failure, may_begin: bool },
}

/// An open database, with what is known of it.
#[derive(Clone, Debug)]
struct Opened {
    db: Db,
    /// The folder that was opened.
    folder: FolderId,
    /// The unfinished run.
    run_id: Option<String>,
    progress: Progress,
    partitions: BTreeMap<PartitionId, PartitionState>,
}

/// Device and inode of a folder: what is still the same after somebody has put another one in its place.
type FolderId = (u64, u64);

/// Which folder a path leads to.
fn folder_id(dir: &Path) -> io::Result<FolderId> {
    fs::metadata(dir).map(|found| (found.dev(), found.ino()))
}

impl State {
    /// Turns into another state. The database that is closed by it may write once more, and panic when it cannot: what it
    /// had acknowledged is on the disk, so there is nothing to say about that.
    fn become_quietly(&mut self, state: State) {
        let before = std::mem::replace(self, state);
        let _ = guarded(|| drop(before));
    }
}

impl Drop for SledStore {
    fn drop(&mut self) {
        self.lock().become_quietly(State::Closed);
    }
}

impl SledStore {
    /// A store in this folder, which need not exist; touches nothing yet.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        SledStore { dir: dir.into(), state: Mutex::new(State::Closed) }
    }

    /// The state; a step that panics leaves it as it was before.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See `CheckpointStore::load`.
    fn load_now(&self) -> Result<Option<Checkpoint>, Failure> {
        let mut state = self.lock();
        state.become_quietly(State::Closed);
        match fs::read_dir(&self.dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(local("read", &self.dir, &error)),
        }
        let loaded = guarded(|| {
            let db = open_db(&self.dir).map_err(|error| self.fault(error))?;
            let folder = folder_id(&self.dir).map_err(|error| local("read", &self.dir, &error))?;
            read_all(db, folder).map_err(|fault| self.damaged(fault))
        });
        match loaded.unwrap_or_else(|()| Err(self.damaged(Fault::Damaged("sled panicked over it".to_owned())))) {
            Ok((opened, checkpoint)) => {
                *state = State::Open(opened);
                Ok(checkpoint)
            }
            Err(failure) => {
                let may_begin = failure.class == FailureClass::Damaged && failure.next.is_none();
                *state = State::Lost { failure: failure.clone(), may_begin };
                Err(failure)
            }
        }
    }

    /// See `CheckpointStore::begin`.
    fn begin_now(&self, mut header: RunHeader, spool_len: u64) -> Result<(), Failure> {
        let mut state = self.lock();
        if let State::Lost { failure, may_begin: false } = &*state {
            return Err(failure.clone());
        }
        harvester_actors::crash_point!("store.begin.before");
        state.become_quietly(State::Closed);
        // A new database for every run: it stays small, and nothing of an older one, damaged or not, shines through.
        let old = self.dir.with_extension("old");
        let parent = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let io = |error: io::Error| local("write", &self.dir, &error);
        remove_dir(&old).map_err(|error| local("remove", &old, &error))?;
        match fs::rename(&self.dir, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(local("rename", &self.dir, &error)),
            _ => {}
        }
        harvester_actors::crash_point!("store.begin.moved");
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(io)?;
        let partitions = std::mem::take(&mut header.plan.partitions);
        let progress = Progress { spool_len, partitions: partitions.len() as u64, ..Progress::default() };
        let mut batch = sled::Batch::default();
        put(&mut batch, HEADER.to_vec(), &header)?;
        put(&mut batch, PROGRESS.to_vec(), &progress)?;
        for partition in &partitions {
            put(&mut batch, plan_key(partition.id), partition)?;
        }
        let (db, folder) = guarded(|| {
            let db = open_db(&self.dir).map_err(|error| self.lost(error))?;
            let folder = folder_id(&self.dir).map_err(io)?;
            self.commit_durable(&db, folder, batch)?;
            Ok((db, folder))
        })
        .unwrap_or_else(|()| Err(self.panicked()))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| local("sync", parent, &error))?;
        harvester_actors::crash_point!("store.begin.synced");
        remove_dir(&old).map_err(|error| local("remove", &old, &error))?;
        harvester_actors::crash_point!("store.begin.after");
        let run_id = Some(header.run_id);
        *state = State::Open(Opened { db, folder, run_id, progress, partitions: BTreeMap::new() });
        Ok(())
    }

    /// See `CheckpointStore::commit`.
    fn commit_now(&self, batch: Batch) -> Result<(), Failure> {
        let mut state = self.lock();
        let opened = self.opened(&mut state)?;
        if opened.run_id.is_none() {
            return Err(no_run());
        }
        let mut progress = opened.progress;
        let mut changed: BTreeMap<PartitionId, PartitionState> = BTreeMap::new();
        let mut writes = sled::Batch::default();
        for partition in &batch.grown {
            if u64::from(partition.id.0) != progress.partitions {
                return Err(bug(format!("partition {} does not follow the plan's last", partition.id)));
            }
            progress.partitions += 1;
            put(&mut writes, plan_key(partition.id), partition)?;
        }
        for span in &batch.spans {
            let known = || opened.partitions.get(&span.partition).cloned().unwrap_or_default();
            let state = changed.entry(span.partition).or_insert_with(known);
            let follows = span.seq == state.position.seq && !state.position.is_finished();
            if !follows || u64::from(span.partition.0) >= progress.partitions {
                return Err(bug(format!("page {} of partition {} is out of order", span.seq, span.partition)));
            }
            state.position.seq += 1;
            state.position.next = span.next.clone();
            state.counts.add(&span.counts);
            progress.pages += 1;
            progress.counts.add(&span.counts);
            progress.spool_len = progress.spool_len.max(span.frame.to);
            put(&mut writes, span_key(span.partition, span.seq), span)?;
        }
        for (partition, state) in &changed {
            put(&mut writes, state_key(*partition), state)?;
        }
        progress.spool_len = progress.spool_len.max(batch.spool_len);
        put(&mut writes, PROGRESS.to_vec(), &progress)?;
        let done = guarded(|| self.commit_durable(&opened.db, opened.folder, writes));
        match done.unwrap_or_else(|()| Err(self.panicked())) {
            Ok(()) => {
                opened.progress = progress;
                opened.partitions.append(&mut changed);
                Ok(())
            }
            Err(failure) => Err(lose(&mut state, failure)),
        }
    }

    /// See `CheckpointStore::end`.
    fn end_now(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        if matches!(*state, State::Closed) {
            return Ok(());
        }
        let opened = self.opened(&mut state)?;
        let Some(run_id) = opened.run_id.clone() else { return Ok(()) };
        harvester_actors::crash_point!("store.end.before");
        let mut writes = sled::Batch::default();
        writes.remove(HEADER);
        put(&mut writes, ENDED.to_vec(), &run_id)?;
        let done = guarded(|| self.commit_durable(&opened.db, opened.folder, writes));
        match done.unwrap_or_else(|()| Err(self.panicked())) {
            Ok(()) => {
                opened.run_id = None;
                harvester_actors::crash_point!("store.end.after");
                Ok(())
            }
            Err(failure) => Err(lose(&mut state, failure)),
        }
    }

    /// See `CheckpointStore::ended_run`.
    fn ended_run_now(&self) -> Result<Option<String>, Failure> {
        let mut state = self.lock();
        if matches!(*state, State::Closed) {
            return Ok(None);
        }
        let db = self.opened(&mut state)?.db.clone();
        let found = guarded(|| db.get(ENDED).map_err(|error| self.lost(error)));
        match found.unwrap_or_else(|()| Err(self.panicked()))? {
            Some(value) => unseal(ENDED, &value).map(Some).map_err(|fault| self.damaged(fault)),
            None => Ok(None),
        }
    }

    /// Writes a batch, all or nothing, and returns when it is on the disk. The only function that writes.
    ///
    /// - `folder`: where the database was opened.
    fn commit_durable(&self, db: &Db, folder: FolderId, batch: sled::Batch) -> Result<(), Failure> {
        harvester_actors::crash_point!("store.commit.before");
        db.apply_batch(batch).map_err(|error| self.lost(error))?;
        harvester_actors::crash_point!("store.commit.apply");
        flush(db).map_err(|error| self.lost(error))?;
        harvester_actors::crash_point!("store.commit.flush");
        // sled writes on into files that nobody will ever open again.
        if harvester_pacing::control!("store-folder") && folder_id(&self.dir).ok() != Some(folder) {
            return Err(Failure::local(format!(
                "the checkpoint store `{}` was removed or replaced while the run was using it",
                self.dir.display()
            ))
            .with_next("leave it alone while a run goes on, and run the same command: what is missing is rebuilt"));
        }
        if harvester_pacing::control!("store-fsync") {
            sync_tree(&self.dir).map_err(|error| local("sync", &self.dir, &error))?;
        }
        harvester_actors::crash_point!("store.commit.fsync");
        harvester_actors::crash_point!("store.commit.after");
        Ok(())
    }

    /// The open database.
    fn opened<'a>(&self, state: &'a mut State) -> Result<&'a mut Opened, Failure> {
        match state {
            State::Open(opened) => Ok(opened),
            State::Closed => Err(no_run()),
            State::Lost { failure, .. } => Err(failure.clone()),
        }
    }

    /// What an error of sled means that comes up while a run goes on. The spool has everything, so a start rebuilds what is
    /// wrong with the store; and this process cannot go on without it.
    fn lost(&self, error: sled::Error) -> Failure {
        match self.fault(error) {
            Failure { class: FailureClass::Damaged, message, .. } => Failure::local(message).with_next(REBUILT),
            failure => failure,
        }
    }

    /// What an error of sled means when a store is opened: this machine failed, or the stored bytes are wrong.
    fn fault(&self, error: sled::Error) -> Failure {
        match &error {
            sled::Error::Io(cause) if is_lock(cause) => {
                Failure::local(format!("`{}` is in use by another process", self.dir.display()))
                    .with_next("wait for the other process, or stop it")
            }
            sled::Error::Io(cause) if is_damage(cause.kind()) => self.damaged(Fault::Damaged(error.to_string())),
            sled::Error::Io(cause) => {
                // sled hands on a copy, whose text is the `Debug` of the first.
                let text = cause.to_string();
                let message = text.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"'));
                let plain = message.map_or(text.as_str(), |(message, _)| message).to_owned();
                local("use", &self.dir, &io::Error::new(cause.kind(), plain))
            }
            sled::Error::Unsupported(_) | sled::Error::ReportableBug(_) | sled::Error::CollectionNotFound(_) => {
                self.damaged(Fault::Damaged(error.to_string()))
            }
            // Its own text is a `Debug` print of an offset and a backtrace.
            sled::Error::Corruption { .. } => {
                self.damaged(Fault::Damaged("some of its bytes are not what was written".to_owned()))
            }
        }
    }

    /// Stored bytes that are wrong.
    fn damaged(&self, fault: Fault) -> Failure {
        let dir = self.dir.display();
        match fault {
            Fault::Damaged(why) => {
                Failure::new(FailureClass::Damaged, format!("the checkpoint store `{dir}` is damaged: {why}"))
            }
            Fault::Newer(version) => Failure::new(
                FailureClass::Damaged,
                format!(
                    "`{dir}` was written by a newer program (format {version}, this one knows {})",
                    format::VERSION
                ),
            )
            .with_next(format!("resume with the newer program, or remove `{dir}` to have it rebuilt from the spool")),
        }
    }

    /// sled panicked while it wrote.
    fn panicked(&self) -> Failure {
        Failure::local(format!("the checkpoint store `{}` failed: sled panicked", self.dir.display()))
            .with_next(REBUILT)
    }
}

/// Keeps the failure of a commit: what the database then holds, nobody knows.
fn lose(state: &mut State, failure: Failure) -> Failure {
    state.become_quietly(State::Lost { failure: failure.clone(), may_begin: false });
    failure
}

/// Whether a failed read or write says that the file is wrong, rather than the machine.
fn is_damage(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotFound
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
    )
}

/// A commit outside of a run.
fn no_run() -> Failure {
    bug("no run has begun in this store".to_owned())
}

/// A mistake of ours.
fn bug(message: String) -> Failure {
    Failure::new(FailureClass::Bug, message)
}

/// A failure of this machine.
fn local(action: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::local(format!("cannot {action} `{}`: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failure.with_next("free some space, then run the same command: it resumes where it stopped")
        }
        _ => failure,
    }
}

/// Adds one value to a batch.
fn put(batch: &mut sled::Batch, key: Vec<u8>, value: &impl serde::Serialize) -> Result<(), Failure> {
    let value = seal(&key, value)?;
    batch.insert(key, value);
    Ok(())
}

/// Opens the database, or makes an empty one.
///
/// The state folder's lock has decided already who may; but a process that is being forked holds a copy of every lock
/// until it becomes another program, so sled's own lock may be held for some milliseconds after its database was closed.
pub(super) fn open_db(dir: &Path) -> sled::Result<Db> {
    let mut asked = 0;
    loop {
        let config = Config::new().path(dir).mode(Mode::LowSpace).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        match config.open() {
            Err(sled::Error::Io(cause)) if asked < LOCK_ASKED_MAX && is_lock(&cause) => {
                asked += 1;
                thread::park_timeout(LOCK_PAUSE);
            }
            opened => return opened,
        }
    }
}

/// Whether somebody else has sled's lock.
fn is_lock(cause: &io::Error) -> bool {
    cause.to_string().contains("could not acquire lock")
}

/// Removes a folder, if it is there.
fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Flushes, without waiting for a flush that never returns.
///
/// When a write of one of sled's threads fails, sled 0.34 sometimes leaves who waits in `flush` asleep for ever: about one
/// in a hundred failing syncs (strace, EIO). Who asks anew is told of the error, and wakes the sleeper; so each flush has a
/// thread of its own, and another is begun when none has returned for a while.
fn flush(db: &Db) -> sled::Result<()> {
    let (done, flushed) = mpsc::channel();
    for _ in 0..FLUSHES_MAX {
        let (db, done) = (db.clone(), done.clone());
        let flush = move || {
            let ended = panic::catch_unwind(AssertUnwindSafe(|| db.flush()));
            // Whoever hears of the end may close the database.
            drop(db);
            // An earlier one may have been heard already.
            let _ = done.send(ended);
        };
        thread::Builder::new().name("sled-flush".to_owned()).spawn(flush)?;
        match flushed.recv_timeout(FLUSH_PATIENCE) {
            Ok(Ok(ended)) => return ended.map(drop),
            Ok(Err(panicked)) => panic::resume_unwind(panicked),
            Err(_) => tracing::debug!("the checkpoint store has not been flushed yet"),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "sled does not return from a flush").into())
}

/// Syncs every file below a folder, then the folder; makes them private.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() {
            sync_tree(&entry.path())?;
            continue;
        }
        let file = match File::open(entry.path()) {
            Ok(file) => file,
            // sled removed an old snapshot meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if found.permissions().mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        file.sync_all()?;
    }
    File::open(dir)?.sync_all()
}

/// Reads and checks everything: the checkpoint of an unfinished run, and what later commits need to know.
fn read_all(db: Db, folder: FolderId) -> Result<(Opened, Option<Checkpoint>), Fault> {
    let sled = |error: sled::Error| Fault::Damaged(error.to_string());
    let wrong = |what: &str| Fault::Damaged(what.to_owned());
    let get = |key: &[u8]| db.get(key).map_err(sled);
    let Some(header) = get(HEADER)? else {
        let ended = get(ENDED)?.map(|value| unseal::<String>(ENDED, &value)).transpose()?;
        if ended.is_none() && db.iter().next().is_some() {
            return Err(wrong("there are values of a run, but not its header"));
        }
        let opened = Opened { db, folder, run_id: None, progress: Progress::default(), partitions: BTreeMap::new() };
        return Ok((opened, None));
    };
    let mut header: RunHeader = unseal(HEADER, &header)?;
    let progress: Progress = unseal(PROGRESS, &get(PROGRESS)?.ok_or_else(|| wrong("its progress is missing"))?)?;

    for entry in db.scan_prefix(b"plan/") {
        let (key, value) = entry.map_err(sled)?;
        let partition: Partition = unseal(&key, &value)?;
        if plan_key(partition.id) != key.as_ref() {
            return Err(wrong("a partition of the plan stands under the key of another"));
        }
        header.plan.partitions.push(partition);
    }
    if header.plan.partitions.len() as u64 != progress.partitions {
        return Err(wrong("partitions of the plan are missing"));
    }
    if let Some(fault) = header.plan.fault() {
        return Err(Fault::Damaged(fault));
    }

    // The pages are gone through as a live run did; what comes out must be the stored states.
    let mut replayed = Checkpoint::begun(header, 0);
    let mut pages = 0;
    for entry in db.scan_prefix(b"span/") {
        let (key, value) = entry.map_err(sled)?;
        let span: Span = unseal(&key, &value)?;
        if span_key(span.partition, span.seq) != key.as_ref() {
            return Err(wrong("a page stands under the key of another"));
        }
        replayed.apply(&span).map_err(|failure| Fault::Damaged(failure.message))?;
        pages += 1;
    }
    let mut partitions = BTreeMap::new();
    let mut total = Progress { partitions: progress.partitions, pages, ..Progress::default() };
    for entry in db.scan_prefix(b"state/") {
        let (key, value) = entry.map_err(sled)?;
        let id: [u8; 4] = key["state/".len()..].try_into().map_err(|_| wrong("a key is too long"))?;
        let state: PartitionState = unseal(&key, &value)?;
        total.counts.add(&state.counts);
        partitions.insert(PartitionId(u32::from_be_bytes(id)), state);
    }
    if partitions != replayed.partitions {
        return Err(wrong("the pages do not add up to the states of their partitions"));
    }
    if total.pages != progress.pages || total.counts != progress.counts || replayed.spool_len > progress.spool_len {
        return Err(wrong("the pages do not add up to the progress"));
    }
    replayed.spool_len = progress.spool_len;
    let run_id = Some(replayed.header.run_id.clone());
    Ok((Opened { db, folder, run_id, progress, partitions }, Some(replayed)))
}

thread_local! {
    /// Whether a panic of this thread is expected and caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs something that may panic over damaged files; the panic is caught and says nothing on the terminal.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, ()> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let is_sleds = thread::current().name().is_some_and(|name| name.starts_with("sled"));
            if !GUARDED.get() && !is_sleds {
                loud(panic);
            }
        }));
    });
    let before = GUARDED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    done.map_err(drop)
}

/// Does `work` on a thread that may block.
fn blocking<T: Send + 'static>(
    store: Arc<SledStore>,
    work: impl FnOnce(&SledStore) -> Result<T, Failure> + Send + 'static,
) -> BoxFuture<'static, Result<T, Failure>> {
    async move {
        let panicked = |_| Err(bug("the checkpoint store panicked".to_owned()));
        spawn_blocking(move || work(&store)).await.unwrap_or_else(panicked)
    }
    .boxed()
}

impl CheckpointStore for SledStore {
    fn load(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Checkpoint>, Failure>> {
        blocking(self, SledStore::load_now)
    }

    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |store| store.begin_now(header, spool_len))
    }

    fn commit(self: Arc<Self>, batch: Batch) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |store| store.commit_now(batch))
    }

    fn end(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, SledStore::end_now)
    }

    fn ended_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>> {
        blocking(self, SledStore::ended_run_now)
    }

    fn reader(self: Arc<Self>) -> Arc<dyn SpanReader> {
        self
    }
}

impl SpanReader for SledStore {
    fn spans(&self, partition: PartitionId) -> SpanIterator {
        let mut state = self.lock();
        let (db, pages) = match self.opened(&mut state) {
            Ok(opened) => {
                let known = opened.partitions.get(&partition);
                (opened.db.clone(), known.map_or(0, |state| state.position.seq))
            }
            Err(failure) => return Box::new(std::iter::once(Err(failure))),
        };
        let dir = self.dir.clone();
        Box::new((0..pages).map(move |seq| {
            let key = span_key(partition, seq);
            // The spool has it all, and a start looks at every value: damage that shows only now is rebuilt by the next one.
            let damaged = |why: String| {
                Failure::local(format!("the checkpoint store `{}` is damaged: {why}", dir.display())).with_next(REBUILT)
            };
            match guarded(|| db.get(&key)) {
                Ok(Ok(Some(value))) => unseal(&key, &value).map_err(|fault| damaged(format!("{fault:?}"))),
                Ok(Ok(None)) => Err(damaged(format!("page {seq} of partition {partition} is missing"))),
                Ok(Err(error)) => Err(damaged(error.to_string())),
                Err(()) => Err(damaged("sled panicked over it".to_owned())),
            }
        }))
    }
}
