//! Answers `/api/dataValueSets`: scope, refusals and shapes by version.
//!
//! Sources: recorded `dv-*` (2.40, 2.42, 2.43). JSON only: CSV and XML are not asked for.

use crate::answer::{Answer, NO_STORE};
use crate::auth::User;
use crate::clock;
use crate::country::uid_text;
use crate::dialect::OutsideTree;
use crate::periods::Period;
use crate::request::Request;
use crate::rows::{Pen, push_text};
use crate::values::{self, Scope, Value};
use crate::world::World;

/// A refusal's code and sentence.
type Violation = (&'static str, String);

/// What a request names, by rows of the country.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// As they were written.
    pub(crate) sets_named: Vec<String>,
    pub(crate) sets: Vec<u32>,
    pub(crate) units_named: Vec<String>,
    pub(crate) units: Vec<u32>,
    pub(crate) periods: Vec<Period>,
    periods_named: Vec<String>,
    /// Days, both inclusive.
    pub(crate) dates: Option<(i64, i64)>,
    pub(crate) with_children: bool,
}

/// Values of a list parameter: repeated, or separated by commas.
pub(crate) fn listed(request: &Request, name: &str) -> Vec<String> {
    request.params(name).flat_map(|text| text.split(',')).filter(|text| !text.is_empty()).map(Into::into).collect()
}

fn rows_of(world: &World, collection: &str, ids: &[String]) -> Vec<u32> {
    let Some(shelf) = world.shelf(collection) else { return Vec::new() };
    ids.iter().filter_map(|id| world.find(shelf, id)).collect()
}

fn day(text: &str) -> Option<i64> {
    clock::parse_local(text).map(|ms| ms.div_euclid(86_400_000))
}

impl Asked {
    pub(crate) fn read(world: &World, request: &Request) -> Self {
        let sets_named = listed(request, "dataSet");
        let units_named = listed(request, "orgUnit");
        let periods_named = listed(request, "period");
        let with_children = request.param("children") == Some("true");
        let roots = rows_of(world, "organisationUnits", &units_named);
        let units = if with_children { below(world, &roots) } else { roots };
        Self {
            sets: rows_of(world, "dataSets", &sets_named),
            sets_named,
            units_named,
            units,
            periods: periods_named.iter().filter_map(|id| Period::parse(id)).collect(),
            periods_named,
            dates: request.param("startDate").and_then(day).zip(request.param("endDate").and_then(day)),
            with_children,
        }
    }

    /// Whether a period is asked for: named, or wholly inside the dates.
    pub(crate) fn wants(&self, period: &Period) -> bool {
        if !self.periods.is_empty() {
            return self.periods.contains(period);
        }
        self.dates.is_none_or(|(from, to)| from <= period.start && period.end <= to)
    }

    /// The first named unit that lies outside the user's branches.
    pub(crate) fn outside(&self, world: &World, user: &User) -> Option<&String> {
        let shelf = world.shelf("organisationUnits")?;
        let is_outside = |id: &&String| world.find(shelf, id).is_some_and(|unit| !world.may_see_unit(user, unit));
        self.units_named.iter().find(is_outside)
    }
}

/// Units and all below them, each once.
pub(crate) fn below(world: &World, roots: &[u32]) -> Vec<u32> {
    let Some(shelf) = world.shelf("organisationUnits") else { return Vec::new() };
    let alive = world.shelves[shelf].by_id.iter();
    let mut rows: Vec<u32> = alive
        .filter(|row| world.country.ancestors(**row).iter().any(|ancestor| roots.contains(ancestor)))
        .copied()
        .collect();
    rows.sort_unstable();
    rows
}

/// Milliseconds of `7d`, `12h`, `30m`, `5s`.
fn duration_ms(text: &str) -> Option<i64> {
    let unit_ms = match text.chars().last()? {
        'd' => 86_400_000,
        'h' => 3_600_000,
        'm' => 60_000,
        's' => 1000,
        _ => return None,
    };
    text[..text.len() - 1].parse::<i64>().ok().map(|number| number * unit_ms)
}

