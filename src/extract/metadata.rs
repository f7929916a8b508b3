//! Metadata collections: which there are, how each is cut into ranges, and how one page of a range is fetched.
//!
//! 2.31 and later page in the database, so a collection is walked by keyset (`order=id:asc`, `filter=id:gt:<last>`), which
//! no insert or delete can shift; a large one is cut into ranges at ids taken from the server. Ids are never compared
//! here: their order is the database's collation. A range ends when its last id is seen or an answer is empty; rows
//! behind that id belong to the next range and are dropped. Where the id has vanished meanwhile, the range runs on, and
//! the finish removes the overlap.
//!
//! 2.30 and earlier load whole tables for every list request, whatever the page: there a collection is one answer
//! (`paging=false`), streamed, and sorted by us.
//!
//! Source: `dhis2-api.md` §3; measured: 2.25 to 2.30 repeat the last page for ever, so nothing here walks until empty there.

use std::{borrow::Cow, collections::BTreeMap};

use dhis2::{
    Error,
    metadata::{DeletedObjects, MetadataList, MetadataRows, Schema},
    split::{Row, RowFault},
};
use futures_util::stream::{self, StreamExt};
use harvester_actors::{
    failure::{Failure, FailureClass, Weight},
    page::{Page, Reject},
    partition::{
        LeftOut, Next, Partition, PartitionId, PartitionRole, Plan, Position, SourceIdentity, Stream, StreamId,
        StreamOrder,
    },
    reconcile::Recount,
    source::PageSize,
};
use serde::{Deserialize, Serialize};

use super::{
    keyset::{Walk, WalkedPage},
    page_builder::PageBuilder,
    server_clock::OVERLAP_HOURS,
    source::{Selection, SourceContext, Unfetched},
};

/// The first version whose lists are paged by the database.
const PAGED_SINCE: u16 = 31;

/// The last version that remembers for a minute how many rows a filter matches (`dhis2-api.md` §3.2).
const TOTALS_REMEMBERED_UNTIL: u16 = 36;

/// The first version that tells deletions.
const DELETIONS_SINCE: u16 = 27;

/// The least pages in a range: finding its last id costs one small request, which is then at most a quarter.
const RANGE_PAGES_MIN: u64 = 4;

/// Ranges for each request in flight: enough for the last ones to end together, few enough to be cheap to find.
const RANGES_PER_FETCHER: u64 = 2;

/// The least pages in a range where each fetcher gets more of them: the request for its last id is then lost in them.
const RANGE_PAGES_LONG: u64 = 32;

/// The most ranges for each fetcher. The shorter the ranges, the shorter the time at the end in which some fetchers have
/// nothing left to do and others wait before they ask again.
const RANGES_PER_FETCHER_MAX: u64 = 8;

/// Ids in one request for missing rows: its url stays below 2,000 bytes.
const REPAIR_IDS_MAX: usize = 100;

/// Requests in which vanished rows are looked for: each may meet another server behind the same url. A replica that lags behind
/// answers all of them once in 4,096 times.
const VANISHED_REQUESTS: usize = 12;

/// The most keys of a listing in one answer. It is ids alone, and one answer cannot contradict itself.
const LISTING_ROWS_MAX: u32 = 50_000;

/// How many rows more than expected a listing has room for.
const LISTING_ROWS_SPARE: u64 = 1_000;

/// What a job wants of metadata.
#[derive(Clone, Debug)]
pub(crate) struct MetadataExtract {
    /// Which collections; `None` for all that the server offers.
    pub(crate) collections: Option<Vec<String>>,
    /// As the API takes them.
    pub(crate) fields: String,
    /// As the API takes them.
    pub(crate) filters: Vec<String>,
    /// Rows a page.
    pub(crate) page_size: u32,
    /// Only what changed since the last complete run.
    pub(crate) incremental: bool,
    /// Deletions too.
    pub(crate) include_deleted: bool,
    /// The stream's name, where it is not the collection's.
    pub(crate) stream: Option<String>,
}

