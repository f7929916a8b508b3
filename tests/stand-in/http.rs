//! Serves HTTP/1.1 with a hand on every byte: listens, reads requests, sends answers as faults want them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::answer::{Answer, reason};
use crate::dialect::Container;
use crate::faults::{Fault, Restart, Script};
use crate::latency::{Latency, Thought};
use crate::ledger::Ledger;
use crate::request::Request;
use crate::routes;
use crate::wire::{Encoded, Framing, Gzip, Manner};
use crate::world::World;

const HEAD_BYTES_MAX: usize = 64 * 1024;
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
const FIRST_SEGMENT_BYTES: usize = 16 * 1024;
const TARGET_BYTES_MAX: usize = 8192;

/// How answers go over the wire when no fault says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Switches {
    pub(crate) gzip: bool,
    pub(crate) framing: Framing,
    pub(crate) chunk_bytes: usize,
    /// Connections end after so many answers.
    pub(crate) answers_per_connection: Option<u64>,
    /// Connections end after so long without a request.
    pub(crate) idle_timeout: Duration,
    pub(crate) latency: Latency,
}

/// A restart under way.
#[derive(Debug)]
struct Outage {
    began: Instant,
    plan: Restart,
}

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) world: Mutex<World>,
    pub(crate) faults: Mutex<Script>,
    pub(crate) switches: Mutex<Switches>,
    pub(crate) ledger: Ledger,
    /// Requests the server is thinking about, whether their clients still wait or not.
    load: AtomicUsize,
    outage: Mutex<Option<Outage>>,
    open: Mutex<HashMap<u64, AbortHandle>>,
    pub(crate) commands: mpsc::UnboundedSender<Command>,
}

/// What the listener obeys.
#[derive(Debug)]
pub(crate) enum Command {
    /// Close the port and all connections, for so long or until [`Command::Up`].
    Down { lasting: Option<Duration>, done: Option<std::sync::mpsc::Sender<()>> },
    /// Listen again.
    Up { done: Option<std::sync::mpsc::Sender<()>> },
    /// End all connections, go on listening.
    Disconnect,
    /// End.
    Stop,
}

/// Locks, whatever a panic elsewhere left behind: a test double must still answer.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        world: World,
        faults: Script,
        switches: Switches,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self {
            world: Mutex::new(world),
            faults: Mutex::new(faults),
            switches: Mutex::new(switches),
            ledger: Ledger::default(),
            load: AtomicUsize::new(0),
            outage: Mutex::new(None),
            open: Mutex::new(HashMap::new()),
            commands,
        }
    }

    /// Begins a restart at this moment.
    pub(crate) fn restart(&self, plan: Restart, done: Option<std::sync::mpsc::Sender<()>>) {
        lock(&self.world).door.lose_sessions();
        let refused = plan.refused;
        *lock(&self.outage) = Some(Outage { began: Instant::now() + refused, plan });
        if !refused.is_zero() {
            let _ = self.commands.send(Command::Down { lasting: Some(refused), done });
        }
    }

    /// How long a server that accepts connections again will still be silent.
    fn silent_for(&self) -> Option<Duration> {
        let outage = lock(&self.outage);
        let current = outage.as_ref()?;
        let left = current.plan.hangs.checked_sub(current.began.elapsed())?;
        (!left.is_zero()).then_some(left)
    }

    /// What the proxy says during a restart; ends the restart when its time is over.
    fn outage_answer(&self) -> Option<(Answer, &'static str)> {
        let mut outage = lock(&self.outage);
        let current = outage.as_ref()?;
        let plan = &current.plan;
        let gone = current.began.elapsed().saturating_sub(plan.hangs);
        let code = if gone < plan.bad_gateway {
            502
        } else if gone < plan.bad_gateway + plan.unavailable {
            503
        } else if gone < plan.bad_gateway + plan.unavailable + plan.not_found {
            404
        } else {
            let ended = outage.take()?;
            drop(outage);
            let mut world = lock(&self.world);
            world.door.lose_sessions();
            if let Some((version, minor)) = ended.plan.version.as_deref().and_then(crate::dialect::parse_version) {
                world.change_version(version, minor);
            }
            if let Some(system_id) = ended.plan.system_id {
                world.system_id = system_id;
            }
            return None;
        };
        let page =
            format!("<html><head><title>{code}</title></head><body><h1>{code} while restarting</h1></body></html>");
        Some((Answer::html(code, &page), "restart"))
    }

    fn close_all(&self) {
        // Not under the lock: a connection that ends takes it to leave the list.
        let tasks: Vec<AbortHandle> = lock(&self.open).drain().map(|(_, task)| task).collect();
        for task in tasks {
            task.abort();
        }
    }
}