const E2001: &str = "At least one data element, data set or data element group must be specified";
const E2002: &str = "At least one period, start/end dates, last updated or last updated duration must be specified";
const E2006: &str = "At least one organisation unit or organisation unit group must be specified";

/// What is wrong with a request, in the order it is looked at.
fn violations(world: &World, request: &Request, asked: &Asked, elements: &[u32]) -> Vec<Violation> {
    let strict = world.dialect.rewritten_values;
    let names_elements =
        ["dataSet", "dataElement", "dataElementGroup"].iter().any(|name| !listed(request, name).is_empty());
    let names_units = !listed(request, "orgUnitGroup").is_empty() || !asked.units_named.is_empty();
    let since = request.param("lastUpdated").is_some() || request.param("lastUpdatedDuration").is_some();
    let mut found: Vec<Violation> = Vec::new();
    let mut add = |code, message: &str| found.push((code, message.to_owned()));
    // Unknown ids count as none given until the rewriting, and as nothing found since.
    if if strict { !names_elements } else { elements.is_empty() } {
        add("E2001", E2001);
    }
    if asked.periods.is_empty() && asked.dates.is_none() && !since {
        add("E2002", E2002);
    }
    if strict && !asked.periods.is_empty() && asked.dates.is_some() {
        add("E2003", "Both periods and start/end date cannot be specified");
    }
    if asked.periods.is_empty() && asked.dates.is_some_and(|(from, to)| from > to) {
        add("E2004", "Start date must be before end date");
    }
    if let Some(text) = request.param("lastUpdatedDuration").filter(|text| duration_ms(text).is_none()) {
        add("E2005", &format!("Duration is not valid: `{text}`"));
    }
    let no_units = asked.units.is_empty() && listed(request, "orgUnitGroup").is_empty();
    if if strict { !names_units } else { no_units } {
        add("E2006", E2006);
    }
    if let Some(text) = request.param("limit").filter(|text| text.starts_with('-')) {
        // The rewriting forgot to fill it in; recorded: `dv-negative-limit`.
        let shown = if strict { "{0}" } else { text };
        add("E2009", &format!("Limit cannot be less than zero: `{shown}`"));
    }
    found
}

/// `/api/dataValueSets`.
pub(crate) fn list(world: &World, request: &Request, user: &User) -> Answer {
    let dialect = &world.dialect;
    let asked = Asked::read(world, request);
    let refuse = |(code, message): &Violation| Answer::coded_message(dialect, 409, message, Some(code));
    if dialect.rewritten_values
        && let Some(bad) = asked.periods_named.iter().find(|id| Period::parse(id).is_none())
    {
        return Answer::message(dialect, 400, &format!("Invalid Period `{bad}`, failed to create date interval"));
    }
    let elements = elements(world, request, &asked);
    let found = violations(world, request, &asked, &elements);
    if let Some(violation) = if dialect.rewritten_values { found.first() } else { found.last() } {
        return refuse(violation);
    }
    if let Some(unit) = asked.outside(world, user) {
        return match dialect.outside_tree {
            OutsideTree::Nothing => typed(world, Answer::json(200, Vec::new())),
            OutsideTree::Refused if dialect.rewritten_values => {
                refuse(&("E2012", format!("User is not allowed to view org unit(s): `[{unit}]`")))
            }
            OutsideTree::Refused => refuse(&("E2012", format!("User is not allowed to view org unit: `{unit}`"))),
        };
    }
    let hoisted = Hoisted::new(world, request, &asked);
    let body = body(world, request, &asked, elements, &hoisted);
    let mut answer = typed(world, Answer::json(200, body));
    answer.rows = Some("dataValues");
    answer.streamed = true;
    if dialect.rewritten_values {
        let dates = match (asked.periods.is_empty(), request.param("startDate"), request.param("endDate")) {
            (true, Some(from), Some(to)) => format!("_{from}_{to}"),
            _ => String::new(),
        };
        answer = answer
            .with_header("Content-Disposition", &format!("attachment; filename=\"dataValues{dates}.json\""))
            .with_header("Content-Transfer-Encoding", "binary");
    }
    answer
}

