//! Answers `/api/{events,enrollments,trackedEntityInstances}`, which 2.42 no longer has.
//!
//! Sources: recorded `old-*` (2.40); members of rows are 2.40's in every version, but for whom
//! saved what, which came with 2.37.

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::{hash_text, uid_of, uid_text};
use crate::fields;
use crate::records::{Writer, quoted};
use crate::registry::{self, Record, Thing};
use crate::request::Request;
use crate::routes::data_values::below;
use crate::routes::tracker::{Refusal, named_row, plain};
use crate::routes::tracker_order::Order;
use crate::world::World;

/// What a path is about.
pub(crate) fn thing(name: &str) -> Option<Thing> {
    match name {
        "events" => Some(Thing::Event),
        "enrollments" => Some(Thing::Enrollment),
        "trackedEntityInstances" => Some(Thing::Entity),
        _ => None,
    }
}

/// One of the three lists.
pub(crate) fn list(world: &World, request: &Request, user: &User, thing: Thing) -> Answer {
    match page(world, request, user, thing) {
        Ok(answer) => answer,
        Err(refusal) => *refusal,
    }
}

fn page(world: &World, request: &Request, user: &User, thing: Thing) -> Result<Answer, Refusal> {
    let mut records = selected(world, request, user, thing)?;
    let is = |name: &str, value: &str| request.param(name) == Some(value);
    let all = is("skipPaging", "true") || is("paging", "false");
    let with_total = is("totalPages", "true");
    if thing == Thing::Enrollment
        && world.dialect.counts_enrollments_wrongly
        && with_total
        && !all
        && records.len() != 1
    {
        let message = match records.len() {
            0 => "No entity found for query".into(),
            found => format!("query did not return a unique result: {found}"),
        };
        return Err(plain(world, 409, &message));
    }
    let number = usize::try_from(crate::routes::number(world, request, "page", 1)?.max(1)).unwrap_or(1);
    let size = usize::try_from(crate::routes::number(world, request, "pageSize", 50)?.max(1)).unwrap_or(50);
    let salt = (!all).then(|| u64::try_from(number).unwrap_or(0));
    Order::old(request, thing).sort(&mut records, thing, salt);
    let total = records.len();
    let shown = if all {
        0..total
    } else {
        let from = (number - 1).saturating_mul(size).min(total);
        from..from.saturating_add(size).min(total)
    };
    let last = shown.end >= total;
    let writer = Old { world, writer: Writer::new(world, request), people: world.dialect.minor >= 37 };
    let wanted = request.params("fields").collect::<Vec<_>>().join(",");
    let wanted = match (wanted.as_str(), thing) {
        ("", Thing::Event) => "*,!relationships,!notes",
        ("", Thing::Enrollment) => "*,!relationships,!events,!attributes",
        ("", Thing::Entity) => "*,!relationships,!enrollments,!programOwners",
        (wanted, _) => wanted,
    };
    let wanted = fields::parse(wanted);
    let rows: Vec<String> = records[shown]
        .iter()
        .map(|record| {
            let json = match thing {
                Thing::Event => writer.event(record, false),
                Thing::Enrollment => writer.enrollment(record),
                Thing::Entity => writer.entity(record),
            };
            fields::select(&json, &wanted)
        })
        .collect();
    let (name, rows) = match thing {
        Thing::Event => ("events", rows),
        Thing::Enrollment => ("enrollments", rows),
        Thing::Entity => ("trackedEntityInstances", rows),
    };
    let pager = match (all, with_total, thing) {
        (true, ..) | (false, false, Thing::Entity) => String::new(),
        (false, true, _) => {
            let pages = total.div_ceil(size);
            format!("\"pager\":{{\"page\":{number},\"pageCount\":{pages},\"total\":{total},\"pageSize\":{size}}},")
        }
        // Page one of nothing, whatever is asked for.
        (false, false, _) if world.dialect.minor <= 35 => {
            format!("\"pager\":{{\"page\":1,\"pageCount\":0,\"total\":0,\"pageSize\":{size}}},")
        }
        (false, false, _) => format!("\"pager\":{{\"page\":{number},\"pageSize\":{size},\"isLastPage\":{last}}},"),
    };
    let mut answer = Answer::json(200, format!("{{{pager}\"{name}\":[{}]}}", rows.join(",")).into_bytes());
    answer.rows = Some(name);
    // This one names its charset (recorded: `old-tei`).
    Ok(if thing == Thing::Entity { answer.with_charset() } else { answer })
}

