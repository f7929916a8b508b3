//! `harvester verify`: are the files what their manifest says?

use std::{
    fmt::Write as _,
    fs,
    path::{Component, Path, PathBuf},
};

use clap::Args;
use harvester_actors::report::Outcome;

use super::context::{CommandContext, CommandError};
use crate::{
    observe::numbers::{bytes, plural},
    sinks::{self, Verification, Whose},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester verify jobs/metadata.toml
  harvester verify jobs/metadata.toml --directory out/20260101T000000Z

Exit 0 when every file is what manifest.json says, 4 when one differs or is another job's, or a newer run is half published.";

/// What `verify` takes.
#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// The job file
    job: PathBuf,
    /// Directory to verify [default: the last run's]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn verify(args: &VerifyArgs, ctx: &CommandContext) -> u8 {
    let job = match ctx.job(&args.job) {
        Ok(job) => job,
        Err(error) => return ctx.report_error(&error),
    };
    let nothing = |folder: &Path| {
        CommandError::new(
            Outcome::Mismatch,
            format!("nothing has been published in {} yet", folder.display()),
            format!("harvester run {}", args.job.display()),
        )
    };
    let folder = match args.directory.clone().or_else(|| newest(&job.sink.directory, &job.name)) {
        Some(folder) => folder,
        None => return ctx.report_error(&nothing(&job.sink.directory)),
    };
    if !folder.is_dir() {
        return ctx.report_error(&nothing(&folder));
    }
    let verification = match sinks::verify(&folder, Whose { job: &job.name, url: &job.source.url }) {
        Ok(verification) => verification,
        Err(failure) => return ctx.report_error(&failure.into()),
    };
    let written = ctx.write_text(&text(&verification));
    if verification.is_good() {
        return written;
    }
    if let Some(foreign) = verification.findings.iter().find(|finding| finding.problem.is_foreign()) {
        let file = folder.join(&foreign.file);
        return ctx.report_error(&CommandError::new(
            Outcome::Mismatch,
            format!("{} {}, and this is `{}` from {}", file.display(), foreign.problem, job.name, job.source.url),
            format!(
                "say where this job's files are with --directory DIR, or fetch them into a `sink.directory` of their own: \
                 harvester run {}",
                args.job.display()
            ),
        ));
    }
    let what = match verification.findings.len() {
        1 => format!("1 file in {} is", folder.display()),
        files => format!("{files} files in {} are", folder.display()),
    };
    ctx.report_error(&CommandError::new(
        Outcome::Mismatch,
        format!("{what} different from the manifest"),
        format!("put the files back, or fetch them again: harvester run {}", args.job.display()),
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

/// The folder of the job's newest run, where each has one of its own: run ids sort by time.
fn newest(directory: &Path, job: &str) -> Option<PathBuf> {
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
    let folder = |run: &String| PathBuf::from(directory.to_string_lossy().replace("{run}", run));
    // Other jobs may have their runs beside ours, and a run that still prepares its files has published nothing; where there
    // is nothing else, whoever looks there says so.
    let is_meant = |folder: &PathBuf| !sinks::is_of_another_job(folder, job) && !sinks::is_unpublished(folder);
    let newest = runs.iter().rev().map(folder).find(is_meant);
    newest.or_else(|| runs.last().map(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_run_is_found_and_nothing_else_is_taken_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let pattern = folder.path().join("x-{run}").join("out");
        assert_eq!(newest(&pattern, "a"), None);
        for name in
            ["x-20260101T000000Z", "x-20270101T000000Z", "x-latest", "x-20280101T000000Z-old", "y-20290101T000000Z"]
        {
            fs::create_dir_all(folder.path().join(name).join("out")).unwrap();
            fs::write(folder.path().join(name).join("out/manifest.json"), "{").unwrap();
        }
        assert_eq!(newest(&pattern, "a"), Some(folder.path().join("x-20270101T000000Z/out")));
        assert_eq!(newest(Path::new("out"), "a"), Some("out".into()));
    }

    #[test]
    fn a_run_that_still_prepares_its_files_is_not_the_newest_and_one_that_lost_its_manifest_is() {
        let folder = tempfile::tempdir().unwrap();
        let runs = [
            ("20260101T000000Z", vec!["a.ndjson", "manifest.json"]),
            ("20260102T000000Z", vec!["a.ndjson"]),
            ("20260103T000000Z", vec!["a.ndjson.part", "manifest.json.part.new"]),
            ("20260104T000000Z", vec![]),
        ];
        let pattern = folder.path().join("{run}");
        for (run, expected) in [(4, 1), (3, 1), (2, 1), (1, 0)] {
            fs::remove_dir_all(folder.path()).unwrap();
            for (run, files) in &runs[..run] {
                fs::create_dir_all(folder.path().join(run)).unwrap();
                files.iter().for_each(|file| fs::write(folder.path().join(run).join(file), "{").unwrap());
            }
            assert_eq!(newest(&pattern, "a"), Some(folder.path().join(runs[expected].0)), "{run} runs");
        }
        fs::remove_dir_all(folder.path().join("20260101T000000Z")).unwrap();
        fs::create_dir_all(folder.path().join("20260104T000000Z")).unwrap();
        assert_eq!(newest(&pattern, "a"), Some(folder.path().join("20260104T000000Z")), "none is published");
    }

    #[test]
    fn the_newest_run_of_another_job_in_the_same_folder_is_not_this_ones() {
        let folder = tempfile::tempdir().unwrap();
        for (run, job, name) in [
            ("20260101T000000Z", "a", "manifest.json"),
            ("20260102T000000Z", "b", "manifest.json"),
            ("20260103T000000Z", "b", "manifest.json.part"),
            ("20260104T000000Z", "a", "manifest.json.part"),
            ("20260105T000000Z", "b", "manifest.json"),
        ] {
            let dir = folder.path().join(run);
            fs::create_dir(&dir).unwrap();
            let manifest = format!(
                r#"{{"version":1,"job":"{job}","run_id":"{run}","source":{{"url":"http://x","systemId":null,"version":"2.40"}},
                "started_at":"","finished_at":"","complete":true,"watermarks":{{}},"streams":{{}}}}"#
            );
            fs::write(dir.join(name), manifest).unwrap();
        }
        let pattern = folder.path().join("{run}");
        for (job, run) in [("a", "20260104T000000Z"), ("b", "20260105T000000Z"), ("c", "20260105T000000Z")] {
            assert_eq!(newest(&pattern, job), Some(folder.path().join(run)), "{job}");
        }
    }
}
