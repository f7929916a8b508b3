//! Metadata collections: which there are, and how each is cut into ranges.
//!
//! 2.31 and later page in the database, so a collection is walked by keyset (`order=id:asc`, `filter=id:gt:<last>`), which
//! no insert or delete can shift; a large one is cut into ranges at ids taken from the server. Ids are never compared
//! here: their order is the database's collation. A range ends when its last id is seen or a response is empty; rows
//! after that id belong to the next range and are dropped. Where the id has been deleted meanwhile, the range runs on, and
//! the overlap is removed when the stream is prepared.
//!
//! 2.30 and earlier load whole tables for every list request, whatever the page: there a collection is one answer
//! (`paging=false`), streamed, and sorted by us.
//!
//! Measured: 2.25 to 2.30 repeat the last page for ever, so nothing here walks until empty there.
//!
//! `metadata_pages` fetches a page of it, `metadata_follow` shows that a collection is complete.

use std::collections::BTreeMap;

use dhis2::metadata::{MetadataList, Schema};
use futures_util::stream::{self, StreamExt};
use harvester_actors::{
    failure::{Failure, FailureClass, Weight},
    partition::{LeftOut, NewPartition, SourceIdentity, Stream},
    plan::PlanBuilder,
};
use serde::{Deserialize, Serialize};

use super::{deleted_objects, kind::Selection, server_clock::OVERLAP_HOURS, source::SourceContext};
use crate::job::{Collections, MetadataSettings};

/// The first version whose lists are paged by the database.
const PAGED_SINCE: u16 = 31;

/// The last version that remembers for a minute how many rows a filter matches.
const TOTALS_REMEMBERED_UNTIL: u16 = 36;

/// The least pages in a range: finding its last id costs one small request, which is then at most a quarter.
const RANGE_PAGES_MIN: u64 = 4;

/// Ranges for each request in flight: enough for the last ones to end together, few enough to be cheap to find.
const RANGES_PER_FETCHER: u64 = 2;

/// The least pages in a range where each fetcher gets more of them: the request for its last id is then lost in them.
const RANGE_PAGES_LONG: u64 = 32;

/// The most ranges for each fetcher. The shorter the ranges, the shorter the time at the end in which some fetchers have
/// nothing left to do and others wait before they ask again.
const RANGES_PER_FETCHER_MAX: u64 = 8;

/// What one partition fetches.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct MetadataSelection {
    /// The collection, and the array's name in its answers.
    pub(super) collection: String,
    /// Its path, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) endpoint: Option<String>,
    /// As the API takes them.
    pub(super) fields: String,
    /// As the API takes them.
    pub(super) filters: Vec<String>,
    /// Rows a page; `None` for one answer without pages.
    pub(super) page_size: Option<u32>,
    /// The range begins behind this id; `None` at the collection's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) after: Option<String>,
    /// The range ends with this id; `None` at the collection's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<String>,
    /// How many rows lay behind `after` when the plan was made; `None` where nobody had counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) behind: Option<u64>,
    /// Whether a count must be asked for with a filter of its own to be a fresh one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) counts_afresh: bool,
    /// What of it is wanted.
    #[serde(default)]
    pub(super) want: Want,
}

/// What of a collection is wanted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Want {
    /// Its rows.
    #[default]
    Rows,
    /// Its ids alone.
    Listing,
    /// The rows with these ids.
    Ids(Vec<String>),
}

/// A collection to be planned.
struct Candidate {
    name: String,
    endpoint: Option<String>,
}

/// How many rows a collection has and where it is cut, as far as the server tells.
#[derive(Default)]
struct Size {
    total: Option<u64>,
    cuts: Vec<String>,
}

impl MetadataSettings {
    /// Adds the streams and partitions of this extract to `plan`.
    pub(super) async fn plan(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        plan: &mut PlanBuilder<'_>,
    ) -> Result<(), Failure> {
        let optional = self.collections == Collections::All;
        let mut schemas = Vec::new();
        if optional || self.include_deleted {
            schemas = source.with_retries(|client| async move { client.schemas().await }).await?;
        }
        let candidates = match &self.collections {
            Collections::Named(names) => {
                names.iter().map(|name| Candidate { name: name.clone(), endpoint: None }).collect::<Vec<_>>()
            }
            Collections::All => offered(&schemas, plan),
        };
        let is_paged = identity.minor >= PAGED_SINCE;
        let sizes = stream::iter(&candidates).map(|candidate| async {
            let filters = self.filters_for(source, self.stream.as_deref().unwrap_or(&candidate.name))?;
            self.size(source, candidate, &filters, is_paged).await
        });
        let sizes: Vec<Result<Size, Failure>> = sizes.buffered(source.in_flight as usize).collect().await;
        for (candidate, size) in candidates.into_iter().zip(sizes) {
            let size = match size {
                Ok(size) => size,
                Err(failure) => match failure.class {
                    FailureClass::Rejected | FailureClass::Forbidden if optional && is_paged => {
                        plan.leave_out(LeftOut { stream: candidate.name, reason: failure.message });
                        continue;
                    }
                    // `dataStore` is in the schemas, and answers an array of namespaces.
                    FailureClass::Garbled if optional && is_paged => {
                        let reason = format!("is no list of objects with ids ({})", failure.message);
                        plan.leave_out(LeftOut { stream: candidate.name, reason });
                        continue;
                    }
                    // The page itself will say what is wrong, with its own patience.
                    FailureClass::Rejected
                    | FailureClass::Forbidden
                    | FailureClass::TooHeavy
                    | FailureClass::Garbled => {
                        tracing::debug!(collection = candidate.name, error = %failure, "cannot count it before fetching");
                        Size::default()
                    }
                    // A server that loads a table for its number may give up on that, and it is asked for otherwise then.
                    FailureClass::Transient if !is_paged && failure.weight != Weight::Unsaid => Size::default(),
                    FailureClass::Transient
                    | FailureClass::Denied
                    | FailureClass::Changed
                    | FailureClass::Local
                    | FailureClass::Damaged
                    | FailureClass::Bug => return Err(failure),
                },
            };
            self.add_collection(source, identity, candidate, size, plan).await?;
        }
        if self.include_deleted {
            self.add_deletions(source, identity, &schemas, plan).await?;
        }
        Ok(())
    }