/// Listens until told to stop.
pub(crate) async fn listen(
    shared: Arc<Shared>,
    first: std::net::TcpListener,
    mut commands: mpsc::UnboundedReceiver<Command>,
) {
    let Ok(address) = first.local_addr() else { return };
    let mut listener = TcpListener::from_std(first).ok();
    let mut up_at: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => match command {
                None | Some(Command::Stop) => break,
                Some(Command::Disconnect) => shared.close_all(),
                Some(Command::Down { lasting, done }) => {
                    listener = None;
                    shared.close_all();
                    up_at = lasting.map(|lasting| Instant::now() + lasting);
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                }
                Some(Command::Up { done }) => {
                    up_at = None;
                    if listener.is_none() {
                        listener = bind_again(address).await;
                    }
                    if let Some(done) = done {
                        let _ = done.send(());
                    }
                }
            },
            () = until(up_at) => {
                up_at = None;
                listener = bind_again(address).await;
            }
            accepted = accept(listener.as_ref()) => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let number = shared.ledger.connection_opened();
                let task = tokio::spawn(serve(Arc::clone(&shared), stream, number));
                lock(&shared.open).insert(number, task.abort_handle());
            }
        }
    }
    shared.close_all();
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// Takes the port back; connections in their last throes may hold it for a moment.
async fn bind_again(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..500 {
        if let Ok(listener) = TcpListener::bind(address).await {
            return Some(listener);
        }
        sleep(Duration::from_millis(10)).await;
    }
    None
}

/// Counts a request as thought about while it lives.
struct Load(Arc<Shared>);

impl Load {
    fn new(shared: &Arc<Shared>) -> (Self, usize) {
        let load = shared.load.fetch_add(1, Ordering::Relaxed) + 1;
        (Self(Arc::clone(shared)), load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.load.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a request as in flight while it lives.
struct InFlight<'a>(&'a Ledger, u64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.ended(self.1);
    }
}

/// Takes a connection out of the list when its task ends.
struct Open<'a>(&'a Shared, u64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(&self.0.open).remove(&self.1);
    }
}

/// How a connection goes on after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    KeepAlive,
    Fin,
    Reset,
}

struct Connection {
    stream: TcpStream,
    /// Bytes read and not yet understood.
    pending: Vec<u8>,
}

async fn serve(shared: Arc<Shared>, stream: TcpStream, number: u64) {
    let _open = Open(&shared, number);
    let mut connection = Connection { stream, pending: Vec::new() };
    let mut turn = 0;
    loop {
        let (idle, answers, context_path, container) = {
            let switches = lock(&shared.switches);
            let world = lock(&shared.world);
            (
                switches.idle_timeout,
                switches.answers_per_connection,
                world.context_path.clone(),
                world.dialect.container,
            )
        };
        let read = tokio::time::timeout(idle, connection.read_head(&context_path, container)).await;
        let mut request = match read {
            Err(_) | Ok(Incoming::Gone) => return,
            Ok(Incoming::Bad(answer)) => {
                let request = Request::new("GET", "/", Vec::new(), "");
                let manner = Manner { closes: true, ..Manner::default() };
                let encoded = Encoded::new(*answer, &request, &manner);
                let _ = connection.stream.write_all(&encoded.head).await;
                let _ = connection.stream.write_all(&encoded.body).await;
                let _ = connection.stream.shutdown().await;
                return;
            }
            Ok(Incoming::Request(request)) => *request,
        };
        turn += 1;
        request.connection = number;
        request.turn_on_connection = turn;
        request.number = shared.ledger.arrived(&request);
        let in_flight = InFlight(&shared.ledger, request.number);
        let after = if connection.read_body(&mut request).await {
            let last = answers.is_some_and(|answers| turn >= answers);
            handle(&shared, &mut connection, &request, last).await
        } else {
            After::Fin
        };
        drop(in_flight);
        match after {
            After::KeepAlive => {}
            After::Fin => {
                let _ = connection.stream.shutdown().await;
                return;
            }
            After::Reset => {
                let _ = connection.stream.set_zero_linger();
                return;
            }
        }
    }
}

enum Incoming {
    Request(Box<Request>),
    Bad(Box<Answer>),
    Gone,
}

