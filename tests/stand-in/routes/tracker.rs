//! Answers `/api/tracker/{events,enrollments,trackedEntities}` (2.36 and later): parameters, refusals, envelopes and
//! orders by version, SQL errors of the heads among them.
//!
//! Sources: recorded `tracker-*` (2.40, 2.42, 2.43), `dhis2-api.md` §6 and §16. 2.41 is from §6 alone.

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::{hash_text, mix, uid_of, uid_text};
use crate::dialect::TrackerForm;
use crate::fields;
use crate::quirks;
use crate::registry::{self, Record, Thing};
use crate::request::Request;
use crate::rows::{Pen, push_text};
use crate::world::World;

const SIZE_MAX: i64 = 50_000;
const UNIT_FORM: &str = "UID must be an alphanumeric string of 11 characters starting with a letter, but was: ";

type Refusal = Box<Answer>;

/// `tracked entity`'s place among the paths.
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

fn singular(thing: Thing) -> &'static str {
    match thing {
        Thing::Event => "event",
        Thing::Enrollment => "enrollment",
        Thing::Entity => "trackedEntity",
    }
}

fn bad(world: &World, message: &str) -> Refusal {
    Box::new(Answer::coded_message(&world.dialect, 400, message, Some("E1003")))
}

fn plain(world: &World, status: u16, message: &str) -> Refusal {
    Box::new(Answer::message(&world.dialect, status, message))
}

/// The server's own SQL is wrong.
fn sql_error(world: &World, state: &str) -> Refusal {
    let message = format!("Query failed because of a syntax error (SqlState: {state})");
    let body = format!(
        "{{\"httpStatus\":\"Conflict\",\"httpStatusCode\":409,\"status\":\"ERROR\",\"message\":\"{message}\",\"devMessage\":\"SqlState: {state}\",\"errorCode\":\"E7145\"}}"
    );
    let _ = world;
    Box::new(Answer::json(409, body.into_bytes()).with_header("Cache-Control", "no-cache, private"))
}

