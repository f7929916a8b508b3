//! The server's description of itself and of our user: `/api/system/info`, `/api/system/ping`, `/api/me`.

use serde::Deserialize;

use crate::{
    client::Client,
    error::{Error, ErrorKind},
    version::Version,
};

/// A server's self-description. What a version or a right does not give is none.
///
/// Source: dhis2-core `SystemInfo`, 2.25 to 2.43.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SystemInfo {
    /// Its version; the minor number decides the dialect.
    pub version: Version,
    /// Short hash of the build.
    pub revision: Option<String>,
    /// The database's own id, what a checkpoint knows a source by. Hidden from all but superusers in 2.25 and 2.26.
    pub system_id: Option<String>,
    /// The server's clock, local to the server and without a zone: `2024-05-01T10:11:12.345`.
    pub server_date: Option<String>,
    /// The zone of every date without one: an IANA id. 2.36 and later.
    pub server_time_zone_id: Option<String>,
    /// `iso8601`, or a calendar in which period ids count differently.
    pub calendar: Option<String>,
    /// The name people gave it.
    pub system_name: Option<String>,
    /// When analytics tables were last built; without a zone.
    pub last_analytics_table_success: Option<String>,
}

/// The user we are logged in as.
///
/// Source: dhis2-core `MeDto`; `username` at the top from 2.38, in `userCredentials` until 2.40.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Me {
    /// Our uid.
    pub id: Option<String>,
    /// Our login name.
    pub username: Option<String>,
    /// Authorities; `ALL` is a superuser. None where the server does not tell.
    pub authorities: Option<Vec<String>>,
    /// Roots below which we may record.
    pub organisation_units: Vec<String>,
    /// Roots below which we may read aggregated data; empty where none are set apart.
    pub data_view_organisation_units: Vec<String>,
    /// Roots below which we may search tracked entities; empty where none are set apart.
    pub search_organisation_units: Vec<String>,
}

impl Me {
    /// Whether we may do everything; none where the server does not tell.
    pub fn is_superuser(&self) -> Option<bool> {
        self.authorities.as_ref().map(|all| all.iter().any(|one| one == "ALL"))
    }
}

#[derive(Deserialize)]
struct WithId {
    id: String,
}

/// The `ping` body is `pong`, or the same as a JSON string.
const PONG_BYTES_MAX: usize = 64;

