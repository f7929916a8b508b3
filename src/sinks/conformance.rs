//! What every spool and every target promises. A new one writes a bench and gets all of these tests.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use harvester_actors::{
    checkpoint::{PassTotals, RunHeader, SpoolEntry},
    checkpoint_store::{PageIndex, PageIterator},
    failure::Failure,
    page::{FrameRange, Page, PageBody, PageCounts, Reject, Span, push_record},
    partition::{
        Cursor, NewPartition, Partition, PartitionId, Pass, PassId, PlanPiece, SourceIdentity, Stream, StreamId, Yield,
    },
    report::{Manifest, ManifestSource, ManifestStream},
    sink::{Cancel, KeyMask, KeySet, Prepare, PreparedStream, Recovered, Spool, Target},
};

use super::{FileFormat, FileSpool, FilesSettings, FilesTarget};

/// A place for one spool.
trait SpoolBench {
    /// The spool as a new process would find it.
    fn spool(&self) -> Arc<dyn Spool>;
}

/// A place for one target, and for the spool that its rows come from.
trait TargetBench {
    /// Both as a new process would find them.
    fn open(&self) -> (Arc<dyn Spool>, Arc<dyn Target>);

    /// What a reader of the finished data gets under this name; `None` while it is not published.
    fn read(&self, file: &str) -> Option<Vec<u8>>;
}

/// A [`FileSpool`] and a [`FilesTarget`] in a temporary directory.
struct FilesBench(tempfile::TempDir);

impl SpoolBench for FilesBench {
    fn spool(&self) -> Arc<dyn Spool> {
        files(self.0.path()).0
    }
}

impl TargetBench for FilesBench {
    fn open(&self) -> (Arc<dyn Spool>, Arc<dyn Target>) {
        let (spool, target) = files(self.0.path());
        (spool, target)
    }

    fn read(&self, file: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.path().join("out").join(file)).ok()
    }
}

/// A spool and a target of files below this directory.
pub(crate) fn files(dir: &Path) -> (Arc<FileSpool>, Arc<FilesTarget>) {
    let spool = Arc::new(FileSpool::new(dir.join("state/spool")));
    let settings =
        FilesSettings { out_dir: dir.join("out"), job: "sierra-leone".to_owned(), format: FileFormat::Ndjson };
    (Arc::clone(&spool), Arc::new(FilesTarget::new(settings, spool)))
}

/// A stream of a plan.
pub(crate) fn stream(name: &str) -> Stream {
    Stream { name: name.to_owned(), expected_rows: None, optional: false, watermark: None }
}

/// A plan of these streams and of passes, each with its stream, what it gives, and how many partitions it has.
pub(crate) fn plan(streams: &[&str], passes: &[(u32, Yield, u32)]) -> PlanPiece {
    let mut piece = PlanPiece { streams: streams.iter().map(|name| stream(name)).collect(), ..PlanPiece::default() };
    for (pass, (stream, yields, partitions)) in (0..).map(PassId).zip(passes) {
        let selection = serde_json::json!({ "of": stream });
        piece.passes.push(Pass { stream: StreamId(*stream), yields: *yields, selection });
        for part in 0..*partitions {
            let id = PartitionId(u32::try_from(piece.partitions.len()).unwrap());
            piece.partitions.push(child(pass, &format!("stream {stream}, part {part}")).at(id));
        }
    }
    piece
}

/// A partition that has no place yet.
pub(crate) fn child(pass: PassId, key: &str) -> NewPartition {
    NewPartition {
        pass,
        key: key.to_owned(),
        selection: serde_json::json!({ "range": key }),
        requests: Some(2),
        expected_rows: None,
    }
}

/// What a run is.
pub(crate) fn header(run_id: &str) -> RunHeader {
    RunHeader {
        run_id: run_id.to_owned(),
        job: "sierra-leone".to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        fingerprint: BTreeMap::new(),
        source: SourceIdentity::default(),
    }
}

/// A page of rows of the first pass, each `(key, row)`.
pub(crate) fn page(partition: u32, seq: u32, rows: &[(&str, &str)]) -> Page {
    page_of(0, partition, seq, rows)
}

/// A page of rows of any pass, each `(key, row)`.
pub(crate) fn page_of(pass: u32, partition: u32, seq: u32, rows: &[(&str, &str)]) -> Page {
    let mut records = Vec::new();
    for (key, row) in rows {
        push_record(&mut records, key.as_bytes(), row.as_bytes());
    }
    let kept = rows.len() as u64;
    let bytes = rows.iter().map(|(_, row)| row.len() as u64 + 1).sum();
    Page {
        partition: PartitionId(partition),
        pass: PassId(pass),
        seq,
        next: Cursor::After(format!("page {seq}")),
        halvings: 0,
        counts: PageCounts { fetched: kept, kept, bytes, ..PageCounts::default() },
        rejects: Vec::new(),
        children: Vec::new(),
        body: PageBody::Memory(records),
    }
}

