//! What needs the source but no run: one question (`get`), a plan, a check. Nothing is kept, nothing is resumed.

use std::{cell::RefCell, future::Future, ops::ControlFlow, time::Duration};

use dhis2::{
    Client, Error,
    metadata::{DeletedObjects, MetadataList},
    split::{Row, RowFault},
};
use futures_util::future::LocalBoxFuture;
use harvester_actors::{
    failure::{Failure, FailureClass},
    outage::{Wait, retry_until_outage},
    partition::{Cursor, LeftOut, Partition, PlanPiece},
    plan::{PlanBuilder, PlanOutlet},
    report::outcome_of,
    retry::RetryPolicy,
    source::Source,
};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use tokio::{sync::watch, time::Instant};
use url::Url;

use crate::{
    assemble::{Server, SourceClient, extract},
    exit_code::StopReason,
    extract::{Contact, Walk, WalkedPage, classify},
    job::{Credentials, Job},
    observe::{
        finding::Finding,
        log,
        waits::{self, Telling, WaitTeller},
    },
};

/// Rows of a page of `get --all`.
const PAGE_ROWS: u32 = 1_000;

/// How far the server's clock may be from ours before somebody should know.
const SKEW_NOTE: Duration = Duration::from_secs(60);

/// A source that says nothing for so long is told of …
const SILENCE_TOLD_AFTER: Duration = Duration::from_secs(2);
/// … and again after this,
const SILENCE_TOLD_AGAIN: Duration = Duration::from_secs(30);
/// looked at so often.
const SILENCE_LOOK: Duration = Duration::from_millis(500);

/// All time zones are a whole number of these from UTC, so a clock that is off shows as the rest.
const ZONE_STEP_MS: i64 = 15 * 60 * 1_000;

/// One question.
pub(crate) struct GetRequest {
    /// The server.
    pub(crate) server: Server,
    /// Path and query below `/api/`.
    pub(crate) path: String,
    /// All pages, as NDJSON, in place of one answer as it is.
    pub(crate) all: bool,
    /// Why to stop, once there is a reason.
    pub(crate) stop: watch::Receiver<Option<StopReason>>,
}

/// Takes what a question brings; `Break` when nobody wants more.
pub(crate) type Write<'a> = dyn FnMut(&[u8]) -> ControlFlow<()> + 'a;

/// Asks one question and hands the answer to `write` as it comes.
///
/// # Errors
/// As classified; a failure after the first bytes is final, since they cannot be taken back.
pub(crate) fn get(request: GetRequest, write: &mut Write<'_>) -> Result<(), Failure> {
    actix::System::new().block_on(async move {
        let connected = SourceClient::new(&request.server, false)?;
        let outage = request.server.limits.outage;
        let stop = request.stop.clone();
        let asked = async {
            if request.all {
                all_rows(&connected, &request.path, outage, write).await
            } else {
                raw(&connected, &request.path, outage, write).await
            }
        };
        unless_stopped(stop, asked).await.unwrap_or(Ok(()))
    })
}

/// What of a typed path stands behind `/api/` of the server at `url`.
///
/// # Errors
/// A sentence, when it leads to another server or out of `/api`.
pub(crate) fn api_path(typed: &str, url: &Url) -> Result<String, String> {
    dhis2::api_path(url.as_str(), typed).map_err(|error| error.to_string())
}

