//! From the checked tree to the job as it is meant, with the rules that several keys make together.
//!
//! Every rule about one key alone has been checked before: what is missing or of the wrong type has been reported,
//! and is silently replaced by something harmless.

use std::{collections::BTreeMap, ops::Range, path::Path, time::Duration};

use jiff::civil::Date;
use url::{Host, Url};

use super::{
    AnalyticsKind, Collections, CommonOptions, Compression, Confirm, CredentialSource, ExtractSettings, Format, Job,
    Limits, MetadataSettings, Names, Roots, Secret, SecretSource, SinkSettings, SourceSettings, SplitLevel,
    TrackerFields, TrackerKind, TrackerScope,
    check::{CheckState, kind_of},
    diagnostic::{hint, nearest},
    document::{Node, Value},
    file::{self, LIMITS},
};

/// Presets that a `fields` expression may begin with a colon for, and that hold `id`.
const FIELD_PRESETS: [&str; 9] =
    ["all", "owner", "identifiable", "nameable", "simple", "persisted", "idName", "id", "code"];

/// The stream of deletions that a metadata extract brings with `include_deleted`.
const DELETIONS: &str = "deletedObjects";

/// The job; `None` where not even its outline is there.
pub(super) fn job(path: &Path, root: &Node, state: &mut CheckState) -> Option<Job> {
    let mut warnings = Vec::new();
    let name = name(path, root, state);
    let source = root.get("source").and_then(|source| self::source(source, state, &mut warnings));
    let sink = root.get("sink").map(|sink| self::sink(sink, state));
    let limits = limits(root.get("limits"));
    let is_per_run = sink.as_ref().is_none_or(|sink| sink.is_per_run() || sink.directory.as_os_str().is_empty());
    let mut analytics = 0;
    let extracts: Vec<Option<ExtractSettings>> =
        extracts(root).map(|node| extract(node, &mut analytics, is_per_run, state)).collect();
    let files = sink.as_ref().is_some_and(|sink| sink.files);
    stream_clashes(extracts.iter().zip(self::extracts(root)), files, state);
    Some(Job {
        name: name?,
        path: path.to_owned(),
        source: source?,
        limits,
        extracts: extracts.into_iter().collect::<Option<_>>()?,
        sink: sink?,
        warnings,
        features: Vec::new(),
    })
}

/// The extracts' tables.
pub(super) fn extracts(root: &Node) -> impl Iterator<Item = &Node> {
    match root.get("extract").map(|node| &node.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    }
    .iter()
    .filter(|item| matches!(item.value, Value::Table(_)))
}

/// A text.
fn text<'n>(node: &'n Node, key: &str) -> Option<&'n str> {
    match &node.get(key)?.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

