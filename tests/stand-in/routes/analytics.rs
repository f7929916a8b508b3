//! Answers `/api/analytics`: sums of what was reported, by data element, period and unit.
//!
//! Sources: recorded `analytics-*` (2.40, 2.42, 2.43). JSON, and the dimensions `dx`, `pe` and
//! `ou` only.

use std::collections::BTreeMap;

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::{hash_text, mix, uid_text};
use crate::dialect::Container;
use crate::periods::Period;
use crate::request::Request;
use crate::routes::data_values::below;
use crate::rows::{Pen, push_text};
use crate::values::{self, Scope};
use crate::world::World;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    push_text(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

fn id_of<'a>(world: &'a World, collection: &str, row: u32) -> &'a str {
    world.shelf(collection).map_or("", |shelf| uid_text(world.shelves[shelf].id(row)))
}

fn name_of(world: &World, collection: &str, row: u32) -> String {
    let mut name = String::new();
    if let Some(shelf) = world.shelf(collection) {
        world.push_name(&mut name, shelf, row);
    }
    name
}

/// What a request asks for.
struct Asked {
    elements: Vec<u32>,
    periods: Vec<Period>,
    /// Relative periods as they were written, which the items name too.
    relative: Vec<String>,
    units: Vec<u32>,
    /// Levels that were asked for, from 1; the items name them.
    levels: Vec<u32>,
}

