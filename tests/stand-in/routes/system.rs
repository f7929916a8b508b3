//! Answers `/api/system/*` and `/api/ping`.

use std::fmt::Write;

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::country::{mix, uid_of, uid_text};
use crate::fields;
use crate::request::Request;
use crate::routes::number;
use crate::world::World;

/// `/api/ping`, 2.37 and later: a 200 with nothing in it, not even a content type.
pub(crate) fn empty_ping() -> Answer {
    ["Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers"]
        .iter()
        .fold(Answer { status: 200, ..Answer::default() }, |answer, name| answer.with_header("Vary", name))
}

/// `/api/system/ping`: `pong`, as text, or under JSON's name for those who ask for JSON.
pub(crate) fn ping(world: &World, request: &Request) -> Answer {
    let wants_json = request.route.suffix.is_some()
        || request.header("accept").is_some_and(|accept| accept.starts_with("application/json"));
    let answer = match (wants_json, world.dialect.bare_pong) {
        (false, _) => Answer::text(200, "pong"),
        (true, true) => Answer::json(200, b"pong".to_vec()),
        (true, false) => Answer::json(200, b"\"pong\"".to_vec()),
    };
    answer.with_header("Cache-Control", "no-cache, no-store, max-age=0, must-revalidate")
}

/// Written where something has not happened yet.
const NEVER: &str = "1970-01-01T00:00:00.000";

/// `/api/system/info`: identity, version, the server's clock without its zone.
pub(crate) fn info(world: &World, request: &Request, user: &User) -> Answer {
    let dialect = &world.dialect;
    let base = world.base_url(request);
    let mut json = String::from("{");
    let mut text = |name: &str, value: &str| {
        let mut quoted = Vec::new();
        crate::rows::push_text(&mut quoted, value);
        if json.len() > 1 {
            json.push(',');
        }
        let _ = write!(json, "\"{name}\":{}", String::from_utf8_lossy(&quoted));
    };
    text("contextPath", &base);
    if !dialect.sparse_system_info {
        text("userAgent", request.header("user-agent").unwrap_or_default());
    }
    text("calendar", "iso8601");
    text("dateFormat", "yyyy-mm-dd");
    let now = clock::local(world.clock.now_ms());
    text("serverDate", &now);
    if dialect.server_time_zone {
        text("serverTimeZoneId", &world.clock.zone);
        text("serverTimeZoneDisplayName", &world.clock.zone);
    }
    text("lastAnalyticsTableSuccess", "2023-12-31T02:00:00.000");
    text("intervalSinceLastAnalyticsTableSuccess", "24 h, 0 m, 0 s");
    text("lastAnalyticsTableRuntime", "00:00:31.024");
    if dialect.full_system_info {
        text("lastSystemMonitoringSuccess", NEVER);
        text("lastAnalyticsTablePartitionSuccess", NEVER);
        text("intervalSinceLastAnalyticsTablePartitionSuccess", "498762 h, 55 m, 32 s");
        text("lastAnalyticsTablePartitionRuntime", "");
    }
    text("version", &world.version);
    text("revision", &format!("{:07x}", mix(u64::from(dialect.minor)) & 0x0fff_ffff));
    text("buildTime", "2023-11-01T12:00:00.000");
    if !dialect.system_id_hidden_from_others || user.superuser {
        text("systemId", &world.system_id);
    }
    text("systemName", "Stand-in");
    text("instanceBaseUrl", &base);
    if user.superuser {
        for (name, value) in [
            ("jasperReportsVersion", "6.20.0"),
            ("environmentVariable", "DHIS2_HOME"),
            ("fileStoreProvider", "filesystem"),
            ("readOnlyMode", "off"),
            ("nodeId", ""),
            ("javaVersion", "17.0.15"),
            ("javaVendor", "Debian"),
            ("osName", "Linux"),
            ("osArchitecture", "amd64"),
            ("osVersion", "6.1.0"),
            ("externalDirectory", "/opt/dhis2"),
            ("memoryInfo", "Mem Total in JVM: 708 Free in JVM: 468 Max Limit: 3072"),
            ("clusterHostname", ""),
        ] {
            text(name, value);
        }
    }
    if dialect.full_system_info {
        text("systemMetadataVersion", "");
        text("lastMetadataVersionSyncAttempt", NEVER);
    }
    if user.superuser {
        json.push_str(",\"readReplicaCount\":0,\"cpuCores\":2");
    }
    json.push_str(",\"databaseInfo\":{");
    if user.superuser {
        json.push_str(
            "\"name\":\"dhis2\",\"user\":\"dhis\",\"url\":\"jdbc:postgresql://127.0.0.1:5432/dhis2\",\"databaseVersion\":\"PostgreSQL 15.18\",",
        );
    }
    json.push_str("\"spatialSupport\":true");
    if dialect.full_system_info {
        let _ = write!(json, ",\"time\":\"{now}\"");
    }
    json.push('}');
    if dialect.session_timeout_in_info {
        json.push_str(",\"capability\":{\"analyticsTotalCounts\":false}");
    }
    let _ = write!(json, ",\"encryption\":{},\"emailConfigured\":false,\"redisEnabled\":false", user.superuser);
    json.push_str(",\"isMetadataVersionEnabled\":false");
    if dialect.session_timeout_in_info {
        let _ = write!(json, ",\"sessionTimeout\":{}", world.door.session_timeout.as_secs());
    }
    json.push('}');
    if let Some(wanted) = request.param("fields").filter(|_| dialect.system_info_fields) {
        json = fields::select(&json, &fields::parse(wanted));
    }
    let control = if dialect.system_info_no_store { crate::answer::NO_STORE } else { "no-cache, private" };
    Answer::json(200, json.into_bytes()).with_header("Cache-Control", control)
}

/// `/api/system/id`: random ids, at most 10,000 whatever is asked for.
pub(crate) fn ids(world: &World, request: &Request) -> Answer {
    let limit = match number(world, request, "limit", 1) {
        Ok(limit) => u64::try_from(limit.clamp(0, 10_000)).unwrap_or(0),
        Err(answer) => return *answer,
    };
    let codes: Vec<String> =
        (0..limit).map(|at| format!("\"{}\"", uid_text(&uid_of(mix(mix(request.number) ^ at))))).collect();
    Answer::json(200, format!("{{\"codes\":[{}]}}", codes.join(",")).into_bytes())
        .with_header("Cache-Control", crate::answer::NO_STORE)
}

/// `/api/system/objectCounts`.
pub(crate) fn object_counts(world: &World) -> Answer {
    let counts: Vec<String> = world
        .shelves
        .iter()
        .filter(|shelf| shelf.collection.exists_in(world.dialect.minor))
        .map(|shelf| format!("\"{}\":{}", shelf.collection.singular, shelf.by_id.len()))
        .collect();
    Answer::json(200, format!("{{\"objectCounts\":{{{}}}}}", counts.join(",")).into_bytes())
        .with_header("Cache-Control", "no-cache, private")
}
