//! Says what each version of DHIS2 does, as one struct of answers; no other file compares version numbers.
//!
//! Source: recorded servers of 2.40, 2.42 and 2.43; dhis2-core for the versions before, between and after.

use std::ops::RangeInclusive;

/// What a version does with wrong Basic credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denial {
    /// 401 with `WWW-Authenticate: Basic` and an HTML body.
    Html,
    /// 401 with a JSON WebMessage.
    Json,
}

/// When a version opens a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionRule {
    /// For every request that brings no living cookie, tokens included.
    EveryRequest,
    /// For passwords, not for tokens.
    PasswordsOnly,
}

/// What a page behind the last one holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PastTheEnd {
    /// The rows of the last page again.
    RepeatsLast,
    /// Nothing.
    Empty,
}

/// The order of a list nobody ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DefaultOrder {
    /// Name ignoring case, then the younger first; not unique.
    NameThenCreated,
    /// Name ignoring case, then id; unique.
    NameThenId,
}

/// What the server runs in, which speaks where DHIS2 itself has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    /// Not recorded: a WebMessage stands for what it would say.
    Unknown,
    /// Embedded Jetty: errors as a small JSON of its own, or as nothing.
    Jetty,
    /// Embedded Tomcat: errors as HTML.
    Tomcat,
}

/// How `/api/tracker` puts its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TrackerForm {
    /// There is none.
    Absent,
    /// `instances`, the page's numbers beside them; `orgUnit` with semicolons, `ouMode`, `skipPaging`.
    Flat,
    /// Named rows, a pager, and its numbers beside it once more; old and new parameter names.
    Both,
    /// Named rows, a pager with links; `orgUnits` with commas, `orgUnitMode`, `paging`.
    Pager,
}

/// What a request for data outside the user's tree gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutsideTree {
    /// A 200 without a byte.
    Nothing,
    /// A 409 that says so.
    Refused,
}

/// Who may read `/api/deletedObjects`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeletedObjects {
    /// There is no such path.
    Absent,
    /// Every user.
    Anyone,
    /// Users with `ALL`; others get a 403.
    SuperuserOnly,
}

