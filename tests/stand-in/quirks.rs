//! Says how a whole server is odd, all the time; what happens to single requests is a fault.
//!
//! A quirk leaves the truth as it is and changes what is shown of it. Where it changed an answer the ledger says so
//! ([`crate::Seen::quirks`]).

use std::fmt;
use std::str::FromStr;

use crate::collation::Collation;
use crate::country::mix;
use crate::request::Request;

/// What is odd about a server, or about the proxies before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Quirk {
    /// Lists inside an object that are sets come in another order from one request to the next, as on every real server;
    /// `/api/schemas` says which those are (`collection` and not `ordered`).
    ShuffledSets {
        /// What the orders are computed from, together with the request's number.
        seed: u64,
    },
    /// Two replicas behind one url, one of which has not got the last rows yet; its totals lag too.
    LaggingReplica {
        /// Decides which replica a request goes to, together with its number.
        seed: u64,
        /// Share of the requests that go to the one that lags, 0 to 1.
        share: f64,
        /// How many rows of each collection it lacks, those made last.
        rows: u32,
    },
    /// `order` is ignored: rows come in the order of a list nobody ordered.
    OrderIgnored,
    /// Every `order` is descending.
    OrderDescending,
    /// `filter` compares text in this collation, whatever `order` does.
    FiltersCollate(Collation),
    /// `filter=id:gt:…` is ignored.
    IdGtIgnored,
    /// `filter=id:gt:…` is understood as `ge`.
    IdGtInclusive,
    /// A proxy keeps one of several `filter` parameters.
    OneFilterOnly(Kept),
}

/// Which of several parameters of one name a proxy keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The first.
    First,
    /// The last.
    Last,
}

/// What a server does with `filter=id:gt:…`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum IdGt {
    #[default]
    Honest,
    Ignored,
    Inclusive,
}

/// What a server does with `order`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Ordering {
    #[default]
    Honest,
    Ignored,
    Descending,
}

#[derive(Debug, Clone, Copy)]
struct Replica {
    seed: u64,
    share: f64,
    rows: u32,
}

/// All quirks of one server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quirks {
    shuffle: Option<u64>,
    replica: Option<Replica>,
    pub(crate) ordering: Ordering,
    pub(crate) filter_collation: Option<Collation>,
    pub(crate) id_gt: IdGt,
    filter_kept: Option<Kept>,
}

impl Quirks {
    pub(crate) fn add(&mut self, quirk: Quirk) {
        match quirk {
            Quirk::ShuffledSets { seed } => self.shuffle = Some(seed),
            Quirk::LaggingReplica { seed, share, rows } => self.replica = Some(Replica { seed, share, rows }),
            Quirk::OrderIgnored => self.ordering = Ordering::Ignored,
            Quirk::OrderDescending => self.ordering = Ordering::Descending,
            Quirk::FiltersCollate(collation) => self.filter_collation = Some(collation),
            Quirk::IdGtIgnored => self.id_gt = IdGt::Ignored,
            Quirk::IdGtInclusive => self.id_gt = IdGt::Inclusive,
            Quirk::OneFilterOnly(kept) => self.filter_kept = Some(kept),
        }
    }

    /// What the order of sets is computed from in the `number`th request; `None` leaves them as they are.
    pub(crate) fn shuffle(&self, number: u64) -> Option<u64> {
        self.shuffle.map(|seed| mix(mix(seed) ^ number))
    }

    /// How many of the last rows the replica lacks that the `number`th request goes to.
    pub(crate) fn lag(&self, number: u64) -> u32 {
        self.replica.filter(|replica| lot(replica.seed, number, replica.share)).map_or(0, |replica| replica.rows)
    }

    /// The request as it comes through the proxy, where that is another than it was sent.
    pub(crate) fn behind_proxy(&self, request: &Request) -> Option<Request> {
        let kept = self.filter_kept.filter(|_| request.params("filter").count() > 1)?;
        let mut changed = request.clone();
        changed.keep_one("filter", kept == Kept::First);
        Some(changed)
    }

    /// Words for the ledger: which quirks show in the answer to this request, as it was sent.
    pub(crate) fn shown(&self, request: &Request) -> Vec<&'static str> {
        if request.collection().is_none() {
            return Vec::new();
        }
        let asks_id_gt = request.params("filter").any(|filter| filter.starts_with("id:gt:"));
        let is_ordered = request.param("order").is_some();
        let words = [
            ("shuffled sets", self.shuffle.is_some()),
            ("lagging replica", self.lag(request.number) > 0),
            ("order ignored", is_ordered && self.ordering == Ordering::Ignored),
            ("order descending", is_ordered && self.ordering == Ordering::Descending),
            ("filters collate otherwise", asks_id_gt && self.filter_collation.is_some()),
            ("id:gt ignored", asks_id_gt && self.id_gt == IdGt::Ignored),
            ("id:gt inclusive", asks_id_gt && self.id_gt == IdGt::Inclusive),
            ("filter dropped", self.behind_proxy(request).is_some()),
        ];
        words.into_iter().filter(|(_, shows)| *shows).map(|(word, _)| word).collect()
    }
}

