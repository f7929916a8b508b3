//! A stream's name becomes a file name that stays inside its folder and that no other stream has.
//!
//! Stream names may hold what a server or a person chose (namespaces of a data store, `stream = "…"`): slashes, dots,
//! NUL, anything. What comes out is made of `[A-Za-z0-9._%-]` only, is never `.` or `..`, and is at most
//! [`FILE_STEM_CHARS_MAX`] + 9 characters long.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use sha2::{Digest, Sha256};

/// Longer names are cut to this length before they get `-` and 8 hex digits of the whole name's SHA-256.
pub(crate) const FILE_STEM_CHARS_MAX: usize = 100;

/// All bytes but `[A-Za-z0-9._-]`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// File stem of a stream: its name, with all bytes outside `[A-Za-z0-9._-]` percent-encoded.
///
/// Different names give different stems. `rejects` belongs to the sink itself and is encoded.
pub(crate) fn file_stem(name: &str) -> String {
    let stem = percent_encode(name.as_bytes(), ENCODED).to_string();
    match stem.as_str() {
        // No name encodes to a bare `%`, so this cannot meet another stream's.
        "" => return "%".to_owned(),
        "." | ".." => return stem.replace('.', "%2E"),
        "rejects" => return "%72ejects".to_owned(),
        _ => {}
    }
    if stem.len() <= FILE_STEM_CHARS_MAX {
        return stem;
    }
    let mut cut = stem[..FILE_STEM_CHARS_MAX].to_owned();
    // Never half of a `%XX`.
    if let Some(percent) = cut.rfind('%').filter(|percent| cut.len() - percent < 3) {
        cut.truncate(percent);
    }
    cut.push('-');
    cut.push_str(&hex(&Sha256::digest(name.as_bytes())[..4]));
    cut
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::encode::FileFormat;
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_names_become_known_files() {
        let long = "x".repeat(101);
        let long_digest = hex(&Sha256::digest(long.as_bytes())[..4]);
        let cases = [
            ("organisationUnits", "organisationUnits.ndjson".to_owned()),
            ("events-VBqh0ynB2wv", "events-VBqh0ynB2wv.ndjson".to_owned()),
            ("dataStore-my space/ü", "dataStore-my%20space%2F%C3%BC.ndjson".to_owned()),
            ("../../etc/passwd", "..%2F..%2Fetc%2Fpasswd.ndjson".to_owned()),
            ("..", "%2E%2E.ndjson".to_owned()),
            ("", "%.ndjson".to_owned()),
            ("%2E", "%252E.ndjson".to_owned()),
            ("rejects", "%72ejects.ndjson".to_owned()),
            ("nul\0", "nul%00.ndjson".to_owned()),
            (&"y".repeat(100), "y".repeat(100) + ".ndjson"),
            (&long, "x".repeat(100) + "-" + &long_digest + ".ndjson"),
        ];
        for (stream, file) in cases {
            assert_eq!(FileFormat::Ndjson.file_name(stream), file);
        }
    }

    #[test]
    fn a_cut_never_leaves_half_an_encoded_byte() {
        for lead in 0..6 {
            let name = "a".repeat(lead) + &"/".repeat(60);
            let stem = file_stem(&name);
            let (cut, digest) = stem.rsplit_once('-').unwrap();
            assert_eq!(digest.len(), 8);
            assert_eq!(cut.trim_start_matches('a').len() % 3, 0, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_its_folder(name in ".*") {
            let file = FileFormat::Ndjson.file_name(&name);
            let parts: Vec<_> = Path::new(&file).components().collect();
            prop_assert_eq!(parts.len(), 1);
            prop_assert!(matches!(parts[0], Component::Normal(_)));
            prop_assert!(file.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-%".contains(&byte)));
            prop_assert!(file.len() <= 120);
        }

        #[test]
        fn two_names_never_share_a_file(a in "[./%a-]{0,6}", b in "[./%a-]{0,6}") {
            prop_assert_eq!(a == b, FileFormat::Ndjson.file_name(&a) == FileFormat::Ndjson.file_name(&b));
        }
    }
}
