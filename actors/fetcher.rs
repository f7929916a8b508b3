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
use tokio::{sync::watch, time::Instant};

use crate::{
    crash_point,
    failure::{Failure, FailureClass},
    last_will::LastWill,
    partition::SourceIdentity,
    planner::{FetcherId, Lease, NextPartition, PageArrived, PartitionFinished, PartitionReturned, Planner},
    source::Source,
    supervisor::FetcherExited,
    writer::{CurrentPosition, WritePage, Writer},
};

/// Pages of a partition in a row that lead to the place they came from before it is believed that it never ends.
pub const STANDING_PAGES_MAX: u32 = 3;

/// Pages in a row that came at a halved size before the next one is twice as large: heaviness passes, and a page that fails
/// again costs one request.
pub const CLEAN_PAGES: u32 = 16;

/// How far a stop has come; fetchers see it change.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum ShutdownPhase {
    /// The run goes on.
    #[default]
    Running,
    /// Finish the page in hand, then leave.
    Draining,
    /// Drop the page in hand and leave.
    Aborting,
}

/// Everything a fetcher needs; the supervisor keeps a copy to spawn another.
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
    pub stopping: watch::Receiver<ShutdownPhase>,
    /// Who hears of its end, peaceful or not.
    pub supervisor: Recipient<FetcherExited>,
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
        let will = LastWill::new(parts.supervisor.clone(), FetcherExited { fetcher: id, died: true });
        let work = async move {
            let mut will = will;
            work(id, parts).await;
            will.rewrite(FetcherExited { fetcher: id, died: false });
        };
        ctx.spawn(work.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}

/// Fetches partition after partition until there are none, or the run stops.
async fn work(id: FetcherId, parts: FetcherParts) {
    while let Ok(Some(lease)) = parts.planner.send(NextPartition(id)).await {
        let partition = lease.partition.id;
        let (mut untouched, mut halvings) = (false, 0);
        let failure = match fetch_partition(&parts, &lease, &mut untouched, &mut halvings).await {
            Ok(true) => {
                if parts.planner.send(PartitionFinished(partition)).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(false) => None,
            Err(failure) => Some(failure),
        };
        if parts.planner.send(PartitionReturned { partition, failure, untouched, halvings }).await.is_err() {
            return;
        }
    }
}

/// Fetches the rest of one partition: `Ok(true)` at its end, `Ok(false)` when the run stops before.
///
/// - `untouched`: whether nothing of it has been written;
/// - `halvings`: how often the page in hand is halved.
async fn fetch_partition(
    parts: &FetcherParts,
    lease: &Lease,
    untouched: &mut bool,
    halvings: &mut u32,
) -> Result<bool, Failure> {
    let mut stopping = parts.stopping.clone();
    let partition = &lease.partition;
    let mut position = parts.writer.send(CurrentPosition(partition.id)).await.map_err(|_| gone())??;
    position.halvings = lease.halvings.unwrap_or(position.halvings);
    *untouched = position.seq == 0;
    let (mut standing, mut clean) = (0, 0);
    while !position.is_finished() {
        *halvings = position.halvings;
        if *stopping.borrow() > ShutdownPhase::Running {
            return Ok(false);
        }
        let asked_at = Instant::now();
        let page = tokio::select! {
            page = parts.source.fetch(&parts.identity, partition, &position) => page,
            () = aborted(&mut stopping) => return Ok(false),
        };
        let mut page = match page {
            Ok(page) => page,
            // A request that was refused its permit because the run stops is no failure.
            Err(_) if *stopping.borrow() > ShutdownPhase::Running => return Ok(false),
            Err(failure) => return Err(failure),
        };
        standing = if page.next == position.next { standing + 1 } else { 0 };
        if standing >= STANDING_PAGES_MAX {
            let message = format!("{standing} pages of {} lead to the place they came from", partition.key);
            // For good: the pages in between count as progress, so that it would otherwise be garbled for ever.
            return Err(Failure::new(FailureClass::Rejected, message));
        }
        crash_point!("fetcher.page.fetched");
        (page.halvings, clean) = grown(position.halvings, clean + 1);
        position = parts.writer.send(WritePage(page)).await.map_err(|_| gone())??;
        *untouched = false;
        crash_point!("fetcher.page.written");
        parts.planner.send(PageArrived { partition: partition.id, asked_at }).await.map_err(|_| gone())?;
    }
    Ok(true)
}

/// How often the next page is halved after `clean` pages in a row at `halvings`, and how many of those count from then on.
fn grown(halvings: u32, clean: u32) -> (u32, u32) {
    if halvings > 0 && clean >= CLEAN_PAGES { (halvings - 1, 0) } else { (halvings, clean) }
}

/// Waits until pages in hand are to be dropped.
async fn aborted(stopping: &mut watch::Receiver<ShutdownPhase>) {
    if stopping.wait_for(|stopping| *stopping == ShutdownPhase::Aborting).await.is_err() {
        // No sender is left that could stop us.
        std::future::pending::<()>().await;
    }
}

/// An actor of the pipeline has ended: only a bug ends it before the fetchers.
fn gone() -> Failure {
    Failure::new(FailureClass::Bug, "an actor of the pipeline is gone")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halved_page_grows_back_after_clean_pages_and_a_whole_one_stays() {
        for (halvings, clean, grows) in [(0, 999, (0, 999)), (3, 1, (3, 1)), (3, CLEAN_PAGES, (2, 0))] {
            assert_eq!(grown(halvings, clean), grows, "{halvings} {clean}");
        }
    }
}