fn selected(world: &World, request: &Request, user: &User, thing: Thing) -> Result<Vec<Record>, Refusal> {
    let mode = request.param("ouMode");
    let name = if thing == Thing::Event { "orgUnit" } else { "ou" };
    let ids: Vec<&str> = request.param(name).unwrap_or_default().split(';').filter(|id| !id.is_empty()).collect();
    if thing == Thing::Entity && request.param("program").is_none() && request.param("trackedEntityType").is_none() {
        return Err(plain(world, 409, "Either Program or Tracked entity type should be specified"));
    }
    if thing != Thing::Event && ids.is_empty() && !matches!(mode, Some("ALL" | "ACCESSIBLE" | "CAPTURE")) {
        return Err(plain(world, 409, "At least one organisation unit must be specified"));
    }
    let shelf = world.shelf("organisationUnits").unwrap_or(0);
    let mut units = Vec::new();
    for id in &ids {
        let Some(unit) = world.find(shelf, id) else {
            return Err(plain(world, 409, &format!("Organisation unit does not exist: {id}")));
        };
        if !world.may_see_unit(user, unit) {
            return Err(plain(world, 409, &format!("Organisation unit is not part of the search scope: {id}")));
        }
        units.push(unit);
    }
    let units = match mode {
        Some("DESCENDANTS") => below(world, &units),
        Some("CHILDREN") => {
            let children = below(world, &units);
            let near = |unit: &u32| {
                units.contains(unit) || world.country.parent(*unit).is_some_and(|parent| units.contains(&parent))
            };
            children.into_iter().filter(near).collect()
        }
        _ => units,
    };
    let program = match named_row(world, request, "program", "programs") {
        Some(Err(id)) => return Err(plain(world, 409, &format!("Program is specified but does not exist: {id}"))),
        Some(Ok(row)) => Some(row),
        None => None,
    };
    let mut records = match (thing, program) {
        (Thing::Event, Some(program)) => registry::events(world, program),
        (Thing::Enrollment, Some(program)) => registry::enrollments(world, program),
        (Thing::Entity, Some(program)) => registry::entities_of(world, program),
        (thing, None) => registry::all(world, thing),
    };
    if let Some(Ok(stage)) = named_row(world, request, "programStage", "programStages") {
        records.retain(|record| record.stage == stage);
    }
    let with_deleted = request.param("includeDeleted") == Some("true");
    let date = |name: &str| request.param(name).and_then(clock::parse_local);
    let (from, to) = (date("startDate"), date("endDate"));
    let since = date(if thing == Thing::Enrollment { "lastUpdated" } else { "lastUpdatedStartDate" });
    let anywhere = ids.is_empty() || mode == Some("ALL");
    records.retain(|record| {
        (with_deleted || !record.deleted)
            && (if anywhere { world.may_see_unit(user, record.unit) } else { units.contains(&record.unit) })
            && from.is_none_or(|from| record.occurred_ms >= from)
            && to.is_none_or(|to| record.occurred_ms < to + 86_400_000)
            && since.is_none_or(|since| record.updated_ms >= since)
    });
    Ok(records)
}

/// Writes records under their old names.
struct Old<'a> {
    world: &'a World,
    writer: Writer<'a>,
    people: bool,
}

