//! What every checkpoint store promises. A new store writes a bench and gets all of these tests.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use harvester_actors::{
    checkpoint::{Batch, Checkpoint, RunHeader},
    checkpoint_store::CheckpointStore,
    failure::FailureClass,
    page::{FrameRange, PageCounts, Reject, Span},
    partition::{Next, Partition, PartitionId, PartitionRole, Plan, SourceIdentity, Stream, StreamId},
};
use proptest::{prelude::*, test_runner::TestRunner};

use super::{MemoryStore, SledStore, format, sled::open_db};

/// A place for one store.
trait Bench {
    /// The store as a new process would find it; earlier handles have been dropped.
    fn open(&self) -> Arc<dyn CheckpointStore>;
}

struct MemoryBench(Arc<MemoryStore>);

impl Bench for MemoryBench {
    fn open(&self) -> Arc<dyn CheckpointStore> {
        self.0.clone()
    }
}

struct SledBench(tempfile::TempDir);

impl SledBench {
    fn new() -> Self {
        SledBench(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> std::path::PathBuf {
        self.0.path().join("checkpoint")
    }
}

impl Bench for SledBench {
    fn open(&self) -> Arc<dyn CheckpointStore> {
        Arc::new(SledStore::open(self.dir()))
    }
}

fn partition(id: u32, stream: u32) -> Partition {
    Partition {
        id: PartitionId(id),
        stream: StreamId(stream),
        key: format!("organisationUnits/{id}"),
        role: PartitionRole::Rows,
        selection: serde_json::json!({ "from": id, "filter": "name:like:ü\n\"" }),
        requests: Some(3),
        expected_rows: None,
    }
}

fn header(run_id: &str, partitions: u32) -> RunHeader {
    RunHeader {
        run_id: run_id.to_owned(),
        job: "sierra-leone".to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        fingerprint: BTreeMap::from([("source.url".to_owned(), "http://x".to_owned())]),
        source: SourceIdentity { url: "http://x".to_owned(), minor: 40, ..SourceIdentity::default() },
        plan: Plan {
            streams: vec![Stream {
                name: "organisationUnits".to_owned(),
                expected_rows: Some(9),
                optional: false,
                watermark: None,
            }],
            partitions: (0..partitions).map(|id| partition(id, 0)).collect(),
            left_out: Vec::new(),
        },
    }
}

/// Page `seq` of a partition, ending at `to`.
fn span(partition: u32, seq: u32, to: u64, next: Next) -> Span {
    Span {
        partition: PartitionId(partition),
        seq,
        next,
        counts: PageCounts {
            fetched: 5,
            kept: 3,
            filtered: 1,
            rejected: 1,
            bytes: 300 + u64::from(seq),
            miscounted: 0,
        },
        rejects: vec![Reject {
            partition: format!("organisationUnits/{partition}"),
            class: "too_large".to_owned(),
            message: "a row of 17 MiB".to_owned(),
            id: Some("a".to_owned()),
            bytes: Some(17),
        }],
        frame: FrameRange { from: to - 10, to },
    }
}

fn after(id: &str) -> Next {
    Next::After(id.to_owned())
}

/// Three batches of pages, and what the checkpoint is after each, the begin first.
fn batches() -> (Vec<Batch>, Vec<Checkpoint>) {
    let steps = [
        (vec![span(0, 0, 20, after("a")), span(1, 0, 30, after("b"))], vec![]),
        (vec![span(0, 1, 60, Next::End), span(2, 0, 50, Next::End)], vec![partition(2, 0)]),
        (vec![span(1, 1, 70, after("c")), span(1, 2, 80, after("d"))], vec![]),
    ];
    let mut checkpoint = Checkpoint::begun(header("20260101T000000Z", 2), 10);
    let mut states = vec![checkpoint.clone()];
    let mut batches = Vec::new();
    for (spans, grown) in steps {
        let spool_len = spans.iter().map(|span| span.frame.to).max().unwrap();
        checkpoint.grow(&grown, spool_len).unwrap();
        for span in &spans {
            checkpoint.apply(span).unwrap();
        }
        states.push(checkpoint.clone());
        batches.push(Batch { spans, grown, spool_len });
    }
    (batches, states)
}

async fn begun(bench: &dyn Bench) -> Arc<dyn CheckpointStore> {
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), None);
    store.clone().begin(header("20260101T000000Z", 2), 10).await.unwrap();
    store
}

