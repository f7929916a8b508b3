//! One GET request, and its response as bytes, as JSON or as rows.

use std::{fmt, future::Future, time::Duration};

use harvester_pacing::{RequestOutcome, Retry, RetryAnswer, RetryPolicy};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;

use crate::{
    client::Client,
    error::{Error, ErrorKind},
    split::{Envelope, Row, RowFault, SplitError, SplitLimits, Splitter},
    transport::{self, Accept, Chunk, OpenResponse, RequestSpec},
};

/// Characters that a query value keeps as they are. Brackets and braces are encoded, since servlet containers refuse them; `+` too,
/// since they read it as a space.
const VALUE: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':').remove(b',');

/// Characters that a segment of a path keeps as they are.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Encodes one segment of a path: a namespace, a key, an id from elsewhere.
pub fn path_segment(text: &str) -> String {
    // Alone, dots would step out of the place.
    if matches!(text, "." | "..") {
        return text.replace('.', "%2E");
    }
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A GET request in the making.
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    client: Client,
    path: Result<String, Error>,
    accept: Accept,
    is_probe: bool,
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request").field("path", &self.path).field("accept", &self.accept).finish_non_exhaustive()
    }
}

impl Request {
    pub(crate) fn new(client: Client, path: Result<String, Error>) -> Self {
        Request { client, path, accept: Accept::Json, is_probe: false }
    }

    /// Adds a parameter. May be repeated with the same name, as `filter` is. Name and value are encoded.
    pub fn query(mut self, name: &str, value: impl AsRef<str>) -> Self {
        if let Ok(path) = &mut self.path {
            path.push(if path.contains('?') { '&' } else { '?' });
            path.extend(utf8_percent_encode(name, VALUE));
            path.push('=');
            path.extend(utf8_percent_encode(value.as_ref(), VALUE));
        }
        self
    }

    /// Accepts any content type except a page for people. Without it the response must be JSON.
    pub fn raw(mut self) -> Self {
        self.accept = Accept::Anything;
        self
    }

    /// Does not wait for a login that is on trial.
    pub(crate) fn probe(mut self) -> Self {
        self.is_probe = true;
        self
    }

    /// The path below `/api`, with its query.
    pub fn path(&self) -> Option<&str> {
        self.path.as_deref().ok()
    }

    /// Sends it and waits for the head of the response.
    ///
    /// # Errors
    /// Anything but a success of the wanted type. A client alone has tried it again by then.
    pub async fn send(self) -> Result<Response, Error> {
        let (client, spec) = self.ready()?;
        with_retries(&client, || send_once(&client, &spec)).await
    }

    /// Sends it and parses the whole answer.
    ///
    /// # Errors
    /// As [`Request::send`] and [`Response::json`]; a client alone repeats both.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let (client, spec) = self.ready()?;
        with_retries(&client, || async { send_once(&client, &spec).await?.json().await }).await
    }

    /// Sends it and takes the whole answer as bytes, at most `bytes_max` of them.
    ///
    /// # Errors
    /// As [`Request::send`] and [`Response::bytes`]; a client alone repeats both.
    pub async fn bytes(self, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let (client, spec) = self.ready()?;
        with_retries(&client, || async { send_once(&client, &spec).await?.bytes(bytes_max).await }).await
    }

    /// Sends it; the response is to be read as the rows of the array under `array` (keys from the outside in).
    ///
    /// # Errors
    /// As [`Request::send`]. What goes wrong once rows have come is not repeated here.
    pub async fn rows(self, array: &[&str], limits: SplitLimits) -> Result<Rows, Error> {
        let response = self.send().await?;
        Ok(Rows { response, splitter: Splitter::new(array, limits), ended: false })
    }

    fn ready(self) -> Result<(Client, RequestSpec), Error> {
        Ok((self.client, RequestSpec { path: self.path?, accept: self.accept, is_probe: self.is_probe }))
    }
}

async fn send_once(client: &Client, spec: &RequestSpec) -> Result<Response, Error> {
    transport::send(client, spec)
        .await
        .map(|open| Response { open, json_bytes_max: client.inner.limits.json_bytes_max })
}

