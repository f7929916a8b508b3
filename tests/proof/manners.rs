//! The bad manners of real servers, load balancers and proxies, each alone and in pairs: 0 only with every row that lived
//! through the run in the file, once; otherwise another code, and a sentence.
//!
//! A later manner is a row in [`MANNERS`].

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::Mutex,
    time::Duration,
};

use dhis2_stand_in::{
    Builder, Change, Collation, Envelope, Fault, FaultRule, Kept, Latency, Match, Page, Quirk, Restart, StandIn,
};
use serde_json::Value;

use super::{Lots, Tally, amount, at_once};
use crate::support::{Ended, Place, side_by_side, stand_in};

/// What a server does, or what stands before it.
struct Manner {
    /// For messages.
    name: &'static str,
    /// The word in the ledger where it shows; empty where nothing could be written down.
    shows_as: &'static str,
    /// Makes a server like that.
    apply: Apply,
    /// Whether a few starts of the same command must come to a complete end.
    ends_well: bool,
}

/// Rows of each collection, about.
const ROWS: u64 = 500;

/// Runs of one command, the first included.
const STARTS: usize = 5;

/// What is no end at all: a run that goes on for so long goes round in circles.
const SECONDS_MAX: u64 = 100;

/// The collections of the job: one in a tree, one that holds sets.
const COLLECTIONS: [&str; 2] = ["organisationUnits", "dataElementGroups"];

type Apply = fn(Builder, &mut Lots) -> Builder;

const fn passing(name: &'static str, shows_as: &'static str, apply: Apply) -> Manner {
    Manner { name, shows_as, apply, ends_well: true }
}

const fn lasting(name: &'static str, shows_as: &'static str, apply: Apply) -> Manner {
    Manner { name, shows_as, apply, ends_well: false }
}

/// By lot on a share of the requests, in percent.
fn by_lot(lots: &mut Lots, percent: u32) -> FaultRule {
    FaultRule::on(Match::Chance(lots.below(1 << 32), f64::from(percent) / 100.0))
}

/// Once, at an early request of those that count.
fn once(lots: &mut Lots) -> FaultRule {
    FaultRule::on(Match::nth(1 + lots.below(8))).times(1)
}

