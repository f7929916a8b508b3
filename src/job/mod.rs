//! The job: a parsed job file with every default filled in.
//!
//! ```text
//! text ─document─▶ tree with spans ─check─▶ errors of single keys ─semantics─▶ errors between keys ─▶ Job
//! ```

mod check;
mod diagnostic;
mod document;
mod file;
mod fingerprint;
mod load;
pub mod schema;
pub mod secret;
mod semantics;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

pub use dhis2::{Credentials, Secret};
pub use diagnostic::{Diagnostics, Location};
pub use fingerprint::differences;
pub use jiff::civil::Date;
pub use load::{CAPABILITIES, Capabilities, JobError};
pub use secret::SecretSource;
pub use semantics::base_url;
use url::Url;

/// A job, validated.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
    pub name: String,
    /// The job file as given on the command line: for messages and for the next command to type.
    pub path: PathBuf,
    /// The server and its credentials.
    pub source: SourceSettings,
    /// Limits on the load put on the source.
    pub limits: Limits,
    /// Extracts in the file's order; at least one.
    pub extracts: Vec<ExtractSettings>,
    /// Directory and format of the output.
    pub sink: SinkSettings,
    /// Warnings about a valid file, as lower-case fragments.
    pub warnings: Vec<String>,
    /// Features in use that not every version offers.
    features: Vec<load::FeatureUse>,
}

/// The server and its credentials.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSettings {
    /// The base url: `http` or `https`, a host, perhaps a context path; neither `/api`, nor a slash at the end of the
    /// path, nor user, query or fragment.
    pub url: Url,
    /// Credentials, not resolved yet.
    pub credentials: CredentialSource,
    /// Certificates to trust besides the system's roots.
    pub ca_file: Option<PathBuf>,
}

/// Credentials whose secret is named by its source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CredentialSource {
    /// User name and password.
    Basic {
        /// Has no colon.
        username: String,
        /// Source of the password.
        password: SecretSource,
    },
    /// A personal access token.
    Token(SecretSource),
    /// An OAuth2 or JWT bearer token.
    Bearer(SecretSource),
}

impl CredentialSource {
    /// Source of the secret, and the user, for people: `$DHIS2_PASSWORD, for user reader`.
    pub fn describe(&self) -> String {
        match self {
            CredentialSource::Basic { username, password } => format!("{}, for user {username}", password.describe()),
            CredentialSource::Token(token) => format!("{}, a personal access token", token.describe()),
            CredentialSource::Bearer(bearer) => format!("{}, a bearer token", bearer.describe()),
        }
    }

    /// Resolves the secret; returns a warning too if it is kept unsafely. Blocks.
    ///
    /// # Errors
    /// As [`SecretSource::resolve`].
    pub fn resolve(
        &self,
        environment: secret::Environment<'_>,
    ) -> Result<(Credentials, Option<String>), secret::SecretError> {
        match self {
            CredentialSource::Basic { username, password } => {
                let resolved = password.resolve("source.password", environment)?;
                let username = username.clone();
                Ok((Credentials::Basic { username, password: resolved.secret }, resolved.warning))
            }
            CredentialSource::Token(token) => {
                let resolved = token.resolve("source.token", environment)?;
                Ok((Credentials::Token(resolved.secret), resolved.warning))
            }
            CredentialSource::Bearer(bearer) => {
                let resolved = bearer.resolve("source.bearer", environment)?;
                Ok((Credentials::Bearer(resolved.secret), resolved.warning))
            }
        }
    }
}

/// Limits on the load put on the source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Requests within any one second, at most: 1 to 10 000.
    pub requests_per_second: u32,
    /// Requests at once, at most: 1 to 64.
    pub in_flight: u32,
    /// Timeout of a connection, TLS included.
    pub connect_timeout: Duration,
    /// Timeout for the first byte of a response.
    pub first_byte_timeout: Duration,
    /// Longest silence once a response has begun.
    pub stall_timeout: Duration,
    /// Further attempts at a page before it may be given up.
    pub retries: u32,
    /// Longest outage of the source before the run gives up, resumably.
    pub outage: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        semantics::limits(None)
    }
}

