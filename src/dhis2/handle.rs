//! A handle to the client for threads without an arbiter, and for other runtimes: its futures are `Send`.
//!
//! A handle owns one thread with an arbiter and sends work to it. Rows come back through a bounded channel: while it is
//! full, nothing is read from the server.

use std::{fmt, future::Future};

use futures_core::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use crate::{
    client::Client,
    error::{Error, ErrorKind},
    split::{Envelope, Row, RowFault, SplitLimits},
};

/// Batches of rows that may wait for their reader; each is what one chunk of the response brought, some 32 KiB.
const BATCHES_WAITING_MAX: usize = 4;
/// Work that may wait for the thread to take it up; it takes up everything at once, the gate decides what is sent.
const TASKS_WAITING_MAX: usize = 64;

type Task = Box<dyn FnOnce(Client) -> LocalBoxFuture<'static, ()> + Send>;

/// A client to be used from anywhere. Cheap to clone; the thread ends with the last clone.
#[derive(Clone)]
pub struct Handle {
    tasks: mpsc::Sender<Task>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

fn gone() -> Error {
    Error::new(
        ErrorKind::HandleClosed,
        "the work on the client's own thread was given up: it panicked, or the thread has ended",
    )
}

impl Handle {
    pub(crate) fn start(client: Client) -> Result<Self, Error> {
        let (tasks, mut waiting) = mpsc::channel::<Task>(TASKS_WAITING_MAX);
        let run = move || {
            actix_rt::System::new().block_on(async move {
                while let Some(task) = waiting.recv().await {
                    actix_rt::spawn(task(client.clone()));
                }
            });
        };
        std::thread::Builder::new()
            .name("dhis2-client".to_owned())
            .spawn(run)
            .map_err(|error| Error::new(ErrorKind::InvalidConfig, "the system gives no thread").with_source(error))?;
        Ok(Handle { tasks })
    }

    /// Runs something with the client on the client's thread, and brings its result back.
    ///
    /// # Errors
    /// Handle closed: the work panicked. Its own errors are in its own result.
    pub async fn run<T, W, F>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (reply, result) = oneshot::channel();
        let task: Task = Box::new(move |client| {
            let work = work(client);
            Box::pin(async move {
                let mut reply = reply;
                // A reader that went away takes its request with it.
                tokio::select! {
                    value = work => { let _ = reply.send(value); }
                    () = reply.closed() => {}
                }
            })
        });
        self.tasks.send(task).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())
    }

    /// As [`Handle::run`], for a plain thread.
    ///
    /// # Errors
    /// As [`Handle::run`].
    ///
    /// # Panics
    /// Inside a runtime, where waiting would block it.
    pub fn run_blocking<T, W, F>(&self, work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnOnce(Client) -> F + Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (reply, result) = oneshot::channel();
        let task: Task = Box::new(move |client| {
            let work = work(client);
            Box::pin(async move {
                let _ = reply.send(work.await);
            })
        });
        self.tasks.blocking_send(task).map_err(|_| gone())?;
        result.blocking_recv().map_err(|_| gone())
    }

    /// Reads one JSON document; `path` as [`Client::get`] takes it.
    ///
    /// # Errors
    /// As [`Request::json`](crate::Request::json).
    pub async fn json<T: DeserializeOwned + Send + 'static>(&self, path: &str) -> Result<T, Error> {
        let path = path.to_owned();
        self.run(|client| async move { client.get(&path).json().await }).await?
    }

    /// Reads the rows of the array under `array`, in batches of lines.
    ///
    /// # Errors
    /// Handle closed. What the request meets comes with the batches.
    pub async fn rows(&self, path: &str, array: &[&str], limits: SplitLimits) -> Result<RowBatches, Error> {
        let path = path.to_owned();
        let array: Vec<String> = array.iter().map(|&key| key.to_owned()).collect();
        let (batches, reader) = mpsc::channel(BATCHES_WAITING_MAX);
        let task: Task = Box::new(move |client| {
            Box::pin(async move {
                // A reader that went away takes its request with it, also before the first row.
                let last = tokio::select! {
                    last = send_batches(&client, &path, &array, limits, &batches) => last,
                    () = batches.closed() => return,
                };
                let _ = batches.send(last.map(Batch::End)).await;
            })
        });
        self.tasks.send(task).await.map_err(|_| gone())?;
        Ok(RowBatches { reader, envelope: None })
    }
}

/// A message from the client's thread.
enum Batch {
    Rows(Vec<u8>),
    End(Envelope),
}

async fn send_batches(
    client: &Client,
    path: &str,
    array: &[String],
    limits: SplitLimits,
    batches: &mpsc::Sender<Result<Batch, Error>>,
) -> Result<Envelope, Error> {
    let array: Vec<&str> = array.iter().map(String::as_str).collect();
    let mut rows = client.get(path).rows(&array, limits).await?;
    loop {
        let mut lines = Vec::new();
        let more = rows
            .read(&mut |row| {
                match row {
                    Row::Whole(row) => row.write_line(&mut lines),
                    Row::Oversize { .. } | Row::TooDeep { .. } => {
                        return Err(RowFault::Stopped("longer or deeper than the limit".to_owned()));
                    }
                }
                Ok(())
            })
            .await?;
        if !lines.is_empty() && batches.send(Ok(Batch::Rows(lines))).await.is_err() {
            return Err(rows.fail(Error::new(ErrorKind::Cancelled, "the reader of the rows has gone away")));
        }
        if !more {
            return rows.finish();
        }
    }
}

