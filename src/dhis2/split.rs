//! The push splitter finds the rows of one response as its bytes arrive: one row and one chunk in memory, however long the response.
//!
//! It takes the response apart into the rows of one named array and everything around it. A row is handed out as the
//! server's own bytes, without a copy when it lies inside one chunk. The text around the rows (the *envelope*) is kept,
//! with `[]` in the place of the array, and is parsed at the end. Both together make the whole answer valid JSON:
//! each row is checked in the pass that finds its end, what stands between them is checked here, the envelope is parsed with the array's place
//! in it. So a cut answer, a second document and a misplaced bracket are errors, never fewer rows.
//!
//! It knows nothing of HTTP. Nothing it says in an error quotes a row.

use std::{borrow::Cow, fmt, mem, ops::Range};

use memchr::memchr2;
use serde::{Deserialize, de::IgnoredAny};

use crate::value_scan::ValueScan;

/// Bounds of one response. The defaults fit every list DHIS2 sends.
#[derive(Clone, Copy, Debug)]
pub struct SplitLimits {
    /// A longer row is reported as [`Row::Oversize`] and reading continues. Default 16 MiB.
    pub row_bytes_max: usize,
    /// A longer envelope is an error. Default 256 KiB; analytics with metadata need more.
    pub envelope_bytes_max: usize,
    /// A row nested deeper is reported as [`Row::TooDeep`]. Default and maximum 127, since serde_json stops there.
    pub depth_max: u32,
    /// Bytes kept of a row that is too large, for its id. Default 64 KiB.
    pub prefix_bytes: usize,
    /// Whether rows may be something else than objects (arrays, numbers, texts). Default no.
    pub any_value: bool,
}

impl Default for SplitLimits {
    fn default() -> Self {
        SplitLimits {
            row_bytes_max: 16 << 20,
            envelope_bytes_max: 256 << 10,
            depth_max: DEPTH_MAX,
            prefix_bytes: 64 << 10,
            any_value: false,
        }
    }
}

/// Levels of nesting that serde_json parses in one document.
const DEPTH_MAX: u32 = 127;

/// A larger buffer is given back after its row, so that one giant does not cost memory until the end.
const ROW_BUFFER_KEPT_BYTES: usize = 1 << 20;

/// One element of the array.
#[derive(Debug)]
#[non_exhaustive]
pub enum Row<'a> {
    /// A row, complete and UTF-8.
    Whole(WholeRow<'a>),
    /// A row longer than the limit. It is JSON, down to the depth limit; whether it is UTF-8 was not looked at.
    Oversize {
        /// Its first bytes; usually the id is among them.
        prefix: &'a [u8],
        /// Its length.
        bytes: u64,
    },
    /// A row nested deeper than the limit. Below that its brackets were followed to its end, nothing else was checked.
    TooDeep {
        /// Its first bytes.
        prefix: &'a [u8],
        /// Its length.
        bytes: u64,
    },
}

/// One row as the server wrote it.
pub struct WholeRow<'a> {
    text: &'a str,
    key: Option<Cow<'a, str>>,
    index: u64,
    has_newline: bool,
    envelope: &'a EnvelopeText,
}

impl fmt::Debug for WholeRow<'_> {
    /// Rows are patients: only position and length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WholeRow").field("index", &self.index).field("bytes", &self.text.len()).finish()
    }
}

impl<'a> WholeRow<'a> {
    /// The row's bytes, which are JSON.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The text of the member that [`Splitter::with_key`] names; none when the row does not have it, or none was named.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Position in the array, from 0; rows that are too long or too deep count.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Parses what the caller wants to know of the row.
    ///
    /// # Errors
    /// The row does not have that shape. The message says where, never what.
    pub fn head<T: Deserialize<'a>>(&self) -> Result<T, RowFault> {
        serde_json::from_str(self.text).map_err(|error| RowFault::json(&error))
    }

    /// Whether the row spreads over several lines (a pretty-printed answer).
    pub fn has_newline(&self) -> bool {
        self.has_newline
    }

    /// Appends the row as one line of NDJSON. Line breaks between tokens are dropped, which changes no value, since a
    /// JSON text cannot contain a raw one.
    pub fn write_line(&self, line: &mut Vec<u8>) {
        let mut rest = self.text.as_bytes();
        while let Some(at) = memchr2(b'\n', b'\r', rest).filter(|_| self.has_newline) {
            line.extend_from_slice(&rest[..at]);
            rest = &rest[at + 1..];
        }
        line.extend_from_slice(rest);
        line.push(b'\n');
    }

    /// Parses what the envelope said before the array began (members that stand for all rows, headers of columns).
    ///
    /// # Errors
    /// The text so far does not have that shape.
    pub fn envelope_so_far<T: serde::de::DeserializeOwned>(&self) -> Result<T, RowFault> {
        let mut text = self.envelope.bytes.clone();
        text.push(b']');
        text.extend(std::iter::repeat_n(b'}', self.envelope.open));
        serde_json::from_slice(&text).map_err(|error| RowFault::json(&error))
    }
}

/// Why a callback did not take a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowFault {
    /// The row is not JSON.
    #[error("not valid JSON at line {line} column {column}")]
    Syntax {
        /// Line inside the row, from 1.
        line: usize,
        /// Column inside the line, from 1.
        column: usize,
    },
    /// The row is JSON of another shape than expected: the wrong dialect.
    #[error("not of the expected shape at line {line} column {column}")]
    Shape {
        /// Line inside the row, from 1.
        line: usize,
        /// Column inside the line, from 1.
        column: usize,
    },
    /// The caller stops reading, for a reason of its own. The text must not quote the row.
    #[error("{0}")]
    Stopped(String),
}

impl RowFault {
    /// serde_json's own message may quote a value, so only its place is kept.
    fn json(error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        if error.is_data() { RowFault::Shape { line, column } } else { RowFault::Syntax { line, column } }
    }
}

