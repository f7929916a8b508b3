//! Writes tracked entities, enrollments and events as each version does.
//!
//! Sources: recorded `tracker-*` (2.40, 2.42, 2.43); 2.41 as 2.42.

use crate::clock;
use crate::country::{hash_text, mix, uid_of, uid_text};
use crate::dialect::TrackerForm;
use crate::fields;
use crate::quirks;
use crate::registry::{self, Record, Thing};
use crate::request::Request;
use crate::rows::{Pen, push_text};
use crate::world::World;

/// Writes records as a version does.
pub(crate) struct Writer<'a> {
    world: &'a World,
    wanted: Option<Vec<fields::Field>>,
    shuffle: Option<u64>,
    user: String,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(world: &'a World, request: &Request) -> Self {
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
    pub(crate) fn selected(&self, thing: Thing, record: &Record) -> String {
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

    pub(crate) fn id(&self, collection: &str, row: u32) -> &str {
        let shelf = self.world.shelf(collection);
        shelf.map_or("", |shelf| {
            if row < self.world.shelves[shelf].base { uid_text(self.world.shelves[shelf].id(row)) } else { "" }
        })
    }

    pub(crate) fn unit_name(&self, row: u32) -> String {
        let mut name = String::new();
        if let Some(shelf) = self.world.shelf("organisationUnits") {
            self.world.push_name(&mut name, shelf, row);
        }
        quoted(&name)
    }

    /// A set, in the order of this request.
    pub(crate) fn set(&self, mut items: Vec<String>, of: &Record) -> String {
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

    pub(crate) fn point(record: &Record) -> String {
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
        let by = if flat { "" } else { ",\"storedBy\":\"admin\"" };
        let people = if flat { String::new() } else { format!(",{}", self.people()) };
        let values = self.values(record).into_iter().map(|(element, value)| {
            format!(
                "{{{}{by},\"providedElsewhere\":false,\"dataElement\":\"{element}\",\"value\":{value}{people}}}",
                self.stamps(record),
            )
        });
        self.set(values.collect(), record)
    }

    /// Data elements and values of an event, the values as JSON.
    pub(crate) fn values(&self, record: &Record) -> Vec<(String, String)> {
        let elements = self.world.shelf("dataElements").map_or(0, |shelf| self.world.shelves[shelf].base);
        (0..elements.min(4))
            .map(|at| {
                let lot = record.lot(20 + u64::from(at));
                let value = match at {
                    0 => format!("{}.50", lot % 100),
                    1 => format!("OPT_{}", lot % 5),
                    2 => format!("2023-{:02}-10", lot % 12 + 1),
                    _ => format!("note \"{}\" 🏥\n", lot % 1000),
                };
                (self.id("dataElements", elements - 1 - at).to_owned(), quoted(&value))
            })
            .collect()
    }

    pub(crate) fn entity_id(&self, entity: u32) -> String {
        uid_text(&registry::entity_uid(self.world, entity)).to_owned()
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
        let by = if flat { "" } else { ",\"storedBy\":\"admin\"" };
        let items = self.attribute_values(entity).into_iter().map(|(id, code, name, kind, value)| {
            format!(
                "{{\"attribute\":\"{id}\",\"code\":{code},\"displayName\":{name},{}{by},\"valueType\":\"{kind}\",\"value\":{value}}}",
                self.stamps(record),
            )
        });
        self.set(items.collect(), record)
    }

    /// Attributes of an entity: id, code, name, value type and value; all but id and type as JSON.
    pub(crate) fn attribute_values(&self, entity: u32) -> Vec<(String, String, String, String, String)> {
        let Some(shelf) = self.world.shelf("trackedEntityAttributes") else { return Vec::new() };
        let mut pen = Pen::new(self.world, "");
        (0..self.world.shelves[shelf].base.min(3))
            .map(|row| {
                let mut text = |name: &str| {
                    let member = self.world.shelves[shelf].member(name).copied();
                    member.and_then(|member| pen.text(shelf, row, &member))
                };
                let code = text("code").unwrap_or_else(|| format!("TEA_{row}"));
                let (kind, name) = (text("valueType").unwrap_or_default(), text("name").unwrap_or_default());
                let value = match row {
                    0 => format!("Àda {entity}"),
                    1 => format!("19{:02}-05-{:02}", entity % 60 + 40, entity % 28 + 1),
                    _ => format!("{}.250", entity % 90),
                };
                let id = self.id("trackedEntityAttributes", row).to_owned();
                (id, quoted(&code), quoted(&name), kind, quoted(&value))
            })
            .collect()
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
            registry::is_enrolled(*program, entity) && (record.program == 0 || record.program == *program)
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

/// A text as JSON.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = Vec::new();
    push_text(&mut out, text);
    String::from_utf8_lossy(&out).into_owned()
}
