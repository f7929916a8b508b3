//! Builds a harvest from a job: picks source, sink and store, and is the only file that knows all kinds.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use actix::Addr;
use dhis2::Client;
use harvester_actors::{
    events::{Event, Listener},
    failure::{Failure, FailureClass},
    harvest::{self, Harvest},
    rate_limiter::{RateLimiter, RateLimiterSettings, Share},
    report::{Outcome, Report, ReportError, outcome_of},
    retry::RetryPolicy,
    supervisor::StopRequest,
};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use url::Url;

use crate::{
    checkpoints::SledStore,
    exit_code::StopReason,
    extract::{Contact, Dhis2Source, Extract, LimiterGate, OutageProbe, SourceGate, Watermarks, classify},
    job::{self, Credentials, Job, differences},
    job_record::JobRecord,
    observe::report,
    service::lock::{LockError, StateLock},
    sinks::{self, FileFormat, FileSpool, FilesSettings, FilesTarget},
};

/// How long requests of a predecessor may still count: the window of the rate limiter.
const WINDOW_MS: i64 = 1_050;

/// Arguments of [`run`].
pub(crate) struct RunRequest {
    /// The job.
    pub(crate) job: Job,
    /// Its credentials.
    pub(crate) credentials: Credentials,
    /// The folder of all jobs' state.
    pub(crate) state_dir: PathBuf,
    /// Discard the checkpoint.
    pub(crate) restart: bool,
    /// Receives the events of the run.
    pub(crate) listener: Arc<dyn Listener>,
    /// The reason to stop, once there is one.
    pub(crate) stop: watch::Receiver<Option<StopReason>>,
}

/// A job's state folder.
pub(crate) fn state_folder(state_dir: &Path, job: &str) -> PathBuf {
    state_dir.join(job)
}

/// Runs a job to its end. Never fails: errors are in the report, which the listener receives too.
pub(crate) fn run(request: RunRequest) -> Report {
    let listener = Arc::clone(&request.listener);
    let stop = request.stop.clone();
    let job = request.job.name.clone();
    let mut report = match RunSetup::new(&request) {
        Ok(setup) => actix::System::new().block_on(setup.run(request)),
        Err(error) => error.report(&job),
    };
    report::complete(&mut report, *stop.borrow());
    listener.on_event(&Event::RunEnded(Arc::new(report.clone())));
    report
}

/// Why a run cannot start.
pub(crate) struct StartError {
    outcome: Outcome,
    error: ReportError,
}

impl StartError {
    /// Something other than a failure of a port.
    fn new(outcome: Outcome, class: &str, message: String, next: impl Into<String>) -> Self {
        StartError { outcome, error: ReportError { class: class.to_owned(), message, next: next.into() } }
    }

    /// This machine cannot.
    fn storage(message: String) -> Self {
        let next = "check the folder's permissions and free space, or choose another with --state-dir";
        StartError::new(Outcome::Storage, FailureClass::Local.as_str(), message, next)
    }

    /// The same for commands without a report.
    pub(crate) fn into_failure(self) -> Failure {
        let class = if self.outcome == Outcome::Storage { FailureClass::Local } else { FailureClass::Rejected };
        Failure::new(class, self.error.message).with_next(self.error.next)
    }

    /// The report of a run that did not begin.
    fn report(self, job: &str) -> Report {
        Report { error: Some(self.error), ..Report::new(job, self.outcome, 0) }
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        StartError { outcome: outcome_of(failure.class), error: failure.into() }
    }
}

/// A run whose state directory is locked and checked.
struct RunSetup {
    folder: PathBuf,
    record: JobRecord,
    /// The id of the run, if it is a new one.
    run_id: String,
    /// Whether it is unknown what a predecessor sent in the last second.
    cold_start: bool,
    /// Held until the run has ended.
    _lock: StateLock,
}