/// What one partition fetches.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct MetadataSelection {
    /// The collection, and the array's name in its answers.
    collection: String,
    /// Its path, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    /// As the API takes them.
    fields: String,
    /// As the API takes them.
    filters: Vec<String>,
    /// Rows a page; `None` for one answer without pages.
    page_size: Option<u32>,
    /// The range begins behind this id; `None` at the collection's beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    /// The range ends with this id; `None` at the collection's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    /// How many rows lay behind `after` when the plan was made; `None` where nobody had counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    behind: Option<u64>,
    /// Whether a count must be asked for with a filter of its own to be a fresh one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    counts_afresh: bool,
    /// What of it is wanted.
    #[serde(default)]
    want: Want,
}

/// What of a collection is wanted.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Want {
    /// Its rows.
    #[default]
    Rows,
    /// Its ids alone.
    Listing,
    /// The rows with these ids.
    Ids(Vec<String>),
}

/// What one partition fetches of what was deleted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct DeletedSelection {
    /// Only what was deleted at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted_at: Option<String>,
    /// Simple class names that are wanted; empty for all.
    classes: Vec<String>,
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

impl MetadataExtract {
    /// Adds this extract's streams and partitions to `plan`.
    pub(crate) async fn plan(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        plan: &mut Plan,
    ) -> Result<(), Failure> {
        let optional = self.collections.is_none();
        let mut schemas = Vec::new();
        if optional || self.include_deleted {
            schemas = source.with_retries(|client| async move { client.schemas().await }).await?;
        }
        let candidates = match &self.collections {
            Some(names) => {
                names.iter().map(|name| Candidate { name: name.clone(), endpoint: None }).collect::<Vec<_>>()
            }
            None => offered(&schemas, &mut plan.left_out),
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
                        plan.left_out.push(LeftOut { stream: candidate.name, reason: failure.message });
                        continue;
                    }
                    // `dataStore` is in the schemas, and answers an array of namespaces (`dhis2-api.md` §16).
                    FailureClass::Garbled if optional && is_paged => {
                        let reason = format!("is no list of objects with ids ({})", failure.message);
                        plan.left_out.push(LeftOut { stream: candidate.name, reason });
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
                    _ => return Err(failure),
                },
            };
            self.add_collection(source, identity, candidate, size, plan)?;
        }
        if self.include_deleted {
            self.add_deletions(source, identity, &schemas, plan)?;
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
            Failure::new(FailureClass::Damaged, message).with_next("run again with --restart to fetch everything anew")
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
    fn add_collection(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        candidate: Candidate,
        size: Size,
        plan: &mut Plan,
    ) -> Result<(), Failure> {
        let name = self.stream.clone().unwrap_or_else(|| candidate.name.clone());
        if plan.streams.iter().any(|stream| stream.name == name) {
            let message = format!("two extracts give a stream named `{name}`");
            return Err(Failure::new(FailureClass::Rejected, message)
                .with_next("name one of them with stream = \"…\" in the job file"));
        }
        let is_paged = identity.minor >= PAGED_SINCE;
        let filters = self.filters_for(source, &name)?;
        let stream = StreamId(plan.streams.len() as u32);
        plan.streams.push(Stream {
            name: name.clone(),
            order: if is_paged { StreamOrder::Keyset } else { StreamOrder::Sorted },
            expected_rows: size.total,
            optional: self.collections.is_none(),
            watermark: identity.server_date.clone().filter(|_| self.incremental),
        });
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
            let selection = MetadataSelection {
                collection: candidate.name.clone(),
                endpoint: candidate.endpoint.clone(),
                fields: self.fields.clone(),
                filters: filters.clone(),
                page_size: is_paged.then_some(self.page_size),
                after,
                until,
                behind: size.total.map(|total| total.saturating_sub(range as u64 * range_rows)),
                counts_afresh: is_paged && identity.minor <= TOTALS_REMEMBERED_UNTIL,
                want: Want::Rows,
            };
            // The last range of a collection ends with an empty page; the others end with their last id.
            let requests =
                expected_rows.map(|rows| rows.div_ceil(u64::from(self.page_size)) + u64::from(range + 1 == ranges));
            plan.partitions.push(Partition {
                id: PartitionId(plan.partitions.len() as u32),
                stream,
                key: if ranges == 1 { name.clone() } else { format!("{name}/{range}") },
                role: PartitionRole::Rows,
                selection: Selection::Metadata(selection).to_value(),
                requests: if is_paged { requests } else { Some(1) },
                expected_rows,
            });
        }
        Ok(())
    }

    /// Adds the stream of deletions, where this version tells them.
    fn add_deletions(
        &self,
        source: &SourceContext<'_>,
        identity: &SourceIdentity,
        schemas: &[Schema],
        plan: &mut Plan,
    ) -> Result<(), Failure> {
        const NAME: &str = "deletedObjects";
        if identity.minor < DELETIONS_SINCE {
            let reason =
                format!("version 2.{} does not tell deletions; 2.{DELETIONS_SINCE} and later do", identity.minor);
            plan.left_out.push(LeftOut { stream: NAME.to_owned(), reason });
            return Ok(());
        }
        let wanted = |schema: &&Schema| match (&self.collections, schema.collection()) {
            (Some(names), Some((name, _))) => names.iter().any(|wanted| wanted == name),
            _ => false,
        };
        let classes = schemas.iter().filter(wanted).filter_map(|schema| schema.klass.as_deref()).map(simple_name);
        let selection = DeletedSelection { deleted_at: self.since(source, NAME)?, classes: classes.collect() };
        let stream = StreamId(plan.streams.len() as u32);
        plan.streams.push(Stream {
            name: NAME.to_owned(),
            order: StreamOrder::Sorted,
            expected_rows: None,
            // Only superusers get it from 2.29 on; without it the rest is still worth having, and the report says so.
            optional: true,
            watermark: identity.server_date.clone().filter(|_| self.incremental),
        });
        plan.partitions.push(Partition {
            id: PartitionId(plan.partitions.len() as u32),
            stream,
            key: NAME.to_owned(),
            role: PartitionRole::Rows,
            selection: Selection::DeletedObjects(selection).to_value(),
            requests: Some(1),
            expected_rows: None,
        });
        Ok(())
    }
}

