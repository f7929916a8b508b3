//! Scripted ports: a source that is a list, a disk that forgets what was not synced, and deaths at any port call.
//!
//! A [`World`] outlives the runs in it, as a disk and a server do. Each run gets a [`ProcessRun`]: it ends at a chosen port call,
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
    checkpoint::{Checkpoint, RunHeader, SpoolEntry},
    checkpoint_store::{CheckpointStore, PageIndex, PageIterator},
    events::{Event, Listener},
    failure::{Failure, FailureClass},
    follow::{Follow, Followed, Proof, Reconciled, StreamFacts},
    harvest::Harvest,
    page::{
        FrameRange, Page, PageBody, PageCounts, PageRef, RECORD_HEADER_BYTES, Reject, Span, push_record, record_lengths,
    },
    partition::{
        Cursor, NewPartition, Partition, PartitionId, PassId, PlanPiece, Position, SourceIdentity, Stream, Yield,
    },
    plan::PlanBuilder,
    report::{Manifest, Outcome},
    retry::RetryPolicy,
    sink::{Cancel, KeyMask, KeySet, KeyVisitor, Prepare, PreparedStream, Recovered, Spool, Target},
    source::{PageSize, Source},
    supervisor::StopRequest,
};

/// Rows of a fake page.
const PAGE_ROWS: u32 = 5;
/// How long the fake source thinks about everything, on average where it is drawn by lot.
const SOURCE_LATENCY: Duration = Duration::from_millis(10);

/// How a life treats its chosen port call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum InjectedFault {
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
pub(crate) struct ProcessRun {
    /// The call at which something happens, counted from 1; 0 for none.
    at: u64,
    /// What happens.
    fault: InjectedFault,
    /// Calls so far.
    calls: AtomicU64,
    /// Whether it is over.
    dead: AtomicBool,
    /// Wakes who waits for the death.
    died: Notify,
    /// Who is asked for a stop.
    stop: watch::Sender<Option<StopRequest>>,
    /// What the source's latencies are drawn from, and with them the order in which things happen; `None`: all are equal.
    lots: Option<Mutex<SmallRng>>,
}

impl ProcessRun {
    /// A life in which `fault` happens at port call `at`.
    pub(crate) fn new(at: u64, fault: InjectedFault) -> Arc<ProcessRun> {
        ProcessRun::by_lot(at, fault, None)
    }

    /// The same, in an order of things that follows from the seed.
    pub(crate) fn by_lot(at: u64, fault: InjectedFault, seed: Option<u64>) -> Arc<ProcessRun> {
        Arc::new(ProcessRun {
            at,
            fault,
            calls: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
            stop: watch::Sender::new(None),
            lots: seed.map(|seed| Mutex::new(SmallRng::seed_from_u64(seed))),
        })
    }

