//! The envelope of a list: a pager passes only when it has the size that was asked for, and none only when none was.
#![no_main]

use dhis2::Pager;
use libfuzzer_sys::fuzz_target;

#[derive(serde::Deserialize)]
struct Envelope {
    #[serde(default)]
    pager: Option<Pager>,
}

fuzz_target!(|data: (Option<u32>, &str)| {
    let (asked, text) = data;
    for text in [text.to_owned(), format!("{{\"pager\":{text}}}"), format!("{{\"pager\":{{\"pageSize\":{text}}}}}")] {
        let Ok(envelope) = serde_json::from_str::<Envelope>(&text) else { continue };
        let given = envelope.pager.map(|pager| pager.page_size);
        assert_eq!(Pager::fits(envelope.pager, asked), given == asked.map(|size| Some(u64::from(size))));
    }
});
