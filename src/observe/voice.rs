//! What is said to people leaves on a thread of its own: nobody who speaks waits for somebody who reads.
//!
//! ```text
//! log, progress, report ──say──▶ queue (bounded) ──▶ thread ──▶ stderr
//! ```
//!
//! A pipe that nobody reads, a terminal that is stopped, a disk that hangs: all of them hold up this thread alone. What
//! does not fit into the queue meanwhile is counted and left out, progress and details first; once it flows again, a line
//! says how much was left out. The order of what is said is kept.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Bytes that wait, before details are left out.
const DETAIL_BYTES_MAX: usize = 256 * 1024;
/// Bytes that wait, before warnings and errors are left out too.
const BYTES_MAX: usize = 512 * 1024;
/// Bytes of one line; what is longer is cut.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Bytes that are written at a time.
const BATCH_BYTES: usize = 32 * 1024;

/// The thread's name.
pub(super) const THREAD: &str = "stderr";

/// How much it would matter if a line were not said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Weight {
    /// Progress, and lines below a warning.
    Detail,
    /// Warnings, errors, and what a command ends with.
    Important,
}

/// What happens to the block on a terminal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Update {
    /// It is drawn in place of the one before.
    Draw(String),
    /// It goes away.
    Clear,
}

/// What the thread is to show next.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Show {
    /// The block changes.
    Block(Update),
    /// Whole lines.
    Lines(Vec<u8>),
}

/// How many lines were left out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct LeftOut {
    /// Progress, and lines below a warning.
    pub(super) details: u64,
    /// Warnings and errors.
    pub(super) important: u64,
}

/// What waits to be shown.
#[derive(Debug, Default)]
struct Queue {
    /// Lines with their line ends.
    lines: VecDeque<Vec<u8>>,
    /// Their bytes.
    bytes: usize,
    /// The newest state of the block; older ones nobody needs to see.
    block: Option<Update>,
    /// What did not fit since it was last told.
    left_out: LeftOut,
    /// Whether the thread is showing something.
    is_showing: bool,
    /// Nothing comes any more.
    is_closed: bool,
}

impl Queue {
    /// Whether there is nothing to show.
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.block.is_none() && self.left_out == LeftOut::default()
    }

    /// Takes a line, or counts it where it does not fit.
    fn push(&mut self, weight: Weight, mut line: Vec<u8>) {
        if line.len() > LINE_BYTES_MAX {
            line.truncate(LINE_BYTES_MAX - 1);
            line.push(b'\n');
        }
        let (limit, left_out) = match weight {
            Weight::Detail => (DETAIL_BYTES_MAX, &mut self.left_out.details),
            Weight::Important => (BYTES_MAX, &mut self.left_out.important),
        };
        if self.bytes + line.len() > limit {
            *left_out += 1;
            return;
        }
        self.bytes += line.len();
        self.lines.push_back(line);
    }

    /// The next lines in one piece.
    fn batch(&mut self) -> Vec<u8> {
        let mut batch = Vec::new();
        while batch.len() < BATCH_BYTES
            && let Some(line) = self.lines.pop_front()
        {
            self.bytes -= line.len();
            batch.extend_from_slice(&line);
        }
        batch
    }
}

/// The queue, and who waits for a change of it.
#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes to stderr on a thread of its own.
#[derive(Debug)]
pub(super) struct Voice {
    shared: Arc<Shared>,
}

impl Voice {
    /// A voice that shows with `show`, and words what was left out with `tell`. `show` may block for ever.
    ///
    /// Where no thread can be had, nothing is shown: a harvest needs no voice.
    pub(super) fn new(
        show: impl FnMut(Show) + Send + 'static,
        tell: impl Fn(LeftOut) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let shared: Arc<Shared> = Arc::default();
        let of_thread = Arc::clone(&shared);
        let spawned = thread::Builder::new().name(THREAD.to_owned()).spawn(move || speak(&of_thread, show, tell));
        if spawned.is_err() {
            shared.lock().is_closed = true;
        }
        Voice { shared }
    }

    /// Says a line, which has its line end. Never waits.
    pub(super) fn say(&self, weight: Weight, line: Vec<u8>) {
        let mut queue = self.shared.lock();
        if !queue.is_closed {
            queue.push(weight, line);
            self.shared.changed.notify_all();
        }
    }

    /// Changes the block. Never waits.
    pub(super) fn block(&self, update: Update) {
        let mut queue = self.shared.lock();
        if !queue.is_closed {
            queue.block = Some(update);
            self.shared.changed.notify_all();
        }
    }

    /// Waits until everything that was said is shown, `limit` at most.
    pub(super) fn flush(&self, limit: Duration) {
        let is_pending = |queue: &mut Queue| !queue.is_closed && (queue.is_showing || !queue.is_empty());
        // Too late is as good as shown: nobody reads.
        drop(self.shared.changed.wait_timeout_while(self.shared.lock(), limit, is_pending));
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.changed.notify_all();
    }
}