/// The collections that the server offers, by name, and why the rest is left out.
fn offered(schemas: &[Schema], left_out: &mut Vec<LeftOut>) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = Vec::new();
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
    left_out.sort_by(|a, b| a.stream.cmp(&b.stream));
    left_out.dedup_by(|a, b| a.stream == b.stream);
    left_out.retain(|left| candidates.iter().all(|candidate| candidate.name != left.stream));
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

/// `DataElement` of `org.hisp.dhis.dataelement.DataElement`.
fn simple_name(class: &str) -> String {
    class.rsplit('.').next().unwrap_or(class).to_owned()
}

/// Fetches the page of a collection that begins at `position`.
pub(crate) async fn fetch(
    source: &SourceContext<'_>,
    selection: &MetadataSelection,
    partition: &Partition,
    position: &Position,
    size: PageSize,
) -> Result<Page, Unfetched> {
    let walk = Walk::at(&position.next, selection.behind);
    let mut filters = Cow::Borrowed(selection.filters.as_slice());
    let mut page_size = selection.page_size.map(|rows| size.of(rows));
    let (mut fields, mut id_gt) = (selection.fields.as_str(), walk.last.as_deref().or(selection.after.as_deref()));
    match &selection.want {
        Want::Rows => {}
        Want::Listing => {
            fields = "id";
            filters = selection.fresh_filters();
        }
        Want::Ids(ids) => {
            filters.to_mut().push(format!("id:in:[{}]", ids.join(",")));
            page_size = Some(ids.len() as u32);
            id_gt = None;
        }
    }
    let list = MetadataList {
        endpoint: selection.endpoint.as_deref(),
        fields,
        filters: &filters,
        id_gt,
        // Without pages we sort ourselves, and the server need not.
        order_id_asc: page_size.is_some(),
        page_size,
        ..MetadataList::new(&selection.collection)
    };
    let mut rows = list.send(source.client).await?;
    let mut reader = PageReader::new(selection, partition, id_gt);
    while reader.read(&mut rows).await? {
        reader.page.spill().await?;
    }
    let answer = rows.finish()?;
    let PageReader { mut page, last, ended, repeats, strangers, .. } = reader;
    let next = match (&selection.want, page_size) {
        (Want::Ids(_), _) if strangers > 0 => {
            let message = format!("{strangers} rows of {} came that were not asked for by their ids", partition.key);
            return Err(Failure::new(FailureClass::Garbled, message).into());
        }
        // Each of them has another try: a row that is left out here would count as gone.
        (Want::Ids(_), Some(_))
            if answer.pager.and_then(|pager| pager.total).is_some_and(|total| total > answer.rows) =>
        {
            let message =
                format!("the server counts more of the rows of {} asked for by their ids than it sends", partition.key);
            return Err(Failure::new(FailureClass::Garbled, message).into());
        }
        (Want::Ids(_), _) | (_, None) => Next::End,
        (want, Some(page_size)) => {
            let walked = WalkedPage {
                rows: answer.rows,
                total: answer.pager.and_then(|pager| pager.total),
                page_size,
                last,
                has_ended: ended,
                repeats,
                is_listing: *want == Want::Listing,
            };
            let (next, miscounted) = walk.behind(walked, &partition.key)?;
            page.counts.miscounted = miscounted;
            next
        }
    };
    Ok(page.finish(partition.id, position.seq, next).await?)
}

