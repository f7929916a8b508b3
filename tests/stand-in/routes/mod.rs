//! Finds who answers a path: one file per API area.

pub(crate) mod analytics;
pub(crate) mod analytics_events;
pub(crate) mod data_store;
pub(crate) mod data_values;
pub(crate) mod deleted_objects;
pub(crate) mod login;
pub(crate) mod me;
pub(crate) mod metadata;
pub(crate) mod old_tracker;
pub(crate) mod registrations;
pub(crate) mod schemas;
pub(crate) mod sql_views;
pub(crate) mod system;
pub(crate) mod tracker;
pub(crate) mod tracker_order;
pub(crate) mod tracker_units;

use std::time::Duration;

use crate::answer::Answer;
use crate::auth::{User, Verdict};
use crate::dialect::{Container, TrackerForm};
use crate::request::Request;
use crate::world::World;

/// An answer and who got it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) answer: Answer,
    pub(crate) user: Option<String>,
    /// What the server thinks before it answers, e.g. over a password.
    pub(crate) thinks: Duration,
    /// What is odd about the answer.
    pub(crate) quirks: Vec<&'static str>,
}

/// The truth about a request, as the server's quirks show it.
pub(crate) fn answer(world: &mut World, request: &Request) -> Outcome {
    let changed = world.request_comes(request.number);
    let quirks = changed.into_iter().chain(world.quirks.shown(request)).collect();
    let outcome = match world.quirks.behind_proxy(request) {
        Some(changed) => truth(world, &changed),
        None => truth(world, request),
    };
    Outcome { quirks, ..outcome }
}

fn truth(world: &mut World, request: &Request) -> Outcome {
    let quirks = Vec::new();
    let free = |answer| Outcome { answer, user: None, thinks: Duration::ZERO, quirks: Vec::new() };
    if !request.route.api {
        return free(login::outside_api(world, request));
    }
    if request.method == "GET" && request.route.parts() == ["ping"] && world.dialect.anonymous_ping {
        return free(system::empty_ping());
    }
    if request.route.parts() == ["auth", "login"] && world.dialect.json_login {
        return free(login::by_json(world, request));
    }
    match world.door.check(request, &world.dialect, &world.context_path) {
        Verdict::Unknown(answer, thinks) => {
            let answer = if world.dialect.charset_in_refusals { answer.with_charset() } else { *answer };
            Outcome { answer, user: None, thinks, quirks }
        }
        Verdict::Known(caller) => {
            let mut answer = inside(world, request, &caller.user);
            for cookie in &caller.cookies {
                answer = answer.with_header("Set-Cookie", cookie);
            }
            Outcome { answer, user: Some(caller.user.name), thinks: caller.thinks, quirks }
        }
    }
}