impl Old<'_> {
    fn stamps(record: &Record) -> String {
        format!(
            "\"created\":\"{}\",\"lastUpdated\":\"{}\"",
            clock::local(record.created_ms),
            clock::local(record.updated_ms)
        )
    }

    fn people(&self) -> String {
        if !self.people {
            return String::new();
        }
        let user = format!(
            "{{\"uid\":\"{}\",\"firstName\":\"admin\",\"surname\":\"admin\",\"username\":\"admin\"}}",
            uid_text(&uid_of(hash_text("admin")))
        );
        format!(",\"lastUpdatedByUserInfo\":{user},\"createdByUserInfo\":{user}")
    }

    fn place(&self, record: &Record) -> String {
        format!("\"orgUnit\":\"{}\"", self.writer.id("organisationUnits", record.unit))
    }

    fn completion(record: &Record) -> String {
        if record.completed {
            format!(",\"completedDate\":\"{}\",\"completedBy\":\"admin\"", clock::local(record.updated_ms))
        } else {
            String::new()
        }
    }

    /// An event, or one inside its enrollment, which says more of it.
    fn event(&self, record: &Record, inside: bool) -> String {
        let registered = record.entity.is_some();
        let occurred = clock::local(record.occurred_ms);
        let mut out = format!(
            "{{\"event\":\"{}\",\"program\":\"{}\",\"programStage\":\"{}\",{},\"orgUnitName\":{},\"status\":\"{}\",\"eventDate\":\"{occurred}\"",
            uid_text(&record.uid),
            self.writer.id("programs", record.program),
            self.writer.id("programStages", record.stage),
            self.place(record),
            self.writer.unit_name(record.unit),
            if record.completed { "COMPLETED" } else { "ACTIVE" },
        );
        if !inside {
            out += if registered {
                ",\"programType\":\"WITH_REGISTRATION\""
            } else {
                ",\"programType\":\"WITHOUT_REGISTRATION\""
            };
        }
        if let Some(entity) = record.entity {
            let enrollment = registry::enrollment(self.world, record.program, entity);
            out += &format!(
                ",\"dueDate\":\"{occurred}\",\"enrollment\":\"{}\",\"enrollmentStatus\":\"{}\",\"trackedEntityInstance\":\"{}\",\"followup\":false",
                uid_text(&enrollment.uid),
                if enrollment.completed { "COMPLETED" } else { "ACTIVE" },
                self.writer.entity_id(entity)
            );
        }
        out += &format!(
            ",{},\"deleted\":{},\"attributeOptionCombo\":\"{}\"{}",
            Self::stamps(record),
            record.deleted,
            self.writer.id("categoryOptionCombos", 0),
            Self::completion(record)
        );
        if inside {
            out += &format!(
                ",\"attributeCategoryOptions\":\"{}\",{}",
                self.writer.id("categoryOptions", 0),
                Writer::point(record)
            );
            out += &self.people();
        }
        let values = self.writer.values(record).into_iter().map(|(element, value)| {
            format!(
                "{{{},\"dataElement\":\"{element}\",\"value\":{value},\"providedElsewhere\":false}}",
                Self::stamps(record)
            )
        });
        out + &format!(
            ",\"dataValues\":{},\"notes\":[],\"relationships\":[]}}",
            self.writer.set(values.collect(), record)
        )
    }

    fn attributes(&self, record: &Record, entity: u32) -> String {
        let items = self.writer.attribute_values(entity).into_iter().map(|(id, code, name, kind, value)| {
            format!(
                "{{{},\"attribute\":\"{id}\",\"code\":{code},\"displayName\":{name},\"valueType\":\"{kind}\",\"value\":{value}}}",
                Self::stamps(record)
            )
        });
        self.writer.set(items.collect(), record)
    }

    fn enrollment(&self, record: &Record) -> String {
        let entity = record.entity.unwrap_or_default();
        let begun = clock::local(record.occurred_ms);
        let events = registry::events_of(self.world, record);
        let events = events.iter().filter(|event| event.deleted == record.deleted).map(|event| self.event(event, true));
        format!(
            "{{\"enrollment\":\"{}\",\"program\":\"{}\",{},{},\"orgUnitName\":{},\"trackedEntityInstance\":\"{}\",\"trackedEntityType\":\"{}\",\
             \"enrollmentDate\":\"{begun}\",\"incidentDate\":\"{begun}\",\"followup\":false,\"deleted\":{},\"status\":\"{}\"{}{},\
             \"notes\":[],\"relationships\":[],\"events\":{},\"attributes\":{}}}",
            uid_text(&record.uid),
            self.writer.id("programs", record.program),
            Self::stamps(record),
            self.place(record),
            self.writer.unit_name(record.unit),
            self.writer.entity_id(entity),
            self.writer.id("trackedEntityTypes", 0),
            record.deleted,
            if record.completed { "COMPLETED" } else { "ACTIVE" },
            Self::completion(record),
            self.people(),
            self.writer.set(events.collect(), record),
            self.attributes(record, entity)
        )
    }

    fn entity(&self, record: &Record) -> String {
        let entity = record.number;
        let programs = self.world.shelf("programs").map_or(0, |shelf| self.world.shelves[shelf].base);
        let enrolled: Vec<u32> = (0..programs).filter(|program| registry::is_enrolled(*program, entity)).collect();
        let enrollments =
            enrolled.iter().map(|program| self.enrollment(&registry::enrollment(self.world, *program, entity)));
        let owners = enrolled.iter().map(|program| {
            format!(
                "{{\"ownerOrgUnit\":\"{}\",\"program\":\"{}\",\"trackedEntityInstance\":\"{}\"}}",
                self.writer.id("organisationUnits", record.unit),
                self.writer.id("programs", *program),
                uid_text(&record.uid)
            )
        });
        let point = Writer::point(record);
        let coordinates = point.split("\"coordinates\":").nth(1).unwrap_or_default().trim_end_matches('}');
        format!(
            "{{\"trackedEntityInstance\":\"{}\",\"trackedEntityType\":\"{}\",{},{},\"coordinates\":{},\"featureType\":\"POINT\",{point},\
             \"potentialDuplicate\":false,\"inactive\":false,\"deleted\":{}{},\"programOwners\":{},\"enrollments\":{},\"relationships\":[],\"attributes\":{}}}",
            uid_text(&record.uid),
            self.writer.id("trackedEntityTypes", 0),
            Self::stamps(record),
            self.place(record),
            quoted(coordinates),
            record.deleted,
            self.people(),
            self.writer.set(owners.collect(), record),
            self.writer.set(enrollments.collect(), record),
            self.attributes(record, entity)
        )
    }
}
