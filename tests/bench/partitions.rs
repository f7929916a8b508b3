//! How a plan of many partitions costs: planning, a run that is stopped half way, its resume, and growth by splits.
//!
//! Spool, store and files are the real ones, in a temporary directory; the source is a fake that answers at once with one row
//! per partition. Run with `cargo bench --bench partitions [-- PARTITIONS]`; each phase is a process of its own, so that its
//! peak memory is its own.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dhis2_harvester::{
    checkpoints::SledStore,
    sinks::{FileFormat, FileSpool, FilesSettings, FilesTarget},
};
use futures_util::future::LocalBoxFuture;
use harvester_actors::{
    events::{Event, Listener},
    failure::Failure,
    follow::{Follow, Followed, Proof, StreamFacts},
    harvest::{self, Harvest},
    page::{Page, PageBody, PageCounts, push_record},
    partition::{NewPartition, Partition, Position, SourceIdentity, Stream},
    plan::PlanBuilder,
    report::Outcome,
    retry::RetryPolicy,
    source::Source,
    supervisor::StopRequest,
};
use tokio::{sync::watch, time::Instant};

/// Answers each partition with one row, or splits it as often as its selection says.
struct FakeSource {
    partitions: u64,
    /// How often each partition splits in two.
    splits: u64,
    fetched: AtomicU64,
    /// Pages after which it asks for a stop.
    stop_at: u64,
    stop: watch::Sender<Option<StopRequest>>,
}

impl Source for FakeSource {
    fn identify(&self) -> LocalBoxFuture<'_, Result<SourceIdentity, Failure>> {
        Box::pin(std::future::ready(Ok(SourceIdentity {
            url: "http://fake".to_owned(),
            minor: 40,
            ..Default::default()
        })))
    }

    fn plan<'a>(&'a self, _: &'a SourceIdentity, mut plan: PlanBuilder<'a>) -> LocalBoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let stream = Stream { name: "rows".to_owned(), expected_rows: None, optional: false, watermark: None };
            let pass = plan.add_stream(stream, serde_json::Value::Null)?;
            for partition in 0..self.partitions {
                plan.add_partition(NewPartition {
                    pass,
                    key: format!("rows/{partition}"),
                    // As long as a selection of data values is: data set, periods, a unit.
                    selection: serde_json::json!({
                        "kind": "data_values", "data_set": "lyLU2wR22tC", "start": "2023-01-01", "end": "2023-12-31",
                        "org_unit": "ImspTQPwCqd", "id": format!("{partition:011}"), "splits": self.splits,
                    }),
                    requests: Some(1),
                    expected_rows: None,
                })
                .await?;
            }
            plan.finish().await
        })
    }

    fn fetch<'a>(
        &'a self,
        _: &'a SourceIdentity,
        partition: &'a Partition,
        position: &'a Position,
    ) -> LocalBoxFuture<'a, Result<Page, Failure>> {
        Box::pin(async move {
            if self.fetched.fetch_add(1, Ordering::Relaxed) + 1 == self.stop_at {
                self.stop.send_replace(Some(StopRequest { reason: "half way".to_owned(), outcome: Outcome::Limit }));
            }
            let mut page = Page::split(partition, position, Vec::new());
            if let Some(splits) = partition.selection["splits"].as_u64().filter(|splits| *splits > 0) {
                let child = |half: u64| {
                    let mut selection = partition.selection.clone();
                    selection["splits"] = (splits - 1).into();
                    let id = format!("{}{half}", selection["id"].as_str().unwrap_or_default());
                    selection["id"] = id.into();
                    let key = format!("{}.{half}", partition.key);
                    NewPartition { pass: partition.pass, key, selection, requests: Some(1), expected_rows: None }
                };
                page.children = vec![child(0), child(1)];
                return Ok(page);
            }
            let id = partition.selection["id"].as_str().unwrap_or_default();
            let row = format!(r#"{{"id":"{id}","value":"12"}}"#);
            let mut records = Vec::new();
            push_record(&mut records, id.as_bytes(), row.as_bytes());
            page.counts = PageCounts { fetched: 1, kept: 1, bytes: row.len() as u64 + 1, ..PageCounts::default() };
            page.body = PageBody::Memory(records);
            Ok(page)
        })
    }

    fn follow<'a>(&'a self, _: StreamFacts<'a>) -> LocalBoxFuture<'a, Result<Followed, Failure>> {
        let step = Follow::Satisfied(Proof::None);
        Box::pin(std::future::ready(Ok(Followed { step, ..Followed::default() })))
    }

    fn last_answer(&self) -> Option<Instant> {
        None
    }

    fn last_trouble(&self) -> Option<String> {
        None
    }

    fn close(&self) {}

    fn requests(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }
}

