//! `harvester get`: one request, as curl would make it, but with authentication, retries and limits.

use std::{
    io::{self, ErrorKind, Write as _},
    ops::ControlFlow,
    path::PathBuf,
};

use clap::Args;
use harvester_actors::report::Outcome;

use super::{
    check::OUTAGE,
    context::{CommandContext, CommandError},
};
use crate::{
    ask::{self, GetRequest},
    assemble::Server,
    exit_code,
    job::{CredentialSource, Limits, SecretSource, base_url},
    service::{Signals, open_files},
};

/// Examples below the help.
pub(super) const EXAMPLES: &str = "\
Examples:
  harvester get system/info --job jobs/metadata.toml
  harvester get 'dataElements?fields=id,name' --all --job jobs/metadata.toml | head -3
  DHIS2_PASSWORD=… harvester get me --url https://dhis2.example.org --username reader

PATH is relative to /api. The body goes to stdout as it comes; with --all, the rows of all pages,
one a line.";

/// The variable that holds the password where no other is named.
const PASSWORD_VARIABLE: &str = "DHIS2_PASSWORD";

/// What `get` takes.
#[derive(Args, Debug)]
pub(super) struct GetArgs {
    /// What to ask for, relative to /api, with its query
    path: String,
    /// Ask for all pages, and print the rows as NDJSON
    #[arg(long)]
    all: bool,
    /// Take server, credentials and limits from a job file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["url", "username", "password_env", "token_env"])]
    job: Option<PathBuf>,
    /// The server, where there is no job file
    #[arg(long, value_name = "URL", required_unless_present = "job")]
    url: Option<String>,
    /// User name
    #[arg(long, value_name = "NAME", requires = "url")]
    username: Option<String>,
    /// The environment variable that holds the password [default: DHIS2_PASSWORD]
    #[arg(long, value_name = "VARIABLE", requires = "username")]
    password_env: Option<String>,
    /// The environment variable that holds a personal access token
    #[arg(long, value_name = "VARIABLE", conflicts_with = "username", requires = "url")]
    token_env: Option<String>,
}

/// Runs the command.
pub(super) fn get(args: &GetArgs, ctx: &CommandContext) -> u8 {
    let server = match &args.job {
        Some(path) => ctx.job(path).and_then(|job| {
            let (credentials, warning) = ctx.credentials(&job)?;
            for warning in job.warnings.iter().chain(&warning) {
                tracing::warn!("{warning}");
            }
            Ok(Server::of(&job, &credentials))
        }),
        None => match by_flags(args) {
            Ok(server) => server,
            Err(message) => return ctx.usage_error(&message, "see `harvester get --help`"),
        },
    };
    let mut server = match server {
        Ok(server) => server,
        Err(error) => return ctx.report_error(&error),
    };
    ctx.redactor.hide(&server.credentials);
    server.limits.outage = server.limits.outage.min(OUTAGE);
    let path = match ask::api_path(&args.path, &server.url) {
        Ok(path) => path,
        Err(message) => {
            return ctx.usage_error(&message, "PATH is relative to /api: system/info, or dataElements?fields=id");
        }
    };
    let before_query = path.split('?').next().unwrap_or_default();
    if args.all && before_query.trim_end_matches('/').contains('/') {
        return ctx.usage_error(
            &format!("`{}` is not a collection that --all can page through", before_query.escape_debug()),
            "leave out --all: the response then comes as it is",
        );
    }
    // One question after the other.
    if let Err(failure) = open_files::ensure(1) {
        return ctx.report_error(&failure.into());
    }
    let signals = Signals::install(None, || {}).unwrap_or_else(|_| Signals::none());
    let mut stdout = io::stdout().lock();
    let mut trouble = None;
    let mut write = |bytes: &[u8]| match stdout.write_all(bytes) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            trouble = Some(error);
            ControlFlow::Break(())
        }
    };
    let request = GetRequest { server, path, all: args.all, stop: signals.stop.clone() };
    let asked = ask::get(request, &mut write);
    let flushed = stdout.flush();
    drop(stdout);
    if let Some(error) = trouble.or(flushed.err()) {
        if error.kind() == ErrorKind::BrokenPipe {
            // `| head` has seen enough.
            return exit_code::COMPLETE;
        }
        return ctx.report_error(&CommandError::new(
            Outcome::Storage,
            format!("cannot write to stdout: {error}"),
            "see whether the disk that it goes to is full",
        ));
    }
    match (asked, signals.reason()) {
        (_, Some(reason)) => exit_code::exit_code(Outcome::Interrupted, Some(reason)),
        (Ok(()), None) => exit_code::COMPLETE,
        (Err(failure), None) => ctx.report_error(&failure.into()),
    }
}

/// The server that the flags describe; the outer error is a usage error.
fn by_flags(args: &GetArgs) -> Result<Result<Server, CommandError>, String> {
    let url = base_url(args.url.as_deref().unwrap_or_default()).map_err(|message| message.replace("`url`", "--url"))?;
    let source = match (&args.username, &args.token_env) {
        (Some(username), _) => {
            let variable = args.password_env.clone().unwrap_or_else(|| PASSWORD_VARIABLE.to_owned());
            CredentialSource::Basic { username: username.clone(), password: SecretSource::Env(variable) }
        }
        (None, Some(variable)) => CredentialSource::Token(SecretSource::Env(variable.clone())),
        (None, None) => return Err("--url needs --username or --token-env".to_owned()),
    };
    let environment = |name: &str| CommandContext::environment(name);
    Ok(source
        .resolve(&environment)
        .map(|(credentials, _)| Server { url, ca_file: None, limits: Limits::default(), credentials })
        .map_err(|error| CommandError::new(Outcome::Invalid, error.problem, error.next)))
}
