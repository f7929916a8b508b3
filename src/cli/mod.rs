//! The command line: one file per command, and the context they share.

mod check;
mod completions;
mod context;
mod demo;
mod get;
mod man;
mod plan;
mod run;
mod schema;
mod state_dir;
mod status;
mod verify;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::exit_code;

/// Examples below the help of the program itself.
const EXAMPLES: &str = "\
Examples:
  harvester demo                         see it work, without a server of your own
  harvester check jobs/metadata.toml     is everything in place?
  harvester run jobs/metadata.toml       run it, or resume where it stopped
  harvester status jobs/metadata.toml    how is it doing?
  harvester verify jobs/metadata.toml    are the files what they should be?

A job file says what is fetched from where, and where it goes; jobs/metadata.toml explains
every key. Stdout is data, stderr is for people.

Exit codes:
  0 complete              5 source unavailable     11 another process      78 job file
  1 bug                   6 authentication         12 checkpoint damaged  130 Ctrl-C
  2 usage                 7 refused for good       13 job changed         143 SIGTERM, SIGHUP
  3 some rows rejected   10 --max-seconds          14 local storage
  4 verification failed
After 5, 6, 10, 14, 130 and 143 the same command resumes where it stopped.";

/// Takes data out of a DHIS2 server: nothing lost, nothing twice, never above the limit.
#[derive(Debug, Parser)]
#[command(name = "harvester", version, after_help = EXAMPLES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What every command takes.
    #[command(flatten)]
    global: Global,
    /// The command.
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Args, Debug)]
struct Global {
    /// Where runs keep their state [default: $STATE_DIRECTORY, $XDG_STATE_HOME/harvester or ~/.local/state/harvester]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Say less: warnings and errors only; twice: errors only
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    /// Say more: partitions; twice: pages
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Log format on stderr
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    log_format: LogFormat,
    /// How progress is shown; auto: a bar on a terminal, else a line every 30 s
    #[arg(long, global = true, value_enum, default_value_t = Progress::Auto, value_name = "HOW")]
    progress: Progress,
}

/// Log format on stderr.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Progress {
    /// A bar on a terminal, else plain
    Auto,
    /// A block that is redrawn in place
    Bar,
    /// A line at the start and every 30 s
    Plain,
    /// Nothing
    None,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Command {
    /// Run a job, or resume it where it stopped; after a complete run, start a new one
    #[command(after_help = run::EXAMPLES)]
    Run(run::RunArgs),
    /// Show the partitions and requests a run would make; fetches no rows
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::PlanArgs),
    /// Check job file, login, version, sink and disk; one finding per line, with the fix
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    /// Show a job's progress, even while it runs
    #[command(after_help = status::EXAMPLES)]
    Status(status::StatusArgs),
    /// Compare the finished files with their manifest
    #[command(after_help = verify::EXAMPLES)]
    Verify(verify::VerifyArgs),
    /// Make one request, with authentication, retries and limits
    #[command(after_help = get::EXAMPLES)]
    Get(get::GetArgs),
    /// Start a small built-in DHIS2 and harvest it into ./harvest-demo
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Print the JSON Schema of the job file
    #[command(after_help = schema::EXAMPLES)]
    Schema,
    /// Print completions for a shell
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArgs),
    /// Print the man page
    #[command(after_help = man::EXAMPLES)]
    Man,
}

/// The whole program: reads the command line, does what it says, and returns the exit code.
pub fn main() -> ExitCode {
    // Reads `FAILPOINTS`.
    #[cfg(feature = "failpoints")]
    let _crash_points = fail::FailScenario::setup();
    ExitCode::from(run_with(std::env::args_os()))
}

/// The program for a command line.
fn run_with(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is a usage error. Who has closed the pipe knows already.
            let _ = error.print();
            return if error.use_stderr() { exit_code::USAGE } else { exit_code::COMPLETE };
        }
    };
    let ctx = context::CommandContext::new(&cli.global);
    ctx.install_panic_hook();
    let command = std::panic::AssertUnwindSafe(|| match &cli.command {
        Command::Run(args) => run::run(args, &ctx),
        Command::Plan(args) => plan::plan(args, &ctx),
        Command::Check(args) => check::check(args, &ctx),
        Command::Status(args) => status::status(args, &ctx),
        Command::Verify(args) => verify::verify(args, &ctx),
        Command::Get(args) => get::get(args, &ctx),
        Command::Demo(args) => demo::demo(args, &ctx),
        Command::Schema => schema::schema(&ctx),
        Command::Completions(args) => completions::completions(args, &ctx),
        Command::Man => man::man(&ctx),
    });
    // What the hook has said is enough.
    let code = std::panic::catch_unwind(command).unwrap_or(exit_code::BUG);
    ctx.flush();
    code
}

/// The command line as clap knows it, for completions and the man page.
fn command_line() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests;
