//! Passes over the answers that come before the response: 100, 102, 103 (RFC 9110 §15.2).
//!
//! A server or proxy may send any number of them, and awc would take the first for the end of the matter. They have a
//! head and no body, so they end with their first empty line. 101 is no such answer: it is the last word on the
//! connection, and as we never ask to switch, a mistake.

/// Start of every interim status line; the minor version does not count.
const BEGINNING: &[u8] = b"HTTP/1.x 1";
/// As much as tells an interim answer from another.
const STATUS_BYTES: usize = b"HTTP/1.1 103".len();

/// Looks at the beginning of a response, piece by piece.
#[derive(Debug, Default)]
pub(crate) struct InterimFilter {
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// The first bytes of a response, not yet told apart.
    Beginning(Vec<u8>),
    /// In the head of an interim answer: bytes of the present line, carriage returns aside.
    Interim { line_bytes: usize },
    /// In the response itself.
    Through,
}

impl Default for Place {
    fn default() -> Self {
        Place::Beginning(Vec::new())
    }
}

impl InterimFilter {
    /// Whether everything that comes belongs to the response.
    pub(crate) fn is_through(&self) -> bool {
        matches!(self.place, Place::Through)
    }

    /// Takes the next bytes of the connection and appends to `out` what belongs to the response.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while let Some((&byte, behind)) = rest.split_first() {
            match &mut self.place {
                Place::Through => {
                    out.extend_from_slice(rest);
                    return;
                }
                Place::Beginning(kept) => {
                    kept.push(byte);
                    rest = behind;
                    if !may_be_interim(kept) {
                        out.append(kept);
                        self.place = Place::Through;
                    } else if kept.len() == STATUS_BYTES {
                        self.place = Place::Interim { line_bytes: kept.len() };
                    }
                }
                Place::Interim { line_bytes } => {
                    rest = behind;
                    match byte {
                        b'\n' if *line_bytes == 0 => self.place = Place::default(),
                        b'\n' => *line_bytes = 0,
                        b'\r' => {}
                        _ => *line_bytes += 1,
                    }
                }
            }
        }
    }

    /// The connection has ended: appends what was held back.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) {
        if let Place::Beginning(kept) = &mut self.place {
            out.append(kept);
        }
    }
}

/// Whether a response that begins so may be interim; certain once it has [`STATUS_BYTES`].
fn may_be_interim(kept: &[u8]) -> bool {
    let begins = kept.iter().zip(BEGINNING).all(|(byte, wanted)| match wanted {
        b'x' => byte.is_ascii_digit(),
        _ => byte == wanted,
    });
    begins && kept.iter().skip(BEGINNING.len()).all(u8::is_ascii_digit) && !kept.ends_with(b" 101")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn filtered(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut filter, mut out) = (InterimFilter::default(), Vec::new());
        for piece in pieces {
            filter.push(piece, &mut out);
        }
        filter.end(&mut out);
        out
    }

    #[test]
    fn only_interim_answers_are_passed_over() {
        for (came, left) in [
            ("HTTP/1.1 200 OK\r\n\r\n[1]", "HTTP/1.1 200 OK\r\n\r\n[1]"),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"),
            ("HTTP/1.0 103\nA: b\n\nHTTP/1.1 103 x\r\na: b\r\n\r\nHTTP/1.1 404 x", "HTTP/1.1 404 x"),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\n\r\n"),
            ("HTTP/1.1 1000", ""),
            ("HTTP/1.1 10", "HTTP/1.1 10"),
            ("HTTP/1.1 1x0 y", "HTTP/1.1 1x0 y"),
            ("HTTP/2.0 103\r\n\r\n", "HTTP/2.0 103\r\n\r\n"),
            ("HTTP/1.1 100 Continue\r\n", ""),
            ("<html>", "<html>"),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8(filtered(&[came.as_bytes()])).unwrap(), left, "{came:?}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(
            before in prop::collection::vec(prop::sample::select(vec![
                "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\nB: \r\n\r\n", "HTTP/1.0 102\n\n",
            ]), 0..4),
            answer in prop::sample::select(vec!["HTTP/1.1 200 OK\r\n\r\n1", "HTTP/1.1 101 x\r\n\r\n", "garbage HTTP/1.1 100\r\n\r\n", "H"]),
            cuts in prop::collection::vec(0usize..200, 0..6),
        ) {
            let all = format!("{}{answer}", before.concat());
            let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(all.len())).collect();
            ends.push(all.len());
            ends.sort_unstable();
            let mut from = 0;
            let pieces: Vec<&[u8]> = ends.into_iter().map(|end| {
                let piece = &all.as_bytes()[from..end];
                from = end;
                piece
            }).collect();
            prop_assert_eq!(String::from_utf8(filtered(&pieces)).unwrap(), answer);
        }

        #[test]
        fn nothing_but_interim_heads_is_ever_lost(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // Random bytes are no interim answer.
            prop_assume!(!bytes.starts_with(b"HTTP/1."));
            prop_assert_eq!(filtered(&[&bytes]), bytes);
        }
    }
}