/// One version's answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// The number after `2.`.
    pub(crate) minor: u8,
    /// The `NN` that `/api/NN/` accepts.
    pub(crate) version_paths: RangeInclusive<u8>,
    pub(crate) system_id_hidden_from_others: bool,
    pub(crate) server_time_zone: bool,
    pub(crate) system_info_fields: bool,
    pub(crate) system_info_no_store: bool,
    pub(crate) session_timeout_in_info: bool,
    /// `system/info` no longer says who asks.
    pub(crate) sparse_system_info: bool,
    /// `system/info` tells of what never happened, and the database's time.
    pub(crate) full_system_info: bool,
    /// `/api/ping` is there, and answers with nothing at all: no body, no content type.
    pub(crate) empty_ping: bool,
    /// `/api/ping` needs no login.
    pub(crate) anonymous_ping: bool,
    /// `/api/system/ping` answers those who ask for JSON with `pong` as it is, no JSON string.
    pub(crate) bare_pong: bool,
    pub(crate) username_on_top: bool,
    pub(crate) user_credentials: bool,
    pub(crate) wrong_password: Denial,
    /// `X-Requested-With: XMLHttpRequest` earns a 401 in place of the redirect.
    pub(crate) xhr_is_told: bool,
    pub(crate) login_path: &'static str,
    pub(crate) tokens: bool,
    /// A token nobody has is a 400 (its checksum is looked at first), not a 401.
    pub(crate) token_checksums: bool,
    pub(crate) disabled_is_told: bool,
    pub(crate) sessions: SessionRule,
    pub(crate) session_expire_cookie: bool,
    pub(crate) json_login: bool,
    pub(crate) failures_until_locked: u32,
    pub(crate) past_the_end: PastTheEnd,
    /// `pager.total` is remembered for a minute per user and filters.
    pub(crate) stale_totals: bool,
    pub(crate) default_order: DefaultOrder,
    /// Several `order` parameters apply in the order they are written.
    pub(crate) orders_keep_precedence: bool,
    pub(crate) bad_filter_status: u16,
    /// A parameter of the wrong type.
    pub(crate) bad_parameter_status: u16,
    pub(crate) deleted_objects: DeletedObjects,
    pub(crate) error_codes: bool,
    pub(crate) format_parameter: bool,
    /// Successes name their charset: `application/json;charset=UTF-8`.
    pub(crate) charset_in_type: bool,
    /// Errors do too.
    pub(crate) charset_in_errors: bool,
    /// Refusals at the door do too.
    pub(crate) charset_in_refusals: bool,
    pub(crate) container: Container,
    /// Where a browser is sent that asks for a page without a login.
    pub(crate) html_login_path: &'static str,
    /// `/` is where apps are, and has no place for strangers.
    pub(crate) apps_page: bool,
    /// A bearer nobody knows is refused as OAuth2 refuses it.
    pub(crate) oauth_refusal: bool,
    /// A page of a list says 0 pages when nothing is found.
    pub(crate) counts_no_pages: bool,
    /// Errors about filters carry a code.
    pub(crate) filter_error_code: Option<&'static str>,
    /// Reading `users` takes an authority that a plain user lacks.
    pub(crate) users_are_guarded: bool,
    /// An order by what is not there is refused.
    pub(crate) refuses_unknown_order: bool,
    /// `includeDescendants` on one unit is paged.
    pub(crate) descendants_are_paged: bool,
    /// A gist's links name the host.
    pub(crate) gist_links_are_absolute: bool,
    pub(crate) gist: bool,
    /// `sharing` object in place of `publicAccess` and friends.
    pub(crate) sharing_object: bool,
    /// `sharing.external` and `access.externalize` are there.
    pub(crate) external_sharing: bool,
    /// References to users carry their names.
    pub(crate) users_are_named: bool,
    pub(crate) outside_tree: OutsideTree,
    pub(crate) tracker: TrackerForm,
    /// `/api/events` and its like are there.
    pub(crate) old_tracker: bool,
    /// Counting enrollments for `totalPages` fails in the server's own SQL.
    pub(crate) counts_enrollments_wrongly: bool,
    /// What a tracker's order leaves equal is settled anew for every page.
    pub(crate) orders_loosely: bool,
    /// Events and enrollments are found by program only.
    pub(crate) tracker_wants_program: bool,
    /// Deleted entities of a type cannot be asked for: an error in the server's own SQL.
    pub(crate) deleted_entities_by_type_fail: bool,
    /// Enrollments by `createdAt` or `updatedAt`: an error in the server's own SQL.
    pub(crate) enrollment_dates_are_ambiguous: bool,
    /// Entities by `trackedEntity`: an error in the server's own SQL.
    pub(crate) entity_order_fails: bool,
    /// Events of programs without registration cannot be ordered by attributes.
    pub(crate) orders_by_element_only: bool,
    /// Events of programs without registration name an enrollment.
    pub(crate) single_events_are_enrolled: bool,
    /// They have a date they are scheduled for.
    pub(crate) single_events_are_scheduled: bool,
    /// Enrollments without dates are found by analytics.
    pub(crate) undated_enrollments_are_found: bool,
    /// Analytics say who stored an event.
    pub(crate) analytics_name_people: bool,
    /// Enrollments have an attribute option combo.
    pub(crate) enrollments_have_combos: bool,
    /// Reading data values was written anew: unknown ids are nothing found, the first violation is told, what a query
    /// names once stands on the envelope only, nulls are left out, `lastUpdated` is compared rightly.
    pub(crate) rewritten_values: bool,
    /// Members of a data value without a value are null.
    pub(crate) nulls_in_values: bool,
    /// No `dataValues` at all where there are none.
    pub(crate) no_values_is_nothing: bool,
    /// `followUp` in place of `followup`.
    pub(crate) camel_follow_up: bool,
    /// `dataElement=` narrows data values.
    pub(crate) element_scope: bool,
    pub(crate) empty_filter: bool,
    pub(crate) not_empty_filter: bool,
    pub(crate) ieq_filter: bool,
    pub(crate) caret_filters: bool,
    /// `attributeValues` is a collection for the schemas.
    pub(crate) attribute_values_are_a_set: bool,
    /// Members are written in another order than in newer versions: references before the id.
    pub(crate) old_member_order: bool,
}

impl Dialect {
    /// The dialects that exist here.
    pub(crate) const MINORS: RangeInclusive<u8> = 25..=43;

