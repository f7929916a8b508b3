//! What follows of what is known: the one notion by which a plan evolves once all its partitions have been fetched.
//!
//! ```text
//! all partitions of a stream fetched ─▶ Source::follow(facts) ─┬─▶ a further pass ─▶ fetched ─▶ asked again
//!                                                              ├─▶ satisfied, and by what
//!                                                              └─▶ cannot be shown: 4
//! ```
//!
//! The engine knows facts: what the server announced, what was fetched, doubled, refused, and how the keys of passes compare.
//! What they mean is the business of each kind of data: a listing of all ids, a second reading, a repeated walk.

use std::sync::Arc;

use futures_core::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::PassTotals,
    checkpoint_store::PageIndex,
    failure::Failure,
    partition::{NewPartition, Pass, PassId, Stream, StreamId, Yield},
    sink::{Cancel, KeyMask, KeySet, Spool},
};

/// What showed that a stream is complete.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// As many rows as the server counted, before and after, and no answer that contradicts it.
    Total,
    /// Every key that the server lists was fetched, or asked for and has been deleted.
    Listing,
    /// A second reading that agrees with the first.
    Confirmed,
    /// Nothing: the server neither counts nor lists what this stream holds.
    #[default]
    None,
}

/// What is known of a stream of which nothing is left to fetch, and of which nothing was given up.
pub struct StreamFacts<'a> {
    /// Which stream.
    pub id: StreamId,
    /// As it was planned.
    pub stream: &'a Stream,
    /// Its passes, the oldest first.
    pub passes: Vec<PassFacts<'a>>,
    /// The place that a further pass would have.
    pub next_pass: PassId,
    /// Rows that were dropped because another had their key; `None` before the stream has been prepared.
    pub duplicates: Option<u64>,
    /// How the keys of passes compare.
    pub keys: Keys,
}

/// What is known of one pass.
pub struct PassFacts<'a> {
    /// Which.
    pub id: PassId,
    /// As it was planned.
    pub pass: &'a Pass,
    /// What was fetched.
    pub totals: PassTotals,
    /// Why some of it was given up; only for passes that give keys.
    pub failure: Option<&'a Failure>,
}

impl StreamFacts<'_> {
    /// What was fetched by passes that give rows.
    pub fn row_totals(&self) -> PassTotals {
        let mut sum = PassTotals::default();
        for pass in self.passes.iter().filter(|pass| pass.pass.yields == Yield::Rows) {
            sum.pages += pass.totals.pages;
            sum.counts.add(&pass.totals.counts);
        }
        sum
    }
}

/// Compares the keys of passes.
#[derive(Clone)]
pub struct Keys {
    /// Where they are.
    pub spool: Arc<dyn Spool>,
    /// Where the pages of each pass are.
    pub pages: Arc<dyn PageIndex>,
    /// Says when to give up.
    pub cancel: Cancel,
}

impl Keys {
    /// Hands every key of `sets` to `visit`, in the order of their bytes, each once, with the sets that have it.
    pub fn each(
        &self,
        sets: Vec<KeySet>,
        visit: impl FnMut(&[u8], KeyMask) + Send + 'static,
    ) -> BoxFuture<'static, Result<(), Failure>> {
        Arc::clone(&self.spool).each_key(Arc::clone(&self.pages), sets, self.cancel.clone(), Box::new(visit))
    }
}

/// What a kind of data made of the facts.
#[derive(Debug, Default)]
pub struct Followed {
    /// What follows.
    pub step: Follow,
    /// How the stream changed while the run went on, where a comparison has shown it.
    pub reconciled: Option<Reconciled>,
    /// What a person should know although it changes nothing, as sentences.
    pub warnings: Vec<String>,
}

/// How a stream changed while the run went on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Reconciled {
    /// Rows that came into being.
    pub appeared: u64,
    /// Rows that were deleted.
    pub vanished: u64,
}

/// What is to be done about a stream.
#[derive(Debug)]
pub enum Follow {
    /// A further pass, made of these partitions.
    Pass {
        /// What it gives.
        yields: Yield,
        /// See [`Pass::selection`].
        selection: serde_json::Value,
        /// Its partitions; their pass is [`StreamFacts::next_pass`].
        partitions: Vec<NewPartition>,
    },
    /// Nothing: it is complete, as this shows.
    Satisfied(Proof),
    /// Nothing more can be done; what is wrong, as a sentence.
    Unproved(String),
}

impl Default for Follow {
    fn default() -> Self {
        Follow::Satisfied(Proof::None)
    }
}
