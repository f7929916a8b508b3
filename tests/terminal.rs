//! On a terminal: one calm block that is redrawn in place, never torn, at every width; the report stays.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    num::NonZero,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use dhis2_stand_in::{Fault, FaultRule, Latency, Match, StandIn};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use vt100::Parser;

use crate::support::{Place, side_by_side, stand_in, wait_until};

const UNITS: &str = "[[extract]]\nkind = \"metadata\"\ncollections = [\"organisationUnits\"]\npage_size = 50";
/// Lines of the terminal: fewer than a run prints, so that it scrolls.
const ROWS: u16 = 14;
/// What only the block has in it.
const BAR: [char; 2] = ['█', '░'];

/// Where a frame ends for a terminal: what stands before that is not yet to be looked at.
const FRAME_ENDS: &[u8] = b"\x1b[?2026l";

/// What has been seen on the terminal.
struct Seen {
    /// The terminal as a person sees it.
    parser: Parser,
    /// Every byte.
    raw: Vec<u8>,
    /// How much of it has been shown.
    shown_bytes: usize,
    /// The most bars that were ever on the screen at one time.
    bars_max: usize,
    /// Whether any line with a bar ran over the edge.
    wrapped: bool,
    /// Blocks that were seen, each different from the one before.
    blocks: Vec<Vec<String>>,
}

impl Seen {
    /// The lines that are on the screen.
    fn screen(&self) -> Vec<String> {
        let (_, columns) = self.parser.screen().size();
        self.parser.screen().rows(0, columns.get()).map(|line| line.trim_end().to_owned()).collect()
    }

    /// Everything that has stayed, what has scrolled away too.
    fn all(&mut self) -> String {
        let mut lines = Vec::new();
        self.parser.screen_mut().set_scrollback(usize::MAX);
        let mut behind = self.parser.screen().scrollback();
        while behind > 0 {
            lines.push(self.screen()[0].clone());
            behind -= 1;
            self.parser.screen_mut().set_scrollback(behind);
        }
        lines.extend(self.screen());
        lines.join("\n")
    }

    /// Takes what the program has written, and looks at every frame as soon as it is whole.
    fn take(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        while let Some(end) =
            self.raw[self.shown_bytes..].windows(FRAME_ENDS.len()).position(|window| window == FRAME_ENDS)
        {
            self.show(self.shown_bytes + end + FRAME_ENDS.len());
            self.look();
        }
    }

    /// Shows what has been written up to a byte.
    fn show(&mut self, end_bytes: usize) {
        self.parser.process(&self.raw[self.shown_bytes..end_bytes]);
        self.shown_bytes = end_bytes;
    }

    /// Looks at the screen.
    fn look(&mut self) {
        let screen = self.screen();
        let bars: Vec<usize> = (0..screen.len()).filter(|row| screen[*row].contains(BAR)).collect();
        self.bars_max = self.bars_max.max(bars.len());
        for row in bars {
            self.wrapped |= self.parser.screen().row_wrapped(u16::try_from(row).unwrap());
            let block: Vec<String> = screen[row..].iter().take(4).cloned().collect();
            if self.blocks.last() != Some(&block) {
                self.blocks.push(block);
            }
        }
    }
}

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keyboard: File,
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
}

