//! `harvester check`: would a run work, and if not, what to do.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use harvester_actors::report::Outcome;

use super::context::{CommandContext, CommandError};
use crate::{
    ask, assemble, checkpoint_health,
    exit_code::exit_code,
    job::{CAPABILITIES, Job},
    observe::{Finding, Severity, numbers::bytes},
    service::open_files::OpenFiles,
    sinks,
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester check jobs/metadata.toml
  harvester check jobs/metadata.toml && harvester run jobs/metadata.toml

Logs in once, asks for version and rights, creates and removes one file in the sink.
Fetches no rows.";

/// How long a source that does not answer is asked.
pub(super) const OUTAGE: Duration = Duration::from_secs(10);
/// Less free space than this is worth a note.
const FREE_BYTES_MIN: u64 = 1024 * 1024 * 1024;

/// What `check` takes.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// The job file
    job: PathBuf,
}

/// Runs the command.
pub(super) fn check(args: &CheckArgs, ctx: &CommandContext) -> u8 {
    let mut job = match ctx.job(&args.job) {
        Ok(job) => job,
        Err(error) => return ctx.report_error(&error),
    };
    job.limits.outage = job.limits.outage.min(OUTAGE);
    let mut findings = vec![Finding::ok("job", format!("{} is a valid job file", args.job.display()))];
    if let Err(diagnostics) = job.check_supported(&CAPABILITIES) {
        findings.push(failed("job", &CommandError::unsupported(&diagnostics)));
    }
    for warning in &job.warnings {
        findings.push(Finding::warning("job", warning.clone(), "use https"));
    }
    findings.extend(places(&job, ctx));
    let too_few = too_few(&OpenFiles::raised_for(job.limits.in_flight));
    let can_ask = too_few.is_none();
    findings.extend(too_few);
    match ctx.credentials(&job) {
        Ok((credentials, warning)) => {
            let from = job.source.credentials.describe();
            findings.push(Finding::ok("secret", format!("comes from {from}")));
            findings.extend(warning.map(|warning| Finding::warning("secret", warning, "")));
            if can_ask {
                findings.extend(ask::check(&job, &credentials));
            } else {
                findings.push(Finding::warning("source", "not asked: that takes more open files", ""));
            }
        }
        Err(error) => findings.push(failed("secret", &error)),
    }
    let written = ctx.write_text(&text(&findings));
    let worst = findings.iter().find(|finding| finding.severity == Severity::Error);
    match worst {
        Some(finding) => exit_code(finding.outcome, None),
        None => {
            ctx.notice(&format!("next: harvester run {}", args.job.display()));
            written
        }
    }
}

/// A finding that would make a run fail.
fn failed(subject: &'static str, error: &CommandError) -> Finding {
    Finding::error(subject, error.outcome, error.one_line.clone(), error.next.clone())
}

/// What can be seen on this machine.
fn places(job: &Job, ctx: &CommandContext) -> Vec<Finding> {
    let mut findings = Vec::new();
    match ctx.state_dir() {
        Ok(state_dir) => {
            let folder = assemble::state_folder(&state_dir, &job.name);
            findings.push(writable(&folder));
            findings.extend(space("state", &folder));
            findings.extend(far_away(&folder));
            findings.push(checkpoint_health::look(job, &folder));
        }
        Err(error) => findings.push(failed("state", &error)),
    }
    let sink = assemble::probe_sink(job);
    findings.push(match sink {
        Ok(()) => Finding::ok("sink", format!("{} can be written to", job.sink.directory.display())),
        Err(failure) => failed("sink", &failure.into()),
    });
    findings.extend(space("sink", &job.sink.directory));
    findings
}

/// The nearest thing at or above a path that is there.
fn nearest(path: &Path) -> PathBuf {
    let is_there = |path: &&Path| !path.as_os_str().is_empty() && fs::symlink_metadata(path).is_ok();
    path.ancestors().find(is_there).map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Whether a file can be made in the state folder, or in the nearest one above it.
fn writable(folder: &Path) -> Finding {
    let nearest = nearest(folder);
    match sinks::probe(&nearest) {
        Ok(()) => Finding::ok("state", format!("{} can be written to", folder.display())),
        Err(error) => Finding::error(
            "state",
            Outcome::Storage,
            format!("cannot create a file in {}: {}", nearest.display(), why(&error)),
            "change the folder's permissions, or say where else with --state-dir DIR",
        ),
    }
}

/// What the system said, without the name of a file that nobody knows.
fn why(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.kind().to_string(), |code| io::Error::from_raw_os_error(code).to_string())
}

