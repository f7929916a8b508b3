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
//! sled may panic on damage, on open and later; [`catch_panic`] is around it. It may also come up with an older state,
//! or without some values: [`load`](super::load) reads all of them and says whether they add up. A state that is older
//! and complete is not damage: the spool knows the rest.

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
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{FutureExt, future::BoxFuture};
use harvester_actors::{
    checkpoint::{Checkpoint, RunHeader, SpoolEntry},
    checkpoint_store::{CheckpointStore, PageIndex, PageIterator},
    failure::{Failure, FailureClass},
    page::PageRef,
    partition::PassId,
};
use sled::{Config, Db, Mode};
use tokio::task::spawn_blocking;

use super::{
    format::{self, COMPLETED, DecodeError, HEADER, pages_key},
    load::{self, Loaded},
    run::{LiveRun, Writes},
};

/// sled's page cache. The default is 1 GiB; 8 MiB of it were some 20 MiB of memory in a soak of 60,000 pages, and no faster.
const CACHE_BYTES: u64 = 1024 * 1024;

/// How often a lock that is held is asked for again, and how long between: five seconds in all, since loaded machines release
/// it late. Whether another process runs this job is decided by the state lock before.
const LOCK_ASKED_MAX: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// How long a flush may take before another is begun beside it, and how many are: two minutes in all, for a disk in trouble.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSHES_MAX: u32 = 24;

/// What to do about a store that fails while the spool is whole.
const REBUILT: &str = "run the same command: the store is rebuilt from the spool";

/// A [`CheckpointStore`] in a folder. All its work happens on blocking threads.
#[derive(Debug)]
pub struct SledStore {
    dir: PathBuf,
    state: Mutex<State>,
}

/// What the store can do.
#[derive(Debug)]
enum State {
    /// Nothing is open.
    Closed,
    /// The database is open.
    Open(Box<Opened>),
    /// It was not usable, or a commit failed: the same failure for everything, except that `begin` may start over.
    Lost { failure: Failure, may_begin: bool },
}

/// An open database, with what is known of it.
#[derive(Debug)]
struct Opened {
    db: Db,
    /// The folder that was opened.
    folder: FolderId,
    /// What has been synced in it.
    synced: Synced,
    /// The unfinished run.
    run: Option<LiveRun>,
}

