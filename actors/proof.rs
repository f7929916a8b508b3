//! The proofs of recovery: a death at every port call, a failure of every port call, a panic in every page. The result is
//! that of an undisturbed run, and nothing that was committed is asked for twice.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use actix::prelude::*;
use futures_core::future::LocalBoxFuture;

use crate::{
    checkpoint::RunHeader,
    checkpointer::Checkpointer,
    events::Event,
    failure::{Failure, FailureClass},
    fakes::{HeldBack, InjectedFault, NullListener, ProcessRun, RecordingListener, World},
    follow::Proof,
    harvest,
    partition::{Cursor, PlanPiece, Position},
    plan::PlanBuilder,
    planner::PlanExtended,
    rate_limiter::{RateLimiter, RateLimiterSettings, SourceProbe},
    recovery,
    report::{Outcome, Report},
    reporter::{EventSender, Reporter},
    supervisor::{EndRun, Supervisor, SupervisorParts},
    writer::{WritePage, Writer},
};

/// Hears of the end of a run and does nothing about it.
struct Nobody;

impl Actor for Nobody {
    type Context = Context<Self>;
}

impl Handler<PlanExtended> for Nobody {
    type Result = ();

    fn handle(&mut self, _: PlanExtended, _: &mut Self::Context) {}
}

impl Handler<EndRun> for Nobody {
    type Result = ();

    fn handle(&mut self, _: EndRun, _: &mut Self::Context) {}
}

/// A message whose handling never ends.
#[derive(Message)]
#[rtype(result = "()")]
struct Hang;

impl Handler<Hang> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Hang, ctx: &mut Self::Context) {
        ctx.wait(std::future::pending().into_actor(self));
    }
}

/// A source of which nobody wants to know whether it is back.
struct NoProbe;

impl SourceProbe for NoProbe {
    fn probe(&self) -> LocalBoxFuture<'_, bool> {
        Box::pin(std::future::pending())
    }
}

/// Runs until the run ends or its life does.
async fn live(world: &Arc<World>, life: &Arc<ProcessRun>, fetchers: u32) -> Option<Report> {
    tokio::select! {
        report = harvest::run(world.harvest(life, fetchers)) => Some(report),
        () = life.death() => None,
    }
}

/// Asserts that the world holds exactly what an undisturbed run leaves.
fn assert_exact(world: &Arc<World>, what: &str) {
    assert_eq!(world.disk.published(), world.expected(), "{what}: the files differ");
    assert!(world.disk.is_clean(), "{what}: something of the run is left");
    let manifest = world.disk.manifest().unwrap();
    assert!(manifest.complete, "{what}: the manifest is not complete");
}

/// Runs a small world whose `at`th port call ends in `fault`, then again until a run ends, and asserts the result.
/// Returns whether there was an `at`th call at all.
async fn dies_once(fault: InjectedFault, at: u64, fetchers: u32, seed: Option<u64>) -> bool {
    let what = format!("{fault:?} at call {at} with {fetchers} fetchers, seed {seed:?}");
    let world = World::new(2, 12, 2);
    let life = ProcessRun::by_lot(at, fault, seed);
    let first = live(&world, &life, fetchers).await;
    let happened = life.calls() >= at;
    if let Some(report) = &first
        && report.outcome == Outcome::Complete
    {
        assert_exact(&world, &what);
        return happened;
    }
    assert_ne!(fault, InjectedFault::Panics, "{what}: the run did not survive it: {first:?}");
    let report = live(&world, &ProcessRun::undisturbed(), fetchers).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete, "{what}: {:?}", report.error);
    assert_exact(&world, &what);
    happened
}

#[actix::test]
async fn an_undisturbed_run_publishes_every_row_and_leaves_nothing_behind() {
    tokio::time::pause();
    let world = World::new(3, 23, 2);
    let report = live(&world, &ProcessRun::undisturbed(), 4).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete, "{:?}", report.error);
    assert_eq!(report.streams["stream1"].rows, 23);
    assert!(!report.resumed);
    assert_exact(&world, "undisturbed");
}

