//! Answers `/api/sqlViews/{id}/data`: three kinds of views over the organisation units, cut into pages in memory.
//!
//! Sources: recorded `sv-*` (2.40, 2.42, 2.43). JSON only.

use crate::answer::Answer;
use crate::auth::User;
use crate::country::uid_text;
use crate::dialect::Container;
use crate::request::Request;
use crate::rows::{Pen, push_text};
use crate::world::World;

const UNIT_COLUMNS: &[&str] = &["uid", "name", "hierarchylevel", "openingdate", "geometry"];
/// What only text keeps.
const KINDS: &[(&str, &str)] =
    &[("n", "1.10"), ("b", "true"), ("z", ""), ("d", "2026-11-24"), ("t", "é\""), ("big", "12345678901234567890")];

fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    push_text(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}

/// What a view's row number makes it: a query with a variable, a view of all units, one row of many kinds.
fn grid(world: &World, request: &Request, row: u32) -> Result<(Vec<&'static str>, Vec<Vec<String>>), String> {
    if row % 3 == 2 {
        let (names, cells): (Vec<&str>, Vec<String>) =
            KINDS.iter().map(|(name, cell)| (*name, (*cell).to_owned())).unzip();
        return Ok((names, vec![cells]));
    }
    let shelf = world.shelf("organisationUnits").unwrap_or(0);
    let mut pen = Pen::new(world, "");
    let mut units = world.shelves[shelf].by_id.clone();
    units.sort_unstable();
    let level = request.params("var").find_map(|text| text.strip_prefix("level:"));
    if row.is_multiple_of(3) && level.is_none() {
        return Err("SQL query contains variables not provided in request: `[level]`".into());
    }
    let columns = if row.is_multiple_of(3) { &UNIT_COLUMNS[..3] } else { UNIT_COLUMNS };
    let mut rows = Vec::new();
    for unit in units {
        let mut text = |name: &str| {
            let member = world.shelves[shelf].member(name).copied();
            member.and_then(|member| pen.text(shelf, unit, &member)).unwrap_or_default()
        };
        let cells = [
            uid_text(world.shelves[shelf].id(unit)).to_owned(),
            text("name"),
            text("level"),
            text("openingDate").chars().take(10).collect(),
            String::new(),
        ];
        if row % 3 == 1 || level == Some(cells[2].as_str()) {
            rows.push(cells[..columns.len()].to_vec());
        }
    }
    Ok((columns.to_vec(), rows))
}

/// The data of a view.
pub(crate) fn data(world: &World, request: &Request, user: &User, id: &str) -> Answer {
    let dialect = &world.dialect;
    let shelf = world.shelf("sqlViews").unwrap_or(0);
    let refuse = |code: Option<&str>, message: &str| {
        let answer = Answer::coded_message(dialect, 409, message, code);
        // Jetty's errors name a charset once the answer has begun.
        if dialect.container == Container::Jetty { answer.with_charset() } else { answer }
    };
    let Some(row) = world.find(shelf, id) else {
        return Answer::coded_message(
            dialect,
            404,
            &format!("SqlView with id {id} could not be found."),
            Some("E1005"),
        );
    };
    if !user.superuser {
        let message = format!("Current user is not authorised to read data from SQL view: `{id}`");
        return refuse(Some("E4312"), &message);
    }
    let (columns, mut rows) = match grid(world, request, row) {
        Ok(grid) => grid,
        Err(message) => return refuse(Some("E4307"), &message),
    };
    let criteria = request.params("criteria").filter_map(|text| text.split_once(':'));
    let filters = request.params("filter").filter_map(|text| {
        let (column, rest) = text.split_once(':')?;
        Some((column, rest.strip_prefix("eq:")?))
    });
    for (column, wanted) in criteria.chain(filters) {
        let Some(at) = columns.iter().position(|name| *name == column) else {
            return unknown_column(world, column);
        };
        rows.retain(|row| row[at] == wanted);
    }
    let number = |name: &str, default: usize| {
        request.param(name).and_then(|text| text.parse().ok()).filter(|number| *number > 0).unwrap_or(default)
    };
    let (page, size) = (number("page", 1), number("pageSize", 50));
    let total = rows.len();
    let paged = request.param("paging") != Some("false") && request.param("skipPaging") != Some("true");
    let mut pager = String::new();
    if paged {
        let from = (page - 1).saturating_mul(size);
        if from > total {
            // A page beyond the last is no empty page (recorded: `sv-2-page`).
            let word = if dialect.container == Container::Tomcat { "or" } else { "/" };
            return refuse(None, &format!("Illegal start {word} end pos: {from}, {total}, {total}"));
        }
        rows = rows.into_iter().skip(from).take(size).collect();
        let pages = total.div_ceil(size);
        pager = format!("\"pager\":{{\"page\":{page},\"total\":{total},\"pageSize\":{size},\"pageCount\":{pages}}},");
    }
    let headers: Vec<String> = columns
        .iter()
        .map(|name| format!("{{\"name\":\"{name}\",\"column\":\"{name}\",\"type\":\"java.lang.String\",\"hidden\":false,\"meta\":false}}"))
        .collect();
    let mut name = String::new();
    world.push_name(&mut name, shelf, row);
    let cells: Vec<String> = rows
        .iter()
        .map(|row| format!("[{}]", row.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(",")))
        .collect();
    let body = format!(
        "{{{pager}\"listGrid\":{{\"title\":{},\"headers\":[{}],\"metaData\":{{}},\"rowContext\":{{}},\"width\":{},\"rows\":[{}],\"height\":{},\"headerWidth\":{}}}}}",
        quoted(&name),
        headers.join(","),
        if cells.is_empty() { 0 } else { columns.len() },
        cells.join(","),
        cells.len(),
        columns.len()
    );
    let mut answer = Answer::json(200, body.into_bytes()).with_charset().with_header("Cache-Control", "no-cache");
    answer.rows = Some("rows");
    answer
}

fn unknown_column(world: &World, column: &str) -> Answer {
    let jetty = world.dialect.container == Container::Jetty;
    let hint = if jetty {
        "SqlState: 42703".to_owned()
    } else {
        format!("ERROR: column \"{column}\" does not exist\n  Position: 41")
    };
    let body = format!(
        "{{\"httpStatus\":\"Conflict\",\"httpStatusCode\":409,\"status\":\"ERROR\",\"message\":\"Query failed because of a syntax error (SqlState: 42703)\",\"devMessage\":{},\"errorCode\":\"E7145\"}}",
        quoted(&hint)
    );
    let answer = Answer::json(409, body.into_bytes()).with_header("Cache-Control", "no-cache");
    if jetty { answer.with_charset() } else { answer }
}