impl Client {
    /// Reads `/api/system/info`. Any user may.
    ///
    /// # Errors
    /// Garbled when there is no version in it: then it is not DHIS2.
    pub async fn system_info(&self) -> Result<SystemInfo, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            #[serde(default)]
            version: Option<String>,
            #[serde(default)]
            revision: Option<String>,
            #[serde(default)]
            system_id: Option<String>,
            #[serde(default)]
            server_date: Option<String>,
            #[serde(default)]
            server_time_zone_id: Option<String>,
            #[serde(default)]
            calendar: Option<String>,
            #[serde(default)]
            system_name: Option<String>,
            #[serde(default)]
            last_analytics_table_success: Option<String>,
        }
        let request = self.get("system/info");
        let url = format!("{}/api/system/info", self.url());
        let raw: Raw = request.json().await?;
        let garbled = |text: &str| Error::new(ErrorKind::Garbled, text).about(&url, "");
        let redaction = self.inner.session.redaction();
        let clean = |text| redaction.clean_some(text);
        let version = clean(raw.version).ok_or_else(|| garbled("the response names no version: this is not DHIS2"))?;
        let version = version
            .parse()
            .map_err(|error| garbled("the response names a version this program does not know").with_source(error))?;
        Ok(SystemInfo {
            version,
            revision: clean(raw.revision),
            system_id: clean(raw.system_id).filter(|id| !id.is_empty()),
            server_date: clean(raw.server_date),
            server_time_zone_id: clean(raw.server_time_zone_id),
            calendar: clean(raw.calendar),
            system_name: clean(raw.system_name),
            last_analytics_table_success: clean(raw.last_analytics_table_success),
        })
    }

    /// Asks `/api/system/ping` for a sign of life, the cheapest there is.
    ///
    /// Never `/api/ping`: from 2.37 on it answers a success without a body, which a proxy may do as well.
    ///
    /// Fit for a probe: it does not wait for other requests of this client, whatever gate they stand at, and a 401 to it is no
    /// verdict on the credentials. When credentials that had been accepted are refused, nothing but pings is sent until
    /// one is answered; how often to try is the caller's business.
    ///
    /// # Errors
    /// Garbled or empty when something else than `pong` comes back: whatever answers there is not the server.
    ///
    /// Source: 2.40.13, 2.42.7 and 2.43.2, asked.
    pub async fn ping(&self) -> Result<(), Error> {
        let path = "system/ping";
        let generation = self.inner.session.generation();
        let body = self.get(path).raw().probe().bytes(PONG_BYTES_MAX).await?;
        let error = match body.trim_ascii() {
            b"pong" | b"\"pong\"" => {
                self.inner.session.mark_valid(generation, true);
                return Ok(());
            }
            b"" => Error::new(ErrorKind::EmptyBody, "the server answers a ping with nothing"),
            _ => Error::new(ErrorKind::Garbled, "the server answers a ping with something else than `pong`"),
        };
        Err(error.about(&format!("{}/api/{path}", self.url()), ""))
    }

    /// Reads `/api/me`: who we are, what we may, where.
    ///
    /// # Errors
    /// As every request.
    pub async fn me(&self) -> Result<Me, Error> {
        #[derive(Deserialize)]
        struct UserCredentials {
            #[serde(default)]
            username: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            #[serde(default)]
            id: Option<String>,
            #[serde(default)]
            username: Option<String>,
            #[serde(default)]
            user_credentials: Option<UserCredentials>,
            #[serde(default)]
            authorities: Option<Vec<String>>,
            #[serde(default)]
            organisation_units: Option<Vec<WithId>>,
            #[serde(default)]
            data_view_organisation_units: Option<Vec<WithId>>,
            #[serde(default)]
            tei_search_organisation_units: Option<Vec<WithId>>,
        }
        let fields = "id,username,userCredentials[username],authorities,organisationUnits[id],\
                      dataViewOrganisationUnits[id],teiSearchOrganisationUnits[id]";
        let raw: Raw = self.get("me").query("fields", fields).json().await?;
        let redaction = self.inner.session.redaction();
        let clean = |text| redaction.clean_some(text);
        let ids = |units: Option<Vec<WithId>>| -> Vec<String> {
            units.unwrap_or_default().into_iter().map(|unit| redaction.clean(&unit.id)).collect()
        };
        let username = raw.username.or_else(|| raw.user_credentials.and_then(|user| user.username));
        Ok(Me {
            id: clean(raw.id),
            username: clean(username),
            authorities: raw.authorities.map(|all| all.iter().map(|one| redaction.clean(one)).collect()),
            organisation_units: ids(raw.organisation_units),
            data_view_organisation_units: ids(raw.data_view_organisation_units),
            search_organisation_units: ids(raw.tei_search_organisation_units),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Server, Then, answer, json};

    fn client(server: &Server) -> Client {
        Client::builder(server.url()).retries(0).build().unwrap()
    }

    #[actix_rt::test]
    async fn an_old_and_a_new_server_describe_themselves() {
        let old = r#"{"version":"2.25","revision":"ab12cd3","serverDate":"2024-05-01T10:11:12.345","calendar":"iso8601","systemId":null,"memoryInfo":{"x":1}}"#;
        let server = Server::saying(json(old));
        let info = client(&server).system_info().await.unwrap();
        assert_eq!((info.version.minor(), info.system_id, info.server_time_zone_id), (25, None, None));
        assert_eq!(info.server_date.as_deref(), Some("2024-05-01T10:11:12.345"));
        let new =
            r#"{"version":"2.43.0","systemId":"eed3d451","serverTimeZoneId":"Africa/Freetown","sessionTimeout":3600}"#;
        let server = Server::saying(json(new));
        let info = client(&server).system_info().await.unwrap();
        assert_eq!((info.version.minor(), info.system_id.as_deref()), (43, Some("eed3d451")));
        assert_eq!(server.heard()[0].path, "/api/system/info");
    }

    #[actix_rt::test]
    async fn what_names_no_version_is_not_dhis2() {
        for body in ["{}", "[]", r#"{"version":null}"#, r#"{"version":"7.4"}"#, r#"{"version":5}"#] {
            let server = Server::saying(json(body));
            let error = client(&server).system_info().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Garbled, "{body}");
            assert!(error.url().unwrap().ends_with("/api/system/info"));
        }
    }

    #[actix_rt::test]
    async fn a_ping_asks_system_ping_and_only_pong_counts() {
        let text = |body: &str| answer("200 OK", &["Content-Type: text/plain"], body);
        let as_json = |body: &str| answer("200 OK", &["Content-Type: application/json"], body);
        let cases = vec![
            // As 2.40 to 2.43 say it, and as older ones do.
            (as_json("pong"), None),
            (json("\"pong\""), None),
            (text("pong\n"), None),
            (text("up"), Some(ErrorKind::Garbled)),
            // What `/api/ping` answers from 2.37 on.
            (answer("200 OK", &[], ""), Some(ErrorKind::EmptyBody)),
            (answer("200 OK", &["Content-Type: text/html"], "pong"), Some(ErrorKind::Html)),
            (answer("503 Service Unavailable", &[], ""), Some(ErrorKind::Status)),
        ];
        let answers: Vec<_> = cases.iter().map(|(answer, _)| answer.clone()).collect();
        let server = Server::start(move |heard, out| {
            out.write(&answers[heard.number]);
            Then::Keep
        });
        let client = client(&server);
        for (_, kind) in &cases {
            assert_eq!(client.ping().await.map_err(|error| error.kind()).err(), *kind);
        }
        assert!(server.heard().iter().all(|heard| heard.path == "/api/system/ping"));
    }

    #[actix_rt::test]
    async fn we_are_read_from_old_and_new_servers() {
        let old = r#"{"id":"xE7jOejl9FI","userCredentials":{"username":"admin"},"authorities":["ALL"],"organisationUnits":[{"id":"ImspTQPwCqd","name":"x"}],"dataViewOrganisationUnits":null}"#;
        let server = Server::saying(json(old));
        let me = client(&server).me().await.unwrap();
        assert_eq!((me.username.as_deref(), me.is_superuser()), (Some("admin"), Some(true)));
        assert_eq!(me.organisation_units, ["ImspTQPwCqd"]);
        let server = Server::saying(json(
            r#"{"username":"reader","authorities":["M_x"],"teiSearchOrganisationUnits":[{"id":"a"}]}"#,
        ));
        let me = client(&server).me().await.unwrap();
        assert_eq!((me.username.as_deref(), me.is_superuser()), (Some("reader"), Some(false)));
        assert_eq!(me.search_organisation_units, ["a"]);
        let server = Server::saying(json("{}"));
        assert_eq!(client(&server).me().await.unwrap().is_superuser(), None);
    }
}