fn is_uid(text: &str) -> bool {
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
fn named_row(world: &World, request: &Request, name: &str, collection: &str) -> Option<Result<u32, String>> {
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

/// Which units a request means.
enum Units {
    All,
    Below(Vec<u32>),
    ChildrenOf(Vec<u32>),
    Just(Vec<u32>),
    None,
}

impl Units {
    fn read(world: &World, request: &Request, user: &User, thing: Thing) -> Result<Self, Refusal> {
        let form = world.dialect.tracker;
        let renamed = form == TrackerForm::Pager;
        // Events kept their one `orgUnit`; the others got a list under another name and with another separator.
        let (name, separator) = match (thing, form) {
            (Thing::Event, _) => ("orgUnit", None),
            (_, TrackerForm::Flat) => ("orgUnit", Some(';')),
            (_, TrackerForm::Both) if request.param("orgUnits").is_none() => ("orgUnit", Some(';')),
            _ => ("orgUnits", Some(',')),
        };
        let mode = match form {
            TrackerForm::Flat => request.param("ouMode"),
            TrackerForm::Both => request.param("orgUnitMode").or(request.param("ouMode")),
            _ => request.param("orgUnitMode"),
        };
        let text = request.param(name);
        let ids: Vec<&str> = match (text, separator) {
            (None, _) => Vec::new(),
            (Some(text), None) => vec![text],
            (Some(text), Some(separator)) => text.split(separator).filter(|id| !id.is_empty()).collect(),
        };
        let shelf = world.shelf("organisationUnits").unwrap_or(0);
        let mut rows = Vec::new();
        for id in &ids {
            if renamed && id.is_empty() {
                return Err(plain(world, 400, &format!("{name} cannot be empty. {UNIT_FORM}")));
            }
            if renamed && !is_uid(id) {
                let value = text.unwrap_or_default();
                let message = format!("Value '{value}' is not valid for parameter {name}. {UNIT_FORM}{value}");
                return Err(plain(world, 400, &message));
            }
            let outside = |id: &str| {
                let whose = if renamed && thing == Thing::Event { "your" } else { "the" };
                let message = format!("Organisation unit is not part of {whose} search scope: {id}");
                Box::new(Answer::coded_message(&world.dialect, 403, &message, Some("E1006")))
            };
            let Some(row) = world.find(shelf, id) else {
                if id.is_empty() {
                    return Err(outside(id));
                }
                return Err(bad(
                    world,
                    &match (thing, renamed) {
                        (Thing::Event, false) => format!("Org unit is specified but does not exist: {id}"),
                        (Thing::Event, true) => format!("Organisation unit is specified but does not exist: {id}"),
                        _ => format!("Organisation unit does not exist: {id}"),
                    },
                ));
            };
            if !world.may_see_unit(user, row) {
                return Err(outside(id));
            }
            rows.push(row);
        }
        if renamed && mode == Some("ALL") && !rows.is_empty() {
            let message =
                "orgUnitMode ALL cannot be used with orgUnits. Please remove the orgUnit parameter and try again.";
            return Err(bad(world, message));
        }
        if rows.is_empty() && thing != Thing::Event {
            if form == TrackerForm::Flat && !matches!(mode, Some("ALL" | "ACCESSIBLE" | "CAPTURE")) {
                return Err(plain(world, 409, "At least one organisation unit must be specified"));
            }
            if renamed && let Some(mode @ ("SELECTED" | "CHILDREN" | "DESCENDANTS")) = mode {
                let message = match thing {
                    Thing::Entity => format!(
                        "At least one org unit or tracked entity is required for orgUnitMode: {mode}. Please add one of the two or use a different orgUnitMode."
                    ),
                    _ => format!(
                        "At least one org unit is required for orgUnitMode: {mode}. Please add one org unit or use a different orgUnitMode."
                    ),
                };
                return Err(bad(world, &message));
            }
        }
        Ok(match mode {
            // Recorded: at 2.40 it finds no enrollment when units are named besides.
            Some("ALL") if thing == Thing::Enrollment && !rows.is_empty() => Self::None,
            Some("ALL") => Self::All,
            _ if rows.is_empty() => Self::accessible(user),
            Some("DESCENDANTS") => Self::Below(rows),
            Some("CHILDREN") => Self::ChildrenOf(rows),
            _ => Self::Just(rows),
        })
    }

    fn accessible(user: &User) -> Self {
        if user.branches.is_empty() { Self::All } else { Self::Below(user.branches.iter().map(|at| at + 1).collect()) }
    }

    fn hold(&self, world: &World, unit: u32) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Just(rows) => rows.contains(&unit),
            Self::ChildrenOf(rows) => {
                rows.contains(&unit) || world.country.parent(unit).is_some_and(|parent| rows.contains(&parent))
            }
            Self::Below(rows) => world.country.ancestors(unit).iter().any(|ancestor| rows.contains(ancestor)),
        }
    }
}

/// What rows are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Uid,
    Created,
    Updated,
    Occurred,
    /// Something that is equal in all rows here.
    Constant,
}

#[derive(Debug)]
struct Order {
    key: Key,
    descending: bool,
}

const EVENT_FIELDS: &str = "assignedUser, assignedUserDisplayName, attributeOptionCombo, completedAt, completedBy, createdAt, createdAtClient, createdBy, deleted, enrolledAt, enrollment, enrollmentStatus, event, followUp, occurredAt, orgUnit, program, programStage, scheduledAt, status, storedBy, trackedEntity, updatedAt, updatedAtClient, updatedBy";
const ENROLLMENT_FIELDS: &str = "completedAt, createdAt, createdAtClient, enrolledAt, updatedAt, updatedAtClient";
const ENTITY_FIELDS: &str =
    "createdAt, createdAtClient, enrolledAt, inactive, trackedEntity, updatedAt, updatedAtClient";