/// Why a response is not what it should be. Never quotes a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitError {
    /// Nothing but white space.
    #[error("the response is empty")]
    Empty,
    /// The response does not begin as JSON does.
    #[error("the response is not JSON: it begins with byte 0x{first:02x}")]
    NotJson {
        /// The first byte that is not white space.
        first: u8,
    },
    /// The response ends before its JSON does.
    #[error("the response ends before its JSON does, after {rows} rows")]
    Truncated {
        /// Rows handed out so far.
        rows: u64,
    },
    /// The text around the rows is not JSON, or something follows it.
    #[error("the text around the rows is not valid JSON at line {line} column {column}")]
    Envelope {
        /// Line of the text without its rows, from 1.
        line: usize,
        /// Column of the text without its rows, from 1.
        column: usize,
    },
    /// The text around the rows is not UTF-8.
    #[error("the text around the rows is not valid UTF-8")]
    EnvelopeNotUtf8,
    /// The text around the rows has another shape than expected: the wrong dialect.
    #[error("the text around the rows does not have the expected shape at line {line} column {column}")]
    EnvelopeShape {
        /// Line of the text without its rows, from 1.
        line: usize,
        /// Column of the text without its rows, from 1.
        column: usize,
    },
    /// The text around the rows is longer than the limit.
    #[error("the text around the rows is longer than {max} bytes")]
    EnvelopeTooLarge {
        /// The limit.
        max: usize,
    },
    /// The rows' member appears twice.
    #[error("the member of the rows appears twice")]
    DuplicateArray,
    /// Something else than a comma or the end stands behind a row, or nothing behind a comma.
    #[error("row {index} is not followed by a comma or the end of the array")]
    Separator {
        /// Position of the row, from 0.
        index: u64,
    },
    /// A row is not an object.
    #[error("row {index} is not an object")]
    NotAnObject {
        /// Position of the row, from 0.
        index: u64,
    },
    /// A row is not UTF-8.
    #[error("row {index} is not valid UTF-8")]
    NotUtf8 {
        /// Position of the row, from 0.
        index: u64,
    },
    /// A row is not JSON, has the wrong shape, or the caller did not take it.
    #[error("row {index}")]
    Row {
        /// Position of the row, from 0.
        index: u64,
        /// The error.
        source: RowFault,
    },
}

/// The text around the rows, with `[]` in their place.
#[derive(Default)]
struct EnvelopeText {
    bytes: Vec<u8>,
    /// Objects that are open where the array stands.
    open: usize,
}

/// The envelope of the rows. Its syntax is checked.
pub struct Envelope {
    text: Vec<u8>,
    found_array: bool,
    rows: u64,
    unfit: u64,
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("bytes", &self.text.len())
            .field("found_array", &self.found_array)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl Envelope {
    /// Whether the array was there. Without it there were no rows, and `rows()` is 0.
    pub fn found_array(&self) -> bool {
        self.found_array
    }

    /// Rows in the array, those too long or too deep included.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Rows that were too long or too deep to hand out.
    pub fn unfit_rows(&self) -> u64 {
        self.unfit
    }

    /// The text around the rows, with `[]` in their place: a JSON document.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Parses the envelope.
    ///
    /// # Errors
    /// It does not have that shape.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, SplitError> {
        serde_json::from_slice(&self.text)
            .map_err(|error| SplitError::EnvelopeShape { line: error.line(), column: error.column() })
    }
}

/// Position of the next byte in the response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Around the rows, before or behind them.
    Envelope,
    /// A row must begin here; `first`: or the array may end.
    BeforeRow { first: bool },
    /// Inside a row that began in this chunk or an earlier one.
    InRow,
    /// Behind a row.
    AfterRow,
}

/// Finds the rows of one response as its bytes arrive.
///
/// ```
/// # use dhis2::split::{Row, RowFault, SplitLimits, Splitter};
/// let mut lines = Vec::new();
/// let mut splitter = Splitter::new(&["dataElements"], SplitLimits::default());
/// for chunk in [r#"{"pager":{"page":1},"dataElements":[{"id":"a"#, r#"bc"},{"id":"xyz"}]}"#] {
///     splitter.push(chunk.as_bytes(), &mut |row| {
///         if let Row::Whole(row) = row {
///             row.write_line(&mut lines);
///         }
///         Ok::<(), RowFault>(())
///     })?;
/// }
/// let envelope = splitter.finish()?;
/// assert_eq!(lines, b"{\"id\":\"abc\"}\n{\"id\":\"xyz\"}\n");
/// assert_eq!(envelope.text(), br#"{"pager":{"page":1},"dataElements":[]}"#);
/// # Ok::<(), dhis2::split::SplitError>(())
/// ```
pub struct Splitter {
    path: Vec<String>,
    /// The member of every row that is its key.
    key: Option<String>,
    limits: SplitLimits,
    place: Place,
    envelope: EnvelopeText,
    scan: EnvelopeScan,
    value: ValueScan,
    /// The part of the present row that earlier chunks brought.
    row: Vec<u8>,
    /// Length of the present row so far, kept or not.
    row_bytes: u64,
    /// The present row is too long or too deep: only its prefix is kept.
    unfit: bool,
    rows: u64,
    rows_unfit: u64,
    found_array: bool,
}

impl fmt::Debug for Splitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Splitter")
            .field("path", &self.path)
            .field("place", &self.place)
            .field("rows", &self.rows)
            .finish_non_exhaustive()
    }
}

impl Splitter {
    /// A splitter for the array under `path`: keys from the outside in, none for a response that is itself the array.
    pub fn new(path: &[&str], limits: SplitLimits) -> Self {
        Splitter {
            path: path.iter().map(|&key| key.to_owned()).collect(),
            key: None,
            limits: SplitLimits { depth_max: limits.depth_max.min(DEPTH_MAX), ..limits },
            place: Place::Envelope,
            envelope: EnvelopeText::default(),
            scan: EnvelopeScan::default(),
            value: ValueScan::new(DEPTH_MAX),
            row: Vec::new(),
            row_bytes: 0,
            unfit: false,
            rows: 0,
            rows_unfit: 0,
            found_array: false,
        }
    }