impl Connection {
    async fn read_head(&mut self, context_path: &str, container: Container) -> Incoming {
        loop {
            if !self.pending.is_empty() {
                let mut headers = [httparse::EMPTY_HEADER; 128];
                let mut parsed = httparse::Request::new(&mut headers);
                match parsed.parse(&self.pending) {
                    Ok(httparse::Status::Complete(length)) => {
                        let method = parsed.method.unwrap_or_default().to_owned();
                        let target = parsed.path.unwrap_or_default().to_owned();
                        let mut headers: Vec<(String, String)> = parsed
                            .headers
                            .iter()
                            .map(|header| {
                                (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned())
                            })
                            .collect();
                        if parsed.version == Some(0) && !headers.iter().any(|(name, _)| name == "connection") {
                            headers.push(("connection".into(), "close".into()));
                        }
                        self.pending.drain(..length);
                        if target.len() > TARGET_BYTES_MAX {
                            return Incoming::Bad(Box::new(Answer::line_too_long(container)));
                        }
                        return Incoming::Request(Box::new(Request::new(&method, &target, headers, context_path)));
                    }
                    Ok(httparse::Status::Partial) if self.pending.len() <= HEAD_BYTES_MAX => {}
                    _ => {
                        return Incoming::Bad(Box::new(Answer::html(
                            400,
                            "<html><body><h1>400 Bad Request</h1></body></html>",
                        )));
                    }
                }
            }
            match self.stream.read_buf(&mut self.pending).await {
                Ok(0) | Err(_) => return Incoming::Gone,
                Ok(_) => {}
            }
        }
    }