impl RunSetup {
    /// Locks the state directory and checks its job record.
    fn new(request: &RunRequest) -> Result<Self, StartError> {
        let job = &request.job;
        let folder = state_folder(&request.state_dir, &job.name);
        // A folder whose name is not durable takes with it whatever is synced inside.
        sinks::create_dirs(&folder)
            .and_then(|()| sinks::sync_dir(&request.state_dir))
            .map_err(|error| StartError::storage(format!("cannot make `{}`: {error}", folder.display())))?;
        let lock = StateLock::acquire(&folder).map_err(|error| match error {
            LockError::Held { .. } => {
                let next =
                    format!("wait for it or stop it; `harvester status {}` shows what it does", job.path.display());
                StartError::new(Outcome::Locked, "locked", error.to_string(), next)
            }
            LockError::Storage { .. } => StartError::storage(error.to_string()),
        })?;
        let before = JobRecord::load(&folder);
        let cold_start =
            before.as_ref().is_some_and(|record| !ended_long_ago(record)) && harvester_pacing::control!("cold-start");
        let mut record = before.unwrap_or_else(|| JobRecord::new(job));
        if let Some(conflict) = record.conflict(job, &folder).filter(|_| !request.restart) {
            let class = FailureClass::Changed.as_str();
            return Err(StartError::new(Outcome::Changed, class, conflict.message, conflict.next));
        }
        if let Some(differences) = record.start(job, request.restart) {
            tracing::warn!(
                differences,
                "the job has changed since its last complete run, so everything is fetched again"
            );
        }
        // Durable before anything can be written under this id.
        let run_id = record.next_run_id(Timestamp::now());
        if request.restart {
            remove_checkpoint(&folder)?;
        }
        record.save(&folder).map_err(|error| {
            StartError::storage(format!("cannot write `{}`: {error}", folder.join(crate::job_record::FILE).display()))
        })?;
        Ok(RunSetup { folder, record, run_id, cold_start, _lock: lock })
    }

    /// Runs the job within its folder.
    async fn run(mut self, request: RunRequest) -> Report {
        let job = request.job.clone();
        // The share of the origin's budget ends with the run.
        let (harvest, probe, _share) = match self.harvest(request) {
            Ok(harvest) => harvest,
            Err(error) => return error.report(&job.name),
        };
        let source = Arc::clone(&harvest.source);
        let mut report = harvest::run(harvest).await;
        report::offer_restart(&mut report);
        source.close();
        self.remember(&job, &mut report, probe.system_id());
        report
    }

    /// Builds the harvest.
    fn harvest(&self, request: RunRequest) -> Result<(Harvest, Arc<OutageProbe>, Share), StartError> {
        let job = request.job;
        let source_client = SourceClient::new(&Server::of(&job, &request.credentials), self.cold_start)?;
        let extracts = job.extracts.iter().map(extract).collect::<Result<Vec<_>, _>>()?;
        let watermarks =
            Watermarks { system_id: self.record.system_id.clone(), of_streams: self.record.watermarks_for(&job) };
        let source = source_client.source(extracts, job.limits.in_flight, watermarks);
        let spool = Arc::new(FileSpool::new(self.folder.join("spool")));
        let target = files_target(&job, Arc::clone(&spool));
        // What would only show when the files are published, perhaps after a night, is told now.
        check_target(&job, &target)?;
        let store = SledStore::open(self.folder.join("checkpoint"));
        let arbiters = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let harvest = Harvest {
            run_id: self.run_id.clone(),
            now: || Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            fingerprint: job.fingerprint(),
            differences,
            source: Arc::new(source),
            spool,
            target: Arc::new(target),
            store: Arc::new(store),
            limiter: Some(source_client.share.limiter().clone()),
            listener: request.listener,
            stop: stops(request.stop),
            fetchers: job.limits.in_flight,
            arbiters,
            retry: RetryPolicy::new(job.limits.retries, job.limits.outage, u64::from(std::process::id())),
            job: job.name,
        };
        Ok((harvest, source_client.probe, source_client.share))
    }