/// With these faults at each port call in turn, in several orders of things, the result is that of an undisturbed run.
async fn dies_at_every_call(faults: &[InjectedFault], fetchers: &[u32]) {
    tokio::time::pause();
    for fault in faults {
        for fetchers in fetchers {
            for seed in [None, Some(1), Some(2), Some(3)] {
                let mut at = 1;
                while dies_once(*fault, at, *fetchers, seed).await {
                    at += 1;
                }
                assert!(at > 20, "only {at} calls were tried");
            }
        }
    }
}

#[actix::test]
async fn a_death_before_or_after_any_port_call_changes_no_byte() {
    dies_at_every_call(&[InjectedFault::DiesBefore, InjectedFault::DiesAfter], &[1, 3]).await;
}

#[actix::test]
async fn a_power_cut_after_any_port_call_changes_no_byte() {
    dies_at_every_call(&[InjectedFault::PowerCutAfter], &[1, 3]).await;
}

#[actix::test]
async fn a_failure_of_any_port_call_ends_or_delays_the_run_and_the_next_start_completes_it() {
    dies_at_every_call(&[InjectedFault::Fails], &[2]).await;
}

#[actix::test]
async fn a_panic_in_any_page_costs_one_fetcher_and_no_row() {
    dies_at_every_call(&[InjectedFault::Panics], &[1, 2]).await;
}

#[actix::test]
async fn a_page_that_is_written_again_after_its_fetcher_died_is_not_appended_twice() {
    let world = World::new(1, 5, 1);
    let harvest = world.harvest(&ProcessRun::undisturbed(), 1);
    let identity = harvest.source.identify().await.unwrap();
    let mut pieces: Vec<PlanPiece> = Vec::new();
    harvest.source.plan(&identity, PlanBuilder::new(&mut pieces)).await.unwrap();
    let header = RunHeader {
        run_id: "r".into(),
        job: "j".into(),
        started_at: "t".into(),
        fingerprint: Default::default(),
        source: identity.clone(),
    };
    harvest.spool.clone().begin(header).await.unwrap();
    harvest.spool.clone().extend_plan(pieces[0].clone()).await.unwrap();
    harvest.spool.clone().commit_plan().await.unwrap();
    let checkpoint = recovery::rebuild(&harvest.spool, &harvest.store).await.unwrap();
    let reporter = Reporter::new(Arc::new(NullListener)).start();
    let listener = Nobody.start();
    let (spool, store) = (harvest.spool.clone(), harvest.store.clone());
    let events = EventSender::new(&reporter);
    let checkpointer =
        Checkpointer::new(spool.clone(), store, events, listener.clone().recipient(), checkpoint.clone()).start();
    let writer = Writer::new(spool, checkpointer.clone(), listener.recipient(), &checkpoint).start();

    let page = async |seq| {
        let position = Position { seq, ..Position::default() };
        harvest.source.fetch(&identity, &pieces[0].partitions[0], &position).await.unwrap()
    };
    let first = writer.send(WritePage(page(0).await)).await.unwrap().unwrap();
    let again = writer.send(WritePage(page(0).await)).await.unwrap().unwrap();
    assert_eq!(first.next, Cursor::End);
    assert!(again.is_finished());
    let entries = world.disk.entries();
    assert_eq!(entries, 3, "the header, the plan and one page, not {entries} entries");
}

#[actix::test]
async fn a_store_that_is_lost_at_any_point_is_rebuilt_from_the_spool() {
    tokio::time::pause();
    for at in 1.. {
        let world = World::new(2, 12, 2);
        let life = ProcessRun::new(at, InjectedFault::DiesAfter);
        let _ = live(&world, &life, 2).await;
        if life.calls() < at {
            return;
        }
        if world.disk.manifest().is_some() {
            // Published: without its store nobody can know that the spool is a left-over; publishing again is exact.
            continue;
        }
        world.disk.lose_store();
        let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
        assert_eq!(report.outcome, Outcome::Complete, "store lost after call {at}: {:?}", report.error);
        assert_exact(&world, &format!("store lost after call {at}"));
    }
}