/// Rows on their way from the client's thread.
#[derive(Debug)]
pub struct RowBatches {
    reader: mpsc::Receiver<Result<Batch, Error>>,
    envelope: Option<Envelope>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Batch::Rows(lines) => f.debug_struct("Rows").field("bytes", &lines.len()).finish(),
            Batch::End(envelope) => f.debug_tuple("End").field(envelope).finish(),
        }
    }
}

impl RowBatches {
    /// The next rows, a line of NDJSON each; none when all have come and the response is known to be whole. Only then do
    /// they count.
    ///
    /// # Errors
    /// As [`Rows::read`](crate::Rows::read) and [`Rows::finish`](crate::Rows::finish); a row beyond the limits is one, too.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.envelope.is_some() {
            return Ok(None);
        }
        match self.reader.recv().await {
            Some(Ok(Batch::Rows(lines))) => Ok(Some(lines)),
            Some(Ok(Batch::End(envelope))) => {
                self.envelope = Some(envelope);
                Ok(None)
            }
            Some(Err(error)) => Err(error),
            None => Err(gone()),
        }
    }

    /// The envelope of the rows, once [`RowBatches::next`] has said none.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.envelope.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Server, Then, chunk, head, json};

    fn client(server: &Server) -> Client {
        Client::builder(server.url()).retries(0).build().unwrap()
    }

    fn is_send<T: Send>(value: T) -> T {
        value
    }

    #[test]
    fn a_plain_thread_may_ask() {
        let server = Server::saying(json(r#"{"version":"2.40.1"}"#));
        let handle = client(&server).handle().unwrap();
        let clone = handle.clone();
        let info = std::thread::spawn(move || clone.run_blocking(|client| async move { client.system_info().await }));
        assert_eq!(info.join().unwrap().unwrap().unwrap().version.minor(), 40);
        let id = handle.run_blocking(|_| async { std::thread::current().id() }).unwrap();
        assert_ne!(id, std::thread::current().id());
    }

    #[test]
    fn another_runtime_may_ask_and_move_the_future_between_threads() {
        let server = Server::saying(json("[1,2]"));
        let handle = client(&server).handle().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let asked = is_send(async move { handle.json::<Vec<u8>>("x").await });
        assert_eq!(runtime.block_on(runtime.spawn(asked)).unwrap().unwrap(), [1, 2]);
    }

    #[tokio::test]
    async fn rows_arrive_in_batches_and_only_a_whole_answer_ends_well() {
        for whole in [true, false] {
            let server = Server::start(move |_, out| {
                out.write(head(&["Transfer-Encoding: chunked"], chunk(r#"{"xs":[{"n":1},{"n":2},"#)));
                out.write(chunk(r#"{"n":3}],"total":3}"#));
                if whole {
                    out.write(chunk(""));
                }
                Then::Close
            });
            let handle = client(&server).handle().unwrap();
            let mut batches = handle.rows("xs", &["xs"], SplitLimits::default()).await.unwrap();
            let mut lines = Vec::new();
            let end = loop {
                match is_send(batches.next()).await {
                    Ok(Some(batch)) => lines.extend(batch),
                    Ok(None) => break Ok(batches.envelope().unwrap().rows()),
                    Err(error) => break Err(error.kind()),
                }
            };
            assert_eq!(String::from_utf8(lines).unwrap(), "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
            assert_eq!(end, if whole { Ok(3) } else { Err(ErrorKind::Truncated) });
        }
    }

    #[tokio::test]
    async fn a_reader_that_is_slow_stops_the_server_and_one_that_leaves_ends_the_request() {
        use std::sync::{
            Arc,
            atomic::{AtomicUsize, Ordering::SeqCst},
        };
        let written = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&written);
        let server = Server::start(move |_, out| {
            out.write(head(&["Content-Length: 400000012"], r#"{"xs":[{"n":"#));
            for _ in 0..4000 {
                out.write([b' '; 100_000 - 12]);
                out.write(r#"1},     {"n":"#);
                seen.fetch_add(100_000, SeqCst);
            }
            Then::Close
        });
        let handle = client(&server).handle().unwrap();
        let mut batches = handle.rows("xs", &["xs"], SplitLimits::default()).await.unwrap();
        assert!(batches.next().await.unwrap().is_some());
        // The server gets no further once channel and sockets are full.
        let mut before = usize::MAX;
        while written.load(SeqCst) != before {
            before = written.load(SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        assert!(before < 100_000_000, "{before}");
        drop(batches);
        // The request ends, so the server's writes fail and its loop runs to the end.
        while written.load(SeqCst) < 400_000_000 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_reader_that_leaves_before_the_first_row_ends_the_request() {
        use std::sync::{Arc, mpsc};
        let (tell, told) = mpsc::channel();
        let tell = Arc::new(std::sync::Mutex::new(tell));
        // The server thinks; then it has begun to answer, but no row has come.
        let server = Server::start(move |heard, out| {
            tell.lock().unwrap().send("asked").unwrap();
            if heard.number == 1 {
                out.write(head(&["Content-Length: 1000"], r#"{"xs":["#));
            }
            out.wait_for_goodbye();
            tell.lock().unwrap().send("gone").unwrap();
            Then::Close
        });
        let handle = client(&server).handle().unwrap();
        for _ in 0..2 {
            let batches = handle.rows("xs", &["xs"], SplitLimits::default()).await.unwrap();
            assert_eq!(told.recv().unwrap(), "asked");
            drop(batches);
            assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)).unwrap(), "gone");
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_the_handle_lives_on() {
        let server = Server::saying(json("1"));
        let handle = client(&server).handle().unwrap();
        let error = handle.run(|_| async { panic!("on purpose") }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::HandleClosed);
        assert_eq!(handle.json::<u8>("x").await.unwrap(), 1);
    }
}
