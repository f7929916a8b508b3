//! Lists where the stand-in differs from what was recorded on purpose, each with its reason.
//!
//! A `*` stands for anything. A line that nothing needs any more is an error, so the list cannot grow old.

/// A difference that is meant.
#[derive(Debug)]
pub(super) struct Difference {
    /// Versions it concerns, separated by blanks; empty: all.
    versions: &'static str,
    /// Name of the exchange.
    exchange: &'static str,
    /// What is different, as the comparison says it.
    what: &'static str,
    /// Why it is meant.
    pub(super) why: &'static str,
}

const fn d(versions: &'static str, exchange: &'static str, what: &'static str, why: &'static str) -> Difference {
    Difference { versions, exchange, what, why }
}

/// All of them.
pub(super) const DIFFERENCES: &[Difference] = &[
    d("", "analytics-*", "*", "not spoken yet: issue 14"),
];

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