    pub(crate) fn of(minor: u8) -> Self {
        Self {
            minor,
            version_paths: match minor {
                ..=28 => 23..=minor,
                29..=31 => 26..=minor,
                32..=36 => 28..=minor,
                37 => 28..=38,
                38 | 39 => 28..=39,
                40..=42 => 28..=42,
                _ => 28..=43,
            },
            system_id_hidden_from_others: minor <= 26,
            server_time_zone: minor >= 36,
            system_info_fields: minor >= 38,
            system_info_no_store: minor >= 38,
            session_timeout_in_info: minor >= 43,
            sparse_system_info: minor >= 40,
            full_system_info: minor >= 42,
            empty_ping: minor >= 37,
            anonymous_ping: minor >= 42,
            bare_pong: minor >= 38,
            username_on_top: minor >= 38,
            user_credentials: minor <= 40,
            wrong_password: if minor <= 29 { Denial::Html } else { Denial::Json },
            xhr_is_told: minor >= 28,
            login_path: match minor {
                ..=41 => "/dhis-web-commons/security/login.action",
                42 => "/dhis-web-login/",
                _ => "/login/",
            },
            tokens: minor >= 37,
            token_checksums: minor >= 42,
            disabled_is_told: minor >= 40,
            sessions: if (35..=41).contains(&minor) { SessionRule::EveryRequest } else { SessionRule::PasswordsOnly },
            session_expire_cookie: minor >= 43,
            json_login: minor >= 41,
            failures_until_locked: if minor >= 43 { 4 } else { 5 },
            past_the_end: if minor <= 30 { PastTheEnd::RepeatsLast } else { PastTheEnd::Empty },
            stale_totals: (31..=36).contains(&minor),
            default_order: if minor <= 32 { DefaultOrder::NameThenCreated } else { DefaultOrder::NameThenId },
            orders_keep_precedence: minor >= 42,
            bad_filter_status: if minor >= 42 { 400 } else { 409 },
            bad_parameter_status: if minor >= 37 { 400 } else { 500 },
            deleted_objects: match minor {
                ..=26 => DeletedObjects::Absent,
                27 | 28 => DeletedObjects::Anyone,
                _ => DeletedObjects::SuperuserOnly,
            },
            error_codes: minor >= 34,
            format_parameter: minor <= 37,
            charset_in_type: minor <= 37 || minor >= 42,
            charset_in_errors: minor <= 37,
            charset_in_refusals: minor >= 42,
            container: match minor {
                ..=39 => Container::Unknown,
                40 | 41 => Container::Jetty,
                _ => Container::Tomcat,
            },
            html_login_path: match minor {
                ..=39 => "/dhis-web-commons/security/login.action",
                40 | 41 => "/index.html",
                42 => "/dhis-web-login/",
                _ => "/login/",
            },
            apps_page: minor >= 42,
            oauth_refusal: minor <= 41,
            counts_no_pages: minor >= 40,
            filter_error_code: if minor >= 42 { Some("E1003") } else { None },
            users_are_guarded: minor >= 40,
            refuses_unknown_order: minor >= 43,
            descendants_are_paged: minor >= 42,
            gist_links_are_absolute: minor >= 42,
            gist: minor >= 37,
            sharing_object: minor >= 36,
            outside_tree: if matches!(minor, 37 | 39..=42) { OutsideTree::Nothing } else { OutsideTree::Refused },
            tracker: match minor {
                ..=35 => TrackerForm::Absent,
                36..=40 => TrackerForm::Flat,
                41 => TrackerForm::Both,
                _ => TrackerForm::Pager,
            },
            old_tracker: minor <= 41,
            counts_enrollments_wrongly: minor == 40,
            orders_loosely: minor <= 41,
            tracker_wants_program: minor >= 43,
            deleted_entities_by_type_fail: (40..=42).contains(&minor),
            enrollment_dates_are_ambiguous: minor == 42,
            entity_order_fails: minor >= 43,
            orders_by_element_only: minor >= 43,
            single_events_are_enrolled: minor == 42,
            single_events_are_scheduled: minor <= 42,
            undated_enrollments_are_found: minor >= 42,
            analytics_name_people: minor >= 42,
            enrollments_have_combos: minor >= 43,
            rewritten_values: minor >= 43,
            nulls_in_values: (38..=42).contains(&minor),
            no_values_is_nothing: minor <= 37,
            camel_follow_up: minor <= 27,
            element_scope: minor >= 39,
            external_sharing: minor <= 41,
            users_are_named: minor >= 38,
            empty_filter: minor == 26 || minor >= 30,
            not_empty_filter: minor >= 43,
            ieq_filter: minor >= 41,
            caret_filters: minor == 25,
            attribute_values_are_a_set: minor <= 41,
            old_member_order: minor <= 37,
        }
    }
}

