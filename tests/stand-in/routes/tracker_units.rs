//! Reads which units a tracker request means: names, separators, modes and refusals by version.
//!
//! Sources: recorded `tracker-*-ou-*`, `-bad-ou`, `-half`, `-mode-*`, `-other-*` (2.40, 2.42, 2.43).

use crate::answer::Answer;
use crate::auth::User;
use crate::dialect::TrackerForm;
use crate::registry::Thing;
use crate::request::Request;
use crate::routes::tracker::{Refusal, bad, is_uid, plain};
use crate::world::World;

const UNIT_FORM: &str = "UID must be an alphanumeric string of 11 characters starting with a letter, but was: ";

/// Which units a request means.
pub(crate) enum Units {
    All,
    Below(Vec<u32>),
    ChildrenOf(Vec<u32>),
    Just(Vec<u32>),
    None,
}

impl Units {
    pub(crate) fn read(world: &World, request: &Request, user: &User, thing: Thing) -> Result<Self, Refusal> {
        let form = world.dialect.tracker;
        let renamed = form == TrackerForm::Pager;
        // Events kept their one `orgUnit`; the others got a list under another name and with another separator.
        let (name, separator) = match (thing, form) {
            (Thing::Event, _) => ("orgUnit", None),
            (_, TrackerForm::Flat) => ("orgUnit", Some(';')),
            (_, TrackerForm::Both) if request.param("orgUnits").is_none() => ("orgUnit", Some(';')),
            _ => ("orgUnits", Some(',')),
        };
        let mode = match form {
            TrackerForm::Flat => request.param("ouMode"),
            TrackerForm::Both => request.param("orgUnitMode").or(request.param("ouMode")),
            _ => request.param("orgUnitMode"),
        };
        let text = request.param(name);
        let ids: Vec<&str> = match (text, separator) {
            (None, _) => Vec::new(),
            (Some(text), None) => vec![text],
            (Some(text), Some(separator)) => text.split(separator).filter(|id| !id.is_empty()).collect(),
        };
        let shelf = world.shelf("organisationUnits").unwrap_or(0);
        let mut rows = Vec::new();
        for id in &ids {
            if renamed && id.is_empty() {
                return Err(plain(world, 400, &format!("{name} cannot be empty. {UNIT_FORM}")));
            }
            if renamed && !is_uid(id) {
                let value = text.unwrap_or_default();
                let message = format!("Value '{value}' is not valid for parameter {name}. {UNIT_FORM}{value}");
                return Err(plain(world, 400, &message));
            }
            let outside = |id: &str| {
                let whose = if renamed && thing == Thing::Event { "your" } else { "the" };
                let message = format!("Organisation unit is not part of {whose} search scope: {id}");
                Box::new(Answer::coded_message(&world.dialect, 403, &message, Some("E1006")))
            };
            let Some(row) = world.find(shelf, id) else {
                if id.is_empty() {
                    return Err(outside(id));
                }
                return Err(bad(
                    world,
                    &match (thing, renamed) {
                        (Thing::Event, false) => format!("Org unit is specified but does not exist: {id}"),
                        (Thing::Event, true) => format!("Organisation unit is specified but does not exist: {id}"),
                        _ => format!("Organisation unit does not exist: {id}"),
                    },
                ));
            };
            if !world.may_see_unit(user, row) {
                return Err(outside(id));
            }
            rows.push(row);
        }
        if renamed && mode == Some("ALL") && !rows.is_empty() {
            let message =
                "orgUnitMode ALL cannot be used with orgUnits. Please remove the orgUnit parameter and try again.";
            return Err(bad(world, message));
        }
        if rows.is_empty() && thing != Thing::Event {
            if form == TrackerForm::Flat && !matches!(mode, Some("ALL" | "ACCESSIBLE" | "CAPTURE")) {
                return Err(plain(world, 409, "At least one organisation unit must be specified"));
            }
            if renamed && let Some(mode @ ("SELECTED" | "CHILDREN" | "DESCENDANTS")) = mode {
                let message = match thing {
                    Thing::Entity => format!(
                        "At least one org unit or tracked entity is required for orgUnitMode: {mode}. Please add one of the two or use a different orgUnitMode."
                    ),
                    _ => format!(
                        "At least one org unit is required for orgUnitMode: {mode}. Please add one org unit or use a different orgUnitMode."
                    ),
                };
                return Err(bad(world, &message));
            }
        }
        Ok(match mode {
            // Recorded: at 2.40 it finds no enrollment when units are named besides.
            Some("ALL") if thing == Thing::Enrollment && !rows.is_empty() => Self::None,
            Some("ALL") => Self::All,
            _ if rows.is_empty() => Self::accessible(user),
            Some("DESCENDANTS") => Self::Below(rows),
            Some("CHILDREN") => Self::ChildrenOf(rows),
            _ => Self::Just(rows),
        })
    }

    fn accessible(user: &User) -> Self {
        if user.branches.is_empty() { Self::All } else { Self::Below(user.branches.iter().map(|at| at + 1).collect()) }
    }

    pub(crate) fn hold(&self, world: &World, unit: u32) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Just(rows) => rows.contains(&unit),
            Self::ChildrenOf(rows) => {
                rows.contains(&unit) || world.country.parent(unit).is_some_and(|parent| rows.contains(&parent))
            }
            Self::Below(rows) => world.country.ancestors(unit).iter().any(|ancestor| rows.contains(ancestor)),
        }
    }
}
