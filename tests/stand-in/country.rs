//! Makes a country's content by formula from a seed and a scale: nothing is stored, everything can be counted.
//!
//! Whatever is asked of `(collection, index)` has one answer for one seed, so a million rows cost a million ids and no
//! more.

/// Eleven characters, `^[a-zA-Z][a-zA-Z0-9]{10}$`.
pub(crate) type Uid = [u8; 11];

/// The text of an id.
pub(crate) fn uid_text(uid: &Uid) -> &str {
    std::str::from_utf8(uid).unwrap_or("invalid0000")
}

/// A reversible mixer (the finaliser of splitmix64): distinct numbers stay distinct.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a: a number for a text.
pub(crate) fn hash_text(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Writes a number as an id. Injective: 52 × 62¹⁰ is more than 2⁶⁴.
pub(crate) fn uid_of(number: u64) -> Uid {
    const LETTERS: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut uid = [0; 11];
    uid[0] = LETTERS[usize::try_from(number % 52).unwrap_or(0)];
    let mut rest = number / 52;
    for slot in &mut uid[1..] {
        *slot = LETTERS[usize::try_from(rest % 62).unwrap_or(0)];
        rest /= 62;
    }
    uid
}

/// The seed and the scale everything is computed from.
#[derive(Debug, Clone)]
pub(crate) struct Country {
    pub(crate) seed: u64,
    /// Number of organisation units; the other collections' sizes follow from it.
    pub(crate) org_units: u32,
    /// Children per organisation unit: the cube root of their number, so that there are four levels from 15 units on.
    pub(crate) branching: u32,
}

impl Country {
    pub(crate) fn new(seed: u64, org_units: u32) -> Self {
        let mut branching = 2u32;
        while u64::from(branching + 1).pow(3) <= u64::from(org_units) {
            branching += 1;
        }
        Self { seed, org_units, branching }
    }

    /// A number for one row of one collection; `salt` tells the questions about a row apart.
    pub(crate) fn hash(&self, collection_salt: u64, index: u32, salt: u64) -> u64 {
        mix(mix(self.seed ^ collection_salt.rotate_left(17) ^ salt.wrapping_mul(0x2545_f491_4f6c_dd1d))
            ^ u64::from(index))
    }

    /// The id of a row: unique within its collection, since the mixer is reversible.
    pub(crate) fn uid(&self, collection_salt: u64, index: u32) -> Uid {
        uid_of(mix(u64::from(index) ^ mix(self.seed ^ collection_salt)))
    }

    /// The parent of an organisation unit; `None` for the root. Units born later hang below one that had children
    /// from the start.
    pub(crate) fn parent(&self, index: u32) -> Option<u32> {
        if index == 0 {
            None
        } else if index < self.org_units {
            Some((index - 1) / self.branching)
        } else {
            let inner = self.inner_units();
            Some(u32::try_from(mix(self.seed ^ u64::from(index)) % u64::from(inner)).unwrap_or(0))
        }
    }

    /// How many units, counted from the first, have children.
    pub(crate) fn inner_units(&self) -> u32 {
        (self.org_units.saturating_sub(2) / self.branching + 1).max(1)
    }

    /// Root first, the unit itself last.
    pub(crate) fn ancestors(&self, index: u32) -> Vec<u32> {
        let mut line = vec![index];
        let mut at = index;
        while let Some(parent) = self.parent(at) {
            line.push(parent);
            at = parent;
        }
        line.reverse();
        line
    }

    /// Appends the name of a row. About one in six is awkward: quotes, backslashes, line breaks, tabs, control
    /// characters, other scripts, emoji, markup, text that looks like JSON, equal names.
    pub(crate) fn push_name(&self, collection_salt: u64, label: &str, index: u32, revision: u32, out: &mut String) {
        use std::fmt::Write;
        let places =
            ["Kailahun", "Bo", "Bombali", "Tonkolili", "Moyamba", "Pujehun", "Kono", "Koinadugu", "Bonthe", "Kambia"];
        let hash = self.hash(collection_salt, index, 1);
        let place = places[usize::try_from(hash % 10).unwrap_or(0)];
        let number = index;
        let _ = match hash / 16 % 96 {
            0 => write!(out, "{label} \"St. Mary's\" {number}"),
            1 => write!(out, "{label} C:\\clinic\\{number}"),
            2 => write!(out, "{label}\n{place}\r\n{number}"),
            3 => write!(out, "{label}\t{place}\t{number}"),
            4 => write!(out, "Centre de santé Kédougou {number}"),
            5 => write!(out, "مركز صحي {number}"),
            6 => write!(out, "诊所 {number}"),
            7 => write!(out, "🏥 {label} 👩🏾‍⚕️ {number}"),
            8 => write!(out, "<b>{label}</b> & Co <script>alert({number})</script>"),
            9 => write!(out, "{{\"id\":\"{number}\"}}]}}, {label}"),
            10 => write!(out, "  {label} {number}  "),
            11 => write!(out, "{label} \u{1}\u{1f}\u{7f}\u{2028} {number}"),
            12 => write!(out, "{}{number}", "Très long nom / ".repeat(12)),
            13..=16 => write!(out, "Health Post"),
            17 => write!(out, "e\u{301}cole vs \u{e9}cole {number}"),
            _ => write!(out, "{place} {label} {number}"),
        };
        if revision > 0 {
            let _ = write!(out, " (rev {revision})");
        }
    }

    /// When a row was made, local civil milliseconds: in batches that share an instant, as imports do.
    pub(crate) fn created_ms(&self, collection_salt: u64, index: u32) -> i64 {
        let batch = u64::from(index / 16);
        let spread = mix(self.seed ^ collection_salt ^ batch) % 2000;
        (crate::clock::days(2014, 1, 1) + i64::try_from(spread).unwrap_or(0)) * 86_400_000 + 36_000_000
    }

    /// When a row was last saved before the stand-in started: never before it was made, never after 2023.
    pub(crate) fn last_updated_ms(&self, collection_salt: u64, index: u32) -> i64 {
        let spread = self.hash(collection_salt, index, 2) % (1000 * 86_400_000);
        self.created_ms(collection_salt, index) + i64::try_from(spread).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_look_like_ids_and_none_comes_twice() {
        let country = Country::new(3, 50_000);
        let mut seen = HashSet::new();
        for index in 0..50_000 {
            let uid = country.uid(9, index);
            assert!(uid[0].is_ascii_alphabetic() && uid.iter().all(u8::is_ascii_alphanumeric));
            assert!(seen.insert(uid));
        }
    }

    #[test]
    fn the_tree_has_one_root_and_four_levels() {
        for org_units in [15, 100, 1000, 20_000] {
            let country = Country::new(1, org_units);
            let levels: Vec<usize> = (0..org_units).map(|index| country.ancestors(index).len()).collect();
            assert_eq!(levels.iter().filter(|level| **level == 1).count(), 1, "{org_units}");
            assert!((4..=5).contains(levels.iter().max().unwrap()), "{org_units}");
            for born_later in org_units..org_units + 20 {
                assert!(country.parent(born_later).unwrap() < country.inner_units());
            }
            for index in 1..org_units {
                assert!(country.parent(index).unwrap() < country.inner_units());
            }
        }
    }
}
