//! Rows become the bytes of a file: one encoder for each format.
//!
//! ```text
//! pages ─▶ order ─▶ deduplicate ─▶ encode ─▶ hash ─▶ <file>.part
//! ```
//!
//! A format is a file beside this one that is an [`Encode`], and a variant of [`FileFormat`]. A compression is an encoder that
//! hands its rows to another one and packs what comes of them.

use harvester_actors::failure::Failure;

use super::names;

/// Formats of finished files.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FileFormat {
    /// One JSON object per line: the server's own bytes.
    #[default]
    Ndjson,
}

impl FileFormat {
    /// What follows a stream's name in its file's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            FileFormat::Ndjson => ".ndjson",
        }
    }

    /// Name of a stream's finished file, relative to the sink's directory.
    pub(super) fn file_name(self, stream: &str) -> String {
        names::file_stem(stream) + self.suffix()
    }

    /// A new encoder.
    pub(super) fn encoder(self) -> Box<dyn Encode> {
        match self {
            FileFormat::Ndjson => Box::new(Ndjson),
        }
    }
}

/// Turns the rows of one file into its bytes. It sees each row once, in their order.
pub(super) trait Encode {
    /// Appends a row to `out`. `row` is one line of JSON without its line end.
    ///
    /// # Errors
    /// `Local` for a row that has no form in this format.
    fn row(&mut self, row: &[u8], out: &mut Vec<u8>) -> Result<(), Failure>;

    /// Appends what ends the file.
    ///
    /// # Errors
    /// As [`row`](Encode::row).
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Failure>;
}

/// One JSON object per line.
struct Ndjson;

impl Encode for Ndjson {
    fn row(&mut self, row: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        out.extend_from_slice(row);
        out.push(b'\n');
        Ok(())
    }

    fn finish(&mut self, _: &mut Vec<u8>) -> Result<(), Failure> {
        Ok(())
    }
}
