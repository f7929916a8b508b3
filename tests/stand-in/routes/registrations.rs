//! Answers `/api/completeDataSetRegistrations`.
//!
//! Sources: recorded `reg*` (2.40, 2.42, 2.43).

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::uid_text;
use crate::dialect::{Container, OutsideTree};
use crate::periods::Period;
use crate::request::Request;
use crate::routes::data_values::{Asked, listed};
use crate::rows::push_text;
use crate::values;
use crate::world::World;

/// Completed data sets by unit, then period; never paged, `{}` when there are none.
pub(crate) fn list(world: &World, request: &Request, user: &User) -> Answer {
    let dialect = &world.dialect;
    let asked = Asked::read(world, request);
    let refuse = |code: &str, message: &str| Answer::coded_message(dialect, 409, message, Some(code));
    if asked.sets_named.is_empty() && dialect.container == Container::Jetty {
        let message = "Required request parameter &apos;dataSet&apos; for method parameter type Set is not present";
        return Answer::by_container(dialect, request, 400, message);
    }
    // Of several violations the last one is told.
    if asked.units.is_empty() && listed(request, "orgUnitGroup").is_empty() {
        return refuse("E2006", "At least one organisation unit or organisation unit group must be specified");
    }
    if asked.periods.is_empty() && asked.dates.is_none() && request.param("created").is_none() {
        return refuse(
            "E2002",
            "At least one period, start/end dates, last updated or last updated duration must be specified",
        );
    }
    if asked.sets.is_empty() {
        return refuse("E2013", "At least one data set must be specified");
    }
    if let Some(unit) = asked.outside(world, user) {
        return match dialect.outside_tree {
            OutsideTree::Nothing => Answer::json(200, Vec::new()).with_charset(),
            OutsideTree::Refused => refuse("E2012", &format!("User is not allowed to view org unit: `{unit}`")),
        };
    }
    let limit = request.param("limit").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    let mut rows: Vec<String> = Vec::new();
    let id =
        |collection: &str, row: u32| world.shelf(collection).map_or("", |shelf| uid_text(world.shelves[shelf].id(row)));
    for set in &asked.sets {
        let periods = Period::all(values::period_type(world, *set));
        for unit in &asked.units {
            for period in periods.iter().filter(|period| asked.wants(period)) {
                let Some(ms) = values::completed_ms(world, *set, period, *unit) else { continue };
                let mut named = Vec::new();
                push_text(&mut named, &period.id);
                rows.push(format!(
                    "{{\"period\":{},\"dataSet\":\"{}\",\"organisationUnit\":\"{}\",\"attributeOptionCombo\":\"{}\",\"date\":\"{}\",\"storedBy\":\"admin\",\"completed\":true}}",
                    String::from_utf8_lossy(&named),
                    id("dataSets", *set),
                    id("organisationUnits", *unit),
                    id("categoryOptionCombos", 0),
                    &clock::local(ms)[..10],
                ));
            }
        }
    }
    rows.truncate(limit);
    let body = match rows.is_empty() {
        true => "{}".to_owned(),
        false => format!("{{\"completeDataSetRegistrations\":[{}]}}", rows.join(",")),
    };
    let mut answer = Answer::json(200, body.into_bytes()).with_charset();
    answer.rows = Some("completeDataSetRegistrations");
    answer
}