/// Repeats what may go better next time, after a wait that grows, as often as the client says.
async fn with_retries<T, F: Future<Output = Result<T, Error>>>(
    client: &Client,
    mut attempt: impl FnMut() -> F,
) -> Result<T, Error> {
    // Nobody else is asked meanwhile, so the number of attempts is all there is to go by.
    let policy = RetryPolicy {
        attempts_max: client.retries.saturating_add(1),
        ..RetryPolicy::new(0, Duration::MAX, rand::random())
    };
    let mut retry = Retry::new(policy.seed);
    loop {
        let error = match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        match retry.failed(error.retry_cause(), Duration::ZERO, &policy) {
            RetryAnswer::RetryIn(wait) => {
                tracing::debug!(error = %error, wait_ms = wait.as_millis() as u64, "request failed; trying again");
                tokio::time::sleep(wait).await;
            }
            RetryAnswer::GiveUp | RetryAnswer::Outage | RetryAnswer::Exhausted => return Err(error),
        }
    }
}

/// A success, its body still on its way.
///
/// Read it to its end: a response dropped earlier closes its connection, and its permit counts as abandoned.
#[derive(Debug)]
pub struct Response {
    open: OpenResponse,
    json_bytes_max: usize,
}

impl fmt::Debug for OpenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenResponse").field("status", &self.status).field("url", &self.url).finish_non_exhaustive()
    }
}

impl Response {
    /// The status, 200 to 299.
    pub fn status(&self) -> u16 {
        self.open.status
    }

    /// The content type, parameters included.
    pub fn content_type(&self) -> Option<&str> {
        self.open.content_type.as_deref()
    }

    /// The url it came from, without credentials.
    pub fn url(&self) -> &str {
        &self.open.url
    }

    /// The next bytes of the body, inflated, at most 64 KiB; none once the body has ended and is known to be whole.
    ///
    /// # Errors
    /// The body stalls, is cut, damaged or too large.
    pub async fn chunk(&mut self) -> Result<Option<&[u8]>, Error> {
        let chunk = self.open.chunk().await?;
        if matches!(chunk, Chunk::End) {
            self.open.held.end(RequestOutcome::Answered);
        }
        Ok(self.open.bytes(&chunk))
    }

    /// The whole body.
    ///
    /// # Errors
    /// As [`Response::chunk`]; too large when it is longer than `bytes_max`.
    pub async fn bytes(mut self, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let all = self.collect(bytes_max).await?;
        self.open.held.end(RequestOutcome::Answered);
        Ok(all)
    }

    /// Parses the whole body as one JSON document.
    ///
    /// # Errors
    /// As [`Response::bytes`]; empty; garbled when it is not JSON or not of that shape. The message says where, not what.
    pub async fn json<T: DeserializeOwned>(mut self) -> Result<T, Error> {
        let all = self.collect(self.json_bytes_max).await?;
        if all.iter().all(u8::is_ascii_whitespace) {
            return Err(self.open.fail(Error::new(ErrorKind::EmptyBody, "the response body is empty")));
        }
        match serde_json::from_slice(&all) {
            Ok(value) => {
                self.open.held.end(RequestOutcome::Answered);
                Ok(value)
            }
            Err(error) => {
                let what = if error.is_data() { "does not have the expected shape" } else { "is not valid JSON" };
                let text = format!("the response {what} at line {} column {}", error.line(), error.column());
                Err(self.open.fail(Error::new(ErrorKind::Garbled, text)))
            }
        }
    }

    async fn collect(&mut self, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        let too_long = loop {
            let chunk = self.open.chunk().await?;
            match self.open.bytes(&chunk) {
                Some(bytes) if all.len() + bytes.len() > bytes_max => break true,
                Some(bytes) => all.extend_from_slice(bytes),
                None => break false,
            }
        };
        if too_long {
            let text = format!("the response is longer than {bytes_max} bytes");
            return Err(self.open.fail(Error::new(ErrorKind::TooLarge, text)));
        }
        Ok(all)
    }
}

/// The rows of a response, as they arrive.
///
/// ```no_run
/// # async fn example(client: dhis2::Client) -> Result<(), dhis2::Error> {
/// # use dhis2::split::{Row, SplitLimits};
/// let mut lines = Vec::new();
/// let mut rows = client.get("dataElements").query("paging", "false").rows(&["dataElements"], SplitLimits::default()).await?;
/// while rows.read(&mut |row| {
///     if let Row::Whole(row) = row {
///         row.write_line(&mut lines);
///     }
///     Ok(())
/// }).await? {
///     // Between two chunks the server waits for us: write `lines` away here.
/// }
/// let envelope = rows.finish()?;
/// assert!(envelope.found_array());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Rows {
    response: Response,
    splitter: Splitter,
    ended: bool,
}

