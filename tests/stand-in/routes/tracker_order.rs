//! Reads and applies the order of a tracker request; refuses what a version refuses, its own SQL errors among them.
//!
//! Sources: recorded `tracker-*-order*` (2.40, 2.42, 2.43).

use crate::country::mix;
use crate::dialect::TrackerForm;
use crate::registry::{self, Record, Thing};
use crate::request::Request;
use crate::routes::tracker::{Refusal, bad, is_uid, named_row, plain, singular, sql_error};
use crate::world::World;

/// What rows are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Uid,
    Created,
    Updated,
    Occurred,
    /// As they lie in the database.
    Stored,
    /// Something that is equal in all rows here.
    Constant,
}

#[derive(Debug)]
pub(crate) struct Order {
    key: Key,
    descending: bool,
}

const EVENT_FIELDS: &str = "assignedUser, assignedUserDisplayName, attributeOptionCombo, completedAt, completedBy, createdAt, createdAtClient, createdBy, deleted, enrolledAt, enrollment, enrollmentStatus, event, followUp, occurredAt, orgUnit, program, programStage, scheduledAt, status, storedBy, trackedEntity, updatedAt, updatedAtClient, updatedBy";
const ENROLLMENT_FIELDS: &str = "completedAt, createdAt, createdAtClient, enrolledAt, updatedAt, updatedAtClient";
const ENTITY_FIELDS: &str =
    "createdAt, createdAtClient, enrolledAt, inactive, trackedEntity, updatedAt, updatedAtClient";

impl Order {
    pub(crate) fn read(world: &World, request: &Request, thing: Thing) -> Result<Self, Refusal> {
        let Some(text) = request.param("order").filter(|text| !text.is_empty()) else {
            return Ok(Self::default_of(world, request, thing));
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

    /// What nobody ordered: until 2.40 events by their last change and the others as they were stored, later the newest
    /// first (recorded: `*-default`).
    fn default_of(world: &World, request: &Request, thing: Thing) -> Self {
        match (world.dialect.tracker, thing) {
            (TrackerForm::Pager | TrackerForm::Both, Thing::Event)
                if world.dialect.orders_by_element_only && !names_registration(world, request) =>
            {
                Self { key: Key::Occurred, descending: true }
            }
            (TrackerForm::Pager | TrackerForm::Both, Thing::Enrollment | Thing::Entity) => {
                Self { key: Key::Stored, descending: true }
            }
            (_, Thing::Event) => Self { key: Key::Updated, descending: true },
            _ => Self { key: Key::Stored, descending: false },
        }
    }

    /// The order of the old lists: `created`, `lastUpdated`, `eventDate` and the like.
    pub(crate) fn old(request: &Request, thing: Thing) -> Self {
        let text = request.param("order").unwrap_or_default();
        let (property, direction) = text.split_once(':').unwrap_or((text, "asc"));
        let descending = direction.eq_ignore_ascii_case("desc");
        let key = match property {
            "event" | "enrollment" | "trackedEntityInstance" => Key::Uid,
            "created" => Key::Created,
            "lastUpdated" => Key::Updated,
            "eventDate" | "dueDate" | "enrollmentDate" => Key::Occurred,
            _ if thing == Thing::Event => return Self { key: Key::Updated, descending: true },
            _ => Key::Stored,
        };
        Self { key, descending }
    }

    /// Puts rows in order. Between equals it is by id, or by lot where a salt is given.
    pub(crate) fn sort(&self, records: &mut [Record], thing: Thing, salt: Option<u64>) {
        // Entities ordered by themselves were exact whatever the version.
        let salt = salt.filter(|_| !matches!(self.key, Key::Uid | Key::Stored) && thing != Thing::Entity);
        records.sort_by_cached_key(|record| {
            let key = match self.key {
                Key::Created => record.created_ms,
                Key::Updated => record.updated_ms,
                Key::Occurred => record.occurred_ms,
                Key::Stored => i64::from(record.number) + i64::from(record.program) * (1 << 33),
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