async fn an_empty_store_knows_no_run(bench: &dyn Bench) {
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), None);
    assert_eq!(store.clone().ended_run().await.unwrap(), None);
    store.end().await.unwrap();
}

async fn every_acknowledged_batch_is_there_at_the_next_start(bench: &dyn Bench) {
    let (batches, states) = batches();
    drop(begun(bench).await);
    for (batch, expected) in batches.into_iter().zip(states.windows(2)) {
        let store = bench.open();
        assert_eq!(store.clone().load().await.unwrap().as_ref(), Some(&expected[0]));
        store.clone().commit(batch).await.unwrap();
        drop(store);
        assert_eq!(bench.open().load().await.unwrap().as_ref(), Some(&expected[1]));
    }
}

async fn spans_come_in_the_order_of_their_numbers(bench: &dyn Bench) {
    let (batches, _) = batches();
    let store = begun(bench).await;
    let mut expected: Vec<Span> = batches.iter().flat_map(|batch| batch.spans.clone()).collect();
    expected.sort_by_key(|span| (span.partition, span.seq));
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    let read = |store: Arc<dyn CheckpointStore>| {
        let reader = store.reader();
        (0..4).flat_map(|id| reader.spans(PartitionId(id))).collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(read(store.clone()), expected);
    drop(store);
    let store = bench.open();
    store.clone().load().await.unwrap();
    assert_eq!(read(store), expected, "at the next start");
}

async fn a_batch_that_does_not_follow_is_refused_whole(bench: &dyn Bench) {
    let store = begun(bench).await;
    let good = span(0, 0, 20, after("a"));
    for bad in [span(0, 2, 30, after("b")), span(1, 1, 30, after("b")), span(7, 0, 30, after("b"))] {
        let batch = Batch { spans: vec![good.clone(), bad], grown: Vec::new(), spool_len: 30 };
        store.clone().commit(batch).await.unwrap_err();
    }
    let batch = Batch { spans: vec![good.clone()], grown: vec![partition(3, 0)], spool_len: 30 };
    store.clone().commit(batch).await.unwrap_err();
    drop(store);
    let found = bench.open().load().await.unwrap().unwrap();
    assert_eq!(found, Checkpoint::begun(header("20260101T000000Z", 2), 10));
}

async fn an_ended_run_is_no_unfinished_one_and_is_remembered(bench: &dyn Bench) {
    let (batches, _) = batches();
    let store = begun(bench).await;
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    store.clone().end().await.unwrap();
    store.clone().end().await.unwrap();
    drop(store);
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), None);
    assert_eq!(store.clone().ended_run().await.unwrap().as_deref(), Some("20260101T000000Z"));
    store.end().await.unwrap();
    assert_eq!(bench.open().load().await.unwrap(), None);
}

async fn a_new_run_knows_nothing_of_the_one_before(bench: &dyn Bench) {
    let (batches, _) = batches();
    let store = begun(bench).await;
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    // Whether the earlier one is finished or not.
    store.clone().begin(header("20260102T000000Z", 1), 11).await.unwrap();
    assert_eq!(store.clone().reader().spans(PartitionId(0)).count(), 0);
    store.clone().end().await.unwrap();
    store.clone().begin(header("20260103T000000Z", 3), 12).await.unwrap();
    drop(store);
    let store = bench.open();
    let expected = Checkpoint::begun(header("20260103T000000Z", 3), 12);
    assert_eq!(store.clone().load().await.unwrap(), Some(expected));
    assert_eq!(store.reader().spans(PartitionId(0)).count(), 0);
}

async fn nothing_is_committed_where_no_run_has_begun(bench: &dyn Bench) {
    let store = bench.open();
    store.clone().load().await.unwrap();
    let failure = store.clone().commit(batches().0.remove(0)).await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Bug);
    assert_eq!(store.load().await.unwrap(), None);
}

