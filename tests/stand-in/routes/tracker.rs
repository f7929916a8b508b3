//! Answers `/api/tracker/{events,enrollments,trackedEntities}` (2.36 and later): parameters, refusals, envelopes and
//! orders by version, SQL errors of the heads among them.
//!
//! Sources: recorded `tracker-*` (2.40, 2.42, 2.43); 2.41 from dhis2-core alone.

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::uid_text;
use crate::dialect::TrackerForm;
use crate::records::Writer;
use crate::registry::{self, Record, Thing};
use crate::request::Request;
use crate::routes::tracker_order::Order;
use crate::routes::tracker_units::Units;
use crate::world::World;

const SIZE_MAX: i64 = 50_000;

/// What a request gets that is refused.
pub(crate) type Refusal = Box<Answer>;

/// What a path of the tracker is about.
pub(crate) fn thing(name: &str) -> Option<Thing> {
    match name {
        "events" => Some(Thing::Event),
        "enrollments" => Some(Thing::Enrollment),
        "trackedEntities" => Some(Thing::Entity),
        _ => None,
    }
}

fn plural(thing: Thing) -> &'static str {
    match thing {
        Thing::Event => "events",
        Thing::Enrollment => "enrollments",
        Thing::Entity => "trackedEntities",
    }
}

pub(crate) fn singular(thing: Thing) -> &'static str {
    match thing {
        Thing::Event => "event",
        Thing::Enrollment => "enrollment",
        Thing::Entity => "trackedEntity",
    }
}

pub(crate) fn bad(world: &World, message: &str) -> Refusal {
    Box::new(Answer::coded_message(&world.dialect, 400, message, Some("E1003")))
}

pub(crate) fn plain(world: &World, status: u16, message: &str) -> Refusal {
    Box::new(Answer::message(&world.dialect, status, message))
}

/// The server's own SQL is wrong.
pub(crate) fn sql_error(world: &World, state: &str) -> Refusal {
    let message = format!("Query failed because of a syntax error (SqlState: {state})");
    let body = format!(
        "{{\"httpStatus\":\"Conflict\",\"httpStatusCode\":409,\"status\":\"ERROR\",\"message\":\"{message}\",\"devMessage\":\"SqlState: {state}\",\"errorCode\":\"E7145\"}}"
    );
    let _ = world;
    Box::new(Answer::json(409, body.into_bytes()).with_header("Cache-Control", "no-cache, private"))
}

