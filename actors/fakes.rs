//! Scripted ports: a source that is a list, a disk that forgets what was not synced, and deaths at any port call.
//!
//! A [`World`] outlives the runs in it, as a disk and a server do. Each run gets a [`Life`]: it ends at a chosen port call,
//! and from then on no call of that life has an effect any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io::Read,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_core::future::{BoxFuture, LocalBoxFuture};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::{
    checkpoint::{Batch, Checkpoint, RunHeader},
    checkpoint_store::CheckpointStore,
    events::{Event, Listener},
    failure::{Failure, FailureClass},
    harvest::Harvest,
    page::{FrameRange, Page, PageBody, PageCounts, RECORD_HEADER_BYTES, Reject, Span, push_record, record_lengths},
    partition::{
        Next, Partition, PartitionId, PartitionRole, Plan, Position, SourceIdentity, Stream, StreamId, StreamOrder,
    },
    reconcile::Recount,
    report::{Manifest, Outcome},
    retry::RetryPolicy,
    sink::{Comparison, PreparedStream, Recovered, Sink, SpanIterator, SpanReader, SpoolEntry},
    source::{PageSize, Source},
    supervisor::Stop,
};

/// Rows of a fake page.
const PAGE_ROWS: u32 = 5;
/// How long the fake source thinks about everything, on average where it is drawn by lot.
const SOURCE_LATENCY: Duration = Duration::from_millis(10);

/// How a life treats its chosen port call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fate {
    /// The process dies before the call does anything.
    DiesBefore,
    /// The process dies after the call's effect, before its answer.
    DiesAfter,
    /// The power is cut after the call's effect: what was not synced is lost as well.
    PowerCutAfter,
    /// The call fails without an effect, once.
    Fails,
    /// The fetcher panics in the call (source only; elsewhere nothing happens).
    Panics,
    /// Somebody asks for a stop right after the call's effect.
    IsStopped,
    /// Somebody asks for a stop a little later.
    IsStoppedSoon,
}

/// One start of the program.
pub(crate) struct Life {
    /// The call at which something happens, counted from 1; 0 for none.
    at: u64,
    /// What happens.
    fate: Fate,
    /// Calls so far.
    calls: AtomicU64,
    /// Whether it is over.
    dead: AtomicBool,
    /// Wakes who waits for the death.
    died: Notify,
    /// Who is asked for a stop.
    stop: watch::Sender<Option<Stop>>,
    /// What the source's latencies are drawn from, and with them the order in which things happen; `None`: all are equal.
    lots: Option<Mutex<SmallRng>>,
}

impl Life {
    /// A life in which `fate` happens at port call `at`.
    pub(crate) fn new(at: u64, fate: Fate) -> Arc<Life> {
        Life::by_lot(at, fate, None)
    }

    /// The same, in an order of things that follows from the seed.
    pub(crate) fn by_lot(at: u64, fate: Fate, seed: Option<u64>) -> Arc<Life> {
        Arc::new(Life {
            at,
            fate,
            calls: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            stop: watch::Sender::new(None),
            lots: seed.map(|seed| Mutex::new(SmallRng::seed_from_u64(seed))),
        })
    }

    /// A life without misfortune.
    pub(crate) fn undisturbed() -> Arc<Life> {
        Life::new(0, Fate::Fails)
    }

    /// Waits for its end.
    pub(crate) async fn death(&self) {
        while !self.dead.load(Ordering::SeqCst) {
            self.died.notified().await;
        }
    }

    /// Waits as long as the source thinks about one question.
    async fn source_thinks(&self) {
        let lot = self.lots.as_ref().map_or(1.0, |lots| lots.lock().unwrap().random_range(0.1..1.9));
        tokio::time::sleep(SOURCE_LATENCY.mul_f64(lot)).await;
    }

