//! Connections to the one origin: found, made, secured and watched here, so that awc cannot take a cut answer for a whole one.
//! Whom we trust is decided in `trust.rs`.
//!
//! awc takes the end of a connection for the end of a body. [`GuardedStream`] reports that end as an error instead, above TLS, so
//! that also a polite `close_notify` in the middle of a body is one. It knows whether a connection was used before and
//! whether the server has answered on it, which decides if a request may be repeated on another. Every connection goes
//! to the client's own host, whatever awc was asked for: credentials cannot go elsewhere.
//!
//! Names are resolved for every new connection, and its addresses are tried a quarter of a second apart, families in
//! turn, so a dead IPv6 route costs no more than that.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use actix_rt::net::{ActixStream, TcpStream};
use actix_service::Service;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection};
use awc::http::Uri;
use futures_core::future::LocalBoxFuture;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::{CertificateError, ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    error::{Error, ErrorKind},
    gate::Permit,
    interim::InterimFilter,
    redaction::said,
    trust::is_its_own_authority,
};

/// Head start of an address before the next is tried in parallel.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The server that all connections go to.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// Host name or address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Present for https.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) connect_timeout: Duration,
}

/// The permit of a request, shared by its transport, which ends it, and its connection, which reports the first byte sent.
#[derive(Clone)]
pub(crate) struct SharedPermit(Rc<RefCell<Option<Box<dyn Permit>>>>);

impl SharedPermit {
    pub(crate) fn new(permit: Box<dyn Permit>) -> Self {
        SharedPermit(Rc::new(RefCell::new(Some(permit))))
    }

    pub(crate) fn take(&self) -> Option<Box<dyn Permit>> {
        self.0.borrow_mut().take()
    }

    fn mark_sent(&self) {
        if let Some(permit) = self.0.borrow().as_ref() {
            permit.mark_sent();
        }
    }
}

/// Progress of one request on its connection. Lives as long as the request; one thread only.
pub(crate) struct RequestTrace {
    /// Why no connection was made.
    connect_error: RefCell<Option<Error>>,
    /// A connection is being made.
    connecting: Cell<bool>,
    /// When the connection was there.
    connected_at: Cell<Option<Instant>>,
    /// The connection that carries the request.
    connection: RefCell<Option<Rc<ConnectionState>>>,
    reused: Cell<bool>,
    /// Bytes the connection had read when the request was sent.
    read_before: Cell<u64>,
    /// The first bytes of the request are out.
    has_left: Cell<bool>,
    /// Counts requests that left.
    sent: Arc<AtomicU64>,
    /// Notified of the first byte sent.
    permit: SharedPermit,
}

impl RequestTrace {
    pub(crate) fn new(sent: Arc<AtomicU64>, permit: SharedPermit) -> Rc<Self> {
        Rc::new(RequestTrace {
            connect_error: RefCell::default(),
            connecting: Cell::default(),
            connected_at: Cell::default(),
            connection: RefCell::default(),
            reused: Cell::default(),
            read_before: Cell::default(),
            has_left: Cell::default(),
            sent,
            permit,
        })
    }

    pub(crate) fn take_connect_error(&self) -> Option<Error> {
        self.connect_error.borrow_mut().take()
    }

    pub(crate) fn is_connecting(&self) -> bool {
        self.connecting.get()
    }

    pub(crate) fn connected_at(&self) -> Option<Instant> {
        self.connected_at.get()
    }

    /// Whether the connection had carried a request before, and not a byte came back for this one: the server may have
    /// closed it before the request arrived.
    pub(crate) fn is_stale(&self) -> bool {
        self.reused.get() && !self.has_answer_byte()
    }

    fn has_answer_byte(&self) -> bool {
        self.connection
            .borrow()
            .as_ref()
            .is_some_and(|connection| connection.bytes_read.get() != self.read_before.get())
    }

    /// Makes sure that no later request uses the connection.
    pub(crate) fn poison(&self) {
        if let Some(connection) = self.connection.borrow().as_ref() {
            connection.poisoned.set(true);
        }
    }

