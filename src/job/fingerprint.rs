//! Which parts of a job decide about rows: a run can only go on while they stay the same.

use std::collections::BTreeMap;

use super::{
    AnalyticsKind, Collections, CommonOptions, Compression, Confirm, CredentialSource, ExtractSettings, Format, Job,
    MetadataSettings, Names, Roots, TrackerFields, TrackerScope,
};

/// Characters of a value that a sentence quotes.
const QUOTED_CHARACTERS_MAX: usize = 120;

impl Job {
    /// The parts that decide about rows, as a flat map.
    ///
    /// Left out: limits, page sizes, how work is split and how often it is confirmed, none of which change a row; and
    /// every secret. The user name is in it: a user sees the collections, subtrees and values shared with them, and a
    /// run that two users fetched would be what neither of them sees.
    pub fn fingerprint(&self) -> BTreeMap<String, String> {
        let mut parts = BTreeMap::new();
        let mut put = |key: String, value: String| drop(parts.insert(key, value));
        put("source.url".to_owned(), self.source.url.to_string());
        match &self.source.credentials {
            CredentialSource::Basic { username, .. } => put("source.username".to_owned(), username.clone()),
            CredentialSource::Token(_) | CredentialSource::Bearer(_) => {}
        }
        for (index, extract) in self.extracts.iter().enumerate() {
            put(format!("extract[{}].kind", index + 1), extract.kind().to_owned());
            for (key, value) in semantic_keys(extract) {
                put(format!("extract[{}].{key}", index + 1), value);
            }
        }
        put("sink.directory".to_owned(), self.sink.directory.display().to_string());
        let format = match self.sink.format {
            Format::Ndjson => "ndjson",
        };
        put("sink.format".to_owned(), format.to_owned());
        let compression = match self.sink.compression {
            Compression::None => "none",
        };
        put("sink.compression".to_owned(), compression.to_owned());
        put("sink.files".to_owned(), self.sink.files.to_string());
        parts
    }
}

/// Keys of an extract that decide about its rows.
fn semantic_keys(extract: &ExtractSettings) -> Vec<(&'static str, String)> {
    match extract {
        ExtractSettings::Metadata(MetadataSettings {
            collections,
            fields,
            filters,
            page_size: _,
            incremental,
            include_deleted,
            stream,
        }) => {
            let collections = match collections {
                Collections::All => "*".to_owned(),
                Collections::Named(names) => sorted(names),
            };
            let common =
                CommonOptions { stream: stream.clone(), incremental: *incremental, include_deleted: *include_deleted };
            let mut keys =
                vec![("collections", collections), ("fields", fields.clone()), ("filters", filters.join(" "))];
            keys.extend(common_keys(&common));
            keys
        }
        ExtractSettings::DataValues { data_sets, org_units, start, end, split: _, confirm, common } => {
            // `confirm` changes no row; naming it here keeps the match exhaustive.
            let (Confirm::Empty | Confirm::All | Confirm::None) = confirm;
            scope_keys(data_sets, org_units, start.to_string(), end.to_string(), common)
        }
        ExtractSettings::CompleteRegistrations { data_sets, org_units, start, end, common } => {
            scope_keys(data_sets, org_units, start.to_string(), end.to_string(), common)
        }
        ExtractSettings::Tracker {
            kind: _,
            scope,
            org_units,
            program_stages,
            fields,
            nested,
            page_size: _,
            common,
        } => {
            let mut keys = vec![
                match scope {
                    TrackerScope::Program(program) => ("program", program.clone()),
                    TrackerScope::TrackedEntityType(entity_type) => ("tracked_entity_type", entity_type.clone()),
                },
                ("org_units", roots(org_units)),
                ("program_stages", sorted(program_stages)),
                ("nested", nested.to_string()),
            ];
            if let TrackerFields::Given(fields) = fields {
                keys.push(("fields", fields.clone()));
            }
            keys.extend(common_keys(common));
            keys
        }
        ExtractSettings::Analytics { kind, dimensions, number, page_size: _, common } => {
            let mut keys = vec![("dimensions", dimensions.join(" ")), ("number", number.to_string())];
            if let AnalyticsKind::Events(program) | AnalyticsKind::Enrollments(program) = kind {
                keys.push(("program", program.clone()));
            }
            keys.extend(common_keys(common));
            keys
        }
        ExtractSettings::DataStore { namespaces, page_size: _, common } => {
            let mut keys = vec![("namespaces", names(namespaces))];
            keys.extend(common_keys(common));
            keys
        }
        ExtractSettings::SqlView { view, criteria, variables, page_size: _, common } => {
            let variables: Vec<String> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mut keys =
                vec![("view", view.clone()), ("criteria", criteria.join(" ")), ("variables", variables.join(" "))];
            keys.extend(common_keys(common));
            keys
        }
    }
}

/// Keys of every kind that decide about rows.
fn common_keys(common: &CommonOptions) -> Vec<(&'static str, String)> {
    let mode = if common.incremental { "incremental" } else { "full" };
    let mut keys = vec![("mode", mode.to_owned()), ("include_deleted", common.include_deleted.to_string())];
    keys.extend(common.stream.iter().map(|stream| ("stream", stream.clone())));
    keys
}

/// Keys of data sets that decide about rows.
fn scope_keys(
    data_sets: &Names,
    org_units: &Roots,
    start: String,
    end: String,
    common: &CommonOptions,
) -> Vec<(&'static str, String)> {
    let mut keys =
        vec![("data_sets", names(data_sets)), ("org_units", roots(org_units)), ("start", start), ("end", end)];
    keys.extend(common_keys(common));
    keys
}

/// A list whose order decides nothing.
fn sorted(names: &[String]) -> String {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.join(" ")
}

/// Names or all of them.
fn names(names: &Names) -> String {
    match names {
        Names::All => "*".to_owned(),
        Names::Named(names) => sorted(names),
    }
}

/// Roots of subtrees.
fn roots(roots: &Roots) -> String {
    match roots {
        Roots::OfUser => "the user's own".to_owned(),
        Roots::Named(names) => sorted(names),
    }
}

/// Differences between the fingerprint a run began with and the job's present one: a sentence each, without full stop.
/// Empty when the run can go on.
pub fn differences(began_with: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let keys: std::collections::BTreeSet<&String> = began_with.keys().chain(now.keys()).collect();
    keys.into_iter()
        .filter_map(|key| {
            let sentence = match (began_with.get(key), now.get(key)) {
                (Some(before), Some(now)) if before != now => {
                    format!("{key} was {}, is {}", quoted(before), quoted(now))
                }
                (Some(before), None) => format!("{key} was {}, is not given any more", quoted(before)),
                (None, Some(now)) => format!("{key} was not given, is {}", quoted(now)),
                _ => return None,
            };
            let note = if key == "source.username" { " (another user may see other rows)" } else { "" };
            Some(sentence + note)
        })
        .collect()
}

/// A value in a sentence.
fn quoted(value: &str) -> String {
    if value.chars().count() <= QUOTED_CHARACTERS_MAX {
        return format!("`{value}`");
    }
    let cut: String = value.chars().take(QUOTED_CHARACTERS_MAX).collect();
    format!("`{cut}…`")
}