    /// Port calls so far.
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Makes one port call with the effect `act`.
    async fn call<T>(&self, disk: &Disk, act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        if self.lots.is_some() {
            // A disk takes its time as well.
            tokio::time::sleep(SOURCE_LATENCY / 10).await;
        }
        if self.dead.load(Ordering::SeqCst) {
            return pending().await;
        }
        let hit = self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.at;
        if hit && self.fate == Fate::Fails {
            return Err(Failure::local("a scripted failure"));
        }
        let result = if hit && self.fate == Fate::DiesBefore { None } else { Some(act()) };
        if hit && matches!(self.fate, Fate::IsStopped | Fate::IsStoppedSoon) {
            let (stop, is_soon) = (self.stop.clone(), self.fate == Fate::IsStoppedSoon);
            let ask = move || stop.send_replace(Some(Stop { reason: "SIGINT".into(), outcome: Outcome::Interrupted }));
            if is_soon {
                // In the middle of the source's next answer, when everybody waits.
                actix_rt::spawn(async move {
                    tokio::time::sleep(SOURCE_LATENCY / 2).await;
                    ask();
                });
            } else {
                ask();
            }
        }
        if hit && matches!(self.fate, Fate::DiesBefore | Fate::DiesAfter | Fate::PowerCutAfter) {
            if self.fate == Fate::PowerCutAfter {
                disk.cut_power();
            }
            self.dead.store(true, Ordering::SeqCst);
            self.died.notify_waiters();
            self.died.notify_one();
            return pending().await;
        }
        match result {
            Some(result) => result,
            None => pending().await,
        }
    }

    /// Whether the fetcher panics in this call, which then counts as made.
    fn panics_now(&self) -> bool {
        let hit = self.fate == Fate::Panics && self.calls.load(Ordering::SeqCst) + 1 == self.at;
        if hit {
            self.calls.fetch_add(1, Ordering::SeqCst);
        }
        hit
    }
}

/// What a spool of the fake disk holds: an entry, and the rows of a page.
#[derive(Clone)]
struct Stored {
    entry: SpoolEntry,
    records: Vec<u8>,
    len: u64,
}

/// What survives a run.
#[derive(Default)]
struct Contents {
    spool: Option<Vec<Stored>>,
    /// How many entries of the spool survive a power cut.
    synced: usize,
    checkpoint: Option<Checkpoint>,
    spans: BTreeMap<(PartitionId, u32), Span>,
    ended: Option<String>,
    prepared: BTreeMap<String, Vec<u8>>,
    published: BTreeMap<String, Vec<u8>>,
    manifest: Option<Manifest>,
    /// How often a stream has been prepared.
    prepares: u32,
    rejects: Vec<Reject>,
}

/// A disk that forgets what was not synced when its power is cut.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<Mutex<Contents>>);

impl Disk {
    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn cut_power(&self) {
        let mut contents = self.contents();
        let synced = contents.synced;
        if let Some(spool) = &mut contents.spool {
            spool.truncate(synced);
        }
    }

    /// Forgets the checkpoint store, as if its folder had been deleted.
    pub(crate) fn lose_store(&self) {
        let mut contents = self.contents();
        contents.checkpoint = None;
        contents.spans.clear();
        contents.ended = None;
    }

    /// How often a stream has been prepared.
    pub(crate) fn prepares(&self) -> u32 {
        self.contents().prepares
    }

    /// Entries of the spool.
    pub(crate) fn entries(&self) -> usize {
        self.contents().spool.as_ref().map_or(0, Vec::len)
    }

    /// The published files.
    pub(crate) fn published(&self) -> BTreeMap<String, Vec<u8>> {
        self.contents().published.clone()
    }

    /// The manifest, once there is one.
    pub(crate) fn manifest(&self) -> Option<Manifest> {
        self.contents().manifest.clone()
    }

    /// Whether nothing of a run is left besides its files.
    pub(crate) fn is_clean(&self) -> bool {
        let contents = self.contents();
        contents.spool.is_none() && contents.checkpoint.is_none() && contents.spans.is_empty()
    }
}

/// Rows that are listed and not sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldBack {
    /// Their ids.
    pub(crate) ids: BTreeSet<String>,
    /// Whether the row behind one is sent twice in its place.
    pub(crate) doubles_another: bool,
    /// Whether they are held back too where they are asked for by their ids.
    pub(crate) from_repairs: bool,
}

