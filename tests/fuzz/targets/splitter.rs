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

/// The rows and the envelope, or nothing.
fn split(bytes: &[u8], chunk: usize) -> Option<(Vec<String>, Vec<u8>, bool, u64)> {
    let limits =
        SplitLimits { row_bytes_max: 200, prefix_bytes: 20, envelope_bytes_max: 300, ..SplitLimits::default() };
    let mut splitter = Splitter::new(&["rows"], limits);
    let mut rows = Vec::new();
    for part in bytes.chunks(chunk.max(1)) {
        let mut take = |row: Row<'_>| {
            rows.push(match row {
                Row::Whole(row) => row.text().to_owned(),
                other => format!("{other:?}"),
            });
            Ok(())
        };
        splitter.push(part, &mut take).ok()?;
    }
    let envelope = splitter.finish().ok()?;
    Some((rows, envelope.text().to_vec(), envelope.found_array(), envelope.unfit_rows()))
}

fuzz_target!(|data: &[u8]| {
    let Some((&chunk, bytes)) = data.split_first() else { return };
    let whole = split(bytes, bytes.len());
    assert_eq!(split(bytes, usize::from(chunk)), whole, "the chunk borders matter");
    let Some((rows, _, found_array, unfit)) = whole else { return };
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
