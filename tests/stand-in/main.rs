//! `dhis2-stand-in`: the stand-in as a process. Prints its url as one line, serves until it is killed.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use dhis2_stand_in::{Change, Collation, FaultRule, Framing, Latency, Quirk, StandIn, User};

/// A small DHIS2: content by formula, every dialect from 2.25 to 2.43, faults that wrap the truth.
#[derive(Parser)]
#[command(name = "dhis2-stand-in", disable_version_flag = true)]
struct Cli {
    /// Version it speaks, 2.25 to 2.43, with or without a patch
    #[arg(long, default_value = "2.40")]
    version: String,
    /// Organisation units; the other collections' sizes follow from it
    #[arg(long, default_value_t = 1000)]
    org_units: u32,
    /// Size of one other collection, e.g. dataElements=5000; repeatable
    #[arg(long, value_name = "COLLECTION=ROWS")]
    size: Vec<String>,
    /// What the content is computed from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Port on 127.0.0.1; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Path before /api, e.g. /dhis
    #[arg(long, default_value = "")]
    context_path: String,
    /// Superuser's name
    #[arg(long, default_value = "admin")]
    user: String,
    /// Superuser's password
    #[arg(long, default_value = "district")]
    password: String,
    /// Superuser's personal access token (2.37 and later)
    #[arg(long)]
    token: Option<String>,
    /// Somebody who sees only a share of the rows: NAME:PASSWORD:PERCENT; repeatable
    #[arg(long, value_name = "NAME:PASSWORD:PERCENT")]
    limited_user: Vec<String>,
    /// The database's identity
    #[arg(long)]
    system_id: Option<String>,
    /// How the database orders text
    #[arg(long, value_enum, default_value_t = Order::C)]
    collation: Order,
    /// Stops the server's clock, e.g. 2024-05-01T10:11:12.345
    #[arg(long)]
    server_date: Option<String>,
    /// Thinks so long about every request
    #[arg(long, default_value_t = 0)]
    latency_ms: u64,
    /// With --latency-ms: so many requests at once cost nothing extra, more make it slower
    #[arg(long)]
    knee: Option<usize>,
    /// What checking a password costs
    #[arg(long, default_value_t = 0)]
    password_check_ms: u64,
    /// Compresses for clients that accept it
    #[arg(long)]
    gzip: bool,
    /// Sends bodies in chunks
    #[arg(long)]
    chunked: bool,
    /// Answers a collection with a status, e.g. users=403; repeatable
    #[arg(long, value_name = "COLLECTION=STATUS")]
    refuse: Vec<String>,
    /// A fault, e.g. `every=10,status=503,retry-after=2`, `nth=3,path=organisationUnits,cut=100,times=1`, `mixed=0.05,seed=7`;
    /// repeatable. When: nth, every, first, from, chance; narrowed by path, rows, listings; ended by times, lasting-ms. What: status
    /// (retry-after, body), close, reset, reset-after, cut, cut-share (framing, gzipped), stall, stall-at, drip, delay-ms, html,
    /// login, empty, redirect, garble, bad-crc, stale, unauthorized, lose-sessions, refuse-ms, restart-ms, hang-ms, too-heavy,
    /// no-rows, fewer-rows, partial, database-cut, export-cut, informational, mixed
    #[arg(long, value_name = "RULE")]
    fault: Vec<String>,
    /// Something odd about the server, or about the proxy before it; repeatable: shuffled-sets=SEED, lagging-replica=ROWS,
    /// order-ignored, order-descending, filters-collate=c|case-insensitive, id-gt-ignored, id-gt-inclusive,
    /// one-filter-only=first|last
    #[arg(long)]
    quirk: Vec<Quirk>,
    /// So many rows of each of these collections come and go each second, e.g. dataElements=50; repeatable
    #[arg(long, value_name = "COLLECTION=ROWS")]
    change_per_second: Vec<String>,
    /// Becomes another database at this request
    #[arg(long, value_name = "REQUEST")]
    another_database_at: Option<u64>,
    /// How far the server's clock is ahead
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    clock_ahead_s: Option<i64>,
    /// Appends every request to this file as JSON lines
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Ends when its standard input does, so that no test leaves it behind
    #[arg(long)]
    until_stdin_closes: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Order {
    /// By bytes
    C,
    /// As en_US: case only breaks ties
    CaseInsensitive,
}

fn pair<T: std::str::FromStr>(text: &str) -> anyhow::Result<(&str, T)> {
    let parsed = text.split_once('=').and_then(|(name, value)| Some((name, value.parse().ok()?)));
    parsed.with_context(|| format!("`{text}` should be NAME=NUMBER"))
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let mut admin = User::superuser(&cli.user, &cli.password);
    if let Some(token) = &cli.token {
        admin = admin.with_token(token);
    }
    let latency = Duration::from_millis(cli.latency_ms);
    let latency = match (cli.latency_ms, cli.knee) {
        (0, _) => Latency::None,
        (_, None) => Latency::Constant(latency),
        (_, Some(at)) => Latency::Knee { service: latency, at, refuses_above: None },
    };
    let mut builder = StandIn::builder()
        .version(&cli.version)
        .org_units(cli.org_units)
        .seed(cli.seed)
        .port(cli.port)
        .context_path(&cli.context_path)
        .user(admin)
        .password_check(Duration::from_millis(cli.password_check_ms))
        .latency(latency)
        .collation(match cli.collation {
            Order::C => Collation::C,
            Order::CaseInsensitive => Collation::CaseInsensitive,
        });
    for text in &cli.limited_user {
        let mut parts = text.rsplitn(2, ':');
        let percent = parts.next().and_then(|percent| percent.parse().ok());
        let (percent, (name, password)) = percent
            .zip(parts.next().and_then(|rest| rest.split_once(':')))
            .with_context(|| "--limited-user should be NAME:PASSWORD:PERCENT")?;
        builder = builder.user(User::limited(name, password, percent));
    }
    for text in &cli.size {
        let (collection, rows) = pair(text)?;
        builder = builder.size(collection, rows);
    }
    for text in &cli.refuse {
        let (collection, status) = pair(text)?;
        builder = builder.refuse_collection(collection, status);
    }
    for text in &cli.fault {
        let rule: FaultRule =
            text.parse().map_err(anyhow::Error::msg).with_context(|| format!("in --fault `{text}`"))?;
        builder = builder.fault(rule);
    }
    for quirk in &cli.quirk {
        builder = builder.quirk(*quirk);
    }
    for text in &cli.change_per_second {
        let (collection, rows) = pair(text)?;
        let changes = [Change::insert(collection, 1), Change::delete_some(collection, 1)];
        builder = changes.into_iter().fold(builder, |builder, change| builder.steadily(rows, change));
    }
    if let Some(number) = cli.another_database_at {
        builder = builder.at_request(number, Change::Database { seed: cli.seed.wrapping_add(1) });
    }
    if let Some(seconds) = cli.clock_ahead_s {
        builder = builder.clock_skew_ms(seconds.saturating_mul(1000));
    }
    if let Some(system_id) = &cli.system_id {
        builder = builder.system_id(system_id);
    }
    if let Some(date) = &cli.server_date {
        builder = builder.server_date(date);
    }
    if let Some(path) = &cli.ledger {
        builder = builder.ledger_file(path);
    }
    if cli.gzip {
        builder = builder.gzip();
    }
    if cli.chunked {
        builder = builder.framing(Framing::Chunked);
    }
    let stand_in = builder.start().context("cannot start")?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", stand_in.url())?;
    stdout.flush()?;
    if cli.until_stdin_closes {
        std::io::stdin().lock().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}
