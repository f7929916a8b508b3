//! What every checkpoint store promises. A new store writes a bench and gets all of these tests.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use harvester_actors::{
    checkpoint::{Checkpoint, RunHeader, SpoolEntry},
    checkpoint_store::CheckpointStore,
    failure::FailureClass,
    page::{FrameRange, PageCounts, PageRef, Reject, Span},
    partition::{
        Cursor, LeftOut, Partition, PartitionId, Pass, PassId, PlanPiece, SourceIdentity, Stream, StreamId, Yield,
    },
};
use proptest::{prelude::*, test_runner::TestRunner};

use super::{SledStore, format, sled::open_db};

/// A place for one store.
trait Bench {
    /// The store as a new process would find it; earlier handles have been dropped.
    fn open(&self) -> Arc<dyn CheckpointStore>;
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

fn partition(id: u32, pass: u32) -> Partition {
    Partition {
        id: PartitionId(id),
        pass: PassId(pass),
        key: format!("organisationUnits/{id}"),
        selection: serde_json::json!({ "from": id, "filter": "name:like:ü\n\"" }),
        requests: Some(3),
        expected_rows: None,
    }
}

fn header(run_id: &str) -> RunHeader {
    RunHeader {
        run_id: run_id.to_owned(),
        job: "sierra-leone".to_owned(),
        started_at: "2026-01-01T00:00:00Z".to_owned(),
        fingerprint: BTreeMap::from([("source.url".to_owned(), "http://x".to_owned())]),
        source: SourceIdentity { url: "http://x".to_owned(), minor: 40, ..SourceIdentity::default() },
    }
}

fn pass(yields: Yield) -> Pass {
    Pass { stream: StreamId(0), yields, selection: serde_json::json!({ "fields": "id" }) }
}

/// The last ten bytes before `to`.
fn frame(to: u64) -> FrameRange {
    FrameRange { from: to - 10, to }
}

/// A piece of the plan, ending at `to`.
fn planned(piece: PlanPiece, to: u64) -> SpoolEntry {
    SpoolEntry::Planned { piece, frame: frame(to) }
}

/// One stream, its first pass and partitions `0..partitions` of it, ending at `to`.
fn first_piece(partitions: u32, to: u64) -> SpoolEntry {
    let stream = Stream {
        name: "organisationUnits".to_owned(),
        expected_rows: Some(9),
        optional: false,
        watermark: Some("2026-01-01".to_owned()),
    };
    let piece = PlanPiece {
        streams: vec![stream],
        passes: vec![pass(Yield::Rows)],
        partitions: (0..partitions).map(|id| partition(id, 0)).collect(),
        left_out: vec![LeftOut { stream: "icons".to_owned(), reason: "not for this user".to_owned() }],
    };
    planned(piece, to)
}

/// Page `seq` of a partition of the first pass, ending at `to`.
fn span(partition: u32, seq: u32, to: u64, next: Cursor) -> Span {
    Span {
        partition: PartitionId(partition),
        pass: PassId(0),
        seq,
        next,
        halvings: 2,
        counts: PageCounts {
            fetched: 5,
            kept: 3,
            filtered: 1,
            rejected: 1,
            nameless: 1,
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
        children: Vec::new(),
        frame: frame(to),
    }
}

fn page(partition: u32, seq: u32, to: u64, next: Cursor) -> SpoolEntry {
    SpoolEntry::Page(span(partition, seq, to, next))
}

fn after(id: &str) -> Cursor {
    Cursor::After(id.to_owned())
}

type Batch = Vec<Arc<SpoolEntry>>;

/// Batches of entries, and what the checkpoint is after each, the begin first: a plan in two pieces, pages of both of its
/// partitions, a split, children that come with rows, a further pass.
fn batches() -> (Vec<Batch>, Vec<Checkpoint>) {
    let first_pages = vec![page(0, 0, 50, after("a")), page(1, 0, 60, after("b"))];
    let mut split = span(2, 0, 70, Cursor::End);
    split.children = vec![partition(3, 0), partition(4, 0)];
    let mut with_child = span(1, 1, 80, after("c"));
    with_child.children = vec![partition(5, 0)];
    let listing =
        PlanPiece { passes: vec![pass(Yield::Keys)], partitions: vec![partition(6, 1)], ..PlanPiece::default() };
    let mut listed = span(6, 0, 120, Cursor::End);
    listed.pass = PassId(1);
    let steps = [
        vec![first_piece(2, 20), planned(PlanPiece { partitions: vec![partition(2, 0)], ..PlanPiece::default() }, 30)],
        first_pages,
        vec![SpoolEntry::Page(split), SpoolEntry::Page(with_child), page(0, 1, 90, Cursor::End)],
        vec![planned(listing, 100), page(3, 0, 110, after("x")), SpoolEntry::Page(listed)],
        vec![page(3, 1, 130, after("y")), page(3, 2, 140, after("z"))],
    ];
    let mut checkpoint = Checkpoint::new(header("20260101T000000Z"), 10);
    let mut states = vec![checkpoint.clone()];
    let mut batches = Vec::new();
    for step in steps {
        for entry in &step {
            checkpoint.apply(entry).unwrap();
        }
        states.push(checkpoint.clone());
        batches.push(step.into_iter().map(Arc::new).collect());
    }
    (batches, states)
}

/// The pages of a pass.
fn pages_of(store: &Arc<dyn CheckpointStore>, pass: u32) -> Vec<PageRef> {
    store.clone().pages().pages_of(PassId(pass)).collect::<Result<_, _>>().unwrap()
}

async fn begun(bench: &dyn Bench) -> Arc<dyn CheckpointStore> {
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), None);
    store.clone().begin(header("20260101T000000Z"), 10).await.unwrap();
    store
}

