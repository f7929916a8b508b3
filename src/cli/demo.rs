//! `harvester demo`: the whole way in one command, against a small server that is started for it.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use clap::Args;
use dhis2_stand_in::StandIn;
use harvester_actors::report::Outcome;

use super::{
    context::{CommandContext, CommandError},
    run,
};
use crate::observe::report::ReportContext;

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester demo
  harvester verify harvest-demo/demo.toml

Interrupt it with Ctrl-C and type it again: it resumes where it stopped.";

/// What `demo` takes.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {}

/// Where everything goes.
const FOLDER: &str = "harvest-demo";
/// The job of the demo, as it stands in `jobs/`.
const JOB: &str = include_str!("../../jobs/demo.toml");
/// The stand-in's first user.
const USER: (&str, &str) = ("admin", "district");
/// A port that stays the same, so that an interrupted demo can go on.
const PORT: u16 = 41_737;
/// What the stand-in holds: a few hundred pages.
const ORG_UNITS: u32 = 20_000;

/// Runs the command.
pub(super) fn demo(_: &DemoArgs, ctx: &CommandContext) -> u8 {
    let path = Path::new(FOLDER).join("demo.toml");
    let ended = (|| {
        let (server, is_same) = start()?;
        write_job(&path, server.url())?;
        ctx.notice(&format!(
            "A small DHIS2 answers at {} until the demo is over; its data goes to {FOLDER}/.",
            server.url()
        ));
        let (job, credentials) = run::prepare(&path, ctx)?;
        // On another port it is another source: nothing to go on with.
        // Of its own, so that demos in two folders are not two job files of one name.
        let state_dir = ctx.state_dir_or(&Path::new(FOLDER).join(".state"))?;
        let report = run::harvest(job, credentials, state_dir, !is_same, None, ctx)?;
        drop(server);
        let job_file = path.display().to_string();
        let (command, directory) = ("harvester demo".to_owned(), FOLDER.to_owned());
        Ok((report, ReportContext { job_file, command, directory, is_verbose: ctx.verbose > 0 }))
    })();
    let is_complete =
        ended.as_ref().is_ok_and(|(report, _): &(harvester_actors::report::Report, _)| report.exit_code == 0);
    let code = run::finish(ended, &path, false, ctx);
    if is_complete {
        ctx.notice(&format!(
            "\n\
             look:   head -n 3 {FOLDER}/organisationUnits.ndjson\n\
             check:  (cd {FOLDER} && jq -r '.streams[] | \"\\(.sha256)  \\(.file)\"' manifest.json | sha256sum -c)\n\
             yours:  cp {FOLDER}/demo.toml my-server.toml, put your url and user into it, then:\n        \
             harvester check my-server.toml && harvester run my-server.toml"
        ));
    }
    code
}

/// Starts the stand-in, on the usual port where that is free; says whether it was.
fn start() -> Result<(StandIn, bool), CommandError> {
    let builder = |port| StandIn::builder().org_units(ORG_UNITS).port(port);
    if let Ok(server) = builder(PORT).start() {
        return Ok((server, true));
    }
    let cannot = |error| {
        CommandError::new(
            Outcome::Storage,
            format!("cannot start the stand-in on 127.0.0.1: {error}"),
            "see whether this machine lets programs listen on loopback",
        )
    };
    builder(0).start().map(|server| (server, false)).map_err(cannot)
}

/// Writes the demo's job file: the one in `jobs/`, with the address of the server and its password.
fn write_job(path: &Path, url: &str) -> Result<(), CommandError> {
    let written = (|| {
        fs::create_dir_all(FOLDER)?;
        let _ = fs::remove_file(path);
        // Its password stands in it, so nobody else may read it.
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(job_text(url).as_bytes())
    })();
    written.map_err(|error: std::io::Error| {
        CommandError::new(
            Outcome::Storage,
            format!("cannot write {}: {error}", path.display()),
            "go to a folder that you can write to, and type it again",
        )
    })
}

/// The demo's job.
fn job_text(url: &str) -> String {
    let header = "# The job that `harvester demo` has run. Its server is gone; put your own url and user here.\n";
    // The comment at the top tells how to start a server by hand; here one has been running.
    let body = JOB.find("version = 1").map_or(JOB, |at| &JOB[at..]);
    let body =
        body.replace("http://127.0.0.1:8080", url).replace("{ env = \"DHIS2_PASSWORD\" }", &format!("\"{}\"", USER.1));
    format!("{header}\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{CAPABILITIES, CredentialSource, Job, SecretSource};

    #[test]
    fn the_job_of_the_demo_is_the_one_in_jobs_with_its_server_and_password() {
        let text = job_text("http://127.0.0.1:41737");
        let job = Job::parse(Path::new("harvest-demo/demo.toml"), &text, true).unwrap();
        assert_eq!(job.source.url.as_str(), "http://127.0.0.1:41737/");
        let CredentialSource::Basic { username, password: SecretSource::Inline(password) } = &job.source.credentials
        else {
            panic!("{text}")
        };
        assert_eq!((username.as_str(), password.expose()), USER);
        assert_eq!(job.sink.directory, Path::new(FOLDER));
        assert!(job.check_supported(&CAPABILITIES).is_ok());
    }
}