impl Order {
    fn read(world: &World, request: &Request, thing: Thing) -> Result<Self, Refusal> {
        let Some(text) = request.param("order").filter(|text| !text.is_empty()) else {
            // What nobody ordered comes with the newest first, in every version (recorded: `*-default`).
            return Ok(Self { key: Key::Updated, descending: true });
        };
        let first = text.split(',').next().unwrap_or_default();
        let (property, direction) = first.split_once(':').unwrap_or((first, "asc"));
        let dialect = &world.dialect;
        let renamed = dialect.tracker == TrackerForm::Pager;
        let known = match thing {
            Thing::Event => EVENT_FIELDS,
            Thing::Enrollment => ENROLLMENT_FIELDS,
            Thing::Entity => ENTITY_FIELDS,
        };
        let accepted = known.split(", ").any(|field| field == property)
            || (thing == Thing::Enrollment && !renamed && property == "enrollment")
            || (is_uid(property) && thing != Thing::Enrollment);
        if !accepted {
            let end = "All of which can at most be specified once.";
            return Err(match thing {
                Thing::Event if renamed => {
                    let uids = if dialect.orders_by_element_only && !names_registration(world, request) {
                        "data element UIDs"
                    } else {
                        "data element and attribute UIDs"
                    };
                    let message = format!(
                        "order parameter is invalid. Cannot order by '{property}'. Supported are {uids} and fields '{EVENT_FIELDS}'. {end}"
                    );
                    bad(world, &message)
                }
                Thing::Event => bad(
                    world,
                    &format!("Order by property `{property}` is not supported. Supported are `{EVENT_FIELDS}`"),
                ),
                Thing::Enrollment if renamed => bad(
                    world,
                    &format!(
                        "order parameter is invalid. Cannot order by '{property}'. Supported fields are '{ENROLLMENT_FIELDS}'. {end}"
                    ),
                ),
                Thing::Enrollment => plain(
                    world,
                    400,
                    &format!(
                        "org.hibernate.QueryException: could not resolve property: {property} of: org.hisp.dhis.program.ProgramInstance"
                    ),
                ),
                Thing::Entity => bad(
                    world,
                    &format!(
                        "order parameter is invalid. Cannot order by '{property}'. Supported are attribute UIDs and fields '{ENTITY_FIELDS}'. {end}"
                    ),
                ),
            });
        }
        if thing == Thing::Enrollment
            && dialect.enrollment_dates_are_ambiguous
            && matches!(property, "createdAt" | "updatedAt")
        {
            let column = if property == "createdAt" { "created" } else { "lastupdated" };
            return Err(plain(
                world,
                409,
                &format!("ERROR: column reference \"{column}\" is ambiguous\n  Position: 1409"),
            ));
        }
        if thing == Thing::Entity && property == "trackedEntity" && dialect.entity_order_fails {
            return Err(sql_error(world, "42703"));
        }
        let key = match property {
            name if name == singular(thing) => Key::Uid,
            "createdAt" | "createdAtClient" => Key::Created,
            "updatedAt" | "updatedAtClient" => Key::Updated,
            "occurredAt" | "scheduledAt" | "enrolledAt" => Key::Occurred,
            _ => Key::Constant,
        };
        Ok(Self { key, descending: direction.eq_ignore_ascii_case("desc") })
    }

    /// Puts rows in order. Between equals it is by id, or by lot where a salt is given.
    fn sort(&self, records: &mut [Record], thing: Thing, salt: Option<u64>) {
        // Entities ordered by themselves were exact whatever the version.
        let salt = salt.filter(|_| self.key != Key::Uid && thing != Thing::Entity);
        records.sort_by_cached_key(|record| {
            let key = match self.key {
                Key::Created => record.created_ms,
                Key::Updated => record.updated_ms,
                Key::Occurred => record.occurred_ms,
                Key::Uid | Key::Constant => 0,
            };
            let lot = salt.map_or(0, |salt| mix(record.lot(7) ^ salt));
            (if self.descending { -key } else { key }, lot, record.uid)
        });
        if self.key == Key::Uid && self.descending {
            records.reverse();
        }
    }
}

fn names_registration(world: &World, request: &Request) -> bool {
    matches!(named_row(world, request, "program", "programs"), Some(Ok(program)) if registry::registers(program))
}