    /// Also reads one member of every row, a text at the top of an object: [`WholeRow::key`].
    ///
    /// It costs no second pass over the row.
    #[must_use]
    pub fn with_key(mut self, name: &str) -> Self {
        self.key = Some(name.to_owned());
        self
    }

    /// Rows handed out so far, those too long or too deep included.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Takes the next bytes of the response and hands out every row that is complete with them.
    ///
    /// # Errors
    /// The response is not what it should be, or the callback did not take a row. The splitter is then of no further use.
    pub fn push(
        &mut self,
        chunk: &[u8],
        on_row: &mut dyn FnMut(Row<'_>) -> Result<(), RowFault>,
    ) -> Result<(), SplitError> {
        // Once for all rows of the chunk; a character that the chunk's border cuts belongs to a row that it cuts, too.
        let whole = Text8::of(chunk);
        let mut at = 0;
        while at < chunk.len() {
            at = match self.place {
                Place::Envelope => self.push_envelope(chunk, at)?,
                Place::BeforeRow { first } => self.before_row(chunk, at, first)?,
                Place::InRow => self.in_row(chunk, &whole, at, on_row)?,
                Place::AfterRow => self.after_row(chunk, at)?,
            };
        }
        Ok(())
    }

    /// Says what was around the rows, once the response has ended.
    ///
    /// # Errors
    /// The response ended too early, or the text around the rows is not one JSON document.
    pub fn finish(self) -> Result<Envelope, SplitError> {
        if self.place != Place::Envelope {
            return Err(SplitError::Truncated { rows: self.rows });
        }
        if self.envelope.bytes.iter().all(|byte| is_blank(*byte)) {
            return Err(SplitError::Empty);
        }
        // As text, since serde_json does not look at the bytes of what it ignores.
        let Ok(text) = std::str::from_utf8(&self.envelope.bytes) else { return Err(SplitError::EnvelopeNotUtf8) };
        if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
            return Err(if error.is_eof() {
                SplitError::Truncated { rows: self.rows }
            } else {
                SplitError::Envelope { line: error.line(), column: error.column() }
            });
        }
        Ok(Envelope {
            text: self.envelope.bytes,
            found_array: self.found_array,
            rows: self.rows,
            unfit: self.rows_unfit,
        })
    }

    fn push_envelope(&mut self, chunk: &[u8], from: usize) -> Result<usize, SplitError> {
        let max = self.limits.envelope_bytes_max;
        // Never looks at more than may still be kept, so a wrong answer is refused early.
        let room = max.saturating_sub(self.envelope.bytes.len());
        let to = chunk.len().min(from + room);
        if from == to {
            return Err(SplitError::EnvelopeTooLarge { max });
        }
        for (offset, &byte) in chunk[from..to].iter().enumerate() {
            let found = self.scan.step(byte, &self.path, &self.envelope.bytes, &chunk[from..from + offset])?;
            if found {
                if self.found_array {
                    return Err(SplitError::DuplicateArray);
                }
                self.found_array = true;
                let next = from + offset + 1;
                self.envelope.bytes.extend_from_slice(&chunk[from..next]);
                self.envelope.open = self.path.len();
                self.place = Place::BeforeRow { first: true };
                return Ok(next);
            }
        }
        self.envelope.bytes.extend_from_slice(&chunk[from..to]);
        Ok(to)
    }

    fn before_row(&mut self, chunk: &[u8], from: usize, first: bool) -> Result<usize, SplitError> {
        let Some(at) = skip_blank(chunk, from) else { return Ok(chunk.len()) };
        let byte = chunk[at];
        if byte == b']' {
            return if first { Ok(self.end_array(at)) } else { Err(self.separator()) };
        }
        if byte == b',' {
            return Err(self.separator());
        }
        if byte != b'{' && !self.limits.any_value {
            return Err(SplitError::NotAnObject { index: self.rows });
        }
        self.value = ValueScan::new(self.limits.depth_max);
        self.row.clear();
        self.row_bytes = 0;
        self.unfit = false;
        self.place = Place::InRow;
        Ok(at)
    }

    fn after_row(&mut self, chunk: &[u8], from: usize) -> Result<usize, SplitError> {
        let Some(at) = skip_blank(chunk, from) else { return Ok(chunk.len()) };
        match chunk[at] {
            b',' => {
                self.place = Place::BeforeRow { first: false };
                Ok(at + 1)
            }
            b']' => Ok(self.end_array(at)),
            _ => Err(self.separator()),
        }
    }

    /// `rows` has not counted the row that is missing, so the row before it is named.
    fn separator(&self) -> SplitError {
        SplitError::Separator { index: self.rows.saturating_sub(1) }
    }

    fn end_array(&mut self, at: usize) -> usize {
        self.envelope.bytes.push(b']');
        self.scan.array_ended();
        self.place = Place::Envelope;
        at + 1
    }

