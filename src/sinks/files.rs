//! The sink that ends in files: a spool while rows arrive, one file per stream when all are there.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use harvester_actors::{
    checkpoint::RunHeader,
    failure::{Failure, FailureClass},
    page::{FrameRange, Page, Reject, Span},
    partition::{Partition, Plan, StreamId},
    report::Manifest,
    sink::{Comparison, PreparedStream, Recovered, Sink, SpanReader, SpoolEntry},
};
use tokio::task::spawn_blocking;

use super::{
    compare,
    disk::{self, local},
    finish::StreamFinisher,
    publish,
    spool::Spool,
};

/// What stands in `out_dir` for the id of the run.
const RUN_PLACEHOLDER: &str = "{run}";

/// Where a [`FilesSink`] works.
#[derive(Clone, Debug)]
pub struct FilesSettings {
    /// `<state dir>/<job>/spool`; made when needed. Temporary files of a sort go here too.
    pub spool_dir: PathBuf,
    /// `sink.directory`; `{run}` in it stands for the run's id. Made when needed.
    pub out_dir: PathBuf,
    /// The job's name, as manifests say it.
    pub job: String,
}

/// A [`Sink`] that writes files. All its work happens on blocking threads.
#[derive(Debug)]
pub struct FilesSink {
    settings: FilesSettings,
    spool: Spool,
    /// The folder that this run writes to, and what locks it where that can be done.
    held: Mutex<Option<(PathBuf, Option<File>)>>,
}

impl FilesSink {
    /// A sink for one job; touches nothing yet.
    pub fn new(settings: FilesSettings) -> Self {
        FilesSink { spool: Spool::new(settings.spool_dir.clone()), settings, held: Mutex::new(None) }
    }

    /// Where the files of this run go.
    pub fn out_dir(&self, run_id: &str) -> PathBuf {
        match self.settings.out_dir.to_str() {
            Some(dir) => PathBuf::from(dir.replace(RUN_PLACEHOLDER, run_id)),
            None => self.settings.out_dir.clone(),
        }
    }

    /// Fails when a file that this job did not write stands under a name that these streams need: better at the start
    /// of a run than at its end. A folder of the run's own is always free. Blocks for a moment.
    ///
    /// # Errors
    /// `Local`; nothing is touched.
    pub fn check_foreign<'a>(&self, streams: impl IntoIterator<Item = &'a str>) -> Result<(), Failure> {
        if self.has_folder_per_run() {
            return Ok(());
        }
        publish::check_foreign(&self.settings.out_dir, &self.settings.job, streams)
    }

    /// Creates and removes one file where files would go, for `harvester check`; in the nearest folder above where that
    /// one does not exist yet. Blocks for a moment.
    ///
    /// # Errors
    /// `Local` when no file can be created there.
    pub fn probe_directory(&self) -> Result<(), Failure> {
        publish::probe_directory(&self.settings.out_dir)
    }

    /// Makes sure that no other run writes to this folder, until this one is over. Another job's name, or another state
    /// folder, is no reason to be alone: two runs that prepare one name would publish each other's rows.
    fn hold(&self, dir: &Path) -> Result<(), Failure> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|(held, _)| held == dir) || !harvester_pacing::control!("out-lock") {
            return Ok(());
        }
        match disk::lock_dir(dir) {
            Ok(lock) => {
                *held = Some((dir.to_owned(), lock));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(Failure::local(format!("another run is writing to `{}`", dir.display())).with_next(
                    "wait for it, or give each job a `sink.directory` of its own, then run the same command",
                ))
            }
            Err(error) => Err(local("lock", dir, &error)),
        }
    }

    /// The same before anything is written there: whoever has to wait hears of it before it has fetched a night long.
    fn hold_early(&self, dir: &Path) -> Result<(), Failure> {
        if dir.is_dir() { self.hold(dir) } else { Ok(()) }
    }

    /// Whether each run has a folder of its own.
    fn has_folder_per_run(&self) -> bool {
        self.settings.out_dir.to_str().is_some_and(|dir| dir.contains(RUN_PLACEHOLDER))
    }

    /// Fails when the folder of this run has been published into already: by another run, or, at the run's beginning, by
    /// any. Only where each run has a folder of its own; elsewhere a run takes the place of the one before.
    fn check_own_folder(&self, run_id: &str, is_beginning: bool) -> Result<(), Failure> {
        if !self.has_folder_per_run() {
            return Ok(());
        }
        let published = (!is_beginning).then_some(run_id);
        publish::check_own_folder(&self.out_dir(run_id), &self.settings.job, published)
    }

    /// The folder of the run in hand.
    fn out_dir_now(&self) -> Result<PathBuf, Failure> {
        let run_id = self.spool.run_id().ok_or_else(|| Failure::new(FailureClass::Bug, "no run has begun"))?;
        Ok(self.out_dir(&run_id))
    }
}

