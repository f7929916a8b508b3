//! A client on a bare socket: knows when an answer is whole and how it ended when it is not.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine;
use serde_json::value::RawValue;

use crate::StandIn;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Whole by its framing, the connection lives.
    Whole,
    /// The other side closed.
    Fin,
    Reset,
    /// Nothing more came within the client's patience.
    Silence,
}

/// An answer, or what came of it.
#[derive(Debug)]
pub(super) struct Got {
    /// 0 when not even a head came.
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    /// The body as it was on the wire.
    pub(super) wire: Vec<u8>,
    /// The body without its framing, if it is whole.
    pub(super) body: Option<Vec<u8>>,
    pub(super) end: End,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_else(|| panic!("not whole: {self:?}"))
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(self.bytes()).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The rows of a list, as the bytes they are.
    pub(super) fn rows(&self, collection: &str) -> Vec<String> {
        let members = crate::fields::members(&self.text());
        let (_, array) =
            members.iter().find(|(name, _)| name == collection).unwrap_or_else(|| panic!("{}", self.text()));
        let rows: Vec<Box<RawValue>> = serde_json::from_str(array).unwrap();
        rows.iter().map(|row| row.get().to_owned()).collect()
    }

    pub(super) fn pager(&self, member: &str) -> u64 {
        self.json()["pager"][member].as_u64().unwrap_or_else(|| panic!("{}", self.text()))
    }

    pub(super) fn unpacked(&self) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(self.body.as_deref()?).read_to_end(&mut plain).ok()?;
        Some(plain)
    }

    pub(super) fn cookie(&self) -> Option<String> {
        let set = self.header("Set-Cookie")?;
        Some(set.split(';').next().unwrap_or_default().to_owned())
    }
}

pub(super) struct Client {
    stream: TcpStream,
    pending: Vec<u8>,
}

pub(super) fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}")))
}

impl Client {
    pub(super) fn connect(stand_in: &StandIn) -> Self {
        Self::try_connect(stand_in).unwrap()
    }

    pub(super) fn try_connect(stand_in: &StandIn) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", stand_in.port()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, pending: Vec::new() })
    }

    pub(super) fn patience(self, patience: Duration) -> Self {
        self.stream.set_read_timeout(Some(patience)).unwrap();
        self
    }

    /// Sends a request with just these headers and reads the answer.
    pub(super) fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Got {
        self.write(method, target, headers, body);
        self.read(method)
    }

    pub(super) fn write(&mut self, method: &str, target: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: stand-in\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        head.push_str(body);
        // A server that is gone shows when the answer is read.
        let _ = self.stream.write_all(head.as_bytes());
    }

    /// A GET by `admin`.
    pub(super) fn get(&mut self, target: &str) -> Got {
        self.send("GET", target, &[("Authorization", &basic("admin", "district"))], "")
    }

    fn more(&mut self) -> Option<End> {
        let mut block = [0; 65536];
        match self.stream.read(&mut block) {
            Ok(0) => Some(End::Fin),
            Ok(length) => {
                self.pending.extend_from_slice(&block[..length]);
                None
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Some(End::Silence),
            Err(_) => Some(End::Reset),
        }
    }

    pub(super) fn read(&mut self, method: &str) -> Got {
        let mut got = Got { status: 0, headers: Vec::new(), wire: Vec::new(), body: None, end: End::Whole };
        let length = loop {
            let mut headers = vec![httparse::EMPTY_HEADER; 2000];
            let mut parsed = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(length) = parsed.parse(&self.pending).unwrap() {
                got.status = parsed.code.unwrap();
                got.headers = parsed
                    .headers
                    .iter()
                    .map(|header| (header.name.to_owned(), String::from_utf8_lossy(header.value).into_owned()))
                    .collect();
                break length;
            }
            if let Some(end) = self.more() {
                got.end = end;
                return got;
            }
        };
        self.pending.drain(..length);
        let told: Option<usize> = got.header("Content-Length").map(|told| told.parse().unwrap());
        let chunked = got.header("Transfer-Encoding") == Some("chunked");
        let bodiless = method == "HEAD" || got.status == 304 || got.status < 200;
        loop {
            let whole = if bodiless {
                Some((0, Vec::new()))
            } else if chunked {
                unchunk(&self.pending)
            } else {
                told.filter(|told| self.pending.len() >= *told).map(|told| (told, self.pending[..told].to_vec()))
            };
            if let Some((used, body)) = whole {
                got.wire = self.pending.drain(..used).collect();
                got.body = Some(body);
                return got;
            }
            if let Some(end) = self.more() {
                got.end = end;
                got.wire = std::mem::take(&mut self.pending);
                if told.is_none() && !chunked && end == End::Fin {
                    got.body = Some(got.wire.clone());
                }
                return got;
            }
        }
    }
}

/// Bytes used and data, if the last chunk is there.
fn unchunk(wire: &[u8]) -> Option<(usize, Vec<u8>)> {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let line = wire[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&wire[at..at + line]).ok()?, 16).ok()?;
        at += line + 2;
        let chunk = wire.get(at..at + size)?;
        wire.get(at + size..at + size + 2)?;
        data.extend_from_slice(chunk);
        at += size + 2;
        if size == 0 {
            return Some((at, data));
        }
    }
}

/// One GET by `admin` on a connection of its own.
pub(super) fn get(stand_in: &StandIn, target: &str) -> Got {
    Client::connect(stand_in).get(target)
}

/// One GET with just these headers on a connection of its own.
pub(super) fn get_with(stand_in: &StandIn, target: &str, headers: &[(&str, &str)]) -> Got {
    Client::connect(stand_in).send("GET", target, headers, "")
}

/// All rows by keyset, and how many requests it took.
pub(super) fn keyset(stand_in: &StandIn, collection: &str, fields: &str, page_size: usize) -> (Vec<String>, usize) {
    let mut client = Client::connect(stand_in);
    let mut rows: Vec<String> = Vec::new();
    let mut requests = 0;
    let mut last: Option<String> = None;
    loop {
        let filter = last.map_or_else(String::new, |id| format!("&filter=id:gt:{id}"));
        let got = client.get(&format!("/api/{collection}?order=id:asc&pageSize={page_size}&fields={fields}{filter}"));
        requests += 1;
        assert!(requests <= 2000, "the walk does not end");
        let page = got.rows(collection);
        let Some(end) = page.last() else { return (rows, requests) };
        let (_, id) = crate::fields::members(end).into_iter().find(|(name, _)| name == "id").unwrap();
        last = Some(id.trim_matches('"').to_owned());
        rows.extend(page);
    }
}
