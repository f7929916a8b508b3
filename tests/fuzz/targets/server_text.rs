//! What a server says: no body upsets its readers, and nothing that is shown of it has our password in it, moves a terminal, or is long.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (&str, &str, &[u8])| {
    let (password, text, body) = data;
    let (shown, chars_max) = dhis2::fuzz::clean(password, text);
    // A mask, spaces that were controls, and what is cut off may look like a strange password.
    let is_ordinary = password.len() >= 4 && password.chars().all(char::is_alphanumeric);
    assert!(!is_ordinary || !shown.contains(password));
    assert!(shown.chars().count() <= chars_max && !shown.chars().any(char::is_control));
    let (message, summary, title, _) = dhis2::fuzz::refusal(password, body);
    let mut texts: Vec<String> = title.into_iter().collect();
    if let Some(message) = message {
        let _ = (message.is_query_error(), message.sql_state());
        texts.extend([message.status, message.message, message.error_code].into_iter().flatten());
        texts.extend(message.conflicts.into_iter().filter_map(|conflict| conflict.value));
    }
    texts.extend(summary.into_iter().filter_map(|summary| summary.status));
    for text in texts {
        assert!(!is_ordinary || !text.contains(password));
        assert!(text.chars().count() <= chars_max && !text.chars().any(char::is_control));
    }
});