/// The thread: shows what comes until nothing comes any more.
fn speak(shared: &Shared, mut show: impl FnMut(Show), tell: impl Fn(LeftOut) -> Vec<u8>) {
    loop {
        let (block, mut lines, left_out) = {
            let mut queue = shared.lock();
            queue.is_showing = false;
            shared.changed.notify_all();
            let is_idle = |queue: &mut Queue| queue.is_empty() && !queue.is_closed;
            let mut queue = shared.changed.wait_while(queue, is_idle).unwrap_or_else(PoisonError::into_inner);
            if queue.is_empty() {
                return;
            }
            queue.is_showing = true;
            let (block, lines) = (queue.block.take(), queue.batch());
            // What was left out came behind everything that had still found room.
            let is_last = queue.lines.is_empty();
            (block, lines, if is_last { mem::take(&mut queue.left_out) } else { LeftOut::default() })
        };
        if left_out != LeftOut::default() {
            lines.extend_from_slice(&tell(left_out));
        }
        // Lines stand above the block, and what is said after its end below it: so the block is first in either case.
        if let Some(update) = block {
            show(Show::Block(update));
        }
        if !lines.is_empty() {
            show(Show::Lines(lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    fn tell(left_out: LeftOut) -> Vec<u8> {
        format!("left out: {} and {}\n", left_out.details, left_out.important).into_bytes()
    }

    /// A voice whose listener takes only as much as it is let to, and what it has taken.
    fn held() -> (Voice, mpsc::Sender<()>, mpsc::Receiver<Show>) {
        let (go_on, gate) = mpsc::channel::<()>();
        let (showing, shown) = mpsc::channel();
        let show = move |what| {
            // Without a sender there is no more holding.
            let _ = gate.recv();
            let _ = showing.send(what);
        };
        (Voice::new(show, tell), go_on, shown)
    }

    fn text(shown: impl IntoIterator<Item = Show>) -> String {
        let bytes = shown.into_iter().flat_map(|what| match what {
            Show::Lines(bytes) => bytes,
            Show::Block(update) => format!("{update:?}\n").into_bytes(),
        });
        String::from_utf8(bytes.collect()).unwrap()
    }

    #[test]
    fn nobody_who_speaks_waits_for_a_reader_and_warnings_outlast_details() {
        let (voice, go_on, shown) = held();
        let line = |name: &str, number: usize| format!("{name} {number} {}\n", "x".repeat(1_000)).into_bytes();
        for number in 0..1_000 {
            voice.say(Weight::Detail, line("detail", number));
        }
        for number in 0..100 {
            voice.say(Weight::Important, line("warning", number));
        }
        voice.flush(Duration::from_millis(10));
        drop(go_on);
        voice.flush(LIMIT);
        drop(voice);
        let text = text(shown);
        let warnings = text.lines().filter(|line| line.starts_with("warning")).count();
        let details = text.lines().filter(|line| line.starts_with("detail")).count();
        assert_eq!(warnings, 100);
        assert!((200..400).contains(&details), "{details}");
        let told = text.lines().last().unwrap();
        assert_eq!(told, format!("left out: {} and 0", 1_000 - details));
    }

    #[test]
    fn warnings_are_bounded_too_and_counted() {
        let (voice, go_on, shown) = held();
        for number in 0..100_000 {
            voice.say(Weight::Important, format!("warning {number} of many\n").into_bytes());
        }
        drop(go_on);
        voice.flush(LIMIT);
        voice.say(Weight::Important, b"the end\n".to_vec());
        voice.flush(LIMIT);
        drop(voice);
        let text = text(shown);
        let kept = text.lines().filter(|line| line.starts_with("warning")).count();
        assert!(text.len() < BYTES_MAX + BATCH_BYTES + LINE_BYTES_MAX, "{}", text.len());
        assert!(text.ends_with(&format!("left out: 0 and {}\nthe end\n", 100_000 - kept)), "{kept}");
    }

    #[test]
    fn of_the_block_only_the_newest_state_is_shown_and_lines_keep_their_order() {
        let (voice, go_on, shown) = held();
        voice.say(Weight::Detail, b"one\n".to_vec());
        voice.block(Update::Draw("old".to_owned()));
        voice.block(Update::Draw("new".to_owned()));
        voice.block(Update::Clear);
        voice.say(Weight::Important, b"two\n".to_vec());
        voice.say(Weight::Detail, b"x".repeat(100_000));
        drop(go_on);
        voice.flush(LIMIT);
        drop(voice);
        let text = text(shown);
        assert!(!text.contains("old"), "{text}");
        let places: Vec<_> = ["one\n", "two\n", "xx"].iter().map(|words| text.find(words).unwrap()).collect();
        assert!(places.is_sorted() && text.find("Clear") < text.find("two"), "{text}");
        assert!(text.lines().all(|line| line.len() <= LINE_BYTES_MAX));
    }
}
