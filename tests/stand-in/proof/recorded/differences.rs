//! Lists where the stand-in differs from what was recorded on purpose, each with its reason.
//!
//! A `*` stands for anything. A line that nothing needs any more is an error, so the list cannot grow old.

use std::fmt;

/// A difference that is meant.
pub(super) struct Difference {
    /// Versions it concerns, separated by blanks; empty: all.
    versions: &'static str,
    /// Name of the exchange.
    exchange: &'static str,
    /// What is different, as the comparison says it.
    what: &'static str,
    /// Why it is meant.
    why: &'static str,
}

const fn d(versions: &'static str, exchange: &'static str, what: &'static str, why: &'static str) -> Difference {
    Difference { versions, exchange, what, why }
}

/// All of them.
pub(super) const DIFFERENCES: &[Difference] = &[
    // Not spoken.
    d("", "analytics-events-aggregate", "*", "not spoken yet"),
    d("2.40", "old-tei-query", "*", "not spoken: `trackedEntityInstances` says the same with names"),
    d("", "dv-csv dv-xml dataset-csv-suffix", "*", "nothing here asks for CSV or XML"),
    d("", "sv-*-csv analytics-csv", "*", "nothing here asks for CSV or XML"),
    d("", "fileresource-*", "*", "not spoken yet"),
    d("", "import-*", "*", "not spoken yet"),
    d("", "metadata-export*", "*", "nothing here asks for `/api/metadata`"),
    d("", "audits datasummary datastatistics data-integrity geojson", "*", "nothing here asks for it"),
    d("", "jobs tasks tasks-analytics login-config", "*", "nothing here asks for it"),
    d("", "periodtypes resources sharing", "*", "nothing here asks for it"),
    // Another country of the same size.
    d(
        "2.43",
        "dv-dates dv-limit dv-quarterly dv-long-period-list dv-lastupdated-duration",
        "missing dataValues[].*",
        "left out where there is none",
    ),
    d("", "*", "* organisationUnits[].geometry.coordinates[]*", "ours has polygons besides points"),
    d("", "orgunit-* sv-0 sv-0-page", "value pager.*", "the tree is cut otherwise: six below each unit, not four"),
    d("", "list-lastupdated", "value pager.*", "ours was saved over years, theirs in a minute"),
    d("", "list-total-sharing-reader-paged", "value pager.*", "theirs hides one data element from the reader"),
    d("", "deleted-objects-filter", "value pager.*", "others were deleted"),
    d("", "deleted-objects", "extra deletedObjects[].code", "some of ours had a code"),
    d("", "tracker-* old-events", "extra *[].completed*", "some of ours are completed where none of theirs was"),
    d("", "tracker-*-occurred tracker-*-enrolled", "value *", "theirs had nothing in June 2023"),
    d("", "tracker-*-occurred tracker-*-enrolled", "extra *", "theirs had nothing in June 2023"),
    d("", "analytics-relative", "extra rows[]", "theirs had nothing in the last twelve months"),
    d("", "tracker-te-one", "missing relationships[]", "nobody is related here"),
    // Said shortly.
    d("2.40", "tracker-e*-order-bad", "value message *", "an order nobody knows is refused with fewer words"),
    d("", "schema-dataelement", "missing properties[].*", "a property says only what clients ask for"),
];

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}: {}", self.versions, self.exchange, self.what, self.why)
    }
}

impl Difference {
    pub(super) fn explains(&self, version: &str, exchange: &str, what: &str) -> bool {
        (self.versions.is_empty() || self.versions.split(' ').any(|known| known == version))
            && self.exchange.split(' ').any(|pattern| fits(pattern, exchange))
            && fits(self.what, what)
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut open = false;
    for part in parts {
        open = true;
        match rest.find(part) {
            _ if part.is_empty() => {}
            Some(at) => {
                rest = &rest[at + part.len()..];
                open = false;
            }
            None => return false,
        }
    }
    open || rest.is_empty() || (pattern.contains('*') && text.ends_with(pattern.rsplit('*').next().unwrap_or_default()))
}

#[test]
fn a_star_stands_for_anything() {
    for (pattern, text, fitting) in [
        ("*", "", true),
        ("dv-*", "dv-csv", true),
        ("dv-*", "xdv-csv", false),
        ("list", "list-owner", false),
        ("*[].sharing.*", "extra rows[].sharing.owner", true),
        ("value*total*for*", "value pager.total 3 for 4", true),
        ("a*b", "abcb", true),
        ("a*b", "abc", false),
    ] {
        assert_eq!(fits(pattern, text), fitting, "{pattern} {text}");
    }
}
