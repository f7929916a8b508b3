//! Reads a job file: a job, or all of its errors at once.

use std::{
    fmt,
    fs::File,
    io::{self, Read as _},
    ops::Range,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    Job,
    check::{CheckState, InlineSecrets, check_file},
    diagnostic::{Diagnostics, Location, Redaction},
    document::{Node, Value, read_json, read_toml},
    semantics,
};

/// Bytes a job file may have.
const JOB_BYTES_MAX: u64 = 1024 * 1024;

/// Why there is no job (exit 78).
#[derive(Debug)]
pub enum JobError {
    /// The file cannot be read.
    Unreadable {
        /// The job file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file has errors.
    Diagnostics(Diagnostics),
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::Unreadable { path, source } => write!(f, "cannot read the job file {}: {source}", path.display()),
            JobError::Diagnostics(diagnostics) => diagnostics.fmt(f),
        }
    }
}

impl std::error::Error for JobError {}

impl JobError {
    /// On one line, for a report.
    pub fn one_line(&self) -> String {
        match self {
            JobError::Unreadable { .. } => self.to_string(),
            JobError::Diagnostics(diagnostics) => diagnostics.one_line(),
        }
    }

    /// The next step.
    pub fn next(&self) -> &'static str {
        match self {
            JobError::Unreadable { .. } => "give the path of a job file; jobs/metadata.toml is one to begin with",
            JobError::Diagnostics(_) => "correct the file; `harvester schema` prints every key it may have",
        }
    }
}

/// Features of job files that a version of the program supports.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Kinds of extract.
    pub kinds: &'static [&'static str],
    /// `["*"]`.
    pub every_collection: bool,
    /// `mode = "incremental"`.
    pub incremental: bool,
    /// `include_deleted = true`.
    pub include_deleted: bool,
    /// `sink.files = true`.
    pub files: bool,
}

/// Features that this version supports. A new kind is added here.
pub const CAPABILITIES: Capabilities = Capabilities {
    kinds: &["metadata"],
    every_collection: true,
    incremental: true,
    include_deleted: true,
    files: false,
};

/// Use of a feature that not every version supports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct FeatureUse {
    /// The feature.
    pub(super) feature: Feature,
    /// Its location in the file.
    pub(super) location: Location,
}

/// A feature that not every version supports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Feature {
    /// A kind of extract.
    Kind(&'static str),
    /// `["*"]`.
    EveryCollection,
    /// `mode = "incremental"`.
    Incremental,
    /// `include_deleted = true`.
    IncludeDeleted,
    /// `sink.files = true`.
    Files,
}

impl Job {
    /// Reads a job file: TOML, or JSON where its name ends in `.json`.
    ///
    /// # Errors
    /// When it cannot be read, or all of its errors.
    pub fn load(path: &Path) -> Result<Job, JobError> {
        let unreadable = |source| JobError::Unreadable { path: path.to_owned(), source };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(unreadable(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder")));
        }
        let mut text = Vec::new();
        file.take(JOB_BYTES_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > JOB_BYTES_MAX {
            return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB")));
        }
        let no_text = |_| unreadable(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"));
        let text = String::from_utf8(text).map_err(no_text)?;
        Job::parse(path, &text, metadata.permissions().mode() & 0o077 == 0).map_err(JobError::Diagnostics)
    }

    /// Reads a job file's text.
    ///
    /// - `path`: gives the default name and the location of errors; nothing is read from it.
    /// - `is_private`: no other user can read the file, so it may hold secrets.
    ///
    /// # Errors
    /// All errors, in the order of the file.
    pub fn parse(path: &Path, text: &str, is_private: bool) -> Result<Job, Diagnostics> {
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let read = if is_json { read_json(text) } else { read_toml(text) };
        let root =
            read.map_err(|diagnostics| Diagnostics::of(path.to_owned(), text, diagnostics, &Redaction::Suspicion))?;
        let inline_secrets = if is_private {
            InlineSecrets::Allowed
        } else {
            InlineSecrets::Refused(format!("chmod 600 {}", path.display()))
        };
        let mut state = CheckState { inline_secrets, ..CheckState::default() };
        check_file(&root, &mut state);
        let job = semantics::job(path, &root, &mut state);
        let redaction = Redaction::Spans(&state.redacted);
        match job {
            Some(mut job) if state.diagnostics.is_empty() => {
                let location = |span: &Range<usize>| Location::of(text, span, &redaction);
                job.features = features_used(&root)
                    .iter()
                    .map(|(what, span)| FeatureUse { feature: *what, location: location(span) })
                    .collect();
                Ok(job)
            }
            _ => Err(Diagnostics::of(path.to_owned(), text, state.diagnostics, &redaction)),
        }
    }

    /// Checks that this version supports all features in use.
    ///
    /// # Errors
    /// The unsupported features, with their locations.
    pub fn check_supported(&self, capabilities: &Capabilities) -> Result<(), Diagnostics> {
        let diagnostics: Vec<(Location, String)> = self
            .features
            .iter()
            .filter_map(|used| {
                let sorry = |what: &str| Some(format!("{what} is not available in this version"));
                let message = match used.feature {
                    Feature::Kind(kind) if !capabilities.kinds.contains(&kind) => Some(format!(
                        "kind `{kind}` is not available in this version; available: {}",
                        capabilities.kinds.join(", ")
                    )),
                    Feature::EveryCollection if !capabilities.every_collection => {
                        Some("`*` is not available in this version; name the collections".to_owned())
                    }
                    Feature::Incremental if !capabilities.incremental => sorry("`mode = \"incremental\"`"),
                    Feature::IncludeDeleted if !capabilities.include_deleted => sorry("`include_deleted = true`"),
                    Feature::Files if !capabilities.files => sorry("`files = true`"),
                    _ => None,
                };
                message.map(|message| (used.location.clone(), message))
            })
            .collect();
        if diagnostics.is_empty() { Ok(()) } else { Err(Diagnostics { path: self.path.clone(), diagnostics }) }
    }
}

/// Features in use that not every version supports, in the order of the file.
fn features_used(root: &Node) -> Vec<(Feature, Range<usize>)> {
    let mut features_used = Vec::new();
    let is_true = |node: &&Node| matches!(node.value, Value::Boolean(true));
    for extract in semantics::extracts(root) {
        if let (Some(kind), Some(node)) = (super::check::kind_of(extract), extract.get("kind")) {
            features_used.push((Feature::Kind(kind.name), node.span.clone()));
        }
        if let Some(Value::List(items)) = extract.get("collections").map(|node| &node.value) {
            let stars = items.iter().filter(|item| matches!(&item.value, Value::Text(text) if text == "*"));
            features_used.extend(stars.map(|star| (Feature::EveryCollection, star.span.clone())));
        }
        if let Some(mode) = extract.get("mode")
            && matches!(&mode.value, Value::Text(text) if text == "incremental")
        {
            features_used.push((Feature::Incremental, mode.span.clone()));
        }
        if let Some(deleted) = extract.get("include_deleted").filter(is_true) {
            features_used.push((Feature::IncludeDeleted, deleted.span.clone()));
        }
    }
    if let Some(files) = root.get("sink").and_then(|sink| sink.get("files")).filter(is_true) {
        features_used.push((Feature::Files, files.span.clone()));
    }
    features_used
}
