use std::fs;

use crate::support::Place;

#[test]
fn every_documented_job_is_understood() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs");
    let mut jobs = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        jobs += 1;
        let place = Place::new();
        let text = fs::read_to_string(&path).unwrap();
        place.write("job.toml", &text);
        // A state that nobody has: the job is read, its mistakes would be 78, and then there is nothing to tell.
        let ended = place.ends(&["status", "job.toml"]);
        assert_ne!(ended.code, 78, "{}: {}", path.display(), ended.stderr);
        assert_ne!(ended.code, 2, "{}: {}", path.display(), ended.stderr);
    }
    assert!(jobs >= 2, "only {jobs} jobs");
}
