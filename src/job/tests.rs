//! The reader against valid files, and against every error it knows.

use std::{fmt::Write as _, path::Path, time::Duration};

use super::*;

/// A job that has nothing wrong with it.
const RIGHT: &str = r#"version = 1
name = "sierra-leone"

[source]
url = "https://dhis2.example.org/context/api/"
username = "reader"
password = { env = "DHIS2_PASSWORD" }

[[extract]]
kind = "metadata"
collections = ["organisationUnits", "dataElements"]

[sink]
kind = "files"
directory = "out/{run}"
"#;

fn parse(text: &str) -> Result<Job, Diagnostics> {
    Job::parse(Path::new("jobs/x.toml"), text, false)
}

/// `RIGHT` with one piece replaced.
fn with(from: &str, to: &str) -> String {
    assert!(RIGHT.contains(from), "{from}");
    RIGHT.replacen(from, to, 1)
}

/// `RIGHT` with its extract replaced.
fn with_extract(extract: &str) -> String {
    with("[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\", \"dataElements\"]", extract)
}

#[test]
fn a_right_file_gives_a_job_with_every_default_filled_in() {
    let job = parse(RIGHT).unwrap();
    assert_eq!(job.name, "sierra-leone");
    assert_eq!(job.source.url.as_str(), "https://dhis2.example.org/context");
    assert_eq!(job.limits, Limits::default());
    assert_eq!(job.limits.requests_per_second, 200);
    assert_eq!(job.limits.outage, Duration::from_secs(600));
    let ExtractSettings::Metadata(MetadataSettings { collections, fields, page_size, stream, .. }) = &job.extracts[0]
    else {
        panic!()
    };
    assert_eq!(*collections, Collections::Named(vec!["organisationUnits".to_owned(), "dataElements".to_owned()]));
    assert_eq!((fields.as_str(), *page_size, stream), (":owner", 1000, &None));
    assert_eq!(job.sink.directory, Path::new("out/{run}"));
    assert!(job.check_supported(&CAPABILITIES).is_ok() && job.warnings.is_empty());
}

#[test]
fn the_same_shape_in_json_gives_the_same_job() {
    let json = r#"{"version": 1, "name": "sierra-leone",
        "source": {"url": "https://dhis2.example.org/context", "username": "reader", "password": {"env": "DHIS2_PASSWORD"}},
        "extract": [{"kind": "metadata", "collections": ["organisationUnits", "dataElements"]}],
        "sink": {"kind": "files", "directory": "out/{run}"}}"#;
    let job = Job::parse(Path::new("x.json"), json, false).unwrap();
    let toml = parse(RIGHT).unwrap();
    assert_eq!((&job.source, &job.extracts, &job.sink), (&toml.source, &toml.extracts, &toml.sink));
}

#[test]
fn every_file_in_jobs_is_a_right_job() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Job::load(&path).unwrap_or_else(|error| panic!("{error}"));
            seen += 1;
        }
    }
    assert!(seen >= 2);
}

#[test]
fn every_key_that_a_job_file_comments_out_is_right_as_it_stands_there() {
    let text = include_str!("../../jobs/metadata.toml");
    let alternatives = ["password", "token", "bearer"];
    let mut tried = 0;
    for line in text.lines() {
        let Some((key, _)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) else { continue };
        if !key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            continue;
        }
        let mut whole = text.replacen(line, &line[2..], 1);
        if alternatives.contains(&key) {
            whole = whole.replacen("password = { env = \"DHIS2_PASSWORD\" }\n", "", 1);
        }
        if alternatives[1..].contains(&key) {
            whole = whole.replacen("username = \"admin\"\n", "", 1);
        }
        if key == "stream" {
            whole = whole.replacen(", \"dataElements\", \"dataSets\"", "", 1);
        }
        Job::parse(Path::new("x.toml"), &whole, false).unwrap_or_else(|error| panic!("{line}\n{error}"));
        tried += 1;
    }
    assert!(tried >= 20, "{tried}");
}

