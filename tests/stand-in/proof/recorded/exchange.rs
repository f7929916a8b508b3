//! Reads one recorded exchange: what was asked, by whom, and every byte of what came back.
//!
//! A file is lines with `> ` (method and path, who asked, the request's headers, its body), then status line, headers,
//! an empty line, and the body as it was, cut at 64 KiB where `X-Recorded-Cut` says so.

use std::path::Path;

/// One request and its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    /// The file's stem, e.g. `list-default`.
    pub(super) name: String,
    pub(super) method: String,
    /// Path and query.
    pub(super) target: String,
    /// `admin`, `reader`, `half`, `wrong` or `none`.
    pub(super) who: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) status: u16,
    answer_headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Exchange {
    /// Reads a file; `None` when it is none of ours.
    pub(super) fn read(path: &Path) -> Option<Self> {
        if path.extension()? != "http" {
            return None;
        }
        Self::parse(path.file_stem()?.to_str()?, &std::fs::read(path).ok()?)
    }

    fn parse(name: &str, mut bytes: &[u8]) -> Option<Self> {
        let mut asked = Vec::new();
        while let Some(rest) = bytes.strip_prefix(b"> ") {
            let (line, next) = line(rest)?;
            asked.push(line);
            bytes = next;
        }
        let (method, target) = asked.first()?.split_once(' ')?;
        let who = asked.get(1)?.strip_prefix("as ")?;
        let headers = asked.iter().skip(2).filter_map(|line| pair(line)).collect();
        let (status, mut bytes) = line(bytes)?;
        let status = status.split(' ').nth(1)?.parse().ok()?;
        let mut answer_headers = Vec::new();
        loop {
            let (header, next) = line(bytes)?;
            bytes = next;
            if header.is_empty() {
                break;
            }
            answer_headers.extend(pair(&header));
        }
        Some(Self {
            name: name.to_owned(),
            method: method.to_owned(),
            target: target.to_owned(),
            who: who.to_owned(),
            headers,
            status,
            answer_headers,
            body: bytes.to_vec(),
        })
    }

    /// First value of a header of the answer.
    pub(super) fn answered(&self, name: &str) -> Option<&str> {
        self.answer_headers
            .iter()
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether the recording holds only the beginning of the body.
    pub(super) fn is_cut(&self) -> bool {
        self.answered("X-Recorded-Cut").is_some()
    }
}

fn line(bytes: &[u8]) -> Option<(String, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let text = String::from_utf8_lossy(&bytes[..end]);
    Some((text.trim_end_matches('\r').to_owned(), &bytes[end + 1..]))
}

fn pair(line: &str) -> Option<(String, String)> {
    line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()))
}

#[test]
fn a_recording_is_taken_apart_to_the_last_byte() {
    let text = b"> GET /api/x?y=1\n> as reader\n> Accept: */*\nHTTP/1.1 409 \nContent-Type: application/json\nX-Recorded-Cut: yes\n\n{\"a\":\n> b\r\n";
    let exchange = Exchange::parse("x", text).unwrap();
    assert_eq!((exchange.method.as_str(), exchange.target.as_str()), ("GET", "/api/x?y=1"));
    assert_eq!((exchange.who.as_str(), exchange.status, exchange.is_cut()), ("reader", 409, true));
    assert_eq!(exchange.headers, [("Accept".to_owned(), "*/*".to_owned())]);
    assert_eq!(exchange.answered("content-type"), Some("application/json"));
    assert_eq!(exchange.body, b"{\"a\":\n> b\r\n");
}