/// Splits `2.40`, `2.40.3`, `2.38.1-SNAPSHOT` or `40` into the text a server reports and its minor number; a version
/// without a patch gets `.1`.
pub(crate) fn parse_version(text: &str) -> Option<(String, u8)> {
    let rest = text.strip_prefix("2.").unwrap_or(text);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let minor: u8 = digits.parse().ok()?;
    if !Dialect::MINORS.contains(&minor) {
        return None;
    }
    let tail = &rest[digits.len()..];
    match tail.chars().next() {
        None => Some((format!("2.{minor}.1"), minor)),
        Some('.' | '-') => Some((format!("2.{minor}{tail}"), minor)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_in_every_way_people_write_it() {
        assert_eq!(parse_version("2.40"), Some(("2.40.1".into(), 40)));
        assert_eq!(parse_version("43"), Some(("2.43.1".into(), 43)));
        assert_eq!(parse_version("2.38.1-SNAPSHOT"), Some(("2.38.1-SNAPSHOT".into(), 38)));
        assert_eq!(parse_version("2.39.2.1"), Some(("2.39.2.1".into(), 39)));
        for bad in ["2.24", "2.44", "two", "2.40x", ""] {
            assert_eq!(parse_version(bad), None, "{bad}");
        }
    }

    #[test]
    fn version_paths_are_the_table_of_the_api_notes() {
        let table = [
            (25, 23..=25),
            (26, 23..=26),
            (28, 23..=28),
            (29, 26..=29),
            (31, 26..=31),
            (32, 28..=32),
            (36, 28..=36),
            (37, 28..=38),
            (38, 28..=39),
            (39, 28..=39),
            (40, 28..=42),
            (42, 28..=42),
            (43, 28..=43),
        ];
        for (minor, paths) in table {
            assert_eq!(Dialect::of(minor).version_paths, paths, "2.{minor}");
        }
    }

    /// One row a fact: the fact, the first and the last version it holds for.
    #[test]
    fn every_fact_holds_from_its_first_version_to_its_last() {
        type Fact = (&'static str, u8, u8, fn(&Dialect) -> bool);
        let facts: &[Fact] = &[
            ("system id hidden", 25, 26, |d| d.system_id_hidden_from_others),
            ("server time zone", 36, 43, |d| d.server_time_zone),
            ("fields on system info", 38, 43, |d| d.system_info_fields),
            ("an empty ping", 37, 43, |d| d.empty_ping),
            ("ping without login", 42, 43, |d| d.anonymous_ping),
            ("token checksums", 42, 43, |d| d.token_checksums),
            ("username on top", 38, 43, |d| d.username_on_top),
            ("userCredentials", 25, 40, |d| d.user_credentials),
            ("html 401", 25, 29, |d| d.wrong_password == Denial::Html),
            ("xhr 401", 28, 43, |d| d.xhr_is_told),
            ("action login", 25, 41, |d| d.login_path.ends_with(".action")),
            ("tokens", 37, 43, |d| d.tokens),
            ("session for every request", 35, 41, |d| d.sessions == SessionRule::EveryRequest),
            ("repeats the last page", 25, 30, |d| d.past_the_end == PastTheEnd::RepeatsLast),
            ("stale totals", 31, 36, |d| d.stale_totals),
            ("name then created", 25, 32, |d| d.default_order == DefaultOrder::NameThenCreated),
            ("multi order kept", 42, 43, |d| d.orders_keep_precedence),
            ("409 on a bad filter", 25, 41, |d| d.bad_filter_status == 409),
            ("no deleted objects", 25, 26, |d| d.deleted_objects == DeletedObjects::Absent),
            ("deleted objects for all", 27, 28, |d| d.deleted_objects == DeletedObjects::Anyone),
            ("error codes", 34, 43, |d| d.error_codes),
            ("json login", 41, 43, |d| d.json_login),
            ("gist", 37, 43, |d| d.gist),
            ("ieq", 41, 43, |d| d.ieq_filter),
            ("an unknown order is refused", 43, 43, |d| d.refuses_unknown_order),
            ("a tracker", 36, 43, |d| d.tracker != TrackerForm::Absent),
            ("enrollments counted wrongly", 40, 40, |d| d.counts_enrollments_wrongly),
            ("rewritten data values", 43, 43, |d| d.rewritten_values),
            ("nulls in data values", 38, 42, |d| d.nulls_in_values),
            ("no values is nothing", 25, 37, |d| d.no_values_is_nothing),
            ("Jetty", 40, 41, |d| d.container == Container::Jetty),
            ("no pages of nothing", 40, 43, |d| d.counts_no_pages),
        ];
        for (name, first, last, holds) in facts {
            for minor in Dialect::MINORS {
                assert_eq!(holds(&Dialect::of(minor)), (*first..=*last).contains(&minor), "{name} at 2.{minor}");
            }
        }
    }
}
