//! The port to where rows come from.

use futures_core::future::LocalBoxFuture;
use tokio::time::Instant;

use crate::{
    failure::Failure,
    follow::{Followed, StreamFacts},
    page::Page,
    partition::{Partition, Position, SourceIdentity},
    plan::PlanBuilder,
};

/// Where rows come from. One value serves all fetchers, on all arbiters; its futures stay on the arbiter that asked.
///
/// Every request it makes passes the rate limiter by itself: the engine asks for pages, not for permits.
pub trait Source: Send + Sync {
    /// Asks which server answers. Called at every start, and again after an outage.
    fn identify(&self) -> LocalBoxFuture<'_, Result<SourceIdentity, Failure>>;

    /// Decides what the run will fetch. Called before the first row, again where it failed; fetches no rows.
    fn plan<'a>(
        &'a self,
        identity: &'a SourceIdentity,
        plan: PlanBuilder<'a>,
    ) -> LocalBoxFuture<'a, Result<(), Failure>>;

    /// Fetches the page of `partition` that begins at `position`, which is not its end; or splits what is left of the
    /// partition into children, which need not cost a request.
    ///
    /// Once it returns `Ok`, the transfer, the compression, the JSON, the envelope and every row were complete.
    /// `position.halvings` says how much smaller than usual the page should be. The page carries `position.seq`.
    fn fetch<'a>(
        &'a self,
        identity: &'a SourceIdentity,
        partition: &'a Partition,
        position: &'a Position,
    ) -> LocalBoxFuture<'a, Result<Page, Failure>>;

    /// Decides what follows of what is known of a stream of which nothing is left to fetch: further partitions, or that it
    /// is complete, or that this cannot be shown. Asked again whenever its partitions have been fetched, and once
    /// more when the stream is prepared and its duplicates are known.
    fn follow<'a>(&'a self, facts: StreamFacts<'a>) -> LocalBoxFuture<'a, Result<Followed, Failure>>;

    /// When the source last answered anything, a probe included; `None` when it has not, or nobody knows.
    fn last_answer(&self) -> Option<Instant>;

    /// What a request last failed of, as a sentence for people; `None` when none has, or nobody knows.
    fn last_trouble(&self) -> Option<String>;

    /// Lets no further request leave: those that wait for their permit fail at once, those under way may end. For good.
    fn close(&self);

    /// Requests sent so far, of every kind.
    fn requests(&self) -> u64;
}

/// How often a page has been halved because it proved too heavy: `rows >> halvings`, at least one row.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PageSize {
    /// 0 means the size the job asks for.
    pub halvings: u32,
}

impl PageSize {
    /// Rows a page should hold, where the job asks for `rows`.
    pub fn of(self, rows: u32) -> u32 {
        rows.checked_shr(self.halvings).unwrap_or(0).max(1)
    }
}