/// The same page with its rows in a file.
pub(crate) fn spilled(mut page: Page) -> Page {
    if let PageBody::Memory(records) = &page.body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(records).unwrap();
        // Bytes after the length do not count.
        file.write_all(b"left over").unwrap();
        page.body = PageBody::Spilled { len: records.len() as u64, file };
    }
    page
}

/// The same page with rows that could not be taken.
fn refused(mut page: Page, rejects: Vec<Reject>) -> Page {
    page.counts.fetched += rejects.len() as u64;
    page.counts.rejected = rejects.len() as u64;
    page.rejects = rejects;
    page
}

/// A row that could not be taken.
fn reject(id: Option<&str>) -> Reject {
    Reject {
        partition: "organisationUnits/1".to_owned(),
        class: "too_large".to_owned(),
        message: "the row is larger than 16 MiB: ü".to_owned(),
        id: id.map(str::to_owned),
        bytes: Some(1 << 40),
    }
}

/// The pages that have been committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages(pub(crate) Vec<Span>);

impl PageIndex for Pages {
    fn pages_of(&self, pass: PassId) -> PageIterator {
        let pages: Vec<_> = self.0.iter().filter(|span| span.pass == pass).map(|span| Ok(span.page_ref())).collect();
        Box::new(pages.into_iter())
    }
}

impl Pages {
    /// Everything that a stream's file is to be made of.
    pub(crate) fn prepare(&self, run_id: &str, stream: Stream, passes: &[PassId]) -> Prepare {
        let mut totals = PassTotals::default();
        for span in self.0.iter().filter(|span| passes.contains(&span.pass)) {
            totals.pages += 1;
            totals.counts.add(&span.counts);
        }
        Prepare {
            run_id: run_id.to_owned(),
            stream,
            passes: passes.to_vec(),
            totals,
            pages: Arc::new(self.clone()),
            cancel: Cancel::default(),
        }
    }
}

/// Pages that are counted as they are read; before the page with this number is, the work is asked to end.
struct Watched {
    pages: Pages,
    read: Arc<AtomicUsize>,
    end: Option<(usize, Cancel)>,
}

impl PageIndex for Watched {
    fn pages_of(&self, pass: PassId) -> PageIterator {
        let (read, end) = (Arc::clone(&self.read), self.end.clone());
        Box::new(self.pages.pages_of(pass).inspect(move |_| {
            let number = read.fetch_add(1, Ordering::Relaxed);
            match &end {
                Some((last, cancel)) if number == *last => cancel.cancel(),
                _ => {}
            }
        }))
    }
}

/// What a spool recovers from `from_offset` on.
async fn recovered(spool: &Arc<dyn Spool>, from_offset: u64) -> Result<(Option<Recovered>, Vec<SpoolEntry>), Failure> {
    let entries = Arc::new(Mutex::new(Vec::new()));
    let collect = {
        let entries = Arc::clone(&entries);
        Box::new(move |entry| {
            entries.lock().unwrap().push(entry);
            Ok(())
        })
    };
    let found = spool.clone().recover(from_offset, collect).await?;
    let entries = std::mem::take(&mut *entries.lock().unwrap());
    Ok((found, entries))
}

const RUN: &str = "20260101T000000Z";

/// A place that no test comes to, where pages bring no partitions.
const NO_CHILD: PartitionId = PartitionId(1_000);

/// One stream of two partitions.
fn two_partitions() -> PlanPiece {
    plan(&["organisationUnits"], &[(0, Yield::Rows, 2)])
}

/// Begins a run of this plan in a spool that is empty; where the plan lies.
async fn begin(spool: &Arc<dyn Spool>, plan: &PlanPiece) -> FrameRange {
    assert_eq!(recovered(spool, 0).await.unwrap(), (None, Vec::new()));
    start(spool, RUN, plan).await
}

/// Begins a run of this plan; where the plan lies.
async fn start(spool: &Arc<dyn Spool>, run_id: &str, plan: &PlanPiece) -> FrameRange {
    spool.clone().begin(header(run_id)).await.unwrap();
    let frame = spool.clone().extend_plan(plan.clone()).await.unwrap();
    spool.clone().commit_plan().await.unwrap();
    frame
}

/// Appends a page that brings no partitions.
async fn append(spool: &Arc<dyn Spool>, page: Page) -> Span {
    spool.clone().append(page, NO_CHILD).await.unwrap()
}

