//! Makes tracked entities, their enrollments and events by formula: nothing stored, everything counted.
//!
//! Programs come in pairs: an even row is without registration and has one stage, an odd one is with registration and
//! has two. Every entity is enrolled in the first program with registration, one in three in each other one; an
//! enrollment has one event of the first stage and two of the second.

use crate::country::{Uid, hash_text, mix, uid_of};
use crate::world::World;

const MS_PER_DAY: i64 = 86_400_000;

/// The three things a tracker tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thing {
    Event,
    Enrollment,
    Entity,
}

/// One of them, by numbers; what it says follows from those.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) uid: Uid,
    pub(crate) number: u32,
    /// Number of the entity, where there is one.
    pub(crate) entity: Option<u32>,
    pub(crate) program: u32,
    /// Row of the stage, for events.
    pub(crate) stage: u32,
    pub(crate) unit: u32,
    pub(crate) deleted: bool,
    pub(crate) completed: bool,
    /// When it took place, or began: midnight, local civil milliseconds.
    pub(crate) occurred_ms: i64,
    pub(crate) created_ms: i64,
    pub(crate) updated_ms: i64,
}

impl Record {
    /// A number that only this record has; `salt` tells the questions about it apart.
    pub(crate) fn lot(&self, salt: u64) -> u64 {
        mix(hash_text(std::str::from_utf8(&self.uid).unwrap_or_default()) ^ salt.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }
}

fn count(world: &World, collection: &str) -> u32 {
    world.shelf(collection).map_or(0, |shelf| world.shelves[shelf].base)
}

/// Whether entities are enrolled in a program.
pub(crate) fn registers(program: u32) -> bool {
    program % 2 == 1
}

/// Stages of a program, by rows, in their order.
pub(crate) fn stages_of(program: u32, stages: u32) -> Vec<u32> {
    if stages == 0 {
        return Vec::new();
    }
    let first = program / 2 * 3;
    let rows: Vec<u32> = if registers(program) { vec![first + 1, first + 2] } else { vec![first] };
    let rows: Vec<u32> = rows.into_iter().filter(|row| *row < stages).collect();
    if rows.is_empty() { vec![program % stages] } else { rows }
}

/// The program a stage belongs to.
pub(crate) fn program_of(stage: u32, programs: u32, stages: u32) -> u32 {
    (0..programs).find(|program| stages_of(*program, stages).contains(&stage)).unwrap_or(0)
}

/// Later records were saved later; one in sixteen shares its moment with the one before, as imports leave it.
fn saved_ms(number: u32) -> i64 {
    let moment = if number % 16 == 15 { number - 1 } else { number };
    crate::clock::days(2025, 1, 10) * MS_PER_DAY + i64::from(moment) * 1000
}

fn record(world: &World, kind: &str, number: u32, entity: Option<u32>, program: u32) -> Record {
    let salt = mix(world.country.seed ^ hash_text(kind));
    let inner = if world.country.org_units < 2 { 0 } else { world.country.inner_units() };
    let leaves = world.country.org_units.saturating_sub(inner).max(1);
    // Who was enrolled somewhere is seen there.
    let home = entity.unwrap_or(number);
    let unit = inner + u32::try_from(mix(world.country.seed ^ u64::from(home)) % u64::from(leaves)).unwrap_or(0);
    let uid = uid_of(mix(u64::from(number) ^ salt));
    let lot = mix(salt ^ u64::from(number).rotate_left(32));
    let occurred = crate::clock::days(2023, 1, 1) + i64::try_from(lot % 730).unwrap_or(0);
    let saved = saved_ms(number);
    Record {
        uid,
        number,
        entity,
        program,
        stage: 0,
        unit,
        deleted: entity.map_or(number % 150 == 149, |entity| entity % 100 == 99),
        completed: (lot / 1024).is_multiple_of(2),
        occurred_ms: occurred * MS_PER_DAY,
        created_ms: saved,
        updated_ms: saved,
    }
}

/// Every tracked entity, deleted ones too, in the order they were saved.
pub(crate) fn entities(world: &World) -> Vec<Record> {
    (0..world.entities).map(|number| record(world, "entities", number, Some(number), 0)).collect()
}

/// Whether an entity is enrolled in a program.
pub(crate) fn is_enrolled(program: u32, entity: u32) -> bool {
    registers(program) && (program == 1 || (entity + program).is_multiple_of(3))
}

/// Id of an entity.
pub(crate) fn entity_uid(world: &World, entity: u32) -> Uid {
    uid_of(mix(u64::from(entity) ^ mix(world.country.seed ^ hash_text("entities"))))
}

/// Numbers of the entities enrolled in a program.
fn enrolled(world: &World, program: u32) -> impl Iterator<Item = u32> {
    (0..world.entities).filter(move |entity| is_enrolled(program, *entity))
}

/// The enrollment of an entity in a program.
pub(crate) fn enrollment(world: &World, program: u32, entity: u32) -> Record {
    record(world, "enrollments", program / 2 * world.entities + entity, Some(entity), program)
}

/// Every enrollment of a program, deleted ones too.
pub(crate) fn enrollments(world: &World, program: u32) -> Vec<Record> {
    enrolled(world, program).map(|entity| enrollment(world, program, entity)).collect()
}

/// Events of one enrollment.
pub(crate) fn events_of(world: &World, enrollment: &Record) -> Vec<Record> {
    let stages = stages_of(enrollment.program, count(world, "programStages"));
    (0..3)
        .filter_map(|at| {
            let stage = *stages.get(at.min(1)).or(stages.first())?;
            let number = enrollment.number * 3 + u32::try_from(at).unwrap_or(0);
            let event = record(world, "stage events", number, enrollment.entity, enrollment.program);
            Some(Record { stage, completed: at % 2 == 0, ..event })
        })
        .collect()
}

/// Every event of a program, deleted ones too.
pub(crate) fn events(world: &World, program: u32) -> Vec<Record> {
    if registers(program) {
        return enrollments(world, program).iter().flat_map(|enrollment| events_of(world, enrollment)).collect();
    }
    let per_program = world.entities * 3 + 1;
    let stages = stages_of(program, count(world, "programStages"));
    let stage = stages.first().copied().unwrap_or(0);
    (0..per_program)
        .map(|at| Record { stage, ..record(world, "events", program / 2 * per_program + at, None, program) })
        .collect()
}

/// Every event, or enrollment, of every program; every entity.
pub(crate) fn all(world: &World, thing: Thing) -> Vec<Record> {
    let programs = count(world, "programs");
    match thing {
        Thing::Entity => entities(world),
        Thing::Enrollment => (0..programs).flat_map(|program| enrollments(world, program)).collect(),
        Thing::Event => (0..programs).flat_map(|program| events(world, program)).collect(),
    }
}

/// Entities enrolled in a program.
pub(crate) fn entities_of(world: &World, program: u32) -> Vec<Record> {
    enrolled(world, program).map(|number| record(world, "entities", number, Some(number), program)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_belongs_to_the_program_that_has_it() {
        for (programs, stages) in [(2, 3), (3, 6), (5, 6), (4, 1)] {
            for program in 0..programs {
                for stage in stages_of(program, stages) {
                    let owner = program_of(stage, programs, stages);
                    assert!(stage < stages && stages_of(owner, stages).contains(&stage), "{program} {stage}");
                }
            }
        }
        assert_eq!((stages_of(0, 3), stages_of(1, 3)), (vec![0], vec![1, 2]));
    }
}