#[test]
fn every_kind_is_read_and_only_what_is_built_may_run() {
    let job = parse(&with_extract(
        r#"[[extract]]
kind = "data_values"
data_sets = ["lyLU2wR22tC"]
org_units = ["ImspTQPwCqd"]
start = "2023-01-01"
end = 2024-12-31
split_level = 2
confirm = "empty"
[[extract]]
kind = "events"
program = "VBqh0ynB2wv"
org_units = ["ImspTQPwCqd"]
[[extract]]
kind = "enrollments"
program = "VBqh0ynB2wv"
[[extract]]
kind = "tracked_entities"
tracked_entity_type = "VBqh0ynB2wv"
[[extract]]
kind = "analytics"
dimensions = ["dx:fbfJHSPpUQD;cYeuwXTCPkU", "pe:LAST_12_MONTHS", "ou:LEVEL-2;ImspTQPwCqd"]
[[extract]]
kind = "analytics_events"
program = "VBqh0ynB2wv"
dimensions = ["pe:LAST_12_MONTHS"]
[[extract]]
kind = "data_store"
namespaces = ["*"]
[[extract]]
kind = "sql_view"
view = "GCiPCLVjRLf"
criteria = ["level:4"]
variables = { year = "2024" }
[[extract]]
kind = "complete_registrations"
data_sets = ["*"]
start = "2023-01-01"
end = "2023-12-31"
[[extract]]
kind = "metadata"
collections = ["*"]
include_deleted = true
mode = "incremental""#,
    ))
    .unwrap_or_else(|error| panic!("{error}"));
    let streams: Vec<String> = job.extracts.iter().flat_map(ExtractSettings::streams).collect();
    insta::assert_debug_snapshot!("streams", streams);
    // Whatever the present version can do: every feature in use is found, with its location.
    let metadata_alone = Capabilities {
        kinds: &["metadata"],
        every_collection: false,
        incremental: false,
        include_deleted: false,
        files: false,
    };
    insta::assert_snapshot!("not_available", job.check_supported(&metadata_alone).unwrap_err());
    let unbuilt = job.extracts.iter().filter(|extract| !CAPABILITIES.kinds.contains(&extract.kind())).count();
    assert_eq!(
        job.check_supported(&CAPABILITIES).err().map_or(0, |diagnostics| diagnostics.diagnostics.len()),
        unbuilt
    );
}

#[test]
fn a_change_that_alters_rows_is_a_difference_and_a_change_of_limits_is_none() {
    let before = parse(RIGHT).unwrap().fingerprint();
    let same = [
        with("[[extract]]", "[limits]\nrequests_per_second = 5\nin_flight = 1\noutage_s = 0\n[[extract]]"),
        with("env = \"DHIS2_PASSWORD\"", "file = \"/x\""),
        with("kind = \"metadata\"", "kind = \"metadata\"\npage_size = 7"),
        with("\"organisationUnits\", \"dataElements\"", "\"dataElements\", \"organisationUnits\""),
        with("/api/", ""),
    ];
    for text in same {
        assert_eq!(differences(&before, &parse(&text).unwrap().fingerprint()), Vec::<String>::new(), "{text}");
    }
    let other = [
        with("example.org", "example.com"),
        with("reader", "writer"),
        with(", \"dataElements\"", ""),
        with("kind = \"metadata\"", "kind = \"metadata\"\nfilters = [\"level:le:3\"]"),
        with("kind = \"metadata\"", "kind = \"metadata\"\nfields = \"id,name\""),
        with("out/{run}", "out"),
    ];
    let mut said = String::new();
    for text in other {
        let differences = differences(&before, &parse(&text).unwrap().fingerprint());
        assert_eq!(differences.len(), 1, "{text}");
        writeln!(said, "{}", differences[0]).unwrap();
    }
    insta::assert_snapshot!("differences", said);
}

