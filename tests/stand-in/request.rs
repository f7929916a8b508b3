//! Holds one request as it was read, and takes its path apart as DHIS2 does.

use percent_encoding::percent_decode_str;

use crate::collections;

/// One request.
#[derive(Clone)]
pub struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) number: u64,
    pub(crate) connection: u64,
    pub(crate) turn_on_connection: u64,
    pub(crate) route: Route,
    query: Vec<(String, String)>,
}

/// Headers may carry credentials: only what identifies the request is shown.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("number", &self.number).field("method", &self.method).finish_non_exhaustive()
    }
}

/// A path taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Decoded path behind the context path, with its suffix.
    pub(crate) path: String,
    /// Whether it starts with `/api`.
    pub(crate) api: bool,
    /// `NN` of `/api/NN/…`.
    pub(crate) number: Option<u8>,
    /// What follows, split at slashes, without the suffix.
    pub(crate) segments: Vec<String>,
    /// Behind the first dot of the whole path.
    pub(crate) suffix: Option<String>,
}

impl Route {
    pub(crate) fn new(path: &str, context_path: &str) -> Self {
        let decoded = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let Some(inner) = decoded.strip_prefix(context_path) else { return Self { path: decoded, ..Self::default() } };
        let (bare, suffix) = match inner.split_once('.') {
            Some((bare, suffix)) => (bare, Some(suffix.trim_end_matches('/').to_owned())),
            None => (inner, None),
        };
        let mut segments = bare.split('/').filter(|segment| !segment.is_empty());
        let api = segments.clone().next() == Some("api");
        if !api {
            return Self { path: inner.to_owned(), suffix, ..Self::default() };
        }
        segments.next();
        let mut segments: Vec<String> = segments.map(Into::into).collect();
        let number = segments.first().filter(|first| first.len() == 2).and_then(|first| first.parse().ok());
        if number.is_some() {
            segments.remove(0);
        }
        Self { path: inner.to_owned(), api, number, segments, suffix }
    }

    /// The segments as text slices, for matching.
    pub(crate) fn parts(&self) -> Vec<&str> {
        self.segments.iter().map(String::as_str).collect()
    }
}

impl Request {
    pub(crate) fn new(method: &str, target: &str, headers: Vec<(String, String)>, context_path: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
                (decode(name), decode(value))
            })
            .collect();
        Self {
            method: method.into(),
            target: target.into(),
            headers,
            body: Vec::new(),
            number: 0,
            connection: 0,
            turn_on_connection: 0,
            route: Route::new(path, context_path),
            query,
        }
    }

    /// `GET`, `POST`, …
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Path and query as they were sent.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Decoded path behind the context path.
    pub fn path(&self) -> &str {
        &self.route.path
    }

    /// The request's number in the ledger, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// First value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// First decoded value of a query parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(parameter, _)| parameter == name).map(|(_, value)| value.as_str())
    }

    /// All decoded values of a query parameter.
    pub fn params<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.query.iter().filter(move |(parameter, _)| parameter == name).map(|(_, value)| value.as_str())
    }

    /// Forgets all but the first or the last of several parameters of one name.
    pub(crate) fn keep_one(&mut self, name: &str, first: bool) {
        let named = |pair: &(String, String)| pair.0 == name;
        let kept = if first { self.query.iter().position(named) } else { self.query.iter().rposition(named) };
        let mut at = 0;
        self.query.retain(|pair| {
            at += 1;
            pair.0 != name || Some(at - 1) == kept
        });
    }

    /// The query's pairs, decoded, in their order.
    pub fn query(&self) -> &[(String, String)] {
        &self.query
    }

    /// The collection whose rows are asked for, if that is what the request does.
    pub fn collection(&self) -> Option<&'static str> {
        match self.route.parts().as_slice() {
            [name] if self.route.api && self.method == "GET" => {
                collections::position(name).map(|at| collections::COLLECTIONS[at].name)
            }
            _ => None,
        }
    }

    /// Whether this names a member that `Accept` or a suffix decides.
    pub(crate) fn accepts_gzip(&self) -> bool {
        self.header("accept-encoding").is_some_and(|accepted| {
            accepted.split(',').any(|coding| {
                let mut parts = coding.split(';').map(str::trim);
                matches!(parts.next(), Some("gzip" | "*"))
                    && !parts.any(|part| part.replace(' ', "").strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_apart_at_its_first_dot() {
        type Line<'a> = (&'a str, &'a str, Option<u8>, &'a [&'a str], Option<&'a str>);
        let table: &[Line<'_>] = &[
            ("/api/organisationUnits", "", None, &["organisationUnits"], None),
            ("/api/40/organisationUnits.json", "", Some(40), &["organisationUnits"], Some("json")),
            ("/api/organisationUnits.json.gz", "", None, &["organisationUnits"], Some("json.gz")),
            ("/dhis/api/system/info/", "/dhis", None, &["system", "info"], None),
            ("/api/system/info.json/", "", None, &["system", "info"], Some("json")),
            ("/api/4/x", "", None, &["4", "x"], None),
            ("/api", "", None, &[], None),
        ];
        for (path, context, number, segments, suffix) in table {
            let route = Route::new(path, context);
            assert!(route.api, "{path}");
            assert_eq!(
                (route.number, route.parts().as_slice(), route.suffix.as_deref()),
                (*number, *segments, *suffix),
                "{path}"
            );
        }
        assert!(!Route::new("/api/x", "/dhis").api);
        assert!(!Route::new("/apixyz", "").api);
    }

    #[test]
    fn gzip_is_accepted_only_where_the_header_says_so() {
        for (header, accepted) in [
            ("gzip", true),
            ("br, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("*", true),
            ("gzip; q=0.0", false),
        ] {
            let request = Request::new("GET", "/", vec![("accept-encoding".into(), header.into())], "");
            assert_eq!(request.accepts_gzip(), accepted, "{header}");
        }
    }
}
