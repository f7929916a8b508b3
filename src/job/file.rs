//! The job file as written, version 1: every table, key, range and default, once.
//!
//! The checks (`check.rs`), the semantics (`semantics.rs`) and the JSON Schema (`schema.rs`) are all made from these
//! tables, so that none of them can know a key that another does not.

/// Version of the job file that this program reads.
pub(crate) const VERSION: i64 = 1;

/// One key of a table.
#[derive(Debug)]
pub(crate) struct Key {
    /// As written.
    pub(crate) name: &'static str,
    /// Type of its value.
    pub(crate) value_type: ValueType,
    /// Whether it is required.
    pub(crate) presence: Presence,
    /// Description for the schema: one sentence, with its direction where it has one.
    pub(crate) doc: &'static str,
}

/// Whether a key is required.
#[derive(Debug)]
pub(crate) enum Presence {
    /// It is.
    Required,
    /// It has this default, as JSON.
    Default(&'static str),
    /// The key's `doc` says what happens without it.
    Optional,
}

/// Type of a key's value.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ValueType {
    /// Text of a format.
    Text(TextFormat),
    /// One of these words; the second list names words that are understood but not available in this version.
    Word(&'static [&'static str], &'static [&'static str]),
    /// An integer, both ends included.
    Integer(i64, i64),
    /// True or false.
    Boolean,
    /// A day, `2024-12-31`.
    Date,
    /// A list of texts of a format, each at most once. The flag says whether it may be empty.
    Texts(TextFormat, bool),
    /// Source of a secret.
    Secret,
    /// Names and texts.
    Map,
    /// A table.
    Table(&'static Table),
    /// One or more tables, each with its kind.
    Extracts,
}

/// Format of a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TextFormat {
    /// Anything but nothing.
    Any,
    /// A job's name.
    JobName,
    /// The address of a server.
    Url,
    /// A path.
    Path,
    /// A path that may hold `{run}`.
    Directory,
    /// The name of a stream.
    Stream,
    /// A DHIS2 uid.
    Uid,
    /// A DHIS2 uid, or `*` alone for all.
    UidOrAll,
    /// A metadata collection, or `*` alone for all.
    CollectionOrAll,
    /// Anything, or `*` alone for all.
    AnyOrAll,
    /// A `fields` expression.
    Fields,
    /// A metadata filter, `property:operator` or `property:operator:value`.
    Filter,
}