    fn in_row(
        &mut self,
        chunk: &[u8],
        whole: &Text8<'_>,
        from: usize,
        on_row: &mut dyn FnMut(Row<'_>) -> Result<(), RowFault>,
    ) -> Result<usize, SplitError> {
        let found = self.value.find_end(chunk, from, &self.row, self.key.as_deref());
        let end = found.map_err(|at| {
            // Of a row that is too long only the beginning is kept, and the place is counted in that.
            let (line, column) = place_behind(self.row.iter().chain(&chunk[from..at]));
            SplitError::Row { index: self.rows, source: RowFault::Syntax { line, column } }
        })?;
        let part = &chunk[from..end.unwrap_or(chunk.len())];
        self.row_bytes += part.len() as u64;
        self.unfit |= self.value.is_too_deep() || self.row_bytes > self.limits.row_bytes_max as u64;

        let kept_earlier = !self.row.is_empty();
        if kept_earlier || end.is_none() {
            let room = if self.unfit { self.limits.prefix_bytes.saturating_sub(self.row.len()) } else { part.len() };
            self.row.extend_from_slice(&part[..room.min(part.len())]);
            if self.unfit {
                self.row.truncate(self.limits.prefix_bytes);
                // A long row was buffered up to the limit; its memory is given back, not kept for the next row.
                self.row.shrink_to(self.limits.prefix_bytes);
            }
        }
        let Some(end) = end else { return Ok(chunk.len()) };

        let index = self.rows;
        self.rows += 1;
        self.place = Place::AfterRow;
        // Taken out, so that the callback may borrow it while `self` is borrowed for the envelope; put back below.
        let kept = mem::take(&mut self.row);
        let bytes: &[u8] = if kept_earlier { &kept } else { part };
        let given = if self.unfit {
            self.rows_unfit += 1;
            let prefix = &bytes[..bytes.len().min(self.limits.prefix_bytes)];
            let bytes = self.row_bytes;
            if bytes > self.limits.row_bytes_max as u64 {
                on_row(Row::Oversize { prefix, bytes })
            } else {
                on_row(Row::TooDeep { prefix, bytes })
            }
        } else {
            let text = match whole.get(from..end).filter(|_| !kept_earlier) {
                Some(text) => text,
                None => std::str::from_utf8(bytes).map_err(|_| SplitError::NotUtf8 { index })?,
            };
            key_text(text, &self.value).and_then(|key| {
                let has_newline = self.value.has_newline();
                on_row(Row::Whole(WholeRow { text, key, index, has_newline, envelope: &self.envelope }))
            })
        };
        given.map_err(|source| SplitError::Row { index, source })?;
        if kept.capacity() <= ROW_BUFFER_KEPT_BYTES {
            self.row = kept;
            self.row.clear();
        }
        Ok(end)
    }
}

/// Line and column, both from 1, of what stands behind these bytes.
fn place_behind<'a>(bytes: impl Iterator<Item = &'a u8>) -> (usize, usize) {
    bytes.fold((1, 1), |(line, column), byte| if *byte == b'\n' { (line + 1, 1) } else { (line, column + 1) })
}

/// The key of a row that has been scanned.
fn key_text<'a>(row: &'a str, scan: &ValueScan) -> Result<Option<Cow<'a, str>>, RowFault> {
    let key = match scan.key() {
        None => return Ok(None),
        Some(Ok(key)) => key,
        Some(Err(at)) => {
            let (line, column) = place_behind(row.as_bytes()[..at].iter());
            return Err(RowFault::Shape { line, column });
        }
    };
    let text = if key.is_escaped {
        Cow::Owned(serde_json::from_str(&row[key.quoted()]).map_err(|error| RowFault::json(&error))?)
    } else {
        Cow::Borrowed(&row[key.inside()])
    };
    Ok(Some(text))
}

/// As much of a chunk as is UTF-8, from its first whole character on.
struct Text8<'a> {
    /// Its start in the chunk.
    from: usize,
    text: &'a str,
}

impl<'a> Text8<'a> {
    fn of(chunk: &'a [u8]) -> Self {
        // Not more than the rest of one character.
        let from = chunk.iter().take(3).take_while(|byte| **byte & 0xC0 == 0x80).count();
        let bytes = &chunk[from..];
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
        };
        Text8 { from, text }
    }

    /// These bytes of the chunk, where they are whole characters.
    fn get(&self, bytes: Range<usize>) -> Option<&'a str> {
        self.text.get(bytes.start.checked_sub(self.from)?..bytes.end.checked_sub(self.from)?)
    }
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

fn skip_blank(chunk: &[u8], from: usize) -> Option<usize> {
    chunk[from..].iter().position(|byte| !is_blank(*byte)).map(|offset| from + offset)
}

/// Follows the text around the rows far enough to know where the array begins.
///
/// It trusts the text to be JSON; that it was is found out when the envelope is parsed. On JSON it never errs, and text
/// that is not JSON never passes.
#[derive(Debug, Default)]
struct EnvelopeScan {
    /// Anything but white space has been seen.
    begun: bool,
    /// Containers open.
    depth: usize,
    /// Keys of the path that lead to the innermost container that is still on it. That container has depth
    /// `matched + 1` and is an object.
    matched: usize,
    /// The container at depth `matched + 1` is an object (it always is, except for a root array).
    on_object: bool,
    /// The next text in the container at depth `matched + 1` is a key.
    key_expected: bool,
    in_text: bool,
    escaped: bool,
    /// The text being read is a key that may be the path's next: where it begins in the envelope.
    key_from: Option<usize>,
    /// The last key was the path's next, and its value has not come yet.
    key_matches: bool,
    /// The whole path was found before.
    found: bool,
}

impl EnvelopeScan {
    /// Takes one byte; true when it is the bracket that opens the array. `before` and `part` together are the envelope
    /// up to this byte.
    fn step(&mut self, byte: u8, path: &[String], before: &[u8], part: &[u8]) -> Result<bool, SplitError> {
        if self.in_text {
            if self.escaped {
                self.escaped = false;
            } else if byte == b'\\' {
                self.escaped = true;
            } else if byte == b'"' {
                self.in_text = false;
                if let Some(from) = self.key_from.take() {
                    self.end_key(from, path, before, part)?;
                }
            }
            return Ok(false);
        }
        if is_blank(byte) {
            return Ok(false);
        }
        if !self.begun {
            self.begun = true;
            if byte != b'{' && byte != b'[' {
                return Err(SplitError::NotJson { first: byte });
            }
            if byte == b'[' && path.is_empty() {
                self.found = true;
                return Ok(true);
            }
            self.on_object = byte == b'{';
        }
        let on_path = self.depth == self.matched + 1 && self.on_object;
        match byte {
            b'"' => {
                self.in_text = true;
                if on_path && self.key_expected {
                    self.key_expected = false;
                    self.key_from = Some(before.len() + part.len() + 1);
                } else if on_path {
                    self.key_matches = false;
                }
            }
            b'{' => {
                if on_path && self.key_matches && self.matched + 1 < path.len() {
                    self.matched += 1;
                }
                self.key_matches = false;
                self.depth += 1;
                if self.depth == self.matched + 1 {
                    self.key_expected = true;
                }
            }
            b'[' => {
                if on_path && self.key_matches && self.matched + 1 == path.len() {
                    self.key_matches = false;
                    return Ok(true);
                }
                self.key_matches = false;
                self.depth += 1;
            }
            b'}' | b']' => {
                if self.depth == self.matched + 1 && self.matched > 0 {
                    self.matched -= 1;
                }
                self.depth = self.depth.saturating_sub(1);
                self.key_expected = false;
                self.key_matches = false;
            }
            b',' if on_path => {
                self.key_expected = true;
                self.key_matches = false;
            }
            _ => {}
        }
        Ok(false)
    }

