//! Entry points of private parsers, for `tests/fuzz`.

use crate::{
    auth::Credentials,
    error::ServerMessage,
    imports::ImportSummary,
    interim::InterimFilter,
    redaction::{Redaction, TEXT_CHARS_MAX},
    transport::{is_login_page, title},
};

/// Bytes of a connection after its interim responses.
pub fn interim(pieces: &[&[u8]]) -> Vec<u8> {
    let (mut filter, mut out) = (InterimFilter::default(), Vec::new());
    for piece in pieces {
        filter.push(piece, &mut out);
    }
    filter.end(&mut out);
    out
}

fn redaction(password: &str) -> Redaction {
    let mut redaction = Redaction::default();
    redaction
        .add_credentials(&Credentials::Basic { username: "reader".to_owned(), password: password.to_owned().into() });
    redaction
}

/// A server's text as it is shown to a client with this password, and its longest length.
pub fn clean(password: &str, text: &str) -> (String, usize) {
    (redaction(password).clean(text), TEXT_CHARS_MAX + 1)
}

/// Reads the body of an error response: message, import, title of a page, whether it asks for a login.
pub fn refusal(password: &str, body: &[u8]) -> (Option<ServerMessage>, Option<ImportSummary>, Option<String>, bool) {
    let redaction = redaction(password);
    let message = ServerMessage::parse(body, &redaction);
    (message, ImportSummary::parse(body, &redaction), title(body, &redaction), is_login_page(body))
}