/// A source that is a list of rows per stream, with a script of failures.
pub(crate) struct World {
    /// The truth: per stream, its rows in the server's order.
    pub(crate) truth: Mutex<BTreeMap<String, Vec<(String, String)>>>,
    /// What the next answers are instead of rows, first first.
    pub(crate) failures: Mutex<Vec<Failure>>,
    /// Partitions per stream.
    pub(crate) partitions: u32,
    /// How many rows more than there are it announces of each stream.
    pub(crate) miscounts_by: AtomicU64,
    /// Rows that it sends and does not list.
    pub(crate) unlisted: Mutex<BTreeSet<String>>,
    /// Whether each page leads to the place it came from.
    pub(crate) stands_still: AtomicBool,
    /// Rows that it lists and does not send.
    pub(crate) held_back: Mutex<HeldBack>,
    /// What it says about itself.
    pub(crate) identity: Mutex<SourceIdentity>,
    /// Pages asked for: partition and where from.
    pub(crate) asked: Mutex<Vec<(String, Next)>>,
    /// The disk.
    pub(crate) disk: Disk,
}

impl World {
    /// `streams` streams of `rows` rows, each cut into `partitions` partitions.
    pub(crate) fn new(streams: u32, rows: u32, partitions: u32) -> Arc<World> {
        let truth = (0..streams).map(|stream| {
            let rows =
                (0..rows).map(|row| (format!("s{stream}r{row:05}"), format!("{{\"id\":\"s{stream}r{row:05}\"}}")));
            (format!("stream{stream}"), rows.collect())
        });
        Arc::new(World {
            truth: Mutex::new(truth.collect()),
            failures: Mutex::default(),
            partitions,
            miscounts_by: AtomicU64::new(0),
            unlisted: Mutex::default(),
            stands_still: AtomicBool::new(false),
            held_back: Mutex::default(),
            identity: Mutex::new(SourceIdentity {
                url: "http://fake".into(),
                system_id: Some("one".into()),
                version: "2.40.1".into(),
                minor: 40,
                server_date: None,
            }),
            asked: Mutex::default(),
            disk: Disk::default(),
        })
    }

    /// What the finished files should hold.
    pub(crate) fn expected(&self) -> BTreeMap<String, Vec<u8>> {
        let truth = self.truth.lock().unwrap();
        truth
            .iter()
            .map(|(name, rows)| {
                (format!("{name}.ndjson"), rows.iter().flat_map(|(_, row)| format!("{row}\n").into_bytes()).collect())
            })
            .collect()
    }

    /// A harvest of this world.
    pub(crate) fn harvest(self: &Arc<Self>, life: &Arc<Life>, fetchers: u32) -> Harvest {
        Harvest {
            job: "fake".into(),
            run_id: "20260101T000000Z".into(),
            now: || "2026-01-01T00:00:00Z".into(),
            fingerprint: BTreeMap::from([("fields".into(), ":owner".into())]),
            differences: |_, _| vec!["something".into()],
            source: Arc::new(FakeSource {
                world: Arc::clone(self),
                life: Arc::clone(life),
                closed: AtomicBool::new(false),
            }),
            sink: Arc::new(FakeSink { disk: self.disk.clone(), life: Arc::clone(life) }),
            store: Arc::new(FakeStore { disk: self.disk.clone(), life: Arc::clone(life) }),
            limiter: None,
            listener: Arc::new(Deaf),
            stop: life.stop.subscribe(),
            fetchers,
            arbiters: 0,
            patience: RetryPolicy::new(2, Duration::from_secs(60), 1),
        }
    }
}

/// Hears nothing.
pub(crate) struct Deaf;

impl Listener for Deaf {
    fn hear(&self, _: &Event) {}
}

/// Keeps what it hears.
#[derive(Default)]
pub(crate) struct Witness(pub(crate) Mutex<Vec<Event>>);