/// All manners. A new one is a row.
static MANNERS: [Manner; 26] = [
    passing("sets in another order each time", "shuffled sets", |server, lots| {
        server.quirk(Quirk::ShuffledSets { seed: lots.below(1 << 32) })
    }),
    passing("401 on a hiccup", "Unauthorized", |server, lots| server.fault(by_lot(lots, 3).act(Fault::Unauthorized))),
    passing("database connections cut", "status", |server, lots| {
        let fault = Fault::database_cut(lots.below(1 << 32));
        server.fault(by_lot(lots, 8).and_rows_only().act(fault))
    }),
    passing("one empty row page", "Envelope", |server, lots| {
        server.fault(once(lots).and_full_rows_only().act(Fault::Envelope(Envelope::NoRows)))
    }),
    passing("one empty row page and one empty listing", "Envelope", |server, lots| {
        let empty = Fault::Envelope(Envelope::NoRows);
        server
            .fault(once(lots).and_full_rows_only().act(empty.clone()))
            .fault(FaultRule::on(Match::nth(1)).and(is_whole_listing).act(empty).times(1))
    }),
    passing("empty row pages by lot", "Envelope", |server, lots| {
        server.fault(by_lot(lots, 15).and_full_rows_only().act(Fault::Envelope(Envelope::NoRows)))
    }),
    lasting("no listing ever has a row", "Envelope", |server, lots| {
        let empty = Fault::Envelope(Envelope::NoRows);
        server
            .fault(by_lot(lots, 5).and_full_rows_only().act(empty.clone()))
            .fault(FaultRule::on(Match::always()).and(is_whole_listing).act(empty))
    }),
    passing("pages with the rows at their end cut off", "Envelope", |server, lots| {
        server.fault(by_lot(lots, 15).and_rows_only().act(Fault::Envelope(Envelope::FewerRows)))
    }),
    passing("206 with an empty array", "PartialContent", |server, lots| {
        server.fault(by_lot(lots, 20).and_rows_only().act(Fault::PartialContent))
    }),
    lasting("a replica that lags", "lagging replica", |server, lots| {
        let rows = 10 + u32::try_from(lots.below(200)).unwrap();
        server.quirk(Quirk::LaggingReplica { seed: lots.below(1 << 32), share: 0.5, rows })
    }),
    lasting("a replica that lags, seldom asked", "lagging replica", |server, lots| {
        server.quirk(Quirk::LaggingReplica { seed: lots.below(1 << 32), share: 0.1, rows: 100 })
    }),
    lasting("order ignored", "order ignored", |server, _| server.quirk(Quirk::OrderIgnored)),
    lasting("order descending", "order descending", |server, _| server.quirk(Quirk::OrderDescending)),
    lasting("filters that ignore case, an order that does not", "filters collate otherwise", |server, _| {
        server.quirk(Quirk::FiltersCollate(Collation::CaseInsensitive))
    }),
    lasting("an order that ignores case, filters that do not", "filters collate otherwise", |server, _| {
        server.collation(Collation::CaseInsensitive).quirk(Quirk::FiltersCollate(Collation::C))
    }),
    passing("a database that ignores case throughout", "", |server, _| server.collation(Collation::CaseInsensitive)),
    lasting("id:gt ignored", "id:gt ignored", |server, _| server.quirk(Quirk::IdGtIgnored)),
    lasting("id:gt understood as ge", "id:gt inclusive", |server, _| server.quirk(Quirk::IdGtInclusive)),
    lasting("a proxy that keeps the first filter", "filter dropped", |server, _| {
        server.quirk(Quirk::OneFilterOnly(Kept::First))
    }),
    lasting("a proxy that keeps the last filter", "filter dropped", |server, _| {
        server.quirk(Quirk::OneFilterOnly(Kept::Last))
    }),
    lasting("another database from a request on", "truth changed", |server, lots| {
        server.at_request(2 + lots.below(60), Change::Database { seed: 1_000 + lots.below(1_000) })
    }),
    passing("rows that come and go all the time", "truth changed", |server, lots| {
        let per_second = 20 + u32::try_from(lots.below(230)).unwrap();
        COLLECTIONS.iter().fold(server, |server, collection| {
            let server = server.steadily(per_second, Change::insert(collection, 1));
            server.steadily(per_second, Change::delete_some(collection, 1))
        })
    }),
    passing("an informational answer first", "Informational", |server, lots| {
        server.fault(by_lot(lots, 20).act(Fault::Informational(103)))
    }),
    passing("a page about maintenance", "Html200", |server, lots| {
        server.fault(by_lot(lots, 8).act(Fault::Html200(Page::Proxy)))
    }),
    passing("a clock that is ahead", "", |server, lots| {
        server.clock_skew_ms(1_000 * i64::try_from(lots.below(7_200)).unwrap())
    }),
    passing("silence after a restart", "Restart", |server, lots| {
        let phase = Duration::from_millis(500 + lots.below(1_000));
        server.fault(once(lots).act(Fault::Restart(Restart::bare(phase, phase))))
    }),
];

/// A listing of many ids, not one that looks for the ends of ranges or for the total.
fn is_whole_listing(request: &dhis2_stand_in::Request) -> bool {
    let size = request.param("pageSize").map(|size| size.parse::<u32>().unwrap_or(0));
    request.collection().is_some() && request.param("fields") == Some("id") && size.is_none_or(|size| size > 1)
}

/// The manners of a seed: each alone first, then two rounds in pairs, and so on.
fn manners_of(seed: u64, lots: &mut Lots) -> Vec<&'static Manner> {
    let all = MANNERS.len() as u64;
    let (round, place) = ((seed - 1) / all, (seed - 1) % all);
    let at = |place: u64| &MANNERS[usize::try_from(place % all).unwrap()];
    match round % 3 {
        0 => vec![at(place)],
        _ => vec![at(place), at(place + 1 + lots.below(all - 1))],
    }
}

/// Rows by their id, sets in an order of their own.
type Rows = HashMap<String, Value>;