    fn end_key(&mut self, from: usize, path: &[String], before: &[u8], part: &[u8]) -> Result<(), SplitError> {
        // The key may have begun in an earlier chunk, and then lies in both.
        let key: Vec<u8> =
            if from >= before.len() { part[from - before.len()..].to_vec() } else { [&before[from..], part].concat() };
        let Some(wanted) = path.get(self.matched) else { return Ok(()) };
        let same = if key.contains(&b'\\') {
            let quoted = [b"\"", key.as_slice(), b"\""].concat();
            serde_json::from_slice::<String>(&quoted).is_ok_and(|key| key == *wanted)
        } else {
            key == wanted.as_bytes()
        };
        self.key_matches = same;
        if same && self.matched + 1 == path.len() {
            if self.found {
                return Err(SplitError::DuplicateArray);
            }
            self.found = true;
        }
        Ok(())
    }

    /// The array has ended; its closing bracket is in the envelope already.
    fn array_ended(&mut self) {
        self.key_expected = false;
        self.key_matches = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, value::RawValue};

    use super::*;

    /// Result of splitting `text`, given in pieces of the lengths in `cuts`, then the rest.
    fn split(
        text: &[u8],
        cuts: &[usize],
        path: &[&str],
        limits: SplitLimits,
    ) -> Result<(Vec<String>, Envelope), SplitError> {
        split_by(Splitter::new(path, limits), text, cuts)
    }

