//! The port to where rows come from.

use futures_core::future::LocalBoxFuture;
use tokio::time::Instant;

use crate::{
    failure::Failure,
    page::Page,
    partition::{Partition, Plan, Position, SourceIdentity},
    reconcile::Recount,
};

/// Where rows come from. One value serves all fetchers, on all arbiters; its futures stay on the arbiter that asked.
///
/// Every request it makes passes the rate limiter by itself: the engine asks for pages, not for turns.
pub trait Source: Send + Sync {
    /// Asks who is there. Called at every start, and again after an outage.
    fn identify(&self) -> LocalBoxFuture<'_, Result<SourceIdentity, Failure>>;

    /// Decides what the run will fetch. Called once a run, before the first row; fetches no rows.
    fn plan<'a>(&'a self, identity: &'a SourceIdentity) -> LocalBoxFuture<'a, Result<Plan, Failure>>;

    /// Fetches the page of `partition` that begins at `position`, which is not its end.
    ///
    /// Once it returns `Ok`, the transfer, the compression, the JSON, the envelope and every row were complete.
    /// `size` says how much smaller than usual the page should be. The page carries `position.seq`.
    fn fetch<'a>(
        &'a self,
        identity: &'a SourceIdentity,
        partition: &'a Partition,
        position: &'a Position,
        size: PageSize,
    ) -> LocalBoxFuture<'a, Result<Page, Failure>>;

    /// Counts the rows a stream has now, `times` times, and says the highest number. `selection` is that of the stream's first
    /// partition.
    ///
    /// Called behind the last row of a stream whose numbers agree, once, and behind a listing that has fewer keys than the server
    /// had counted, several times: another server behind the same url may count otherwise. The count must be a fresh one.
    fn count<'a>(
        &'a self,
        selection: &'a serde_json::Value,
        times: u32,
    ) -> LocalBoxFuture<'a, Result<Recount, Failure>>;

    /// The selection of a partition that lists the keys a stream has now, for a comparison with what was fetched;
    /// `None` where this kind of data has no such listing. `selection` is that of the stream's first partition, `rows` about
    /// how many keys there are. A listing is fetched whole or fails: it never ends before the server's own count of it.
    fn listing(&self, selection: &serde_json::Value, rows: u64) -> Option<serde_json::Value>;

    /// The selections of partitions that fetch the rows with these keys. Pure, like `listing`.
    ///
    /// `missing` are wanted, each once. `vanished` should be gone: a source that is more than one server would know them again,
    /// some of it, so that they are better asked for in several small requests than in one.
    fn repair(&self, selection: &serde_json::Value, missing: &[String], vanished: &[String]) -> Vec<serde_json::Value>;

    /// When the source last answered anything, a probe included; `None` when it has not, or nobody knows.
    fn last_answer(&self) -> Option<Instant>;

    /// What a request last failed of, as a sentence for people; `None` when none has, or nobody knows.
    fn last_trouble(&self) -> Option<String>;

    /// Lets no further request leave: those that wait for their turn fail at once, those under way may end. For good.
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
