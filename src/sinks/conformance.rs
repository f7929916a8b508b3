//! What every spool and every target promise. A new one writes a bench and gets all of these tests.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};

use harvester_actors::{
    checkpoint::{PassTotals, RunHeader, SpoolEntry},
    checkpoint_store::{PageIndex, PageIterator},
    failure::{Failure, FailureClass},
    page::{FrameRange, Page, PageBody, PageCounts, Reject, Span, push_record},
    partition::{
        Cursor, NewPartition, Partition, PartitionId, Pass, PassId, PlanPiece, SourceIdentity, Stream, StreamId, Yield,
    },
    report::{Manifest, ManifestSource, ManifestStream},
    sink::{Cancel, KeyMask, KeySet, Prepare, PreparedStream, Recovered, Spool, Target},
};

use super::{FileSpool, FilesSettings, FilesTarget};

/// A place for one spool and one target.
trait Bench {
    /// Both as a new process would find them.
    fn open(&self) -> (Arc<dyn Spool>, Arc<dyn Target>);

    /// What a reader of the finished data gets under this name; `None` while it is not published.
    fn read(&self, file: &str) -> Option<Vec<u8>>;
}

/// A [`FileSpool`] and a [`FilesTarget`] in a temporary folder.
struct FilesBench(tempfile::TempDir);

impl Bench for FilesBench {
    fn open(&self) -> (Arc<dyn Spool>, Arc<dyn Target>) {
        let (spool, target) = files(self.0.path());
        (spool, target)
    }

    fn read(&self, file: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.path().join("out").join(file)).ok()
    }
}

/// A spool and a target of files below this folder.
pub(crate) fn files(dir: &Path) -> (Arc<FileSpool>, Arc<FilesTarget>) {
    let spool = Arc::new(FileSpool::new(dir.join("state/spool")));
    let settings = FilesSettings { out_dir: dir.join("out"), job: "sierra-leone".to_owned() };
    (Arc::clone(&spool), Arc::new(FilesTarget::new(settings, spool)))
}

/// A stream of a plan.
pub(crate) fn stream(name: &str) -> Stream {
    Stream { name: name.to_owned(), expected_rows: None, optional: false, watermark: None }
}

/// A partition of a plan.
pub(crate) fn partition(id: u32, pass: u32) -> Partition {
    Partition {
        id: PartitionId(id),
        pass: PassId(pass),
        key: format!("pass {pass}, part {id}"),
        selection: serde_json::json!({ "range": id }),
        requests: None,
        expected_rows: None,
    }
}

/// A whole plan: these streams, passes by their stream, and partitions by their pass.
pub(crate) fn plan(streams: Vec<Stream>, passes: &[u32], partitions: &[u32]) -> PlanPiece {
    let pass =
        |stream: &u32| Pass { stream: StreamId(*stream), yields: Yield::Rows, selection: serde_json::Value::Null };
    PlanPiece {
        streams,
        passes: passes.iter().map(pass).collect(),
        partitions: (0..).zip(partitions).map(|(id, pass)| partition(id, *pass)).collect(),
        left_out: Vec::new(),
    }
}

/// A run.
pub(crate) fn header(run_id: &str) -> RunHeader {
    RunHeader {
        run_id: run_id.to_owned(),
        job: "sierra-leone".to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        fingerprint: BTreeMap::new(),
        source: SourceIdentity::default(),
    }
}

/// A page of the first pass with rows, each `(key, row)`.
pub(crate) fn page(partition: u32, seq: u32, rows: &[(&str, &str)]) -> Page {
    let mut records = Vec::new();
    for (key, row) in rows {
        push_record(&mut records, key.as_bytes(), row.as_bytes());
    }
    let kept = rows.len() as u64;
    let bytes = rows.iter().map(|(_, row)| row.len() as u64 + 1).sum();
    Page {
        partition: PartitionId(partition),
        pass: PassId(0),
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
        // Bytes behind the length do not count.
        file.write_all(b"left over").unwrap();
        page.body = PageBody::Spilled { len: records.len() as u64, file };
    }
    page
}

/// Partitions that a page brings, as parts of this pass.
pub(crate) fn children(pass: u32, keys: &[&str]) -> Vec<NewPartition> {
    let child = |key: &&str| NewPartition {
        pass: PassId(pass),
        key: (*key).to_owned(),
        selection: serde_json::json!({ "child": *key }),
        requests: Some(1),
        expected_rows: None,
    };
    keys.iter().map(child).collect()
}

/// Pages that have been committed, in the order of the spool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages(pub(crate) Vec<Span>);