impl MetadataSelection {
    /// The filters of a request whose count must be a fresh one. A server that remembers counts does so by their filters, so
    /// there is one more that holds for all rows: an id begins with a letter.
    fn fresh_filters(&self) -> Cow<'_, [String]> {
        let mut filters = Cow::Borrowed(self.filters.as_slice());
        if self.counts_afresh {
            filters.to_mut().push(format!("id:!eq:0{:x}", jiff::Timestamp::now().as_nanosecond()));
        }
        filters
    }
}

/// Counts the rows of a collection now, and says the highest of so many answers. What came in one answer is not counted again:
/// the server would load it all once more.
pub(crate) async fn count(
    source: &SourceContext<'_>,
    selection: &MetadataSelection,
    times: u32,
) -> Result<Recount, Failure> {
    if selection.page_size.is_none() || !harvester_pacing::control!("recount") {
        return Ok(Recount::NotOffered);
    }
    let mut highest = 0;
    for _ in 0..times {
        let at = source.with_retries(|client| async move {
            let filters = selection.fresh_filters();
            let endpoint = selection.endpoint.as_deref();
            let list = MetadataList { endpoint, filters: &filters, ..MetadataList::new(&selection.collection) };
            client.id_at(&list, 1).await
        });
        let Some(total) = at.await?.pager.total else { return Ok(Recount::Refused) };
        highest = total.max(highest);
    }
    Ok(Recount::Rows(highest))
}

/// Takes the rows of one answer.
struct PageReader<'a> {
    selection: &'a MetadataSelection,
    partition: &'a Partition,
    page: PageBuilder,
    /// The last id seen.
    last: Option<String>,
    /// Whether the range's last id has been seen: what follows belongs to others.
    ended: bool,
    /// The id behind which rows were asked for.
    behind: Option<&'a str>,
    /// Whether the row with that id came again.
    repeats: bool,
    /// Rows that were not asked for by their ids, where only such were asked for.
    strangers: u64,
    /// A row as one line; kept for its memory.
    line: Vec<u8>,
}

impl<'a> PageReader<'a> {
    fn new(selection: &'a MetadataSelection, partition: &'a Partition, behind: Option<&'a str>) -> Self {
        PageReader {
            selection,
            partition,
            page: PageBuilder::new(),
            last: None,
            ended: false,
            behind,
            repeats: false,
            strangers: 0,
            line: Vec::new(),
        }
    }

    /// Takes the rows that are complete with the next chunk; false at the answer's end.
    async fn read(&mut self, rows: &mut MetadataRows) -> Result<bool, Error> {
        rows.read(&mut |row| self.take(row)).await
    }