/// How much room there is.
fn space(subject: &'static str, folder: &Path) -> Option<Finding> {
    let nearest = nearest(folder);
    let disk = rustix::fs::statvfs(&nearest).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let message = format!("{} free where {} is", bytes(free), nearest.display());
    Some(match free {
        0 => Finding::error(subject, Outcome::Storage, message, "free some space"),
        1..FREE_BYTES_MIN => {
            Finding::warning(subject, message, "see whether that is enough: data is there twice at the end")
        }
        _ => Finding::ok(subject, message),
    })
}

/// What is wrong where a run could not have as many open files as it needs.
fn too_few(files: &OpenFiles) -> Option<Finding> {
    (!files.are_enough()).then(|| Finding::error("files", Outcome::Storage, files.message(), files.next()))
}

/// A note where the state is kept on another machine.
fn far_away(folder: &Path) -> Option<Finding> {
    let nearest = nearest(folder);
    let kind = network_file_system(u32::try_from(rustix::fs::statfs(&nearest).ok()?.f_type & 0xffff_ffff).ok()?)?;
    Some(Finding::warning(
        "state",
        format!("{} is on a network file system ({kind})", nearest.display()),
        "keep the state on a local disk with --state-dir DIR: there, locks hold and what is synced stays",
    ))
}

/// What a file system is called that may lie on another machine; `None` for local ones.
///
/// - `magic`: as `statfs` tells it; source: linux `include/uapi/linux/magic.h`, and `fs/smb/common/smbfsctl.h`.
fn network_file_system(magic: u32) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("CIFS"),
        0x6573_5546 => Some("FUSE, like sshfs"),
        0x0102_1997 => Some("9P"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x00c3_6400 => Some("Ceph"),
        _ => None,
    }
}

/// One line for each finding, and one more with what to do.
fn text(findings: &[Finding]) -> String {
    findings.iter().fold(String::new(), |mut text, finding| {
        let severity = match finding.severity {
            Severity::Ok => "ok",
            Severity::Warning => "note",
            Severity::Error => "BAD",
        };
        let _ = writeln!(text, "{severity:<4}  {:<10}  {}", finding.subject, finding.message);
        if !finding.next.is_empty() {
            let _ = writeln!(text, "{:<16}  next: {}", "", finding.next);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_read_well_and_say_what_to_do() {
        let findings = [
            Finding::ok("job", "x.toml is a valid job file"),
            Finding::warning("clock", "the server's clock is 90 s ahead", "set the clock of one of them"),
            Finding::error("login", Outcome::Denied, "the source refuses admin (401)", "check the password"),
        ];
        insta::assert_snapshot!(text(&findings));
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_one_above_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&folder.path().join("a/b/c")), folder.path());
        assert_eq!(nearest(Path::new("no-such-folder/{run}")), Path::new("."));
        assert_eq!(writable(&folder.path().join("a")).severity, Severity::Ok);
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
        fs::write(folder.path().join("file"), "").unwrap();
        let finding = writable(&folder.path().join("file/job"));
        assert_eq!(finding.outcome, Outcome::Storage, "{finding:?}");
        assert!(!finding.message.contains(".harvester-check-"), "{finding:?}");
        assert!(space("state", folder.path()).is_some());
    }

    #[test]
    fn only_file_systems_of_other_machines_are_noted() {
        let magics = [
            ("ext4", 0xef53, None),
            ("xfs", 0x5846_5342, None),
            ("btrfs", 0x9123_683e, None),
            ("tmpfs", 0x0102_1994, None),
            ("overlay", 0x794c_7630, None),
            ("nfs4", 0x6969, Some("NFS")),
            ("smb3", 0xfe53_4d42, Some("CIFS")),
            ("fuse.sshfs", 0x6573_5546, Some("FUSE, like sshfs")),
        ];
        for (name, magic, kind) in magics {
            assert_eq!(network_file_system(magic), kind, "{name}");
        }
        assert_eq!(far_away(Path::new("/proc/self")), None);
    }
}
