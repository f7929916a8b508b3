//! Answers `/api/analytics/{events,enrollments}/query/{program}`: a grid, its pager inside `metaData`, and pages that lose
//! rows.
//!
//! Sources: recorded `analytics-events-query*` and `analytics-enrollments-query*` (2.40, 2.42).

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::{mix, uid_text};
use crate::registry::{self, Record};
use crate::request::Request;
use crate::rows::{Pen, push_text};
use crate::world::World;

const MS_PER_DAY: i64 = 86_400_000;

/// What rows are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Events,
    Enrollments,
}

/// Name, title and type of each column.
type Column = (&'static str, &'static str, &'static str);

const EVENT_COLUMNS: &[Column] =
    &[("psi", "Event", "TEXT"), ("ps", "Program stage", "TEXT"), ("eventdate", "Event date", "DATETIME")];
const ENROLLMENT_COLUMNS: &[Column] = &[
    ("pi", "Enrollment", "TEXT"),
    ("tei", "Tracked entity", "TEXT"),
    ("enrollmentdate", "Enrollment date", "DATETIME"),
    ("incidentdate", "Incident date", "DATETIME"),
];
const PEOPLE_COLUMNS: &[Column] = &[
    ("storedby", "Stored by", "TEXT"),
    ("createdbydisplayname", "Created by", "TEXT"),
    ("lastupdatedbydisplayname", "Last updated by", "TEXT"),
    ("lastupdated", "Last updated on", "DATETIME"),
];
const PLACE_COLUMNS: &[Column] = &[
    ("geometry", "Geometry", "TEXT"),
    ("longitude", "Longitude", "NUMBER"),
    ("latitude", "Latitude", "NUMBER"),
    ("ouname", "Organisation unit name", "TEXT"),
    ("ounamehierarchy", "Organisation unit name hierarchy", "TEXT"),
    ("oucode", "Organisation unit code", "TEXT"),
    ("programstatus", "Program status", "TEXT"),
];

fn columns(table: Table) -> Vec<Column> {
    let mut all = Vec::new();
    match table {
        Table::Events => {
            all.extend(EVENT_COLUMNS);
            all.extend(PEOPLE_COLUMNS);
            all.push(("scheduleddate", "Scheduled date", "DATETIME"));
            all.extend(PLACE_COLUMNS);
            all.push(("eventstatus", "Event status", "TEXT"));
        }
        Table::Enrollments => {
            all.extend(ENROLLMENT_COLUMNS);
            all.extend(PEOPLE_COLUMNS);
            all.extend(PLACE_COLUMNS);
        }
    }
    all.push(("ou", "Organisation unit", "TEXT"));
    all
}

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    push_text(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

fn refuse(world: &World, code: &str, message: &str) -> Answer {
    Answer::coded_message(&world.dialect, 409, message, Some(code))
}

fn name_of(world: &World, collection: &str, row: u32) -> String {
    let mut name = String::new();
    if let Some(shelf) = world.shelf(collection) {
        world.push_name(&mut name, shelf, row);
    }
    name
}

fn id_of<'a>(world: &'a World, collection: &str, row: u32) -> &'a str {
    let shelf = world.shelf(collection).map(|shelf| &world.shelves[shelf]);
    shelf.filter(|shelf| row < shelf.base).map_or("", |shelf| uid_text(shelf.id(row)))
}

