//! The push splitter: what passes is JSON with these rows, and chunk borders change nothing.
#![no_main]

use dhis2::split::{Row, SplitLimits, Splitter};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

#[derive(serde::Deserialize)]
struct Dom<'a> {
    #[serde(borrow, default)]
    rows: Vec<&'a RawValue>,
}

/// What is read of a row.
#[derive(serde::Deserialize)]
struct Head {
    id: Option<String>,
}

/// The rows, the envelope, and the keys if they are to be read; or nothing.
fn split(bytes: &[u8], chunk: usize, has_key: bool) -> Option<(Vec<String>, Vec<u8>, bool, u64, Vec<Option<String>>)> {
    let limits =
        SplitLimits { row_bytes_max: 200, prefix_bytes: 20, envelope_bytes_max: 300, ..SplitLimits::default() };
    let mut splitter = Splitter::new(&["rows"], limits);
    if has_key {
        splitter = splitter.with_key("id");
    }
    let (mut rows, mut keys) = (Vec::new(), Vec::new());
    for part in bytes.chunks(chunk.max(1)) {
        let mut take = |row: Row<'_>| {
            rows.push(match row {
                Row::Whole(row) => {
                    keys.push(row.key().map(str::to_owned));
                    row.text().to_owned()
                }
                other => format!("{other:?}"),
            });
            Ok(())
        };
        splitter.push(part, &mut take).ok()?;
    }
    let envelope = splitter.finish().ok()?;
    Some((rows, envelope.text().to_vec(), envelope.found_array(), envelope.unfit_rows(), keys))
}

fuzz_target!(|data: &[u8]| {
    let Some((&chunk, bytes)) = data.split_first() else { return };
    let whole = split(bytes, bytes.len(), false);
    assert_eq!(split(bytes, usize::from(chunk), false), whole, "the chunk borders matter");
    let keyed = split(bytes, bytes.len(), true);
    assert_eq!(split(bytes, usize::from(chunk), true), keyed, "the chunk borders matter");
    if let Some((rows, .., keys)) = &keyed {
        assert_eq!(Some(rows), whole.as_ref().map(|whole| &whole.0), "the key matters");
        for (row, key) in rows.iter().zip(keys).filter(|_| rows.len() == keys.len()) {
            let head = serde_json::from_str::<Head>(row).map(|head| head.id).expect("a key that passes is a text");
            assert_eq!(&head, key);
        }
    }
    let Some((rows, _, found_array, unfit, _)) = whole else { return };
    if unfit > 0 {
        // A row that is not taken is not looked at closely.
        return;
    }
    let text = std::str::from_utf8(bytes).expect("what passes is UTF-8");
    serde_json::from_str::<serde::de::IgnoredAny>(text).expect("what passes is JSON");
    if found_array {
        let dom: Dom<'_> = serde_json::from_str(text).expect("what has rows is an object with one array of them");
        assert_eq!(rows, dom.rows.iter().map(|row| row.get()).collect::<Vec<_>>());
    } else {
        assert!(rows.is_empty());
    }
});
