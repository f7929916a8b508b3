//! Answers what is not the API: login forms, logout, and paths nobody knows.

use crate::answer::Answer;
use crate::auth::Verdict;
use crate::dialect::Container;
use crate::request::Request;
use crate::world::World;

const NOT_FOUND: &str = "<!doctype html><html><head><title>HTTP Status 404 – Not Found</title></head><body><h1>HTTP Status 404 – Not Found</h1></body></html>";

/// The login page of this version, its form's target, the logout, the start page; a 404 as HTML for the rest.
pub(crate) fn outside_api(world: &mut World, request: &Request) -> Answer {
    let path = request.route.path.as_str();
    if path == "/dhis-web-commons-security/login.action" && request.method == "POST" && !world.dialect.json_login {
        let form = String::from_utf8_lossy(&request.body).into_owned();
        let form = Request::new("POST", &format!("/?{form}"), Vec::new(), "");
        let (name, password) =
            (form.param("j_username").unwrap_or_default(), form.param("j_password").unwrap_or_default());
        return match world.door.log_in(name, password, &world.dialect, &world.context_path) {
            Some(cookies) => {
                cookies.iter().fold(Answer::redirect(request, "/dhis-web-dashboard/"), |answer, cookie| {
                    answer.with_header("Set-Cookie", cookie)
                })
            }
            None => Answer::redirect(request, "/dhis-web-commons/security/login.action?failed=true"),
        };
    }
    if path.trim_end_matches('/') == world.dialect.login_path.trim_end_matches('/') {
        return Answer::login_page();
    }
    let to = |path: &str| Answer::redirect(request, &format!("{}{path}", world.context_path));
    match path {
        "/dhis-web-commons-security/logout.action" => to(world.dialect.login_path),
        "/" | "" if world.dialect.apps_page => start_page(world, request),
        "/" | "" => to(world.dialect.html_login_path),
        _ => match world.dialect.container {
            Container::Unknown => Answer::html(404, NOT_FOUND),
            Container::Jetty => {
                Answer { content_type: Some("text/html;charset=iso-8859-1".into()), ..Answer::html(404, NOT_FOUND) }
            }
            // A folder, as far as it knows; recorded: `not-found-outside-api`.
            Container::Tomcat if !path.ends_with('/') => {
                let folder = format!("{}{path}/", world.context_path);
                Answer { status: 301, ..Answer::default() }.with_header("Location", &folder)
            }
            Container::Tomcat => Answer::by_container(&world.dialect, request, 404, "Not Found"),
        },
    }
}

/// `/` where it leads to the apps: strangers get a 401 even when they ask for a page (recorded: `root-page-anonymous`).
fn start_page(world: &mut World, request: &Request) -> Answer {
    match world.door.check(request, &world.dialect, &world.context_path) {
        Verdict::Known(_) => Answer::redirect(request, &format!("{}/apps/", world.context_path)),
        Verdict::Unknown(..) => Answer::message(&world.dialect, 401, "Unauthorized").with_charset(),
    }
}

/// `POST /api/auth/login`.
pub(crate) fn by_json(world: &mut World, request: &Request) -> Answer {
    #[derive(serde::Deserialize)]
    struct Login {
        username: String,
        password: String,
    }
    if request.method != "POST" {
        return Answer::message(&world.dialect, 405, "Request method not supported");
    }
    let Ok(login) = serde_json::from_slice::<Login>(&request.body) else {
        return Answer::message(&world.dialect, 400, "Body is not a login");
    };
    match world.door.log_in(&login.username, &login.password, &world.dialect, &world.context_path) {
        Some(cookies) => {
            let body = br#"{"loginStatus":"SUCCESS","redirectUrl":"/dhis-web-dashboard/"}"#.to_vec();
            cookies.iter().fold(Answer::json(200, body), |answer, cookie| answer.with_header("Set-Cookie", cookie))
        }
        None => Answer::message(&world.dialect, 401, "Bad credentials"),
    }
}