fn read(line: &str, sets: &[&str]) -> (String, Value) {
    let mut row: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: a line is no row"));
    for set in sets {
        if let Some(items) = row.get_mut(*set).and_then(Value::as_array_mut) {
            items.sort_by_key(Value::to_string);
        }
    }
    (row["id"].as_str().unwrap_or_default().to_owned(), row)
}

fn truth(server: &StandIn, collection: &str) -> Rows {
    let sets = server.sets(collection);
    server.truth(collection, ":owner").iter().map(|row| read(row, &sets)).collect()
}

/// A server of one seed, and a job that harvests it.
struct Trial {
    server: StandIn,
    place: Place,
    /// The rows there were before the first request.
    before: Vec<Rows>,
    before_id: String,
    manners: Vec<&'static Manner>,
    what: String,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let mut lots = Lots::new(seed);
        let manners = manners_of(seed, &mut lots);
        let any =
            |lots: &mut Lots, choices: &[u32]| choices[usize::try_from(lots.below(choices.len() as u64)).unwrap()];
        let version = ["2.40", "2.42", "2.43"][usize::try_from(lots.below(3)).unwrap()];
        let (page_size, in_flight) = (any(&mut lots, &[20, 50, 100]), any(&mut lots, &[1, 2, 8]));
        let rows = u32::try_from(ROWS + lots.below(200)).unwrap();
        let server = stand_in()
            .version(version)
            .seed(seed)
            .org_units(rows)
            .size("dataElementGroups", rows / 2)
            .latency(Latency::Constant(Duration::from_millis(lots.below(10))));
        let server = manners.iter().fold(server, |server, manner| (manner.apply)(server, &mut lots)).start().unwrap();
        let place = Place::new();
        // One that all rows pass: with it a proxy has something to drop.
        let extract = format!(
            "[[extract]]\nkind = \"metadata\"\ncollections = [\"{}\"]\nfilters = [\"created:ge:2000-01-01\"]\npage_size = {page_size}",
            COLLECTIONS.join("\", \"")
        );
        let limits = format!("in_flight = {in_flight}\nfirst_byte_timeout_s = 5\nstall_timeout_s = 5\noutage_s = 20");
        place.job(server.url(), &limits, &extract);
        let before = COLLECTIONS.iter().map(|collection| truth(&server, collection)).collect();
        server.mark();
        let names: Vec<_> = manners.iter().map(|manner| manner.name).collect();
        Trial {
            before,
            before_id: server.system_id(),
            what: format!("seed {seed}, {}, {version}, pages of {page_size}, {in_flight} in flight", names.join(" + ")),
            manners,
            server,
            place,
        }
    }

    fn run(&self) -> Ended {
        let seconds = SECONDS_MAX.to_string();
        let mut command = self.place.harvester(&["run", "job.toml", "--json", "--max-seconds", &seconds]);
        if let Some(control) = std::env::var_os("HARVESTER_CONTROL") {
            command.env("HARVESTER_CONTROL", control);
        }
        Ended::of(command.output().unwrap())
    }

    /// Runs the job until it is complete, or as often as a person would; what is wrong with how it ended, if anything.
    fn judge(&self) -> Result<(), String> {
        let mut codes = Vec::new();
        for _ in 0..STARTS {
            let ended = self.run();
            codes.push(ended.code);
            let report = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
            match ended.code {
                0 => return self.compare(&report).map_err(|wrong| format!("ended with 0 ({codes:?}): {wrong}")),
                3 | 4 | 5 | 6 | 7 | 13 => {
                    let said = report["error"]["message"].as_str().unwrap_or_default();
                    if said.is_empty() {
                        return Err(format!("ended with {} and says nothing: {report}", ended.code));
                    }
                    if ended.code == 13 {
                        break;
                    }
                }
                code => {
                    let tail: String =
                        ended.stderr.chars().rev().take(600).collect::<Vec<_>>().into_iter().rev().collect();
                    return Err(format!("ended with {code} ({codes:?}): {} … {tail}", report["error"]));
                }
            }
        }
        if self.manners.iter().all(|manner| manner.ends_well) {
            Err(format!("never came to an end: {codes:?}"))
        } else {
            Ok(())
        }
    }

    /// The manners that the ledger witnessed.
    fn shown(&self) -> impl Iterator<Item = &'static str> {
        let seen = self.server.ledger().requests();
        let shows = move |manner: &&&Manner| {
            let word = manner.shows_as;
            seen.iter().any(|seen| {
                seen.quirks.contains(&word) || seen.fault.as_deref().is_some_and(|fault| fault.starts_with(word))
            })
        };
        self.manners.iter().filter(shows).map(|manner| manner.name).collect::<Vec<_>>().into_iter()
    }

    /// What is wrong with the finished files.
    fn compare(&self, report: &Value) -> Result<(), String> {
        let switched = self.server.system_id() != self.before_id;
        let mut databases = HashSet::new();
        for (collection, before) in COLLECTIONS.iter().zip(&self.before) {
            let lines = self.place.rows(collection);
            let now = truth(&self.server, collection);
            let sets = self.server.sets(collection);
            let rows: Vec<(String, Value)> = lines.iter().map(|line| read(line, &sets)).collect();
            let ids: HashSet<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
            let mut wrong = String::new();
            let mut note = |what: &str, count: usize| {
                if count > 0 {
                    let _ = write!(wrong, "{count} {what}; ");
                }
            };
            note("twice", rows.len() - ids.len());
            note("out of order", rows.windows(2).filter(|pair| pair[0].0 > pair[1].0).count());
            if report["streams"][collection]["rows"].as_u64() != Some(lines.len() as u64) {
                note("rows in the file, otherwise in the report", lines.len());
            }
            if switched {
                let (old, new) = (before.keys().filter(|id| ids.contains(id.as_str())).count(), rows.len());
                databases.insert(old > 0);
                let all = if old > 0 { before } else { &now };
                note("of another database", if old > 0 { new - old } else { 0 });
                note("lost", all.keys().filter(|id| !ids.contains(id.as_str())).count());
            } else {
                let survivors = self.server.truth_survivors(collection);
                let appeared: HashSet<String> = self.server.appeared(collection).into_iter().collect();
                note("lost", survivors.iter().filter(|id| !ids.contains(id.as_str())).count());
                note(
                    "invented",
                    rows.iter().filter(|(id, _)| !before.contains_key(id) && !appeared.contains(id)).count(),
                );
            }
            let differs = |(id, row): &&(String, Value)| {
                let known = before.get(id).or_else(|| now.get(id));
                known.is_some_and(|known| known != row)
            };
            note("differ", rows.iter().filter(differs).count());
            if !wrong.is_empty() {
                return Err(format!("{collection}: {wrong}of {}", before.len()));
            }
        }
        if databases.len() > 1 { Err("files of two databases".into()) } else { Ok(()) }
    }
}

