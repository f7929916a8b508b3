//! Puts ids of the stand-in's country in the place of the recorded ones: the first data set for the first data set.

use std::collections::HashMap;

use serde_json::Value;

use crate::StandIn;

/// Recorded id to our id.
#[derive(Debug)]
pub(super) struct Ids {
    ours: HashMap<String, String>,
}

impl Ids {
    /// Pairs the ids of `truth.json` with those of a stand-in, kind by kind; organisation units so that each lies below
    /// the same one as there.
    pub(super) fn new(truth: &Value, stand_in: &StandIn) -> Self {
        let mut ids = Self { ours: HashMap::new() };
        let units = |name: &str| texts(&truth[name]);
        let (regions, districts, facilities) = (units("regions"), units("districts"), units("facilities"));
        let branching = stand_in.branching();
        let child = |parent: usize, at: usize| parent * branching + 1 + at % branching;
        let per = |inner: &[String], outer: &[String]| inner.len().div_ceil(outer.len().max(1)).max(1);
        let (in_region, in_district) = (per(&districts, &regions), per(&facilities, &districts));
        let region = |at: usize| child(0, at);
        let district = |at: usize| child(region(at / in_region), at % in_region);
        ids.pair(stand_in, "organisationUnits", &texts(&truth["root"]), |_| 0);
        ids.pair(stand_in, "organisationUnits", &regions, region);
        ids.pair(stand_in, "organisationUnits", &districts, district);
        ids.pair(stand_in, "organisationUnits", &facilities, |at| child(district(at / in_district), at % in_district));
        for (name, collection, first) in [
            ("dataSets", "dataSets", 0),
            ("eventProgram", "programs", 0),
            ("trackerProgram", "programs", 1),
            ("stages", "programStages", 0),
            ("trackedEntityType", "trackedEntityTypes", 0),
            ("des", "dataElements", 0),
            ("tdes", "dataElements", 20),
            ("teas", "trackedEntityAttributes", 0),
            ("sqlViews", "sqlViews", 0),
            ("categoryCombo", "categoryCombos", 1),
        ] {
            ids.pair(stand_in, collection, &texts(&truth[name]), |at| first + at);
        }
        ids
    }

    /// Pairs one id.
    pub(super) fn name(&mut self, theirs: &str, ours: &str) {
        self.ours.insert(theirs.to_owned(), ours.to_owned());
    }

    fn pair(&mut self, stand_in: &StandIn, collection: &str, theirs: &[String], row: impl Fn(usize) -> usize) {
        for (at, id) in theirs.iter().enumerate() {
            if let Some(ours) = stand_in.id_of_row(collection, row(at)) {
                self.ours.insert(id.clone(), ours);
            }
        }
    }

    /// The target with our ids. A bound such as `id:gt:` becomes the id at the same place in the order of ids.
    pub(super) fn translate(&self, target: &str, theirs: &[String], ours: &[String]) -> String {
        let mut out = String::new();
        let mut rest = target;
        while let Some(c) = rest.chars().next() {
            // `%3A` would glue its letter to the id behind it.
            if c == '%' && rest.len() >= 3 {
                out.push_str(&rest[..3]);
                rest = &rest[3..];
                continue;
            }
            let word: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            if word.len() != 11 {
                let step = word.len().max(c.len_utf8());
                out.push_str(&rest[..step]);
                rest = &rest[step..];
                continue;
            }
            let bound = [":gt:", ":lt:", ":ge:", ":le:"].iter().any(|op| out.ends_with(op));
            let at_its_place =
                theirs.iter().position(|id| *id == word).filter(|_| bound).and_then(|place| ours.get(place));
            out.push_str(at_its_place.or_else(|| self.ours.get(&word)).unwrap_or(&word));
            rest = &rest[word.len()..];
        }
        out
    }
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().filter_map(|item| item.as_str().map(Into::into)).collect(),
        _ => Vec::new(),
    }
}