/// One answer, as it is.
async fn raw(connected: &SourceClient, path: &str, outage: Duration, write: &mut Write<'_>) -> Result<(), Failure> {
    let mut response = retry_request(connected, outage, || connected.client.get(path).raw().send()).await?;
    loop {
        match response.chunk().await.map_err(|error| classify(&error, Contact::Later))? {
            Some(bytes) if write(bytes).is_break() => return Ok(()),
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

/// All rows of a collection, page by page. A page is handed on when it is whole.
async fn all_rows(
    connected: &SourceClient,
    path: &str,
    outage: Duration,
    write: &mut Write<'_>,
) -> Result<(), Failure> {
    let client = &connected.client;
    let usage = |message: String| Failure::new(FailureClass::Rejected, message);
    let relative = Url::parse("http://localhost/").and_then(|base| base.join(path));
    let relative = relative.map_err(|error| usage(format!("`{path}` is not a path: {error}")))?;
    // Whoever asks has made sure that it is one name.
    let collection = relative.path().trim_matches('/').trim_end_matches(".json").to_owned();
    let version = retry_request(connected, outage, || client.system_info()).await?.version;
    let (mut fields, mut filters, mut extra) = (None, Vec::new(), Vec::new());
    for (name, value) in relative.query_pairs() {
        match name.as_ref() {
            "fields" => fields = Some(value.into_owned()),
            "filter" => filters.push(value.into_owned()),
            "page" | "order" | "totalPages" => {}
            _ if name.starts_with("pag") || name == "skipPaging" => {}
            _ => extra.push((name.into_owned(), value.into_owned())),
        }
    }
    let extra: Vec<(&str, &str)> = extra.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // What the server gives where nothing is said; it holds the id, by which the pages are walked.
    let fields = fields.unwrap_or_else(|| "id,displayName".to_owned());
    let is_paged = version.minor() >= 31 && collection != "deletedObjects";
    let mut cursor = Cursor::Start;
    loop {
        let walk = Walk::at(&cursor, None);
        let list = MetadataList {
            fields: &fields,
            filters: &filters,
            id_gt: walk.last.as_deref(),
            order_id_asc: is_paged,
            page_size: is_paged.then_some(PAGE_ROWS),
            extra: &extra,
            ..MetadataList::new(&collection)
        };
        // A page that cannot be the truth has other attempts.
        let attempt = || async {
            let contact = connected.contact();
            let (lines, walked) = page(client, &list).await.map_err(|error| classify(&error, contact))?;
            Ok((lines, if is_paged { walk.behind(walked, &collection)?.0 } else { Cursor::End }))
        };
        let lines;
        (lines, cursor) = retry_transient(connected, outage, || None, attempt).await?;
        if write(&lines).is_break() || cursor == Cursor::End {
            return Ok(());
        }
    }
}

/// Fetches one page: its rows, a line each, and what there is to judge it by.
async fn page(client: &Client, list: &MetadataList<'_>) -> Result<(Vec<u8>, WalkedPage), Error> {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(default)]
        id: Option<String>,
    }
    let (mut lines, mut last, mut repeats) = (Vec::new(), None, false);
    let mut rows = if list.collection == "deletedObjects" {
        DeletedObjects { klass: None, deleted_at: None, page_size: None, page: 1 }.send(client).await?
    } else {
        list.send(client).await?
    };
    let mut take = |row: Row<'_>| {
        let Row::Whole(row) = row else {
            return Err(RowFault::Stopped("a row is larger or deeper than any row can be".to_owned()));
        };
        last = row.head::<Head>()?.id;
        repeats |= last.is_some() && last.as_deref() == list.id_gt;
        row.write_line(&mut lines);
        Ok(())
    };
    while rows.read(&mut take).await? {}
    let answer = rows.finish()?;
    let total = answer.pager.and_then(|pager| pager.total);
    let walked = WalkedPage {
        rows: answer.rows,
        total,
        page_size: PAGE_ROWS,
        last,
        has_ended: false,
        repeats,
        is_listing: false,
    };
    Ok((lines, walked))
}

/// What people want to know of a plan.
#[derive(Debug, Default)]
pub(crate) struct PlanSummary {
    /// The streams.
    pub(crate) streams: Vec<StreamSummary>,
    /// Its partitions, in order.
    pub(crate) partitions: Vec<PartitionSummary>,
    /// What `["*"]` did not reach.
    pub(crate) left_out: Vec<LeftOut>,
    /// The stream of each pass.
    passes: Vec<usize>,
}

/// A stream of a plan.
#[derive(Debug)]
pub(crate) struct StreamSummary {
    /// Its name.
    pub(crate) name: String,
    /// How many partitions it has.
    pub(crate) partitions: u64,
    /// Requests that they will take; `None` where one of them cannot tell.
    pub(crate) requests: Option<u64>,
    /// Rows that the server announced.
    pub(crate) expected_rows: Option<u64>,
}

/// A partition of a plan.
#[derive(Debug)]
pub(crate) struct PartitionSummary {
    /// Place of its stream.
    pub(crate) stream: usize,
    /// Its key.
    pub(crate) key: String,
    /// Requests that it will take, as far as the plan can tell.
    pub(crate) requests: Option<u64>,
    /// Rows that it will give, likewise.
    pub(crate) expected_rows: Option<u64>,
}

impl PlanOutlet for PlanSummary {
    fn take(&mut self, piece: PlanPiece) -> LocalBoxFuture<'_, Result<(), Failure>> {
        let PlanPiece { streams, passes, partitions, left_out } = piece;
        self.streams.extend(streams.into_iter().map(|stream| StreamSummary {
            name: stream.name,
            partitions: 0,
            requests: Some(0),
            expected_rows: stream.expected_rows,
        }));
        self.passes.extend(passes.iter().map(|pass| pass.stream.0 as usize));
        for partition in partitions {
            let stream = self.passes[partition.pass.0 as usize];
            let of_stream = &mut self.streams[stream];
            of_stream.partitions += 1;
            of_stream.requests = of_stream.requests.zip(partition.requests).map(|(sum, more)| sum + more);
            let Partition { key, requests, expected_rows, .. } = partition;
            self.partitions.push(PartitionSummary { stream, key, requests, expected_rows });
        }
        self.left_out.extend(left_out);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Makes a plan, as a run would, and forgets it.
///
/// # Errors
/// As classified.
pub(crate) fn plan(
    job: &Job,
    credentials: &Credentials,
    stop: watch::Receiver<Option<StopReason>>,
) -> Result<PlanSummary, Failure> {
    actix::System::new().block_on(async {
        let extracts = job.extracts.iter().map(|wanted| extract(wanted).map_err(|error| error.into_failure()));
        let extracts = extracts.collect::<Result<Vec<_>, _>>()?;
        let connected = SourceClient::new(&Server::of(job, credentials), false)?;
        let source = connected.source(extracts, job.limits.in_flight, Default::default());
        let planned = async {
            let (outage, last_answer) = (job.limits.outage, || connected.last_answer());
            let identity = &retry_transient(&connected, outage, last_answer, || source.identify()).await?;
            let source = &source;
            retry_transient(&connected, outage, last_answer, || async move {
                let mut summary = PlanSummary::default();
                source.plan(identity, PlanBuilder::new(&mut summary)).await?;
                Ok(summary)
            })
            .await
        };
        unless_stopped(stop, planned)
            .await
            .unwrap_or_else(|| Err(Failure::new(FailureClass::Transient, "stopped before the plan was made")))
    })
}

/// Logs in, and looks at version, rights, roots and clock; a finding for each.
pub(crate) fn check(job: &Job, credentials: &Credentials) -> Vec<Finding> {
    let bad = |subject, failure: Failure| {
        let next = failure.next.unwrap_or_else(|| "see whether the server answers in a browser".to_owned());
        vec![Finding::error(subject, outcome_of(failure.class), failure.message, next)]
    };
    actix::System::new().block_on(async {
        let connected = match SourceClient::new(&Server::of(job, credentials), false) {
            Ok(connected) => connected,
            Err(failure) => return bad("source", failure),
        };
        let client = &connected.client;
        let info = match retry_request(&connected, job.limits.outage, || client.system_info()).await {
            Ok(info) => info,
            Err(failure) if failure.class == FailureClass::Denied => return bad("login", failure),
            Err(failure) => return bad("source", failure),
        };
        let mut findings = vec![match info.version.minor() {
            25..=43 => Finding::ok("version", format!("DHIS2 {} at {}", info.version.raw(), client.url())),
            minor => Finding::warning(
                "version",
                format!("DHIS2 2.{minor} is not one of 2.25 to 2.43, which this program knows"),
                "try a small collection first, and compare its numbers",
            ),
        }];
        match &info.system_id {
            Some(id) => findings.push(Finding::ok("identity", format!("database {id}"))),
            None => findings.push(Finding::warning(
                "identity",
                "the server does not say which database it is, so a swapped one cannot be noticed",
                "2.25 and 2.26 tell it to superusers only",
            )),
        }
        let now_utc = TimeZone::UTC.to_datetime(Timestamp::now());
        findings.extend(info.server_date.as_ref().and_then(|date| clock(date, now_utc)));
        match retry_request(&connected, job.limits.outage, || client.me()).await {
            Ok(me) => {
                let name = me.username.clone().or(me.id.clone()).unwrap_or_else(|| "somebody".to_owned());
                findings.push(Finding::ok("login", format!("logged in as {name}")));
                findings.push(match me.is_superuser() {
                    Some(true) => Finding::ok("rights", "superuser: nothing is hidden"),
                    Some(false) => Finding::warning(
                        "rights",
                        "no superuser: objects that are not shared with this user are missing, and not counted",
                        "take a user with authority ALL where completeness matters",
                    ),
                    None => {
                        Finding::warning("rights", "the server does not tell", "compare totals with an administrator")
                    }
                });
                let roots = me.organisation_units.len() + me.data_view_organisation_units.len();
                findings.push(match roots {
                    0 => Finding::warning(
                        "roots",
                        "this user has no organisation unit: metadata is complete, data would be empty",
                        "give the user the root of the hierarchy",
                    ),
                    _ => Finding::ok(
                        "roots",
                        format!(
                            "{} for data capture, {} for data view",
                            me.organisation_units.len(),
                            me.data_view_organisation_units.len()
                        ),
                    ),
                });
            }
            Err(failure) if failure.class == FailureClass::Denied => findings.extend(bad("login", failure)),
            Err(failure) => findings.push(Finding::warning("rights", failure.message, "see whether /api/me answers")),
        }
        findings
    })
}

/// Compares the server's local date with our clock, without knowing its zone.
fn clock(server_date: &str, now_utc: DateTime) -> Option<Finding> {
    let server: DateTime = server_date.parse().ok()?;
    let apart = server.duration_since(now_utc).as_millis();
    let rest = i64::try_from(apart).ok()?.rem_euclid(ZONE_STEP_MS);
    let off_ms = if rest > ZONE_STEP_MS / 2 { rest - ZONE_STEP_MS } else { rest };
    let off = Duration::from_millis(off_ms.unsigned_abs());
    Some(if off > SKEW_NOTE {
        let direction = if off_ms > 0 { "ahead of" } else { "behind" };
        Finding::warning(
            "clock",
            format!("the server's clock is {} s {direction} this machine's", off.as_secs()),
            "incremental runs go by the server's clock alone; set the wrong one right all the same",
        )
    } else {
        Finding::ok("clock", format!("within {} s of the server's", off.as_secs().max(1)))
    })
}

/// Sends a request until it succeeds, fails for good, or the source has been gone for `outage`.
async fn retry_request<T, F>(connected: &SourceClient, outage: Duration, request: impl Fn() -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Error>>,
{
    // Nothing has succeeded before it does: an answer that fails it, like a 404 without JSON, ends no outage.
    let last_success = || None;
    retry_transient(connected, outage, last_success, || async {
        let contact = connected.contact();
        request().await.map_err(|error| classify(&error, contact))
    })
    .await
}

/// Tries until it succeeds, fails for good, or the source has been gone for `outage`, counted from `last_success` where that
/// is later than the beginning.
async fn retry_transient<T, F>(
    connected: &SourceClient,
    outage: Duration,
    last_success: impl Fn() -> Option<Instant>,
    attempt: impl Fn() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Failure>>,
{
    let policy = RetryPolicy::new(0, outage, u64::from(std::process::id()));
    let began = Instant::now();
    let waits = RefCell::new(WaitTeller::default());
    let tell = |Wait { failure, delay, patience_left, .. }: Wait<'_>| {
        let wait = waits::Wait { reason: failure.to_string(), remaining: Some(delay) };
        if let Some(Telling::Waits(wait)) = waits.borrow_mut().update(Some(wait), began.elapsed()) {
            let (until, gives_up_at) = (log::clock(delay), log::clock(patience_left));
            tracing::warn!(until, gives_up_at, "waiting: {}", wait.reason);
        }
    };
    let attempt = || told_while_silent(connected, attempt());
    retry_until_outage(policy, Some(connected.limiter()), last_success, || connected.last_trouble(), tell, attempt)
        .await
}

/// Does `work`, and says so while the source says nothing for long.
async fn told_while_silent<T>(connected: &SourceClient, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let mut told_at = SILENCE_TOLD_AFTER;
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(SILENCE_LOOK) => {}
        }
        let silence = connected.last_answer().map_or(began, |answer| answer.max(began)).elapsed();
        if silence < SILENCE_TOLD_AFTER {
            told_at = SILENCE_TOLD_AFTER;
        } else if silence >= told_at {
            told_at = silence + SILENCE_TOLD_AGAIN;
            tracing::warn!(silent_s = silence.as_secs(), "waiting: the source to answer what it was asked");
        }
    }
}

/// Does `work` unless somebody asks for a stop before it is done.
async fn unless_stopped<T>(mut stop: watch::Receiver<Option<StopReason>>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        Ok(_) = stop.wait_for(Option::is_some) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_shows_whatever_the_zone_is() {
        let now: DateTime = "2024-05-01T10:00:00".parse().unwrap();
        for (server, words) in [
            ("2024-05-01T10:00:00.400", "within 1 s"),
            ("2024-05-01T13:00:02.000", "within 2 s"),
            ("2024-05-01T15:45:30.000", "within 30 s"),
            ("2024-05-01T05:03:00.000", "180 s ahead of"),
            ("2024-05-01T09:55:00.000", "300 s behind"),
        ] {
            let finding = clock(server, now).unwrap();
            assert!(finding.message.contains(words), "{server}: {}", finding.message);
        }
        assert!(clock("no date", now).is_none());
    }
}