/// The grid.
pub(crate) fn query(world: &World, request: &Request, user: &User, table: Table, program: &str) -> Answer {
    let found = world.shelf("programs").and_then(|shelf| world.find(shelf, program));
    let Some(program_row) = found else {
        return refuse(world, "E7129", &format!("Program is specified but does not exist: `{program}`"));
    };
    let units = match units(world, request, user) {
        Ok(units) => units,
        Err(answer) => return *answer,
    };
    if world.without_analytics_tables {
        let name = if table == Table::Events { "event" } else { "enrollment" };
        let message = "Query failed because a referenced table does not exist. Please ensure analytics job was run (SqlState: 42P01)";
        let hint =
            format!("ERROR: relation \"analytics_{name}_{}\" does not exist\n  Position: 414", program.to_lowercase());
        let body = format!(
            "{{\"httpStatus\":\"Conflict\",\"httpStatusCode\":409,\"status\":\"ERROR\",\"message\":\"{message}\",\"devMessage\":{},\"errorCode\":\"E7144\"}}",
            quoted(&hint)
        );
        return Answer::json(409, body.into_bytes());
    }
    let day = |name: &str| request.param(name).and_then(clock::parse_local);
    let dates = day("startDate").zip(day("endDate"));
    let mut records = match table {
        Table::Events => registry::events(world, program_row),
        Table::Enrollments => registry::enrollments(world, program_row),
    };
    // Without dates events are never found, enrollments since 2.42 (recorded: `*-no-date`).
    let undated = table == Table::Enrollments && world.dialect.undated_enrollments_are_found;
    records.retain(|record| {
        !record.deleted
            && dates.map_or(undated, |(from, to)| (from..to + MS_PER_DAY).contains(&record.occurred_ms))
            && world.country.ancestors(record.unit).iter().any(|ancestor| units.contains(ancestor))
    });
    let wanted = |name: &str| request.param(name).map(|column| (column.to_lowercase(), name == "desc"));
    let order = wanted("asc").or(wanted("desc"));
    if matches!(&order, Some((column, _)) if matches!(column.as_str(), "psi" | "pi")) {
        return refuse(world, "E7145", "Query failed because of a syntax error (SqlState: 42703)");
    }
    let paged = request.param("paging") != Some("false");
    let number = |name: &str, default: usize| {
        request.param(name).and_then(|text| text.parse().ok()).filter(|number| *number > 0).unwrap_or(default)
    };
    let (page, size) = (number("page", 1), number("pageSize", 50));
    if let Some((_, descending)) = order {
        // Of equals it is decided anew for every page.
        let salt = if paged { u64::try_from(page).unwrap_or(0) } else { 0 };
        records.sort_by_cached_key(|record| {
            let key = if descending { -record.occurred_ms } else { record.occurred_ms };
            (key, mix(record.lot(9) ^ salt))
        });
    }
    let total = records.len();
    let shown = if paged { shown(table, page, size, total, order.is_some()) } else { 0..total };
    let columns = columns(table);
    let rows: Vec<String> = records[shown.clone()].iter().map(|record| row(world, table, record)).collect();
    let meta = if request.param("skipMeta") == Some("true") {
        String::new()
    } else {
        let pager = match paged {
            false => String::new(),
            true if table == Table::Events && request.param("totalPages") != Some("false") => {
                let pages = total.div_ceil(size);
                let told = page.min(pages.max(1));
                format!("\"pager\":{{\"page\":{told},\"total\":{total},\"pageSize\":{size},\"pageCount\":{pages}}},")
            }
            true => {
                let last = page.saturating_mul(size) >= total;
                format!("\"pager\":{{\"page\":{page},\"pageSize\":{size},\"isLastPage\":{last}}},")
            }
        };
        pager + &meta_data(world, program_row, &units)
    };
    let headers: Vec<String> = columns
        .iter()
        .map(|(name, title, kind)| {
            let class = match *kind {
                "DATETIME" => "java.time.LocalDateTime",
                "NUMBER" => "java.lang.Double",
                _ => "java.lang.String",
            };
            format!("{{\"name\":\"{name}\",\"column\":\"{title}\",\"valueType\":\"{kind}\",\"type\":\"{class}\",\"hidden\":false,\"meta\":true}}")
        })
        .collect();
    let width = if rows.is_empty() { 0 } else { columns.len() };
    let body = format!(
        "{{\"headers\":[{}],\"metaData\":{{{meta}}},\"rowContext\":{{}},\"width\":{width},\"rows\":[{}],\"height\":{},\"headerWidth\":{}}}",
        headers.join(","),
        rows.join(","),
        rows.len(),
        columns.len()
    );
    let mut answer =
        Answer::json(200, body.into_bytes()).with_charset().with_header("Cache-Control", "max-age=60, public");
    answer.rows = Some("rows");
    answer
}

/// Rows of a page. Of events that nobody ordered, every second page is the one before once more: half of them never come.
fn shown(table: Table, page: usize, size: usize, total: usize, ordered: bool) -> std::ops::Range<usize> {
    let from = (page - 1).saturating_mul(size).min(total);
    let to = from.saturating_add(size).min(total);
    if table == Table::Events && !ordered && page.is_multiple_of(2) {
        let again = from.saturating_sub(size);
        return again..again + (to - from);
    }
    from..to
}

