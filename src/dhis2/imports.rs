//! The result of an import: one summary out of the four shapes that versions and endpoints have.
//!
//! Source: dhis2-core `ImportSummary`, `ImportSummaries`, `ImportReport` (metadata) and tracker's `ImportReport`, bare or as the
//! `response` of a `WebMessage`; 2.40.13, 2.42.7 and 2.43.2, asked.

use serde_json::Value;

use crate::{
    client::Client,
    error::{CONFLICTS_MAX, Conflict},
    redaction::Redaction,
};

/// Result of an import. Counts are the server's; from 2.43 on created values are counted as updated, and unchanged
/// ones as ignored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ImportSummary {
    /// OK, SUCCESS, WARNING or ERROR.
    pub status: Option<String>,
    /// Rows that are new (`imported` or `created`).
    pub created: u64,
    /// Rows that were there.
    pub updated: u64,
    /// Rows that were not taken, refused ones and unchanged ones.
    pub ignored: u64,
    /// Rows that were removed.
    pub deleted: u64,
    /// The first conflicts.
    pub conflicts: Vec<Conflict>,
    /// Number of conflicts.
    pub conflict_count: u64,
}

impl Client {
    /// Reads the summary in the body of a response to an import, whole JSON; none when there are no counts in it (a job was
    /// begun, an object was saved, or it is no import at all).
    pub fn import_summary(&self, body: &[u8]) -> Option<ImportSummary> {
        ImportSummary::parse(body, &self.inner.session.redaction())
    }
}

impl ImportSummary {
    pub(crate) fn parse(body: &[u8], redaction: &Redaction) -> Option<Self> {
        // serde_json stops at 128 levels.
        let document: Value = serde_json::from_slice(body).ok()?;
        let report = document.get("response").filter(|response| response.is_object()).unwrap_or(&document);
        let counts = ["importCount", "stats"]
            .into_iter()
            .find_map(|name| report.get(name).filter(|counts| counts.is_object()))
            // Several summaries in one have their sum beside them.
            .or_else(|| report.get("importSummaries").filter(|all| all.is_array()).map(|_| report))?;
        let count = |names: &[&str]| names.iter().find_map(|name| counts.get(name)?.as_u64()).unwrap_or(0);
        let mut summary = ImportSummary {
            status: report.get("status").and_then(Value::as_str).map(|status| redaction.clean(status)),
            created: count(&["imported", "created"]),
            updated: count(&["updated"]),
            ignored: count(&["ignored"]),
            deleted: count(&["deleted"]),
            ..ImportSummary::default()
        };
        let list = |of: &Value, name: &str| of.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        summary.take(&list(report, "conflicts"), redaction);
        for one in list(report, "importSummaries") {
            summary.take(&list(&one, "conflicts"), redaction);
        }
        if let Some(validation) = report.get("validationReport") {
            summary.take(&list(validation, "errorReports"), redaction);
        }
        for of_type in list(report, "typeReports") {
            for object in list(&of_type, "objectReports") {
                summary.take(&list(&object, "errorReports"), redaction);
            }
        }
        Some(summary)
    }

    fn take(&mut self, conflicts: &[Value], redaction: &Redaction) {
        self.conflict_count += conflicts.len() as u64;
        let room = CONFLICTS_MAX - self.conflicts.len();
        self.conflicts.extend(conflicts.iter().take(room).map(|one| Conflict::of(one, redaction)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(body: &[u8]) -> Option<ImportSummary> {
        ImportSummary::parse(body, &Redaction::default())
    }

    #[test]
    fn every_shape_of_a_summary_is_read() {
        let values = r#"{"httpStatus":"Conflict","status":"WARNING","response":{"status":"WARNING","importCount":
            {"imported":1,"updated":2,"ignored":3,"deleted":4},"conflicts":[{"object":"a","value":"no such","errorCode":"E7612"}]}}"#;
        let bare =
            r#"{"status":"SUCCESS","importCount":{"imported":1,"updated":2,"ignored":3,"deleted":4},"conflicts":[]}"#;
        let several = r#"{"response":{"status":"OK","imported":1,"updated":2,"ignored":3,"deleted":4,
            "importSummaries":[{"conflicts":[{"object":"a"}]},{}]}}"#;
        let metadata = r#"{"response":{"status":"OK","stats":{"created":1,"updated":2,"ignored":3,"deleted":4,"total":10},
            "typeReports":[{"objectReports":[{"errorReports":[{"message":"m","errorCode":"E1"}]}]}]}}"#;
        let tracker = r#"{"status":"ERROR","validationReport":{"errorReports":[{"message":"m","errorCode":"E1011","uid":"u"}]},
            "stats":{"created":1,"updated":2,"ignored":3,"deleted":4,"total":10}}"#;
        for (text, status, conflicts) in [
            (values, "WARNING", 1),
            (bare, "SUCCESS", 0),
            (several, "OK", 1),
            (metadata, "OK", 1),
            (tracker, "ERROR", 1),
        ] {
            let summary = parse(text.as_bytes()).unwrap();
            let counts = (summary.created, summary.updated, summary.ignored, summary.deleted);
            assert_eq!(counts, (1, 2, 3, 4), "{text}");
            assert_eq!((summary.status.as_deref(), summary.conflict_count), (Some(status), conflicts), "{text}");
            assert_eq!(summary.conflicts.len() as u64, conflicts, "{text}");
        }
        let tracker = parse(tracker.as_bytes()).unwrap();
        let conflict = &tracker.conflicts[0];
        assert_eq!((conflict.object.as_deref(), conflict.value.as_deref()), (Some("u"), Some("m")));
    }

    #[test]
    fn what_counts_nothing_is_no_summary() {
        for text in [
            "",
            "[]",
            "{}",
            "1",
            r#"{"response":{"uid":"MqNLGo4vBrU","responseType":"ObjectReport"}}"#,
            r#"{"stats":[]}"#,
            r#"{"importCount":5}"#,
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_thousand_conflicts_are_counted_and_twenty_are_kept() {
        let conflicts = vec![r#"{"object":"a","value":5}"#; 1000].join(",");
        let text = format!(r#"{{"importCount":{{"imported":-1,"ignored":1e3}},"conflicts":[{conflicts}]}}"#);
        let summary = parse(text.as_bytes()).unwrap();
        assert_eq!((summary.conflicts.len(), summary.conflict_count), (CONFLICTS_MAX, 1000));
        assert_eq!((summary.created, summary.ignored), (0, 0));
    }

    proptest! {
        #[test]
        fn no_body_upsets_it_and_what_is_kept_is_bounded(
            body in prop::collection::vec(any::<u8>(), 0..200),
            name in "[a-zA-Z]{0,12}|importCount|stats|conflicts|response|importSummaries|typeReports|validationReport",
            value in prop::sample::select(vec!["1", "-1", "null", "[]", "{}", "[1,{}]", "[{\"conflicts\":[1]}]", "{\"imported\":18446744073709551615}", "{\"errorReports\":[[]]}"]),
            other in prop::sample::select(vec!["{}", "[]", "{\"created\":2.5}", "7"]),
        ) {
            let _ = parse(&body);
            let text = format!(r#"{{"{name}":{value},"stats":{other}}}"#);
            for text in [text.clone(), format!(r#"{{"response":{text}}}"#)] {
                if let Some(summary) = parse(text.as_bytes()) {
                    prop_assert!(summary.conflicts.len() as u64 <= summary.conflict_count);
                }
            }
        }
    }
}
