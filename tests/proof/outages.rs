//! An outage of every sort, at every moment of a run, short and long: the run goes on by itself, complete and exact.
//!
//! Time is scaled, twenty to one: 8 s, 60 s and 10 min are 0.4 s, 3 s and 30 s here, the limits with them. What a later
//! kind of request adds is a row in [`MOMENTS`].

use std::{
    fmt,
    process::Child,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use dhis2_stand_in::{Envelope, Fault, FaultRule, Latency, Match, Page, Request, StandIn};
use tokio::time::Instant;

use super::{Tally, amount, at_once};
use crate::support::{Ended, Place, side_by_side, stand_in, truth};

const EXTRACT: &str =
    "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\", \"dataElements\"]\npage_size = 50";

/// Ten minutes of patience for the source and its first byte are 45 s and 4 s here.
const LIMITS: &str =
    "in_flight = 2\nconnect_timeout_s = 2\nfirst_byte_timeout_s = 4\nstall_timeout_s = 4\noutage_s = 45";

/// 8 s, 60 s, 10 min, scaled.
const LENGTHS: [Duration; 3] = [Duration::from_millis(400), Duration::from_secs(3), Duration::from_secs(30)];

/// When the outage begins.
type Moment = (&'static str, fn(&Request, u64) -> bool);

/// Whether the outage begins with this request, given how many requests an undisturbed run sends.
const MOMENTS: [Moment; 6] = [
    ("at the first contact", |_, _| true),
    ("while it asks who that is", |request, _| request.path().ends_with("/system/info")),
    ("while it plans", |request, _| request.param("pageSize") == Some("1")),
    ("at the fifth page", |request, _| is_page(request) && request.number() > 8),
    ("at a listing", |request, _| is_listing(request)),
    ("at the last request", |request, requests| request.number() >= requests),
];

/// A page of rows.
fn is_page(request: &Request) -> bool {
    request.collection().is_some() && request.param("fields") != Some("id")
}

/// A listing, not a question for a number or for the ends of ranges.
fn is_listing(request: &Request) -> bool {
    request.collection().is_some() && request.param("fields") == Some("id") && request.param("pageSize") != Some("1")
}

/// What everybody gets meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sort {
    Refused,
    Silent,
    Unavailable,
    Unauthorized,
    Html,
}

impl Sort {
    const ALL: [Sort; 5] = [Sort::Refused, Sort::Silent, Sort::Unavailable, Sort::Unauthorized, Sort::Html];

    fn fault(self, lasting: Duration) -> Fault {
        match self {
            Sort::Refused => Fault::Refuse(Some(lasting)),
            Sort::Silent => Fault::Stall { at: None, lasting: None },
            Sort::Unavailable => Fault::status(503),
            Sort::Unauthorized => Fault::Unauthorized,
            Sort::Html => Fault::Html200(Page::Proxy),
        }
    }

    /// Codes with which a run may end instead; the same command resumes once it is over.
    ///
    /// - `is_first`: nothing else was ever answered.
    fn other_ends(self, is_first: bool) -> &'static [i32] {
        match self {
            // A page for people is asked again three times, then it is no outage but another server: 7, or 3 and 4 where other
            // streams were through.
            Sort::Html => &[3, 4, 7],
            Sort::Unauthorized if is_first => &[6],
            Sort::Unauthorized | Sort::Refused | Sort::Silent | Sort::Unavailable => &[],
        }
    }
}

/// One outage.
#[derive(Clone, Copy)]
struct Outage {
    moment: &'static Moment,
    sort: Sort,
    lasting: Duration,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} for {:?} {}", self.sort, self.lasting, self.moment.0)
    }
}

/// A server that leaves out half of one page, once, so that a listing is needed.
fn server() -> dhis2_stand_in::Builder {
    let fewer = FaultRule::on(Match::nth(3)).and_full_rows_only().act(Fault::Envelope(Envelope::FewerRows)).times(1);
    let latency = Latency::Constant(Duration::from_millis(5));
    stand_in().org_units(600).size("dataElements", 300).latency(latency).fault(fewer)
}

