//! Answers before the answer: it does not matter how the bytes are cut, and nothing but heads of 1xx is ever lost.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&[u8], u8)| {
    let (bytes, step) = data;
    let whole = dhis2::fuzz::interim(&[bytes]);
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(step).max(1)).collect();
    assert_eq!(dhis2::fuzz::interim(&pieces), whole);
    assert!(bytes.ends_with(&whole));
    let lost = &bytes[..bytes.len() - whole.len()];
    assert!(lost.is_empty() || lost.starts_with(b"HTTP/1."));
});