/// Units of `dimension=ou:…`, by rows.
fn units(world: &World, request: &Request, user: &User) -> Result<Vec<u32>, Box<Answer>> {
    let shelf = world.shelf("organisationUnits").unwrap_or(0);
    let text = request.params("dimension").find_map(|text| text.strip_prefix("ou:")).unwrap_or_default();
    let rows: Vec<u32> = text.split(';').filter_map(|id| world.find(shelf, id)).collect();
    match rows.iter().find(|row| !world.may_see_unit(user, **row)) {
        Some(row) => {
            let id = id_of(world, "organisationUnits", *row);
            let message = format!("User: `{}` is not allowed to view org unit: `{id}`", user.name);
            Err(Box::new(refuse(world, "E7120", &message)))
        }
        None => Ok(rows),
    }
}

fn meta_data(world: &World, program: u32, units: &[u32]) -> String {
    let stages = world.shelf("programStages").map_or(0, |shelf| world.shelves[shelf].base);
    let item = |collection: &str, row: u32| {
        format!("\"{}\":{{\"name\":{}}}", id_of(world, collection, row), quoted(&name_of(world, collection, row)))
    };
    let mut items = vec!["\"ou\":{\"name\":\"Organisation unit\"}".to_owned(), item("programs", program)];
    items.extend(registry::stages_of(program, stages).into_iter().map(|stage| item("programStages", stage)));
    items.extend(units.iter().map(|unit| item("organisationUnits", *unit)));
    let ids: Vec<String> =
        units.iter().map(|unit| format!("\"{}\"", id_of(world, "organisationUnits", *unit))).collect();
    format!("\"items\":{{{}}},\"dimensions\":{{\"pe\":[],\"ou\":[{}]}}", items.join(","), ids.join(","))
}

/// `2023-01-17 00:00:00.0`, unlike dates elsewhere.
fn moment(ms: i64) -> String {
    let text = clock::local(ms).replace('T', " ");
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let fraction = fraction.trim_end_matches('0');
    format!("{seconds}.{}", if fraction.is_empty() { "0" } else { fraction })
}

fn row(world: &World, table: Table, record: &Record) -> String {
    let lot = record.lot(3);
    let (longitude, latitude) = (format!("-{}.{:02}", lot % 12, lot / 16 % 100), format!("{}.1", lot / 4096 % 9));
    let unit = id_of(world, "organisationUnits", record.unit);
    let hierarchy: Vec<String> = world
        .country
        .ancestors(record.unit)
        .into_iter()
        .map(|ancestor| name_of(world, "organisationUnits", ancestor))
        .collect();
    let code = world.shelf("organisationUnits").and_then(|shelf| {
        let member = *world.shelves[shelf].member("code")?;
        Pen::new(world, "").text(shelf, record.unit, &member)
    });
    let status = if record.completed { "COMPLETED" } else { "ACTIVE" };
    let stored_by = if world.dialect.analytics_name_people { "admin" } else { "" };
    let occurred = moment(record.occurred_ms);
    let uid = uid_text(&record.uid).to_owned();
    let mut cells = match table {
        Table::Events => vec![uid, id_of(world, "programStages", record.stage).to_owned(), occurred.clone()],
        Table::Enrollments => {
            let entity = record.entity.map(|entity| registry::entity_uid(world, entity));
            let entity = entity.map_or(String::new(), |uid| uid_text(&uid).to_owned());
            vec![uid, entity, occurred.clone(), occurred.clone()]
        }
    };
    let person = "admin, admin (admin)".to_owned();
    cells.extend([stored_by.to_owned(), person.clone(), person, moment(record.updated_ms)]);
    if table == Table::Events {
        cells.push(occurred);
        cells.push(format!("{{\"type\":\"Point\",\"coordinates\":[{longitude},{latitude}]}}"));
        cells.extend([longitude, latitude]);
    } else {
        cells.extend([String::new(), String::new(), String::new()]);
    }
    cells.push(name_of(world, "organisationUnits", record.unit));
    cells.push(hierarchy.join(" / "));
    cells.push(code.unwrap_or_default());
    cells.push(if table == Table::Events { "ACTIVE".to_owned() } else { status.to_owned() });
    if table == Table::Events {
        cells.push(status.to_owned());
    }
    cells.push(unit.to_owned());
    let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
    format!("[{}]", cells.join(","))
}