impl PageIndex for Pages {
    fn pages_of(&self, pass: PassId) -> PageIterator {
        let pages: Vec<_> = self.0.iter().filter(|span| span.pass == pass).map(|span| Ok(span.page_ref())).collect();
        Box::new(pages.into_iter())
    }
}

/// What a target is asked to prepare of these pages.
pub(crate) fn work(run_id: &str, name: &str, passes: &[u32], pages: &Pages) -> Prepare {
    let passes: Vec<PassId> = passes.iter().copied().map(PassId).collect();
    let mut totals = PassTotals::default();
    for span in pages.0.iter().filter(|span| passes.contains(&span.pass)) {
        totals.pages += 1;
        totals.counts.add(&span.counts);
    }
    let pages = Arc::new(pages.clone());
    Prepare { run_id: run_id.to_owned(), stream: stream(name), passes, totals, pages, cancel: Cancel::default() }
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

/// One stream in one pass of two partitions.
fn two_partitions() -> PlanPiece {
    plan(vec![stream("organisationUnits")], &[0], &[0, 0])
}

/// Begins a run with this plan; where header and plan lie.
async fn begin(spool: &Arc<dyn Spool>, run_id: &str, piece: PlanPiece) -> (FrameRange, FrameRange) {
    let first = spool.clone().begin(header(run_id)).await.unwrap();
    let planned = spool.clone().extend_plan(piece).await.unwrap();
    spool.clone().commit_plan().await.unwrap();
    (first, planned)
}

async fn begun(bench: &dyn Bench, piece: PlanPiece) -> (Arc<dyn Spool>, Arc<dyn Target>) {
    let (spool, target) = bench.open();
    assert_eq!(recovered(&spool, 0).await.unwrap().0, None);
    begin(&spool, RUN, piece).await;
    (spool, target)
}

/// Appends pages that bring no partitions.
async fn append(spool: &Arc<dyn Spool>, pages: Vec<Page>) -> Pages {
    let mut spans = Pages::default();
    for page in pages {
        spans.0.push(spool.clone().append(page, PartitionId(999)).await.unwrap());
    }
    spans
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

async fn everything_appended_is_found_at_the_next_start_in_order(bench: &dyn Bench) {
    let (spool, _) = bench.open();
    let first = spool.clone().begin(header(RUN)).await.unwrap();
    let planned = two_partitions();
    let p = spool.clone().extend_plan(planned.clone()).await.unwrap();
    let more = PlanPiece { partitions: vec![partition(2, 0)], ..PlanPiece::default() };
    let q = spool.clone().extend_plan(more.clone()).await.unwrap();
    spool.clone().commit_plan().await.unwrap();
    let a = spool.clone().append(page(0, 0, &[("a", r#"{"id":"a"}"#)]), PartitionId(3)).await.unwrap();
    let mut odd = page(1, 0, &[]);
    odd.rejects = vec![Reject {
        partition: "x".to_owned(),
        class: "too_large".to_owned(),
        message: "ü".to_owned(),
        id: None,
        bytes: Some(1 << 40),
    }];
    odd.next = Cursor::End;
    odd.halvings = 3;
    odd.children = children(0, &["x", "y"]);
    let b = spool.clone().append(odd, PartitionId(3)).await.unwrap();
    let ids: Vec<_> = b.children.iter().map(|child| (child.id.0, child.key.as_str())).collect();
    assert_eq!(ids, [(3, "x"), (4, "y")]);
    let grown = PlanPiece {
        passes: vec![Pass { stream: StreamId(0), yields: Yield::Keys, selection: serde_json::json!("ids") }],
        partitions: vec![partition(5, 1)],
        ..PlanPiece::default()
    };
    let c = spool.clone().extend_plan(grown.clone()).await.unwrap();
    spool.clone().sync().await.unwrap();
    let d = spool.clone().append(spilled(page(0, 1, &[("b", r#"{"id":"b"}"#)])), PartitionId(6)).await.unwrap();
    assert_eq!(
        [first.to, p.to, q.to, a.frame.to, b.frame.to, c.to],
        [p.from, q.from, a.frame.from, b.frame.from, c.from, d.frame.from]
    );
    let expected = [
        SpoolEntry::Begun { header: header(RUN), frame: first },
        SpoolEntry::Planned { piece: planned, frame: p },
        SpoolEntry::Planned { piece: more, frame: q },
        SpoolEntry::Page(a.clone()),
        SpoolEntry::Page(b.clone()),
        SpoolEntry::Planned { piece: grown, frame: c },
        SpoolEntry::Page(d.clone()),
    ];
    drop(spool);

    let (spool, _) = bench.open();
    let (found, entries) = recovered(&spool, 0).await.unwrap();
    assert_eq!(found, Some(Recovered { len: d.frame.to, cut_bytes: 0 }));
    assert_eq!(entries, expected);
    for (place, from_offset) in [(1, first.to), (2, p.to), (3, q.to), (5, b.frame.to), (7, d.frame.to)] {
        let (_, entries) = recovered(&bench.open().0, from_offset).await.unwrap();
        assert_eq!(entries, expected[place..], "from {from_offset}");
    }
    let e = spool.append(page(0, 2, &[]), PartitionId(6)).await.unwrap();
    assert_eq!(e.frame.from, d.frame.to, "appends go on at the end");
}

async fn partitions_and_rejects_are_read_where_they_were_written(bench: &dyn Bench) {
    let (spool, _) = bench.open();
    let first = spool.clone().begin(header(RUN)).await.unwrap();
    let p = spool.clone().extend_plan(two_partitions()).await.unwrap();
    assert_eq!(spool.clone().partitions(p).await.unwrap(), two_partitions().partitions, "while the plan is made");
    spool.clone().commit_plan().await.unwrap();
    let mut split = page(1, 0, &[("k", "{}")]);
    split.children = children(0, &["x", "y"]);
    split.rejects = vec![Reject {
        partition: "p".to_owned(),
        class: "garbled".to_owned(),
        message: "half of it".to_owned(),
        id: Some("i".to_owned()),
        bytes: None,
    }];
    let span = spool.clone().append(split, PartitionId(2)).await.unwrap();
    for spool in [spool, bench.open().0] {
        let known = spool.clone().recover(0, Box::new(|_| Ok(()))).await.unwrap().unwrap();
        assert_eq!(spool.clone().partitions(p).await.unwrap(), two_partitions().partitions);
        assert_eq!(spool.clone().partitions(span.frame).await.unwrap(), span.children);
        assert_eq!(spool.clone().rejects(span.frame).await.unwrap(), span.rejects);
        assert_eq!(spool.clone().rejects(p).await.unwrap(), []);
        for (from, to) in [
            (first.from, p.to),
            (p.from, p.to - 1),
            (p.from + 1, p.to),
            (span.frame.from, span.frame.to + 1),
            (known.len, known.len + 100),
            (known.len + 5, known.len + 100),
            (p.to, p.from),
            (0, u64::MAX),
        ] {
            let failure = spool.clone().partitions(FrameRange { from, to }).await.unwrap_err();
            assert_eq!(failure.class, FailureClass::Damaged, "{from}..{to}: {failure}");
        }
    }
}

async fn a_run_whose_plan_was_not_completed_never_was(bench: &dyn Bench) {
    let (spool, _) = begun(bench, two_partitions()).await;
    append(&spool, vec![page(0, 0, &[("a", "{}")])]).await;
    spool.clone().sync().await.unwrap();
    let before = recovered(&bench.open().0, 0).await.unwrap();
    // The next run, that dies while it is planned.
    spool.clone().begin(header("20260102T000000Z")).await.unwrap();
    spool.clone().extend_plan(two_partitions()).await.unwrap();
    drop(spool);
    let (spool, _) = bench.open();
    assert_eq!(recovered(&spool, 0).await.unwrap(), before, "the one before is still there");
    let (first, planned) = begin(&spool, "20260103T000000Z", two_partitions()).await;
    let (_, entries) = recovered(&bench.open().0, 0).await.unwrap();
    let begun = SpoolEntry::Begun { header: header("20260103T000000Z"), frame: first };
    assert_eq!(entries, [begun, SpoolEntry::Planned { piece: two_partitions(), frame: planned }]);
}

async fn a_spool_that_lacks_what_was_committed_is_damaged(bench: &dyn Bench) {
    let failure = recovered(&bench.open().0, 7).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Damaged, "no spool at all");
    let (spool, _) = begun(bench, two_partitions()).await;
    let span = spool.clone().append(page(0, 0, &[("a", "{}")]), PartitionId(2)).await.unwrap();
    let FrameRange { from, to } = span.frame;
    for from_offset in [1, from - 1, from + 1, to - 1, to + 1, u64::MAX] {
        let failure = recovered(&bench.open().0, from_offset).await.unwrap_err();
        assert_eq!(failure.class, FailureClass::Damaged, "from {from_offset}");
        assert!(failure.next.is_some(), "a person is told what to do");
    }
    recovered(&bench.open().0, span.frame.to).await.unwrap();
}

async fn a_new_run_leaves_nothing_of_the_one_before(bench: &dyn Bench) {
    let (spool, _) = begun(bench, two_partitions()).await;
    append(&spool, vec![page(0, 0, &[("a", "{}")])]).await;
    begin(&spool, "20250101T000000Z", two_partitions()).await;
    let (_, entries) = recovered(&bench.open().0, 0).await.unwrap();
    assert_eq!(entries.len(), 2);
    // The same id again, as a repeat after a crash would.
    append(&spool, vec![page(0, 0, &[("a", "{}")])]).await;
    begin(&spool, "20250101T000000Z", two_partitions()).await;
    assert_eq!(recovered(&bench.open().0, 0).await.unwrap().1.len(), 2);
    spool.clone().discard().await.unwrap();
    spool.clone().discard().await.unwrap();
    assert_eq!(recovered(&bench.open().0, 0).await.unwrap().0, None);
}

async fn nothing_is_appended_where_no_run_has_begun(bench: &dyn Bench) {
    let (spool, _) = bench.open();
    assert_eq!(recovered(&spool, 0).await.unwrap().0, None);
    let appended = spool.clone().append(page(0, 0, &[]), PartitionId(0)).await;
    assert_eq!(appended.unwrap_err().class, FailureClass::Bug);
    assert_eq!(spool.clone().extend_plan(two_partitions()).await.unwrap_err().class, FailureClass::Bug);
    assert_eq!(spool.clone().commit_plan().await.unwrap_err().class, FailureClass::Bug);
    assert_eq!(spool.sync().await.unwrap_err().class, FailureClass::Bug);
}

async fn appends_go_on_while_a_sync_runs(bench: &dyn Bench) {
    let (spool, _) = begun(bench, two_partitions()).await;
    let mut spans = Vec::new();
    for seq in 0..20 {
        let sync = tokio::spawn(spool.clone().sync());
        spans.push(spool.clone().append(page(0, seq, &[("k", "{}")]), PartitionId(2)).await.unwrap());
        sync.await.unwrap().unwrap();
    }
    let (_, entries) = recovered(&bench.open().0, 0).await.unwrap();
    assert_eq!(entries[2..], spans.into_iter().map(SpoolEntry::Page).collect::<Vec<_>>());
}

async fn every_key_comes_once_in_the_order_of_its_bytes_with_the_sets_that_have_it(bench: &dyn Bench) {
    let plan = plan(vec![stream("organisationUnits")], &[0, 0, 0], &[0, 1, 2]);
    let (spool, _) = begun(bench, plan).await;
    let of_pass = |pass, mut page: Page| {
        page.pass = PassId(pass);
        page
    };
    let mut refused = page(0, 1, &[]);
    refused.counts.fetched = 2;
    refused.counts.rejected = 2;
    let reject = Reject {
        partition: "organisationUnits/0".to_owned(),
        class: "too_large".to_owned(),
        message: "the row is larger than 16 MiB".to_owned(),
        id: Some("new2".to_owned()),
        bytes: Some(20 << 20),
    };
    // Of the other one nobody can say which it is.
    refused.rejects = vec![reject.clone(), Reject { id: None, ..reject }];
    let pages = append(
        &spool,
        vec![
            page(0, 0, &[("b", "1"), ("a", "2"), ("gone", "3"), ("b", "1")]),
            of_pass(1, spilled(page(1, 0, &[("b", ""), ("new2", ""), ("B", ""), ("new1", "")]))),
            refused,
            of_pass(2, page(2, 0, &[("new1", "4"), ("a", "2")])),
            of_pass(1, page(1, 1, &[("a", ""), ("new2", "")])),
        ],
    )
    .await;
    let keys = async |sets: &[&[u32]]| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let visit = {
            let seen = Arc::clone(&seen);
            move |key: &[u8], mask: KeyMask| seen.lock().unwrap().push((String::from_utf8(key.to_vec()).unwrap(), mask))
        };
        let sets = sets.iter().map(|set| KeySet(set.iter().copied().map(PassId).collect())).collect();
        spool.clone().each_key(Arc::new(pages.clone()), sets, Box::new(visit)).await.unwrap();
        std::mem::take(&mut *seen.lock().unwrap())
    };
    let expect = |keys: &[(&str, KeyMask)]| -> Vec<(String, KeyMask)> {
        keys.iter().map(|(key, mask)| ((*key).to_owned(), *mask)).collect()
    };
    let both = [("B", 2), ("a", 3), ("b", 3), ("gone", 1), ("new1", 2), ("new2", 3)];
    assert_eq!(keys(&[&[0], &[1]]).await, expect(&both), "what was refused is known");
    let repaired = [("B", 2), ("a", 3), ("b", 3), ("gone", 1), ("new1", 3), ("new2", 3)];
    assert_eq!(keys(&[&[0, 2], &[1]]).await, expect(&repaired));
    assert_eq!(keys(&[&[2]]).await, expect(&[("a", 1), ("new1", 1)]));
    assert_eq!(keys(&[]).await, []);
}

async fn what_is_published_is_what_was_appended_and_a_repeat_changes_nothing(bench: &dyn Bench) {
    let plan = plan(vec![stream("organisationUnits"), stream("events-x")], &[0, 1], &[0, 0, 1, 1]);
    let (spool, target) = begun(bench, plan).await;
    let of_events = |mut page: Page| {
        page.pass = PassId(1);
        page
    };
    let pages = append(
        &spool,
        vec![
            page(1, 0, &[("B", r#"{"id":"B","n":1.10}"#)]),
            page(0, 0, &[("b", r#"{"id":"b"}"#), ("a", r#"{"id":"a"}"#)]),
            of_events(spilled(page(2, 0, &[("z", r#"{"id":"z"}"#), ("y", r#"{"id":"y","updatedAt":"2024-01-01"}"#)]))),
            page(1, 1, &[("A", r#"{"id":"A","ü":"\u0000"}"#)]),
            of_events(page(3, 0, &[("y", r#"{"id":"y","updatedAt":"2024-01-02"}"#), ("x", r#"{"id":"x"}"#)])),
        ],
    )
    .await;
    spool.clone().sync().await.unwrap();
    let streams = vec!["organisationUnits".to_owned(), "events-x".to_owned()];
    target.clone().check(RUN.to_owned(), streams).await.unwrap();
    target.clone().claim(RUN.to_owned()).await.unwrap();
    let prepare = async || {
        let one = |name, pass| target.clone().prepare(work(RUN, name, &[pass], &pages));
        [one("organisationUnits", 0).await.unwrap(), one("events-x", 1).await.unwrap()]
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
    target.release().await.unwrap();
}

async fn a_stream_that_gained_pages_is_prepared_again(bench: &dyn Bench) {
    let plan = plan(vec![stream("organisationUnits")], &[0, 0], &[0, 1]);
    let (spool, target) = begun(bench, plan).await;
    let mut pages = append(&spool, vec![page(0, 0, &[("b", "{}"), ("b", "{}")])]).await;
    let done = target.clone().prepare(work(RUN, "organisationUnits", &[0], &pages)).await.unwrap();
    assert_eq!((done.rows, done.duplicates), (1, 1));
    let mut repair = page(1, 0, &[("a", "{}")]);
    repair.pass = PassId(1);
    pages.0.extend(append(&spool, vec![repair]).await.0);
    let done = target.clone().prepare(work(RUN, "organisationUnits", &[0, 1], &pages)).await.unwrap();
    assert_eq!((done.rows, done.duplicates), (2, 1));
}

async fn a_preparation_that_is_cancelled_ends_and_can_be_repeated(bench: &dyn Bench) {
    let (spool, target) = begun(bench, two_partitions()).await;
    let pages = append(&spool, vec![page(0, 0, &[("b", "{}"), ("a", "{}")])]).await;
    let cancelled = work(RUN, "organisationUnits", &[0], &pages);
    cancelled.cancel.cancel();
    assert_eq!(target.clone().prepare(cancelled).await.unwrap_err().class, FailureClass::Local);
    let done = target.prepare(work(RUN, "organisationUnits", &[0], &pages)).await.unwrap();
    assert_eq!(done.rows, 2);
}

/// A test of each promise for a bench.
macro_rules! every_promise {
    ($kind:ident, $bench:expr, [$($promise:ident),* $(,)?]) => {
        mod $kind {
            use super::*;

            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(&$bench).await;
                }
            )*
        }
    };
    ($($kind:ident: $bench:expr),* $(,)?) => {
        $(
            every_promise!($kind, $bench, [
                everything_appended_is_found_at_the_next_start_in_order,
                partitions_and_rejects_are_read_where_they_were_written,
                a_run_whose_plan_was_not_completed_never_was,
                a_spool_that_lacks_what_was_committed_is_damaged,
                a_new_run_leaves_nothing_of_the_one_before,
                nothing_is_appended_where_no_run_has_begun,
                appends_go_on_while_a_sync_runs,
                every_key_comes_once_in_the_order_of_its_bytes_with_the_sets_that_have_it,
                what_is_published_is_what_was_appended_and_a_repeat_changes_nothing,
                a_stream_that_gained_pages_is_prepared_again,
                a_preparation_that_is_cancelled_ends_and_can_be_repeated,
            ]);
        )*
    };
}

every_promise! {
    files: FilesBench(tempfile::tempdir().unwrap()),
}