    /// Reads a body of known length; false when the client goes away in the middle.
    async fn read_body(&mut self, request: &mut Request) -> bool {
        let length: usize = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        if length > BODY_BYTES_MAX {
            return false;
        }
        while self.pending.len() < length {
            match self.stream.read_buf(&mut self.pending).await {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        request.body = self.pending.drain(..length).collect();
        true
    }

    /// Waits, and notices when the client goes away meanwhile: then false. `None` waits for that alone.
    async fn wait(&mut self, time: Option<Duration>) -> bool {
        let end = time.map(|time| Instant::now() + time);
        loop {
            tokio::select! {
                () = until(end) => return true,
                read = self.stream.read_buf(&mut self.pending) => match read {
                    Ok(0) | Err(_) => return false,
                    Ok(_) => {}
                },
            }
        }
    }
}

/// Thinks, then answers. Returns what becomes of the connection.
async fn handle(shared: &Arc<Shared>, connection: &mut Connection, request: &Request, last: bool) -> After {
    let ledger = &shared.ledger;
    let fault = lock(&shared.faults).fault_for(request);
    if let Some(fault) = &fault {
        ledger.note(request.number, |seen| seen.fault = Some(fault.label()));
    }
    let (load, at_once) = Load::new(shared);
    let switches = lock(&shared.switches).clone();
    match &fault {
        Some(Fault::Close | Fault::StaleClose) => return After::Fin,
        Some(Fault::Reset) => return After::Reset,
        Some(Fault::Refuse(lasting)) => {
            let _ = shared.commands.send(Command::Down { lasting: *lasting, done: None });
            return After::Fin;
        }
        Some(Fault::Restart(plan)) => {
            shared.restart(plan.clone(), None);
            if !plan.refused.is_zero() {
                return After::Fin;
            }
        }
        Some(Fault::LoseSessions) => lock(&shared.world).door.lose_sessions(),
        _ => {}
    }
    let mut busy = false;
    let mut thinks = match switches.latency.thought(request.number, at_once) {
        Thought::Takes(time) => time,
        Thought::TooBusy => {
            busy = true;
            Duration::ZERO
        }
    };
    if let Some(Fault::Delay(delay)) = &fault {
        thinks += *delay;
    }
    if !think(connection, thinks, load).await {
        return After::Fin;
    }
    let (answer, manner) =
        match truth_or_fault(shared, connection, request, fault.as_ref(), &switches, busy, last).await {
            Some(made) => made,
            None => return After::Fin,
        };
    let encoded = Encoded::new(answer, request, &manner);
    send(shared, connection, request, encoded, fault.as_ref()).await
}

/// Spends time on a request. When its client leaves, the server goes on thinking, as DHIS2 does; only the caller is
/// told.
async fn think(connection: &mut Connection, time: Duration, load: Load) -> bool {
    if time.is_zero() {
        return true;
    }
    let end = Instant::now() + time;
    if connection.wait(Some(time)).await {
        return true;
    }
    tokio::spawn(async move {
        sleep_until(end).await;
        drop(load);
    });
    false
}

async fn truth_or_fault(
    shared: &Arc<Shared>,
    connection: &mut Connection,
    request: &Request,
    fault: Option<&Fault>,
    switches: &Switches,
    busy: bool,
    last: bool,
) -> Option<(Answer, Manner)> {
    let asked_to_close = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let mut manner = Manner {
        framing: switches.framing,
        gzip: if switches.gzip { Gzip::Honest } else { Gzip::Off },
        chunk_bytes: switches.chunk_bytes,
        closes: last || asked_to_close,
        skew_ms: lock(&shared.world).clock.skew_ms,
    };
    let replaced = fault.and_then(|fault| {
        let world = lock(&shared.world);
        fault.replacement(request, &world.context_path, &world.dialect)
    });
    if let Some(answer) = replaced {
        manner.framing = Framing::Length;
        return Some((answer, manner));
    }
    if let Some(left) = shared.silent_for() {
        shared.ledger.note(request.number, |seen| seen.fault = Some("silent".into()));
        if !connection.wait(Some(left)).await {
            return None;
        }
    }
    if let Some((answer, label)) = shared.outage_answer() {
        shared.ledger.note(request.number, |seen| seen.fault = Some(label.into()));
        return Some((answer, manner));
    }
    if busy {
        shared.ledger.note(request.number, |seen| seen.fault = Some("busy".into()));
        return Some((
            Answer::html(503, "<html><head><title>503</title></head><body>Too many requests at once</body></html>"),
            manner,
        ));
    }
    let outcome = routes::answer(&mut lock(&shared.world), request);
    shared.ledger.note(request.number, |seen| {
        seen.user = outcome.user;
        seen.quirks = outcome.quirks;
    });
    if !outcome.thinks.is_zero() && !connection.wait(Some(outcome.thinks)).await {
        return None;
    }
    let mut answer = outcome.answer;
    if let Some(fault) = fault {
        fault.change_answer(&mut answer);
        fault.change_manner(&mut manner);
    }
    Some((answer, manner))
}

/// Sends an answer, or as much of it as the fault lets through.
async fn send(
    shared: &Shared,
    connection: &mut Connection,
    request: &Request,
    encoded: Encoded,
    fault: Option<&Fault>,
) -> After {
    if let Some(Fault::Stall { at: None, lasting }) = fault
        && !connection.wait(*lasting).await
    {
        return After::Fin;
    }
    if let Some(Fault::Informational(code)) = fault {
        let early = format!("HTTP/1.1 {code} {}\r\nLink: </style.css>; rel=preload\r\n\r\n", reason(*code));
        if connection.stream.write_all(early.as_bytes()).await.is_err() {
            return After::Fin;
        }
    }
    let mut after = if encoded.closes { After::Fin } else { After::KeepAlive };
    let mut end = encoded.body.len();
    let mut pause: Option<(usize, Option<Duration>)> = None;
    let mut pace: Option<u64> = None;
    match fault {
        Some(Fault::Cut { at, reset, .. }) => {
            end = encoded.offset(*at);
            after = if *reset { After::Reset } else { After::Fin };
        }
        Some(Fault::Stall { at: Some(at), lasting }) => pause = Some((encoded.offset(*at), *lasting)),
        Some(Fault::Drip { bytes_per_second }) => pace = Some(*bytes_per_second),
        _ => {}
    }
    shared.ledger.note(request.number, |seen| seen.status = Some(encoded.status));
    let sent = |bytes: usize| {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        shared.ledger.note(request.number, |seen| seen.body_bytes += bytes);
    };
    let before_pause = pause.map_or(end, |(at, _)| at.min(end));
    let mut first = encoded.head;
    let mut from = 0;
    if pace.is_none() {
        // A small answer is one segment, a large one is not copied.
        from = before_pause.min(FIRST_SEGMENT_BYTES);
        first.extend_from_slice(&encoded.body[..from]);
    }
    if connection.stream.write_all(&first).await.is_err() {
        return After::Fin;
    }
    sent(from);
    if pace.is_none() && from < before_pause {
        if connection.stream.write_all(&encoded.body[from..before_pause]).await.is_err() {
            return After::Fin;
        }
        sent(before_pause - from);
        from = before_pause;
    }
    if let Some((_, lasting)) = pause
        && !connection.wait(lasting).await
    {
        return After::Fin;
    }
    if let Some(pace) = pace {
        while from < end {
            if !connection.wait(Some(Duration::from_millis(50))).await {
                return After::Fin;
            }
            // Twenty steps a second; below that pace one byte per longer wait.
            let step = usize::try_from(pace / 20).unwrap_or(usize::MAX).max(1);
            if pace < 20 && !connection.wait(Some(Duration::from_millis(1000 / pace.max(1)))).await {
                return After::Fin;
            }
            let to = from.saturating_add(step).min(end);
            if connection.stream.write_all(&encoded.body[from..to]).await.is_err() {
                return After::Fin;
            }
            sent(to - from);
            from = to;
        }
    } else if from < end {
        if connection.stream.write_all(&encoded.body[from..end]).await.is_err() {
            return After::Fin;
        }
        sent(end - from);
    }
    if after == After::Reset {
        // What is already sent should arrive: a reset makes the other side throw away what it has not read.
        connection.wait(Some(Duration::from_millis(20))).await;
    }
    after
}
