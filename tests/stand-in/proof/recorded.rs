//! Asks the stand-in what real servers were asked, at the same version, and holds its answers against theirs.
//!
//! Compared are status, content type, members and their types, the pager's numbers and the sentences of errors; rows
//! differ, since the country is another one of the same size. What differs on purpose is in `differences.rs`.
//!
//! The recordings lie outside the project (`../shared/recorded`, or where `DHIS2_RECORDED` says). Without them nothing is
//! proved here, which a line says; with `CI=true` it is an error.

mod differences;
mod exchange;
mod ids;
mod shape;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use differences::DIFFERENCES;
use exchange::Exchange;
use ids::Ids;
use serde_json::Value;
use shape::Shape;

use super::client::{Client, Got, basic};
use crate::{Builder, StandIn, User};

const VERSIONS: &[&str] = &["2.40", "2.42", "2.43"];

#[expect(clippy::disallowed_methods, reason = "only the environment says where the recordings lie")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where the recordings are; `None`, said aloud, where they are not.
fn recordings() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/recorded");
    let folder = environment("DHIS2_RECORDED").map_or(beside, PathBuf::from);
    if folder.join("2.40/truth.json").is_file() {
        return Some(folder);
    }
    // To the handle itself, since what a passing test prints is not shown.
    let _ = writeln!(
        std::io::stderr(),
        "NOT PROVED HERE: that the stand-in answers as real servers do; no recordings in {} (DHIS2_RECORDED)",
        folder.display()
    );
    assert!(environment("CI").is_none_or(|ci| ci != "true"), "CI needs the recordings");
    None
}

/// One version's recordings and a stand-in of the same version and size.
struct Side {
    version: &'static str,
    exchanges: Vec<Exchange>,
    /// Row members that a collection's schema knows, by the collection's name.
    schemas: BTreeMap<String, BTreeSet<String>>,
    stand_in: StandIn,
    ids: Ids,
    /// Unit ids in order, theirs and ours.
    units: (Vec<String>, Vec<String>),
}

impl Side {
    fn new(folder: &Path, version: &'static str) -> Self {
        let folder = folder.join(version);
        let mut exchanges: Vec<Exchange> =
            std::fs::read_dir(&folder).unwrap().filter_map(|entry| Exchange::read(&entry.ok()?.path())).collect();
        exchanges.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(exchanges.len() > 400, "{}: {} exchanges", folder.display(), exchanges.len());
        let truth: Value = serde_json::from_slice(&std::fs::read(folder.join("truth.json")).unwrap()).unwrap();
        let stand_in = builder(&truth, &exchanges).start().unwrap();
        let mut ids = Ids::new(&truth, &stand_in);
        let tracker_program = stand_in.id_of_row("programs", 1).unwrap();
        ids.name(truth["te0"].as_str().unwrap(), &stand_in.truth_tracked("trackedEntities", &tracker_program)[0]);
        let mut theirs: Vec<String> = ["root", "regions", "districts", "facilities"]
            .iter()
            .flat_map(|name| match &truth[name] {
                Value::Array(items) => items.clone(),
                one => vec![one.clone()],
            })
            .filter_map(|id| id.as_str().map(Into::into))
            .collect();
        theirs.sort_unstable();
        let units = (theirs, stand_in.ids("organisationUnits"));
        Self { version, schemas: schemas(&folder), exchanges, stand_in, ids, units }
    }

    fn ask(&self, exchange: &Exchange, target: &str) -> Got {
        let mut headers: Vec<(&str, String)> =
            exchange.headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        match exchange.who.as_str() {
            "none" => {}
            "wrong" => headers.push(("Authorization", basic("admin", "wrong"))),
            "half" => headers.push(("Authorization", basic("halfreader", "district"))),
            name => headers.push(("Authorization", basic(name, "district"))),
        }
        // What was sent besides is not in the recording.
        match exchange.name.as_str() {
            "auth-bad-token" => headers.push(("Authorization", format!("ApiToken d2pat_{}0000000000", "x".repeat(32)))),
            "auth-bad-bearer" => headers.push(("Authorization", "Bearer nosuch".into())),
            _ => {}
        }
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Client::connect(&self.stand_in).send(&exchange.method, target, &headers, "")
    }

    /// What is different about one exchange.
    fn compare(&self, exchange: &Exchange) -> Vec<String> {
        let target = self.ids.translate(&exchange.target, &self.units.0, &self.units.1);
        let got = self.ask(exchange, &target);
        let mut found = Vec::new();
        if got.status != exchange.status {
            found.push(format!("status {} for {}", got.status, exchange.status));
            // Another status has another body.
            return found;
        }
        let plain = |kind: Option<&str>| kind.unwrap_or("-").replace(' ', "").to_ascii_lowercase();
        let (theirs, ours) = (plain(exchange.answered("Content-Type")), plain(got.header("Content-Type")));
        if theirs != ours {
            found.push(format!("content type {ours} for {theirs}"));
        }
        if let Some(location) = exchange.answered("Location") {
            let path = |url: &str| {
                url.split_once("//").map_or(url, |(_, rest)| &rest[rest.find('/').unwrap_or(0)..]).to_owned()
            };
            let (theirs, ours) = (path(location), path(got.header("Location").unwrap_or_default()));
            if theirs != ours {
                found.push(format!("location {ours} for {theirs}"));
            }
        }
        if exchange.is_cut() {
            return found;
        }
        let recorded = Shape::of(&exchange.body);
        let mut ours = Shape::of(&got.unpacked().unwrap_or_else(|| got.bytes().to_vec()));
        if recorded.differences(&ours).iter().any(|line| line.starts_with("missing ") && line.contains("[].")) {
            // Members that are null are left out: one row may lack what the next one has.
            if let Some(wider) = wider(&target) {
                ours.widen(&Shape::of(self.ask(exchange, &wider).bytes()));
            }
        }
        if exchange.name == "schemas" {
            let (theirs, ours) = (collections(&exchange.body), collections(got.bytes()));
            found.extend(theirs.difference(&ours).map(|name| format!("no collection {name}")));
            found.extend(ours.difference(&theirs).map(|name| format!("a collection {name}")));
        }
        found.extend(recorded.differences(&ours).into_iter().filter(|line| !self.is_in_schema(line)));
        found
    }