    /// The job's filters, and the watermark's where the run is incremental and there is one.
    fn filters_for(&self, source: &SourceContext<'_>, stream: &str) -> Result<Vec<String>, Failure> {
        let mut filters = self.filters.clone();
        if let Some(since) = self.since(source, stream)? {
            filters.push(format!("lastUpdated:ge:{since}"));
        }
        Ok(filters)
    }

    /// From when on changes are wanted, in the server's own time.
    fn since(&self, source: &SourceContext<'_>, stream: &str) -> Result<Option<String>, Failure> {
        let Some(watermark) = source.watermarks.get(stream).filter(|_| self.incremental) else { return Ok(None) };
        let unreadable = |error: jiff::Error| {
            let message = format!("the watermark `{watermark}` of {stream} cannot be read: {error}");
            Failure::new(FailureClass::Damaged, message).with_next("run again with --restart to fetch everything again")
        };
        let watermark: jiff::civil::DateTime = watermark.parse().map_err(unreadable)?;
        let since = watermark.checked_sub(jiff::Span::new().hours(OVERLAP_HOURS)).map_err(unreadable)?;
        Ok(Some(since.strftime("%Y-%m-%dT%H:%M:%S").to_string()))
    }

    /// Asks how many rows a collection has, and for the last id of each range, where it is to be fetched in pages.
    ///
    /// A server that does not page in its database loads the whole table for the number too, but writes only one row of it.
    /// Without the number nobody could tell a whole table from a part of one.
    async fn size(
        &self,
        source: &SourceContext<'_>,
        candidate: &Candidate,
        filters: &[String],
        is_paged: bool,
    ) -> Result<Size, Failure> {
        let list =
            MetadataList { endpoint: candidate.endpoint.as_deref(), filters, ..MetadataList::new(&candidate.name) };
        let total = source.id_at(&list, 1).await?.pager.total;
        if !is_paged {
            return Ok(Size { total, cuts: Vec::new() });
        }
        let ends = range_ends(total.unwrap_or(0), self.page_size, source.in_flight);
        let cuts = stream::iter(ends).map(|place| {
            let list = &list;
            async move { source.id_at(list, place).await.map(|at| (place, at.id)) }
        });
        // Not one behind the other: one that has to be repeated would hold up all behind it.
        let cuts: Vec<_> = cuts.buffer_unordered(source.in_flight as usize).collect().await;
        let cuts: BTreeMap<u64, Option<String>> = cuts.into_iter().collect::<Result<_, Failure>>()?;
        // A place that is past the end by now is no cut; the range before it takes what is left.
        let cuts = cuts.into_values().flatten().collect();
        Ok(Size { total, cuts })
    }

    /// Adds one collection: a stream, and a partition for each of its ranges.
    async fn add_collection(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        candidate: Candidate,
        size: Size,
        plan: &mut PlanBuilder<'_>,
    ) -> Result<(), Failure> {
        let name = self.stream.clone().unwrap_or_else(|| candidate.name.clone());
        let is_paged = identity.minor >= PAGED_SINCE;
        let whole = MetadataSelection {
            collection: candidate.name,
            endpoint: candidate.endpoint,
            fields: self.fields.clone(),
            filters: self.filters_for(source, &name)?,
            page_size: is_paged.then_some(self.page_size),
            after: None,
            until: None,
            behind: size.total,
            counts_afresh: is_paged && identity.minor <= TOTALS_REMEMBERED_UNTIL,
            want: Want::Rows,
        };
        let stream = Stream {
            name: name.clone(),
            expected_rows: size.total,
            optional: self.collections == Collections::All,
            watermark: identity.server_date.clone().filter(|_| self.incremental),
        };
        let pass = plan.add_stream(stream, Selection::Metadata(whole.clone()).to_value())?;
        let range_rows =
            range_pages(size.total.unwrap_or(0), self.page_size, source.in_flight) * u64::from(self.page_size);
        let begins = std::iter::once(None).chain(size.cuts.iter().cloned().map(Some));
        let ends = size.cuts.iter().cloned().map(Some).chain(std::iter::once(None));
        let ranges = size.cuts.len() + 1;
        for (range, (after, until)) in begins.zip(ends).enumerate() {
            let expected_rows = size.total.map(|total| {
                let before = range as u64 * range_rows;
                if range + 1 == ranges { total.saturating_sub(before) } else { range_rows }
            });
            let behind = size.total.map(|total| total.saturating_sub(range as u64 * range_rows));
            let selection = MetadataSelection { after, until, behind, ..whole.clone() };
            // The last range of a collection ends with an empty page; the others end with their last id.
            let requests =
                expected_rows.map(|rows| rows.div_ceil(u64::from(self.page_size)) + u64::from(range + 1 == ranges));
            plan.add_partition(NewPartition {
                pass,
                key: if ranges == 1 { name.clone() } else { format!("{name}/{range}") },
                selection: Selection::Metadata(selection).to_value(),
                requests: if is_paged { requests } else { Some(1) },
                expected_rows,
            })
            .await?;
        }
        Ok(())
    }

