//! `Retry-After`: nothing, or a wait of no more than a day.
#![no_main]

use harvester_pacing::retry_after::{RETRY_AFTER_MAX, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (i64, &str)| {
    let (second, text) = data;
    let Ok(now) = jiff::Timestamp::from_second(second % 400_000_000_000) else { return };
    if let Some(wait) = parse(text, now) {
        assert!(wait <= RETRY_AFTER_MAX);
    }
});
