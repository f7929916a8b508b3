//! Holds an answer before it becomes bytes: what is true, or what a fault made of it.

use crate::dialect::{Container, Dialect};
use crate::request::Request;

/// One answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Name of the array that holds rows, when this is a list.
    pub(crate) rows: Option<&'static str>,
    /// The server keeps no copy: no ETag, no length.
    pub(crate) streamed: bool,
    /// The server ends the connection behind it.
    pub(crate) closes: bool,
}

/// `Cache-Control` of what is never kept, word for word.
pub(crate) const NO_STORE: &str = "no-cache, no-store, max-age=0, must-revalidate";

/// The reason phrase of a status.
pub(crate) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Payload Too Large",
        414 => "URI Too Long",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Status",
    }
}

impl Answer {
    pub(crate) fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, content_type: Some("application/json".into()), body, ..Self::default() }
    }

    pub(crate) fn html(status: u16, body: &str) -> Self {
        Self { status, content_type: Some("text/html;charset=UTF-8".into()), body: body.into(), ..Self::default() }
    }

    pub(crate) fn text(status: u16, body: &str) -> Self {
        Self { status, content_type: Some("text/plain;charset=UTF-8".into()), body: body.into(), ..Self::default() }
    }

    /// A WebMessage.
    pub(crate) fn message(dialect: &Dialect, status: u16, message: &str) -> Self {
        Self::coded_message(dialect, status, message, None)
    }

    /// A WebMessage with an error code where the version knows them.
    pub(crate) fn coded_message(dialect: &Dialect, status: u16, message: &str, code: Option<&str>) -> Self {
        let reason = reason(status);
        let mut body =
            format!("{{\"httpStatus\":\"{reason}\",\"httpStatusCode\":{status},\"status\":\"ERROR\",\"message\":")
                .into_bytes();
        crate::rows::push_text(&mut body, message);
        if let Some(code) = code.filter(|_| dialect.error_codes) {
            body.extend_from_slice(format!(",\"errorCode\":\"{code}\"").as_bytes());
        }
        body.push(b'}');
        Self::json(status, body).with_header("Cache-Control", "no-cache, private")
    }

    /// What the container says where DHIS2 has nothing to say (recorded: `not-found-path`, `accept-xml`, `scheduler`).
    pub(crate) fn by_container(dialect: &Dialect, request: &Request, status: u16, message: &str) -> Self {
        match dialect.container {
            Container::Unknown => Self::message(dialect, status, message),
            Container::Jetty if status == 406 => {
                Self { status, ..Self::default() }.with_header("Cache-Control", "must-revalidate,no-cache,no-store")
            }
            Container::Jetty => {
                let path = &request.route.path;
                let mut said = Vec::new();
                crate::rows::push_text(&mut said, if status == 404 { reason(status) } else { message });
                let said = String::from_utf8_lossy(&said);
                let body = format!(
                    "{{\n\"servlet\":\"dispatcher\",\n\"message\":{said},\n\"url\":\"{path}\",\n\"status\":\"{status}\"\n}}"
                );
                Self::json(status, body.into_bytes()).with_header("Cache-Control", "must-revalidate,no-cache,no-store")
            }
            Container::Tomcat => {
                let reason = reason(status);
                let title = format!("HTTP Status {status} – {reason}");
                let body = format!(
                    "<!doctype html><html lang=\"en\"><head><title>{title}</title></head><body><h1>{title}</h1><hr class=\"line\" /><p><b>Type</b> Status Report</p></body></html>"
                );
                Self { content_type: Some("text/html;charset=utf-8".into()), ..Self::html(status, &body) }
            }
        }
    }

    /// A request line above 8 KB (recorded: `dv-url-8k`).
    pub(crate) fn line_too_long(container: Container) -> Self {
        match container {
            Container::Unknown => Self::html(414, "<html><body><h1>414 Request-URI Too Large</h1></body></html>"),
            Container::Jetty => Self {
                content_type: Some("text/html;charset=iso-8859-1".into()),
                ..Self::html(414, "<h1>Bad Message 414</h1><pre>reason: URI Too Long</pre>")
            },
            Container::Tomcat => Self {
                content_type: Some("text/html;charset=utf-8".into()),
                ..Self::html(
                    400,
                    "<!doctype html><html lang=\"en\"><head><title>HTTP Status 400 – Bad Request</title></head><body><h1>HTTP Status 400 – Bad Request</h1>\
                     <hr class=\"line\" /><p><b>Message</b> Request header is too large</p></body></html>",
                )
            },
        }
    }

    /// Names its charset, if it is JSON.
    #[must_use]
    pub(crate) fn with_charset(mut self) -> Self {
        if self.content_type.as_deref() == Some("application/json") {
            self.content_type = Some("application/json;charset=UTF-8".into());
        }
        self
    }

    /// A 302 to a path of the same host.
    pub(crate) fn redirect(request: &Request, path: &str) -> Self {
        let host = request.header("host").unwrap_or("localhost");
        Self { status: 302, ..Self::default() }.with_header("Location", &format!("http://{host}{path}"))
    }

    /// The login form.
    pub(crate) fn login_page() -> Self {
        Self::html(
            200,
            "<!DOCTYPE html><html><head><title>DHIS 2</title></head><body><form id=\"loginForm\" action=\"../../dhis-web-commons-security/login.action\" method=\"post\">\
             <input type=\"text\" name=\"j_username\"><input type=\"password\" name=\"j_password\"><input type=\"submit\" value=\"Sign in\"></form></body></html>",
        )
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether the server's filter hashes it: a buffered 200 that may be kept.
    pub(crate) fn has_etag(&self) -> bool {
        self.status == 200
            && !self.streamed
            && !self.header("Cache-Control").is_some_and(|control| control.contains("no-store"))
    }
}
