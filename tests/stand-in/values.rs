//! Makes what was reported by formula: data values and completed data sets, nothing stored, everything counted.
//!
//! A data element is reported for the period types of all data sets that hold it, by the units without children.

use crate::collections::Kind;
use crate::country::{hash_text, mix};
use crate::periods::Period;
use crate::rows::Pen;
use crate::world::World;

const MS_PER_DAY: i64 = 86_400_000;

/// Key and number of one value.
#[derive(Debug, Clone)]
pub(crate) struct Value<'a> {
    pub(crate) element: u32,
    pub(crate) period: &'a Period,
    pub(crate) unit: u32,
    /// Row of the category option combo.
    pub(crate) combo: u32,
    hash: u64,
}

impl Value<'_> {
    fn lot(&self, salt: u64) -> u64 {
        mix(self.hash ^ salt.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// Deleted softly: shown only to who asks for such.
    pub(crate) fn is_deleted(&self) -> bool {
        self.lot(1).is_multiple_of(60)
    }

    /// The value as text: numbers that only text keeps, line breaks, other scripts.
    pub(crate) fn text(&self) -> String {
        let lot = self.lot(2);
        let number = lot / 64 % 1000;
        match lot % 32 {
            0 => format!("{number}.10"),
            1 => format!("-{number}"),
            2 => "0".into(),
            3 => format!("té'xt \"{number}\" <a>\\n"),
            4 => format!("long\nline 🏥 {}", "x".repeat(40)),
            5 => "true".into(),
            6 => "2023-10-26".into(),
            7 => "12345678901234567890.123".into(),
            _ => format!("{number}.{:02}", lot % 90 + 10),
        }
    }

    /// A comment, for one value in twenty.
    pub(crate) fn comment(&self) -> Option<String> {
        let lot = self.lot(3);
        lot.is_multiple_of(20).then(|| format!("checked “{}”\n, ok", lot / 32 % 9))
    }

    pub(crate) fn follow_up(&self) -> bool {
        self.lot(4).is_multiple_of(40)
    }

    /// When it was first saved, local civil milliseconds: within the month after its period.
    pub(crate) fn created_ms(&self) -> i64 {
        let spread = i64::try_from(self.lot(5) % (28 * 86_400)).unwrap_or(0);
        (self.period.end + 1) * MS_PER_DAY + spread * 1000
    }

    /// When it was last saved.
    pub(crate) fn last_updated_ms(&self) -> i64 {
        let lot = self.lot(6);
        let later = if lot.is_multiple_of(4) { i64::try_from(lot / 8 % (60 * 86_400)).unwrap_or(0) } else { 0 };
        self.created_ms() + later * 1000
    }
}

/// What is asked for, by rows of the country.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    pub(crate) elements: Vec<u32>,
    pub(crate) units: Vec<u32>,
}

/// Units that report: those without children.
pub(crate) fn reports(world: &World, unit: u32) -> bool {
    unit >= world.country.inner_units() || world.country.org_units < 2
}

/// Data elements of a data set, by rows.
pub(crate) fn elements_of(world: &World, set: u32) -> Vec<u32> {
    let Some(shelf) = world.shelf("dataSets") else { return Vec::new() };
    match world.shelves[shelf].member("dataSetElements").map(|member| member.kind) {
        Some(Kind::SetElements(most)) => Pen::new(world, "").set_elements(shelf, set, most),
        _ => Vec::new(),
    }
}

/// A data set's period type.
pub(crate) fn period_type(world: &World, set: u32) -> &'static str {
    let shelf = world.shelf("dataSets").and_then(|shelf| world.shelves[shelf].member("periodType"));
    match shelf.map(|member| member.kind) {
        Some(Kind::Turn(words)) => words[set as usize % words.len()],
        _ => "Monthly",
    }
}

/// Periods and category option combos a data element is reported by: those of the data sets that hold it.
fn reported_by(world: &World, element: u32) -> Vec<(&'static str, Vec<u32>)> {
    let count = |collection: &str| world.shelf(collection).map_or(0, |shelf| world.shelves[shelf].base);
    let combos = count("categoryOptionCombos");
    let mut by: Vec<(&'static str, Vec<u32>)> = Vec::new();
    for set in 0..count("dataSets") {
        if !elements_of(world, set).contains(&element) {
            continue;
        }
        let kind = period_type(world, set);
        if by.iter().any(|(known, _)| *known == kind) {
            continue;
        }
        // Quarterly ones are broken down, the others have the default combo, which is row 0.
        let broken_down = kind == "Quarterly" && combos > 2;
        by.push((kind, if broken_down { (1..combos.min(5)).collect() } else { vec![0] }));
    }
    by
}

/// Calls `each` for every value of a scope whose period passes, by element, period, unit and combo, until it says stop.
pub(crate) fn each(
    world: &World,
    scope: &Scope,
    wanted: impl Fn(&Period) -> bool,
    mut each: impl FnMut(&Value<'_>) -> bool,
) {
    let salt = mix(world.country.seed ^ hash_text("dataValues"));
    for element in &scope.elements {
        for (kind, combos) in reported_by(world, *element) {
            for period in Period::all(kind).iter().filter(|period| wanted(period)) {
                for unit in scope.units.iter().filter(|unit| reports(world, **unit)) {
                    for combo in &combos {
                        let key = mix(salt ^ u64::from(*element)).rotate_left(9) ^ u64::from(*unit);
                        let hash = mix(mix(key) ^ hash_text(&period.id) ^ u64::from(*combo).rotate_left(40));
                        let value = Value { element: *element, period, unit: *unit, combo: *combo, hash };
                        if hash % 100 < 85 && !each(&value) {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// When a data set was completed for a period and a unit, local civil milliseconds; `None` when it was not.
pub(crate) fn completed_ms(world: &World, set: u32, period: &Period, unit: u32) -> Option<i64> {
    let fits = Period::all(period_type(world, set)).contains(period) && reports(world, unit);
    let salt = mix(world.country.seed ^ hash_text("registrations"));
    let hash = mix(mix(salt ^ u64::from(set)) ^ u64::from(unit) ^ hash_text(&period.id));
    // Only monthly reports are completed here, three in four.
    let completed = fits && period_type(world, set) == "Monthly" && !hash.is_multiple_of(4);
    completed.then(|| (period.end + 3) * MS_PER_DAY + i64::try_from(hash % 86_400).unwrap_or(0) * 1000)
}