#[test]
fn a_fingerprint_holds_no_secret() {
    let text = with("{ env = \"DHIS2_PASSWORD\" }", "\"canary\"");
    let job = Job::parse(Path::new("x.toml"), &text, true).unwrap();
    assert!(!format!("{:?} {job:?}", job.fingerprint()).contains("canary"));
}

#[test]
fn no_message_shows_a_secret_wherever_it_stands() {
    let texts = [
        with("{ env = \"DHIS2_PASSWORD\" }", "\"canary\""),
        with("password = { env = \"DHIS2_PASSWORD\" }", "pasword = \"canary\""),
        with("password = { env = \"DHIS2_PASSWORD\" }", "passwd = { value = \"canary\" }"),
        with("{ env = \"DHIS2_PASSWORD\" }", "{ value = \"canary\" }"),
        with("{ env = \"DHIS2_PASSWORD\" }", "[\"canary\"]"),
        with("{ env = \"DHIS2_PASSWORD\" }", "\"canary\" canary"),
        with("{ env = \"DHIS2_PASSWORD\" }", "\"canary"),
        with("dhis2.example.org", "reader:canary@dhis2.example.org"),
        with("https://dhis2.example.org", "ftp://reader:canary@dhis2.example.org"),
        with("version = 1", "version = 1\napi_token = \"canary\""),
        with("version = 1", "version = 1\npassword = \"canary\""),
        with("/context/api/", "/?token=canary"),
    ];
    for text in texts {
        let diagnostics = parse(&text).unwrap_err();
        let shown = format!("{diagnostics}\n{}\n{diagnostics:?}", diagnostics.one_line());
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_would_be_right() {
    let diagnostics: Vec<(&str, String)> = vec![
        (
            "three at once",
            with("collections", "colections")
                .replace("kind = \"files\"", "kind = \"fils\"")
                .replace("version = 1", "version = \"1\""),
        ),
        ("toml syntax", with("= \"reader\"", "\"reader\"").replace("directory = \"out/{run}\"", "directory = ")),
        ("a key twice", with("name = \"sierra-leone\"", "name = \"a\"\nname = \"b\"")),
        ("no version", with("version = 1\n", "")),
        ("a newer version", with("version = 1", "version = 2")),
        ("a bad name", with("sierra-leone", "sierra leone")),
        ("no source", with("[source]", "[sorce]")),
        ("source is no table", "source = \"https://x\"\nversion = 1\nextract = []\nsink = 1\n".to_owned()),
        ("no url", with("url = \"https://dhis2.example.org/context/api/\"\n", "")),
        ("url without scheme", with("https://dhis2", "dhis2")),
        ("url of another scheme", with("https:", "ftp:")),
        ("url with a user", with("https://", "https://me:pw@")),
        ("url with a query", with("/api/", "/api/?x=1")),
        ("url with an api version", with("/api/", "/api/40")),
        ("no credentials", with("username = \"reader\"\npassword = { env = \"DHIS2_PASSWORD\" }\n", "")),
        ("username without password", with("password = { env = \"DHIS2_PASSWORD\" }\n", "")),
        ("password without username", with("username = \"reader\"\n", "")),
        ("token with username", with("[[extract]]", "token = { env = \"T\" }\n[[extract]]")),
        ("token and bearer", with("username = \"reader\"\npassword =", "bearer = { env = \"B\" }\ntoken =")),
        ("colon in username", with("\"reader\"", "\"a:b\"")),
        ("inline password in an open file", with("{ env = \"DHIS2_PASSWORD\" }", "\"hunter2\"")),
        ("unknown way to a secret", with("{ env =", "{ enviroment =")),
        ("two ways to a secret", with("{ env =", "{ file = \"x\", env =")),
        ("env with a dollar", with("\"DHIS2_PASSWORD\"", "\"$DHIS2_PASSWORD\"")),
        ("command as text", with("{ env = \"DHIS2_PASSWORD\" }", "{ command = \"pass dhis2\" }")),
        ("credential as path", with("{ env = \"DHIS2_PASSWORD\" }", "{ credential = \"a/b\" }")),
        ("a limit of the wrong table", with("username = \"reader\"", "username = \"reader\"\nin_flight = 3")),
        (
            "limits out of range",
            with("[[extract]]", "[limits]\nrequests_per_second = 0\nin_flight = 65\nretries = -1\n[[extract]]"),
        ),
        (
            "limits of wrong types",
            with("[[extract]]", "[limits]\nrequests_per_second = \"200\"\nin_flight = 1.5\noutage = 3\n[[extract]]"),
        ),
        ("no extract", with_extract("")),
        ("one bracket", with("[[extract]]", "[extract]")),
        ("no kind", with("kind = \"metadata\"\n", "")),
        ("an unknown kind", with("\"metadata\"", "\"datavalues\"").replace("collections", "colectoins")),
        ("a key of another kind", with("kind = \"metadata\"", "kind = \"metadata\"\nprogram = \"VBqh0ynB2wv\"")),
        ("empty collections", with("[\"organisationUnits\", \"dataElements\"]", "[]")),
        ("collections as text", with("[\"organisationUnits\", \"dataElements\"]", "\"organisationUnits\"")),
        ("a star among names", with("\"dataElements\"", "\"*\"")),
        ("a collection twice", with("\"dataElements\"", "\"organisationUnits\"")),
        ("a collection that cannot be one", with("\"dataElements\"", "\"../me\", 7")),
        ("fields without id", with("kind = \"metadata\"", "kind = \"metadata\"\nfields = \"name,parent[id]\"")),
        ("fields without id by exclusion", with("kind = \"metadata\"", "kind = \"metadata\"\nfields = \":owner,!id\"")),
        ("an unknown preset", with("kind = \"metadata\"", "kind = \"metadata\"\nfields = \":ownr\"")),
        ("an open bracket in fields", with("kind = \"metadata\"", "kind = \"metadata\"\nfields = \"id,parent[id\"")),
        ("a filter that is none", with("kind = \"metadata\"", "kind = \"metadata\"\nfilters = [\"name\"]")),
        ("page size out of range", with("kind = \"metadata\"", "kind = \"metadata\"\npage_size = 0")),
        ("an unknown mode", with("kind = \"metadata\"", "kind = \"metadata\"\nmode = \"incrementel\"")),
        (
            "incremental without {run}",
            with("kind = \"metadata\"", "kind = \"metadata\"\nmode = \"incremental\"").replace("out/{run}", "out"),
        ),
        (
            "two extracts of one stream",
            with("[sink]", "[[extract]]\nkind = \"metadata\"\ncollections = [\"dataElements\"]\n[sink]"),
        ),
        ("all and some", with("[sink]", "[[extract]]\nkind = \"metadata\"\ncollections = [\"*\"]\n[sink]")),
        ("one stream for two collections", with("kind = \"metadata\"", "kind = \"metadata\"\nstream = \"all\"")),
        (
            "a stream of a reserved name",
            with("kind = \"metadata\"", "kind = \"metadata\"\nstream = \"rejects\"").replace(", \"dataElements\"", ""),
        ),
        (
            "a stream that leaves the folder",
            with("kind = \"metadata\"", "kind = \"metadata\"\nstream = \"../x\"").replace(", \"dataElements\"", ""),
        ),
        (
            "end before start",
            with_extract(
                "[[extract]]\nkind = \"data_values\"\ndata_sets = [\"*\"]\nstart = \"2024-02-01\"\nend = \"2024-01-01\"",
            ),
        ),
        (
            "days that are none",
            with_extract(
                "[[extract]]\nkind = \"data_values\"\ndata_sets = [\"x\"]\nstart = \"2023-02-30\"\nend = 2024",
            ),
        ),
        (
            "program and type",
            with_extract(
                "[[extract]]\nkind = \"tracked_entities\"\nprogram = \"VBqh0ynB2wv\"\ntracked_entity_type = \"VBqh0ynB2wv\"",
            ),
        ),
        ("neither program nor type", with_extract("[[extract]]\nkind = \"tracked_entities\"")),
        (
            "variables of wrong types",
            with_extract("[[extract]]\nkind = \"sql_view\"\nview = \"GCiPCLVjRLf\"\nvariables = { year = 2024 }"),
        ),
        ("a sink for later", with("kind = \"files\"", "kind = \"files\"\nformat = \"csv\"\ncompression = \"gzip\"")),
        ("an unknown placeholder", with("{run}", "{date}")),
        ("no directory", with("directory = \"out/{run}\"\n", "")),
        ("files is no text", with("kind = \"files\"", "kind = \"files\"\nfiles = \"yes\"")),
        (
            "deletions that another extract brings too",
            with(
                "[sink]",
                "include_deleted = true\n[[extract]]\nkind = \"metadata\"\ncollections = [\"users\"]\n\
                 include_deleted = true\n[[extract]]\nkind = \"metadata\"\ncollections = [\"maps\"]\n\
                 stream = \"deletedObjects\"\n[sink]",
            ),
        ),
    ];
    let mut all = String::new();
    for (title, text) in &diagnostics {
        let found = match parse(text) {
            Err(found) => found,
            Ok(_) => panic!("no mistake found: {title}"),
        };
        assert!(diagnostics.len() >= 30);
        writeln!(all, "== {title}\n{found}\n").unwrap();
    }
    insta::assert_snapshot!("diagnostics", all);
}

#[test]
fn mistakes_of_json_have_places_too() {
    let texts = [
        "{\"version\": 1,\n \"sourc\": {},\n \"extract\": [{\"kind\": \"metadata\", \"collections\": [\"*\", \"x\"], \"page_size\": 1e9}],\n \"sink\": {\"kind\": \"files\", \"directory\": \"out\"}}",
        "{\"version\": 1,\n}",
        "{\"version\": 1, \"version\": 1}",
        "",
        "[]",
    ];
    let mut all = String::new();
    for text in texts {
        let found = Job::parse(Path::new("x.json"), text, false).unwrap_err();
        writeln!(all, "{found}\n").unwrap();
    }
    insta::assert_snapshot!("diagnostics_of_json", all);
}

#[test]
fn a_file_that_is_not_there_says_so_and_what_to_do() {
    let error = Job::load(Path::new("/nonexistent/x.toml")).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the job file /nonexistent/x.toml: No such file"), "{error}");
    assert!(error.next().contains("jobs/metadata.toml"));
    assert!(Job::load(Path::new("/")).unwrap_err().to_string().contains("it is a folder"));
}

#[test]
fn the_stem_is_the_name_where_it_can_be_one() {
    let nameless = with("name = \"sierra-leone\"\n", "");
    assert_eq!(Job::parse(Path::new("a/kenya.v2.toml"), &nameless, false).unwrap().name, "kenya.v2");
    let diagnostics = Job::parse(Path::new("my job.toml"), &nameless, false).unwrap_err();
    assert!(diagnostics.one_line().contains("`my job` cannot be the job's name"), "{}", diagnostics.one_line());
}

#[test]
fn plain_http_is_warned_about_except_on_this_machine() {
    let warnings = |url| parse(&with("https://dhis2.example.org/context/api/", url)).unwrap().warnings.len();
    assert_eq!(warnings("http://dhis2.example.org"), 1);
    assert_eq!(warnings("http://127.0.0.1:8080"), 0);
    assert_eq!(warnings("http://localhost/dhis"), 0);
}
