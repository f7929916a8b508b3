//! What every sink promises. A new sink writes a bench and gets all of these tests.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use harvester_actors::{
    checkpoint::RunHeader,
    failure::Failure,
    page::{Page, PageBody, PageCounts, Reject, Span, push_record},
    partition::{Next, Partition, PartitionId, PartitionRole, Plan, SourceIdentity, Stream, StreamId},
    report::{Manifest, ManifestSource, ManifestStream},
    sink::{PreparedStream, Recovered, Sink, SpanIterator, SpanReader, SpoolEntry},
};

use super::{FilesSettings, FilesSink};

/// A place for one sink.
trait Bench {
    /// The sink as a new process would find it.
    fn open(&self) -> Arc<dyn Sink>;

    /// What a reader of the finished data gets under this name; `None` while it is not published.
    fn read(&self, file: &str) -> Option<Vec<u8>>;
}

/// A [`FilesSink`] in a temporary folder.
struct FilesBench(tempfile::TempDir);

impl Bench for FilesBench {
    fn open(&self) -> Arc<dyn Sink> {
        Arc::new(files_sink(self.0.path().to_path_buf()))
    }

    fn read(&self, file: &str) -> Option<Vec<u8>> {
        std::fs::read(self.0.path().join("out").join(file)).ok()
    }
}

/// A files sink below this folder.
pub(crate) fn files_sink(dir: PathBuf) -> FilesSink {
    FilesSink::new(FilesSettings {
        spool_dir: dir.join("state/spool"),
        out_dir: dir.join("out"),
        job: "sierra-leone".to_owned(),
    })
}

/// A stream of a plan.
pub(crate) fn stream(name: &str) -> Stream {
    Stream { name: name.to_owned(), expected_rows: None, optional: false, watermark: None }
}

/// A plan of these streams and partitions, `(stream, role)` each.
pub(crate) fn plan(streams: Vec<Stream>, partitions: &[(u32, PartitionRole)]) -> Plan {
    let partition = |(id, (stream, role)): (usize, &(u32, PartitionRole))| Partition {
        id: PartitionId(u32::try_from(id).unwrap()),
        stream: StreamId(*stream),
        key: format!("stream {stream}, part {id}"),
        role: *role,
        selection: serde_json::json!({ "range": id }),
        requests: None,
        expected_rows: None,
    };
    Plan { streams, partitions: partitions.iter().enumerate().map(partition).collect(), left_out: Vec::new() }
}

/// A run of this plan.
pub(crate) fn header(run_id: &str, plan: &Plan) -> RunHeader {
    RunHeader {
        run_id: run_id.to_owned(),
        job: "sierra-leone".to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        fingerprint: BTreeMap::new(),
        source: SourceIdentity::default(),
        plan: plan.clone(),
    }
}