#[actix::test]
async fn a_page_behind_the_last_commit_but_in_the_spool_is_not_asked_for_again() {
    tokio::time::pause();
    // Commits are 100 ms apart and pages 10 ms, so several pages lie behind the last commit when the process dies.
    let world = World::new(1, 60, 1);
    let life = ProcessRun::new(30, InjectedFault::DiesAfter);
    assert!(live(&world, &life, 1).await.is_none(), "the run ended before its life did");
    let report = live(&world, &ProcessRun::undisturbed(), 1).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    let asked = world.asked.lock().unwrap();
    let mut twice: Vec<_> = asked.iter().filter(|one| asked.iter().filter(|other| other == one).count() > 1).collect();
    twice.dedup();
    assert!(twice.len() <= 1, "asked twice for {twice:?}");
}

#[actix::test]
async fn a_source_that_is_silent_for_too_long_ends_the_run_resumably() {
    tokio::time::pause();
    let world = World::new(1, 30, 1);
    *world.failures.lock().unwrap() = vec![Failure::new(FailureClass::Transient, "connection refused"); 60];
    let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
    assert_eq!(report.outcome, Outcome::Unavailable, "{:?}", report.error);
    assert!(world.disk.manifest().is_none());
    world.failures.lock().unwrap().clear();
    let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
    assert!(report.resumed);
    assert_exact(&world, "after the outage");
}

#[actix::test]
async fn a_refused_partition_ends_with_3_beside_a_whole_stream_and_with_7_alone() {
    tokio::time::pause();
    for (streams, outcome) in [(2, Outcome::Rejected), (1, Outcome::Refused)] {
        let world = World::new(streams, 12, 1);
        *world.failures.lock().unwrap() = vec![Failure::new(FailureClass::Rejected, "E1234 no such thing")];
        let report = live(&world, &ProcessRun::undisturbed(), 1).await.unwrap();
        assert_eq!(report.outcome, outcome, "{:?}", report.error);
        assert_eq!(world.disk.manifest().is_some(), outcome == Outcome::Rejected);
    }
}

#[actix::test]
async fn rows_that_appear_or_vanish_meanwhile_are_reconciled_and_counted() {
    tokio::time::pause();
    let world = World::new(1, 40, 1);
    let life = ProcessRun::undisturbed();
    let changing = Arc::clone(&world);
    let change = async move {
        tokio::time::sleep(Duration::from_millis(45)).await;
        let mut truth = changing.truth.lock().unwrap();
        let rows = truth.get_mut("stream0").unwrap();
        // One behind the cursor comes, one already fetched goes, one not yet fetched goes.
        rows.insert(1, ("s0r00000a".into(), "{\"id\":\"s0r00000a\"}".into()));
        rows.retain(|(id, _)| id != "s0r00003" && id != "s0r00033");
    };
    let (report, ()) = tokio::join!(harvest::run(world.harvest(&life, 1)), change);
    assert_eq!(report.outcome, Outcome::Complete, "{:?}", report.error);
    assert_eq!((report.streams["stream0"].appeared, report.streams["stream0"].vanished), (Some(1), Some(1)));
    let published = String::from_utf8(world.disk.published()["stream0.ndjson"].clone()).unwrap();
    assert!(published.contains("s0r00000a"), "the row that appeared was fetched");
}

#[actix::test]
async fn a_source_that_counts_more_than_it_lists_proves_nothing_and_ends_with_4() {
    tokio::time::pause();
    let world = World::new(1, 40, 2);
    world.miscounts_by.store(3, Ordering::SeqCst);
    let report = live(&world, &ProcessRun::undisturbed(), 1).await.unwrap();
    assert_eq!(report.outcome, Outcome::Mismatch);
    let message = report.error.unwrap().message;
    assert!(message.contains("it counts 3 rows of stream0 that it neither lists nor sends"), "{message}");
}