/// A test of each promise for a bench.
macro_rules! every_promise {
    ($store:ident, $bench:expr, [$($promise:ident),* $(,)?]) => {
        mod $store {
            use super::*;

            $(
                #[tokio::test]
                async fn $promise() {
                    super::$promise(&$bench).await;
                }
            )*
        }
    };
    ($($store:ident: $bench:expr),* $(,)?) => {
        $(
            every_promise!($store, $bench, [
                an_empty_store_knows_no_run,
                every_acknowledged_batch_is_there_at_the_next_start,
                spans_come_in_the_order_of_their_numbers,
                a_batch_that_does_not_follow_is_refused_whole,
                an_ended_run_is_no_unfinished_one_and_is_remembered,
                a_new_run_knows_nothing_of_the_one_before,
                nothing_is_committed_where_no_run_has_begun,
            ]);
        )*
    };
}

every_promise! {
    in_memory: MemoryBench(Arc::new(MemoryStore::new())),
    on_disk: SledBench::new(),
}

/// A store with a run of three batches in `dir`, and the checkpoints it may come up with.
async fn sample(bench: &SledBench) -> Vec<Checkpoint> {
    let (batches, states) = batches();
    let store = begun(bench).await;
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    states
}

/// The files below a folder.
fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[tokio::test]
async fn the_store_and_all_its_files_are_private() {
    use std::os::unix::fs::PermissionsExt;

    let bench = SledBench::new();
    sample(&bench).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&bench.dir()), 0o700);
    for file in files_below(&bench.dir()) {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_second_process_is_told_so_and_nothing_is_called_damaged() {
    let bench = SledBench::new();
    let first = begun(&bench).await;
    let failure = bench.open().load().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Local, "{failure}");
    assert!(failure.message.contains("in use by another process"), "{failure}");
    first.commit(batches().0.remove(0)).await.unwrap();
}

#[tokio::test]
async fn a_store_of_a_newer_program_is_left_untouched() {
    let bench = SledBench::new();
    sample(&bench).await;
    {
        // What a later version would leave: its own number, and a checksum that fits.
        let db = open_db(&bench.dir()).unwrap();
        let json = br#"{"from":"the future"}"#;
        let crc = crc32c::crc32c(&[format::HEADER, &[format::VERSION + 1], json].concat());
        db.insert(format::HEADER, [&[format::VERSION + 1], &crc.to_le_bytes()[..], json].concat()).unwrap();
        db.flush().unwrap();
    }
    let store = bench.open();
    let failure = store.clone().load().await.unwrap_err();
    assert_eq!(failure.class, FailureClass::Damaged);
    assert!(failure.next.as_ref().is_some_and(|next| next.contains("newer program")), "{failure:?}");
    assert_eq!(store.clone().begin(header("20260102T000000Z", 1), 1).await.unwrap_err(), failure);
    drop(store);
    assert_eq!(bench.open().load().await.unwrap_err(), failure, "at the next start");
}

#[tokio::test]
async fn a_value_that_went_missing_is_damage_whichever_it_is() {
    let bench = SledBench::new();
    let states = sample(&bench).await;
    let keys: Vec<sled::IVec> = {
        let db = open_db(&bench.dir()).unwrap();
        db.iter().keys().collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(keys.len(), 1 + 3 + 1 + 3 + 6);
    for key in keys {
        let lost = {
            let db = open_db(&bench.dir()).unwrap();
            let lost = db.remove(&key).unwrap().unwrap();
            db.flush().unwrap();
            lost
        };
        let failure = bench.open().load().await.unwrap_err();
        assert_eq!((failure.class, failure.next.as_deref()), (FailureClass::Damaged, None), "{key:?}: {failure}");
        let db = open_db(&bench.dir()).unwrap();
        db.insert(&key, lost).unwrap();
        db.flush().unwrap();
    }
    assert_eq!(bench.open().load().await.unwrap().as_ref(), states.last());
}

#[tokio::test]
async fn a_failed_commit_is_final() {
    let bench = SledBench::new();
    let store = begun(&bench).await;
    // What the folder's sync needs is gone.
    fs::rename(bench.dir(), bench.0.path().join("elsewhere")).unwrap();
    let batch = batches().0.remove(0);
    let failure = store.clone().commit(batch.clone()).await.unwrap_err();
    fs::rename(bench.0.path().join("elsewhere"), bench.dir()).unwrap();
    assert_eq!(store.clone().commit(batch).await.unwrap_err(), failure);
    assert_eq!(store.end().await.unwrap_err(), failure);
}

/// Loads a damaged copy of a store and, if it is refused, begins and commits in its place.
async fn load_damaged(bench: &SledBench, states: &[Checkpoint], what: &str) -> &'static str {
    let store = bench.open();
    match store.clone().load().await {
        Ok(None) => "none",
        Ok(Some(found)) => {
            assert!(states.contains(&found), "{what}: a checkpoint that never was: {found:?}");
            if Some(&found) == states.last() { "equal" } else { "older" }
        }
        Err(failure) => {
            assert_eq!((failure.class, failure.next.as_deref()), (FailureClass::Damaged, None), "{what}: {failure}");
            let (batches, states) = batches();
            store
                .clone()
                .begin(header("20260101T000000Z", 2), 10)
                .await
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            for batch in batches {
                store.clone().commit(batch).await.unwrap_or_else(|error| panic!("{what}: {error}"));
            }
            drop(store);
            assert_eq!(bench.open().load().await.unwrap().as_ref(), states.last(), "{what}: rebuilt");
            "damaged"
        }
    }
}