pub(crate) fn is_uid(text: &str) -> bool {
    text.len() == 11
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// `/api/tracker/{things}`.
pub(crate) fn list(world: &World, request: &Request, user: &User, thing: Thing) -> Answer {
    match page(world, request, user, thing) {
        Ok(answer) => answer,
        Err(refusal) => *refusal,
    }
}

/// `/api/tracker/relationships`: nobody is related here.
pub(crate) fn relationships(world: &World, request: &Request) -> Answer {
    let form = world.dialect.tracker;
    if ["trackedEntity", "enrollment", "event"].iter().all(|name| request.param(name).is_none()) {
        let message = "Missing required parameter 'trackedEntity', 'enrollment' or 'event'.";
        let code = (form == TrackerForm::Pager).then_some("E1003");
        return Answer::coded_message(&world.dialect, 400, message, code);
    }
    let body = match form {
        TrackerForm::Flat => r#"{"page":1,"pageSize":50,"instances":[]}"#,
        TrackerForm::Both => r#"{"pager":{"page":1,"pageSize":50},"page":1,"pageSize":50,"relationships":[]}"#,
        _ => r#"{"pager":{"page":1,"pageSize":50},"relationships":[]}"#,
    };
    Answer::json(200, body.as_bytes().to_vec())
}

/// `/api/tracker/{things}/{id}`.
pub(crate) fn one(world: &World, request: &Request, thing: Thing, id: &str) -> Answer {
    let found = registry::all(world, thing).into_iter().find(|record| uid_text(&record.uid) == id && !record.deleted);
    let Some(record) = found else {
        let name = match thing {
            Thing::Event => "Event",
            Thing::Enrollment => "Enrollment",
            Thing::Entity => "TrackedEntity",
        };
        let message = format!("{name} with id {id} could not be found.");
        return Answer::coded_message(&world.dialect, 404, &message, Some("E1005"));
    };
    let writer = Writer::new(world, request);
    Answer::json(200, writer.selected(thing, &record).into_bytes())
}

fn page(world: &World, request: &Request, user: &User, thing: Thing) -> Result<Answer, Refusal> {
    let form = world.dialect.tracker;
    let renamed = form == TrackerForm::Pager;
    let size = crate::routes::number(world, request, "pageSize", 50)?;
    let number = crate::routes::number(world, request, "page", 1)?.max(1);
    let all = match form {
        TrackerForm::Flat => request.param("skipPaging") == Some("true"),
        _ => request.param("paging") == Some("false"),
    };
    if renamed && size < 1 {
        return Err(bad(world, "pageSize must be greater than or equal to 1 if specified"));
    }
    if form != TrackerForm::Flat && thing == Thing::Entity && size > SIZE_MAX {
        let message = format!(
            "Invalid page size: {size}. It must not exceed the system limit of KeyTrackedEntityMaxLimit {SIZE_MAX}."
        );
        return Err(bad(world, &message));
    }
    let mut records = selected(world, request, user, thing)?;
    let order = Order::read(world, request, thing)?;
    let with_total = request.param("totalPages") == Some("true");
    if thing == Thing::Enrollment && world.dialect.counts_enrollments_wrongly && with_total && records.len() != 1 {
        let message = match records.len() {
            0 => "No entity found for query".into(),
            found => format!("query did not return a unique result: {found}"),
        };
        return Err(plain(world, 409, &message));
    }
    // Below 2.42 an order that is not unique is settled anew for every page.
    let salt = (world.dialect.orders_loosely && !all).then(|| u64::try_from(number).unwrap_or(0));
    order.sort(&mut records, thing, salt);
    let total = records.len();
    let size = usize::try_from(size.max(0)).unwrap_or(0);
    let number = usize::try_from(number).unwrap_or(1);
    let shown = if all {
        let most = if thing == Thing::Entity && form != TrackerForm::Flat { 50_000 } else { total };
        0..total.min(most)
    } else {
        let from = (number - 1).saturating_mul(size).min(total);
        from..from.saturating_add(size).min(total)
    };
    let more = shown.end < total && size > 0;
    let writer = Writer::new(world, request);
    let rows: Vec<String> = records[shown].iter().map(|record| writer.selected(thing, record)).collect();
    let totals = if with_total {
        let pages = if size == 0 { 0 } else { total.div_ceil(size) };
        format!(",\"total\":{total},\"pageCount\":{pages}")
    } else {
        String::new()
    };
    let name = if form == TrackerForm::Flat { "instances" } else { plural(thing) };
    let flat = format!("\"page\":{number}{totals},\"pageSize\":{size},");
    let pager = || {
        let mut pager = format!("\"pager\":{{\"page\":{number},\"pageSize\":{size}{totals}");
        let mut link = |label: &str, page: usize| {
            pager.push_str(&format!(",\"{label}\":\"{}\"", link(world, request, page)));
        };
        if number > 1 {
            link("prevPage", number - 1);
        }
        if more && renamed {
            link("nextPage", number + 1);
        }
        pager + "},"
    };
    let envelope = match (all, form) {
        (true, _) => String::new(),
        (false, TrackerForm::Flat) => flat,
        (false, TrackerForm::Both) => pager() + &flat,
        (false, _) => pager(),
    };
    let mut answer = Answer::json(200, format!("{{{envelope}\"{name}\":[{}]}}", rows.join(",")).into_bytes());
    answer.rows = Some(name);
    Ok(answer)
}

/// The same request for another page.
fn link(world: &World, request: &Request, page: usize) -> String {
    let path = request.target.split('?').next().unwrap_or_default();
    let query = request.target.split_once('?').map_or("", |(_, query)| query);
    let others: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("page=")).collect();
    let base = world.base_url(request);
    let origin = base.strip_suffix(world.context_path.as_str()).unwrap_or(&base);
    let mut query = others.join("&");
    if !query.is_empty() {
        query.push('&');
    }
    format!("{origin}{path}?{query}page={page}")
}

/// Rows of one collection whose id a parameter names; `None` when it is absent.
pub(crate) fn named_row(world: &World, request: &Request, name: &str, collection: &str) -> Option<Result<u32, String>> {
    let id = request.param(name).filter(|id| !id.is_empty())?;
    let shelf = world.shelf(collection)?;
    Some(world.find(shelf, id).ok_or_else(|| id.to_owned()))
}