/// Data values name their charset in every version.
fn typed(_world: &World, answer: Answer) -> Answer {
    answer.with_charset().with_header("Cache-Control", NO_STORE)
}

/// Data elements that are asked for, each once.
fn elements(world: &World, request: &Request, asked: &Asked) -> Vec<u32> {
    let mut rows: Vec<u32> = Vec::new();
    let mut add = |more: Vec<u32>| {
        more.into_iter().for_each(|row| {
            if !rows.contains(&row) {
                rows.push(row)
            }
        })
    };
    for set in &asked.sets {
        add(values::elements_of(world, *set));
    }
    if world.dialect.element_scope {
        add(rows_of(world, "dataElements", &listed(request, "dataElement")));
    }
    rows
}

/// What stands on the envelope, and whether the rows repeat it.
#[derive(Debug, Default)]
struct Hoisted {
    set: Option<String>,
    period: Option<String>,
    unit: Option<String>,
    combo: Option<String>,
    /// `completeDate`: on the envelope, null where there is none.
    completed: Option<Option<i64>>,
    /// The rows lack what the envelope says.
    only_there: bool,
}

impl Hoisted {
    fn new(world: &World, request: &Request, asked: &Asked) -> Self {
        let one = |ids: &[String]| match ids {
            [only] => Some(only.clone()),
            _ => None,
        };
        let set = one(&asked.sets_named);
        let unit = one(&asked.units_named);
        let period = one(&asked.periods_named);
        if world.dialect.rewritten_values {
            return Self {
                set,
                period,
                unit: unit.filter(|_| !asked.with_children),
                combo: one(&listed(request, "attributeOptionCombo")),
                completed: None,
                only_there: true,
            };
        }
        // All three or none; a subtree's root counts as one unit (recorded: `dv-children`).
        let (Some(set), Some(period), Some(unit)) = (set, period, unit) else { return Self::default() };
        let rows = asked.sets.first().zip(asked.periods.first()).zip(asked.units.first());
        let completed = rows
            .filter(|_| !asked.with_children)
            .and_then(|((set, period), unit)| values::completed_ms(world, *set, period, *unit));
        Self { set: Some(set), period: Some(period), unit: Some(unit), completed: Some(completed), ..Self::default() }
    }
}

/// Appends `"name":"value"` behind a comma where one is needed.
fn member(out: &mut Vec<u8>, name: &str, value: &str) {
    separate(out);
    push_text(out, name);
    out.push(b':');
    push_text(out, value);
}

fn separate(out: &mut Vec<u8>) {
    if !matches!(out.last(), None | Some(b'{' | b'[')) {
        out.push(b',');
    }
}

/// `"2024-02-01T08:00:00.000+0000"`: UTC, unlike dates elsewhere.
fn push_instant(out: &mut Vec<u8>, world: &World, local_ms: i64) {
    out.push(b'"');
    clock::write_local(out, local_ms - i64::from(world.clock.offset_minutes) * 60_000);
    out.extend_from_slice(b"+0000\"");
}

/// How ids are shown: as they are, or as codes.
struct Scheme<'a> {
    pen: Pen<'a>,
    elements_by_code: bool,
    units_by_code: bool,
}

impl<'a> Scheme<'a> {
    fn new(world: &'a World, request: &Request) -> Self {
        let by_code = |name: &str| {
            request.param(name).or(request.param("idScheme")).is_some_and(|scheme| scheme.eq_ignore_ascii_case("CODE"))
        };
        Self {
            pen: Pen::new(world, ""),
            elements_by_code: by_code("dataElementIdScheme"),
            units_by_code: by_code("orgUnitIdScheme"),
        }
    }