impl Terminal {
    /// Starts the program. `setsid --ctty` makes the terminal its own, so that Ctrl-C is a signal.
    fn start(place: &Place, columns: u16, arguments: &[&str], environment: &[(&str, &str)]) -> Terminal {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let size = Winsize { ws_row: ROWS, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let theirs = || {
            let file = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
            Stdio::from(OwnedFd::from(file))
        };
        let harvester = place.harvester(arguments);
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(harvester.get_program()).args(harvester.get_args()).current_dir(place.path());
        command.env_clear().env("TERM", "xterm-256color");
        for (name, value) in harvester.get_envs() {
            command.env(name, value.unwrap());
        }
        command.envs(environment.iter().copied());
        let child = command.stdin(theirs()).stdout(theirs()).stderr(theirs()).spawn().unwrap();
        // The command holds the other end open: nobody would hear that the program has ended.
        drop(command);
        let keyboard = File::from(ours);
        let mut screen = keyboard.try_clone().unwrap();
        let parser = Parser::new(NonZero::new(ROWS).unwrap(), NonZero::new(columns).unwrap(), 10_000);
        let seen = Seen { parser, raw: Vec::new(), shown_bytes: 0, bars_max: 0, wrapped: false, blocks: Vec::new() };
        let seen = Arc::new(Mutex::new(seen));
        let takes = Arc::clone(&seen);
        let reader = thread::spawn(move || {
            // As little at a time as a busy machine hands over: a frame never comes whole.
            let mut bytes = [0; 16];
            // The end of a terminal is an error (EIO).
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                takes.lock().unwrap().take(&bytes[..length]);
            }
        });
        Terminal { child, keyboard, seen, reader }
    }

    /// Waits until a block has shown rows.
    fn wait_for_block(&self) -> bool {
        wait_until(|| self.seen.lock().unwrap().blocks.len() >= 3)
    }

    /// Waits for the end; the exit code and what has been seen.
    fn end(mut self) -> (i32, Seen) {
        let code = self.child.wait().unwrap().code().unwrap();
        self.reader.join().unwrap();
        let seen = Arc::try_unwrap(self.seen).unwrap_or_else(|_| panic!("the reader is gone"));
        let mut seen = seen.into_inner().unwrap();
        seen.show(seen.raw.len());
        (code, seen)
    }
}

/// A server on which a run lasts some seconds, and fails now and then: log lines come above the block.
fn slow_and_faulty() -> StandIn {
    let faults = FaultRule::on(Match::every(15)).act(Fault::status(500));
    stand_in().org_units(2_000).latency(Latency::Constant(Duration::from_millis(60))).fault(faults).start().unwrap()
}

#[test]
fn the_block_is_one_at_every_width_and_only_log_and_report_stay() {
    side_by_side(vec![40, 80, 120], 3, |columns| {
        let server = slow_and_faulty();
        let place = Place::new();
        place.job(server.url(), "in_flight = 2", UNITS);
        let terminal = Terminal::start(&place, columns, &["run", "job.toml"], &[]);
        let (code, mut seen) = terminal.end();
        let all = seen.all();
        assert_eq!(code, 0, "{columns}: {all}");
        assert!(seen.blocks.len() >= 3, "{columns}: only {} blocks", seen.blocks.len());
        assert_eq!(seen.bars_max, 1, "{columns}: more than one block at a time");
        assert!(!seen.wrapped, "{columns}: a line of the block is too long");
        for block in &seen.blocks {
            assert!(block[0].starts_with("job  ") && block[0].trim_end().ends_with('%'), "{columns}: {block:#?}");
            assert!(block[1].contains("rows"), "{columns}: {block:#?}");
        }
        // Nothing of the block is left, the failures are told, and each line of the report stands by itself.
        assert!(!all.contains(BAR) && !all.contains(" · "), "{columns}: {all}");
        let unwrapped = all.replace('\n', "");
        assert!(unwrapped.contains("page failed; will retry"), "{columns}: {all}");
        let report = all.lines().position(|line| line.starts_with("job: complete (")).unwrap();
        let report: Vec<&str> = all.lines().skip(report).collect();
        assert!(report.iter().any(|line| line.starts_with("organisationUnits  2 000")), "{columns}: {all}");
        assert!(report.iter().any(|line| line.starts_with("next: ")), "{columns}: {all}");
        // The cursor is there again.
        assert!(!seen.parser.screen().hide_cursor(), "{columns}: the cursor is hidden");
        place.assert_exact(&server, "organisationUnits", "on a terminal");
    });
}