/// What a request means, deleted rows among it only on request.
fn selected(world: &World, request: &Request, user: &User, thing: Thing) -> Result<Vec<Record>, Refusal> {
    let form = world.dialect.tracker;
    let renamed = form == TrackerForm::Pager;
    let names_type = request.param("trackedEntityType").is_some();
    if thing == Thing::Event && request.param("program").is_none() && world.dialect.tracker_wants_program {
        let message = "Required parameter 'program' is not present.";
        return Err(Box::new(Answer::by_container(&world.dialect, request, 400, message)));
    }
    if thing == Thing::Enrollment && request.param("program").is_none() && world.dialect.tracker_wants_program {
        return Err(bad(world, "Program is mandatory"));
    }
    if thing == Thing::Entity && request.param("program").is_none() && !names_type {
        return Err(if renamed {
            bad(world, "Either `program`, `trackedEntityType` or `trackedEntities` should be specified")
        } else {
            plain(world, 409, "Either Program or Tracked entity type should be specified")
        });
    }
    if thing == Thing::Entity && renamed && names_type && request.param("program").is_some() {
        return Err(bad(world, "`program` and `trackedEntityType` cannot be specified simultaneously"));
    }
    let program = match named_row(world, request, "program", "programs") {
        Some(Err(id)) => return Err(bad(world, &format!("Program is specified but does not exist: {id}"))),
        Some(Ok(row)) => Some(row),
        None => None,
    };
    let units = Units::read(world, request, user, thing)?;
    let with_deleted = request.param("includeDeleted") == Some("true");
    if thing == Thing::Entity && names_type && with_deleted && world.dialect.deleted_entities_by_type_fail {
        return Err(sql_error(world, "42601"));
    }
    let mut records = match (thing, program) {
        (Thing::Event, Some(program)) => registry::events(world, program),
        (Thing::Enrollment, Some(program)) => registry::enrollments(world, program),
        (Thing::Entity, Some(program)) => registry::entities_of(world, program),
        (thing, None) => registry::all(world, thing),
    };
    if let Some(Ok(stage)) = named_row(world, request, "programStage", "programStages") {
        records.retain(|record| record.stage == stage);
    }
    let after = |name: &str| date(world, request, name);
    let day = MS_PER_DAY - 1;
    let (occurred, enrolled, updated) = match thing {
        Thing::Event => ((after("occurredAfter")?, after("occurredBefore")?), (None, None), after("updatedAfter")?),
        _ => ((None, None), (after("enrolledAfter")?, after("enrolledBefore")?), after("updatedAfter")?),
    };
    let within = request.param("updatedWithin").and_then(days_ms).map(|ms| world.clock.now_ms() - ms);
    let updated = updated.into_iter().chain(within).max();
    let lies = |ms: i64, (from, to): (Option<i64>, Option<i64>)| {
        from.is_none_or(|from| ms >= from) && to.is_none_or(|to| ms <= to + day)
    };
    records.retain(|record| {
        (with_deleted || !record.deleted)
            && units.hold(world, record.unit)
            && lies(record.occurred_ms, occurred)
            && lies(record.occurred_ms, enrolled)
            && updated.is_none_or(|since| record.updated_ms >= since)
    });
    Ok(records)
}

const MS_PER_DAY: i64 = 86_400_000;

fn days_ms(text: &str) -> Option<i64> {
    text.strip_suffix('d')?.parse::<i64>().ok().map(|days| days * MS_PER_DAY)
}

fn date(world: &World, request: &Request, name: &str) -> Result<Option<i64>, Refusal> {
    let Some(text) = request.param(name) else { return Ok(None) };
    if let Some(ms) = clock::parse_local(text) {
        return Ok(Some(ms));
    }
    let month = text.split('-').nth(1).and_then(|month| month.parse::<u32>().ok());
    let why = match month.filter(|month| !(1..=12).contains(month)) {
        Some(month) => {
            format!(" Cannot parse \"{text}\": Value {month} for monthOfYear must be in the range [1,12]")
        }
        None => String::new(),
    };
    Err(plain(world, 400, &format!("Value '{text}' is not valid for parameter {name}.{why}")))
}

/// Ids of what a program has and is not deleted, in the order of bytes.
pub(crate) fn truth(world: &World, thing: Thing, program: u32) -> Vec<String> {
    let records = match thing {
        Thing::Event => registry::events(world, program),
        Thing::Enrollment => registry::enrollments(world, program),
        Thing::Entity => registry::entities_of(world, program),
    };
    let mut ids: Vec<String> =
        records.iter().filter(|record| !record.deleted).map(|record| uid_text(&record.uid).to_owned()).collect();
    ids.sort_unstable();
    ids
}