    /// Adds the stream of deletions, where this version tells them.
    async fn add_deletions(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        schemas: &[Schema],
        plan: &mut PlanBuilder<'_>,
    ) -> Result<(), Failure> {
        let wanted = |schema: &&Schema| match (&self.collections, schema.collection()) {
            (Collections::Named(names), Some((name, _))) => names.iter().any(|wanted| wanted == name),
            _ => false,
        };
        let classes: Vec<&str> = schemas.iter().filter(wanted).filter_map(|schema| schema.klass.as_deref()).collect();
        let since = self.since(source, deleted_objects::STREAM)?;
        deleted_objects::plan(identity, since, &classes, self.incremental, plan).await
    }
}

/// The collections that the server offers, by name, and why the rest is left out.
fn offered(schemas: &[Schema], plan: &mut PlanBuilder<'_>) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut left_out = Vec::new();
    for schema in schemas {
        match schema.collection() {
            Some((name, path)) => {
                let endpoint = (path != name).then(|| path.to_owned());
                candidates.push(Candidate { name: name.to_owned(), endpoint });
            }
            None => {
                let name = schema.collection_name.as_ref().or(schema.plural.as_ref()).or(schema.name.as_ref());
                let reason = if schema.embedded_object {
                    "only exists as a part of other objects"
                } else if !schema.persisted {
                    "is not kept in the database"
                } else if !schema.identifiable_object {
                    "has no ids"
                } else {
                    "has no list of its own"
                };
                if let Some(name) = name {
                    left_out.push(LeftOut { stream: name.clone(), reason: reason.to_owned() });
                }
            }
        }
    }
    candidates.sort_by(|a, b| a.name.cmp(&b.name));
    candidates.dedup_by(|a, b| a.name == b.name);
    left_out.sort_by(|a: &LeftOut, b| a.stream.cmp(&b.stream));
    left_out.dedup_by(|a, b| a.stream == b.stream);
    left_out.retain(|left| candidates.iter().all(|candidate| candidate.name != left.stream));
    left_out.into_iter().for_each(|left| plan.leave_out(left));
    candidates
}

/// Pages in each range of a collection with `total` rows.
fn range_pages(total: u64, page_size: u32, in_flight: u32) -> u64 {
    let (pages, fetchers) = (total.div_ceil(u64::from(page_size.max(1))), u64::from(in_flight.max(1)));
    let many = pages.div_ceil(fetchers * RANGES_PER_FETCHER_MAX).max(RANGE_PAGES_LONG);
    pages.div_ceil(fetchers * RANGES_PER_FETCHER).min(many).max(RANGE_PAGES_MIN)
}

/// The places, from 1, of the last row of each range but the last. Whole pages, so that no page straddles two ranges.
fn range_ends(total: u64, page_size: u32, in_flight: u32) -> Vec<u64> {
    if in_flight <= 1 {
        return Vec::new();
    }
    let rows = range_pages(total, page_size, in_flight) * u64::from(page_size.max(1));
    (1..).map(|range| range * rows).take_while(|end| *end < total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_collection_is_cut_into_whole_pages_and_a_small_one_is_not() {
        for (total, page_size, in_flight, ends) in [
            (0, 1000, 8, vec![]),
            (3_999, 1000, 8, vec![]),
            (4_000, 1000, 8, vec![]),
            (4_001, 1000, 8, vec![4_000]),
            (20_000, 1000, 8, vec![4_000, 8_000, 12_000, 16_000]),
            (200_000, 1000, 8, (1..=15).map(|range| range * 13_000).collect()),
            (1_000_000, 1000, 8, (1..=31).map(|range| range * 32_000).collect()),
            (10_000_000, 1000, 8, (1..=63).map(|range| range * 157_000).collect()),
            (200_000, 1000, 1, vec![]),
            (1_000, 50, 4, vec![200, 400, 600, 800]),
        ] {
            assert_eq!(
                range_ends(total, page_size, in_flight),
                ends,
                "{total} rows, pages of {page_size}, {in_flight}"
            );
        }
    }
}