    fn take(&mut self, row: Row<'_>) -> Result<(), RowFault> {
        match row {
            Row::Whole(row) => {
                let Some(id) = row.key() else {
                    return Err(RowFault::Stopped("a row has no id: take `id` into the fields of the job".to_owned()));
                };
                if self.ended {
                    self.page.filter();
                    return Ok(());
                }
                self.seen(id);
                if self.selection.want == Want::Listing {
                    self.page.keep(id, b"");
                } else if row.has_newline() {
                    self.line.clear();
                    row.write_line(&mut self.line);
                    self.page.keep(id, &self.line);
                } else {
                    self.page.keep(id, row.text().as_bytes());
                }
            }
            Row::Oversize { prefix, bytes } => self.unfit(prefix, bytes, "too_large", "the row is larger than 16 MiB"),
            Row::TooDeep { prefix, bytes } => self.unfit(prefix, bytes, "too_deep", "the row is nested too deeply"),
            _ => return Err(RowFault::Stopped("the client hands out a kind of row this program does not know".into())),
        }
        Ok(())
    }

    /// Notes where the walk is, and whether it is at its range's end.
    fn seen(&mut self, id: &str) {
        self.ended = self.selection.until.as_deref() == Some(id);
        self.repeats |= self.behind == Some(id);
        if let Want::Ids(ids) = &self.selection.want {
            self.strangers += u64::from(!ids.iter().any(|wanted| wanted == id));
        }
        let last = self.last.get_or_insert_default();
        last.clear();
        last.push_str(id);
    }

    /// Rejects a row that cannot be taken; its id is looked for in what is there of it.
    fn unfit(&mut self, prefix: &[u8], bytes: u64, class: &str, message: &str) {
        if self.ended {
            self.page.filter();
            return;
        }
        let id = id_in(prefix);
        if let Some(id) = &id {
            self.seen(id);
        }
        let (class, message) = (class.to_owned(), message.to_owned());
        self.page.reject(Reject { partition: self.partition.key.clone(), class, message, id, bytes: Some(bytes) });
    }
}

/// The value of the member `id` at the top of an object of which only the beginning is there.
fn id_in(prefix: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(prefix);
    let mut depth = 0_u32;
    let mut rest = text.as_ref();
    loop {
        let at = rest.find(['"', '{', '[', '}', ']'])?;
        let sign = rest.as_bytes()[at];
        rest = &rest[at..];
        match sign {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {
                let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<Cow<'_, str>>();
                let string = strings.next()?.ok()?;
                let behind = rest[strings.byte_offset()..].trim_start();
                if depth == 1 && string == "id" && behind.starts_with(':') {
                    let value = behind[1..].trim_start();
                    return serde_json::Deserializer::from_str(value).into_iter::<String>().next()?.ok();
                }
                rest = &rest[strings.byte_offset()..];
                continue;
            }
        }
        rest = &rest[1..];
    }
}

/// The selection of a listing of the same collection, of about `rows` keys: in one answer, where there are not too many.
pub(crate) fn listing(selection: &MetadataSelection, rows: u64) -> MetadataSelection {
    let room = u32::try_from(rows + rows / 4 + LISTING_ROWS_SPARE).unwrap_or(u32::MAX).min(LISTING_ROWS_MAX);
    let page_size = selection.page_size.map(|rows| rows.max(room));
    MetadataSelection { after: None, until: None, behind: None, page_size, want: Want::Listing, ..selection.clone() }
}

/// The selections that fetch the missing rows by their ids, or all rows where that is one request and the ids would be many:
/// each loads the whole table then. What comes twice is dropped with the files. Vanished rows are looked for in several
/// requests, as the port asks for.
pub(crate) fn repair(selection: &MetadataSelection, missing: &[String], vanished: &[String]) -> Vec<MetadataSelection> {
    let is_paged = selection.page_size.is_some();
    let by_ids = |ids: Vec<String>| MetadataSelection {
        after: None,
        until: None,
        behind: None,
        want: Want::Ids(ids),
        ..selection.clone()
    };
    let mut repairs: Vec<MetadataSelection> = if !is_paged && missing.len() > REPAIR_IDS_MAX {
        vec![selection.clone()]
    } else {
        missing.chunks(REPAIR_IDS_MAX).map(|ids| by_ids(ids.to_vec())).collect()
    };
    let requests = if is_paged { VANISHED_REQUESTS } else { 1 };
    for request in (0..requests).take_while(|_| !vanished.is_empty()) {
        let mut ids: Vec<String> =
            vanished.iter().skip(request).step_by(requests).take(REPAIR_IDS_MAX).cloned().collect();
        if ids.is_empty() {
            ids.push(vanished[request % vanished.len()].clone());
        }
        repairs.push(by_ids(ids));
    }
    repairs
}