    fn split_by(mut splitter: Splitter, text: &[u8], cuts: &[usize]) -> Result<(Vec<String>, Envelope), SplitError> {
        let mut rows = Vec::new();
        let mut take = |row: Row<'_>| {
            rows.push(match row {
                Row::Whole(row) => row.text().to_owned(),
                Row::Oversize { prefix, bytes } => format!("oversize {} of {bytes}", prefix.len()),
                Row::TooDeep { prefix, bytes } => format!("too deep {} of {bytes}", prefix.len()),
            });
            Ok(())
        };
        let mut rest = text;
        for cut in cuts {
            let (now, later) = rest.split_at((*cut).min(rest.len()));
            splitter.push(now, &mut take)?;
            rest = later;
        }
        splitter.push(rest, &mut take)?;
        let envelope = splitter.finish()?;
        assert_eq!(envelope.rows(), rows.len() as u64);
        Ok((rows, envelope))
    }

    #[test]
    fn the_key_of_a_row_is_read_at_every_chunk_border_and_only_at_the_top() {
        let text = r#"{"rows":[{"id":"abc","x":{"id":"no"}},{"x":[{"id":"no"}],"id" : "a\u0062\"c"},{"name":"id"},{"i\u0064":"e"}]}"#;
        let text = text.replace("\\\\", "\\");
        for cut in 0..=text.len() {
            let mut splitter = Splitter::new(&["rows"], SplitLimits::default()).with_key("id");
            let mut keys = Vec::new();
            let mut take = |row: Row<'_>| {
                let Row::Whole(row) = row else { panic!("a row is unfit") };
                keys.push(row.key().map(str::to_owned));
                Ok(())
            };
            splitter.push(&text.as_bytes()[..cut], &mut take).unwrap();
            splitter.push(&text.as_bytes()[cut..], &mut take).unwrap();
            splitter.finish().unwrap();
            assert_eq!(keys, [Some("abc".into()), Some("ab\"c".into()), None, Some("e".into())], "cut at {cut}");
        }
        for wrong in [r#"{"rows":[{"id":1}]}"#, r#"{"rows":[{"id":"a","id":"b"}]}"#] {
            let splitter = Splitter::new(&["rows"], SplitLimits::default()).with_key("id");
            assert!(matches!(split_by(splitter, wrong.as_bytes(), &[]), Err(SplitError::Row { .. })), "{wrong}");
        }
    }

    #[test]
    fn the_key_of_a_row_that_is_too_long_does_not_matter_wherever_the_chunks_end() {
        let limits = SplitLimits { row_bytes_max: 30, prefix_bytes: 8, ..SplitLimits::default() };
        for key in [r#""id":"b""#, r#""id":5"#, r#""i\u0064":"b""#] {
            let text = format!(r#"{{"rows":[{{"id":"a","x":"{}",{key}}},{{"id":"c"}}]}}"#, "-".repeat(40));
            for cut in 0..=text.len() {
                let splitter = Splitter::new(&["rows"], limits).with_key("id");
                let (rows, envelope) = split_by(splitter, text.as_bytes(), &[cut]).unwrap();
                assert_eq!((rows.len(), envelope.unfit_rows()), (2, 1), "{text} cut at {cut}");
            }
        }
    }

    fn split_rows(text: &str) -> Result<(Vec<String>, Envelope), SplitError> {
        split(text.as_bytes(), &[], &["rows"], SplitLimits::default())
    }

    /// The same by a parser that holds everything in memory.
    fn dom(text: &str, path: &[&str]) -> Option<Vec<String>> {
        let mut raw: &RawValue = serde_json::from_str(text).ok()?;
        for key in path {
            let object: std::collections::HashMap<String, &RawValue> = serde_json::from_str(raw.get()).ok()?;
            raw = object.get(*key)?;
        }
        let rows: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
        Some(rows.iter().map(|row| row.get().to_owned()).collect())
    }

    fn blank() -> impl Strategy<Value = String> {
        prop_oneof![4 => Just(String::new()), 1 => "[ \n\r\t]{1,3}"]
    }

    fn string() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => "[a-z0-9 ]{0,6}",
            1 => Just(r#"\""#.to_owned()),
            1 => Just(r"\\".to_owned()),
            1 => Just(r"\u00e9".to_owned()),
            1 => Just(r"\ud83d\ude00".to_owned()),
            1 => Just("é漢😀".to_owned()),
            1 => Just(r#"{[\n,:]}"#.to_owned()),
            1 => Just("rows".to_owned()),
        ];
        prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()))
    }

    fn scalar() -> impl Strategy<Value = String> {
        prop_oneof![
            string(),
            prop::sample::select(vec!["null", "true", "false", "0", "1.10", "-12.5e-3", "123456789012345678901234"])
                .prop_map(str::to_owned),
        ]
    }

    fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let key = prop_oneof![3 => string(), 1 => Just("\"rows\"".to_owned())];
        prop::collection::vec((blank(), key, blank(), blank(), value, blank()), 0..4).prop_map(|members| {
            let members: Vec<_> =
                members.into_iter().map(|(a, key, b, c, value, d)| format!("{a}{key}{b}:{c}{value}{d}")).collect();
            format!("{{{}}}", members.join(","))
        })
    }

    fn array(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        (blank(), prop::collection::vec((blank(), value, blank()), 0..4)).prop_map(|(inside, values)| {
            let values: Vec<_> = values.into_iter().map(|(a, value, b)| format!("{a}{value}{b}")).collect();
            if values.is_empty() { format!("[{inside}]") } else { format!("[{}]", values.join(",")) }
        })
    }

    fn json() -> impl Strategy<Value = String> {
        scalar().boxed().prop_recursive(3, 12, 3, |inner| prop_oneof![object(inner.clone()), array(inner)].boxed())
    }

    /// An envelope with `rows` somewhere in it, and other members before and behind.
    fn envelope(rows: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let other = || {
            prop::collection::vec(
                (prop::sample::select(vec!["pager", "row", "rows2", "ROWS", "\\u0072ow"]), json()),
                0..3,
            )
        };
        let key = prop::sample::select(vec!["rows", "r\\u006fws"]);
        (other(), key, blank(), rows, other(), blank()).prop_map(|(before, key, gap, rows, behind, end)| {
            let mut members: Vec<_> = before.iter().map(|(key, value)| format!("\"{key}\":{gap}{value}")).collect();
            members.push(format!("{gap}\"{key}\"{gap}:{gap}{rows}"));
            members.extend(behind.iter().map(|(key, value)| format!("\"{key}\":{value}{gap}")));
            format!("{gap}{{{}}}{end}", members.join(","))
        })
    }

    proptest! {
        #[test]
        fn the_rows_are_those_of_a_dom_at_every_chunk_border(text in envelope(array(object(json())))) {
            let wanted = dom(&text, &["rows"]).unwrap();
            for cut in 0..=text.len() {
                let (rows, envelope) = split(text.as_bytes(), &[cut], &["rows"], SplitLimits::default()).unwrap();
                prop_assert_eq!(&rows, &wanted);
                prop_assert!(envelope.found_array());
                let mut whole: Value = serde_json::from_str(&text).unwrap();
                whole["rows"] = Value::Array(Vec::new());
                prop_assert_eq!(envelope.parse::<Value>().unwrap(), whole);
            }
            let bytes = vec![1; text.len()];
            prop_assert_eq!(split(text.as_bytes(), &bytes, &["rows"], SplitLimits::default()).unwrap().0, wanted);
        }

        #[test]
        fn rows_of_any_kind_under_any_path_are_those_of_a_dom(inner in envelope(array(json())), outer in array(json()), cut in 0usize..400) {
            let limits = SplitLimits { any_value: true, ..SplitLimits::default() };
            let nested = format!(r#"{{"rows":1,"listGrid":{inner},"title":"x"}}"#);
            for (text, path) in [(&nested, &["listGrid", "rows"][..]), (&inner, &["rows"]), (&outer, &[])] {
                let (rows, envelope) = split(text.as_bytes(), &[cut], path, limits).unwrap();
                prop_assert!(envelope.found_array());
                prop_assert_eq!(rows, dom(text, path).unwrap());
                let bytes = vec![1; text.len()];
                prop_assert_eq!(split(text.as_bytes(), &bytes, path, limits).unwrap().0, dom(text, path).unwrap());
            }
        }

        #[test]
        fn what_is_cut_anywhere_is_an_error(text in envelope(array(object(json())))) {
            let text = text.trim_end();
            for cut in 0..text.len() {
                let result = split(&text.as_bytes()[..cut], &[cut / 2], &["rows"], SplitLimits::default());
                prop_assert!(result.is_err(), "cut at {} of {}", cut, text);
            }
        }

        #[test]
        fn what_passes_is_json_whatever_byte_was_changed(
            text in envelope(array(object(json()))), byte in prop::sample::select(b"\"\\{}[],: 0au\xc3\xff\0".to_vec()), cut in 0usize..300,
        ) {
            for at in 0..text.len() {
                let mut changed = text.clone().into_bytes();
                changed[at] = byte;
                if let Ok((rows, envelope)) = split(&changed, &[cut], &["rows"], SplitLimits::default()) {
                    let changed = String::from_utf8(changed);
                    prop_assert!(changed.is_ok(), "not UTF-8");
                    let changed = changed.unwrap();
                    prop_assert!(serde_json::from_str::<IgnoredAny>(&changed).is_ok(), "{}", changed);
                    if envelope.found_array() {
                        prop_assert_eq!(Some(rows), dom(&changed, &["rows"]), "{}", changed);
                    } else {
                        prop_assert!(rows.is_empty());
                    }
                }
            }
        }

        #[test]
        fn garbage_never_panics(
            garbage in prop::collection::vec(prop::sample::select(b"\"\\{}[],: 01au\xc3\n".to_vec()), 0..60), cut in 0usize..60,
        ) {
            for path in [&[][..], &["a"], &["a", "u"]] {
                let limits = SplitLimits { any_value: true, row_bytes_max: 9, prefix_bytes: 3, depth_max: 2, ..SplitLimits::default() };
                let _ = split(&garbage, &[cut], path, limits);
                let _ = split(&[br#"{"a":["#, garbage.as_slice()].concat(), &[cut], path, limits);
                let _ = split(&[br#"{"a":{"u":[{"#, garbage.as_slice()].concat(), &[cut], path, limits);
            }
        }
    }

    #[test]
    fn wrong_answers_are_told_apart() {
        for (text, wanted) in [
            ("", "the response is empty"),
            (" \n ", "the response is empty"),
            ("<html>", "the response is not JSON: it begins with byte 0x3c"),
            ("null", "the response is not JSON: it begins with byte 0x6e"),
            (r#"{"rows":[]"#, "the response ends before its JSON does, after 0 rows"),
            (r#"{"rows":[{},"#, "the response ends before its JSON does, after 1 rows"),
            (r#"{"rows":[{}] x}"#, "the text around the rows is not valid JSON at line 1 column 12"),
            (r#"{"rows":[]}{"rows":[]}"#, "the member of the rows appears twice"),
            (r#"{"rows":[]}{"a":1}"#, "the text around the rows is not valid JSON at line 1 column 12"),
            (r#"{"rows":[],"rows":[{}]}"#, "the member of the rows appears twice"),
            (r#"{"rows":null,"ro\u0077s":[{}]}"#, "the member of the rows appears twice"),
            (r#"{"rows":[{}{}]}"#, "row 0 is not followed by a comma or the end of the array"),
            (r#"{"rows":[{},]}"#, "row 0 is not followed by a comma or the end of the array"),
            (r#"{"rows":[,{}]}"#, "row 0 is not followed by a comma or the end of the array"),
            (r#"{"rows":[{},5]}"#, "row 1 is not an object"),
            (r#"{"rows":[{"a" 1}]}"#, "row 0"),
        ] {
            // A second array behind the end is met as a duplicate or as garbage; both are right.
            let error = split_rows(text).unwrap_err().to_string();
            if text == r#"{"rows":[]}{"rows":[]}"# {
                assert!(error.contains("twice") || error.contains("not valid JSON"), "{error}");
            } else {
                assert_eq!(error, wanted, "{text}");
            }
        }
        let bad = split(b"{\"rows\":[{\"a\":\"\xff\"}]}", &[], &["rows"], SplitLimits::default()).unwrap_err();
        assert_eq!(bad.to_string(), "row 0 is not valid UTF-8");
        let bad = split(b"{\"x\":\"\xff\",\"rows\":[]}", &[], &["rows"], SplitLimits::default()).unwrap_err();
        assert_eq!(bad.to_string(), "the text around the rows is not valid UTF-8");
    }

    #[test]
    fn an_answer_without_the_array_says_so() {
        for text in [
            "{}",
            r#"{"other":[{"rows":[{}]}]}"#,
            r#"{"rows":null}"#,
            r#"{"rows":{"rows":[{}]}}"#,
            r#"[{"rows":[{}]}]"#,
        ] {
            let (rows, envelope) = split_rows(text).unwrap();
            assert!(!envelope.found_array() && rows.is_empty(), "{text}");
        }
    }

    #[test]
    fn the_path_is_followed_from_the_outside_in_and_left_again() {
        let under = |text: &str| {
            split(text.as_bytes(), &[], &["a", "b"], SplitLimits::default())
                .map(|(rows, envelope)| (rows.len(), envelope.found_array()))
        };
        for (text, wanted) in [
            (r#"{"a":{"b":[{}]}}"#, (1, true)),
            (r#"{"a":{"x":{"b":[1]},"b":[{},{}]}}"#, (2, true)),
            (r#"{"a":{"x":1},"b":[1]}"#, (0, false)),
            (r#"{"a":{},"a":{"b":[{}]}}"#, (1, true)),
            (r#"{"a":{"x":1},"c":{"b":[1]}}"#, (0, false)),
            (r#"{"b":{"a":[1]},"x":{"a":{"b":[1]}},"a":[{"b":[1]}]}"#, (0, false)),
            (r#"{"a":"b","b":[1]}"#, (0, false)),
            (r#"{"x":["a",{"b":[1]}],"a":{"b":[]}}"#, (0, true)),
        ] {
            assert_eq!(under(text).unwrap(), wanted, "{text}");
        }
        assert!(matches!(under(r#"{"a":{"b":[{}]},"a":{"b":[{}]}}"#), Err(SplitError::DuplicateArray)));
    }

    #[test]
    fn a_row_too_long_or_too_deep_is_reported_and_the_answer_goes_on() {
        let limits = SplitLimits { row_bytes_max: 40, prefix_bytes: 8, depth_max: 3, ..SplitLimits::default() };
        let long = format!(r#"{{"id":"a","note":"{}"}}"#, "x]}\\\"".repeat(20));
        let deep = r#"{"a":[[[1]]]}"#;
        let text = format!(r#"{{"rows":[{{"id":1}},{long},{deep},{{"id":2}}],"pager":{{}}}}"#);
        let wanted = [
            r#"{"id":1}"#.to_owned(),
            format!("oversize 8 of {}", long.len()),
            "too deep 8 of 13".to_owned(),
            r#"{"id":2}"#.to_owned(),
        ];
        for cut in 0..text.len() {
            let (rows, envelope) = split(text.as_bytes(), &[cut], &["rows"], limits).unwrap();
            assert_eq!(rows, wanted);
            assert_eq!(envelope.unfit_rows(), 2);
        }
        let (rows, _) = split(text.as_bytes(), &vec![1; text.len()], &["rows"], limits).unwrap();
        assert_eq!(rows, wanted);
        // Exactly at both limits a row still passes.
        let fits = format!(r#"{{"rows":[{{"a":[[{}]]}}]}}"#, "1".repeat(31));
        assert_eq!(split(fits.as_bytes(), &[20], &["rows"], limits).unwrap().0.len(), 1);
        let depth_127 = format!("{{\"rows\":[{{\"a\":{}{}}}]}}", "[".repeat(126), "]".repeat(126));
        assert!(split_rows(&depth_127).unwrap().0[0].starts_with("{\"a\""));
        let depth_128 = format!("{{\"rows\":[{{\"a\":{}{}}}]}}", "[".repeat(127), "]".repeat(127));
        assert!(split_rows(&depth_128).unwrap().0[0].starts_with("too deep"));
    }

    #[test]
    fn a_giant_row_is_not_kept_in_memory() {
        let limits = SplitLimits { row_bytes_max: 1 << 20, ..SplitLimits::default() };
        let mut splitter = Splitter::new(&["rows"], limits);
        let mut seen = Vec::new();
        let mut take = |row: Row<'_>| {
            if let Row::Oversize { prefix, bytes } = row {
                seen.push((prefix.len(), bytes));
            }
            Ok(())
        };
        splitter.push(br#"{"rows":[{"note":""#, &mut take).unwrap();
        for _ in 0..1000 {
            splitter.push(&[b'x'; 10_000], &mut take).unwrap();
            assert!(splitter.row.capacity() <= 4 << 20);
        }
        assert!(splitter.row.capacity() <= 128 << 10);
        splitter.push(br#""},{}]}"#, &mut take).unwrap();
        assert_eq!(splitter.finish().unwrap().rows(), 2);
        assert_eq!(seen, [(64 << 10, 10_000_011)]);
    }

    #[test]
    fn an_envelope_beyond_its_limit_is_refused_before_it_is_read() {
        let limits = SplitLimits { envelope_bytes_max: 20, ..SplitLimits::default() };
        let text = format!(r#"{{"rows":[{}],"x":"12345"}}"#, vec!["{}"; 100].join(","));
        assert!(matches!(
            split(text.as_bytes(), &[], &["rows"], limits),
            Err(SplitError::EnvelopeTooLarge { max: 20 })
        ));
        let text = format!(r#"{{"rows":[{}],"x":"1"}}"#, vec!["{}"; 100].join(","));
        assert_eq!(split(text.as_bytes(), &[], &["rows"], limits).unwrap().0.len(), 100);
    }

    #[test]
    fn a_row_is_one_line_even_when_the_answer_is_pretty_printed() {
        let pretty = "{\n  \"rows\": [\r\n    {\n      \"id\": \"a\\nb\",\r\n      \"n\": 1.10\n    }\n  ]\n}\n";
        let mut lines = Vec::new();
        let mut splitter = Splitter::new(&["rows"], SplitLimits::default());
        splitter
            .push(pretty.as_bytes(), &mut |row| {
                let Row::Whole(row) = row else { unreachable!() };
                assert!(row.has_newline());
                row.write_line(&mut lines);
                Ok(())
            })
            .unwrap();
        splitter.finish().unwrap();
        assert_eq!(String::from_utf8(lines).unwrap(), "{      \"id\": \"a\\nb\",      \"n\": 1.10    }\n");
    }

    #[test]
    fn a_head_can_be_read_and_a_callback_that_reads_none_lets_nothing_wrong_pass() {
        #[derive(Deserialize)]
        struct Head<'a> {
            id: &'a str,
        }
        let read = |text: &str| {
            let mut ids = Vec::new();
            let mut splitter = Splitter::new(&["rows"], SplitLimits::default());
            let pushed = splitter.push(text.as_bytes(), &mut |row| {
                if let Row::Whole(row) = row {
                    ids.push(row.head::<Head<'_>>()?.id.to_owned());
                }
                Ok(())
            });
            pushed.map(|()| ids)
        };
        assert_eq!(read(r#"{"rows":[{"id":"x","n":1},{"id":"y"}]}"#).unwrap(), ["x", "y"]);
        for text in [
            r#"{"rows":[{"id":"canary","n":}]}"#,
            r#"{"rows":[{"id":5,"n":"canary"}]}"#,
            r#"{"rows":[{"n":"canary"}]}"#,
        ] {
            let error = read(text).unwrap_err();
            let shown = format!("{error} {error:?} {}", std::error::Error::source(&error).unwrap());
            assert!(!shown.contains("canary") && shown.contains("line 1 column"), "{shown}");
        }
        assert!(matches!(split_rows(r#"{"rows":[{"id":"x",}]}"#), Err(SplitError::Row { index: 0, .. })));
    }

    #[test]
    fn a_callback_may_stop_and_may_look_at_the_envelope_so_far() {
        #[derive(Deserialize)]
        struct Before {
            period: String,
        }
        let text = r#"{"listGrid":{"period":"202401","rows":[{"v":1},{"v":2}]}}"#;
        let mut splitter = Splitter::new(&["listGrid", "rows"], SplitLimits::default());
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outer {
            list_grid: Before,
        }
        let stopped = splitter.push(text.as_bytes(), &mut |row| {
            let Row::Whole(row) = row else { unreachable!() };
            assert_eq!(row.envelope_so_far::<Outer>()?.list_grid.period, "202401");
            if row.index() == 1 { Err(RowFault::Stopped("enough".into())) } else { Ok(()) }
        });
        assert!(matches!(stopped, Err(SplitError::Row { index: 1, source: RowFault::Stopped(_) })));
        assert!(!format!("{splitter:?}").contains("202401"));
    }
}