#[test]
fn ctrl_c_on_the_keyboard_drains_and_leaves_the_terminal_as_it_was() {
    side_by_side(vec![1, 2], 2, |times| {
        let server = slow_and_faulty();
        let place = Place::new();
        place.job(server.url(), "in_flight = 2", UNITS);
        let mut terminal = Terminal::start(&place, 80, &["run", "job.toml"], &[]);
        assert!(terminal.wait_for_block(), "no block");
        if times == 2 {
            server.set_latency(Latency::Constant(Duration::from_secs(300)));
            // Both connections have got an answer since, and now wait for one that does not come.
            let before = server.ledger().count();
            assert!(wait_until(|| server.ledger().count() >= before + 2));
        }
        terminal.keyboard.write_all(b"\x03").unwrap();
        if times == 2 {
            let is_stopping =
                || terminal.seen.lock().unwrap().screen().iter().any(|line| line.contains("finishing the pages"));
            assert!(wait_until(is_stopping), "{:#?}", terminal.seen.lock().unwrap().screen());
            terminal.keyboard.write_all(b"\x03").unwrap();
        }
        let (code, mut seen) = terminal.end();
        let all = seen.all();
        assert_eq!(code, 130, "{all}");
        assert!(!all.contains(BAR) && !all.contains(" · "), "{all}");
        assert!(!seen.parser.screen().hide_cursor(), "the cursor is hidden");
        if times == 1 {
            assert!(all.contains("run the same command to resume: harvester run job.toml"), "{all}");
        }
        server.set_latency(Latency::None);
        place.run().assert_code(0, "the same command");
        place.assert_exact(&server, "organisationUnits", "the same command");
    });
}

#[test]
fn colours_and_bars_are_left_out_where_nobody_wants_them() {
    let coloured = |raw: &[u8]| {
        let text = String::from_utf8_lossy(raw).into_owned();
        // Whether any sequence sets a colour or a weight.
        text.split("\x1b[").skip(1).any(|rest| {
            let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(0);
            rest[end..].starts_with('m') && !matches!(&rest[..end], "" | "0")
        })
    };
    /// Flags and a variable, and whether there are colours and a block then.
    type Case = (&'static str, &'static [&'static str], (&'static str, &'static str), [bool; 2]);
    let cases: Vec<Case> = vec![
        ("as it comes", &[], ("LANG", "C"), [true, true]),
        ("NO_COLOR", &[], ("NO_COLOR", "1"), [false, true]),
        ("a dumb terminal", &[], ("TERM", "dumb"), [false, false]),
        ("plain", &["--progress", "plain"], ("NO_COLOR", "1"), [false, false]),
        ("quiet", &["-q"], ("NO_COLOR", "1"), [false, false]),
        ("JSON", &["--log-format", "json"], ("LANG", "C"), [false, false]),
    ];
    side_by_side(cases, 3, |(what, flags, variable, [has_colours, has_block])| {
        let server = slow_and_faulty();
        let place = Place::new();
        place.job(server.url(), "in_flight = 2", UNITS);
        let typed = [&["run", "job.toml"], flags].concat();
        let (code, mut seen) = Terminal::start(&place, 100, &typed, &[variable]).end();
        assert_eq!(code, 0, "{what}: {}", seen.all());
        assert_eq!(coloured(&seen.raw), has_colours, "{what}: {}", String::from_utf8_lossy(&seen.raw));
        assert_eq!(!seen.blocks.is_empty(), has_block, "{what}: {}", seen.all());
        if !has_block && !has_colours {
            assert!(!seen.raw.contains(&0x1b), "{what}: {}", String::from_utf8_lossy(&seen.raw));
        }
        if what == "JSON" {
            let text = String::from_utf8_lossy(&seen.raw).into_owned();
            for line in text.lines() {
                assert!(
                    serde_json::from_str::<serde_json::Value>(line).is_ok_and(|line| line["level"].is_string()),
                    "{line}"
                );
            }
        }
    });
}