/// One `[[extract]]`.
#[derive(Clone, Debug, PartialEq)]
pub enum ExtractSettings {
    /// Metadata collections.
    Metadata(MetadataSettings),
    /// Aggregate data values.
    DataValues {
        /// Which data sets.
        data_sets: Names,
        /// Which subtrees.
        org_units: Roots,
        /// First day.
        start: Date,
        /// Last day, included.
        end: Date,
        /// At which level subtrees become partitions.
        split: SplitLevel,
        /// Which slices are asked for again.
        confirm: Confirm,
        /// Options of every kind.
        common: CommonOptions,
    },
    /// Events, enrollments or tracked entities.
    Tracker {
        /// Which of them.
        kind: TrackerKind,
        /// Of what.
        scope: TrackerScope,
        /// Which subtrees.
        org_units: Roots,
        /// Program stages of events; empty: all.
        program_stages: Vec<String>,
        /// Which fields.
        fields: TrackerFields,
        /// Whether objects keep what belongs to them inside of them.
        nested: bool,
        /// Rows a page.
        page_size: u32,
        /// Options of every kind.
        common: CommonOptions,
    },
    /// Analytics, row by row.
    Analytics {
        /// Of what.
        kind: AnalyticsKind,
        /// As the API takes them.
        dimensions: Vec<String>,
        /// Its number among all analytics extracts of the file, counted from 1.
        number: usize,
        /// Rows a page, where it is paged.
        page_size: u32,
        /// Options of every kind.
        common: CommonOptions,
    },
    /// Entries of the data store.
    DataStore {
        /// Which namespaces.
        namespaces: Names,
        /// Rows a page.
        page_size: u32,
        /// Options of every kind.
        common: CommonOptions,
    },
    /// Rows of an SQL view.
    SqlView {
        /// Its uid.
        view: String,
        /// `column:value`.
        criteria: Vec<String>,
        /// Values of the view's variables.
        variables: BTreeMap<String, String>,
        /// Rows a page.
        page_size: u32,
        /// Options of every kind.
        common: CommonOptions,
    },
    /// Complete data set registrations.
    CompleteRegistrations {
        /// Which data sets.
        data_sets: Names,
        /// Which subtrees.
        org_units: Roots,
        /// First day.
        start: Date,
        /// Last day, included.
        end: Date,
        /// Options of every kind.
        common: CommonOptions,
    },
}

/// Metadata collections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MetadataSettings {
    /// Which.
    pub collections: Collections,
    /// As the API takes them; holds `id`.
    pub fields: String,
    /// As the API takes them; all must hold.
    pub filters: Vec<String>,
    /// Rows a page: 1 to 100 000.
    pub page_size: u32,
    /// Only what changed since the last complete run.
    pub incremental: bool,
    /// Deletions too, where the API tells them.
    pub include_deleted: bool,
    /// The stream's name where the file gives one (then there is exactly one collection); `None`: each
    /// collection's rows go to a stream of the collection's name.
    pub stream: Option<String>,
}

/// Options of every kind of extract.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CommonOptions {
    /// The stream's name where the file gives one; `None`: the kind's own.
    pub stream: Option<String>,
    /// Only what changed since the last complete run.
    pub incremental: bool,
    /// Deletions too, where the API tells them.
    pub include_deleted: bool,
}

/// Metadata collections.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Collections {
    /// Every one that `/api/schemas` offers.
    All,
    /// These: at least one, none twice, `[A-Za-z][A-Za-z0-9]*`.
    Named(Vec<String>),
}

/// Uids or other names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Names {
    /// All there are.
    All,
    /// These: at least one, none twice.
    Named(Vec<String>),
}

/// Roots of organisation unit subtrees.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Roots {
    /// The user's own.
    OfUser,
    /// These.
    Named(Vec<String>),
}

/// At which level subtrees become partitions.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SplitLevel {
    /// Chosen by size.
    BySize,
    /// This one.
    Level(u32),
}

/// Which slices of data values are asked for again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Confirm {
    /// Those that are empty or below 20 % of their siblings' median.
    Empty,
    /// Each, until two readings agree.
    All,
    /// None.
    None,
}

/// Kinds of tracker objects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TrackerKind {
    /// Events.
    Events,
    /// Enrollments.
    Enrollments,
    /// Tracked entities.
    TrackedEntities,
}

/// Of what tracker objects are fetched: a uid.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TrackerScope {
    /// Of this program.
    Program(String),
    /// Of this tracked entity type.
    TrackedEntityType(String),
}

/// Which fields of tracker objects are fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TrackerFields {
    /// All that can be imported again, by version.
    Importable,
    /// These, as the API takes them.
    Given(String),
}