/// Copies a folder's files.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("blobs")).unwrap();
    for file in files_below(from) {
        fs::copy(&file, to.join(file.strip_prefix(from).unwrap())).unwrap();
    }
}

#[tokio::test]
async fn a_store_cut_at_any_length_or_deleted_is_refused_or_an_older_one_never_a_different_one() {
    let bench = SledBench::new();
    let states = sample(&bench).await;
    let good = bench.0.path().join("good");
    fs::rename(bench.dir(), &good).unwrap();
    let mut tally: BTreeMap<&str, u32> = BTreeMap::new();
    for file in files_below(&good) {
        let name = file.strip_prefix(&good).unwrap();
        let len = fs::metadata(&file).unwrap().len();
        let mut lens: Vec<Option<u64>> = (0..len.min(4096)).step_by(if len > 200 { 97 } else { 1 }).map(Some).collect();
        lens.extend((4096..len).step_by(16 * 1024 + 7).map(Some));
        lens.push(None);
        for cut in lens {
            let _ = fs::remove_dir_all(bench.dir());
            copy_files(&good, &bench.dir());
            let damaged = bench.dir().join(name);
            match cut {
                Some(cut) => fs::OpenOptions::new().write(true).open(damaged).unwrap().set_len(cut).unwrap(),
                None => fs::remove_file(damaged).unwrap(),
            }
            let what = format!("{} of {len} bytes cut to {cut:?}", name.display());
            *tally.entry(load_damaged(&bench, &states, &what).await).or_default() += 1;
        }
    }
    assert!(tally["damaged"] > 0, "{tally:?}");
}

#[test]
fn a_store_with_flipped_bytes_is_refused_or_an_older_one_never_a_different_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let bench = SledBench::new();
    let states = runtime.block_on(sample(&bench));
    let good = bench.0.path().join("good");
    fs::rename(bench.dir(), &good).unwrap();
    // Bytes that were written; most of a segment never is.
    let places: Vec<(std::path::PathBuf, usize)> = files_below(&good)
        .into_iter()
        .flat_map(|file| {
            let bytes = fs::read(&file).unwrap();
            (0..bytes.len())
                .filter(move |place| bytes[*place] != 0)
                .map(move |place| (file.clone(), place))
                .collect::<Vec<_>>()
        })
        .collect();
    let tally = std::cell::RefCell::new(BTreeMap::<&str, u32>::new());
    let cases = std::option_env!("STORE_FLIPS").and_then(|cases| cases.parse().ok()).unwrap_or(200);
    let mut runner = TestRunner::new(ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() });
    runner
        .run(&(any::<prop::sample::Index>(), 1u8..), |(place, flip)| {
            let (file, place) = &places[place.index(places.len())];
            let name = file.strip_prefix(&good).unwrap();
            let _ = fs::remove_dir_all(bench.dir());
            copy_files(&good, &bench.dir());
            let mut bytes = fs::read(file).unwrap();
            bytes[*place] ^= flip;
            fs::write(bench.dir().join(name), bytes).unwrap();
            let what = format!("{} byte {place} ^ {flip}", name.display());
            let found = runtime.block_on(load_damaged(&bench, &states, &what));
            *tally.borrow_mut().entry(found).or_default() += 1;
            Ok(())
        })
        .unwrap();
    // sled notices few flips, in some hundreds perhaps none: that it is refused then, the cuts above show each time.
    assert_eq!(tally.borrow().values().sum::<u32>(), cases, "{tally:?}");
}
