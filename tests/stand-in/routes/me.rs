//! Answers `/api/me` and what hangs below it.

use crate::answer::Answer;
use crate::auth::User;
use crate::country::{hash_text, uid_of, uid_text};
use crate::fields;
use crate::request::Request;
use crate::world::World;

fn authorities_of(user: &User) -> &'static [&'static str] {
    if user.superuser { &["ALL"] } else { &["M_dhis-web-dashboard", "F_DATAVALUE_ADD"] }
}

fn id_list(world: &World, collection: &str, most: usize) -> String {
    let Some(shelf) = world.shelf(collection) else { return "[]".into() };
    let shelf = &world.shelves[shelf];
    let ids: Vec<String> =
        shelf.by_id.iter().take(most).map(|row| format!("\"{}\"", uid_text(shelf.id(*row)))).collect();
    format!("[{}]", ids.join(","))
}

/// `/api/me`.
pub(crate) fn me(world: &World, request: &Request, user: &User) -> Answer {
    let dialect = &world.dialect;
    let uid = uid_of(hash_text(&user.name));
    let id = uid_text(&uid);
    let mut name = Vec::new();
    crate::rows::push_text(&mut name, &user.name);
    let name = String::from_utf8_lossy(&name);
    let roots = world.shelf("organisationUnits").map_or_else(Vec::new, |shelf| {
        let shelf = &world.shelves[shelf];
        let rows = if user.branches.is_empty() { vec![0] } else { user.branches.iter().map(|at| at + 1).collect() };
        let alive = rows.into_iter().filter(|row: &u32| shelf.is_alive(*row));
        let level = if user.branches.is_empty() { 1 } else { 2 };
        alive.map(|row| format!("{{\"id\":\"{}\",\"level\":{level}}}", uid_text(shelf.id(row)))).collect()
    });
    let roots = format!("[{}]", roots.join(","));
    let mut members = vec![format!("\"id\":\"{id}\""), format!("\"name\":{name}"), format!("\"displayName\":{name}")];
    if dialect.username_on_top {
        members.push(format!("\"username\":{name}"));
    }
    if dialect.user_credentials {
        members.push(format!("\"userCredentials\":{{\"id\":\"{id}\",\"username\":{name}}}"));
    }
    let authorities: Vec<String> = authorities_of(user).iter().map(|authority| format!("\"{authority}\"")).collect();
    members.push(format!("\"organisationUnits\":{roots}"));
    members.push(format!("\"dataViewOrganisationUnits\":{roots}"));
    let searched = if user.superuser { "[]" } else { &roots };
    members.push(format!("\"teiSearchOrganisationUnits\":{searched},\"userRoles\":[],\"userGroups\":[]"));
    members.push(format!("\"authorities\":[{}]", authorities.join(",")));
    members.push(format!("\"programs\":{}", id_list(world, "programs", 1000)));
    members.push(format!("\"dataSets\":{}", id_list(world, "dataSets", 1000)));
    members.push("\"settings\":{\"keyUiLocale\":\"en\",\"keyDbLocale\":\"en\"}".into());
    let mut json = format!("{{{}}}", members.join(","));
    if let Some(wanted) = request.param("fields") {
        json = fields::select(&json, &fields::parse(wanted));
    }
    Answer::json(200, json.into_bytes()).with_header("Cache-Control", "no-cache, private")
}

/// `/api/me/authorization`.
pub(crate) fn authorities(user: &User) -> Answer {
    let authorities: Vec<String> = authorities_of(user).iter().map(|authority| format!("\"{authority}\"")).collect();
    Answer::json(200, format!("[{}]", authorities.join(",")).into_bytes())
        .with_header("Cache-Control", "no-cache, private")
}

/// `/api/me/authorization/{A}`: a superuser has them all.
pub(crate) fn has_authority(user: &User, authority: &str) -> Answer {
    let has = user.superuser || authorities_of(user).contains(&authority);
    Answer::json(200, has.to_string().into_bytes()).with_header("Cache-Control", "no-cache, private")
}
