//! The version of a DHIS2 server: what it calls itself, and the minor number that decides its dialect.

use std::{fmt, str::FromStr};

/// A server's version, `2.<minor>` and what follows.
///
/// Examples: `2.40.3`, `2.38.1-SNAPSHOT`, `2.35`, `2.39.2.1`, `2.41.0`. Compares by minor and patch numbers, not by
/// suffix. Source: dhis2-core `SystemInfo`, 2.25 to 2.43; from 2.42 still `2.42.x`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Version {
    minor: u16,
    patches: Vec<u32>,
    raw: String,
}

/// A text that is not the version of a DHIS2 server.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a DHIS2 version: `{0}`")]
pub struct ParseVersionError(String);

impl Version {
    /// The number behind `2.`: 40 for 2.40.3. It decides the dialect.
    pub fn minor(&self) -> u16 {
        self.minor
    }

    /// The numbers behind the minor: `[3]` for 2.40.3, `[2, 1]` for 2.39.2.1, none for 2.35.
    pub fn patches(&self) -> &[u32] {
        &self.patches
    }

    /// As the server wrote it.
    pub fn raw(&self) -> &str {
        &self.raw
    }
}

impl FromStr for Version {
    type Err = ParseVersionError;

    /// Reads `2.<minor>`, then dotted numbers, then any suffix behind a hyphen or space.
    fn from_str(raw: &str) -> Result<Self, ParseVersionError> {
        let not = || ParseVersionError(raw.chars().take(40).collect());
        let text = raw.trim();
        let numbers = text.split(['-', ' ', '+', '_']).next().unwrap_or_default();
        let mut parts = numbers.split('.');
        if parts.next() != Some("2") {
            return Err(not());
        }
        let minor = parts.next().ok_or_else(not)?.parse().map_err(|_| not())?;
        // A patch that is no number ends the numbers; the minor is what matters.
        let patches = parts.map_while(|part| part.parse().ok()).collect();
        Ok(Version { minor, patches, raw: text.to_owned() })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_a_server_writes_its_version_is_read() {
        for (raw, minor, patches) in [
            ("2.40.3", 40, &[3][..]),
            ("2.38.1-SNAPSHOT", 38, &[1]),
            ("2.35", 35, &[]),
            ("2.35-SNAPSHOT", 35, &[]),
            ("2.39.2.1", 39, &[2, 1]),
            ("2.41.0", 41, &[0]),
            ("2.43.0-beta.1", 43, &[0]),
            (" 2.25 ", 25, &[]),
            ("2.30.x", 30, &[]),
        ] {
            let version: Version = raw.parse().unwrap();
            assert_eq!((version.minor(), version.patches()), (minor, patches), "{raw}");
        }
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for raw in ["", "2", "2.", "3.1", "43.0", "2.x", "v2.40", "latest", "2.-1", "2.99999"] {
            assert!(raw.parse::<Version>().is_err(), "{raw}");
        }
    }
}