    /// Some bytes of the request are out.
    fn leave(&self) {
        if !self.has_left.replace(true) {
            self.sent.fetch_add(1, Ordering::Relaxed);
            self.permit.mark_sent();
        }
    }

    /// The request is about to go out on `connection`.
    fn attach(&self, connection: &Rc<ConnectionState>) {
        let mut mine = self.connection.borrow_mut();
        if mine.is_none() {
            self.reused.set(connection.requests.get() > 0);
            self.read_before.set(connection.bytes_read.get());
            connection.requests.set(connection.requests.get() + 1);
            connection.is_asked.set(true);
            *mine = Some(Rc::clone(connection));
        }
    }
}

tokio::task_local! {
    /// The request that the current poll works for.
    pub(crate) static TRACE: Rc<RequestTrace>;
}

/// State of one connection, shared with the request it carries.
#[derive(Debug, Default)]
struct ConnectionState {
    requests: Cell<u64>,
    bytes_read: Cell<u64>,
    poisoned: Cell<bool>,
    /// A request has gone out since the last byte of a response was read.
    is_asked: Cell<bool>,
}

/// Room for bytes among which the response has yet to begin.
const BEGINNING_BYTES: usize = 4096;

/// A connection that reports its end as an error and hides interim (1xx) responses.
pub(crate) struct GuardedStream {
    stream: Stream,
    connection: Rc<ConnectionState>,
    interim: InterimFilter,
    /// Bytes of a response that were read and not yet handed on.
    ready: Vec<u8>,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedStream").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl GuardedStream {
    fn new(stream: Stream) -> Self {
        GuardedStream { stream, connection: Rc::default(), interim: InterimFilter::default(), ready: Vec::new() }
    }