/// Fetches what was deleted, in one answer.
pub(crate) async fn fetch_deleted(
    source: &SourceContext<'_>,
    selection: &DeletedSelection,
    partition: &Partition,
    position: &Position,
) -> Result<Page, Unfetched> {
    #[derive(Deserialize)]
    struct Deleted<'a> {
        #[serde(borrow)]
        klass: Cow<'a, str>,
        #[serde(borrow)]
        uid: Cow<'a, str>,
    }
    let request = DeletedObjects { klass: None, deleted_at: selection.deleted_at.as_deref(), page_size: None, page: 1 };
    let mut rows = request.send(source.client).await?;
    let mut page = PageBuilder::new();
    let mut line = Vec::new();
    let mut take = |row: Row<'_>| {
        let Row::Whole(row) = row else {
            return Err(RowFault::Stopped("a deletion is larger than any deletion can be".to_owned()));
        };
        let deleted: Deleted<'_> = row.head()?;
        let class = simple_name(&deleted.klass);
        if !selection.classes.is_empty() && !selection.classes.contains(&class) {
            page.filter();
            return Ok(());
        }
        line.clear();
        row.write_line(&mut line);
        page.keep(&format!("{class} {}", deleted.uid), &line);
        Ok(())
    };
    while rows.read(&mut take).await? {}
    rows.finish()?;
    Ok(page.finish(partition.id, position.seq, Next::End).await?)
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

    #[test]
    fn the_id_of_a_row_that_is_too_large_is_found_where_it_can_be() {
        for (prefix, id) in [
            (r#"{"id":"abc","name":"x"#, Some("abc")),
            (r#"{"name":"id","id" : "a\u0062c","big":"#, Some("abc")),
            (r#"{"parent":{"id":"no"},"id":"yes""#, Some("yes")),
            (r#"{"list":["id",{"id":"no"}],"n":1.5e3,"id":"yes""#, Some("yes")),
            (r#"{"name":"never ends"#, None),
            (r#"{"parent":{"id":"no"},"i"#, None),
            ("", None),
        ] {
            assert_eq!(id_in(prefix.as_bytes()).as_deref(), id, "{prefix}");
        }
    }

    #[test]
    fn missing_rows_are_asked_for_once_and_vanished_ones_in_twelve_requests() {
        let selection = MetadataSelection {
            collection: "options".into(),
            endpoint: None,
            fields: ":owner".into(),
            filters: Vec::new(),
            page_size: Some(50),
            after: Some("x".into()),
            until: None,
            behind: Some(9),
            counts_afresh: false,
            want: Want::Rows,
        };
        let ids = |count: usize| (0..count).map(|id| format!("id{id}")).collect::<Vec<_>>();
        let asked = |selection: &MetadataSelection, missing, vanished| {
            let repairs = repair(selection, &ids(missing), &ids(vanished));
            let sizes = repairs.iter().map(|repair| match &repair.want {
                Want::Ids(ids) => ids.len(),
                Want::Rows | Want::Listing => 0,
            });
            sizes.collect::<Vec<_>>()
        };
        assert_eq!(asked(&selection, 250, 0), [100, 100, 50]);
        assert_eq!(asked(&selection, 1, 2), [&[1][..], &[1; 12]].concat());
        assert_eq!(asked(&selection, 0, 30), [3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2]);
        let whole = MetadataSelection { page_size: None, ..selection.clone() };
        assert_eq!(asked(&whole, 250, 30), [0, 30], "a whole table is asked for once");
        assert_eq!(listing(&selection, 2_000).page_size, Some(3_500));
        assert_eq!(listing(&selection, 1_000_000).page_size, Some(LISTING_ROWS_MAX));
    }
}
