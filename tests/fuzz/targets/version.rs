//! A server's version: refused, or the same when it is read again as it was written.
#![no_main]

use dhis2::Version;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match text.parse::<Version>() {
    Ok(version) => {
        assert_eq!(version.to_string().parse::<Version>().as_ref(), Ok(&version));
        assert!(text.contains(&format!("2.{}", version.minor())) || text.contains("2.0"));
    }
    Err(not) => assert!(not.to_string().chars().count() < 80),
});
