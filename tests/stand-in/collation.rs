//! Orders text as the server's database does, for sorting and for `gt`/`lt` alike.

use std::cmp::Ordering;

/// The database's collation. A client that compares ids itself is wrong under one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Collation {
    /// By bytes: digits, upper case, lower case.
    #[default]
    C,
    /// As `en_US`: digits, then letters whatever their case; between words that are else equal the lower case letter
    /// comes first.
    CaseInsensitive,
}

impl Collation {
    /// Compares two texts.
    pub(crate) fn compare(self, a: &str, b: &str) -> Ordering {
        match self {
            Self::C => a.cmp(b),
            Self::CaseInsensitive => {
                let primary = a.chars().flat_map(char::to_lowercase).cmp(b.chars().flat_map(char::to_lowercase));
                primary.then_with(|| b.cmp(a))
            }
        }
    }

    /// A number that orders ids (11 ASCII letters and digits) as [`Collation::compare`] does.
    pub(crate) fn id_key(self, id: &[u8; 11]) -> u128 {
        match self {
            Self::C => id.iter().fold(0, |key, byte| (key << 8) | u128::from(*byte)),
            Self::CaseInsensitive => {
                let primary = id.iter().fold(0u128, |key, byte| (key << 7) | u128::from(byte.to_ascii_lowercase()));
                id.iter().fold(primary, |key, byte| (key << 1) | u128::from(!byte.is_ascii_lowercase()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_two_collations_disagree_about_case() {
        assert_eq!(Collation::C.compare("Zebra", "apple"), Ordering::Less);
        assert_eq!(Collation::CaseInsensitive.compare("Zebra", "apple"), Ordering::Greater);
        assert_eq!(Collation::CaseInsensitive.compare("a", "A"), Ordering::Less);
        assert_eq!(Collation::CaseInsensitive.compare("9", "a"), Ordering::Less);
    }

    proptest! {
        #[test]
        fn keys_order_ids_as_the_collation_does(a in "[a-zA-Z][a-zA-Z0-9]{10}", b in "[a-zA-Z][a-zA-Z0-9]{10}", flips in any::<u16>()) {
            // The same letters in another case: only the tie decides.
            let twin: String = a
                .chars()
                .enumerate()
                .map(|(at, letter)| match flips >> at & 1 {
                    0 => letter,
                    _ if letter.is_ascii_lowercase() => letter.to_ascii_uppercase(),
                    _ => letter.to_ascii_lowercase(),
                })
                .collect();
            for collation in [Collation::C, Collation::CaseInsensitive] {
                for (x, y) in [(&a, &b), (&a, &twin)] {
                    let key = |id: &str| collation.id_key(id.as_bytes().try_into().unwrap());
                    prop_assert_eq!(key(x).cmp(&key(y)), collation.compare(x, y));
                }
            }
        }
    }
}