impl Rows {
    /// Waits for the next bytes of the response and hands out the rows that are complete with them. False once the response
    /// has ended: then comes [`Rows::finish`], and only when that succeeds do the rows count.
    ///
    /// # Errors
    /// As [`Response::chunk`]; garbled when the response is not what it should be; stopped when the callback refused a row.
    pub async fn read(&mut self, on_row: &mut dyn FnMut(Row<'_>) -> Result<(), RowFault>) -> Result<bool, Error> {
        if self.ended {
            return Ok(false);
        }
        let chunk = self.response.open.chunk().await?;
        let pushed = match self.response.open.bytes(&chunk) {
            Some(bytes) => self.splitter.push(bytes, on_row),
            None => {
                self.ended = true;
                return Ok(false);
            }
        };
        pushed.map_err(|error| self.response.open.fail(split_error(error)))?;
        Ok(true)
    }

    /// Also reads one member of every row, see [`Splitter::with_key`]. To be said before the first read.
    #[must_use]
    pub fn with_key(mut self, name: &str) -> Self {
        self.splitter = self.splitter.with_key(name);
        self
    }

    /// The envelope of the rows; everything is then known to be whole and JSON. Call it once [`Rows::read`] has said
    /// false.
    ///
    /// # Errors
    /// Garbled: the response's JSON was cut, or something is wrong around the rows. Stopped: it was not read to its end.
    pub fn finish(self) -> Result<Envelope, Error> {
        self.finish_with(|_| Ok(()))
    }

    /// As [`Rows::finish`], with the caller's own look at the envelope; the permit's outcome follows from both.
    pub(crate) fn finish_with(mut self, check: impl FnOnce(&Envelope) -> Result<(), Error>) -> Result<Envelope, Error> {
        if !self.ended {
            return Err(self
                .response
                .open
                .fail(Error::new(ErrorKind::Cancelled, "the response was not read to its end")));
        }
        let whole =
            self.splitter.finish().map_err(split_error).and_then(|envelope| check(&envelope).map(|()| envelope));
        match whole {
            Ok(envelope) => {
                self.response.open.held.end(RequestOutcome::Answered);
                Ok(envelope)
            }
            Err(error) => Err(self.response.open.fail(error)),
        }
    }

    /// Reads everything: [`Rows::read`] to the end, then [`Rows::finish`].
    ///
    /// # Errors
    /// As those.
    pub async fn for_each(
        mut self,
        mut on_row: impl FnMut(Row<'_>) -> Result<(), RowFault>,
    ) -> Result<Envelope, Error> {
        while self.read(&mut on_row).await? {}
        self.finish()
    }

    /// Rows handed out so far.
    pub fn count(&self) -> u64 {
        self.splitter.rows()
    }

    /// The url it came from, without credentials.
    pub fn url(&self) -> &str {
        self.response.url()
    }

    pub(crate) fn fail(&mut self, error: Error) -> Error {
        self.response.open.fail(error)
    }
}

pub(crate) fn split_error(error: SplitError) -> Error {
    let kind = match &error {
        SplitError::Empty => ErrorKind::EmptyBody,
        SplitError::NotJson { .. } => ErrorKind::NotJson,
        SplitError::EnvelopeTooLarge { .. } => ErrorKind::TooLarge,
        SplitError::Row { source: RowFault::Stopped(_), .. } => ErrorKind::Cancelled,
        _ => ErrorKind::Garbled,
    };
    let text = error.to_string();
    match error {
        SplitError::Row { source, .. } => Error::new(kind, text).with_source(source),
        _ => Error::new(kind, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_encoded_and_may_be_repeated() {
        let client = Client::builder("http://x.org").build().unwrap();
        let request = client
            .get("dataElements")
            .query("fields", ":owner,a[b~rename(c)]")
            .query("filter", "name:like:a+b & c=é")
            .query("filter", "id:in:[x,y]");
        assert_eq!(
            request.path().unwrap(),
            "dataElements?fields=:owner,a%5Bb~rename%28c%29%5D&filter=name:like:a%2Bb%20%26%20c%3D%C3%A9&filter=id:in:%5Bx,y%5D"
        );
        assert_eq!(client.get("me?x=1").query("y", "2").path().unwrap(), "me?x=1&y=2");
        assert_eq!((path_segment("a/b ?"), path_segment("..")), ("a%2Fb%20%3F".into(), "%2E%2E".into()));
    }
}