    /// Reads what the connection brings; its end is an error.
    fn poll_connection(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        };
        if let Poll::Ready(Ok(())) = polled {
            let read = buf.filled().len() - before;
            if read == 0 && buf.remaining() > 0 && harvester_pacing::control!("end-of-body") {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.connection.bytes_read.set(self.connection.bytes_read.get() + read as u64);
        }
        polled
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.connection.poisoned.get() {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        }
        if self.connection.is_asked.take() {
            self.interim = InterimFilter::default();
        }
        loop {
            if !self.ready.is_empty() {
                let handed = self.ready.len().min(buf.remaining());
                buf.put_slice(&self.ready[..handed]);
                self.ready.drain(..handed);
                return Poll::Ready(Ok(()));
            }
            if self.interim.is_through() {
                return self.poll_connection(cx, buf);
            }
            let mut bytes = [0; BEGINNING_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            let this = &mut *self;
            match this.poll_connection(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) => this.interim.push(read.filled(), &mut this.ready),
                Poll::Ready(Err(error)) => {
                    // What came of a response comes before the news that there is no more.
                    this.interim.end(&mut this.ready);
                    if this.ready.is_empty() {
                        return Poll::Ready(Err(error));
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        // Outside a request (a shutdown) there is nothing to note.
        let _ = TRACE.try_with(|trace| trace.attach(&self.connection));
        let polled = match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(tls.as_mut()).poll_write(cx, buf),
        };
        if matches!(polled, Poll::Ready(Ok(1..))) {
            let _ = TRACE.try_with(|trace| trace.leave());
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        }
    }
}

impl ActixStream for GuardedStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<tokio::io::Ready>> {
        ActixStream::poll_read_ready(self.tcp(), cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<tokio::io::Ready>> {
        ActixStream::poll_write_ready(self.tcp(), cx)
    }
}

/// Makes awc's connections, to the one endpoint only.
#[derive(Clone)]
pub(crate) struct OriginConnector {
    pub(crate) endpoint: Rc<Endpoint>,
}

impl Service<ConnectInfo<Uri>> for OriginConnector {
    type Response = Connection<Uri, GuardedStream>;
    type Error = ConnectError;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, info: ConnectInfo<Uri>) -> Self::Future {
        let endpoint = Rc::clone(&self.endpoint);
        let uri = info.request().clone();
        Box::pin(async move {
            let _ = TRACE.try_with(|trace| trace.connecting.set(true));
            let made = match tokio::time::timeout(endpoint.connect_timeout, connect(&endpoint)).await {
                Ok(made) => made,
                Err(_) => Err(Error::new(
                    ErrorKind::ConnectTimeout,
                    format!("no connection to {} within {:?}", endpoint.name(), endpoint.connect_timeout),
                )),
            };
            let _ = TRACE.try_with(|trace| {
                trace.connecting.set(false);
                trace.connected_at.set(Some(Instant::now()));
            });
            match made {
                Ok(stream) => Ok(Connection::new(uri, GuardedStream::new(stream))),
                Err(error) => {
                    // awc's error cannot carry ours; the request takes it from its trace.
                    let _ = TRACE.try_with(|trace| *trace.connect_error.borrow_mut() = Some(error));
                    Err(ConnectError::Io(io::ErrorKind::NotConnected.into()))
                }
            }
        })
    }
}

impl Endpoint {
    /// Host and port for people.
    fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Stream, Error> {
    let addresses = resolve(endpoint).await?;
    let tcp = connect_any(addresses).await.map_err(|error| connect_error(endpoint, error))?;
    tcp.set_nodelay(true).map_err(|error| connect_error(endpoint, error))?;
    let Some(config) = &endpoint.tls else { return Ok(Stream::Plain(tcp)) };
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|_| {
        Error::new(ErrorKind::InvalidConfig, format!("`{}` cannot be the name in a certificate", endpoint.host))
    })?;
    let tls = TlsConnector::from(Arc::clone(config)).connect(name, tcp).await;
    tls.map(|tls| Stream::Tls(Box::new(tls))).map_err(|error| tls_error(endpoint, error))
}

async fn resolve(endpoint: &Endpoint) -> Result<VecDeque<SocketAddr>, Error> {
    let found = tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)).await.map_err(|error| {
        // The resolver needs files and a socket, and without them says anything.
        if is_out_of_files(&error) || std::fs::File::open("/dev/null").is_err_and(|error| is_out_of_files(&error)) {
            return out_of_files(error);
        }
        // getaddrinfo tells the two apart by text only.
        let text = error.to_string();
        if text.contains("emporary failure") || text.contains("ry again") {
            Error::new(ErrorKind::DnsUnavailable, format!("the resolver does not answer for host `{}`", endpoint.host))
        } else {
            Error::new(ErrorKind::UnknownHost, format!("host `{}` not found", endpoint.host))
        }
        .with_source(error)
    })?;
    let (mut first, mut second): (VecDeque<_>, VecDeque<_>) = (VecDeque::new(), VecDeque::new());
    for address in found {
        // The family the resolver puts first keeps its turn.
        let same = first.front().is_none_or(|head: &SocketAddr| head.is_ipv4() == address.is_ipv4());
        if same { first.push_back(address) } else { second.push_back(address) }
    }
    let mut permits = VecDeque::with_capacity(first.len() + second.len());
    loop {
        match (first.pop_front(), second.pop_front()) {
            (None, None) => break,
            (one, other) => permits.extend(one.into_iter().chain(other)),
        }
    }
    if permits.is_empty() {
        return Err(Error::new(ErrorKind::UnknownHost, format!("host `{}` has no address", endpoint.host)));
    }
    Ok(permits)
}

async fn connect_any(mut addresses: VecDeque<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = FuturesUnordered::new();
    let mut failed = None;
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.push(TcpStream::connect(address));
        }
        let next_due = tokio::time::sleep(NEXT_ADDRESS_AFTER);
        tokio::pin!(next_due);
        loop {
            tokio::select! {
                biased;
                attempt = attempts.next() => match attempt {
                    Some(Ok(stream)) => return Ok(stream),
                    Some(Err(error)) => {
                        failed = Some(error);
                        if !addresses.is_empty() {
                            break;
                        }
                    }
                    None => return Err(failed.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into())),
                },
                () = &mut next_due, if !addresses.is_empty() => break,
            }
        }
    }
}