async fn an_empty_store_knows_no_run(bench: &dyn Bench) {
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), None);
    assert_eq!(store.clone().last_completed_run().await.unwrap(), None);
    store.complete_run().await.unwrap();
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

async fn pages_come_in_the_order_of_the_spool(bench: &dyn Bench) {
    let (batches, _) = batches();
    let store = begun(bench).await;
    let spans: Vec<Span> = batches.iter().flatten().filter_map(|entry| page_in(entry)).collect();
    let expected =
        |pass| -> Vec<PageRef> { spans.iter().filter(|span| span.pass == PassId(pass)).map(Span::page_ref).collect() };
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    assert_eq!((expected(0).len(), expected(1).len()), (8, 1));
    let read = |store: &Arc<dyn CheckpointStore>| [0, 1, 2].map(|pass| pages_of(store, pass));
    assert_eq!(read(&store), [expected(0), expected(1), Vec::new()]);
    drop(store);
    let store = bench.open();
    store.clone().load().await.unwrap();
    assert_eq!(read(&store), [expected(0), expected(1), Vec::new()], "at the next start");
}

/// The page of an entry.
fn page_in(entry: &SpoolEntry) -> Option<Span> {
    match entry {
        SpoolEntry::Page(span) => Some(span.clone()),
        SpoolEntry::Begun { .. } | SpoolEntry::Planned { .. } => None,
    }
}

async fn a_batch_that_does_not_follow_is_refused_whole(bench: &dyn Bench) {
    let (batches, states) = batches();
    let store = begun(bench).await;
    store.clone().commit(batches[0].clone()).await.unwrap();
    drop(store);
    let good = || page(0, 0, 50, after("a"));
    let mut strange_pass = span(1, 0, 60, after("b"));
    strange_pass.pass = PassId(7);
    let mut strange_child = span(1, 0, 60, after("b"));
    strange_child.children = vec![partition(4, 0)];
    let gap = PlanPiece { partitions: vec![partition(4, 0)], ..PlanPiece::default() };
    for bad in [
        page(0, 2, 60, after("b")),
        page(0, 0, 60, after("b")),
        page(1, 1, 60, after("b")),
        page(7, 0, 60, after("b")),
        SpoolEntry::Page(strange_pass),
        SpoolEntry::Page(strange_child),
        planned(gap, 60),
        SpoolEntry::Begun { header: header("20260101T000000Z"), frame: frame(60) },
    ] {
        let store = bench.open();
        assert_eq!(store.clone().load().await.unwrap().as_ref(), Some(&states[1]), "before {bad:?}");
        let what = format!("{bad:?}");
        let failure = store.clone().commit(vec![Arc::new(good()), Arc::new(bad)]).await.expect_err(&what);
        // What it knows of the run is half of a batch ahead of the disk: nothing is added to that.
        assert_eq!(store.clone().commit(vec![Arc::new(good())]).await, Err(failure), "after {what}");
    }
    assert_eq!(bench.open().load().await.unwrap().as_ref(), Some(&states[1]));
}

async fn more_pages_than_one_value_holds_are_all_there(bench: &dyn Bench) {
    let store = begun(bench).await;
    let many = 2 * format::PAGES_MAX as u32 + 7;
    let mut checkpoint = Checkpoint::new(header("20260101T000000Z"), 10);
    let mut batch = vec![Arc::new(first_piece(format::BLOCK_PARTITIONS + 2, 20))];
    let ends = (0..many).map(|n| (n % format::BLOCK_PARTITIONS, 30 + 10 * u64::from(n)));
    batch.extend(ends.map(|(partition, to)| Arc::new(page(partition, 0, to, Cursor::End))));
    // The last one of a block, and the first of the next.
    for (n, id) in (0..).zip([format::BLOCK_PARTITIONS - 1, format::BLOCK_PARTITIONS, format::BLOCK_PARTITIONS + 1]) {
        batch.push(Arc::new(page(id, 0, 10_000 + 10 * n, Cursor::End)));
    }
    for entry in &batch {
        checkpoint.apply(entry).unwrap();
    }
    store.clone().commit(batch).await.unwrap();
    let pages = pages_of(&store, 0);
    drop(store);
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), Some(checkpoint));
    assert_eq!((pages_of(&store, 0).len(), pages.len()), (many as usize + 3, many as usize + 3));
    assert!(pages.windows(2).all(|pair| pair[0].frame.to <= pair[1].frame.from));
}