/// Of what analytics are asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AnalyticsKind {
    /// Aggregate data.
    Aggregate,
    /// Events of this program.
    Events(String),
    /// Enrollments of this program.
    Enrollments(String),
}

/// Directory and format of the output.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SinkSettings {
    /// As written, perhaps with `{run}`; relative to the working directory.
    pub directory: PathBuf,
    /// Format of the files.
    pub format: Format,
    /// Compression of the files.
    pub compression: Compression,
    /// Whether file resources that rows refer to are fetched as well.
    pub files: bool,
}

impl SinkSettings {
    /// Whether every run has a folder of its own.
    pub fn is_per_run(&self) -> bool {
        self.directory.to_string_lossy().contains("{run}")
    }
}

/// Format of the files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// A row a line.
    Ndjson,
}

/// Compression of the files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compression {
    /// As they are.
    None,
}

impl ExtractSettings {
    /// The word behind `kind =`.
    pub fn kind(&self) -> &'static str {
        match self {
            ExtractSettings::Metadata(_) => "metadata",
            ExtractSettings::DataValues { .. } => "data_values",
            ExtractSettings::Tracker { kind: TrackerKind::Events, .. } => "events",
            ExtractSettings::Tracker { kind: TrackerKind::Enrollments, .. } => "enrollments",
            ExtractSettings::Tracker { kind: TrackerKind::TrackedEntities, .. } => "tracked_entities",
            ExtractSettings::Analytics { kind: AnalyticsKind::Aggregate, .. } => "analytics",
            ExtractSettings::Analytics { kind: AnalyticsKind::Events(_), .. } => "analytics_events",
            ExtractSettings::Analytics { kind: AnalyticsKind::Enrollments(_), .. } => "analytics_enrollments",
            ExtractSettings::DataStore { .. } => "data_store",
            ExtractSettings::SqlView { .. } => "sql_view",
            ExtractSettings::CompleteRegistrations { .. } => "complete_registrations",
        }
    }

    /// The streams it gives as far as the file tells: `*` ones are known only to the server.
    pub fn streams(&self) -> Vec<String> {
        let or = |common: &CommonOptions, own: String| vec![common.stream.clone().unwrap_or(own)];
        match self {
            ExtractSettings::Metadata(MetadataSettings { stream: Some(stream), .. }) => vec![stream.clone()],
            ExtractSettings::Metadata(MetadataSettings { collections: Collections::Named(names), .. }) => names.clone(),
            ExtractSettings::Metadata(MetadataSettings { collections: Collections::All, .. }) => Vec::new(),
            ExtractSettings::DataValues { common, .. } => or(common, "dataValues".to_owned()),
            ExtractSettings::Tracker { kind, scope, common, .. } => {
                let (TrackerScope::Program(of) | TrackerScope::TrackedEntityType(of)) = scope;
                let kind = match kind {
                    TrackerKind::Events => "events",
                    TrackerKind::Enrollments => "enrollments",
                    TrackerKind::TrackedEntities => "trackedEntities",
                };
                or(common, format!("{kind}-{of}"))
            }
            ExtractSettings::Analytics { number, common, .. } => or(common, format!("analytics-{number}")),
            ExtractSettings::DataStore { common: CommonOptions { stream: Some(stream), .. }, .. } => {
                vec![stream.clone()]
            }
            ExtractSettings::DataStore { namespaces: Names::Named(namespaces), .. } => {
                namespaces.iter().map(|namespace| format!("dataStore-{namespace}")).collect()
            }
            ExtractSettings::DataStore { namespaces: Names::All, .. } => Vec::new(),
            ExtractSettings::SqlView { view, common, .. } => or(common, format!("sqlView-{view}")),
            ExtractSettings::CompleteRegistrations { common, .. } => {
                or(common, "completeDataSetRegistrations".to_owned())
            }
        }
    }

    /// Whether only what changed since the last complete run is wanted.
    pub fn is_incremental(&self) -> bool {
        match self {
            ExtractSettings::Metadata(metadata) => metadata.incremental,
            ExtractSettings::DataValues { common, .. }
            | ExtractSettings::Tracker { common, .. }
            | ExtractSettings::Analytics { common, .. }
            | ExtractSettings::DataStore { common, .. }
            | ExtractSettings::SqlView { common, .. }
            | ExtractSettings::CompleteRegistrations { common, .. } => common.incremental,
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