#[actix::test]
async fn rows_that_were_counted_and_have_gone_before_they_came_are_said() {
    tokio::time::pause();
    let world = World::new(1, 40, 2);
    world.miscounts_by.store(3, Ordering::SeqCst);
    let counting = Arc::clone(&world);
    let change = async move {
        tokio::time::sleep(Duration::from_millis(25)).await;
        counting.miscounts_by.store(0, Ordering::SeqCst);
    };
    let (report, ()) = tokio::join!(harvest::run(world.harvest(&ProcessRun::undisturbed(), 1)), change);
    assert_eq!(report.outcome, Outcome::Complete, "{:?}", report.error);
    assert!(report.warnings.iter().any(|said| said.contains("3 rows more in stream0")), "{:?}", report.warnings);
}

/// A world that lists three rows and does not send them, or another one twice in place of each.
fn holding_back(from_repairs: bool, doubles_another: bool) -> Arc<World> {
    let world = World::new(2, 40, 2);
    let ids = ["s0r00002", "s0r00017", "s1r00031"].map(str::to_owned).into();
    *world.held_back.lock().unwrap() = HeldBack { ids, doubles_another, from_repairs };
    world
}

#[actix::test]
async fn rows_that_are_left_out_or_hidden_by_doubles_are_listed_and_fetched() {
    tokio::time::pause();
    for doubles_another in [false, true] {
        let world = holding_back(false, doubles_another);
        let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
        assert_eq!(report.outcome, Outcome::Complete, "{doubles_another}: {:?}", report.error);
        assert_exact(&world, "held back at first");
        assert_eq!((report.streams["stream0"].appeared, report.streams["stream1"].appeared), (Some(2), Some(1)));
        assert_eq!(report.streams["stream0"].duplicates, if doubles_another { 2 } else { 0 });
    }
}

#[actix::test]
async fn rows_that_are_listed_and_never_sent_end_with_4_until_they_come_or_are_gone() {
    tokio::time::pause();
    for doubles_another in [false, true] {
        for comes in [false, true] {
            let world = holding_back(true, doubles_another);
            for _ in 0..2 {
                let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
                assert_eq!(report.outcome, Outcome::Mismatch);
                let message = report.error.unwrap().message;
                assert!(message.contains("2 of the rows of stream0"), "{message}");
                assert!(world.disk.manifest().is_none(), "something was published");
            }
            if comes {
                *world.held_back.lock().unwrap() = HeldBack::default();
            } else {
                let ids = std::mem::take(&mut *world.held_back.lock().unwrap()).ids;
                world.truth.lock().unwrap().values_mut().for_each(|rows| rows.retain(|(id, _)| !ids.contains(id)));
            }
            let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
            assert_eq!(report.outcome, Outcome::Complete, "{doubles_another} {comes}: {:?}", report.error);
            assert_exact(&world, "when they came, or were gone");
        }
    }
}

#[actix::test]
async fn the_manifest_says_what_showed_that_nothing_is_missing() {
    tokio::time::pause();
    for (world, proof) in [(World::new(1, 40, 2), Proof::Total), (holding_back(false, false), Proof::Listing)] {
        live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
        assert_eq!(world.disk.manifest().unwrap().streams["stream0"].proof, proof);
    }
}

#[actix::test]
async fn a_listing_that_leaves_out_what_the_source_still_has_ends_with_4() {
    tokio::time::pause();
    let world = World::new(1, 40, 2);
    // It counts otherwise than it sends, so it is listed, and the listing lacks two.
    world.miscounts_by.store(3, Ordering::SeqCst);
    *world.unlisted.lock().unwrap() = ["s0r00004", "s0r00030"].map(str::to_owned).into();
    let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
    assert_eq!(report.outcome, Outcome::Mismatch);
    let message = report.error.unwrap().message;
    assert!(message.contains("it sends 2 rows of stream0"), "{message}");
    assert!(world.disk.manifest().is_none(), "something was published");
}