/// How many requests an undisturbed run sends.
fn requests() -> u64 {
    static REQUESTS: OnceLock<u64> = OnceLock::new();
    *REQUESTS.get_or_init(|| {
        let server = server().start().unwrap();
        let place = Place::new();
        place.job(server.url(), LIMITS, EXTRACT).run().assert_code(0, "undisturbed");
        server.ledger().count() as u64
    })
}

impl Outage {
    /// The rule, and when it began to apply.
    fn rule(self) -> (FaultRule, Arc<Mutex<Option<Instant>>>) {
        let began: Arc<Mutex<Option<Instant>>> = Arc::default();
        let (clock, requests) = (Arc::clone(&began), requests());
        let applies = move |request: &Request| {
            let mut began = clock.lock().unwrap();
            if began.is_none() && (self.moment.1)(request, requests) {
                *began = Some(Instant::now());
            }
            // A port that refuses needs no further word.
            began.is_some_and(|began| began.elapsed() < self.lasting)
        };
        let when = if self.sort == Sort::Refused { Match::nth(1) } else { Match::always() };
        (FaultRule::on(when).and(applies).act(self.sort.fault(self.lasting)), began)
    }

    /// Runs a job through it.
    fn prove(self) -> Result<(), String> {
        let (rule, began) = self.rule();
        let is_unheard = self.moment.0 == MOMENTS[0].0 && self.sort == Sort::Refused;
        let server = if is_unheard { server() } else { server().fault(rule) }.start().unwrap();
        let place = Place::new();
        place.job(server.url(), LIMITS, EXTRACT);
        // Nobody hears a request that nobody listens to: the port is closed before it and opened by the clock.
        let mut ended = if is_unheard {
            server.down();
            let child = start(&place);
            // Nothing but time passes while nobody listens.
            server.ledger().wait_until(self.lasting, |_| false);
            server.up();
            *began.lock().unwrap() = Some(Instant::now());
            Ended::of(child.wait_with_output().unwrap())
        } else {
            Ended::of(start(&place).wait_with_output().unwrap())
        };
        let Some(began) = *began.lock().unwrap() else { return Err("it never happened".into()) };
        let is_first = !server.ledger().requests().iter().any(|seen| seen.fault.is_none() && seen.arrived < began);
        if is_first && self.sort == Sort::Unauthorized && ended.code != 6 {
            return Err(format!("a first 401 is final, and it ended with {}", ended.code));
        }
        if self.sort.other_ends(is_first).contains(&ended.code) {
            server.ledger().wait_until(self.lasting.saturating_sub(began.elapsed()), |_| false);
            ended = place.run();
        }
        if ended.code != 0 {
            let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap_or_default();
            return Err(format!("ended with {} after {:?}: {}", ended.code, began.elapsed(), report["error"]));
        }
        self.exact(&server, &place)
    }

    fn exact(self, server: &StandIn, place: &Place) -> Result<(), String> {
        for collection in ["organisationUnits", "dataElements"] {
            if place.rows(collection) != truth(server, collection) {
                return Err(format!("{collection} differs"));
            }
        }
        Ok(())
    }
}

fn start(place: &Place) -> Child {
    let mut command = place.harvester(&["run", "job.toml", "--json"]);
    if let Some(control) = std::env::var_os("HARVESTER_CONTROL") {
        command.env("HARVESTER_CONTROL", control);
    }
    command.spawn().unwrap()
}

#[test]
fn whatever_outage_comes_and_whenever_the_run_goes_on_by_itself_and_is_exact() {
    let outages = Tally::default();
    let mut cases = Vec::new();
    let lengths = usize::try_from(amount("outage_lengths", 1)).unwrap();
    for lasting in LENGTHS.into_iter().take(lengths).rev() {
        for moment in &MOMENTS {
            cases.extend(Sort::ALL.map(|sort| Outage { moment, sort, lasting }));
        }
    }
    let wrong = Mutex::new(Vec::new());
    requests();
    side_by_side(cases, at_once(), |outage: Outage| match outage.prove() {
        Ok(()) => drop(outages.count()),
        Err(what) => wrong.lock().unwrap().push(format!("{outage}: {what}")),
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} outages:\n{}", wrong.len(), wrong.join("\n"));
    outages.tell("outage", "outages of every sort at every moment of a run, short and long");
}