impl Listener for Witness {
    fn hear(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

struct FakeSource {
    world: Arc<World>,
    life: Arc<Life>,
    closed: AtomicBool,
}

impl Source for FakeSource {
    fn identify(&self) -> LocalBoxFuture<'_, Result<SourceIdentity, Failure>> {
        Box::pin(async {
            self.life.source_thinks().await;
            self.life.call(&self.world.disk, || Ok(self.world.identity.lock().unwrap().clone())).await
        })
    }

    fn plan<'a>(&'a self, _: &'a SourceIdentity) -> LocalBoxFuture<'a, Result<Plan, Failure>> {
        let make = || {
            let truth = self.world.truth.lock().unwrap();
            let mut plan = Plan::default();
            let miscounts_by = self.world.miscounts_by.load(Ordering::SeqCst);
            for (place, (name, rows)) in truth.iter().enumerate() {
                plan.streams.push(Stream {
                    name: name.clone(),
                    order: StreamOrder::Keyset,
                    expected_rows: Some(rows.len() as u64 + miscounts_by),
                    optional: false,
                    watermark: None,
                });
                let chunk = rows.len().div_ceil(self.world.partitions as usize).max(1);
                for (part, rows) in rows.chunks(chunk).enumerate() {
                    plan.partitions.push(Partition {
                        id: PartitionId(plan.partitions.len() as u32),
                        stream: StreamId(place as u32),
                        key: format!("{name}/{part}"),
                        role: PartitionRole::Rows,
                        selection: json!({"stream": name, "first": rows[0].0, "last": rows[rows.len() - 1].0}),
                        requests: None,
                        expected_rows: Some(rows.len() as u64),
                    });
                }
            }
            Ok(plan)
        };
        Box::pin(async move {
            self.life.source_thinks().await;
            self.life.call(&self.world.disk, make).await
        })
    }

    fn fetch<'a>(
        &'a self,
        _: &'a SourceIdentity,
        partition: &'a Partition,
        position: &'a Position,
        size: PageSize,
    ) -> LocalBoxFuture<'a, Result<Page, Failure>> {
        Box::pin(async move {
            self.life.source_thinks().await;
            assert!(!self.life.panics_now(), "a scripted panic");
            let page = self.life.call(&self.world.disk, || {
                if self.closed.load(Ordering::SeqCst) {
                    return Err(Failure::new(FailureClass::Transient, "closed"));
                }
                self.world.asked.lock().unwrap().push((partition.key.clone(), position.next.clone()));
                let mut failures = self.world.failures.lock().unwrap();
                if !failures.is_empty() {
                    return Err(failures.remove(0));
                }
                Ok(self.page(partition, position, size.of(PAGE_ROWS) as usize))
            });
            match page.await {
                // A port call of the source that fails is what retries are for.
                Err(failure) if failure.class == FailureClass::Local => {
                    Err(Failure::new(FailureClass::Transient, failure.message))
                }
                page => page,
            }
        })
    }

    fn count<'a>(&'a self, selection: &'a Value, _: u32) -> LocalBoxFuture<'a, Result<Recount, Failure>> {
        Box::pin(async move {
            self.life.source_thinks().await;
            let count = self.life.call(&self.world.disk, || {
                let truth = self.world.truth.lock().unwrap();
                let rows = truth[selection["stream"].as_str().unwrap_or_default()].len() as u64;
                Ok(Recount::Rows(rows + self.world.miscounts_by.load(Ordering::SeqCst)))
            });
            count.await.map_err(|failure| Failure::new(FailureClass::Transient, failure.message))
        })
    }

    fn listing(&self, selection: &Value, _: u64) -> Option<Value> {
        Some(json!({"stream": selection["stream"], "listing": true}))
    }

    fn repair(&self, selection: &Value, missing: &[String], vanished: &[String]) -> Vec<Value> {
        let asked = [missing, vanished].into_iter().filter(|ids| !ids.is_empty());
        asked.map(|ids| json!({"stream": selection["stream"], "ids": ids})).collect()
    }

    fn last_answer(&self) -> Option<Instant> {
        None
    }

    fn last_trouble(&self) -> Option<String> {
        None
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    fn requests(&self) -> u64 {
        self.world.asked.lock().unwrap().len() as u64
    }
}

