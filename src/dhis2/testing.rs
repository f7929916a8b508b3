//! A server for tests: a closure answers each request with whatever bytes it likes, or breaks the connection.
//!
//! It is no DHIS2 and no HTTP library, so that it can be wrong in every way a server can.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use flate2::{Compression, write::GzEncoder};

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    /// Number of requests before it.
    pub(crate) number: usize,
    /// Path and query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
}

impl Heard {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What happens to the connection next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Then {
    /// The next request may come on it.
    Keep,
    /// It ends properly.
    Close,
    /// It is reset.
    Reset,
    /// It stays open and nothing more happens, until the client gives up.
    Hang,
}

/// The connection, for the closure to write on. Errors are ignored: the client may have gone.
pub(crate) struct Out(TcpStream);

impl Out {
    pub(crate) fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref());
    }

    /// Waits until the client has gone.
    pub(crate) fn wait_for_goodbye(&mut self) {
        let _ = self.0.read_to_end(&mut Vec::new());
    }

    /// Lets time pass between two pieces.
    #[expect(clippy::disallowed_methods, reason = "a thread of the test server, not an arbiter")]
    pub(crate) fn pause(&mut self, ms: u64) {
        std::thread::sleep(Duration::from_millis(ms));
    }
}

/// A running server. Dropping it stops it, and fails the test when its closure has panicked.
pub(crate) struct Server {
    port: u16,
    heard: Arc<Mutex<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
    panicked: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Heard, &mut Out) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server {
            port,
            heard: Arc::default(),
            stop: Arc::default(),
            panicked: Arc::default(),
            connections: Arc::default(),
        };
        let (heard, stop) = (Arc::clone(&server.heard), Arc::clone(&server.stop));
        let (panicked, connections) = (Arc::clone(&server.panicked), Arc::clone(&server.connections));
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let (heard, answer, panicked) = (Arc::clone(&heard), Arc::clone(&answer), Arc::clone(&panicked));
                std::thread::spawn(move || {
                    let serve = || serve(stream, &heard, answer.as_ref());
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(serve)).is_err() {
                        panicked.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        server
    }

    /// A server that sends the same response to all requests and keeps connections.
    pub(crate) fn saying(answer: Vec<u8>) -> Self {
        Server::start(move |_, out| {
            out.write(&answer);
            Then::Keep
        })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if !std::thread::panicking() {
            assert_eq!(self.panicked.load(Ordering::SeqCst), 0, "the test server's closure panicked");
        }
    }
}

fn serve(mut stream: TcpStream, heard: &Mutex<Vec<Heard>>, answer: &(impl Fn(&Heard, &mut Out) -> Then + ?Sized)) {
    let mut buffer = Vec::new();
    loop {
        let Some(request) = read_head(&mut stream, &mut buffer) else { return };
        let request = {
            let mut heard = heard.lock().unwrap();
            let request = Heard { number: heard.len(), ..request };
            heard.push(request.clone());
            request
        };
        let mut out = Out(stream.try_clone().unwrap());
        match answer(&request, &mut out) {
            Then::Keep => {}
            Then::Close => {
                let _ = stream.shutdown(Shutdown::Write);
                // Reads until the client has gone, so that the end is no reset.
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
            Then::Reset => {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                return;
            }
            Then::Hang => {
                let _ = stream.read_to_end(&mut Vec::new());
                return;
            }
        }
    }
}

fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Heard> {
    let end = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at;
        }
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(read) if read > 0 => buffer.extend_from_slice(&piece[..read]),
            _ => return None,
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    buffer.drain(..end + 4);
    let mut lines = head.split("\r\n");
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Heard { number: 0, path, headers })
}

/// A response with a length; `headers` are whole lines without their end.
pub(crate) fn answer(status: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut all = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        all += &format!("{header}\r\n");
    }
    all += "\r\n";
    [all.as_bytes(), body].concat()
}

/// A success with a JSON body.
pub(crate) fn json(body: &str) -> Vec<u8> {
    answer("200 OK", &["Content-Type: application/json;charset=UTF-8"], body)
}

/// A head, then `body` as it is.
pub(crate) fn head(headers: &[&str], body: impl AsRef<[u8]>) -> Vec<u8> {
    let mut all = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n".to_owned();
    for header in headers {
        all += &format!("{header}\r\n");
    }
    all += "\r\n";
    [all.as_bytes(), body.as_ref()].concat()
}

/// A success with a JSON body, packed.
pub(crate) fn gzipped(body: &[u8]) -> Vec<u8> {
    answer("200 OK", &["Content-Type: application/json", "Content-Encoding: gzip"], gzip(body))
}

pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// One chunk of a chunked body.
pub(crate) fn chunk(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// A gate that lets everything through and notes what came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct CountingGate {
    pub(crate) permits: Arc<AtomicUsize>,
    pub(crate) left: Arc<AtomicUsize>,
    pub(crate) outcomes: Arc<Mutex<Vec<crate::gate::RequestOutcome>>>,
    pub(crate) classes: Arc<Mutex<Vec<u64>>>,
}

struct CountedPermit {
    classes: Arc<Mutex<Vec<u64>>>,
    left: Arc<AtomicUsize>,
    outcomes: Arc<Mutex<Vec<crate::gate::RequestOutcome>>>,
    ended: bool,
}

impl crate::gate::Permit for CountedPermit {
    fn of_class(&mut self, class: u64) {
        self.classes.lock().unwrap().push(class);
    }

    fn mark_sent(&self) {
        self.left.fetch_add(1, Ordering::SeqCst);
    }

    fn end(mut self: Box<Self>, outcome: crate::gate::RequestOutcome, _: Duration) {
        self.ended = true;
        self.outcomes.lock().unwrap().push(outcome);
    }
}

impl Drop for CountedPermit {
    fn drop(&mut self) {
        if !self.ended {
            self.outcomes.lock().unwrap().push(crate::gate::RequestOutcome::Abandoned);
        }
    }
}

impl crate::gate::Gate for CountingGate {
    fn permit(
        &self,
    ) -> futures_core::future::LocalBoxFuture<'_, Result<Box<dyn crate::gate::Permit>, crate::gate::GateClosed>> {
        self.permits.fetch_add(1, Ordering::SeqCst);
        let permit = CountedPermit {
            classes: Arc::clone(&self.classes),
            left: Arc::clone(&self.left),
            outcomes: Arc::clone(&self.outcomes),
            ended: false,
        };
        Box::pin(async move { Ok(Box::new(permit) as Box<dyn crate::gate::Permit>) })
    }
}

mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "the test server's closure panicked")]
    fn a_server_whose_closure_panics_fails_its_test() {
        let server = Server::start(|_, _| panic!("on purpose"));
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        // Ends when the server's thread has ended.
        let _ = stream.read_to_end(&mut Vec::new());
        while server.panicked.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }
}
