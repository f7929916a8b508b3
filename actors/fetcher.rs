//! A fetcher carries one partition at a time from the source to the writer, page by page.
//!
//! ```text
//! Planner ◀──NextPartition── Fetcher ──fetch──▶ Source (its requests pass the RateLimiter)
//!                               └──WritePage──▶ Writer
//! ```
//!
//! It owns nothing but the page in its hands, which is the only one: the next is not asked for before the writer has
//! answered. It decides nothing: a failed partition goes back to the planner. When it dies, its last will says so.

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::watch;

use crate::{
    crash_point,
    failure::{Failure, FailureClass},
    last_will::LastWill,
    partition::{Partition, SourceIdentity},
    planner::{FetcherId, Lease, NextPartition, PageArrived, PartitionFinished, PartitionReturned, Planner},
    source::Source,
    supervisor::FetcherLeft,
    writer::{CurrentPosition, WritePage, Writer},
};

/// Pages of a partition in a row that lead to the place they came from before it is believed that it never ends.
pub const STANDING_PAGES_MAX: u32 = 3;

/// How far a stop has come; fetchers see it change.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Stopping {
    /// The run goes on.
    #[default]
    No,
    /// Finish the page in hand, then leave.
    Drain,
    /// Drop the page in hand and leave.
    Now,
}

/// Everything a fetcher needs; the supervisor keeps a copy to hire again.
#[derive(Clone)]
pub struct FetcherParts {
    /// Where pages come from.
    pub source: Arc<dyn Source>,
    /// Who answers there.
    pub identity: Arc<SourceIdentity>,
    /// Who has work.
    pub planner: Addr<Planner>,
    /// Who takes pages.
    pub writer: Addr<Writer>,
    /// Whether to stop.
    pub stopping: watch::Receiver<Stopping>,
    /// Who hears of its end, peaceful or not.
    pub supervisor: Recipient<FetcherLeft>,
}

/// See the module.
pub struct Fetcher {
    /// Its name.
    id: FetcherId,
    /// What it works with; taken by the work itself.
    parts: Option<FetcherParts>,
}

impl Fetcher {
    /// A fetcher that begins to work as soon as it is started.
    pub fn new(id: FetcherId, parts: FetcherParts) -> Self {
        Fetcher { id, parts: Some(parts) }
    }
}

impl Actor for Fetcher {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(parts) = self.parts.take() else { return };
        let id = self.id;
        let will = LastWill::new(parts.supervisor.clone(), FetcherLeft { fetcher: id, died: true });
        let work = async move {
            let mut will = will;
            work(id, parts).await;
            will.rewrite(FetcherLeft { fetcher: id, died: false });
        };
        ctx.spawn(work.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

/// Fetches partition after partition until there are none, or the run stops.
async fn work(id: FetcherId, parts: FetcherParts) {
    while let Ok(Some(Lease { partition, size })) = parts.planner.send(NextPartition(id)).await {
        let mut untouched = false;
        let fetched = fetch_partition(&parts, &partition, size, &mut untouched).await;
        let told = match fetched {
            Ok(true) => parts.planner.send(PartitionFinished(partition.id)).await,
            Ok(false) => {
                let returned = PartitionReturned { partition: partition.id, failure: None, untouched };
                parts.planner.send(returned).await
            }
            Err(failure) => {
                let returned = PartitionReturned { partition: partition.id, failure: Some(failure), untouched };
                parts.planner.send(returned).await
            }
        };
        if told.is_err() {
            return;
        }
    }
}

/// Fetches the rest of one partition: `Ok(true)` at its end, `Ok(false)` when the run stops before.
async fn fetch_partition(
    parts: &FetcherParts,
    partition: &Partition,
    size: crate::source::PageSize,
    untouched: &mut bool,
) -> Result<bool, Failure> {
    let mut stopping = parts.stopping.clone();
    let mut position = parts.writer.send(CurrentPosition(partition.id)).await.map_err(|_| gone())??;
    *untouched = position.seq == 0;
    let mut standing = 0;
    while !position.is_finished() {
        if *stopping.borrow() > Stopping::No {
            return Ok(false);
        }
        let page = tokio::select! {
            page = parts.source.fetch(&parts.identity, partition, &position, size) => page,
            () = until_now(&mut stopping) => return Ok(false),
        };
        let page = match page {
            Ok(page) => page,
            // A request that was refused its turn because the run stops is no failure.
            Err(_) if *stopping.borrow() > Stopping::No => return Ok(false),
            Err(failure) => return Err(failure),
        };
        standing = if page.next == position.next { standing + 1 } else { 0 };
        if standing >= STANDING_PAGES_MAX {
            let message = format!("{standing} pages of {} lead to the place they came from", partition.key);
            // For good: the pages in between count as progress, so that it would otherwise be garbled for ever.
            return Err(Failure::new(FailureClass::Rejected, message));
        }
        crash_point!("fetcher.page.fetched");
        position = parts.writer.send(WritePage(page)).await.map_err(|_| gone())??;
        *untouched = false;
        crash_point!("fetcher.page.written");
        parts.planner.send(PageArrived(partition.id)).await.map_err(|_| gone())?;
    }
    Ok(true)
}

/// Waits until pages in hand are to be dropped.
async fn until_now(stopping: &mut watch::Receiver<Stopping>) {
    if stopping.wait_for(|stopping| *stopping == Stopping::Now).await.is_err() {
        // Nobody is left who could stop us: then nobody will.
        std::future::pending::<()>().await;
    }
}

/// An actor of the pipeline is gone: only a bug ends it before the fetchers.
fn gone() -> Failure {
    Failure::new(FailureClass::Bug, "an actor of the pipeline is gone")
}