impl FakeSource {
    /// The page that the truth holds now.
    fn page(&self, partition: &Partition, position: &Position, page_rows: usize) -> Page {
        let truth = self.world.truth.lock().unwrap();
        let selection = &partition.selection;
        let rows = &truth[selection["stream"].as_str().unwrap_or_default()];
        let wanted: Vec<&(String, String)> = if let Some(ids) = selection["ids"].as_array() {
            rows.iter().filter(|(id, _)| ids.iter().any(|wanted| wanted == id)).collect()
        } else if selection["listing"] == true {
            let unlisted = self.world.unlisted.lock().unwrap();
            rows.iter().filter(|(id, _)| !unlisted.contains(id)).collect()
        } else {
            let first = selection["first"].as_str().unwrap_or_default();
            let last = selection["last"].as_str().unwrap_or_default();
            rows.iter().filter(|(id, _)| first <= id.as_str() && id.as_str() <= last).collect()
        };
        let behind = match &position.next {
            Next::After(id) => wanted.iter().position(|(other, _)| other > id).unwrap_or(wanted.len()),
            _ => 0,
        };
        let taken: Vec<_> = wanted[behind..].iter().take(page_rows).collect();
        let held_back = self.world.held_back.lock().unwrap().clone();
        let is_repair = selection["ids"].is_array();
        let is_exempt = selection["listing"] == true || (is_repair && !held_back.from_repairs);
        let mut body = Vec::new();
        let mut counts = PageCounts::default();
        for (place, mut sent) in taken.iter().enumerate() {
            if held_back.ids.contains(&sent.0) && !is_exempt {
                match taken.get(place + 1) {
                    Some(other) if held_back.doubles_another && !is_repair => sent = other,
                    _ => continue,
                }
            }
            let (id, row) = sent;
            let row = if selection["listing"] == true { "" } else { row.as_str() };
            push_record(&mut body, id.as_bytes(), row.as_bytes());
            counts.fetched += 1;
            counts.kept += 1;
            counts.bytes += row.len() as u64 + 1;
        }
        let next = match taken.last() {
            _ if self.world.stands_still.load(Ordering::SeqCst) => position.next.clone(),
            Some((id, _)) if behind + taken.len() < wanted.len() => Next::After(id.clone()),
            _ => Next::End,
        };
        Page {
            partition: partition.id,
            seq: position.seq,
            next,
            counts,
            rejects: Vec::new(),
            body: PageBody::Memory(body),
        }
    }
}

struct FakeSink {
    disk: Disk,
    life: Arc<Life>,
}

impl FakeSink {
    /// Appends an entry whose place `place` decides.
    fn push(&self, records: Vec<u8>, place: impl FnOnce(FrameRange) -> SpoolEntry) -> Result<SpoolEntry, Failure> {
        let mut contents = self.disk.contents();
        let Some(spool) = &mut contents.spool else { return Err(Failure::local("there is no spool")) };
        let from = spool.iter().map(|stored| stored.len).sum();
        let len = 100 + records.len() as u64;
        let entry = place(FrameRange { from, to: from + len });
        spool.push(Stored { entry: entry.clone(), records, len });
        Ok(entry)
    }

    /// The records of a span.
    fn records(&self, span: &Span) -> Vec<(String, Vec<u8>)> {
        let contents = self.disk.contents();
        let stored = contents.spool.iter().flatten().find(|stored| stored.entry == SpoolEntry::Page(span.clone()));
        let mut rest = stored.map(|stored| stored.records.as_slice()).unwrap_or_default();
        let mut records = Vec::new();
        while let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() {
            let (row_len, key_len) = record_lengths(*header);
            let (key, behind) = behind.split_at(key_len);
            let (row, behind) = behind.split_at(row_len);
            records.push((String::from_utf8_lossy(key).into_owned(), row.to_vec()));
            rest = behind;
        }
        records
    }

    /// Keys and rows of a stream's partitions of one role, in plan order.
    fn rows_of(
        &self,
        plan: &Plan,
        stream: StreamId,
        role: PartitionRole,
        spans: &Arc<dyn SpanReader>,
    ) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let mut rows = Vec::new();
        for partition in plan.partitions_of(stream).filter(|partition| partition.role == role) {
            for span in spans.spans(partition.id) {
                rows.extend(self.records(&span?));
            }
        }
        Ok(rows)
    }
}

