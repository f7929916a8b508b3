//! From a file on a disk to a job, or to all of its mistakes at once.

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
    check::{Findings, InlineSecrets, check_file},
    document::{Node, Value, read_json, read_toml},
    meaning,
    mistake::{Masks, Mistakes, Place},
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
    /// The file has mistakes.
    Mistakes(Mistakes),
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JobError::Unreadable { path, source } => write!(f, "cannot read the job file {}: {source}", path.display()),
            JobError::Mistakes(mistakes) => mistakes.fmt(f),
        }
    }
}

impl std::error::Error for JobError {}

impl JobError {
    /// On one line, for a report.
    pub fn one_line(&self) -> String {
        match self {
            JobError::Unreadable { .. } => self.to_string(),
            JobError::Mistakes(mistakes) => mistakes.one_line(),
        }
    }

    /// What to do.
    pub fn next(&self) -> &'static str {
        match self {
            JobError::Unreadable { .. } => "give the path of a job file; jobs/metadata.toml is one to begin with",
            JobError::Mistakes(_) => "correct the file; `harvester schema` prints every key it may have",
        }
    }
}

/// What this version of the program can do of what a job file may ask for.
#[derive(Clone, Copy, Debug)]
pub struct Available {
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

/// What this version can do. Whoever builds a kind adds it here.
pub const AVAILABLE: Available =
    Available { kinds: &["metadata"], every_collection: true, incremental: true, include_deleted: true, files: false };

/// Something that not every version offers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Ask {
    /// What.
    pub(super) what: Wish,
    /// Where it stands.
    pub(super) place: Place,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
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
    /// When it cannot be read, or all of its mistakes.
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
        Job::parse(path, &text, metadata.permissions().mode() & 0o077 == 0).map_err(JobError::Mistakes)
    }

    /// Reads a job file's text.
    ///
    /// - `path`: gives the default name and the place of mistakes; nothing is read from it.
    /// - `is_private`: nobody else can read the file, so secrets may stand in it.
    ///
    /// # Errors
    /// All mistakes, in the order they stand.
    pub fn parse(path: &Path, text: &str, is_private: bool) -> Result<Job, Mistakes> {
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let read = if is_json { read_json(text) } else { read_toml(text) };
        let root = read.map_err(|mistakes| Mistakes::of(path.to_owned(), text, mistakes, &Masks::Suspicion))?;
        let inline_secrets = if is_private {
            InlineSecrets::Allowed
        } else {
            InlineSecrets::Refused(format!("chmod 600 {}", path.display()))
        };
        let mut findings = Findings { inline_secrets, ..Findings::default() };
        check_file(&root, &mut findings);
        let meant = meaning::job(path, &root, &mut findings);
        let masks = Masks::Spans(&findings.masks);
        match meant {
            Some(mut job) if findings.mistakes.is_empty() => {
                let place = |span: &Range<usize>| Place::of(text, span, &masks);
                job.asks = wishes(&root).iter().map(|(what, span)| Ask { what: *what, place: place(span) }).collect();
                Ok(job)
            }
            _ => Err(Mistakes::of(path.to_owned(), text, findings.mistakes, &masks)),
        }
    }

    /// Whether this version can do all that the job asks for.
    ///
    /// # Errors
    /// Everything it cannot do, with its place.
    pub fn runnable(&self, available: &Available) -> Result<(), Mistakes> {
        let mistakes: Vec<(Place, String)> = self
            .asks
            .iter()
            .filter_map(|ask| {
                let sorry = |what: &str| Some(format!("{what} is not available in this version"));
                let message = match ask.what {
                    Wish::Kind(kind) if !available.kinds.contains(&kind) => Some(format!(
                        "kind `{kind}` is not available in this version; available: {}",
                        available.kinds.join(", ")
                    )),
                    Wish::EveryCollection if !available.every_collection => {
                        Some("`*` is not available in this version; name the collections".to_owned())
                    }
                    Wish::Incremental if !available.incremental => sorry("`mode = \"incremental\"`"),
                    Wish::IncludeDeleted if !available.include_deleted => sorry("`include_deleted = true`"),
                    Wish::Files if !available.files => sorry("`files = true`"),
                    _ => None,
                };
                message.map(|message| (ask.place.clone(), message))
            })
            .collect();
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes { path: self.path.clone(), mistakes }) }
    }
}

/// What the file asks for that not every version offers, in the order it stands there.
fn wishes(root: &Node) -> Vec<(Wish, Range<usize>)> {
    let mut wishes = Vec::new();
    let is_true = |node: &&Node| matches!(node.value, Value::Boolean(true));
    for extract in meaning::extracts(root) {
        if let (Some(kind), Some(node)) = (super::check::kind_of(extract), extract.get("kind")) {
            wishes.push((Wish::Kind(kind.name), node.span.clone()));
        }
        if let Some(Value::List(items)) = extract.get("collections").map(|node| &node.value) {
            let stars = items.iter().filter(|item| matches!(&item.value, Value::Text(text) if text == "*"));
            wishes.extend(stars.map(|star| (Wish::EveryCollection, star.span.clone())));
        }
        if let Some(mode) = extract.get("mode")
            && matches!(&mode.value, Value::Text(text) if text == "incremental")
        {
            wishes.push((Wish::Incremental, mode.span.clone()));
        }
        if let Some(deleted) = extract.get("include_deleted").filter(is_true) {
            wishes.push((Wish::IncludeDeleted, deleted.span.clone()));
        }
    }
    if let Some(files) = root.get("sink").and_then(|sink| sink.get("files")).filter(is_true) {
        wishes.push((Wish::Files, files.span.clone()));
    }
    wishes
}