async fn a_completed_run_is_not_an_unfinished_one_and_is_remembered(bench: &dyn Bench) {
    let (batches, _) = batches();
    let store = begun(bench).await;
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    store.clone().complete_run().await.unwrap();
    store.clone().complete_run().await.unwrap();
    drop(store);
    let store = bench.open();
    assert_eq!(store.clone().load().await.unwrap(), None);
    assert_eq!(store.clone().last_completed_run().await.unwrap().as_deref(), Some("20260101T000000Z"));
    store.complete_run().await.unwrap();
    assert_eq!(bench.open().load().await.unwrap(), None);
}

async fn a_new_run_knows_nothing_of_the_one_before(bench: &dyn Bench) {
    let (batches, _) = batches();
    let store = begun(bench).await;
    for batch in batches {
        store.clone().commit(batch).await.unwrap();
    }
    // Whether the earlier one is finished or not.
    store.clone().begin(header("20260102T000000Z"), 11).await.unwrap();
    assert_eq!(pages_of(&store, 0), []);
    store.clone().complete_run().await.unwrap();
    store.clone().begin(header("20260103T000000Z"), 12).await.unwrap();
    drop(store);
    let store = bench.open();
    let expected = Checkpoint::new(header("20260103T000000Z"), 12);
    assert_eq!(store.clone().load().await.unwrap(), Some(expected));
    assert_eq!(pages_of(&store, 0), []);
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
                pages_come_in_the_order_of_the_spool,
                a_batch_that_does_not_follow_is_refused_whole,
                a_completed_run_is_not_an_unfinished_one_and_is_remembered,
                more_pages_than_one_value_holds_are_all_there,
                a_new_run_knows_nothing_of_the_one_before,
                nothing_is_committed_where_no_run_has_begun,
            ]);
        )*
    };
}

every_promise! {
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
    assert_eq!(store.clone().begin(header("20260102T000000Z"), 1).await.unwrap_err(), failure);
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
    // Header, totals, plan, chunks, pages, their sums, finished, open.
    assert_eq!(keys.len(), 1 + 1 + 2 + 5 + 5 + 2 + 1 + 2);
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

/// All values of a closed store.
fn values(bench: &SledBench) -> BTreeMap<sled::IVec, sled::IVec> {
    open_db(&bench.dir()).unwrap().iter().collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn a_value_of_an_earlier_time_is_damage_whichever_it_is() {
    let bench = SledBench::new();
    let (batches, states) = batches();
    drop(begun(&bench).await);
    let mut times = vec![values(&bench)];
    for batch in batches {
        let store = bench.open();
        store.clone().load().await.unwrap();
        store.commit(batch).await.unwrap();
        times.push(values(&bench));
    }
    let now = times.pop().unwrap();
    let mut tried = 0;
    for (time, earlier) in times.iter().enumerate() {
        for (key, old) in earlier.iter().filter(|(key, old)| now.get(*key) != Some(*old)) {
            {
                let db = open_db(&bench.dir()).unwrap();
                db.insert(key, old).unwrap();
                db.flush().unwrap();
            }
            let failure = bench.open().load().await.expect_err(&format!("{key:?} of time {time}"));
            assert_eq!((failure.class, failure.next.as_deref()), (FailureClass::Damaged, None), "{key:?}: {failure}");
            let db = open_db(&bench.dir()).unwrap();
            match now.get(key) {
                Some(value) => db.insert(key, value).unwrap(),
                None => db.remove(key).unwrap(),
            };
            db.flush().unwrap();
            tried += 1;
        }
    }
    // Totals at four times, sums of the pass twice, the block of finished ones, open partitions.
    assert_eq!(tried, 12);
    assert_eq!(bench.open().load().await.unwrap().as_ref(), states.last());
}

#[tokio::test]
async fn a_store_of_an_older_program_is_rebuilt() {
    let bench = SledBench::new();
    let states = sample(&bench).await;
    {
        let db = open_db(&bench.dir()).unwrap();
        for entry in db.iter() {
            let (key, mut value) = entry.unwrap();
            value[0] = format::VERSION - 1;
            let crc = crc32c::crc32c(&[&key, &value[..1], &value[5..]].concat());
            value[1..5].copy_from_slice(&crc.to_le_bytes());
            db.insert(key, value).unwrap();
        }
        db.flush().unwrap();
    }
    assert_eq!(load_damaged(&bench, &states, "version 1").await, "damaged");
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
    assert_eq!(store.complete_run().await.unwrap_err(), failure);
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
            store.clone().begin(header("20260101T000000Z"), 10).await.unwrap_or_else(|error| panic!("{what}: {error}"));
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
