//! What indicatif draws on: each frame leaves in one write, and the cursor rests on the line below the block.
//!
//! One write is still read in pieces. So a frame stands between the marks of synchronized output: a terminal that knows
//! them shows it whole or not yet, the others pass over them.
//!
//! By itself indicatif fills every line with blanks up to the edge and leaves the cursor there. The `^C` that the terminal
//! echoes then falls onto the next line, and every later frame is off by one: half a block stays on the screen.

use std::{
    fmt, io,
    io::Write,
    sync::{Mutex, PoisonError},
};

use indicatif::TermLike;

/// From here on the terminal shows nothing new (private mode 2026) …
const FRAME_BEGINS: &str = "\x1b[?2026h";
/// … until here.
const FRAME_ENDS: &str = "\x1b[?2026l";

/// Columns and lines of a terminal.
type Size = fn() -> (u16, u16);

/// The terminal as indicatif draws on it.
pub(super) struct Canvas<W> {
    /// How large it is.
    size: Size,
    /// The frame that is being drawn.
    frame: Mutex<Frame<W>>,
}

/// The frame that is being drawn.
#[derive(Default)]
struct Frame<W> {
    /// Where to.
    out: W,
    /// What has been drawn of it.
    text: String,
    /// Whether it has a line.
    has_lines: bool,
    /// Whether the cursor rests below the block.
    is_parked: bool,
}

impl<W: Write> Canvas<W> {
    /// A canvas on a terminal.
    pub(super) fn new(out: W, size: Size) -> Self {
        Canvas { size, frame: Mutex::new(Frame { out, text: String::new(), has_lines: false, is_parked: false }) }
    }

    /// Draws a piece of a frame.
    fn draw(&self, draw: impl FnOnce(&mut Frame<W>)) -> io::Result<()> {
        draw(&mut self.frame.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

impl<W: Write> Frame<W> {
    /// Moves the cursor.
    fn go(&mut self, lines: usize, direction: char) {
        if lines > 0 {
            self.text.push_str(&format!("\x1b[{lines}{direction}"));
        }
    }
}

impl<W> fmt::Debug for Canvas<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canvas").finish_non_exhaustive()
    }
}

impl<W: Write + Send> TermLike for Canvas<W> {
    fn width(&self) -> u16 {
        (self.size)().0
    }

    fn height(&self) -> u16 {
        // One line is the cursor's.
        (self.size)().1.saturating_sub(1)
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.draw(|frame| {
            if std::mem::take(&mut frame.is_parked) {
                // What was typed there meanwhile goes.
                frame.text.push_str("\r\x1b[K");
                frame.go(1, 'A');
            }
            frame.go(lines, 'A');
        })
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.draw(|frame| frame.go(lines, 'B'))
    }

    fn move_cursor_right(&self, columns: usize) -> io::Result<()> {
        self.draw(|frame| frame.go(columns, 'C'))
    }

    fn move_cursor_left(&self, columns: usize) -> io::Result<()> {
        self.draw(|frame| frame.go(columns, 'D'))
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(|frame| {
            frame.text.push_str(text);
            frame.text.push_str("\r\n");
        })
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(|frame| {
            // The block's lines end before the edge and never in a blank: blanks alone are what a line is filled up with.
            if !text.is_empty() && text.bytes().all(|byte| byte == b' ') {
                frame.text.push_str("\x1b[K\r\n");
                frame.has_lines = true;
            } else {
                frame.text.push_str(text);
            }
        })
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw(|frame| frame.text.push_str("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let mut frame = self.frame.lock().unwrap_or_else(PoisonError::into_inner);
        frame.is_parked |= std::mem::take(&mut frame.has_lines);
        let text = std::mem::take(&mut frame.text);
        frame.out.write_all([FRAME_BEGINS, &text, FRAME_ENDS].concat().as_bytes())?;
        frame.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As indicatif does it.
    fn draw(canvas: &Canvas<Vec<u8>>, lines: &[&str], lines_before: usize) -> String {
        canvas.move_cursor_up(lines_before.saturating_sub(1)).unwrap();
        canvas.write_str("\r").unwrap();
        for line in lines {
            canvas.write_str(line).unwrap();
            canvas.write_str(&" ".repeat(20 - line.len())).unwrap();
        }
        canvas.flush().unwrap();
        let mut frame = canvas.frame.lock().unwrap();
        let drawn = String::from_utf8(std::mem::take(&mut frame.out)).unwrap();
        drawn.strip_prefix(FRAME_BEGINS).and_then(|drawn| drawn.strip_suffix(FRAME_ENDS)).unwrap().to_owned()
    }

    #[test]
    fn a_frame_begins_where_the_one_before_began_and_ends_below_itself() {
        let canvas = Canvas::new(Vec::new(), || (20, 10));
        assert_eq!(draw(&canvas, &["one", ""], 0), "\rone\x1b[K\r\n\x1b[K\r\n");
        assert_eq!(draw(&canvas, &["two", "x"], 2), "\r\x1b[K\x1b[1A\x1b[1A\rtwo\x1b[K\r\nx\x1b[K\r\n");
        // Taken away: the cursor is where the block began, and the next frame begins there.
        assert_eq!(draw(&canvas, &[], 2), "\r\x1b[K\x1b[1A\x1b[1A\r");
        assert_eq!(draw(&canvas, &["new"], 0), "\rnew\x1b[K\r\n");
    }
}