/// Whether the `number`th of all is among a share of them.
pub(crate) fn lot(seed: u64, number: u64, share: f64) -> bool {
    let lot = mix(mix(seed) ^ number) % 1_000_000;
    #[expect(clippy::cast_precision_loss, reason = "a lot below a million")]
    let lot = lot as f64 / 1_000_000.0;
    lot < share
}

/// Puts items into an order that only the seed decides.
pub(crate) fn shuffled<T>(items: &mut [T], seed: u64) {
    for at in (1..items.len()).rev() {
        let bound = u64::try_from(at + 1).unwrap_or(1);
        let other = usize::try_from(mix(seed ^ mix(bound)) % bound).unwrap_or(0);
        items.swap(at, other);
    }
}

/// Reads `shuffled-sets=SEED`, `lagging-replica=ROWS` (half of the requests, by the lots of seed 1), `order-ignored`,
/// `order-descending`, `filters-collate=c|case-insensitive`, `id-gt-ignored`, `id-gt-inclusive`,
/// `one-filter-only=first|last`.
impl FromStr for Quirk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let wrong = || format!("`{value}` is no value for `{name}`");
        Ok(match name {
            "shuffled-sets" => Self::ShuffledSets { seed: value.parse().map_err(|_| wrong())? },
            "lagging-replica" => {
                Self::LaggingReplica { seed: 1, share: 0.5, rows: value.parse().map_err(|_| wrong())? }
            }
            "order-ignored" => Self::OrderIgnored,
            "order-descending" => Self::OrderDescending,
            "filters-collate" => Self::FiltersCollate(match value {
                "c" => Collation::C,
                "case-insensitive" => Collation::CaseInsensitive,
                _ => return Err(wrong()),
            }),
            "id-gt-ignored" => Self::IdGtIgnored,
            "id-gt-inclusive" => Self::IdGtInclusive,
            "one-filter-only" => Self::OneFilterOnly(match value {
                "first" => Kept::First,
                "last" => Kept::Last,
                _ => return Err(wrong()),
            }),
            unknown => return Err(format!("`{unknown}` is no quirk")),
        })
    }
}

impl fmt::Display for Quirk {
    /// As [`Quirk::from_str`] reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShuffledSets { seed } => write!(f, "shuffled-sets={seed}"),
            Self::LaggingReplica { rows, .. } => write!(f, "lagging-replica={rows}"),
            Self::OrderIgnored => f.write_str("order-ignored"),
            Self::OrderDescending => f.write_str("order-descending"),
            Self::FiltersCollate(Collation::C) => f.write_str("filters-collate=c"),
            Self::FiltersCollate(Collation::CaseInsensitive) => f.write_str("filters-collate=case-insensitive"),
            Self::IdGtIgnored => f.write_str("id-gt-ignored"),
            Self::IdGtInclusive => f.write_str("id-gt-inclusive"),
            Self::OneFilterOnly(Kept::First) => f.write_str("one-filter-only=first"),
            Self::OneFilterOnly(Kept::Last) => f.write_str("one-filter-only=last"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quirk_is_read_as_it_is_written() {
        for quirk in [
            Quirk::ShuffledSets { seed: 7 },
            Quirk::LaggingReplica { seed: 1, share: 0.5, rows: 300 },
            Quirk::OrderIgnored,
            Quirk::OrderDescending,
            Quirk::FiltersCollate(Collation::CaseInsensitive),
            Quirk::IdGtIgnored,
            Quirk::IdGtInclusive,
            Quirk::OneFilterOnly(Kept::Last),
        ] {
            assert_eq!(quirk.to_string().parse(), Ok(quirk));
        }
        for bad in ["", "order", "lagging-replica", "filters-collate=de", "one-filter-only=some"] {
            assert!(bad.parse::<Quirk>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shuffle_loses_nothing_and_its_seed_decides() {
        let shuffle = |seed| {
            let mut items: Vec<u32> = (0..20).collect();
            shuffled(&mut items, seed);
            items
        };
        let mut sorted = shuffle(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<u32>>());
        assert_eq!(shuffle(3), shuffle(3));
        assert_ne!(shuffle(3), shuffle(4));
    }
}