impl TextFormat {
    /// Checks `text`; the error says what is expected.
    ///
    /// Urls, fields and directories are checked more closely in `semantics.rs`.
    pub(crate) fn check(self, text: &str) -> Result<(), String> {
        if text.trim().is_empty() {
            return Err("must not be empty".to_owned());
        }
        if text.chars().any(char::is_control) {
            return Err("must not have a line end or another control character in it".to_owned());
        }
        match self {
            TextFormat::JobName if !is_job_name(text) => {
                Err("begins with a letter or digit, goes on with letters, digits, `.`, `_`, `-`, and has at most 64 \
                     characters"
                    .to_owned())
            }
            TextFormat::Stream if text.starts_with('.') || text.contains('/') || text.len() > 100 => {
                Err("names a file: no `/`, no leading `.`, at most 100 bytes".to_owned())
            }
            TextFormat::Uid if !is_uid(text) => {
                Err("is a letter and ten letters or digits, like `ImspTQPwCqd`".to_owned())
            }
            TextFormat::UidOrAll if text != "*" && !is_uid(text) => {
                Err("is a letter and ten letters or digits, like `ImspTQPwCqd`; `*` alone means all".to_owned())
            }
            TextFormat::CollectionOrAll if text != "*" && !is_collection(text) => {
                Err("is a collection as /api/schemas names it, like `organisationUnits`; `*` alone means all"
                    .to_owned())
            }
            TextFormat::Filter if !text.contains(':') || text.starts_with(':') => {
                Err("reads property:operator:value, like `name:like:clinic`".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// The format as a regular expression, for the schema; `None` where any text will do or words are needed.
    pub(crate) fn pattern(self) -> Option<&'static str> {
        match self {
            TextFormat::JobName => Some("^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
            TextFormat::Url => Some("^https?://[^@?#]+$"),
            TextFormat::Stream => Some("^[^./][^/]{0,99}$"),
            TextFormat::Uid => Some("^[A-Za-z][A-Za-z0-9]{10}$"),
            TextFormat::UidOrAll => Some("^(\\*|[A-Za-z][A-Za-z0-9]{10})$"),
            TextFormat::CollectionOrAll => Some("^(\\*|[A-Za-z][A-Za-z0-9]*)$"),
            TextFormat::Filter => Some("^[^:]+:.+$"),
            TextFormat::Any | TextFormat::Path | TextFormat::Directory | TextFormat::AnyOrAll | TextFormat::Fields => {
                None
            }
        }
    }

    /// Whether `*` means all.
    pub(crate) fn allows_wildcard(self) -> bool {
        matches!(self, TextFormat::UidOrAll | TextFormat::CollectionOrAll | TextFormat::AnyOrAll)
    }
}

/// `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`
pub(crate) fn is_job_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

/// `[A-Za-z][A-Za-z0-9]{10}`
fn is_uid(text: &str) -> bool {
    text.len() == 11 && is_collection(text)
}

/// `[A-Za-z][A-Za-z0-9]*`
fn is_collection(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.chars().all(|c| c.is_ascii_alphanumeric())
}

/// A table of fixed keys.
#[derive(Debug)]
pub(crate) struct Table {
    /// Its name; empty for the whole file.
    pub(crate) name: &'static str,
    /// Its keys.
    pub(crate) keys: &'static [Key],
}

/// A kind of extract.
#[derive(Debug)]
pub(crate) struct Kind {
    /// The word behind `kind =`.
    pub(crate) name: &'static str,
    /// The data it fetches.
    pub(crate) doc: &'static str,
    /// Its keys, besides `kind` and those that every kind takes.
    pub(crate) keys: &'static [Key],
    /// Whether it is paged, and so takes `page_size`.
    pub(crate) paged: bool,
}

impl Kind {
    /// All keys of the kind.
    pub(crate) fn all_keys(&self) -> impl Iterator<Item = &'static Key> + Clone {
        let page_size = if self.paged { std::slice::from_ref(&PAGE_SIZE) } else { &[] };
        EVERY_KIND.iter().chain(page_size).chain(self.keys)
    }
}

/// Shortens the tables below.
const fn key(name: &'static str, value_type: ValueType, presence: Presence, doc: &'static str) -> Key {
    Key { name, value_type, presence, doc }
}

use Presence::{Default, Optional, Required};
use TextFormat as F;
use ValueType as V;

/// The whole file.
pub(crate) static FILE: Table = Table {
    name: "",
    keys: &[
        key("version", V::Integer(VERSION, i64::MAX), Required, "Version of this format: 1."),
        key("name", V::Text(F::JobName), Optional, "Name of the job; the file's stem without it."),
        key("source", V::Table(&SOURCE), Required, "Where the data comes from."),
        key("limits", V::Table(&LIMITS), Optional, "Limits on the load put on the source; every key has a default."),
        key("extract", V::Extracts, Required, "What is fetched: one or more."),
        key("sink", V::Table(&SINK), Required, "Where the data goes."),
    ],
};

/// `[source]`
pub(crate) static SOURCE: Table = Table {
    name: "source",
    keys: &[
        key("url", V::Text(F::Url), Required, "The server, with or without a context path, with or without /api."),
        key("username", V::Text(F::Any), Optional, "User name; goes with `password`."),
        key("password", V::Secret, Optional, "Where the password comes from; goes with `username`."),
        key(
            "token",
            V::Secret,
            Optional,
            "Where a personal access token comes from, instead of username and password.",
        ),
        key("bearer", V::Secret, Optional, "Where an OAuth2 or JWT bearer token comes from, instead of the others."),
        key(
            "ca_file",
            V::Text(F::Path),
            Optional,
            "PEM file of certificates to trust in addition to the system's roots.",
        ),
    ],
};

/// `[limits]`
pub(crate) static LIMITS: Table = Table {
    name: "limits",
    keys: &[
        key(
            "requests_per_second",
            V::Integer(1, 10_000),
            Default("200"),
            "Requests within any one second, at most; retries and probes count. Smaller is kinder.",
        ),
        key(
            "in_flight",
            V::Integer(1, 64),
            Default("8"),
            "Requests at once, at most; the controller works below it. Smaller is kinder and uses less memory.",
        ),
        key("connect_timeout_s", V::Integer(1, 3600), Default("10"), "Seconds a connection may take to come about."),
        key(
            "first_byte_timeout_s",
            V::Integer(1, 86_400),
            Default("600"),
            "Seconds the server may think before it answers; there is no limit on the whole transfer.",
        ),
        key(
            "stall_timeout_s",
            V::Integer(1, 86_400),
            Default("120"),
            "Seconds of silence once an answer has begun; below 1 KiB/s over 60 s counts as silence too.",
        ),
        key("retries", V::Integer(0, 29), Default("6"), "Further attempts at a page before it may be given up."),
        key(
            "outage_s",
            V::Integer(0, 2_592_000),
            Default("600"),
            "Seconds the source may be unavailable before the run gives up, resumably, with exit 5.",
        ),
    ],
};

/// `[sink]`
pub(crate) static SINK: Table = Table {
    name: "sink",
    keys: &[
        key("kind", V::Word(&["files"], &["postgres", "dhis2"]), Required, "What kind of place it is."),
        key(
            "directory",
            V::Text(F::Directory),
            Required,
            "Folder for the files, relative to the working directory; {run} is the start of the run.",
        ),
        key("format", V::Word(&["ndjson"], &["csv", "parquet"]), Default("\"ndjson\""), "Format of the files."),
        key("compression", V::Word(&["none"], &["gzip", "zstd"]), Default("\"none\""), "Compression of the files."),
        key("files", V::Boolean, Default("false"), "Whether to fetch the file resources that rows refer to as well."),
    ],
};

/// Keys of every kind of extract.
pub(crate) static EVERY_KIND: &[Key] = &[
    key(
        "stream",
        V::Text(F::Stream),
        Optional,
        "Name of the file without its suffix; the kind's own name without it. Needed when two extracts would share a name.",
    ),
    key(
        "mode",
        V::Word(&["full", "incremental"], &[]),
        Default("\"full\""),
        "Whether to fetch all rows, or those changed since the last complete run (needs {run} in sink.directory).",
    ),
    key("include_deleted", V::Boolean, Default("false"), "Whether to fetch deletions where the API tells them."),
];

/// Key of every paged kind.
pub(crate) static PAGE_SIZE: Key = key(
    "page_size",
    V::Integer(1, 100_000),
    Default("1000"),
    "Rows per page, halved by itself when a page proves too heavy. Larger means fewer requests and more work for each.",
);

/// `org_units`
const ORG_UNITS: Key = key(
    "org_units",
    V::Texts(F::Uid, false),
    Optional,
    "Roots of the subtrees to fetch, descendants included; the user's own roots without it.",
);
/// `data_sets`
const DATA_SETS: Key = key("data_sets", V::Texts(F::UidOrAll, false), Required, "Data sets; [\"*\"] for all.");
/// `start`
const START: Key = key("start", V::Date, Required, "First day; only whole periods inside start..=end are fetched.");
/// `end`
const END: Key = key("end", V::Date, Required, "Last day, included.");
/// `program`
const PROGRAM: Key = key("program", V::Text(F::Uid), Required, "The program.");
/// `fields` of tracker kinds
const TRACKER_FIELDS: Key = key(
    "fields",
    V::Text(F::Any),
    Optional,
    "Fields as the API takes them; all that can be imported again without it.",
);
/// `nested`
const NESTED: Key =
    key("nested", V::Boolean, Default("false"), "Whether objects keep what belongs to them inside of them.");
/// `dimensions`
const DIMENSIONS: Key = key(
    "dimensions",
    V::Texts(F::Any, false),
    Required,
    "Dimensions as the API takes them: [\"dx:fbfJHSPpUQD\", \"pe:LAST_12_MONTHS\", \"ou:LEVEL-2;ImspTQPwCqd\"].",
);

/// Every kind of extract.
pub(crate) static KINDS: &[Kind] = &[
    Kind {
        name: "metadata",
        doc: "Metadata collections: organisation units, data elements, programs, and all others.",
        paged: true,
        keys: &[
            key(
                "collections",
                V::Texts(F::CollectionOrAll, false),
                Required,
                "Collections; [\"*\"] for every one that /api/schemas offers.",
            ),
            key("fields", V::Text(F::Fields), Default("\":owner\""), "Fields as the API takes them; `id` is needed."),
            key("filters", V::Texts(F::Filter, true), Default("[]"), "Filters as the API takes them; all must hold."),
        ],
    },
    Kind {
        name: "data_values",
        doc: "Aggregate data values by data set, period and organisation unit.",
        paged: false,
        keys: &[
            DATA_SETS,
            ORG_UNITS,
            START,
            END,
            key(
                "split_level",
                V::Integer(1, 30),
                Optional,
                "Organisation unit level at which subtrees become partitions; chosen by size without it.",
            ),
            key(
                "confirm",
                V::Word(&["empty", "all", "none"], &[]),
                Default("\"empty\""),
                "Which slices are asked for again: suspiciously empty ones, all until two readings agree, or none.",
            ),
        ],
    },
    Kind {
        name: "events",
        doc: "Tracker or event program events.",
        paged: true,
        keys: &[
            PROGRAM,
            ORG_UNITS,
            key(
                "program_stages",
                V::Texts(F::Uid, true),
                Default("[]"),
                "Program stages; all of the program if empty.",
            ),
            TRACKER_FIELDS,
            NESTED,
        ],
    },
    Kind {
        name: "enrollments",
        doc: "Tracker enrollments.",
        paged: true,
        keys: &[PROGRAM, ORG_UNITS, TRACKER_FIELDS, NESTED],
    },
    Kind {
        name: "tracked_entities",
        doc: "Tracked entities of a program, or of a type.",
        paged: true,
        keys: &[
            key("program", V::Text(F::Uid), Optional, "The program; instead of `tracked_entity_type`."),
            key("tracked_entity_type", V::Text(F::Uid), Optional, "The type; instead of `program`."),
            ORG_UNITS,
            TRACKER_FIELDS,
            NESTED,
        ],
    },
    Kind { name: "analytics", doc: "Aggregate analytics, row by row.", paged: false, keys: &[DIMENSIONS] },
    Kind { name: "analytics_events", doc: "Event analytics of a program.", paged: true, keys: &[PROGRAM, DIMENSIONS] },
    Kind {
        name: "analytics_enrollments",
        doc: "Enrollment analytics of a program.",
        paged: true,
        keys: &[PROGRAM, DIMENSIONS],
    },
    Kind {
        name: "data_store",
        doc: "Entries of the data store.",
        paged: true,
        keys: &[key("namespaces", V::Texts(F::AnyOrAll, false), Required, "Namespaces; [\"*\"] for all.")],
    },
    Kind {
        name: "sql_view",
        doc: "Rows of an SQL view.",
        paged: true,
        keys: &[
            key("view", V::Text(F::Uid), Required, "The view."),
            key("criteria", V::Texts(F::Filter, true), Default("[]"), "Criteria, column:value."),
            key("variables", V::Map, Default("{}"), "Values of the view's variables."),
        ],
    },
    Kind {
        name: "complete_registrations",
        doc: "Who completed which data set, when.",
        paged: false,
        keys: &[DATA_SETS, ORG_UNITS, START, END],
    },
];

/// The ways to say where a secret comes from: the word, and an example of what follows it.
pub(crate) const SECRET_SOURCES: [(&str, &str); 4] = [
    ("env", "{ env = \"DHIS2_PASSWORD\" }"),
    ("file", "{ file = \"/run/secrets/dhis2\" }"),
    ("credential", "{ credential = \"dhis2\" }"),
    ("command", "{ command = [\"pass\", \"dhis2\"] }"),
];