/// A page of rows, each `(key, row)`.
pub(crate) fn page(partition: u32, seq: u32, rows: &[(&str, &str)]) -> Page {
    let mut records = Vec::new();
    for (key, row) in rows {
        push_record(&mut records, key.as_bytes(), row.as_bytes());
    }
    let kept = rows.len() as u64;
    let bytes = rows.iter().map(|(_, row)| row.len() as u64 + 1).sum();
    Page {
        partition: PartitionId(partition),
        seq,
        next: Next::After(format!("page {seq}")),
        counts: PageCounts { fetched: kept, kept, bytes, ..PageCounts::default() },
        rejects: Vec::new(),
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

/// Spans that have been committed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans(pub(crate) Vec<Span>);

impl SpanReader for Spans {
    fn spans(&self, partition: PartitionId) -> SpanIterator {
        let mut spans: Vec<Span> = self.0.iter().filter(|span| span.partition == partition).cloned().collect();
        spans.sort_by_key(|span| span.seq);
        Box::new(spans.into_iter().map(Ok))
    }
}

/// What a sink recovers from `behind` on.
async fn recovered(sink: &Arc<dyn Sink>, behind: u64) -> Result<(Option<Recovered>, Vec<SpoolEntry>), Failure> {
    let entries = Arc::new(Mutex::new(Vec::new()));
    let collect = {
        let entries = Arc::clone(&entries);
        Box::new(move |entry| {
            entries.lock().unwrap().push(entry);
            Ok(())
        })
    };
    let found = sink.clone().recover(behind, collect).await?;
    let entries = std::mem::take(&mut *entries.lock().unwrap());
    Ok((found, entries))
}

const RUN: &str = "20260101T000000Z";

/// One keyset stream of two partitions.
fn two_partitions() -> Plan {
    plan(vec![stream("organisationUnits")], &[(0, PartitionRole::Rows), (0, PartitionRole::Rows)])
}

async fn begun(bench: &dyn Bench, plan: &Plan) -> Arc<dyn Sink> {
    let sink = bench.open();
    assert_eq!(recovered(&sink, 0).await.unwrap().0, None);
    sink.clone().begin(header(RUN, plan)).await.unwrap();
    sink
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
    let plan = two_partitions();
    let sink = begun(bench, &plan).await;
    let a = sink.clone().append(page(0, 0, &[("a", r#"{"id":"a"}"#)])).await.unwrap();
    let mut odd = page(1, 0, &[]);
    odd.rejects = vec![Reject {
        partition: "x".to_owned(),
        class: "too_large".to_owned(),
        message: "ü".to_owned(),
        id: None,
        bytes: Some(1 << 40),
    }];
    odd.next = Next::End;
    let b = sink.clone().append(odd).await.unwrap();
    let grown = vec![plan.partitions[0].clone()];
    let c = sink.clone().grow(grown.clone()).await.unwrap();
    sink.clone().sync().await.unwrap();
    let d = sink.clone().append(spilled(page(0, 1, &[("b", r#"{"id":"b"}"#)]))).await.unwrap();
    assert_eq!((a.frame.to, b.frame.to, c.to), (b.frame.from, c.from, d.frame.from));
    drop(sink);

    let sink = bench.open();
    let (found, entries) = recovered(&sink, 0).await.unwrap();
    assert_eq!(found, Some(Recovered { len: d.frame.to, cut_bytes: 0 }));
    let SpoolEntry::Begun { header: begun, frame } = &entries[0] else { panic!("{:?}", entries[0]) };
    assert_eq!((begun, frame.to), (&header(RUN, &plan), a.frame.from));
    let grown = SpoolEntry::Grown { partitions: grown, frame: c };
    assert_eq!(
        entries[1..],
        [SpoolEntry::Page(a), SpoolEntry::Page(b.clone()), grown.clone(), SpoolEntry::Page(d.clone())]
    );

    for (behind, expected) in [(b.frame.to, vec![grown, SpoolEntry::Page(d.clone())]), (d.frame.to, vec![])] {
        assert_eq!(recovered(&bench.open(), behind).await.unwrap().1, expected, "behind {behind}");
    }
    let e = sink.append(page(0, 2, &[])).await.unwrap();
    assert_eq!(e.frame.from, d.frame.to, "appends go on at the end");
}

async fn a_spool_that_lacks_what_was_committed_is_damaged(bench: &dyn Bench) {
    let plan = two_partitions();
    let failure = recovered(&bench.open(), 7).await.unwrap_err();
    assert_eq!(failure.class.as_str(), "damaged", "no spool at all");
    let sink = begun(bench, &plan).await;
    let span = sink.clone().append(page(0, 0, &[("a", "{}")])).await.unwrap();
    for behind in [1, span.frame.from - 1, span.frame.from + 1, span.frame.to - 1, span.frame.to + 1, u64::MAX] {
        let failure = recovered(&bench.open(), behind).await.unwrap_err();
        assert_eq!(failure.class.as_str(), "damaged", "behind {behind}");
        assert!(failure.next.is_some(), "a person is told what to do");
    }
    recovered(&bench.open(), span.frame.to).await.unwrap();
}

async fn a_new_run_leaves_nothing_of_the_one_before(bench: &dyn Bench) {
    let plan = two_partitions();
    let sink = begun(bench, &plan).await;
    sink.clone().append(page(0, 0, &[("a", "{}")])).await.unwrap();
    sink.clone().begin(header("20250101T000000Z", &plan)).await.unwrap();
    let (_, entries) = recovered(&bench.open(), 0).await.unwrap();
    assert_eq!(entries.len(), 1);
    // The same id again, as a repeat after a crash would.
    sink.clone().append(page(0, 0, &[("a", "{}")])).await.unwrap();
    sink.clone().begin(header("20250101T000000Z", &plan)).await.unwrap();
    assert_eq!(recovered(&bench.open(), 0).await.unwrap().1.len(), 1);
    sink.clone().discard().await.unwrap();
    sink.clone().discard().await.unwrap();
    assert_eq!(recovered(&bench.open(), 0).await.unwrap().0, None);
}

async fn nothing_is_appended_where_no_run_has_begun(bench: &dyn Bench) {
    let sink = bench.open();
    assert_eq!(recovered(&sink, 0).await.unwrap().0, None);
    assert_eq!(sink.clone().append(page(0, 0, &[])).await.unwrap_err().class.as_str(), "bug");
    assert_eq!(sink.sync().await.unwrap_err().class.as_str(), "bug");
}

async fn what_is_published_is_what_was_appended_and_a_repeat_changes_nothing(bench: &dyn Bench) {
    let plan = plan(
        vec![stream("organisationUnits"), stream("events-x")],
        &[(0, PartitionRole::Rows), (0, PartitionRole::Rows), (1, PartitionRole::Rows), (1, PartitionRole::Rows)],
    );
    let sink = begun(bench, &plan).await;
    let mut spans = Spans::default();
    for page in [
        page(1, 0, &[("B", r#"{"id":"B","n":1.10}"#)]),
        page(0, 0, &[("b", r#"{"id":"b"}"#), ("a", r#"{"id":"a"}"#)]),
        spilled(page(2, 0, &[("z", r#"{"id":"z"}"#), ("y", r#"{"id":"y","updatedAt":"2024-01-01"}"#)])),
        page(1, 1, &[("A", r#"{"id":"A","ü":"\u0000"}"#)]),
        page(3, 0, &[("y", r#"{"id":"y","updatedAt":"2024-01-02"}"#), ("x", r#"{"id":"x"}"#)]),
    ] {
        spans.0.push(sink.clone().append(page).await.unwrap());
    }
    sink.clone().sync().await.unwrap();
    let plan = Arc::new(plan);
    let prepare = async |sink: &Arc<dyn Sink>| {
        let one = |stream| sink.clone().prepare(StreamId(stream), plan.clone(), Arc::new(spans.clone()));
        [one(0).await.unwrap(), one(1).await.unwrap()]
    };
    let done = prepare(&sink).await;
    assert_eq!([done[0].rows, done[0].duplicates, done[1].rows, done[1].duplicates], [4, 0, 3, 1]);
    assert_eq!(bench.read(&done[0].file), None, "prepared is not published");
    assert_eq!(prepare(&sink).await, done, "prepared again");

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
        sink.clone().publish(manifest.clone(), rejects.clone()).await.unwrap();
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
            prepare(&sink).await;
        }
    }
    sink.clone().publish(manifest, Vec::new()).await.unwrap();
    assert_eq!(bench.read("rejects.ndjson"), None, "a run without rejects has no such file");
}

async fn appends_go_on_while_a_sync_runs(bench: &dyn Bench) {
    let plan = two_partitions();
    let sink = begun(bench, &plan).await;
    let mut spans = Vec::new();
    for seq in 0..20 {
        let sync = tokio::spawn(sink.clone().sync());
        spans.push(sink.clone().append(page(0, seq, &[("k", "{}")])).await.unwrap());
        sync.await.unwrap().unwrap();
    }
    let (_, entries) = recovered(&bench.open(), 0).await.unwrap();
    assert_eq!(entries[1..], spans.into_iter().map(SpoolEntry::Page).collect::<Vec<_>>());
}

async fn a_comparison_names_what_is_missing_and_counts_what_vanished(bench: &dyn Bench) {
    use PartitionRole::{Listing, Repair, Rows};
    let plan = Arc::new(plan(vec![stream("organisationUnits")], &[(0, Rows), (0, Rows), (0, Listing), (0, Repair)]));
    let sink = begun(bench, &plan).await;
    let mut spans = Spans::default();
    for page in [
        page(0, 0, &[("b", "1"), ("a", "2"), ("gone", "3")]),
        page(1, 0, &[("gone", "3"), ("c", "4")]),
        page(2, 0, &[("b", ""), ("new2", ""), ("a", ""), ("new1", "")]),
        page(2, 1, &[("c", ""), ("new2", ""), ("d", "")]),
    ] {
        spans.0.push(sink.clone().append(page).await.unwrap());
    }
    let refused = Reject {
        partition: "organisationUnits/1".to_owned(),
        class: "too_large".to_owned(),
        message: "the row is larger than 16 MiB".to_owned(),
        id: Some("new2".to_owned()),
        bytes: Some(20 << 20),
    };
    let mut with_reject = spans.clone();
    let mut of_refused = page(1, 1, &[]);
    of_refused.counts.fetched = 2;
    of_refused.counts.rejected = 2;
    of_refused.rejects.push(Reject { id: None, ..refused.clone() });
    of_refused.rejects.push(refused);
    with_reject.0.push(sink.clone().append(of_refused).await.unwrap());
    let compare = |spans: &Spans| sink.clone().compare(StreamId(0), plan.clone(), Arc::new(spans.clone()));
    let found = compare(&spans).await.unwrap();
    assert_eq!((found.missing, found.vanished), (vec!["new2".to_owned(), "new1".to_owned(), "d".to_owned()], 1));
    let found = compare(&with_reject).await.unwrap();
    assert_eq!(found.missing, ["new1", "d"], "what was refused is not missing");
    assert_eq!(found.nameless, 1);

    let repair = page(3, 0, &[("d", "5"), ("new1", "6"), ("new2", "7"), ("a", "2")]);
    spans.0.push(sink.clone().append(repair).await.unwrap());
    let found = compare(&spans).await.unwrap();
    assert_eq!((found.missing, found.vanished), (Vec::new(), 1), "repaired");
    let done = sink.clone().prepare(StreamId(0), plan.clone(), Arc::new(spans.clone())).await.unwrap();
    // Rows 9 with `gone` and `a` twice; nothing is lost when the source no longer has it.
    assert_eq!((done.rows, done.duplicates), (7, 2));
    sink.clone().publish(manifest(RUN, &[("organisationUnits", done)]), Vec::new()).await.unwrap();
    assert_eq!(bench.read("organisationUnits.ndjson").unwrap(), b"2\n1\n4\n5\n3\n6\n7\n");
}

async fn a_comparison_tells_what_was_asked_for_before_and_what_a_listing_hid(bench: &dyn Bench) {
    use PartitionRole::{Listing, Repair, Rows};
    let roles = [Rows, Listing, Repair, Listing, Repair].map(|role| (0, role));
    let plan = Arc::new(plan(vec![stream("organisationUnits")], &roles));
    let sink = begun(bench, &plan).await;
    let mut spans = Spans::default();
    for page in [
        page(0, 0, &[("a", "1"), ("gone", "2"), ("hidden", "3")]),
        // `stays` is listed twice and never comes, `young` only by the newer listing.
        page(1, 0, &[("a", ""), ("gone", ""), ("hidden", ""), ("late", ""), ("stays", "")]),
        page(2, 0, &[("late", "4")]),
        page(3, 0, &[("a", ""), ("late", ""), ("stays", ""), ("young", "")]),
    ] {
        spans.0.push(sink.clone().append(page).await.unwrap());
    }
    let compare = |spans: &Spans| sink.clone().compare(StreamId(0), plan.clone(), Arc::new(spans.clone()));
    let found = compare(&spans).await.unwrap();
    assert_eq!(found.missing, ["stays", "young"]);
    assert_eq!((found.listed, found.relisted, found.returned), (4, 1, 0));
    assert_eq!(found.vanished_keys, ["gone", "hidden"]);

    spans.0.push(sink.clone().append(page(4, 0, &[("hidden", "3"), ("young", "5")])).await.unwrap());
    let found = compare(&spans).await.unwrap();
    assert_eq!(found.missing, ["stays"]);
    assert_eq!((found.vanished, found.relisted, found.returned), (2, 1, 1), "`hidden` came although it was not listed");
}

/// A test of each promise for a bench.
macro_rules! every_promise {
    ($sink:ident, $bench:expr, [$($promise:ident),* $(,)?]) => {
        mod $sink {
            use super::*;

            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(&$bench).await;
                }
            )*
        }
    };
    ($($sink:ident: $bench:expr),* $(,)?) => {
        $(
            every_promise!($sink, $bench, [
                everything_appended_is_found_at_the_next_start_in_order,
                a_spool_that_lacks_what_was_committed_is_damaged,
                a_new_run_leaves_nothing_of_the_one_before,
                nothing_is_appended_where_no_run_has_begun,
                what_is_published_is_what_was_appended_and_a_repeat_changes_nothing,
                appends_go_on_while_a_sync_runs,
                a_comparison_names_what_is_missing_and_counts_what_vanished,
                a_comparison_tells_what_was_asked_for_before_and_what_a_listing_hid,
            ]);
        )*
    };
}

every_promise! {
    files: FilesBench(tempfile::tempdir().unwrap()),
}
