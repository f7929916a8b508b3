//! The job file, as TOML and as JSON: a job, or mistakes that can be told with their place.
#![no_main]

use std::path::Path;

use dhis2_harvester::job::Job;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for name in ["job.toml", "job.json"] {
        match Job::parse(Path::new(name), text, true) {
            Ok(job) => {
                let again = Job::parse(Path::new(name), text, true).expect("a job stays one");
                assert_eq!(job.fingerprint(), again.fingerprint());
                for extract in &job.extracts {
                    assert!(extract.streams().iter().all(|stream| !stream.is_empty()));
                }
            }
            Err(diagnostics) => assert!(!diagnostics.to_string().is_empty() && !diagnostics.one_line().contains('\n')),
        }
    }
});
