//! The target that ends in files: one per stream, prepared under a name that is not final, published together.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use harvester_actors::{
    failure::Failure,
    page::Reject,
    report::Manifest,
    sink::{Prepare, PreparedStream, Target},
};

use super::{
    disk::{self, io_failure},
    encode::FileFormat,
    file_spool::{FileSpool, blocking},
    finish::StreamFinisher,
    prepared::PreparedRecord,
    publish,
};

/// What stands in `out_dir` for the id of the run.
const RUN_PLACEHOLDER: &str = "{run}";

/// Where a [`FilesTarget`] works.
#[derive(Clone, Debug)]
pub struct FilesSettings {
    /// `sink.directory`; `{run}` in it stands for the run's id. Made when needed.
    pub out_dir: PathBuf,
    /// The job's name, as manifests say it.
    pub job: String,
    /// What finished files are written as.
    pub format: FileFormat,
}

/// A [`Target`] that writes files. All its work happens on blocking threads.
#[derive(Debug)]
pub struct FilesTarget {
    settings: FilesSettings,
    /// Where rows are read, and where temporary files go.
    spool: Arc<FileSpool>,
    /// The folder that this run writes to, and what locks it where that can be done.
    held: Mutex<Option<(PathBuf, Option<File>)>>,
}

impl FilesTarget {
    /// A target for one job; touches nothing yet.
    pub fn new(settings: FilesSettings, spool: Arc<FileSpool>) -> Self {
        FilesTarget { settings, spool, held: Mutex::new(None) }
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
        publish::check_foreign(&self.settings.out_dir, &self.settings.job, self.settings.format, streams)
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
            Err(error) => Err(io_failure("lock", dir, &error)),
        }
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
}

impl Target for FilesTarget {
    fn check(self: Arc<Self>, run_id: String, streams: Vec<String>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |target| {
            target.check_foreign(streams.iter().map(String::as_str))?;
            target.check_own_folder(&run_id, true)
        })
    }

    fn claim(self: Arc<Self>, run_id: String) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |target| {
            let dir = target.out_dir(&run_id);
            // Whoever has to wait hears of it before a night of fetching.
            if dir.is_dir() { target.hold(&dir) } else { Ok(()) }
        })
    }

    fn prepare(self: Arc<Self>, work: Prepare) -> BoxFuture<'static, Result<PreparedStream, Failure>> {
        blocking(self, move |target| {
            let out_dir = target.out_dir(&work.run_id);
            disk::create_dirs(&out_dir).map_err(|error| io_failure("create", &out_dir, &error))?;
            target.hold(&out_dir)?;
            let scratch_dir = target.spool.log.dir();
            let record = PreparedRecord::of(scratch_dir, &out_dir, target.settings.format, &work);
            if let Some(prepared) = record.load() {
                return Ok(prepared);
            }
            let reader = target.spool.log.reader()?;
            let prepared =
                StreamFinisher { reader, scratch_dir, out_dir: &out_dir, format: target.settings.format, work: &work }
                    .prepare()?;
            record.save(&prepared);
            Ok(prepared)
        })
    }

    fn publish(self: Arc<Self>, manifest: Manifest, rejects: Vec<Reject>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, move |target| {
            target.check_own_folder(&manifest.run_id, false)?;
            publish::publish(&target.out_dir(&manifest.run_id), target.settings.format, &manifest, &rejects)
        })
    }

    fn release(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        blocking(self, |target| {
            *target.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
            Ok(())
        })
    }
}