/// The manifest of prepared streams.
pub(crate) fn manifest(run_id: &str, prepared: &[(&str, PreparedStream)]) -> Manifest {
    let streams = prepared.iter().map(|(name, done)| {
        let stream = ManifestStream {
            file: done.file.clone(),
            rows: done.rows,
            bytes: done.bytes,
            sha256: done.sha256.clone(),
            duplicates: done.duplicates,
            filtered: 0,
            rejected: 0,
            expected: None,
            proof: Default::default(),
            complete: true,
        };
        ((*name).to_owned(), stream)
    });
    Manifest {
        version: 1,
        job: "sierra-leone".to_owned(),
        run_id: run_id.to_owned(),
        source: ManifestSource { url: "http://x".to_owned(), system_id: None, version: "2.40".to_owned() },
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        finished_at: "2026-01-01T00:01:00Z".to_owned(),
        complete: true,
        watermarks: BTreeMap::new(),
        streams: streams.collect(),
    }
}

// What every spool promises.

async fn everything_appended_is_found_at_the_next_start_in_order(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    let piece = two_partitions();
    let planned = begin(&spool, &piece).await;
    let a = append(&spool, page(0, 0, &[("a", r#"{"id":"a"}"#)])).await;
    let mut odd = refused(page(1, 0, &[]), vec![reject(None)]);
    (odd.next, odd.halvings) = (Cursor::End, 3);
    odd.counts.miscounted = 7;
    let b = append(&spool, odd).await;
    let listing = plan(&[], &[(0, Yield::Keys, 0)]);
    let c = spool.clone().extend_plan(listing.clone()).await.unwrap();
    spool.clone().sync().await.unwrap();
    let d = append(&spool, spilled(page(0, 1, &[("b", r#"{"id":"b"}"#)]))).await;
    assert_eq!((planned.to, a.frame.to, b.frame.to, c.to), (a.frame.from, b.frame.from, c.from, d.frame.from));
    drop(spool);

    let spool = bench.spool();
    let (found, entries) = recovered(&spool, 0).await.unwrap();
    assert_eq!(found, Some(Recovered { len: d.frame.to, cut_bytes: 0 }));
    let SpoolEntry::Begun { header: begun, frame } = &entries[0] else { panic!("{:?}", entries[0]) };
    assert_eq!((begun, frame.to), (&header(RUN), planned.from));
    let planned = SpoolEntry::Planned { piece, frame: planned };
    let listed = SpoolEntry::Planned { piece: listing, frame: c };
    let pages = [&a, &b, &d].map(|span| SpoolEntry::Page(span.clone()));
    let [first, second, last] = pages;
    assert_eq!(entries[1..], [planned, first, second, listed.clone(), last.clone()]);

    for (from_offset, expected) in [(b.frame.to, vec![listed, last]), (d.frame.to, vec![])] {
        assert_eq!(recovered(&bench.spool(), from_offset).await.unwrap().1, expected, "from {from_offset}");
    }
    let e = append(&spool, page(0, 2, &[])).await;
    assert_eq!(e.frame.from, d.frame.to, "appends continue at the end");
}

async fn a_spool_that_lacks_what_was_committed_is_damaged(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    let failure = recovered(&spool, 7).await.unwrap_err();
    assert_eq!(failure.class.as_str(), "damaged", "no spool at all");
    begin(&spool, &two_partitions()).await;
    let span = append(&spool, page(0, 0, &[("a", "{}")])).await;
    let FrameRange { from, to } = span.frame;
    for from_offset in [1, from - 1, from + 1, to - 1, to + 1, u64::MAX] {
        let failure = recovered(&bench.spool(), from_offset).await.unwrap_err();
        assert_eq!(failure.class.as_str(), "damaged", "from {from_offset}");
        assert!(failure.next.is_some(), "a person is told what to do");
    }
    recovered(&bench.spool(), to).await.unwrap();
    for frame in [
        FrameRange { from, to: to + 1 },
        FrameRange { from, to: to - 1 },
        FrameRange { from: from + 1, to },
        FrameRange { from: to, to: to + 100 },
        FrameRange { from: to, to: from },
        FrameRange::default(),
    ] {
        let failure = spool.clone().partitions(frame).await.unwrap_err();
        assert_eq!((failure.class.as_str(), failure.next.is_some()), ("damaged", true), "{frame:?}");
        let failure = spool.clone().rejects(frame).await.unwrap_err();
        assert_eq!((failure.class.as_str(), failure.next.is_some()), ("damaged", true), "{frame:?}");
    }
}

async fn a_new_run_leaves_nothing_of_the_one_before(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    begin(&spool, &two_partitions()).await;
    append(&spool, page(0, 0, &[("a", "{}")])).await;
    start(&spool, "20250101T000000Z", &two_partitions()).await;
    let (_, entries) = recovered(&bench.spool(), 0).await.unwrap();
    assert_eq!(entries.len(), 2, "what it is, and its plan");
    // The same id again, as a repeat after a crash would.
    append(&spool, page(0, 0, &[("a", "{}")])).await;
    start(&spool, "20250101T000000Z", &two_partitions()).await;
    assert_eq!(recovered(&bench.spool(), 0).await.unwrap().1.len(), 2);
    spool.clone().discard().await.unwrap();
    spool.clone().discard().await.unwrap();
    assert_eq!(recovered(&bench.spool(), 0).await.unwrap().0, None);
}

async fn nothing_is_appended_where_no_run_has_begun(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    assert_eq!(recovered(&spool, 0).await.unwrap().0, None);
    let failures = [
        spool.clone().append(page(0, 0, &[]), NO_CHILD).await.map(drop),
        spool.clone().extend_plan(two_partitions()).await.map(drop),
        spool.clone().commit_plan().await,
        spool.clone().sync().await,
        spool.partitions(FrameRange::default()).await.map(drop),
    ];
    for failure in failures {
        assert_eq!(failure.unwrap_err().class.as_str(), "bug");
    }
}

async fn appends_go_on_while_a_sync_runs(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    begin(&spool, &two_partitions()).await;
    let mut spans = Vec::new();
    for seq in 0..20 {
        let sync = tokio::spawn(spool.clone().sync());
        spans.push(append(&spool, page(0, seq, &[("k", "{}")])).await);
        sync.await.unwrap().unwrap();
    }
    let (_, entries) = recovered(&bench.spool(), 0).await.unwrap();
    assert_eq!(entries[2..], spans.into_iter().map(SpoolEntry::Page).collect::<Vec<_>>());
}

async fn a_plan_of_several_pieces_is_found_as_a_whole_or_not_at_all(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    begin(&spool, &two_partitions()).await;
    let older = append(&spool, page(0, 0, &[("a", "{}")])).await;

    let first = plan(&["organisationUnits", "events"], &[(0, Yield::Rows, 2), (1, Yield::Rows, 1)]);
    let partition = |id, key: &str| child(PassId(1), key).at(PartitionId(id));
    let pieces = [
        first,
        PlanPiece { partitions: vec![partition(3, "x"), partition(4, "y")], ..PlanPiece::default() },
        PlanPiece { partitions: vec![partition(5, "z")], ..PlanPiece::default() },
    ];
    let newer = "20260102T000000Z";
    spool.clone().begin(header(newer)).await.unwrap();
    let mut frames = Vec::new();
    for piece in &pieces {
        // At every death before the end, the run that was there before is still there, and nothing of this one.
        let (found, entries) = recovered(&bench.spool(), 0).await.unwrap();
        assert_eq!((found.unwrap().len, entries.len()), (older.frame.to, 3));
        frames.push(spool.clone().extend_plan(piece.clone()).await.unwrap());
        spool.clone().sync().await.unwrap();
    }
    let (found, _) = recovered(&bench.spool(), 0).await.unwrap();
    assert_eq!(found.unwrap().len, older.frame.to);

    spool.clone().commit_plan().await.unwrap();
    let expected: Vec<_> = pieces.iter().zip(&frames).map(|(piece, frame)| (piece.clone(), *frame)).collect();
    // By a new process, and by the same one, which reads it once more.
    for spool in [&bench.spool(), &spool] {
        let (found, entries) = recovered(spool, 0).await.unwrap();
        assert_eq!(found, Some(Recovered { len: frames[2].to, cut_bytes: 0 }));
        let SpoolEntry::Begun { header: begun, .. } = &entries[0] else { panic!("{:?}", entries[0]) };
        assert_eq!(begun, &header(newer));
        let found: Vec<_> = entries[1..]
            .iter()
            .map(|entry| match entry {
                SpoolEntry::Planned { piece, frame } => (piece.clone(), *frame),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, expected);
    }
    for (piece, frame) in expected {
        assert_eq!(spool.clone().partitions(frame).await.unwrap(), piece.partitions);
    }
}

async fn a_plan_that_was_never_complete_is_never_found(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    spool.clone().begin(header(RUN)).await.unwrap();
    spool.clone().extend_plan(two_partitions()).await.unwrap();
    spool.sync().await.unwrap();
    assert_eq!(recovered(&bench.spool(), 0).await.unwrap(), (None, Vec::new()));
    // The next attempt, which gives up as well; then one that does not.
    let spool = bench.spool();
    spool.clone().begin(header("20260102T000000Z")).await.unwrap();
    assert_eq!(recovered(&bench.spool(), 0).await.unwrap(), (None, Vec::new()));
    start(&spool, RUN, &two_partitions()).await;
    assert_eq!(recovered(&bench.spool(), 0).await.unwrap().1.len(), 2);
}

async fn partitions_that_a_page_brings_have_the_places_that_were_given_and_are_read_by_its_frame(
    bench: &dyn SpoolBench,
) {
    let spool = bench.spool();
    let piece = two_partitions();
    let planned = begin(&spool, &piece).await;
    let parts = ["left", "right"].map(|key| child(PassId(0), key));
    let places = |first: u32, parts: &[NewPartition]| -> Vec<Partition> {
        (first..).zip(parts).map(|(id, part)| part.clone().at(PartitionId(id))).collect()
    };
    // A partition that is split, and a page with rows that brings more.
    let split = Page { next: Cursor::End, body: PageBody::Memory(Vec::new()), ..page(0, 0, &[]) };
    let split = spool.clone().append(Page { children: parts.to_vec(), ..split }, PartitionId(2)).await.unwrap();
    assert_eq!(split.children, places(2, &parts));
    let more = [child(PassId(0), "file")];
    let rows = spilled(page(1, 0, &[("a", "{}"), ("b", "{}")]));
    let rows = spool.clone().append(Page { children: more.to_vec(), ..rows }, PartitionId(4)).await.unwrap();
    assert_eq!(rows.children, places(4, &more));
    let none = append(&spool, page(1, 1, &[("c", "{}")])).await;

    for spool in [&spool, &bench.spool()] {
        let (_, entries) = recovered(spool, 0).await.unwrap();
        let pages: Vec<_> = entries.iter().filter_map(SpoolEntry::page).collect();
        assert_eq!(pages, [&split, &rows, &none]);
        let first = entries[0].frame();
        for (frame, expected) in [
            (first, Vec::new()),
            (planned, piece.partitions.clone()),
            (split.frame, places(2, &parts)),
            (rows.frame, places(4, &more)),
            (none.frame, Vec::new()),
        ] {
            assert_eq!(spool.clone().partitions(frame).await.unwrap(), expected, "{frame:?}");
        }
    }
}

async fn what_a_page_could_not_take_is_read_by_its_frame(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    let planned = begin(&spool, &two_partitions()).await;
    let rejects = vec![reject(None), reject(Some("b"))];
    let some = append(&spool, refused(page(0, 0, &[("a", "{}")]), rejects.clone())).await;
    let none = append(&spool, page(0, 1, &[("c", "{}")])).await;
    for (frame, expected) in [(planned, Vec::new()), (some.frame, rejects), (none.frame, Vec::new())] {
        assert_eq!(spool.clone().rejects(frame).await.unwrap(), expected, "{frame:?}");
    }
}

/// What [`Spool::each_key`] hands out.
async fn keys(spool: &Arc<dyn Spool>, pages: &Pages, sets: &[&[u32]]) -> Vec<(String, KeyMask)> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let visit = {
        let seen = Arc::clone(&seen);
        Box::new(move |key: &[u8], mask| {
            seen.lock().unwrap().push((String::from_utf8(key.to_vec()).unwrap(), mask));
        })
    };
    let sets = sets.iter().map(|passes| KeySet(passes.iter().copied().map(PassId).collect())).collect();
    spool.clone().each_key(Arc::new(pages.clone()), sets, Cancel::default(), visit).await.unwrap();
    std::mem::take(&mut *seen.lock().unwrap())
}

async fn every_key_comes_once_in_the_order_of_its_bytes_with_the_sets_that_have_it(bench: &dyn SpoolBench) {
    let spool = bench.spool();
    let passes = [(0, Yield::Rows, 2), (0, Yield::Keys, 1), (0, Yield::Rows, 1)];
    begin(&spool, &plan(&["organisationUnits"], &passes)).await;
    let mut pages = Pages::default();
    for page in [
        page_of(0, 0, 0, &[("b", "1"), ("a", "2"), ("gone", "3")]),
        page_of(0, 1, 0, &[("gone", "3"), ("c", "4")]),
        page_of(1, 2, 0, &[("b", ""), ("new2", ""), ("a", ""), ("new1", "")]),
        spilled(page_of(1, 2, 1, &[("c", ""), ("new2", ""), ("d", ""), ("Z", "")])),
    ] {
        pages.0.push(append(&spool, page).await);
    }
    let named = |expected: &[(&str, KeyMask)]| -> Vec<_> {
        expected.iter().map(|(key, mask)| ((*key).to_owned(), *mask)).collect()
    };
    let expected = [("Z", 2), ("a", 3), ("b", 3), ("c", 3), ("d", 2), ("gone", 1), ("new1", 2), ("new2", 2)];
    assert_eq!(keys(&spool, &pages, &[&[0], &[1]]).await, named(&expected));

    // Two rows that were refused, of which one says which it is: that one counts as fetched.
    let rejects = vec![reject(None), reject(Some("new2"))];
    pages.0.push(append(&spool, refused(page_of(0, 1, 1, &[]), rejects)).await);
    let expected = [("Z", 2), ("a", 3), ("b", 3), ("c", 3), ("d", 2), ("gone", 1), ("new1", 2), ("new2", 3)];
    assert_eq!(keys(&spool, &pages, &[&[0], &[1]]).await, named(&expected));

    // A repair: in a set of its own, and in one with the rows before it.
    pages.0.push(append(&spool, page_of(2, 3, 0, &[("d", "5"), ("new1", "6"), ("a", "2")])).await);
    let expected = [("Z", 2), ("a", 7), ("b", 3), ("c", 3), ("d", 6), ("gone", 1), ("new1", 6), ("new2", 3)];
    assert_eq!(keys(&spool, &pages, &[&[0], &[1], &[2]]).await, named(&expected));
    let expected = [("Z", 2), ("a", 3), ("b", 3), ("c", 3), ("d", 3), ("gone", 1), ("new1", 3), ("new2", 3)];
    assert_eq!(keys(&spool, &pages, &[&[0, 2], &[1]]).await, named(&expected));

    // A pass may be in several sets; a set without passes, and a pass without pages, have no keys.
    let expected = [("a", 0b100_1000), ("d", 0b100_1000), ("new1", 0b100_1000)];
    assert_eq!(keys(&spool, &pages, &[&[], &[9], &[], &[2], &[], &[], &[2], &[]]).await, named(&expected));
    assert_eq!(keys(&spool, &pages, &[&[], &[9]]).await, named(&[]));
    assert_eq!(keys(&spool, &pages, &[]).await, named(&[]));
    let highest = keys(&spool, &pages, &[&[], &[], &[], &[], &[], &[], &[], &[1]]).await;
    assert!(highest.len() == 7 && highest.iter().all(|(_, mask)| *mask == 0x80), "{highest:?}");
}

// What every target promises.

/// The first pass.
const FIRST: &[PassId] = &[PassId(0)];

/// Spool, target and pages of a run of one stream: `rows` rows in pages of one each.
async fn rows_appended(bench: &dyn TargetBench, rows: u32) -> (Arc<dyn Spool>, Arc<dyn Target>, Pages) {
    let (spool, target) = bench.open();
    begin(&spool, &two_partitions()).await;
    target.clone().check(RUN.to_owned(), vec!["organisationUnits".to_owned()]).await.unwrap();
    target.clone().claim(RUN.to_owned()).await.unwrap();
    let mut pages = Pages::default();
    for seq in 0..rows {
        let (key, row) = (format!("k{seq}"), format!(r#"{{"id":"k{seq}"}}"#));
        pages.0.push(append(&spool, page(0, seq, &[(&key, &row)])).await);
    }
    spool.clone().sync().await.unwrap();
    (spool, target, pages)
}

/// Prepares the one stream, and says how many pages were read for it.
async fn prepared(target: &Arc<dyn Target>, pages: &Pages) -> (PreparedStream, usize) {
    let read = Arc::new(AtomicUsize::new(0));
    let watched = Watched { pages: pages.clone(), read: Arc::clone(&read), end: None };
    let work = pages.prepare(RUN, stream("organisationUnits"), FIRST);
    let done = target.clone().prepare(Prepare { pages: Arc::new(watched), ..work }).await.unwrap();
    (done, read.load(Ordering::Relaxed))
}

async fn what_is_published_is_what_was_appended_and_a_repeat_changes_nothing(bench: &dyn TargetBench) {
    let (spool, target) = bench.open();
    let passes = [(0, Yield::Rows, 2), (1, Yield::Rows, 2), (1, Yield::Keys, 1), (1, Yield::Rows, 1)];
    begin(&spool, &plan(&["organisationUnits", "events-x"], &passes)).await;
    let mut pages = Pages::default();
    for page in [
        page_of(0, 1, 0, &[("B", r#"{"id":"B","n":1.10}"#)]),
        page_of(0, 0, 0, &[("b", r#"{"id":"b"}"#), ("a", r#"{"id":"a"}"#)]),
        spilled(page_of(1, 2, 0, &[("z", r#"{"id":"z"}"#), ("y", r#"{"id":"y","updatedAt":"2024-01-01"}"#)])),
        page_of(0, 1, 1, &[("A", r#"{"id":"A","ü":"\u0000"}"#)]),
        page_of(2, 4, 0, &[("w", ""), ("x", ""), ("y", "")]),
        page_of(3, 5, 0, &[("y", r#"{"id":"y","updatedAt":"2024-01-02"}"#), ("x", r#"{"id":"x"}"#)]),
    ] {
        pages.0.push(append(&spool, page).await);
    }
    spool.clone().sync().await.unwrap();
    let prepare = async || {
        let units = pages.prepare(RUN, stream("organisationUnits"), FIRST);
        let events = pages.prepare(RUN, stream("events-x"), &[PassId(1), PassId(3)]);
        [target.clone().prepare(units).await.unwrap(), target.clone().prepare(events).await.unwrap()]
    };
    let done = prepare().await;
    assert_eq!([done[0].rows, done[0].duplicates, done[1].rows, done[1].duplicates], [4, 0, 3, 1]);
    assert_eq!(bench.read(&done[0].file), None, "prepared is not published");
    assert_eq!(prepare().await, done, "prepared again");

    let [units, events] = done;
    let manifest = manifest(RUN, &[("organisationUnits", units), ("events-x", events)]);
    let rejects = vec![Reject {
        partition: "p".to_owned(),
        class: "rejected".to_owned(),
        message: "E7144".to_owned(),
        id: None,
        bytes: None,
    }];
    for repeat in 0..3 {
        target.clone().publish(manifest.clone(), rejects.clone()).await.unwrap();
        let units = "{\"id\":\"A\",\"ü\":\"\\u0000\"}\n{\"id\":\"B\",\"n\":1.10}\n{\"id\":\"a\"}\n{\"id\":\"b\"}\n";
        assert_eq!(bench.read("organisationUnits.ndjson").unwrap(), units.as_bytes(), "repeat {repeat}");
        let events = "{\"id\":\"x\"}\n{\"id\":\"y\",\"updatedAt\":\"2024-01-02\"}\n{\"id\":\"z\"}\n";
        assert_eq!(bench.read("events-x.ndjson").unwrap(), events.as_bytes(), "repeat {repeat}");
        let found: Manifest = serde_json::from_slice(&bench.read("manifest.json").unwrap()).unwrap();
        assert_eq!(found, manifest, "repeat {repeat}");
        let lines = bench.read("rejects.ndjson").unwrap();
        assert_eq!(lines, b"{\"partition\":\"p\",\"class\":\"rejected\",\"message\":\"E7144\"}\n", "repeat {repeat}");
        if repeat == 1 {
            // As a start that found the run published but not recorded would.
            prepare().await;
        }
    }
    target.clone().publish(manifest, Vec::new()).await.unwrap();
    assert_eq!(bench.read("rejects.ndjson"), None, "a run without rejects has no such file");
    target.clone().release().await.unwrap();
    target.release().await.unwrap();
}

async fn nothing_is_lost_when_the_source_no_longer_has_a_row(bench: &dyn TargetBench) {
    let (spool, target) = bench.open();
    let passes = [(0, Yield::Rows, 2), (0, Yield::Keys, 1), (0, Yield::Rows, 1)];
    begin(&spool, &plan(&["organisationUnits"], &passes)).await;
    let mut pages = Pages::default();
    for page in [
        page_of(0, 0, 0, &[("b", "1"), ("a", "2"), ("gone", "3")]),
        page_of(0, 1, 0, &[("gone", "3"), ("c", "4")]),
        page_of(1, 2, 0, &[("b", ""), ("new2", ""), ("a", ""), ("new1", ""), ("c", ""), ("d", "")]),
        page_of(2, 3, 0, &[("d", "5"), ("new1", "6"), ("new2", "7"), ("a", "2")]),
    ] {
        pages.0.push(append(&spool, page).await);
    }
    let work = pages.prepare(RUN, stream("organisationUnits"), &[PassId(0), PassId(2)]);
    let done = target.clone().prepare(work).await.unwrap();
    // Rows 9 with `gone` and `a` twice.
    assert_eq!((done.rows, done.duplicates), (7, 2));
    target.publish(manifest(RUN, &[("organisationUnits", done)]), Vec::new()).await.unwrap();
    assert_eq!(bench.read("organisationUnits.ndjson").unwrap(), b"2\n1\n4\n5\n3\n6\n7\n");
}

async fn what_is_prepared_is_prepared_again_only_when_there_is_more_of_it(bench: &dyn TargetBench) {
    let (spool, target, mut pages) = rows_appended(bench, 3).await;
    let (done, read) = prepared(&target, &pages).await;
    assert_eq!((done.rows, read), (3, 3));
    drop((spool, target));

    let (spool, target) = bench.open();
    recovered(&spool, 0).await.unwrap();
    assert_eq!(prepared(&target, &pages).await, (done.clone(), 0), "after a death");
    pages.0.push(append(&spool, page(1, 0, &[("x", "{}")])).await);
    let (more, read) = prepared(&target, &pages).await;
    assert_eq!((more.rows, read), (4, 4), "a page came");
    assert_eq!(prepared(&target, &pages).await, (more.clone(), 0));

    target.clone().publish(manifest(RUN, &[("organisationUnits", more.clone())]), Vec::new()).await.unwrap();
    // As a start that found the run published but not recorded would.
    assert_eq!(prepared(&target, &pages).await.0, more);
    target.publish(manifest(RUN, &[("organisationUnits", more)]), Vec::new()).await.unwrap();
    let text = bench.read("organisationUnits.ndjson").unwrap();
    assert_eq!(text, b"{\"id\":\"k0\"}\n{\"id\":\"k1\"}\n{\"id\":\"k2\"}\n{}\n");
}

async fn a_preparation_that_is_cancelled_ends_soon_and_leaves_nothing_to_publish(bench: &dyn TargetBench) {
    let (_spool, target, pages) = rows_appended(bench, 20).await;
    let cancelled = async |pages: &Pages, at: usize| {
        let (read, cancel) = (Arc::new(AtomicUsize::new(0)), Cancel::default());
        let end = Some((at, cancel.clone()));
        let watched = Watched { pages: pages.clone(), read: Arc::clone(&read), end };
        let work = pages.prepare(RUN, stream("organisationUnits"), FIRST);
        let work = Prepare { pages: Arc::new(watched), cancel, ..work };
        (target.clone().prepare(work).await, read.load(Ordering::Relaxed))
    };
    let (failed, read) = cancelled(&pages, 5).await;
    assert_eq!((failed.is_err(), read), (true, 6), "no page is read after it");
    let (failed, read) = cancelled(&pages, 19).await;
    assert_eq!((failed.is_err(), read), (true, 20), "no row is written after the last page has been read");

    // What a whole preparation says of the stream is not enough to publish what a cancelled one has left.
    let said = PreparedStream {
        file: "organisationUnits.ndjson".to_owned(),
        rows: 20,
        bytes: pages.0.iter().map(|span| span.counts.bytes).sum(),
        sha256: "0".repeat(64),
        duplicates: 0,
        newest: None,
    };
    let publish = |said| target.clone().publish(manifest(RUN, &[("organisationUnits", said)]), Vec::new());
    publish(said.clone()).await.unwrap_err();
    assert_eq!((bench.read(&said.file), bench.read("manifest.json")), (None, None));

    let (done, read) = prepared(&target, &pages).await;
    assert_eq!((done.rows, done.bytes, read), (20, said.bytes, 20), "the next one does all of it");

    // Nor does it leave what was prepared of fewer pages in the place of what there is now.
    let fewer = Pages(pages.0[..10].to_vec());
    let (failed, _) = cancelled(&fewer, 5).await;
    failed.unwrap_err();
    publish(done.clone()).await.unwrap_err();
    let (again, read) = prepared(&target, &pages).await;
    assert_eq!((&again, read), (&done, 20));
    publish(again).await.unwrap();
    assert_eq!(bench.read(&done.file).unwrap().len() as u64, done.bytes);
}

/// A test of each promise for a bench.
macro_rules! every_promise {
    ($name:ident, $bench:expr, [$($promise:ident),* $(,)?]) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(&$bench).await;
                }
            )*
        }
    };
}

/// A test of each promise for each spool.
macro_rules! every_spool {
    ($($spool:ident: $bench:expr),* $(,)?) => {
        $(
            every_promise!($spool, $bench, [
                everything_appended_is_found_at_the_next_start_in_order,
                a_spool_that_lacks_what_was_committed_is_damaged,
                a_new_run_leaves_nothing_of_the_one_before,
                nothing_is_appended_where_no_run_has_begun,
                appends_go_on_while_a_sync_runs,
                a_plan_of_several_pieces_is_found_as_a_whole_or_not_at_all,
                a_plan_that_was_never_complete_is_never_found,
                partitions_that_a_page_brings_have_the_places_that_were_given_and_are_read_by_its_frame,
                what_a_page_could_not_take_is_read_by_its_frame,
                every_key_comes_once_in_the_order_of_its_bytes_with_the_sets_that_have_it,
            ]);
        )*
    };
}

/// A test of each promise for each target.
macro_rules! every_target {
    ($($target:ident: $bench:expr),* $(,)?) => {
        $(
            every_promise!($target, $bench, [
                what_is_published_is_what_was_appended_and_a_repeat_changes_nothing,
                nothing_is_lost_when_the_source_no_longer_has_a_row,
                what_is_prepared_is_prepared_again_only_when_there_is_more_of_it,
                a_preparation_that_is_cancelled_ends_soon_and_leaves_nothing_to_publish,
            ]);
        )*
    };
}

every_spool! {
    file_spool: FilesBench(tempfile::tempdir().unwrap()),
}

every_target! {
    files_target: FilesBench(tempfile::tempdir().unwrap()),
}