    /// Writes down what the next run needs to know. A run of which that cannot be written is not complete.
    fn remember(&mut self, job: &Job, report: &mut Report, system_id: Option<String>) {
        self.record.clean_end_at = Some(Timestamp::now().to_string());
        if report.outcome == Outcome::Complete {
            self.record.complete(job, system_id, report.watermarks.clone());
        }
        if let Err(error) = self.record.save(&self.folder) {
            let file = self.folder.join(crate::job_record::FILE);
            let message = format!("cannot save `{}`: {error}", file.display());
            match report.outcome {
                Outcome::Complete if harvester_pacing::control!("record-sync") => {
                    report.outcome = Outcome::Storage;
                    report.error = Some(ReportError {
                        class: FailureClass::Local.as_str().to_owned(),
                        message,
                        next:
                            "the files are published and whole; repair the disk before the next run, which may fetch \
                               what is there already"
                                .to_owned(),
                    });
                }
                // It did not end well anyhow, and says why.
                _ => report.warnings.push(message),
            }
        }
    }
}

/// The target of a job.
fn files_target(job: &Job, spool: Arc<FileSpool>) -> FilesTarget {
    FilesTarget::new(
        FilesSettings {
            job: job.name.clone(),
            out_dir: job.sink.directory.clone(),
            format: file_format(job.sink.format),
        },
        spool,
    )
}

/// The sink's form of a format.
fn file_format(format: job::Format) -> FileFormat {
    match format {
        job::Format::Ndjson => FileFormat::Ndjson,
    }
}

/// Whether files can be made where they would go, and nothing foreign has one of their names. Blocks for a moment.
///
/// # Errors
/// `Local`, with what to do.
pub(crate) fn probe_sink(job: &Job) -> Result<(), Failure> {
    check_target(job, &files_target(job, Arc::new(FileSpool::new(PathBuf::new()))))
}

/// See [`probe_sink`].
fn check_target(job: &Job, target: &FilesTarget) -> Result<(), Failure> {
    let elsewhere = |mut failure: Failure| {
        failure.next.get_or_insert_with(|| "set another `sink.directory`, then run the same command".to_owned());
        failure
    };
    target.probe_directory().map_err(elsewhere)?;
    let streams: Vec<String> = job.extracts.iter().flat_map(job::ExtractSettings::streams).collect();
    target.check_foreign(streams.iter().map(String::as_str)).map_err(elsewhere)
}

/// What is asked, by whom, and within which limits.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its base url.
    pub(crate) url: Url,
    /// Certificates in addition to the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// Limits on the load put on it; `outage` is how long a command without a run waits for it.
    pub(crate) limits: job::Limits,
    /// Credentials of the user.
    pub(crate) credentials: Credentials,
}

impl Server {
    /// The source of a job.
    pub(crate) fn of(job: &Job, credentials: &Credentials) -> Self {
        let job::SourceSettings { url, ca_file, .. } = job.source.clone();
        Server { url, ca_file, limits: job.limits.clone(), credentials: credentials.clone() }
    }
}

/// The client of a source, behind the limiter of its origin. Not connected yet.
pub(crate) struct SourceClient {
    /// The job's share of the budget; what is held by the client alone is none.
    share: Share,
    /// The client.
    pub(crate) client: Client,
    /// The same client behind the gate of probes.
    probe_client: Client,
    /// Closes both gates.
    gate: SourceGate,
    /// Probes the source during an outage.
    probe: Arc<OutageProbe>,
}

impl SourceClient {
    /// Sends nothing.
    ///
    /// # Errors
    /// `Rejected` when url, credentials or certificate file cannot be used.
    pub(crate) fn new(server: &Server, cold_start: bool) -> Result<Self, Failure> {
        let Server { url, ca_file, limits, credentials } = server;
        let mut builder = Client::builder(url.as_str())
            .connect_timeout(limits.connect_timeout)
            .first_byte_timeout(limits.first_byte_timeout)
            .stall_timeout(limits.stall_timeout)
            .retries(0)
            .credentials(credentials.clone());
        if let Some(ca_file) = ca_file {
            builder = builder.ca_file(ca_file);
        }
        let client = builder.build().map_err(|error| classify(&error, Contact::First))?;
        let probe = Arc::new(OutageProbe::default());
        let settings = RateLimiterSettings {
            requests_per_second: limits.requests_per_second,
            in_flight: limits.in_flight,
            cold_start,
            seed: u64::from(std::process::id()),
        };
        let share = RateLimiter::for_origin(client.origin(), settings, Arc::clone(&probe) as _);
        let limiter = share.limiter().clone();
        let gate = SourceGate::new();
        Ok(SourceClient {
            probe_client: client.with_gate(Arc::new(LimiterGate::new(limiter.clone(), true, &gate))),
            client: client.with_gate(Arc::new(LimiterGate::new(limiter, false, &gate))),
            share,
            gate,
            probe,
        })
    }