    /// `None` when the object lacks the code.
    fn shown(&mut self, collection: &str, row: u32) -> Option<String> {
        let world = self.pen.world;
        let shelf = world.shelf(collection)?;
        let by_code = match collection {
            "dataElements" => self.elements_by_code,
            "organisationUnits" => self.units_by_code,
            _ => false,
        };
        if !by_code {
            return Some(uid_text(world.shelves[shelf].id(row)).to_owned());
        }
        let code = *world.shelves[shelf].member("code")?;
        self.pen.text(shelf, row, &code)
    }
}

fn body(world: &World, request: &Request, asked: &Asked, elements: Vec<u32>, hoisted: &Hoisted) -> Vec<u8> {
    let dialect = &world.dialect;
    let mut scheme = Scheme::new(world, request);
    let mut out = Vec::from(*b"{");
    if let Some(set) = &hoisted.set {
        member(&mut out, "dataSet", set);
    }
    match hoisted.completed {
        Some(Some(ms)) => {
            separate(&mut out);
            out.extend_from_slice(b"\"completeDate\":");
            push_instant(&mut out, world, ms);
        }
        Some(None) if dialect.nulls_in_values => out.extend_from_slice(b",\"completeDate\":null"),
        _ => {}
    }
    if let Some(period) = &hoisted.period {
        member(&mut out, "period", period);
    }
    if let Some(unit) = &hoisted.unit {
        let shelf = world.shelf("organisationUnits");
        let row = shelf.and_then(|shelf| world.find(shelf, unit));
        let shown = row.and_then(|row| scheme.shown("organisationUnits", row));
        member(&mut out, "orgUnit", shown.as_deref().unwrap_or(unit));
    }
    if let Some(combo) = &hoisted.combo {
        member(&mut out, "attributeOptionCombo", combo);
    }
    if dialect.rewritten_values {
        for (name, by_code) in
            [("dataElementIdScheme", scheme.elements_by_code), ("orgUnitIdScheme", scheme.units_by_code)]
        {
            if by_code {
                member(&mut out, name, "CODE");
            }
        }
    }
    let before = out.len();
    separate(&mut out);
    out.extend_from_slice(b"\"dataValues\":[");
    let start = out.len();
    let limit = request.param("limit").and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
    let with_deleted = request.param("includeDeleted") == Some("true");
    let since = since_ms(world, request);
    let mut count = 0;
    let scope = Scope { elements, units: asked.units.clone() };
    values::each(
        world,
        &scope,
        |period| asked.wants(period),
        |value| {
            if (value.is_deleted() && !with_deleted) || since.is_some_and(|since| value.last_updated_ms() < since) {
                return true;
            }
            if count >= limit {
                return false;
            }
            count += 1;
            push_value(&mut out, world, &mut scheme, value, hoisted);
            true
        },
    );
    if out.len() == start && dialect.no_values_is_nothing {
        out.truncate(before);
    } else {
        out.push(b']');
    }
    out.push(b'}');
    out
}

/// What `lastUpdated` is compared with, local: until the rewriting the instant is written in UTC and taken for local
/// time.
fn since_ms(world: &World, request: &Request) -> Option<i64> {
    let local = match request.param("lastUpdatedDuration").and_then(duration_ms) {
        Some(ms) => world.clock.now_ms() - ms,
        None => request.param("lastUpdated").and_then(clock::parse_local)?,
    };
    let shift = if world.dialect.rewritten_values { 0 } else { i64::from(world.clock.offset_minutes) * 60_000 };
    Some(local - shift)
}