    /// A life without misfortune.
    pub(crate) fn undisturbed() -> Arc<ProcessRun> {
        ProcessRun::new(0, InjectedFault::Fails)
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
        if hit && self.fault == InjectedFault::Fails {
            return Err(Failure::local("a scripted failure"));
        }
        let result = if hit && self.fault == InjectedFault::DiesBefore { None } else { Some(act()) };
        if hit && matches!(self.fault, InjectedFault::IsStopped | InjectedFault::IsStoppedSoon) {
            let (stop, is_soon) = (self.stop.clone(), self.fault == InjectedFault::IsStoppedSoon);
            let ask =
                move || stop.send_replace(Some(StopRequest { reason: "SIGINT".into(), outcome: Outcome::Interrupted }));
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
        if hit
            && matches!(self.fault, InjectedFault::DiesBefore | InjectedFault::DiesAfter | InjectedFault::PowerCutAfter)
        {
            if self.fault == InjectedFault::PowerCutAfter {
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
        let hit = self.fault == InjectedFault::Panics && self.calls.load(Ordering::SeqCst) + 1 == self.at;
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
    /// A spool whose plan is not complete: nobody finds it after a death.
    draft: Option<Vec<Stored>>,
    /// How many entries of the spool survive a power cut.
    synced: usize,
    checkpoint: Option<Checkpoint>,
    pages: BTreeMap<PassId, Vec<PageRef>>,
    completed: Option<String>,
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
        contents.draft = None;
        if let Some(spool) = &mut contents.spool {
            spool.truncate(synced);
        }
    }

    /// Forgets the checkpoint store, as if its folder had been deleted.
    pub(crate) fn lose_store(&self) {
        let mut contents = self.contents();
        contents.checkpoint = None;
        contents.pages.clear();
        contents.completed = None;
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
        contents.spool.is_none() && contents.checkpoint.is_none() && contents.pages.is_empty()
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
    /// Whether a partition of several pages is split in two after its first, instead of read on.
    pub(crate) splits: AtomicBool,
    /// Whether each page leads to the place it came from.
    pub(crate) stands_still: AtomicBool,
    /// Rows that it lists and does not send.
    pub(crate) held_back: Mutex<HeldBack>,
    /// What it says about itself.
    pub(crate) identity: Mutex<SourceIdentity>,
    /// Pages asked for: partition and where from.
    pub(crate) asked: Mutex<Vec<(String, Cursor)>>,
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
            splits: AtomicBool::new(false),
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
    pub(crate) fn harvest(self: &Arc<Self>, life: &Arc<ProcessRun>, fetchers: u32) -> Harvest {
        Harvest {
            job: "fake".into(),
            run_id: "20260101T000000Z".into(),
            now: || "2026-01-01T00:00:00Z".into(),
            fingerprint: BTreeMap::from([("fields".into(), ":owner".into())]),
            differences: |_, _| vec!["something".into()],
            source: Arc::new(FakeSource {
                world: Arc::clone(self),
                life: Arc::clone(life),
                listings: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            }),
            spool: Arc::new(FakeSink { disk: self.disk.clone(), life: Arc::clone(life) }),
            target: Arc::new(FakeSink { disk: self.disk.clone(), life: Arc::clone(life) }),
            store: Arc::new(FakeStore { disk: self.disk.clone(), life: Arc::clone(life) }),
            limiter: None,
            listener: Arc::new(NullListener),
            stop: life.stop.subscribe(),
            fetchers,
            arbiters: 0,
            retry: RetryPolicy::new(2, Duration::from_secs(60), 1),
        }
    }
}

/// Hears nothing.
pub(crate) struct NullListener;

impl Listener for NullListener {
    fn on_event(&self, _: &Event) {}
}

/// Keeps what it hears.
#[derive(Default)]
pub(crate) struct RecordingListener(pub(crate) Mutex<Vec<Event>>);

impl Listener for RecordingListener {
    fn on_event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

struct FakeSource {
    world: Arc<World>,
    life: Arc<ProcessRun>,
    /// Listings after the first of each stream.
    listings: AtomicU64,
    closed: AtomicBool,
}

impl Source for FakeSource {
    fn identify(&self) -> LocalBoxFuture<'_, Result<SourceIdentity, Failure>> {
        Box::pin(async {
            self.life.source_thinks().await;
            self.life.call(&self.world.disk, || Ok(self.world.identity.lock().unwrap().clone())).await
        })
    }

    fn plan<'a>(&'a self, _: &'a SourceIdentity, mut plan: PlanBuilder<'a>) -> LocalBoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            self.life.source_thinks().await;
            let truth = self.life.call(&self.world.disk, || Ok(self.world.truth.lock().unwrap().clone())).await?;
            let miscounts_by = self.world.miscounts_by.load(Ordering::SeqCst);
            for (name, rows) in &truth {
                let stream = Stream {
                    name: name.clone(),
                    expected_rows: Some(rows.len() as u64 + miscounts_by),
                    optional: false,
                    watermark: None,
                };
                let pass = plan.add_stream(stream, json!({"stream": name}))?;
                let chunk = rows.len().div_ceil(self.world.partitions as usize).max(1);
                for (part, rows) in rows.chunks(chunk).enumerate() {
                    plan.add_partition(NewPartition {
                        pass,
                        key: format!("{name}/{part}"),
                        selection: json!({"stream": name, "first": rows[0].0, "last": rows[rows.len() - 1].0}),
                        requests: None,
                        expected_rows: Some(rows.len() as u64),
                    })
                    .await?;
                }
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
                let size = PageSize { halvings: position.halvings };
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

    /// A small kind of data: what does not agree with the announced number is listed, and what the listing has and was not
    /// fetched is asked for by its keys, twice.
    fn follow<'a>(&'a self, facts: StreamFacts<'a>) -> LocalBoxFuture<'a, Result<Followed, Failure>> {
        Box::pin(async move {
            let counts = facts.row_totals().counts;
            let name = &facts.stream.name;
            let further = |yields, selection: Value| {
                let partition = NewPartition {
                    pass: facts.next_pass,
                    key: format!("{name}/pass-{}", facts.next_pass.0),
                    selection: selection.clone(),
                    requests: None,
                    expected_rows: None,
                };
                Follow::Pass { yields, selection, partitions: vec![partition] }
            };
            let listings: Vec<PassId> =
                facts.passes.iter().filter(|pass| pass.pass.yields == Yield::Keys).map(|pass| pass.id).collect();
            let Some(newest) = listings.last().copied() else {
                let agrees = facts.stream.expected_rows == Some(counts.kept) && facts.duplicates.unwrap_or(0) == 0;
                let listing = || further(Yield::Keys, json!({"stream": name, "listing": true}));
                let step = if agrees { Follow::Satisfied(Proof::Total) } else { listing() };
                return Ok(Followed { step, ..Followed::default() });
            };
            let is_row = |pass: &&crate::follow::PassFacts<'_>| pass.pass.yields == Yield::Rows;
            let ids = |is_wanted: &dyn Fn(PassId) -> bool| {
                KeySet(facts.passes.iter().filter(is_row).map(|pass| pass.id).filter(|id| is_wanted(*id)).collect())
            };
            let sets = vec![ids(&|id| id < newest), ids(&|id| id > newest), KeySet(vec![newest])];
            let found = Arc::new(Mutex::new((Vec::new(), Vec::new(), 0, 0_u64)));
            let finding = Arc::clone(&found);
            facts
                .keys
                .each(sets, move |key, mask| {
                    let key = String::from_utf8_lossy(key).into_owned();
                    let mut found = finding.lock().unwrap();
                    found.3 += u64::from(mask & 4 != 0);
                    match mask {
                        4 => found.0.push(key),
                        1 => found.1.push(key),
                        3 => found.2 += 1,
                        _ => {}
                    }
                })
                .await?;
            let (missing, vanished, returned, listed) = found.lock().unwrap().clone();
            let is_asked = facts.passes.last().is_some_and(|pass| pass.id > newest);
            let reconciled = Reconciled { appeared: missing.len() as u64, vanished: vanished.len() as u64 };
            let gone = facts.stream.expected_rows.unwrap_or(0).saturating_sub(listed + reconciled.vanished);
            let mut warnings = Vec::new();
            let step = if returned > 0 {
                Follow::Unproved(format!("the server contradicts itself: it sends {returned} rows of {name}"))
            } else if !is_asked && (!missing.is_empty() || !vanished.is_empty()) {
                let ids = [missing.as_slice(), &vanished].concat();
                further(Yield::Rows, json!({"stream": name, "ids": ids}))
            } else if !missing.is_empty() && self.listings.fetch_add(1, Ordering::SeqCst) < 2 {
                further(Yield::Keys, json!({"stream": name, "listing": true}))
            } else if !missing.is_empty() {
                Follow::Unproved(format!("{} of the rows of {name} that the server lists do not come", missing.len()))
            } else if gone > 0 && self.world.miscounts_by.load(Ordering::SeqCst) > 0 {
                Follow::Unproved(format!("it counts {gone} rows of {name} that it neither lists nor sends"))
            } else {
                warnings.extend((gone > 0).then(|| format!("{gone} rows more in {name} were counted")));
                Follow::Satisfied(Proof::Listing)
            };
            let reconciled = (!is_asked).then_some(reconciled);
            Ok(Followed { step, reconciled, warnings })
        })
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
            Cursor::After(id) => wanted.iter().position(|(other, _)| other > id).unwrap_or(wanted.len()),
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
        if self.world.splits.load(Ordering::SeqCst)
            && position.seq == 0
            && wanted.len() > page_rows
            && !selection["first"].is_null()
        {
            let children = wanted.chunks(wanted.len().div_ceil(2)).enumerate().map(|(half, rows)| NewPartition {
                pass: partition.pass,
                key: format!("{}.{half}", partition.key),
                selection: json!({"stream": selection["stream"], "first": rows[0].0, "last": rows[rows.len() - 1].0}),
                requests: None,
                expected_rows: None,
            });
            return Page::split(partition, position, children.collect());
        }
        let next = match taken.last() {
            _ if self.world.stands_still.load(Ordering::SeqCst) => position.next.clone(),
            Some((id, _)) if behind + taken.len() < wanted.len() => Cursor::After(id.clone()),
            _ => Cursor::End,
        };
        Page { next, counts, body: PageBody::Memory(body), ..Page::split(partition, position, Vec::new()) }
    }
}

/// Spool and target of the fake disk.
struct FakeSink {
    disk: Disk,
    life: Arc<ProcessRun>,
}

impl FakeSink {
    /// Appends an entry whose place `place` decides.
    fn push(&self, records: Vec<u8>, place: impl FnOnce(FrameRange) -> SpoolEntry) -> Result<SpoolEntry, Failure> {
        let mut contents = self.disk.contents();
        let Contents { spool, draft, .. } = &mut *contents;
        let Some(spool) = draft.as_mut().or(spool.as_mut()) else { return Err(Failure::local("there is no spool")) };
        let from = spool.iter().map(|stored| stored.len).sum();
        let len = 100 + records.len() as u64;
        let entry = place(FrameRange { from, to: from + len });
        spool.push(Stored { entry: entry.clone(), records, len });
        Ok(entry)
    }

    /// What is stored at this place.
    fn stored(&self, frame: FrameRange) -> Result<Stored, Failure> {
        let contents = self.disk.contents();
        let stored = contents.spool.iter().flatten().find(|stored| stored.entry.frame() == frame);
        stored.cloned().ok_or_else(|| Failure::new(FailureClass::Damaged, "there is no such entry"))
    }

    /// Keys and rows of some passes, in the order of the spool.
    fn rows_of(&self, passes: &[PassId], pages: &dyn PageIndex) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let mut rows = Vec::new();
        for page in passes.iter().flat_map(|pass| pages.pages_of(*pass)) {
            let stored = self.stored(page?.frame)?;
            let mut rest = stored.records.as_slice();
            while let Some((header, behind)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() {
                let (row_len, key_len) = record_lengths(*header);
                let (key, behind) = behind.split_at(key_len);
                let (row, behind) = behind.split_at(row_len);
                rows.push((String::from_utf8_lossy(key).into_owned(), row.to_vec()));
                rest = behind;
            }
        }
        Ok(rows)
    }
}

impl Spool for FakeSink {
    fn recover(
        self: Arc<Self>,
        from_offset: u64,
        mut visit: Box<dyn FnMut(SpoolEntry) -> Result<(), Failure> + Send>,
    ) -> BoxFuture<'static, Result<Option<Recovered>, Failure>> {
        Box::pin(async move {
            let entries = self
                .life
                .call(&self.disk, || {
                    let mut contents = self.disk.contents();
                    contents.draft = None;
                    contents.synced = contents.spool.as_ref().map_or(0, Vec::len);
                    Ok(contents.spool.clone())
                })
                .await?;
            let Some(entries) = entries else { return Ok(None) };
            tokio::task::spawn_blocking(move || {
                let mut len = 0;
                for stored in entries {
                    if len >= from_offset {
                        visit(stored.entry)?;
                    }
                    len += stored.len;
                }
                if len < from_offset {
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
                self.disk.contents().draft = Some(Vec::new());
                Ok(self.push(Vec::new(), |frame| SpoolEntry::Begun { header, frame })?.frame())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn extend_plan(self: Arc<Self>, piece: PlanPiece) -> BoxFuture<'static, Result<FrameRange, Failure>> {
        Box::pin(async move {
            let act = || Ok(self.push(Vec::new(), |frame| SpoolEntry::Planned { piece, frame })?.frame());
            self.life.call(&self.disk, act).await
        })
    }

    fn commit_plan(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                contents.spool = contents.draft.take();
                contents.synced = contents.spool.as_ref().map_or(0, Vec::len);
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn append(self: Arc<Self>, page: Page, first_child: PartitionId) -> BoxFuture<'static, Result<Span, Failure>> {
        Box::pin(async move {
            let act = || {
                let Page { partition, pass, seq, next, halvings, counts, rejects, children, body } = page;
                let mut records = Vec::new();
                match body {
                    PageBody::Memory(bytes) => records = bytes,
                    PageBody::Spilled { file, len } => {
                        file.take(len).read_to_end(&mut records).map_err(|error| Failure::local(error.to_string()))?;
                    }
                }
                let places = (first_child.0..).map(PartitionId);
                let children = places.zip(children).map(|(id, child)| child.at(id)).collect();
                let entry = self.push(records, |frame| {
                    SpoolEntry::Page(Span { partition, pass, seq, next, halvings, counts, rejects, children, frame })
                })?;
                Ok(entry.page().cloned().expect("a page was pushed"))
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

    fn partitions(self: Arc<Self>, frame: FrameRange) -> BoxFuture<'static, Result<Vec<Partition>, Failure>> {
        Box::pin(async move {
            let act = || {
                Ok(match self.stored(frame)?.entry {
                    SpoolEntry::Planned { piece, .. } => piece.partitions,
                    SpoolEntry::Page(span) => span.children,
                    SpoolEntry::Begun { .. } => Vec::new(),
                })
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn rejects(self: Arc<Self>, frame: FrameRange) -> BoxFuture<'static, Result<Vec<Reject>, Failure>> {
        Box::pin(
            async move { Ok(self.stored(frame)?.entry.page().map(|span| span.rejects.clone()).unwrap_or_default()) },
        )
    }

    fn each_key(
        self: Arc<Self>,
        pages: Arc<dyn PageIndex>,
        sets: Vec<KeySet>,
        _: Cancel,
        mut visit: KeyVisitor,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut keys: BTreeMap<String, KeyMask> = BTreeMap::new();
                for (bit, set) in sets.iter().enumerate() {
                    for (key, _) in self.rows_of(&set.0, &*pages)? {
                        *keys.entry(key).or_default() |= 1 << bit;
                    }
                }
                keys.iter().for_each(|(key, mask)| visit(key.as_bytes(), *mask));
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

impl Target for FakeSink {
    fn check(self: Arc<Self>, _: String, _: Vec<String>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move { self.life.call(&self.disk, || Ok(())).await })
    }

    fn claim(self: Arc<Self>, _: String) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move { self.life.call(&self.disk, || Ok(())).await })
    }

    fn prepare(self: Arc<Self>, work: Prepare) -> BoxFuture<'static, Result<PreparedStream, Failure>> {
        Box::pin(async move {
            let act = || {
                let mut rows = self.rows_of(&work.passes, &*work.pages)?;
                let fetched = rows.len();
                rows.sort();
                rows.dedup_by(|one, other| one.0 == other.0);
                let file = format!("{}.ndjson", work.stream.name);
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

    fn release(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

struct FakeStore {
    disk: Disk,
    life: Arc<ProcessRun>,
}

impl CheckpointStore for FakeStore {
    fn load(self: Arc<Self>) -> BoxFuture<'static, Result<Option<Checkpoint>, Failure>> {
        Box::pin(async move { self.life.call(&self.disk, || Ok(self.disk.contents().checkpoint.clone())).await })
    }

    fn begin(self: Arc<Self>, header: RunHeader, spool_len: u64) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                contents.pages.clear();
                contents.completed = None;
                contents.checkpoint = Some(Checkpoint::new(header, spool_len));
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn commit(self: Arc<Self>, entries: Vec<Arc<SpoolEntry>>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                let Contents { checkpoint: Some(checkpoint), pages, .. } = &mut *contents else {
                    return Err(Failure::local("there is no run"));
                };
                for entry in &entries {
                    checkpoint.apply(entry)?;
                    if let Some(span) = entry.page() {
                        pages.entry(span.pass).or_default().push(span.page_ref());
                    }
                }
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn complete_run(self: Arc<Self>) -> BoxFuture<'static, Result<(), Failure>> {
        Box::pin(async move {
            let act = || {
                let mut contents = self.disk.contents();
                if let Some(checkpoint) = contents.checkpoint.take() {
                    contents.completed = Some(checkpoint.header.run_id);
                }
                contents.pages.clear();
                Ok(())
            };
            self.life.call(&self.disk, act).await
        })
    }

    fn last_completed_run(self: Arc<Self>) -> BoxFuture<'static, Result<Option<String>, Failure>> {
        Box::pin(async move { self.life.call(&self.disk, || Ok(self.disk.contents().completed.clone())).await })
    }

    fn pages(self: Arc<Self>) -> Arc<dyn PageIndex> {
        self
    }
}

impl PageIndex for FakeStore {
    fn pages_of(&self, pass: PassId) -> PageIterator {
        let pages = self.disk.contents().pages.get(&pass).cloned().unwrap_or_default();
        Box::new(pages.into_iter().map(Ok))
    }
}