/// Writes records as a version does.
struct Writer<'a> {
    world: &'a World,
    wanted: Option<Vec<fields::Field>>,
    shuffle: Option<u64>,
    user: String,
}

impl<'a> Writer<'a> {
    fn new(world: &'a World, request: &Request) -> Self {
        let wanted = request.params("fields").collect::<Vec<_>>().join(",");
        let user = format!(
            "{{\"uid\":\"{}\",\"username\":\"admin\",\"firstName\":\"admin\",\"surname\":\"admin\"}}",
            uid_text(&uid_of(hash_text("admin")))
        );
        Self {
            world,
            wanted: (!wanted.is_empty()).then(|| fields::parse(&wanted)),
            shuffle: world.quirks.shuffle(request.number),
            user,
        }
    }

    /// One record with the members that were asked for; without a wish it lacks what has to be looked up elsewhere.
    fn selected(&self, thing: Thing, record: &Record) -> String {
        let json = match thing {
            Thing::Event => self.event(record),
            Thing::Enrollment => self.enrollment(record),
            Thing::Entity => self.entity(record),
        };
        match &self.wanted {
            Some(wanted) => fields::select(&json, wanted),
            None => {
                let without = match thing {
                    Thing::Event => "*,!relationships",
                    Thing::Enrollment => "*,!events,!relationships,!attributes",
                    Thing::Entity => "*,!relationships,!enrollments,!programOwners",
                };
                fields::select(&json, &fields::parse(without))
            }
        }
    }

    fn id(&self, collection: &str, row: u32) -> &str {
        let shelf = self.world.shelf(collection);
        shelf.map_or("", |shelf| {
            if row < self.world.shelves[shelf].base { uid_text(self.world.shelves[shelf].id(row)) } else { "" }
        })
    }

    fn unit_name(&self, row: u32) -> String {
        let mut name = String::new();
        if let Some(shelf) = self.world.shelf("organisationUnits") {
            self.world.push_name(&mut name, shelf, row);
        }
        quoted(&name)
    }

    /// A set, in the order of this request.
    fn set(&self, mut items: Vec<String>, of: &Record) -> String {
        if let Some(seed) = self.shuffle {
            quirks::shuffled(&mut items, mix(seed ^ of.lot(11)));
        }
        format!("[{}]", items.join(","))
    }

    fn stamps(&self, record: &Record) -> String {
        format!(
            "\"createdAt\":\"{}\",\"updatedAt\":\"{}\"",
            clock::local(record.created_ms),
            clock::local(record.updated_ms)
        )
    }

    fn people(&self) -> String {
        format!("\"createdBy\":{0},\"updatedBy\":{0}", self.user)
    }

    fn point(record: &Record) -> String {
        let lot = record.lot(3);
        format!(
            "\"geometry\":{{\"type\":\"Point\",\"coordinates\":[-{}.{:02},{}.10]}}",
            lot % 12,
            lot / 16 % 100,
            lot / 4096 % 9
        )
    }