    /// Whether a further member is one that the real server's rows may have, as its own schema says.
    fn is_in_schema(&self, line: &str) -> bool {
        let Some((collection, rest)) = line.strip_prefix("extra ").and_then(|path| path.split_once("[].")) else {
            return false;
        };
        let member = rest.split(['.', '[']).next().unwrap_or_default();
        member == rest && self.schemas.get(collection).is_some_and(|members| members.contains(member))
    }
}

/// Paths of the collections that schemas call metadata, by their plural.
fn collections(schemas: &[u8]) -> BTreeSet<String> {
    let all: Value = serde_json::from_slice(schemas).unwrap();
    let all = all["schemas"].as_array().unwrap().iter();
    all.filter(|schema| schema["metadata"] == true && schema["relativeApiEndpoint"].is_string())
        .map(|schema| format!("{} {}", schema["plural"], schema["relativeApiEndpoint"]))
        .collect()
}

/// The same request for many rows.
fn wider(target: &str) -> Option<String> {
    let at = target.find("pageSize=")? + "pageSize=".len();
    let digits = target[at..].bytes().take_while(u8::is_ascii_digit).count();
    Some(format!("{}1000{}", &target[..at], &target[at + digits..]))
}

/// A country as large as the recorded one.
fn builder(truth: &Value, exchanges: &[Exchange]) -> Builder {
    let units = u32::try_from(truth["organisationUnits"].as_u64().unwrap()).unwrap();
    let mut builder = StandIn::builder()
        .version(truth["version"].as_str().unwrap())
        .org_units(units)
        .tracked_entities(u32::try_from(truth["trackedEntities"].as_u64().unwrap()).unwrap())
        // Soon after everything tracked was saved.
        .server_date("2025-01-10T12:00:00.000")
        .user(User::superuser("admin", "district"))
        .user(User::limited("reader", "district", 100))
        .user(User::limited("halfreader", "district", 100).of_branches(&[0, 1]));
    if truth["version"].as_str().unwrap().starts_with("2.43") {
        // They could not be built there when it was recorded.
        builder = builder.without_analytics_tables();
    }
    for exchange in exchanges {
        let Some(collection) = exchange.name.strip_prefix("collection-") else { continue };
        let body: Value = serde_json::from_slice(&exchange.body).unwrap_or_default();
        if let Some(total) = body["pager"]["total"].as_u64()
            && crate::collections::position(collection).is_some()
        {
            builder = builder.size(collection, u32::try_from(total).unwrap());
        }
    }
    builder
}

/// Names that the members of each collection's rows can have, by the server's own schemas.
fn schemas(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let file = std::fs::File::open(folder.join("schemas-properties.json.gz")).unwrap();
    let all: Value = serde_json::from_reader(flate2::read::GzDecoder::new(file)).unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let members = |schema: &Value| {
        let properties = schema["properties"].as_array().cloned().unwrap_or_default();
        properties.iter().flat_map(|property| [text(&property["name"]), text(&property["collectionName"])]).collect()
    };
    all["schemas"].as_array().unwrap().iter().map(|schema| (text(&schema["plural"]), members(schema))).collect()
}

#[test]
fn recorded_requests_are_answered_as_the_real_servers_answered_them() {
    let Some(folder) = recordings() else { return };
    let only = environment("DHIS2_RECORDED_ONLY");
    let mut unexplained = Vec::new();
    let mut needed = vec![0; DIFFERENCES.len()];
    let mut compared = 0;
    for version in VERSIONS {
        let side = Side::new(&folder, version);
        for exchange in &side.exchanges {
            if only.as_ref().is_some_and(|only| !exchange.name.starts_with(only)) {
                continue;
            }
            compared += 1;
            for line in side.compare(exchange) {
                match DIFFERENCES.iter().position(|known| known.explains(side.version, &exchange.name, &line)) {
                    Some(at) => needed[at] += 1,
                    None => unexplained.push(format!("{version} {}: {line}", exchange.name)),
                }
            }
        }
    }
    println!("{compared} recorded exchanges compared, {} differences meant", needed.iter().sum::<u32>());
    assert!(unexplained.is_empty(), "{} differences:\n{}", unexplained.len(), unexplained.join("\n"));
    if only.is_none() {
        let idle = DIFFERENCES.iter().zip(&needed).filter(|(_, count)| **count == 0);
        let idle: Vec<String> = idle.map(|(known, _)| known.to_string()).collect();
        assert!(idle.is_empty(), "nothing needs these any more:\n{}", idle.join("\n"));
    }
}