#[actix::test]
async fn streams_whose_rows_came_twice_are_listed_together_and_only_they_are_prepared_again() {
    tokio::time::pause();
    let world = World::new(4, 40, 2);
    let ids = ["s0r00002", "s2r00017"].map(str::to_owned).into();
    *world.held_back.lock().unwrap() = HeldBack { ids, doubles_another: true, from_repairs: false };
    let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete, "{:?}", report.error);
    assert_exact(&world, "two streams in doubt");
    assert_eq!(world.disk.prepares(), 6);
}

#[actix::test]
async fn a_partition_that_leads_to_the_place_it_came_from_is_no_endless_loop() {
    tokio::time::pause();
    let world = World::new(1, 40, 1);
    world.stands_still.store(true, Ordering::SeqCst);
    let report = tokio::time::timeout(Duration::from_secs(3_600), live(&world, &ProcessRun::undisturbed(), 1)).await;
    let report = report.expect("it goes round in circles").unwrap();
    assert_eq!(report.outcome, Outcome::Refused, "{:?}", report.error);
    assert!(report.error.unwrap().message.contains("lead to the place they came from"));
}

/// With these faults at each port call in turn, a run of this world and the next one leave what an undisturbed run leaves.
async fn dies_at_every_call_of(world: impl Fn() -> Arc<World>, faults: &[InjectedFault]) {
    tokio::time::pause();
    for fault in faults {
        for at in 1.. {
            let what = format!("{fault:?} at call {at}");
            let world = world();
            let life = ProcessRun::new(at, *fault);
            let first = live(&world, &life, 2).await;
            if life.calls() < at {
                assert!(at > 40, "only {at} calls were tried");
                break;
            }
            if first.is_none_or(|report| report.outcome != Outcome::Complete) {
                let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
                assert_eq!(report.outcome, Outcome::Complete, "{what}: {:?}", report.error);
            }
            assert_exact(&world, &what);
        }
    }
}

#[actix::test]
async fn a_death_at_any_port_call_of_a_reconciliation_changes_no_byte() {
    use InjectedFault::{DiesAfter, DiesBefore, Fails, PowerCutAfter};
    dies_at_every_call_of(|| holding_back(false, true), &[DiesBefore, DiesAfter, PowerCutAfter, Fails]).await;
}

#[actix::test]
async fn a_death_at_any_port_call_of_partitions_that_split_changes_no_byte() {
    use InjectedFault::{DiesAfter, DiesBefore, Panics, PowerCutAfter};
    let splitting = || {
        let world = World::new(2, 37, 1);
        world.splits.store(true, Ordering::SeqCst);
        world
    };
    dies_at_every_call_of(splitting, &[DiesBefore, DiesAfter, PowerCutAfter, Panics]).await;
}

#[actix::test]
async fn the_children_of_a_split_take_the_place_of_their_parent_and_are_counted() {
    tokio::time::pause();
    let world = World::new(1, 40, 1);
    world.splits.store(true, Ordering::SeqCst);
    let witness = Arc::new(RecordingListener::default());
    let mut harvest = world.harvest(&ProcessRun::undisturbed(), 3);
    harvest.listener = witness.clone();
    let report = harvest::run(harvest).await;
    assert_eq!(report.outcome, Outcome::Complete, "{:?}", report.error);
    let events = std::mem::take(&mut *witness.0.lock().unwrap());
    let count = |of: fn(&Event) -> u64| events.iter().map(of).sum::<u64>();
    let gained = count(|event| if let Event::PlanExtended { partitions } = event { *partitions } else { 0 });
    let finished = count(|event| u64::from(matches!(event, Event::PartitionFinished(_))));
    // 40 rows are 2 x 20, 4 x 10, 8 x 5, and five make a page.
    assert_eq!((gained, finished), (14, 15));
}