#[test]
fn a_server_without_manners_gets_no_0_while_a_row_that_lived_through_the_run_is_missing() {
    let seeds = Tally::default();
    let (wrong, shown) = (Mutex::new(Vec::new()), Mutex::new(HashSet::new()));
    let first = amount("first_seed", 1);
    let wanted = amount("manners", MANNERS.len() as u64);
    side_by_side((first..first + wanted).collect(), at_once(), |seed: u64| {
        let trial = Trial::new(seed);
        let judged = trial.judge();
        shown.lock().unwrap().extend(trial.shown());
        match judged {
            Ok(()) => drop(seeds.count()),
            Err(what) => wrong.lock().unwrap().push(format!("{}: {what}", trial.what)),
        }
    });
    let mut wrong = wrong.into_inner().unwrap();
    wrong.sort();
    assert!(wrong.is_empty(), "{} of the seeds:\n{}", wrong.len(), wrong.join("\n"));
    // What never showed proves nothing.
    let shown = shown.into_inner().unwrap();
    let silent = MANNERS.iter().filter(|manner| !manner.shows_as.is_empty() && !shown.contains(manner.name));
    let silent: Vec<_> = silent.map(|manner| manner.name).collect();
    // One run of a manner that strikes by lot may be spared; six are not.
    assert!(silent.is_empty() || wanted < 6 * MANNERS.len() as u64, "these never showed: {silent:?}");
    seeds.tell("manner", "bad manners of servers and proxies, alone and in pairs");
}