/// Appends one value with its whole key, or without what only the envelope says.
fn push_value(out: &mut Vec<u8>, world: &World, scheme: &mut Scheme<'_>, value: &Value<'_>, hoisted: &Hoisted) {
    let dialect = &world.dialect;
    separate(out);
    out.push(b'{');
    let id = |out: &mut Vec<u8>, scheme: &mut Scheme<'_>, name: &str, collection: &str, row: u32| match scheme
        .shown(collection, row)
    {
        Some(id) => member(out, name, &id),
        None if dialect.nulls_in_values => {
            separate(out);
            out.extend_from_slice(format!("\"{name}\":null").as_bytes());
        }
        None => {}
    };
    id(out, scheme, "dataElement", "dataElements", value.element);
    if hoisted.period.is_none() || !hoisted.only_there {
        member(out, "period", &value.period.id);
    }
    if hoisted.unit.is_none() || !hoisted.only_there {
        id(out, scheme, "orgUnit", "organisationUnits", value.unit);
    }
    id(out, scheme, "categoryOptionCombo", "categoryOptionCombos", value.combo);
    if hoisted.combo.is_none() || !hoisted.only_there {
        id(out, scheme, "attributeOptionCombo", "categoryOptionCombos", 0);
    }
    separate(out);
    out.extend_from_slice(b"\"value\":");
    text_by_version(out, world, &value.text());
    out.extend_from_slice(b",\"storedBy\":\"admin\",\"created\":");
    push_instant(out, world, value.created_ms());
    out.extend_from_slice(b",\"lastUpdated\":");
    push_instant(out, world, value.last_updated_ms());
    match value.comment() {
        Some(comment) => {
            out.extend_from_slice(b",\"comment\":");
            text_by_version(out, world, &comment);
        }
        None if dialect.nulls_in_values => out.extend_from_slice(b",\"comment\":null"),
        None => {}
    }
    if value.follow_up() || !dialect.rewritten_values {
        let name = if dialect.camel_follow_up { "followUp" } else { "followup" };
        out.extend_from_slice(format!(",\"{name}\":{}", value.follow_up()).as_bytes());
    }
    if value.is_deleted() {
        out.extend_from_slice(b",\"deleted\":true");
    }
    out.push(b'}');
}

/// Until the rewriting characters above U+FFFF are written as pairs of escapes (recorded: `dv-one`).
fn text_by_version(out: &mut Vec<u8>, world: &World, text: &str) {
    let start = out.len();
    push_text(out, text);
    if world.dialect.rewritten_values || text.chars().all(|c| u32::from(c) < 0x1_0000) {
        return;
    }
    let plain = String::from_utf8_lossy(&out[start..]).into_owned();
    out.truncate(start);
    for c in plain.chars() {
        let mut units = [0; 2];
        match c.encode_utf16(&mut units) {
            [high, low] => out.extend_from_slice(format!("\\u{high:04X}\\u{low:04X}").as_bytes()),
            _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Every value of a data set that is not deleted, with its whole key, as a server of this version writes it where nothing
/// is hoisted.
pub(crate) fn truth(world: &World, set: u32) -> Vec<String> {
    let request = Request::new("GET", "/", Vec::new(), "");
    let mut scheme = Scheme::new(world, &request);
    let units = world.shelf("organisationUnits").map_or_else(Vec::new, |shelf| {
        let mut rows = world.shelves[shelf].by_id.clone();
        rows.sort_unstable();
        rows
    });
    let scope = Scope { elements: values::elements_of(world, set), units };
    let kind = values::period_type(world, set);
    let periods = Period::all(kind);
    let mut rows = Vec::new();
    values::each(
        world,
        &scope,
        |period| periods.contains(period),
        |value| {
            if !value.is_deleted() {
                let mut out = Vec::new();
                push_value(&mut out, world, &mut scheme, value, &Hoisted::default());
                rows.push(String::from_utf8_lossy(&out).into_owned());
            }
            true
        },
    );
    rows
}