#[actix::test]
async fn a_changed_job_or_source_is_refused_and_said() {
    tokio::time::pause();
    let world = World::new(1, 30, 1);
    let life = ProcessRun::new(15, InjectedFault::DiesAfter);
    assert!(live(&world, &life, 1).await.is_none());

    let mut harvest = world.harvest(&ProcessRun::undisturbed(), 1);
    harvest.fingerprint.insert("fields".into(), "id".into());
    let report = harvest::run(harvest).await;
    assert_eq!(report.outcome, Outcome::Changed);

    world.identity.lock().unwrap().system_id = Some("another".into());
    let report = live(&world, &ProcessRun::undisturbed(), 1).await.unwrap();
    assert_eq!(report.outcome, Outcome::Changed);
    assert!(report.error.unwrap().message.contains("systemId was one, is another"));

    world.identity.lock().unwrap().system_id = Some("one".into());
    let report = live(&world, &ProcessRun::undisturbed(), 1).await.unwrap();
    assert_eq!(report.outcome, Outcome::Complete);
    assert_exact(&world, "after two refusals");
}

#[actix::test]
async fn a_stop_at_any_port_call_is_told_once_drains_commits_and_leaves_a_run_that_goes_on() {
    tokio::time::pause();
    let worlds = [|| World::new(2, 60, 2), || holding_back(false, true)];
    for (fault, world) in [InjectedFault::IsStopped, InjectedFault::IsStoppedSoon]
        .into_iter()
        .flat_map(|fault| worlds.map(|it| (fault, it)))
    {
        let mut stopped = 0;
        for at in 1.. {
            let what = format!("{fault:?} at call {at}");
            let world = world();
            let life = ProcessRun::by_lot(at, fault, Some(at));
            let witness = Arc::new(RecordingListener::default());
            let mut harvest = world.harvest(&life, 2);
            harvest.listener = witness.clone();
            let report = harvest::run(harvest).await;
            if life.calls() < at {
                break;
            }
            let events = std::mem::take(&mut *witness.0.lock().unwrap());
            let written = events.iter().filter(|event| matches!(event, Event::PageWritten { .. })).count() as u64;
            let committed: u64 = events
                .iter()
                .map(|event| if let Event::SpanCommitted { pages, .. } = event { *pages } else { 0 })
                .sum();
            assert_eq!(written, committed, "{what}: not all pages that were written are committed");
            if report.outcome == Outcome::Interrupted {
                let told = events.iter().filter(|event| matches!(event, Event::Stopping { .. })).count();
                assert_eq!(told, 1, "{what}: how often it was told");
                stopped += 1;
                let report = live(&world, &ProcessRun::undisturbed(), 2).await.unwrap();
                assert!(report.resumed || committed == 0, "{what}: began anew");
            }
            assert_exact(&world, &what);
        }
        assert!(stopped > 20, "only {stopped} runs were stopped");
    }
}

#[actix::test]
async fn the_pulse_is_the_supervisors_a_hang_of_it_is_silence() {
    tokio::time::pause();
    let witness = Arc::new(RecordingListener::default());
    let reporter = Reporter::new(witness.clone()).start();
    let parts = World::new(1, 1, 1).harvest(&ProcessRun::undisturbed(), 1);
    let settings = RateLimiterSettings { requests_per_second: 9, in_flight: 1, cold_start: false, seed: 1 };
    let supervisor = Supervisor::new(SupervisorParts {
        source: parts.source,
        limiter: Some(RateLimiter::new(settings, Arc::new(NoProbe)).start()),
        events: EventSender::new(&reporter),
        stop: parts.stop,
        outage: parts.retry.outage,
    })
    .start();
    let pulses = async || {
        tokio::time::sleep(Duration::from_secs(10)).await;
        std::mem::take(&mut *witness.0.lock().unwrap()).len()
    };
    assert!((9..=10).contains(&pulses().await));
    supervisor.send(Hang).await.unwrap();
    assert!(pulses().await <= 1);
    assert_eq!(pulses().await, 0);
}