impl Sink for FakeSink {
    fn recover(
        self: Arc<Self>,
        behind: u64,
        mut visit: Box<dyn FnMut(SpoolEntry) -> Result<(), Failure> + Send>,
    ) -> BoxFuture<'static, Result<Option<Recovered>, Failure>> {
        Box::pin(async move {
            let entries = self
                .life
                .call(&self.disk, || {
                    let mut contents = self.disk.contents();
                    contents.synced = contents.spool.as_ref().map_or(0, Vec::len);
                    Ok(contents.spool.clone())
                })
                .await?;
            let Some(entries) = entries else { return Ok(None) };
            tokio::task::spawn_blocking(move || {
                let mut len = 0;
                for stored in entries {
                    if len >= behind {
                        visit(stored.entry)?;
                    }
                    len += stored.len;
                }
                if len < behind {
                    return Err(Failure::new(FailureClass::Damaged, "the spool is too short"));
                }
                Ok(Some(Recovered { len, cut_bytes: 0 }))
            })
            .await
            .map_err(|error| Failure::local(error.to_string()))?
        })
    }

    fn begin(self: Arc<Self>, header: RunHeader) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        Box::pin(async move {
            let act = || {
                self.disk.contents().spool = Some(Vec::new());
                let mut place = FrameRange::default();
                self.push(Vec::new(), |frame| {
                    place = frame;
                    SpoolEntry::Begun { header, frame }
                })?;
                self.disk.contents().synced = 1;
                Ok(place)
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn append(self: Arc<Self>, page: Page) -> BoxFuture<'static, Result<Span, Failure>> {
        Box::pin(async move {
            let act = || {
                let mut records = Vec::new();
                match page.body {
                    PageBody::Memory(bytes) => records = bytes,
                    PageBody::Spilled { file, len } => {
                        file.take(len).read_to_end(&mut records).map_err(|error| Failure::local(error.to_string()))?;
                    }
                }
                let entry = self.push(records, |frame| {
                    SpoolEntry::Page(Span {
                        partition: page.partition,
                        seq: page.seq,
                        next: page.next,
                        counts: page.counts,
                        rejects: page.rejects,
                        frame,
                    })
                })?;
                match entry {
                    SpoolEntry::Page(span) => Ok(span),
                    _ => unreachable!("a page was pushed"),
                }
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn grow(self: Arc<Self>, partitions: Vec<Partition>) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        Box::pin(async move {
            let act = || {
                let mut place = FrameRange::default();
                self.push(Vec::new(), |frame| {
                    place = frame;
                    SpoolEntry::Grown { partitions, frame }
                })?;
                Ok(place)
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn sync(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                contents.synced = contents.spool.as_ref().map_or(0, Vec::len);
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn compare(
        self: Arc<Self>,
        stream: StreamId,
        plan: Arc<Plan>,
        spans: Arc<dyn SpanReader>,
    ) -> BoxFuture<'static, Result<Comparison, Failure>> {
        Box::pin(async move {
            let act = || {
                let keys = |partition: &Partition| {
                    let records = spans.spans(partition.id).map(|span| Ok(self.records(&span?)));
                    let records = records.collect::<Result<Vec<_>, Failure>>()?;
                    Ok::<_, Failure>(records.into_iter().flatten().map(|(key, _)| key).collect::<BTreeSet<String>>())
                };
                let newest = plan.newest_listing(stream).map(|listing| listing.id);
                let (mut before, mut since) = (BTreeSet::new(), BTreeSet::new());
                let (mut listed, mut listed_before) = (BTreeSet::new(), BTreeSet::new());
                for partition in plan.partitions_of(stream) {
                    let is_listing = partition.role == PartitionRole::Listing;
                    let keys = keys(partition)?;
                    match (is_listing, Some(partition.id) < newest) {
                        (true, true) => listed_before.extend(keys),
                        (true, false) => listed.extend(keys),
                        (false, true) => before.extend(keys),
                        (false, false) => since.extend(keys),
                    }
                }
                let missing = listed.iter().filter(|key| !before.contains(*key) && !since.contains(*key));
                let missing: Vec<String> = missing.cloned().collect();
                let vanished: Vec<&String> = before.difference(&listed).collect();
                Ok(Comparison {
                    listed: listed.len() as u64,
                    relisted: missing.iter().filter(|key| listed_before.contains(*key)).count() as u64,
                    missing,
                    vanished: vanished.len() as u64,
                    returned: vanished.iter().filter(|key| since.contains(**key)).count() as u64,
                    vanished_keys: vanished.into_iter().cloned().collect(),
                    nameless: 0,
                })
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn prepare(
        self: Arc<Self>,
        stream: StreamId,
        plan: Arc<Plan>,
        spans: Arc<dyn SpanReader>,
    ) -> BoxFuture<'static, Result<PreparedStream, Failure>> {
        Box::pin(async move {
            let act = || {
                let mut rows = self.rows_of(&plan, stream, PartitionRole::Rows, &spans)?;
                rows.extend(self.rows_of(&plan, stream, PartitionRole::Repair, &spans)?);
                let fetched = rows.len();
                rows.sort();
                rows.dedup_by(|one, other| one.0 == other.0);
                let file = format!("{}.ndjson", plan.streams[stream.0 as usize].name);
                let bytes: Vec<u8> = rows.iter().flat_map(|(_, row)| row.iter().copied().chain([b'\n'])).collect();
                let prepared = PreparedStream {
                    file: file.clone(),
                    rows: rows.len() as u64,
                    bytes: bytes.len() as u64,
                    sha256: String::new(),
                    duplicates: (fetched - rows.len()) as u64,
                    newest: None,
                };
                let mut contents = self.disk.contents();
                contents.prepares += 1;
                contents.prepared.insert(file, bytes);
                Ok(prepared)
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn publish(self: Arc<Self>, manifest: Manifest, rejects: Vec<Reject>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                let prepared = std::mem::take(&mut contents.prepared);
                contents.published.extend(prepared);
                contents.manifest = Some(manifest);
                contents.rejects = rejects;
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn discard(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                self.disk.contents().spool = None;
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }
}

struct FakeStore {
    disk: Disk,
    life: Arc<Life>,
}

impl CheckpointStore for FakeStore {
    fn load(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Checkpoint>, Failure>> {
        Box::pin(async move { self.life.call(&self.disk, || Ok(self.disk.contents().checkpoint.clone())).await })
    }

    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                contents.spans.clear();
                contents.ended = None;
                contents.checkpoint = Some(Checkpoint::begun(header, spool_len));
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn commit(self: Arc<Self>, batch: Batch) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                let Contents { checkpoint: Some(checkpoint), spans, .. } = &mut *contents else {
                    return Err(Failure::local("there is no run"));
                };
                if !batch.grown.is_empty() {
                    checkpoint.grow(&batch.grown, batch.spool_len)?;
                }
                for span in &batch.spans {
                    checkpoint.apply(span)?;
                    spans.insert((span.partition, span.seq), span.clone());
                }
                checkpoint.spool_len = checkpoint.spool_len.max(batch.spool_len);
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn end(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                if let Some(checkpoint) = contents.checkpoint.take() {
                    contents.ended = Some(checkpoint.header.run_id);
                }
                contents.spans.clear();
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn ended_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>> {
        Box::pin(async move { self.life.call(&self.disk, || Ok(self.disk.contents().ended.clone())).await })
    }

    fn reader(self: Arc<Self>) -> Arc<dyn SpanReader> {
        self
    }
}

impl SpanReader for FakeStore {
    fn spans(&self, partition: PartitionId) -> SpanIterator {
        let contents = self.disk.contents();
        let spans: Vec<Span> =
            contents.spans.range((partition, 0)..=(partition, u32::MAX)).map(|(_, span)| span.clone()).collect();
        Box::new(spans.into_iter().map(Ok))
    }
}