fn inside(world: &mut World, request: &Request, user: &User) -> Answer {
    if request.route.number.is_some_and(|number| !world.dialect.version_paths.contains(&number)) {
        return not_found(world, request);
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        let is = if world.dialect.container == Container::Tomcat { "is " } else { "" };
        return Answer::message(&world.dialect, 405, &format!("Request method '{}' {is}not supported", request.method));
    }
    let suffix = request.route.suffix.as_deref();
    let by_parameter = request.param("format").filter(|_| world.dialect.format_parameter);
    let wanted = suffix.or(by_parameter).unwrap_or_else(|| match request.header("accept") {
        Some(accept) if !accept.contains("json") && !accept.contains("*/*") && !accept.contains("text/plain") => {
            "other"
        }
        _ => "json",
    });
    if !matches!(wanted, "json" | "json.gz") {
        return Answer::by_container(&world.dialect, request, 406, "Could not find acceptable representation");
    }
    let parts = request.route.segments.clone();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let answer = match parts.as_slice() {
        ["system", "info"] => system::info(world, request, user),
        ["system", "ping"] => system::ping(world, request),
        // Known by its session or credentials in versions that want a login for it.
        ["ping"] if world.dialect.empty_ping => system::empty_ping(),
        ["system", "id" | "uid"] => system::ids(world, request),
        ["system", "objectCounts"] => system::object_counts(world),
        ["me"] => me::me(world, request, user),
        ["me", "authorization" | "authorities"] => me::authorities(user),
        ["me", "authorization" | "authorities", authority] => me::has_authority(user, authority),
        ["schemas"] => schemas::all(world, request),
        ["schemas", singular] => schemas::one(world, request, singular),
        ["analytics"] => analytics::query(world, request, user),
        ["analytics", "events", "query", program] => {
            analytics_events::query(world, request, user, analytics_events::Table::Events, program)
        }
        ["analytics", "enrollments", "query", program] => {
            analytics_events::query(world, request, user, analytics_events::Table::Enrollments, program)
        }
        [things] if world.dialect.old_tracker && old_tracker::thing(things).is_some() => {
            let thing = old_tracker::thing(things).unwrap_or(crate::registry::Thing::Event);
            old_tracker::list(world, request, user, thing)
        }
        ["dataStore"] => data_store::namespaces(),
        ["userDataStore"] => data_store::of_user(),
        ["dataStore", namespace] => data_store::entries(world, request, namespace),
        ["dataStore", namespace, key] => data_store::entry(world, namespace, key),
        ["dataStore", namespace, key, "metaData"] => data_store::about(world, namespace, key),
        ["sqlViews", id, "data"] if world.shelf("sqlViews").is_some() => sql_views::data(world, request, user, id),
        ["metadata", "version"] => {
            let message = "Metadata versioning is not enabled for this instance.";
            Answer::coded_message(&world.dialect, 400, message, Some("E1003"))
        }
        ["tracker", "relationships"] if world.dialect.tracker != TrackerForm::Absent => {
            tracker::relationships(world, request)
        }
        ["tracker", things] if world.dialect.tracker != TrackerForm::Absent => match tracker::thing(things) {
            Some(thing) => tracker::list(world, request, user, thing),
            None => not_found(world, request),
        },
        ["tracker", things, id] if world.dialect.tracker != TrackerForm::Absent => match tracker::thing(things) {
            Some(thing) => tracker::one(world, request, thing, id),
            None => not_found(world, request),
        },
        ["dataValueSets"] => data_values::list(world, request, user),
        ["completeDataSetRegistrations"] => registrations::list(world, request, user),
        ["deletedObjects"] => deleted_objects::list(world, request, user),
        [collection] => match world.shelf(collection) {
            Some(shelf) => metadata::list(world, request, user, shelf),
            None => not_found(world, request),
        },
        [collection, "gist"] if world.dialect.gist => match world.shelf(collection) {
            Some(shelf) => metadata::gist(world, request, user, shelf),
            None => not_found(world, request),
        },
        [collection, id] => match world.shelf(collection) {
            Some(shelf) => metadata::one(world, request, user, shelf, id),
            None => not_found(world, request),
        },
        _ => not_found(world, request),
    };
    let mut answer = if wanted == "json.gz" && answer.status == 200 { packed(answer, &parts) } else { answer };
    let names_charset =
        if answer.status == 200 { world.dialect.charset_in_type } else { world.dialect.charset_in_errors };
    if names_charset {
        answer = answer.with_charset();
    }
    answer.with_header("X-Content-Type-Options", "nosniff").with_header("X-XSS-Protection", "1; mode=block")
}

/// The body of a `.json.gz`: compressed content, not a transfer coding, so that nobody unpacks it by the way.
fn packed(mut answer: Answer, parts: &[&str]) -> Answer {
    let name = parts.last().copied().unwrap_or("metadata");
    answer.body = crate::wire::gzip(&answer.body);
    answer.content_type = Some("application/json+gzip".into());
    answer.with_header("Content-Disposition", &format!("attachment; filename={name}.json.gz"))
}

fn not_found(world: &World, request: &Request) -> Answer {
    let message = format!("No handler found for {} {}", request.method, request.route.path);
    Answer::by_container(&world.dialect, request, 404, &message)
}

/// A number in the query: the default when it is absent, the status of the refusal when it is none.
pub(crate) fn number(world: &World, request: &Request, name: &str, default: i64) -> Result<i64, Box<Answer>> {
    match request.param(name) {
        None | Some("") => Ok(default),
        Some(text) => text.trim().parse().map_err(|_| {
            let status = world.dialect.bad_parameter_status;
            Box::new(Answer::message(
                &world.dialect,
                status,
                &format!("Value `{text}` is not valid for parameter {name}"),
            ))
        }),
    }
}