/// Device and inode of a folder: they tell it from another one that has been put in its place.
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
        let _ = catch_panic(|| drop(before));
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
    fn load_blocking(&self) -> Result<Option<Checkpoint>, Failure> {
        let mut state = self.lock();
        state.become_quietly(State::Closed);
        match fs::read_dir(&self.dir).map(|mut entries| entries.next().is_none()) {
            Ok(true) => return Ok(None),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_failure("read", &self.dir, &error)),
        }
        let loaded = catch_panic(|| {
            let db = open_db(&self.dir).map_err(|error| self.open_failure(error))?;
            let folder = folder_id(&self.dir).map_err(|error| io_failure("read", &self.dir, &error))?;
            let loaded = load::read_all(&db).map_err(|error| self.damaged(error))?;
            Ok((db, folder, loaded))
        });
        match loaded.unwrap_or_else(|()| Err(self.damaged(DecodeError::Damaged("sled panicked over it".to_owned())))) {
            Ok((db, folder, loaded)) => {
                let checkpoint = loaded.as_ref().map(|loaded| loaded.checkpoint.clone());
                let run = loaded.map(|Loaded { checkpoint, totals, page_values }| {
                    LiveRun::resumed(checkpoint, totals, page_values)
                });
                *state = State::Open(Box::new(Opened { db, folder, synced: Synced::default(), run }));
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
    fn begin_blocking(&self, header: RunHeader, spool_len: u64) -> Result<(), Failure> {
        let mut state = self.lock();
        if let State::Lost { failure, may_begin: false } = &*state {
            return Err(failure.clone());
        }
        harvester_actors::crash_point!("store.begin.before");
        state.become_quietly(State::Closed);
        // A new database for every run: it stays small, and nothing of an older one, damaged or not, shines through.
        let old = self.dir.with_extension("old");
        let parent = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let io = |error: io::Error| io_failure("write", &self.dir, &error);
        remove_dir(&old).map_err(|error| io_failure("remove", &old, &error))?;
        match fs::rename(&self.dir, &old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_failure("rename", &self.dir, &error));
            }
            _ => {}
        }
        harvester_actors::crash_point!("store.begin.moved");
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(io)?;
        let (run, writes) = LiveRun::begin(Checkpoint::new(header, spool_len))?;
        let mut synced = Synced::default();
        let (db, folder) = catch_panic(|| {
            let db = open_db(&self.dir).map_err(|error| self.write_failure(error))?;
            let folder = folder_id(&self.dir).map_err(io)?;
            self.commit_durable(&db, folder, &mut synced, writes)?;
            Ok((db, folder))
        })
        .unwrap_or_else(|()| Err(self.panicked()))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| io_failure("sync", parent, &error))?;
        harvester_actors::crash_point!("store.begin.synced");
        remove_dir(&old).map_err(|error| io_failure("remove", &old, &error))?;
        harvester_actors::crash_point!("store.begin.after");
        *state = State::Open(Box::new(Opened { db, folder, synced, run: Some(run) }));
        Ok(())
    }

    /// See `CheckpointStore::commit`.
    fn commit_blocking(&self, entries: &[Arc<SpoolEntry>]) -> Result<(), Failure> {
        let mut state = self.lock();
        let opened = self.opened(&mut state)?;
        let run = opened.run.as_mut().ok_or_else(no_run)?;
        let writes = match run.apply(entries) {
            Ok(writes) => writes,
            // Nothing was written; but the copy of the checkpoint may have half of the batch.
            Err(failure) => return Err(fail(&mut state, failure, true)),
        };
        let done = catch_panic(|| self.commit_durable(&opened.db, opened.folder, &mut opened.synced, writes));
        done.unwrap_or_else(|()| Err(self.panicked())).map_err(|failure| fail(&mut state, failure, false))
    }

    /// See `CheckpointStore::complete_run`.
    fn complete_run_blocking(&self) -> Result<(), Failure> {
        let mut state = self.lock();
        if matches!(*state, State::Closed) {
            return Ok(());
        }
        let opened = self.opened(&mut state)?;
        let Some(run) = &opened.run else { return Ok(()) };
        harvester_actors::crash_point!("store.end.before");
        let mut writes = Writes::default();
        writes.removed.push(HEADER.to_vec());
        writes.put(COMPLETED.to_vec(), &run.checkpoint.header.run_id)?;
        let done = catch_panic(|| self.commit_durable(&opened.db, opened.folder, &mut opened.synced, writes));
        match done.unwrap_or_else(|()| Err(self.panicked())) {
            Ok(()) => {
                opened.run = None;
                harvester_actors::crash_point!("store.end.after");
                Ok(())
            }
            Err(failure) => Err(fail(&mut state, failure, false)),
        }
    }

    /// See `CheckpointStore::last_completed_run`.
    fn last_completed_run_blocking(&self) -> Result<Option<String>, Failure> {
        let mut state = self.lock();
        if matches!(*state, State::Closed) {
            return Ok(None);
        }
        let db = &self.opened(&mut state)?.db;
        let found = catch_panic(|| load::get(db, COMPLETED).map_err(|error| self.damaged(error)));
        found.unwrap_or_else(|()| Err(self.panicked()))
    }

    /// Writes a batch, all or nothing, and returns when it is on the disk. The only function that writes.
    ///
    /// - `folder`: where the database was opened.
    /// - `synced`: what earlier calls have synced of it.
    fn commit_durable(&self, db: &Db, folder: FolderId, synced: &mut Synced, writes: Writes) -> Result<(), Failure> {
        harvester_actors::crash_point!("store.commit.before");
        let mut batch = sled::Batch::default();
        for (key, value) in writes.put {
            batch.insert(key, value);
        }
        for key in writes.removed {
            batch.remove(key);
        }
        db.apply_batch(batch).map_err(|error| self.write_failure(error))?;
        harvester_actors::crash_point!("store.commit.apply");
        flush(db).map_err(|error| self.write_failure(error))?;
        harvester_actors::crash_point!("store.commit.flush");
        // sled writes on into files that no process will open again.
        if harvester_pacing::control!("store-folder") && folder_id(&self.dir).ok() != Some(folder) {
            return Err(Failure::local(format!(
                "the checkpoint store `{}` was removed or replaced while the run was using it",
                self.dir.display()
            ))
            .with_next("leave it alone while a run goes on, and run the same command: what is missing is rebuilt"));
        }
        if harvester_pacing::control!("store-fsync") {
            synced.sync_tree(&self.dir, now_unix()).map_err(|error| io_failure("sync", &self.dir, &error))?;
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

    /// What an error of sled means that comes up during a run. The spool has everything, so a start rebuilds what is
    /// wrong with the store; and this process cannot continue without it.
    fn write_failure(&self, error: sled::Error) -> Failure {
        match self.open_failure(error) {
            Failure { class: FailureClass::Damaged, message, .. } => Failure::local(message).with_next(REBUILT),
            failure => failure,
        }
    }

    /// What an error of sled means when a store is opened: this machine failed, or the stored bytes are wrong.
    fn open_failure(&self, error: sled::Error) -> Failure {
        match &error {
            sled::Error::Io(cause) if is_lock(cause) => {
                Failure::local(format!("`{}` is in use by another process", self.dir.display()))
                    .with_next("wait for the other process, or stop it")
            }
            sled::Error::Io(cause) if is_damage(cause.kind()) => self.damaged(DecodeError::Damaged(error.to_string())),
            sled::Error::Io(cause) => {
                // sled hands on a copy, whose text is the `Debug` of the first.
                let text = cause.to_string();
                let message = text.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"'));
                let plain = message.map_or(text.as_str(), |(message, _)| message).to_owned();
                io_failure("use", &self.dir, &io::Error::new(cause.kind(), plain))
            }
            sled::Error::Unsupported(_) | sled::Error::ReportableBug(_) | sled::Error::CollectionNotFound(_) => {
                self.damaged(DecodeError::Damaged(error.to_string()))
            }
            // Its own text is a `Debug` print of an offset and a backtrace.
            sled::Error::Corruption { .. } => {
                self.damaged(DecodeError::Damaged("some of its bytes are not what was written".to_owned()))
            }
        }
    }

    /// Stored bytes that are wrong.
    fn damaged(&self, error: DecodeError) -> Failure {
        let dir = self.dir.display();
        match error {
            DecodeError::Damaged(why) => {
                Failure::new(FailureClass::Damaged, format!("the checkpoint store `{dir}` is damaged: {why}"))
            }
            DecodeError::Newer(version) => Failure::new(
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

/// Keeps the failure of a commit: what the database then holds is unknown.
fn fail(state: &mut State, failure: Failure, may_begin: bool) -> Failure {
    state.become_quietly(State::Lost { failure: failure.clone(), may_begin });
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
fn io_failure(action: &str, path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::local(format!("cannot {action} `{}`: {error}", path.display()));
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            failure.with_next("free some space, then run the same command: it resumes where it stopped")
        }
        _ => failure,
    }
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

/// Whether another process has sled's lock.
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
/// in a hundred failing syncs (strace, EIO). A further call gets the error and wakes the sleeper; so each flush has a
/// thread of its own, and another is begun when none has returned for a while.
fn flush(db: &Db) -> sled::Result<()> {
    let (done, flushed) = mpsc::channel();
    for _ in 0..FLUSHES_MAX {
        let (db, done) = (db.clone(), done.clone());
        let flush = move || {
            let ended = panic::catch_unwind(AssertUnwindSafe(|| db.flush()));
            // The receiver may close the database at once.
            drop(db);
            // An earlier one may have been heard already.
            let _ = done.send(ended);
        };
        thread::Builder::new().name("sled-flush".to_owned()).spawn(flush)?;
        match flushed.recv_timeout(FLUSH_TIMEOUT) {
            Ok(Ok(ended)) => return ended.map(drop),
            Ok(Err(panicked)) => panic::resume_unwind(panicked),
            Err(_) => tracing::debug!("the checkpoint store has not been flushed yet"),
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "sled does not return from a flush").into())
}

/// What a file or a folder looked like before it was synced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    id: FolderId,
    len: u64,
    /// Seconds and nanoseconds of its last change.
    changed: (i64, i64),
}

/// Syncs the files of a database, and leaves out those that have not changed since: most of the time it is one file of four,
/// and each sync is a flush of the disk.
#[derive(Debug, Default)]
struct Synced(BTreeMap<PathBuf, Stamp>);

/// How old a change must be before the same time of change means that there was no other: far more than the kernel's clock
/// takes for a step.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

impl Synced {
    /// Syncs every file below a folder that may have changed, then the folder; makes them private. How many it synced.
    ///
    /// - `now`: since 1970, by the clock that dates changes.
    fn sync_tree(&mut self, dir: &Path, now: Duration) -> io::Result<u32> {
        let mut synced = 0;
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => synced += self.sync_tree(&path, now)?,
                Ok(found) => synced += u32::from(self.sync(&path, &found, now)?),
                // sled removed an old snapshot meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(synced + u32::from(self.sync(dir, &fs::symlink_metadata(dir)?, now)?))
    }

    /// Syncs one file or folder, which looked like this, unless it looked like this before; whether it did.
    fn sync(&mut self, path: &Path, found: &fs::Metadata, now: Duration) -> io::Result<bool> {
        let stamp =
            Stamp { id: (found.dev(), found.ino()), len: found.len(), changed: (found.ctime(), found.ctime_nsec()) };
        let known = self.0.get(path);
        if known == Some(&stamp) {
            return Ok(false);
        }
        let is_new = known.is_none_or(|known| known.id != stamp.id);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if !found.is_dir() && found.permissions().mode() & 0o077 != 0 {
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
        }
        // A file's length comes with its data, and nothing else of it ever changes. Not so the names in a folder: ext4 leaves
        // them out of an fdatasync.
        if is_new || found.is_dir() {
            file.sync_all()?;
        } else {
            file.sync_data()?;
        }
        let settled = u64::try_from(stamp.changed.0).is_ok_and(|at| at + SETTLED_AFTER.as_secs() < now.as_secs());
        if settled || is_new {
            // One that has not settled is not what the next look will find, so it is synced again.
            let changed = if settled { stamp.changed } else { (0, 0) };
            self.0.insert(path.to_owned(), Stamp { changed, ..stamp });
        }
        Ok(true)
    }
}

/// The time since 1970.
fn now_unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

thread_local! {
    /// Whether a panic of this thread is expected and caught.
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs something that may panic over damaged files; the panic is caught and says nothing on the terminal.
fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, ()> {
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
        blocking(self, SledStore::load_blocking)
    }

    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |store| store.begin_blocking(header, spool_len))
    }

    fn commit(self: Arc<Self>, entries: Vec<Arc<SpoolEntry>>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |store| store.commit_blocking(&entries))
    }

    fn complete_run(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, SledStore::complete_run_blocking)
    }

    fn last_completed_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>> {
        blocking(self, SledStore::last_completed_run_blocking)
    }

    fn pages(self: Arc<Self>) -> Arc<dyn PageIndex> {
        self
    }
}