/// A list of texts.
fn texts(node: &Node, key: &str) -> Option<Vec<String>> {
    match &node.get(key)?.value {
        Value::List(items) => items
            .iter()
            .map(|item| match &item.value {
                Value::Text(text) => Some(text.clone()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// An integer, or the default of its key.
fn integer(node: Option<&Node>, keys: &[file::Key], name: &str) -> u32 {
    let written = match node.and_then(|node| node.get(name)).map(|node| &node.value) {
        Some(Value::Integer(number)) => u32::try_from(*number).ok(),
        _ => None,
    };
    let default = || match keys.iter().find(|key| key.name == name).map(|key| &key.presence) {
        Some(file::Presence::Default(json)) => json.parse().ok(),
        _ => None,
    };
    written.or_else(default).unwrap_or(0)
}

/// A Boolean, by default false.
fn flag(node: &Node, key: &str) -> bool {
    matches!(node.get(key).map(|node| &node.value), Some(Value::Boolean(true)))
}

/// A day.
fn date(node: &Node, key: &str) -> Option<Date> {
    match &node.get(key)?.value {
        Value::Text(text) | Value::Date(text) => text.parse().ok(),
        _ => None,
    }
}

/// The job's name, or the file's stem.
fn name(path: &Path, root: &Node, state: &mut CheckState) -> Option<String> {
    if root.get("name").is_some() {
        return text(root, "name").map(str::to_owned);
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if !file::is_job_name(&stem) {
        state.add(
            &(0..0),
            format!(
                "the file's stem `{}` cannot be the job's name: add name = \"…\" of letters, digits, `.`, `_` and `-`",
                stem.escape_debug()
            ),
        );
        return None;
    }
    Some(stem)
}

/// `[limits]`, each with its default.
pub(super) fn limits(node: Option<&Node>) -> Limits {
    let number = |name| integer(node, LIMITS.keys, name);
    let seconds = |name| Duration::from_secs(u64::from(number(name)));
    Limits {
        requests_per_second: number("requests_per_second"),
        in_flight: number("in_flight"),
        connect_timeout: seconds("connect_timeout_s"),
        first_byte_timeout: seconds("first_byte_timeout_s"),
        stall_timeout: seconds("stall_timeout_s"),
        retries: number("retries"),
        outage: seconds("outage_s"),
    }
}

/// `[source]`
fn source(node: &Node, state: &mut CheckState, warnings: &mut Vec<String>) -> Option<SourceSettings> {
    if !matches!(node.value, Value::Table(_)) {
        return None;
    }
    let credentials = credentials(node, state);
    let written = node.get("url")?;
    let url = match base_url(text(node, "url")?) {
        Ok(url) => url,
        Err(message) => {
            state.add(&written.span, message);
            return None;
        }
    };
    let is_local = match url.host() {
        Some(Host::Domain(domain)) => domain == "localhost" || domain.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() == "http" && !is_local {
        warnings.push(format!("source.url: {url} is not https, so the credentials can be read on the way"));
    }
    let ca_file = text(node, "ca_file").map(Into::into);
    if url.scheme() == "http" && ca_file.is_some() {
        warnings.push(format!("source.ca_file: nothing reads it, since {url} is not https"));
    }
    Some(SourceSettings { url, credentials: credentials?, ca_file })
}

/// The base url of a server: without `/api`, without a slash at the end of a context path.
///
/// # Errors
/// The error, as a fragment that quotes nothing of the url.
pub fn base_url(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => {
            "`url` begins with https:// (or http://), like https://dhis2.example.org".to_owned()
        }
        error => format!("`url` is not a valid url: {error}"),
    })?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err("`url` begins with https:// (or http://)".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("`url` has a user in it; write username and password as keys of their own".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("`url` ends before `?` and `#`".to_owned());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let last = path.rsplit('/').next().unwrap_or_default();
    if path.ends_with(&format!("/api/{last}")) && last.chars().all(|c| c.is_ascii_digit()) {
        return Err(format!("`url` ends before the version `{last}` of the API"));
    }
    let path = path.strip_suffix("/api").unwrap_or(&path).trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// The credentials: exactly one of three kinds.
fn credentials(node: &Node, state: &mut CheckState) -> Option<CredentialSource> {
    let has = |key| node.entry(key);
    let words = ["username", "password", "token", "bearer"];
    if let Value::Table(entries) = &node.value
        && entries.iter().any(|entry| !words.contains(&entry.key.as_str()) && nearest(&entry.key, words).is_some())
    {
        // A misspelt key has been reported already.
        return None;
    }
    let kinds: Vec<(&str, &super::document::Entry)> = [
        has("username").or(has("password")).map(|entry| ("username and password", entry)),
        has("token").map(|entry| ("token", entry)),
        has("bearer").map(|entry| ("bearer", entry)),
    ]
    .into_iter()
    .flatten()
    .collect();
    match kinds.as_slice() {
        [] => {
            state.add(
                &node.span,
                "[source] has no credentials: add username and password = { env = \"DHIS2_PASSWORD\" }, or token = { … }",
            );
            return None;
        }
        [_] => {}
        [(first, _), others @ ..] => {
            for (other, entry) in others {
                state.add(&entry.key_span, format!("`{other}` besides {first}: keep one kind of credentials"));
            }
            return None;
        }
    }
    match (has("username"), has("password")) {
        (Some(username), None) => {
            state.add(&username.key_span, "`username` without `password`: add password = { env = \"DHIS2_PASSWORD\" }");
            return None;
        }
        (None, Some(password)) => {
            state.add(&password.key_span, "`password` without `username`: add username = \"…\"");
            return None;
        }
        (Some(username), Some(password)) => {
            let name = text(node, "username")?;
            if name.contains(':') {
                state.add(&username.node.span, "`username` cannot have a colon in it");
                return None;
            }
            return Some(CredentialSource::Basic { username: name.to_owned(), password: secret(&password.node)? });
        }
        (None, None) => {}
    }
    match (node.get("token"), node.get("bearer")) {
        (Some(token), _) => Some(CredentialSource::Token(secret(token)?)),
        (None, Some(bearer)) => Some(CredentialSource::Bearer(secret(bearer)?)),
        (None, None) => None,
    }
}

/// Source of a secret.
fn secret(node: &Node) -> Option<SecretSource> {
    if let Value::Text(text) = &node.value {
        return Some(SecretSource::Inline(Secret::new(text)));
    }
    let env = text(node, "env").map(|name| SecretSource::Env(name.to_owned()));
    let file = || text(node, "file").map(|path| SecretSource::File(path.into()));
    let credential = || text(node, "credential").map(|name| SecretSource::Credential(name.to_owned()));
    let command = || texts(node, "command").map(SecretSource::Command);
    env.or_else(file).or_else(credential).or_else(command)
}

/// `[sink]`
fn sink(node: &Node, state: &mut CheckState) -> SinkSettings {
    let directory = text(node, "directory").unwrap_or_default().to_owned();
    let rest = directory.replace("{run}", "");
    if let (Some(written), true) = (node.get("directory"), rest.contains(['{', '}'])) {
        state.add(&written.span, "`directory` knows one placeholder: {run}, the start of the run");
    }
    // The schema knows the words; one that it allows and this does not must not become another.
    let mut unknown = |key: &str| {
        if let Some(written) = node.get(key)
            && !state.diagnostics.iter().any(|diagnostic| diagnostic.span == written.span)
        {
            state.add(&written.span, format!("this program cannot write this `{key}` yet"));
        }
    };
    let format = match text(node, "format") {
        None | Some("ndjson") => Format::Ndjson,
        Some(_) => {
            unknown("format");
            Format::Ndjson
        }
    };
    let compression = match text(node, "compression") {
        None | Some("none") => Compression::None,
        Some(_) => {
            unknown("compression");
            Compression::None
        }
    };
    SinkSettings { directory: directory.into(), format, compression, files: flag(node, "files") }
}

/// One extract.
fn extract(node: &Node, analytics: &mut usize, is_per_run: bool, state: &mut CheckState) -> Option<ExtractSettings> {
    let kind = kind_of(node)?;
    let incremental = text(node, "mode") == Some("incremental");
    if let (Some(mode), true, false) = (node.get("mode"), incremental, is_per_run) {
        state.add(
            &mode.span,
            "`mode = \"incremental\"` needs {run} in sink.directory, or each run would replace the one before it",
        );
    }
    let common = CommonOptions {
        stream: text(node, "stream").map(str::to_owned),
        incremental,
        include_deleted: flag(node, "include_deleted"),
    };
    let page_size = integer(Some(node), std::slice::from_ref(&file::PAGE_SIZE), "page_size");
    let page_size = if kind.paged { page_size } else { 0 };
    let owned = |key| text(node, key).map(str::to_owned);
    let roots = texts(node, "org_units").map_or(Roots::OfUser, Roots::Named);
    let fields = owned("fields").map_or(TrackerFields::Importable, TrackerFields::Given);
    let nested = flag(node, "nested");
    if kind.name.starts_with("analytics") {
        *analytics += 1;
    }
    let analytics_of = |kind| {
        let dimensions = texts(node, "dimensions")?;
        Some(ExtractSettings::Analytics { kind, dimensions, number: *analytics, page_size, common: common.clone() })
    };
    match kind.name {
        "metadata" => metadata(node, common, page_size, state),
        "data_values" => {
            let (start, end) = date_range(node, state)?;
            Some(ExtractSettings::DataValues {
                data_sets: names(node, "data_sets")?,
                org_units: roots,
                start,
                end,
                split: match integer(Some(node), &[], "split_level") {
                    0 => SplitLevel::BySize,
                    level => SplitLevel::Level(level),
                },
                confirm: match text(node, "confirm") {
                    Some("all") => Confirm::All,
                    Some("none") => Confirm::None,
                    _ => Confirm::Empty,
                },
                common,
            })
        }
        "events" | "enrollments" => Some(ExtractSettings::Tracker {
            kind: if kind.name == "events" { TrackerKind::Events } else { TrackerKind::Enrollments },
            scope: TrackerScope::Program(owned("program")?),
            org_units: roots,
            program_stages: texts(node, "program_stages").unwrap_or_default(),
            fields,
            nested,
            page_size,
            common,
        }),
        "tracked_entities" => {
            let scope = match (node.entry("program"), node.entry("tracked_entity_type")) {
                (Some(_), Some(entity_type)) => {
                    state.add(&entity_type.key_span, "`tracked_entity_type` besides `program`: keep one of them");
                    None
                }
                (None, None) => {
                    state.add(&node.span, "tracked_entities needs `program` or `tracked_entity_type`");
                    None
                }
                (Some(_), None) => owned("program").map(TrackerScope::Program),
                (None, Some(_)) => owned("tracked_entity_type").map(TrackerScope::TrackedEntityType),
            };
            Some(ExtractSettings::Tracker {
                kind: TrackerKind::TrackedEntities,
                scope: scope?,
                org_units: roots,
                program_stages: Vec::new(),
                fields,
                nested,
                page_size,
                common,
            })
        }
        "analytics" => analytics_of(AnalyticsKind::Aggregate),
        "analytics_events" => analytics_of(AnalyticsKind::Events(owned("program")?)),
        "analytics_enrollments" => analytics_of(AnalyticsKind::Enrollments(owned("program")?)),
        "data_store" => {
            let namespaces = names(node, "namespaces")?;
            one_stream(node, matches!(&namespaces, Names::Named(names) if names.len() == 1), "namespaces", state);
            Some(ExtractSettings::DataStore { namespaces, page_size, common })
        }
        "sql_view" => Some(ExtractSettings::SqlView {
            view: owned("view")?,
            criteria: texts(node, "criteria").unwrap_or_default(),
            variables: variables(node),
            page_size,
            common,
        }),
        "complete_registrations" => {
            let (start, end) = date_range(node, state)?;
            Some(ExtractSettings::CompleteRegistrations {
                data_sets: names(node, "data_sets")?,
                org_units: roots,
                start,
                end,
                common,
            })
        }
        _ => None,
    }
}

/// Metadata collections.
fn metadata(node: &Node, common: CommonOptions, page_size: u32, state: &mut CheckState) -> Option<ExtractSettings> {
    let fields = text(node, "fields").unwrap_or(":owner").to_owned();
    if let Some(written) = node.get("fields") {
        check_fields(&fields, &written.span, state);
    }
    let collections = texts(node, "collections")?;
    let collections =
        if collections.iter().any(|name| name == "*") { Collections::All } else { Collections::Named(collections) };
    one_stream(node, matches!(&collections, Collections::Named(names) if names.len() == 1), "collections", state);
    Some(ExtractSettings::Metadata(MetadataSettings {
        collections,
        fields,
        filters: texts(node, "filters").unwrap_or_default(),
        page_size,
        incremental: common.incremental,
        include_deleted: common.include_deleted,
        stream: common.stream,
    }))
}

/// `stream` names one file: it needs an extract that gives one.
fn one_stream(node: &Node, is_one: bool, key: &str, state: &mut CheckState) {
    if let (Some(stream), false) = (node.entry("stream"), is_one) {
        state.add(
            &stream.key_span,
            format!(
                "`stream` names one file, and `{key}` gives several: make an [[extract]] for each that needs a name"
            ),
        );
    }
}

/// A `fields` expression has balanced brackets, known presets, and `id`, by which rows are ordered and told apart.
fn check_fields(fields: &str, span: &Range<usize>, state: &mut CheckState) {
    let (mut depth, mut parts, mut part) = (0_i32, Vec::new(), String::new());
    for character in fields.chars() {
        match character {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        if depth < 0 {
            break;
        }
        part.push(character);
    }
    parts.push(part);
    if depth != 0 {
        state.add(span, "`fields` has an unbalanced bracket");
        return;
    }
    let (mut has_id, mut excludes_id) = (false, false);
    for part in parts.iter().map(|part| part.trim()) {
        match part.strip_prefix(':') {
            Some(preset) if FIELD_PRESETS.contains(&preset) => has_id |= preset != "code",
            Some(preset) => {
                state.add(span, format!("`:{preset}` is not a preset of `fields`{}", hint(preset, &FIELD_PRESETS)));
                has_id = true;
            }
            None if part.is_empty() => state.add(span, "`fields` has two commas with nothing between them"),
            None => {
                has_id |= part == "id" || part == "*";
                excludes_id |= part == "!id";
            }
        }
    }
    if !has_id || excludes_id {
        state.add(span, "`fields` without `id`: rows are sorted and deduplicated by it; add id");
    }
}

/// Names, or all of them.
fn names(node: &Node, key: &str) -> Option<Names> {
    let names = texts(node, key)?;
    Some(if names.iter().any(|name| name == "*") { Names::All } else { Names::Named(names) })
}

/// `start` and `end`.
fn date_range(node: &Node, state: &mut CheckState) -> Option<(Date, Date)> {
    let (start, end) = (date(node, "start")?, date(node, "end")?);
    if start > end {
        state.add(&node.get("end")?.span, format!("`end` is {end}, before `start`, which is {start}"));
    }
    Some((start, end))
}

/// Values of an SQL view's variables.
fn variables(node: &Node) -> BTreeMap<String, String> {
    match node.get("variables").map(|node| &node.value) {
        Some(Value::Table(entries)) => entries
            .iter()
            .filter_map(|entry| match &entry.node.value {
                Value::Text(text) => Some((entry.key.clone(), text.clone())),
                _ => None,
            })
            .collect(),
        _ => BTreeMap::new(),
    }
}

/// Two extracts never write one file.
fn stream_clashes<'n>(
    extracts: impl Iterator<Item = (&'n Option<ExtractSettings>, &'n Node)>,
    files: bool,
    state: &mut CheckState,
) {
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let mut all: BTreeMap<&str, (usize, Range<usize>)> = BTreeMap::new();
    let mut own_names: Vec<(&str, usize, Range<usize>)> = Vec::new();
    for (number, (extract, node)) in extracts.enumerate().map(|(index, pair)| (index + 1, pair)) {
        let Some(extract) = extract else { continue };
        let span = ["stream", "collections", "namespaces", "kind"].iter().find_map(|key| node.get(key));
        let span = span.map_or(node.span.clone(), |node| node.span.clone());
        for stream in extract.streams() {
            if stream == "rejects" || (files && stream == "files") {
                state.add(&span, format!("a stream cannot be called `{stream}`: a file of that name is ours"));
            }
            if let Some(other) = taken.get(&stream)
                && *other != number
            {
                state.add(
                    &span,
                    format!("the stream `{stream}` is also that of extract {other}: give one of them stream = \"…\""),
                );
            }
            taken.entry(stream).or_insert(number);
        }
        if let (ExtractSettings::Metadata(MetadataSettings { include_deleted: true, .. }), Some(written)) =
            (extract, node.get("include_deleted"))
        {
            match taken.get(DELETIONS) {
                Some(other) => state.add(
                    &written.span,
                    format!(
                        "`include_deleted` brings a stream `{DELETIONS}`, which extract {other} has: keep one of them"
                    ),
                ),
                None => drop(taken.insert(DELETIONS.to_owned(), number)),
            }
        }
        match extract {
            ExtractSettings::Metadata(MetadataSettings { stream: None, collections, .. }) => match collections {
                Collections::All => drop(all.entry("collections").or_insert((number, span))),
                Collections::Named(_) => own_names.push(("collections", number, span)),
            },
            ExtractSettings::DataStore { common: CommonOptions { stream: None, .. }, namespaces, .. } => {
                match namespaces {
                    Names::All => drop(all.entry("namespaces").or_insert((number, span))),
                    Names::Named(_) => own_names.push(("namespaces", number, span)),
                }
            }
            // Their streams have names of their own, or cannot be those that all collections or namespaces have.
            ExtractSettings::Metadata(_)
            | ExtractSettings::DataStore { .. }
            | ExtractSettings::DataValues { .. }
            | ExtractSettings::Tracker { .. }
            | ExtractSettings::Analytics { .. }
            | ExtractSettings::SqlView { .. }
            | ExtractSettings::CompleteRegistrations { .. } => {}
        }
    }
    for (key, number, span) in own_names {
        if let Some((other, _)) = all.get(key)
            && *other != number
        {
            state.add(
                &span,
                format!("extract {other} takes all {key}, these too: give this extract stream = \"…\", or remove it"),
            );
        }
    }
}