    /// The owner of the budget.
    pub(crate) fn limiter(&self) -> &Addr<RateLimiter> {
        self.share.limiter()
    }

    /// When the source last answered anything.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.gate.last_answer()
    }

    /// Whether the source has ever answered.
    pub(crate) fn contact(&self) -> Contact {
        if self.last_answer().is_some() { Contact::Later } else { Contact::First }
    }

    /// The last failure of a request of the plan.
    pub(crate) fn last_trouble(&self) -> Option<String> {
        self.gate.last_trouble()
    }

    /// A source over this client.
    pub(crate) fn source(&self, extracts: Vec<Extract>, in_flight: u32, watermarks: Watermarks) -> Dhis2Source {
        Dhis2Source::new(
            self.client.clone(),
            self.probe_client.clone(),
            self.gate.clone(),
            extracts,
            in_flight,
            watermarks,
            Arc::clone(&self.probe),
        )
    }
}

/// Whether a record says that its process ended cleanly, longer ago than a window.
fn ended_long_ago(record: &JobRecord) -> bool {
    let Some(Ok(ended)) = record.clean_end_at.as_ref().map(|text| text.parse::<Timestamp>()) else { return false };
    // An end in the future means that the clock was set back: then nobody knows.
    Timestamp::now().as_millisecond() - ended.as_millisecond() > WINDOW_MS
}

/// Removes checkpoint and spool, the checkpoint durably first: a spool without its store is rebuilt, a store without its
/// spool would be damage.
fn remove_checkpoint(folder: &Path) -> Result<(), StartError> {
    for name in ["checkpoint", "spool"] {
        let path = folder.join(name);
        let removed = match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::File::open(folder).and_then(|folder| folder.sync_all()),
        };
        removed.map_err(|error| StartError::storage(format!("cannot remove `{}`: {error}", path.display())))?;
    }
    Ok(())
}

/// The source's form of an extract.
pub(crate) fn extract(extract: &job::ExtractSettings) -> Result<Extract, StartError> {
    match extract {
        job::ExtractSettings::Metadata(settings) => Ok(Extract::Metadata(settings.clone())),
        // `Job::check_supported` refuses these with their line; this is for callers that did not ask it.
        other @ (job::ExtractSettings::DataValues { .. }
        | job::ExtractSettings::Tracker { .. }
        | job::ExtractSettings::Analytics { .. }
        | job::ExtractSettings::DataStore { .. }
        | job::ExtractSettings::SqlView { .. }
        | job::ExtractSettings::CompleteRegistrations { .. }) => {
            let message = format!("kind `{}` is not available in this version", other.kind());
            Err(StartError::new(Outcome::Invalid, "invalid", message, "take it out of the job file"))
        }
    }
}

/// The engine's form of a reason to stop.
fn stops(mut reasons: watch::Receiver<Option<StopReason>>) -> watch::Receiver<Option<StopRequest>> {
    let (sender, stop) = watch::channel(None);
    actix::spawn(async move {
        let reason = match reasons.wait_for(Option::is_some).await {
            Ok(reason) => *reason,
            Err(_) => None,
        };
        if let Some(reason) = reason {
            let outcome = match reason {
                StopReason::MaxSeconds => Outcome::Limit,
                StopReason::Sigint | StopReason::Sigterm | StopReason::Sighup => Outcome::Interrupted,
            };
            sender.send_replace(Some(StopRequest { reason: reason.as_str().to_owned(), outcome }));
        }
        // As long as the run may wait for a stop, its channel stays open.
        sender.closed().await;
    });
    stop
}