/// Whether the process (EMFILE) or the machine (ENFILE) has no file descriptor left.
fn is_out_of_files(error: &io::Error) -> bool {
    // The same numbers on Linux, macOS and the BSDs; std has no kind for them.
    matches!(error.raw_os_error(), Some(23 | 24))
}

fn out_of_files(error: io::Error) -> Error {
    let text =
        "this process has no file descriptor left for a connection: raise `ulimit -n` (in a unit file: LimitNOFILE=)";
    Error::new(ErrorKind::OutOfFiles, text).with_source(error)
}

fn connect_error(endpoint: &Endpoint, error: io::Error) -> Error {
    let name = endpoint.name();
    if is_out_of_files(&error) {
        return out_of_files(error);
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::ConnectionRefused, format!("connection refused by {name}")).with_source(error)
        }
        io::ErrorKind::TimedOut => {
            Error::new(ErrorKind::ConnectTimeout, format!("no connection to {name}")).with_source(error)
        }
        _ => Error::new(ErrorKind::Connect, format!("cannot connect to {name}")).with_source(error),
    }
}

fn tls_error(endpoint: &Endpoint, error: io::Error) -> Error {
    let name = endpoint.name();
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).cloned();
    let Some(cause) = cause else {
        // No word about TLS: the connection broke, as it may while a server restarts.
        return Error::new(
            ErrorKind::ConnectionReset,
            format!("the connection to {name} broke during the TLS handshake"),
        )
        .with_source(error);
    };
    let text = match &cause {
        rustls::Error::InvalidCertificate(why) => {
            let why = match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "is not valid yet (is the clock right?)"
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "is for another name"
                }
                CertificateError::UnknownIssuer => {
                    "is not signed by an authority this system trusts (set ca_file if the ministry has its own)"
                }
                CertificateError::Revoked => "has been revoked",
                why if is_its_own_authority(why) => "is signed by itself (set ca_file to it, if it is the right one)",
                _ => "is not valid",
            };
            format!("the certificate of {name} {why}")
        }
        rustls::Error::InvalidMessage(_) => format!("{name} does not speak TLS"),
        rustls::Error::PeerIncompatible(_) | rustls::Error::AlertReceived(_) => {
            format!("{name} and this program have no version of TLS in common, or it refuses us")
        }
        _ => format!("no trusted connection to {name}"),
    };
    // The names in a certificate are the server's words.
    Error::new(ErrorKind::Tls, text).with_source(said(&cause.to_string()))
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tls_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;

    /// Names the process that has no file descriptors left.
    const CHILD: &str = "DHIS2_TEST_WITHOUT_FILES";

    #[test]
    fn a_process_without_file_descriptors_blames_itself_and_not_the_server() {
        if std::env::var_os(CHILD).is_some() {
            return actix_rt::System::new().block_on(ask_without_files());
        }
        let mut child = std::process::Command::new("sh");
        child.args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
        let name = "wire::tests::a_process_without_file_descriptors_blames_itself_and_not_the_server";
        let ended = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert!(String::from_utf8_lossy(&ended.stdout).contains("1 passed"));
    }

    async fn ask_without_files() {
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        // By address, and by a name that would have to be looked up.
        for url in ["http://127.0.0.1:9", "http://localhost:9", "http://nosuch.invalid:9"] {
            let error = Client::builder(url).retries(3).build().unwrap().get("x").send().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OutOfFiles, "{url}: {error:?}");
            assert!(error.to_string().contains("ulimit -n"), "{error}");
        }
    }

    #[tokio::test]
    async fn an_address_where_nobody_listens_does_not_hide_one_where_somebody_does() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listening.local_addr().unwrap();
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for addresses in [vec![good], vec![deaf, good], vec![deaf, deaf, good], vec![good, deaf]] {
            assert_eq!(connect_any(addresses.into()).await.unwrap().peer_addr().unwrap(), good);
        }
        let refused = connect_any([deaf, deaf].into()).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(connect_any(VecDeque::new()).await.is_err());
    }
}