/// Notes when the plan was ready, when the first page came and when fetching ended.
struct Phases {
    began: Instant,
    ready_us: AtomicU64,
    fetched_us: AtomicU64,
    has_page: AtomicBool,
    first_page_us: AtomicU64,
}

impl Listener for Phases {
    fn on_event(&self, event: &Event) {
        let now = self.began.elapsed().as_micros() as u64;
        match event {
            Event::PlanReady { .. } => self.ready_us.store(now, Ordering::Relaxed),
            Event::PageWritten { .. } if !self.has_page.swap(true, Ordering::Relaxed) => {
                self.first_page_us.store(now, Ordering::Relaxed);
            }
            Event::SpanCommitted { .. } => self.fetched_us.store(now, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// Peak memory of this process in MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// One start of a run in `dir`; prints what it cost.
fn phase(dir: &Path, partitions: u64, splits: u64, stop_at: u64, what: &str) {
    let (stop, stopped) = watch::channel(None);
    let phases = Arc::new(Phases {
        began: Instant::now(),
        ready_us: AtomicU64::new(0),
        fetched_us: AtomicU64::new(0),
        has_page: AtomicBool::new(false),
        first_page_us: AtomicU64::new(0),
    });
    let report = actix::System::new().block_on(async {
        let spool = Arc::new(FileSpool::new(dir.join("spool")));
        let settings = FilesSettings { job: "bench".to_owned(), out_dir: dir.join("out"), format: FileFormat::Ndjson };
        let source = FakeSource { partitions, splits, fetched: AtomicU64::new(0), stop_at, stop };
        harvest::run(Harvest {
            job: "bench".to_owned(),
            run_id: "20260101T000000Z".to_owned(),
            now: || "2026-01-01T00:00:00Z".to_owned(),
            fingerprint: BTreeMap::new(),
            differences: |_, _| Vec::new(),
            source: Arc::new(source),
            target: Arc::new(FilesTarget::new(settings, Arc::clone(&spool))),
            spool,
            store: Arc::new(SledStore::open(dir.join("checkpoint"))),
            limiter: None,
            listener: phases.clone(),
            stop: stopped,
            fetchers: 8,
            arbiters: 2,
            retry: RetryPolicy::new(1, Duration::from_secs(60), 1),
        })
        .await
    });
    let seconds = |us: &AtomicU64| us.load(Ordering::Relaxed) as f64 / 1e6;
    let (ready, first, fetched) =
        (seconds(&phases.ready_us), seconds(&phases.first_page_us), seconds(&phases.fetched_us));
    let said = format!(
        "{what}: {:?}, plan ready after {ready:.2} s, first page after {first:.2} s, {} fetched in {:.2} s ({:.1} us each), all in \
         {:.2} s, peak memory {} MiB",
        report.outcome,
        report.requests,
        fetched - ready,
        (fetched - ready) * 1e6 / report.requests.max(1) as f64,
        report.seconds,
        peak_mib()
    );
    writeln!(std::io::stdout(), "{said}").expect("stdout is open");
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [phase_of, dir, partitions, splits, stop_at, what] = args.as_slice()
        && phase_of == "phase"
    {
        let number = |text: &String| text.parse().unwrap_or(0);
        return phase(Path::new(dir), number(partitions), number(splits), number(stop_at), what);
    }
    let partitions: u64 = args.first().and_then(|arg| arg.parse().ok()).unwrap_or(1_000_000);
    let run = |dir: &Path, partitions: u64, splits: u64, stop_at: u64, what: &str| {
        let me = std::env::current_exe().expect("a program has a path");
        let status = Command::new(me)
            .args(["phase", dir.to_str().expect("a temporary directory is UTF-8")])
            .args([partitions, splits, stop_at].map(|number| number.to_string()))
            .arg(what)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "{what} failed");
    };
    let dir = tempfile::tempdir().expect("there is room");
    run(dir.path(), partitions, 0, partitions / 2, &format!("{partitions} partitions, stopped half way"));
    run(dir.path(), partitions, 0, 0, "resumed");
    for splits in [9, 12, 15] {
        let dir = tempfile::tempdir().expect("there is room");
        run(dir.path(), 1, splits, 0, &format!("one partition that splits in two {} times", (1 << splits) - 1));
    }
}