    fn event(&self, record: &Record) -> String {
        let flat = self.world.dialect.tracker == TrackerForm::Flat;
        let single = record.entity.is_none();
        let mut out = format!(
            "{{\"event\":\"{}\",\"status\":\"{}\",\"program\":\"{}\",\"programStage\":\"{}\"",
            uid_text(&record.uid),
            if record.completed { "COMPLETED" } else { "ACTIVE" },
            self.id("programs", record.program),
            self.id("programStages", record.stage),
        );
        if let Some(entity) = record.entity {
            let enrollment = registry::enrollment(self.world, record.program, entity);
            out += &format!(
                ",\"enrollment\":\"{}\",\"trackedEntity\":\"{}\"",
                uid_text(&enrollment.uid),
                self.entity_id(entity)
            );
        } else if self.world.dialect.single_events_are_enrolled {
            // All of them in one enrollment that nobody made.
            out += &format!(
                ",\"enrollment\":\"{}\"",
                uid_text(&uid_of(mix(hash_text("nobody") ^ u64::from(record.program))))
            );
        }
        out += &format!(",\"orgUnit\":\"{}\"", self.id("organisationUnits", record.unit));
        if flat {
            out += &format!(",\"orgUnitName\":{}", self.unit_name(record.unit));
        }
        let occurred = clock::local(record.occurred_ms);
        out += &format!(",\"relationships\":[],\"occurredAt\":\"{occurred}\"");
        if !single || self.world.dialect.single_events_are_scheduled {
            out += &format!(",\"scheduledAt\":\"{occurred}\"");
        }
        out += if flat { ",\"followup\":false" } else { ",\"storedBy\":\"admin\",\"followUp\":false" };
        out += &format!(",\"deleted\":{},{}", record.deleted, self.stamps(record));
        out += &format!(
            ",\"attributeOptionCombo\":\"{}\",\"attributeCategoryOptions\":\"{}\"",
            self.id("categoryOptionCombos", 0),
            self.id("categoryOptions", 0)
        );
        if record.completed {
            out += &format!(",\"completedBy\":\"admin\",\"completedAt\":\"{}\"", clock::local(record.updated_ms));
        }
        out += &format!(",{}", Self::point(record));
        if flat {
            out += ",\"assignedUser\":{}";
        }
        out += &format!(",{},\"dataValues\":{},\"notes\":[]}}", self.people(), self.data_values(record, flat));
        out
    }

    fn data_values(&self, record: &Record, flat: bool) -> String {
        let elements = self.world.shelf("dataElements").map_or(0, |shelf| self.world.shelves[shelf].base);
        let values = (0..elements.min(4)).map(|at| {
            let lot = record.lot(20 + u64::from(at));
            let value = match at {
                0 => quoted(&format!("{}.50", lot % 100)),
                1 => quoted(&format!("OPT_{}", lot % 5)),
                2 => quoted(&format!("2023-{:02}-10", lot % 12 + 1)),
                _ => quoted(&format!("note \"{}\" 🏥\n", lot % 1000)),
            };
            let by = if flat { String::new() } else { ",\"storedBy\":\"admin\"".into() };
            let people = if flat { String::new() } else { format!(",{}", self.people()) };
            format!(
                "{{{}{by},\"providedElsewhere\":false,\"dataElement\":\"{}\",\"value\":{value}{people}}}",
                self.stamps(record),
                self.id("dataElements", elements - 1 - at)
            )
        });
        self.set(values.collect(), record)
    }

    fn entity_id(&self, entity: u32) -> String {
        let salt = mix(self.world.country.seed ^ hash_text("entities"));
        uid_text(&uid_of(mix(u64::from(entity) ^ salt))).to_owned()
    }

    fn enrollment(&self, record: &Record) -> String {
        let flat = self.world.dialect.tracker == TrackerForm::Flat;
        let entity = record.entity.unwrap_or_default();
        let begun = clock::local(record.occurred_ms);
        let mut out = format!("{{\"enrollment\":\"{}\",{}", uid_text(&record.uid), self.stamps(record));
        if record.deleted && !flat {
            out += &self.client_stamps(record);
        }
        out += &format!(
            ",\"trackedEntity\":\"{}\",\"program\":\"{}\",\"status\":\"{}\",\"orgUnit\":\"{}\"",
            self.entity_id(entity),
            self.id("programs", record.program),
            if record.completed { "COMPLETED" } else { "ACTIVE" },
            self.id("organisationUnits", record.unit),
        );
        if flat {
            out += &format!(",\"orgUnitName\":{}", self.unit_name(record.unit));
        }
        out += &format!(",\"enrolledAt\":\"{begun}\",\"occurredAt\":\"{begun}\",\"followUp\":false");
        if record.completed {
            out += &format!(",\"completedBy\":\"admin\",\"completedAt\":\"{}\"", clock::local(record.updated_ms));
        }
        out += &format!(",\"deleted\":{}", record.deleted);
        if !flat {
            out += ",\"storedBy\":\"admin\"";
        }
        out += &format!(",{}", self.people());
        if self.world.dialect.enrollments_have_combos {
            out += &format!(",\"attributeOptionCombo\":\"{}\"", self.id("categoryOptionCombos", 0));
        }
        let events = registry::events_of(self.world, record);
        let events = events.iter().filter(|event| event.deleted == record.deleted).map(|event| self.event(event));
        out += &format!(
            ",\"events\":{},\"relationships\":[],\"attributes\":{},\"notes\":[]}}",
            self.set(events.collect(), record),
            self.attributes(record, entity)
        );
        out
    }

