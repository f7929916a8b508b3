//! The identifier of a DHIS2 object, small enough to copy and checked when it comes in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Eleven letters and digits, a letter first; compares as bytes.
///
/// Unique per type of object only. Source: dhis2-core `CodeGenerator` (all versions): `^[a-zA-Z][a-zA-Z0-9]{10}$`.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Uid([u8; Uid::BYTES]);

/// A text that is not the identifier of a DHIS2 object.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a DHIS2 uid: eleven letters and digits, a letter first")]
pub struct ParseUidError;

impl Uid {
    /// Length of every uid.
    pub const BYTES: usize = 11;

    /// The uid as text.
    pub fn as_str(&self) -> &str {
        // Checked to be ASCII when it was made.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl FromStr for Uid {
    type Err = ParseUidError;

    fn from_str(text: &str) -> Result<Self, ParseUidError> {
        let bytes: [u8; Uid::BYTES] = text.as_bytes().try_into().map_err(|_| ParseUidError)?;
        if bytes[0].is_ascii_alphabetic() && bytes.iter().all(u8::is_ascii_alphanumeric) {
            Ok(Uid(bytes))
        } else {
            Err(ParseUidError)
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AsRef<str> for Uid {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl<'de> Deserialize<'de> for Uid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Uid;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a DHIS2 uid")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Uid, E> {
                text.parse().map_err(|error: ParseUidError| E::custom(error))
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Serialize for Uid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_eleven_letters_and_digits_with_a_letter_first_are_a_uid() {
        for good in ["ImspTQPwCqd", "a0123456789", "ABCDEFGHIJK"] {
            assert_eq!(good.parse::<Uid>().unwrap().to_string(), good);
        }
        for bad in ["", "0mspTQPwCqd", "ImspTQPwCq", "ImspTQPwCqdd", "ImspTQPwCq-", "ImspTQPwCé"] {
            assert_eq!(bad.parse::<Uid>(), Err(ParseUidError), "{bad}");
        }
        assert!(serde_json::from_str::<Uid>("\"Imsp\\u0054QPwCqd\"").is_ok());
    }
}