/// Does `work` on a thread that may block.
fn blocking<T: Send + 'static>(
    sink: Arc<FilesSink>,
    work: impl FnOnce(&FilesSink) -> Result<T, Failure> + Send + 'static,
) -> BoxFuture<'static, Result<T, Failure>> {
    async move {
        // A panic's own text stays with the panic hook: it could quote anything.
        let panicked = |_| Err(Failure::new(FailureClass::Bug, "the files sink panicked"));
        spawn_blocking(move || work(&sink)).await.unwrap_or_else(panicked)
    }
    .boxed()
}

impl Sink for FilesSink {
    fn recover(
        self: Arc<Self>,
        behind: u64,
        mut visit: Box<dyn FnMut(SpoolEntry) -> Result<(), Failure> + Send>,
    ) -> BoxFuture<'static, Result<Option<Recovered>, Failure>> {
        blocking(self, move |sink| {
            let recovered = sink.spool.recover(behind, &mut *visit)?;
            if recovered.is_some() {
                sink.hold_early(&sink.out_dir_now()?)?;
            }
            Ok(recovered)
        })
    }

    fn begin(self: Arc<Self>, header: RunHeader) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        blocking(self, move |sink| {
            sink.hold_early(&sink.out_dir(&header.run_id))?;
            // Only now is it known which streams there are, where the job asks for all.
            sink.check_foreign(header.plan.streams.iter().map(|stream| stream.name.as_str()))?;
            sink.check_own_folder(&header.run_id, true)?;
            sink.spool.begin(&header)
        })
    }

    fn append(self: Arc<Self>, page: Page) -> BoxFuture<'static, Result<Span, Failure>> {
        blocking(self, move |sink| sink.spool.append(page))
    }

    fn grow(self: Arc<Self>, partitions: Vec<Partition>) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        blocking(self, move |sink| sink.spool.grow(&partitions))
    }

    fn sync(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, |sink| sink.spool.sync())
    }

    fn compare(
        self: Arc<Self>,
        stream: StreamId,
        plan: Arc<Plan>,
        spans: Arc<dyn SpanReader>,
    ) -> BoxFuture<'static, Result<Comparison, Failure>> {
        blocking(self, move |sink| {
            compare::compare(&sink.spool.reader()?, &sink.settings.spool_dir, stream, &plan, &*spans)
        })
    }

    fn prepare(
        self: Arc<Self>,
        stream: StreamId,
        plan: Arc<Plan>,
        spans: Arc<dyn SpanReader>,
    ) -> BoxFuture<'static, Result<PreparedStream, Failure>> {
        blocking(self, move |sink| {
            let out_dir = sink.out_dir_now()?;
            disk::create_dirs(&out_dir).map_err(|error| local("create", &out_dir, &error))?;
            sink.hold(&out_dir)?;
            StreamFinisher {
                reader: sink.spool.reader()?,
                scratch_dir: &sink.settings.spool_dir,
                out_dir: &out_dir,
                plan: &plan,
                spans: &*spans,
            }
            .prepare(stream)
        })
    }

    fn publish(self: Arc<Self>, manifest: Manifest, rejects: Vec<Reject>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |sink| {
            sink.check_own_folder(&manifest.run_id, false)?;
            publish::publish(&sink.out_dir(&manifest.run_id), &manifest, &rejects)
        })
    }

    fn discard(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, |sink| {
            *sink.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
            sink.spool.discard()
        })
    }
}
