//! `harvester verify`: are the files what their manifest says?

use std::{
    fmt::Write as _,
    fs,
    path::{Component, Path, PathBuf},
};

use clap::Args;
use harvester_actors::report::Outcome;

use super::door::{Door, Stuck};
use crate::{
    observe::numbers::{bytes, plural},
    sinks::{self, Verification},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester verify jobs/metadata.toml
  harvester verify jobs/metadata.toml --directory out/20260101T000000Z

Exit 0 when every file is what manifest.json says, 4 when one differs or a newer run is half published.";

/// What `verify` takes.
#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// The job file
    job: PathBuf,
    /// The folder, where it is not the one that the job's last run wrote to
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn verify(args: &VerifyArgs, door: &Door) -> u8 {
    let job = match door.job(&args.job) {
        Ok(job) => job,
        Err(stuck) => return door.fail(&stuck),
    };
    let nothing = |folder: &Path| {
        Stuck::new(
            Outcome::Mismatch,
            format!("nothing has been published in {} yet", folder.display()),
            format!("harvester run {}", args.job.display()),
        )
    };
    let folder = match args.directory.clone().or_else(|| newest(&job.sink.directory)) {
        Some(folder) => folder,
        None => return door.fail(&nothing(&job.sink.directory)),
    };
    if !folder.is_dir() {
        return door.fail(&nothing(&folder));
    }
    let verification = match sinks::verify(&folder) {
        Ok(verification) => verification,
        Err(failure) => return door.fail(&failure.into()),
    };
    let written = door.text(&text(&verification));
    if verification.is_good() {
        return written;
    }
    let what = match verification.findings.len() {
        1 => format!("1 file in {} is", folder.display()),
        files => format!("{files} files in {} are", folder.display()),
    };
    door.fail(&Stuck::new(
        Outcome::Mismatch,
        format!("{what} not as the manifest says"),
        format!("put the files back, or fetch them anew: harvester run {}", args.job.display()),
    ))
}

/// A line for each file.
fn text(verification: &Verification) -> String {
    let mut text = String::new();
    let streams = verification.manifest.iter().flat_map(|manifest| manifest.streams.values());
    for stream in streams {
        if verification.findings.iter().all(|finding| finding.file != stream.file) {
            let _ = writeln!(text, "{}: ok, {}, {}", stream.file, plural(stream.rows, "row"), bytes(stream.bytes));
        }
    }
    for finding in &verification.findings {
        let _ = writeln!(text, "{}: {}", finding.file, finding.problem);
    }
    text
}

/// The folder of the newest run, where each has one of its own: run ids sort by time.
fn newest(directory: &Path) -> Option<PathBuf> {
    let mut parts: Vec<Component<'_>> = directory.components().collect();
    let is_pattern = |part: &Component<'_>| part.as_os_str().to_string_lossy().contains("{run}");
    let Some(at) = parts.iter().position(is_pattern) else { return Some(directory.to_owned()) };
    let behind = parts.split_off(at);
    let above: PathBuf = parts.iter().collect();
    let above = if above.as_os_str().is_empty() { PathBuf::from(".") } else { above };
    let pattern = behind.first()?.as_os_str().to_string_lossy().into_owned();
    let (before, after) = pattern.split_once("{run}")?;
    let mut runs: Vec<String> = fs::read_dir(above)
        .ok()?
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let run = name.strip_prefix(before)?.get(.."20260101T000000Z".len())?.to_owned();
            let shape: String = run.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            (shape == "00000000T000000Z" && name[before.len() + run.len()..] == after.replace("{run}", &run))
                .then_some(run)
        })
        .collect();
    runs.sort_unstable();
    Some(PathBuf::from(directory.to_string_lossy().replace("{run}", runs.last()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_run_is_found_and_nothing_else_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let pattern = folder.path().join("x-{run}").join("out");
        assert_eq!(newest(&pattern), None);
        for name in
            ["x-20260101T000000Z", "x-20270101T000000Z", "x-latest", "x-20280101T000000Z-old", "y-20290101T000000Z"]
        {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(newest(&pattern), Some(folder.path().join("x-20270101T000000Z/out")));
        assert_eq!(newest(Path::new("out")), Some("out".into()));
    }
}