type Refusal = (&'static str, String);

fn read(world: &World, request: &Request, user: &User) -> Result<Asked, Refusal> {
    let mut asked = Asked {
        elements: Vec::new(),
        periods: Vec::new(),
        relative: Vec::new(),
        units: Vec::new(),
        levels: Vec::new(),
    };
    let dimensions: Vec<(&str, &str)> = request.params("dimension").filter_map(|text| text.split_once(':')).collect();
    if let Some((name, _)) = dimensions.iter().find(|(name, _)| !matches!(*name, "dx" | "pe" | "ou")) {
        return Err(("E7125", format!("Dimension identifier does not reference any dimension: `{name}`")));
    }
    for (name, text) in &dimensions {
        let items = || text.split(';').filter(|item| !item.is_empty());
        match *name {
            "dx" => {
                let shelf = world.shelf("dataElements").unwrap_or(0);
                asked.elements.extend(items().filter_map(|id| world.find(shelf, id)));
            }
            "pe" => {
                for item in items() {
                    match Period::parse(item) {
                        Some(period) => asked.periods.push(period),
                        None => {
                            asked.periods.extend(relative(world, item));
                            asked.relative.push(item.to_owned());
                        }
                    }
                }
            }
            _ => {
                asked.levels = items().filter_map(|item| item.strip_prefix("LEVEL-")?.parse().ok()).collect();
                asked.units = units(world, user, items().collect())?;
            }
        }
        let nothing = match *name {
            "dx" => asked.elements.is_empty(),
            "pe" => asked.periods.is_empty(),
            _ => asked.units.is_empty(),
        };
        if nothing {
            let message = format!("Dimension is present in query without any valid dimension options: `{name}`");
            return Err(("E7124", message));
        }
    }
    Ok(asked)
}

/// Periods that a word means at this moment.
fn relative(world: &World, word: &str) -> Vec<Period> {
    let (year, month, _) = clock::civil(world.clock.now_ms().div_euclid(86_400_000));
    let month_before = |back: i64| {
        let at = year * 12 + month - 1 - back;
        Period::parse(&format!("{}{:02}", at.div_euclid(12), at.rem_euclid(12) + 1))
    };
    let last_months = word.strip_prefix("LAST_").and_then(|rest| rest.strip_suffix("_MONTHS"));
    match (word, last_months.and_then(|number| number.parse::<i64>().ok())) {
        (_, Some(count)) => (1..=count).rev().filter_map(month_before).collect(),
        ("LAST_MONTH", _) => month_before(1).into_iter().collect(),
        ("THIS_MONTH", _) => month_before(0).into_iter().collect(),
        ("THIS_YEAR", _) => Period::parse(&year.to_string()).into_iter().collect(),
        ("LAST_YEAR", _) => Period::parse(&(year - 1).to_string()).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// Units by id, or all of a level below those that are named, or below the user's own.
fn units(world: &World, user: &User, items: Vec<&str>) -> Result<Vec<u32>, Refusal> {
    let shelf = world.shelf("organisationUnits").unwrap_or(0);
    let named: Vec<u32> = items.iter().filter_map(|id| world.find(shelf, id)).collect();
    if let Some(unit) = named.iter().find(|unit| !world.may_see_unit(user, **unit)) {
        let id = id_of(world, "organisationUnits", *unit);
        return Err(("E7120", format!("User: `{}` is not allowed to view org unit: `{id}`", user.name)));
    }
    let levels: Vec<usize> = items.iter().filter_map(|item| item.strip_prefix("LEVEL-")?.parse().ok()).collect();
    if levels.is_empty() {
        return Ok(named);
    }
    let roots = match (named.is_empty(), user.branches.is_empty()) {
        (false, _) => named,
        (true, true) => vec![0],
        (true, false) => user.branches.iter().map(|at| at + 1).collect(),
    };
    let level = |unit: &u32| levels.contains(&world.country.ancestors(*unit).len());
    Ok(below(world, &roots).into_iter().filter(level).collect())
}

/// Data elements whose type cannot be summed.
fn not_summable(world: &World, elements: &[u32]) -> Vec<u32> {
    let Some(shelf) = world.shelf("dataElements") else { return Vec::new() };
    let Some(member) = world.shelves[shelf].member("valueType").copied() else { return Vec::new() };
    let mut pen = Pen::new(world, "");
    let is_text = |row: &u32| pen.text(shelf, *row, &member).as_deref() == Some("TEXT");
    elements.iter().copied().filter(is_text).collect()
}

/// The grid.
pub(crate) fn query(world: &World, request: &Request, user: &User) -> Answer {
    let dialect = &world.dialect;
    let refuse = |(code, message): Refusal| Answer::coded_message(dialect, 409, &message, Some(code));
    // Once it has begun to answer, Jetty keeps the content type it began with.
    let late = |refusal: Refusal| {
        let answer = refuse(refusal);
        if dialect.container == Container::Jetty { answer.with_charset() } else { answer }
    };
    let asked = match read(world, request, user) {
        Ok(asked) => asked,
        Err(refusal) if refusal.0 == "E7120" => return late(refusal),
        Err(refusal) => return refuse(refusal),
    };
    if asked.elements.is_empty() {
        let message = "At least one data dimension item or data element group set dimension item must be specified";
        return late(("E7102", message.into()));
    }
    if asked.periods.is_empty() {
        return if dialect.container == Container::Tomcat {
            refuse(("E7146", "A end date was not specified in periods, dimensions, filters".into()))
        } else {
            late(("E7104", "At least one period as dimension or filter, or start and dates, must be specified".into()))
        };
    }
    let wrong = not_summable(world, &asked.elements);
    if !wrong.is_empty() {
        let ids: Vec<&str> = wrong.iter().map(|row| id_of(world, "dataElements", *row)).collect();
        let message = "Data elements must be of a value and aggregation type that allow aggregation";
        return late(("E7115", format!("{message}: `[{}]`", ids.join(", "))));
    }
    let mut rows = if world.without_analytics_tables { Vec::new() } else { sums(world, &asked) };
    // In no order at all.
    rows.sort_by_key(|row| mix(hash_text(row)));
    let header = |name: &str, title: &str, kind: &str, class: &str, meta: bool| {
        format!(
            "{{\"name\":\"{name}\",\"column\":\"{title}\",\"valueType\":\"{kind}\",\"type\":\"java.lang.{class}\",\"hidden\":false,\"meta\":{meta}}}"
        )
    };
    let headers = [
        header("dx", "Data", "TEXT", "String", true),
        header("pe", "Period", "TEXT", "String", true),
        header("ou", "Organisation unit", "TEXT", "String", true),
        header("value", "Value", "NUMBER", "Double", false),
    ];
    let meta = if request.param("skipMeta") == Some("true") { String::new() } else { meta_data(world, &asked) };
    let body = format!(
        "{{\"headers\":[{}],\"metaData\":{{{meta}}},\"rowContext\":{{}},\"width\":{},\"rows\":[{}],\"height\":{},\"headerWidth\":4}}",
        headers.join(","),
        if rows.is_empty() { 0 } else { 4 },
        rows.join(","),
        rows.len()
    );
    let mut answer =
        Answer::json(200, body.into_bytes()).with_charset().with_header("Cache-Control", "max-age=60, public");
    answer.rows = Some("rows");
    answer
}

/// One row for each element, period and unit that has anything.
fn sums(world: &World, asked: &Asked) -> Vec<String> {
    let mut sums: BTreeMap<(u32, usize, usize), f64> = BTreeMap::new();
    let units = below(world, &asked.units);
    // For each unit that reports, the places of those it counts for.
    let counts_for: BTreeMap<u32, Vec<usize>> = units
        .iter()
        .map(|unit| {
            let line = world.country.ancestors(*unit);
            let places = asked.units.iter().enumerate().filter(|(_, named)| line.contains(named));
            (*unit, places.map(|(place, _)| place).collect())
        })
        .collect();
    let scope = Scope { elements: asked.elements.clone(), units };
    let lies = |inner: &Period, outer: &Period| outer.start <= inner.start && inner.end <= outer.end;
    let wanted = |period: &Period| asked.periods.iter().any(|outer| lies(period, outer));
    values::each(world, &scope, wanted, |value| {
        let number = value.text().parse::<f64>();
        let (false, Ok(number)) = (value.is_deleted(), number) else { return true };
        for (place, outer) in asked.periods.iter().enumerate().filter(|(_, outer)| lies(value.period, outer)) {
            let _ = outer;
            for unit in &counts_for[&value.unit] {
                *sums.entry((value.element, place, *unit)).or_default() += number;
            }
        }
        true
    });
    sums.into_iter()
        .map(|((element, period, unit), sum)| {
            format!(
                "[\"{}\",{},\"{}\",\"{}\"]",
                id_of(world, "dataElements", element),
                quoted(&asked.periods[period].id),
                id_of(world, "organisationUnits", asked.units[unit]),
                (sum * 100.0).round() / 100.0
            )
        })
        .collect()
}

fn meta_data(world: &World, asked: &Asked) -> String {
    let mut items: Vec<String> = [("dx", "Data"), ("pe", "Period"), ("ou", "Organisation unit")]
        .iter()
        .map(|(id, name)| format!("\"{id}\":{{\"name\":\"{name}\"}}"))
        .collect();
    let item = |id: &str, name: &str| format!("{}:{{\"name\":{}}}", quoted(id), quoted(name));
    let combo = id_of(world, "categoryOptionCombos", 0);
    items.push(item(combo, "default"));
    items.extend(asked.relative.iter().map(|word| item(word, &word.replace('_', " ").to_lowercase())));
    items.extend(asked.periods.iter().map(|period| item(&period.id, &title(period))));
    let levels = world.shelf("organisationUnitLevels").map_or(0, |shelf| world.shelves[shelf].base);
    for level in asked.levels.iter().filter(|level| (1..=levels).contains(*level)) {
        let id = quoted(id_of(world, "organisationUnitLevels", level - 1));
        let name = quoted(&name_of(world, "organisationUnitLevels", level - 1));
        items.push(format!("{id}:{{\"uid\":{id},\"name\":{name}}}"));
    }
    for (collection, rows) in [("dataElements", &asked.elements), ("organisationUnits", &asked.units)] {
        items.extend(rows.iter().map(|row| item(id_of(world, collection, *row), &name_of(world, collection, *row))));
    }
    let ids = |collection: &str, rows: &[u32]| {
        rows.iter().map(|row| quoted(id_of(world, collection, *row))).collect::<Vec<_>>().join(",")
    };
    let periods: Vec<String> = asked.periods.iter().map(|period| quoted(&period.id)).collect();
    format!(
        "\"items\":{{{}}},\"dimensions\":{{\"dx\":[{}],\"pe\":[{}],\"ou\":[{}],\"co\":[\"{combo}\"]}}",
        items.join(","),
        ids("dataElements", &asked.elements),
        periods.join(","),
        ids("organisationUnits", &asked.units)
    )
}

/// `August 2026` for a month, the id for others.
fn title(period: &Period) -> String {
    let month = period.id.get(4..).filter(|rest| rest.len() == 2).and_then(|rest| rest.parse::<usize>().ok());
    match month.and_then(|month| MONTHS.get(month.checked_sub(1)?)) {
        Some(name) => format!("{name} {}", &period.id[..4]),
        None => period.id.clone(),
    }
}
