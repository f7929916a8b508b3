//! The finished files of a folder against their manifest.

use std::{
    fs,
    io::{self, Read},
    path::{Component, Path},
};

use harvester_actors::{failure::Failure, report::Manifest};
use sha2::{Digest, Sha256};
use url::Url;

use super::{
    disk::{self, io_failure},
    names,
    publish::{MANIFEST, MANIFEST_PART, ManifestError, read_manifest},
};

/// Whose files are expected in a folder.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The job's name.
    pub job: &'a str,
    /// Its source: the base url, without a slash at the end of a context path.
    pub url: &'a Url,
}

/// What a look at a folder found.
#[derive(Clone, Debug, PartialEq)]
pub struct Verification {
    /// The manifest; `None` when there is none that can be read, and when it is somebody else's.
    pub manifest: Option<Manifest>,
    /// What is wrong, in the order of the streams' names; empty when all is well.
    pub findings: Vec<FileMismatch>,
}

impl Verification {
    /// Whether every file is what the manifest says, and no newer run is half published.
    pub fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileMismatch {
    /// The file, relative to the folder.
    pub file: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Problem {
    /// It is not there.
    Missing,
    /// Something is there that is no regular file, or its name leads out of the folder.
    NotAFile,
    /// The manifest cannot be read; why.
    Unreadable(String),
    /// It has another length.
    Size {
        /// Bytes the manifest says.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// It has the right length and other content.
    Sha256 {
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A newer run began to publish and was ended: some files may be its, some the older run's.
    HalfPublished {
        /// The newer run.
        run_id: String,
    },
    /// The manifest is that of another job.
    OfJob(String),
    /// The manifest is this job's, from another server.
    OfSource(String),
}

impl Problem {
    /// Whether the files are not those that were meant, whatever they are like.
    pub fn is_foreign(&self) -> bool {
        matches!(self, Problem::OfJob(_) | Problem::OfSource(_))
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Missing => write!(f, "is missing"),
            Problem::NotAFile => write!(f, "is not a regular file of this folder"),
            Problem::Unreadable(why) => write!(f, "cannot be read: {why}"),
            Problem::Size { expected, found } => write!(f, "has {found} bytes, should have {expected}"),
            Problem::Sha256 { expected, found } => write!(f, "has SHA-256 {found}, should have {expected}"),
            Problem::HalfPublished { run_id } => write!(f, "says that run {run_id} is only half published"),
            Problem::OfJob(job) => write!(f, "belongs to the job `{job}`"),
            Problem::OfSource(url) => write!(f, "comes from another source, {url}"),
        }
    }
}

/// Compares every file with the manifest of the folder, if that is the right one. Blocks while it reads them all.
///
/// # Errors
/// `Local` when something that exists cannot be read.
pub fn verify(dir: &Path, whose: Whose<'_>) -> Result<Verification, Failure> {
    let mut findings = Vec::new();
    let finding = |file: &str, problem| FileMismatch { file: file.to_owned(), problem };
    let manifest = match read_manifest(&dir.join(MANIFEST)) {
        Ok(None) => {
            findings.push(finding(MANIFEST, Problem::Missing));
            None
        }
        Ok(Some(manifest)) => match foreign(&manifest, whose) {
            Some(problem) => {
                findings.push(finding(MANIFEST, problem));
                None
            }
            None => Some(manifest),
        },
        Err(ManifestError::Unreadable(why)) => {
            findings.push(finding(MANIFEST, Problem::Unreadable(why)));
            None
        }
        Err(ManifestError::Io(error)) => return Err(io_failure("read", &dir.join(MANIFEST), &error)),
    };
    match read_manifest(&dir.join(MANIFEST_PART)) {
        Ok(None) => {}
        Ok(Some(half)) => {
            let problem = foreign(&half, whose).unwrap_or(Problem::HalfPublished { run_id: half.run_id });
            findings.push(finding(MANIFEST_PART, problem));
        }
        Err(ManifestError::Unreadable(why)) => findings.push(finding(MANIFEST_PART, Problem::Unreadable(why))),
        Err(ManifestError::Io(error)) => return Err(io_failure("read", &dir.join(MANIFEST_PART), &error)),
    }
    for stream in manifest.iter().flat_map(|manifest| manifest.streams.values()) {
        if let Some(problem) = check(dir, &stream.file, stream.bytes, &stream.sha256)? {
            findings.push(finding(&stream.file, problem));
        }
    }
    Ok(Verification { manifest, findings })
}

/// Why a manifest is not the one that is meant, if it is not.
fn foreign(manifest: &Manifest, whose: Whose<'_>) -> Option<Problem> {
    if manifest.job != whose.job {
        // Somebody else wrote it, so it may say anything.
        return Some(Problem::OfJob(manifest.job.escape_debug().to_string()));
    }
    // A url that is none says nothing about where the files come from.
    let url = Url::parse(&manifest.source.url).ok()?;
    (url != *whose.url).then(|| Problem::OfSource(url.into()))
}

/// Whether a folder holds the run of another job, and none of this one.
pub fn is_of_another_job(dir: &Path, job: &str) -> bool {
    let jobs = [MANIFEST, MANIFEST_PART].map(|name| read_manifest(&dir.join(name)).ok().flatten());
    let mut jobs = jobs.iter().flatten().map(|manifest| manifest.job == job).peekable();
    jobs.peek().is_some() && jobs.all(|is_ours| !is_ours)
}

/// Whether nothing in a folder has its final name, and no publishing has begun there.
pub fn is_unpublished(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return true };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.into_iter().all(|name| name != MANIFEST_PART && (name.ends_with(".part") || name.ends_with(".part.new")))
}

/// What is wrong with one file.
fn check(dir: &Path, file: &str, bytes: u64, sha256: &str) -> Result<Option<Problem>, Failure> {
    let inside = |part| matches!(part, Component::Normal(_));
    if file.is_empty() || !Path::new(file).components().all(inside) {
        return Ok(Some(Problem::NotAFile));
    }
    let path = dir.join(file);
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => return Ok(Some(Problem::NotAFile)),
        Ok(found) if found.len() != bytes => {
            return Ok(Some(Problem::Size { expected: bytes, found: found.len() }));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Problem::Missing)),
        Err(error) => return Err(io_failure("look at", &path, &error)),
    }
    let found = sha256_of(&path).map_err(|error| io_failure("read", &path, &error))?;
    Ok((found != sha256).then(|| Problem::Sha256 { expected: sha256.to_owned(), found }))
}

/// SHA-256 of a file as lower-case hex.
fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = disk::open_to_read(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(names::hex(&hasher.finalize())),
            len => hasher.update(&buffer[..len]),
        }
    }
}