    fn client_stamps(&self, record: &Record) -> String {
        format!(
            ",\"createdAtClient\":\"{}\",\"updatedAtClient\":\"{}\"",
            clock::local(record.created_ms),
            clock::local(record.updated_ms)
        )
    }

    fn attributes(&self, record: &Record, entity: u32) -> String {
        let flat = self.world.dialect.tracker == TrackerForm::Flat;
        // A deleted one has lost them since 2.41.
        if record.deleted && !flat {
            return "[]".into();
        }
        let shelf = self.world.shelf("trackedEntityAttributes");
        let count = shelf.map_or(0, |shelf| self.world.shelves[shelf].base);
        let mut pen = Pen::new(self.world, "");
        let items = (0..count.min(3)).map(|row| {
            let shelf = shelf.unwrap_or(0);
            let mut text = |name: &str| {
                let member = self.world.shelves[shelf].member(name).copied();
                member.and_then(|member| pen.text(shelf, row, &member))
            };
            let code = text("code").unwrap_or_else(|| format!("TEA_{row}"));
            let value = match row {
                0 => format!("Àda {entity}"),
                1 => format!("19{:02}-05-{:02}", entity % 60 + 40, entity % 28 + 1),
                _ => format!("{}.250", entity % 90),
            };
            let kind = text("valueType").unwrap_or_default();
            let name = text("name").unwrap_or_default();
            let by = if flat { "" } else { ",\"storedBy\":\"admin\"" };
            format!(
                "{{\"attribute\":\"{}\",\"code\":{},\"displayName\":{},{}{by},\"valueType\":\"{kind}\",\"value\":{}}}",
                self.id("trackedEntityAttributes", row),
                quoted(&code),
                quoted(&name),
                self.stamps(record),
                quoted(&value)
            )
        });
        self.set(items.collect(), record)
    }

    fn entity(&self, record: &Record) -> String {
        let entity = record.number;
        let unit = self.id("organisationUnits", record.unit);
        let mut out = format!(
            "{{\"trackedEntity\":\"{}\",\"trackedEntityType\":\"{}\",{}",
            uid_text(&record.uid),
            self.entity_type(),
            self.stamps(record)
        );
        if record.deleted && self.world.dialect.tracker != TrackerForm::Flat {
            out += &self.client_stamps(record);
        }
        out += &format!(
            ",\"orgUnit\":\"{unit}\",\"inactive\":false,\"deleted\":{},\"potentialDuplicate\":false,{},{}",
            record.deleted,
            Self::point(record),
            self.people()
        );
        let programs = self.world.shelf("programs").map_or(0, |shelf| self.world.shelves[shelf].base);
        let enrolled = (0..programs).filter(|program| {
            registry::registers(*program)
                && (*program == 1 || (entity + program) % 3 == 0)
                && (record.program == 0 || record.program == *program)
        });
        let enrolled: Vec<u32> = enrolled.collect();
        let enrollments =
            enrolled.iter().map(|program| self.enrollment(&registry::enrollment(self.world, *program, entity)));
        let owners = enrolled.iter().map(|program| {
            format!(
                "{{\"orgUnit\":\"{unit}\",\"trackedEntity\":\"{}\",\"program\":\"{}\"}}",
                uid_text(&record.uid),
                self.id("programs", *program)
            )
        });
        out += &format!(
            ",\"relationships\":[],\"attributes\":{},\"enrollments\":{},\"programOwners\":{}}}",
            self.attributes(record, entity),
            self.set(enrollments.collect(), record),
            self.set(owners.collect(), record)
        );
        out
    }

    fn entity_type(&self) -> &str {
        self.id("trackedEntityTypes", 0)
    }
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    push_text(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
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