impl PageIndex for SledStore {
    fn pages_of(&self, pass: PassId) -> PageIterator {
        let mut state = self.lock();
        let (db, values) = match self.opened(&mut state) {
            Ok(opened) => (opened.db.clone(), opened.run.as_ref().map_or(0, |run| run.page_values_of(pass))),
            Err(failure) => return Box::new(std::iter::once(Err(failure))),
        };
        let dir = self.dir.clone();
        Box::new((0..values).flat_map(move |n| match read_pages(&db, &pages_key(pass, n)) {
            Ok(pages) => pages.into_iter().map(Ok).collect(),
            // The spool has it all, and a start looks at every value: damage that shows only now is rebuilt by the next one.
            Err(why) => {
                let message = format!("the checkpoint store `{}` is damaged: {why}", dir.display());
                vec![Err(Failure::local(message).with_next(REBUILT))]
            }
        }))
    }
}

/// The pages under a key, or what is wrong with them.
fn read_pages(db: &Db, key: &[u8]) -> Result<Vec<PageRef>, String> {
    let read = || {
        let value = db.get(key).map_err(load::from_sled)?;
        let value = value.ok_or_else(|| DecodeError::Damaged("pages are missing".to_owned()))?;
        load::decode_pages(key, &value)
    };
    match catch_panic(read) {
        Ok(Ok(pages)) => Ok(pages),
        Ok(Err(DecodeError::Damaged(why))) => Err(why),
        Ok(Err(DecodeError::Newer(version))) => Err(format!("its format is {version}")),
        Err(()) => Err("sled panicked over it".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until a change is dated later than all before it.
    fn tick(scratch: &Path) {
        let dated = || {
            fs::write(scratch, "").unwrap();
            fs::metadata(scratch).map(|found| (found.ctime(), found.ctime_nsec())).unwrap()
        };
        let before = dated();
        while dated() == before {}
    }

    #[test]
    fn what_may_have_changed_is_synced_again_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (dir, scratch) = (root.path().join("db"), root.path().join("scratch"));
        fs::create_dir_all(dir.join("blobs")).unwrap();
        fs::write(dir.join("conf"), "c").unwrap();
        fs::write(dir.join("db"), "d").unwrap();
        let (now, later) = (now_unix(), now_unix() + Duration::from_secs(10));
        let mut synced = Synced::default();
        // Two files and two folders. Their last change is so young that another one could have the same date.
        assert_eq!(synced.sync_tree(&dir, now).unwrap(), 4);
        assert_eq!(synced.sync_tree(&dir, now).unwrap(), 4);
        // What was made private has changed by that, and has not settled.
        assert_eq!(synced.sync_tree(&dir, later).unwrap(), 4);
        assert_eq!(synced.sync_tree(&dir, later).unwrap(), 0);

        let mut expect = |what: &str, count: u32, change: &dyn Fn()| {
            tick(&scratch);
            change();
            assert_eq!(synced.sync_tree(&dir, now_unix() + Duration::from_secs(10)).unwrap(), count, "{what}");
            assert_eq!(synced.sync_tree(&dir, now_unix()).unwrap(), 0, "{what}: once");
        };
        let write = |name: &str, text: &str| {
            use std::os::unix::fs::FileExt;
            let file = File::options().write(true).create(true).truncate(false).open(dir.join(name)).unwrap();
            file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
        };
        expect("nothing", 0, &|| ());
        expect("the same length", 1, &|| write("db", "e"));
        expect("longer", 1, &|| write("db", "longer"));
        expect("a new file and its folder", 2, &|| write("snap.1", "s"));
        expect("a rename, which also dates the file", 2, &|| {
            fs::rename(dir.join("snap.1"), dir.join("snap.2")).unwrap()
        });
        expect("a new file deeper down", 2, &|| write("blobs/1", "b"));
        expect("a removal", 1, &|| fs::remove_file(dir.join("blobs/1")).unwrap());
        expect("another file of that name", 2, &|| {
            fs::write(root.path().join("other"), "longer").unwrap();
            fs::set_permissions(root.path().join("other"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::rename(root.path().join("other"), dir.join("db")).unwrap();
        });
    }
}
