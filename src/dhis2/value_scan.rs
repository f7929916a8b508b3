//! Follows one JSON value to its end, over any chunk borders, and checks its syntax on the way (RFC 8259).
//!
//! One pass over the bytes says where a row ends, that it is JSON, and where its key stands. Nothing is copied, nothing
//! decoded: a text is known by its place. UTF-8 is not looked at, and as in serde_json a text may hold half a surrogate.

use std::ops::Range;

/// Tokens that may come next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Expect {
    Value,
    /// Behind `[`.
    ValueOrEnd,
    /// Behind `{`.
    NameOrEnd,
    /// Behind a comma in an object.
    Name,
    Colon,
    /// Behind a value. Outside of all levels: nothing.
    CommaOrEnd,
    Text(TextOf),
    /// Behind a backslash.
    Escape(TextOf),
    /// So many digits behind `\u`.
    Hex(TextOf, u8),
    Number(Number),
    /// The rest of a word, of which so many bytes have been read.
    Word(Word, u8),
    /// Too deep to be checked: brackets and texts are followed, no more.
    Loose {
        in_text: bool,
        escaped: bool,
    },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TextOf {
    Name,
    Value,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Word {
    True,
    False,
    Null,
}

impl Word {
    fn text(self) -> &'static [u8] {
        match self {
            Word::True => b"true",
            Word::False => b"false",
            Word::Null => b"null",
        }
    }
}

/// State inside a number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Number {
    Minus,
    /// Nothing of the whole part stands behind a zero.
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    /// The state after this byte; none when it does not belong to the number.
    fn with(self, byte: u8) -> Option<Number> {
        Some(match (self, byte) {
            (Number::Minus, b'0') => Number::Zero,
            (Number::Minus | Number::Whole, b'0'..=b'9') => Number::Whole,
            (Number::Zero | Number::Whole, b'.') => Number::Point,
            (Number::Point | Number::Fraction, b'0'..=b'9') => Number::Fraction,
            (Number::Zero | Number::Whole | Number::Fraction, b'e' | b'E') => Number::Exponent,
            (Number::Exponent, b'+' | b'-') => Number::ExponentSign,
            (Number::Exponent | Number::ExponentSign | Number::ExponentDigits, b'0'..=b'9') => Number::ExponentDigits,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Number::Zero | Number::Whole | Number::Fraction | Number::ExponentDigits)
    }
}

/// Levels of nesting that can be checked: one bit each.
const DEPTH_MAX: u32 = u128::BITS;

/// Scans one JSON value, in chunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ValueScan {
    expect: Expect,
    /// Levels that are open.
    depth: u32,
    /// Deeper levels are followed, not checked.
    depth_max: u32,
    /// Which open levels are objects; the innermost is the lowest bit.
    objects: u128,
    is_too_deep: bool,
    has_newline: bool,
    /// Bytes that earlier chunks brought.
    bytes_before: usize,
    /// Start of the last text, in bytes from the value's first.
    text_from: usize,
    /// Whether that text has an escape.
    is_escaped: bool,
    /// The last name at the top was the key's and began here, in bytes from the value's first, and no text has ended as
    /// its value.
    key_name: Option<usize>,
    /// Position of the key; or the name of a key that is not a text, or the end of a second one.
    key: Option<Result<Key, usize>>,
}

/// Position of the key in its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    from: usize,
    to: usize,
    /// Whether it has an escape.
    pub(crate) is_escaped: bool,
}

impl Key {
    /// The bytes between its quotes.
    pub(crate) fn inside(self) -> Range<usize> {
        self.from..self.to
    }

    /// The bytes of its text, the quotes too.
    pub(crate) fn quoted(self) -> Range<usize> {
        self.from - 1..self.to + 1
    }
}

impl ValueScan {
    /// A scan of one value, whose levels are checked down to `depth_max` (at most 128).
    pub(crate) fn new(depth_max: u32) -> Self {
        ValueScan {
            expect: Expect::Value,
            depth: 0,
            depth_max: depth_max.min(DEPTH_MAX),
            objects: 0,
            is_too_deep: false,
            has_newline: false,
            bytes_before: 0,
            text_from: 0,
            is_escaped: false,
            key_name: None,
            key: None,
        }
    }

    /// Whether a level was too deep: what is below it was followed to its end and not checked.
    pub(crate) fn is_too_deep(&self) -> bool {
        self.is_too_deep
    }

    /// Whether the value spreads over several lines. In a text there is no line break, only between tokens.
    pub(crate) fn has_newline(&self) -> bool {
        self.has_newline
    }

    /// Position of the key, if it is there; or the byte, from the value's first, at which it is not what a key must
    /// be: a text that is there once.
    pub(crate) fn key(&self) -> Option<Result<Key, usize>> {
        self.key_name.map(Err).or(self.key)
    }

    /// End of the value, exclusive, if it ends in this chunk. `before` is what earlier chunks
    /// brought of it, `name` the member at the top of the value that is its key.
    ///
    /// # Errors
    /// The value is not JSON, as can be seen at this byte of the chunk.
    pub(crate) fn find_end(
        &mut self,
        chunk: &[u8],
        from: usize,
        before: &[u8],
        name: Option<&str>,
    ) -> Result<Option<usize>, usize> {
        let mut at = from;
        while let Some(&byte) = chunk.get(at) {
            // What comes most often, a text, goes on below; whatever else is done here.
            let of = match self.expect {
                Expect::Text(of) => of,
                Expect::NameOrEnd | Expect::Name if byte == b'"' => {
                    at += 1;
                    self.begin_text(at - from);
                    TextOf::Name
                }
                Expect::ValueOrEnd | Expect::Value if byte == b'"' => {
                    at += 1;
                    self.begin_text(at - from);
                    TextOf::Value
                }
                Expect::Number(number) => {
                    at = self.number(number, chunk, at)?;
                    if self.has_ended() {
                        return Ok(Some(at));
                    }
                    continue;
                }
                Expect::Loose { in_text, escaped } => {
                    let Some(end) = self.follow(&chunk[at..], in_text, escaped) else { break };
                    return Ok(Some(at + end));
                }
                _ => {
                    self.step(byte).ok_or(at)?;
                    at += 1;
                    if self.has_ended() {
                        return Ok(Some(at));
                    }
                    continue;
                }
            };
            at = plain_end(chunk, at);
            self.expect = match chunk.get(at) {
                None => Expect::Text(of),
                Some(b'"') if of == TextOf::Name => {
                    if self.depth == 1 {
                        self.key = self.key();
                        self.key_name = self.is_name(&chunk[from..at], before, name).then_some(self.text_from);
                    }
                    Expect::Colon
                }
                Some(b'"') => {
                    if self.depth == 1 && self.key_name.is_some() {
                        self.end_key(at - from);
                    }
                    Expect::CommaOrEnd
                }
                Some(b'\\') => {
                    self.is_escaped = true;
                    Expect::Escape(of)
                }
                Some(_) => return Err(at),
            };
            at += 1;
            if self.has_ended() {
                return Ok(Some(at));
            }
            // What follows most often is taken at once: a colon or a comma, and the blank behind it.
            self.expect = match (self.expect, chunk.get(at)) {
                (Expect::Colon, Some(b':')) => Expect::Value,
                (Expect::CommaOrEnd, Some(b',')) => self.next_in_level(),
                _ => continue,
            };
            at += 1;
            at += usize::from(chunk.get(at) == Some(&b' '));
        }
        self.bytes_before += chunk.len() - from;
        Ok(None)
    }

    /// Whether the value is complete. A number that may go on has not ended.
    fn has_ended(&self) -> bool {
        self.depth == 0 && self.expect == Expect::CommaOrEnd
    }

    /// Takes one byte; none when it must not stand here.
    fn step(&mut self, byte: u8) -> Option<()> {
        let is_object = self.objects & 1 == 1;
        self.expect = match (self.expect, byte) {
            (Expect::Escape(of), b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Expect::Text(of),
            (Expect::Escape(of), b'u') => Expect::Hex(of, 4),
            (Expect::Hex(of, 1), _) if byte.is_ascii_hexdigit() => Expect::Text(of),
            (Expect::Hex(of, digits), _) if byte.is_ascii_hexdigit() => Expect::Hex(of, digits - 1),
            (Expect::Word(word, read), _) if word.text().get(usize::from(read)) == Some(&byte) => {
                let read = read + 1;
                if word.text().len() == usize::from(read) { Expect::CommaOrEnd } else { Expect::Word(word, read) }
            }
            (Expect::Escape(_) | Expect::Hex(..) | Expect::Word(..), _) => return None,
            (blank_may_stand_here, b' ' | b'\t') => blank_may_stand_here,
            (blank_may_stand_here, b'\n' | b'\r') => {
                self.has_newline = true;
                blank_may_stand_here
            }
            (Expect::ValueOrEnd, b']') | (Expect::NameOrEnd, b'}') => self.close(),
            (Expect::CommaOrEnd, b',') => self.next_in_level(),
            (Expect::CommaOrEnd, b'}') if is_object => self.close(),
            (Expect::CommaOrEnd, b']') if !is_object => self.close(),
            (Expect::Colon, b':') => Expect::Value,
            (Expect::Value | Expect::ValueOrEnd, b'{') => self.open(true),
            (Expect::Value | Expect::ValueOrEnd, b'[') => self.open(false),
            (Expect::Value | Expect::ValueOrEnd, b'-') => Expect::Number(Number::Minus),
            (Expect::Value | Expect::ValueOrEnd, b'0') => Expect::Number(Number::Zero),
            (Expect::Value | Expect::ValueOrEnd, b'1'..=b'9') => Expect::Number(Number::Whole),
            (Expect::Value | Expect::ValueOrEnd, b't') => Expect::Word(Word::True, 1),
            (Expect::Value | Expect::ValueOrEnd, b'f') => Expect::Word(Word::False, 1),
            (Expect::Value | Expect::ValueOrEnd, b'n') => Expect::Word(Word::Null, 1),
            _ => return None,
        };
        Some(())
    }

    /// Behind a comma.
    fn next_in_level(&self) -> Expect {
        if self.objects & 1 == 1 { Expect::Name } else { Expect::Value }
    }

    fn open(&mut self, is_object: bool) -> Expect {
        self.depth += 1;
        if self.depth > self.depth_max {
            self.is_too_deep = true;
            return Expect::Loose { in_text: false, escaped: false };
        }
        self.objects = (self.objects << 1) | u128::from(is_object);
        if is_object { Expect::NameOrEnd } else { Expect::ValueOrEnd }
    }

    fn close(&mut self) -> Expect {
        self.depth -= 1;
        self.objects >>= 1;
        Expect::CommaOrEnd
    }

    /// Takes as much of the chunk as belongs to a number; the index behind it.
    fn number(&mut self, mut number: Number, chunk: &[u8], mut at: usize) -> Result<usize, usize> {
        while let Some(longer) = chunk.get(at).and_then(|byte| number.with(*byte)) {
            number = longer;
            at += 1;
        }
        self.expect = match chunk.get(at) {
            None => Expect::Number(number),
            Some(_) if number.may_end() => Expect::CommaOrEnd,
            Some(_) => return Err(at),
        };
        Ok(at)
    }

    /// Notes a text that begins at this byte of the value's part in this chunk.
    fn begin_text(&mut self, at: usize) {
        self.text_from = self.bytes_before + at;
        self.is_escaped = false;
    }

    /// Whether the text that ends with `part`, the value's bytes in this chunk so far, is the key's name.
    fn is_name(&self, part: &[u8], before: &[u8], name: Option<&str>) -> bool {
        let Some(name) = name else { return false };
        // Only an escape can make it shorter than it looks.
        let bytes = self.bytes_before + part.len() - self.text_from;
        if bytes != name.len() && !self.is_escaped {
            return false;
        }
        match self.text_from.checked_sub(self.bytes_before) {
            Some(from) => is_text(&part[from..], self.is_escaped, name),
            // It began in an earlier chunk.
            None => {
                let begun = before.get(self.text_from..).unwrap_or_default();
                is_text(&[begun, part].concat(), self.is_escaped, name)
            }
        }
    }

    /// Takes the closing quote of the key, at this place of the value's part in this chunk.
    fn end_key(&mut self, at: usize) {
        self.key_name = None;
        let to = self.bytes_before + at;
        let key = Key { from: self.text_from, to, is_escaped: self.is_escaped };
        self.key = Some(if self.key.is_none() { Ok(key) } else { Err(to) });
    }

    /// Follows brackets and texts to the end of the whole value; the index behind it.
    fn follow(&mut self, bytes: &[u8], mut in_text: bool, mut escaped: bool) -> Option<usize> {
        for (at, &byte) in bytes.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_text => escaped = true,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        self.expect = Expect::Loose { in_text, escaped };
        None
    }
}

/// Whether what stands between the quotes of a text says `name`.
fn is_text(inside: &[u8], is_escaped: bool, name: &str) -> bool {
    if is_escaped {
        let quoted = [b"\"", inside, b"\""].concat();
        serde_json::from_slice::<String>(&quoted).is_ok_and(|text| text == name)
    } else {
        inside == name.as_bytes()
    }
}

/// Every byte a one.
const ONES: u64 = u64::MAX / 0xFF;

/// The first byte from `at` on that is not simply a part of a text: a quote, a backslash, a control character.
fn plain_end(chunk: &[u8], mut at: usize) -> usize {
    while let Some(eight) = chunk[at..].first_chunk() {
        let eight = u64::from_le_bytes(*eight);
        // The highest bit of each byte that is smaller; above the first such byte a borrow may set others.
        let smaller = |bytes: u64, than: u8| bytes.wrapping_sub(ONES * u64::from(than)) & !bytes & (ONES << 7);
        let equal = |byte: u8| smaller(eight ^ (ONES * u64::from(byte)), 1);
        let ends = smaller(eight, 0x20) | equal(b'"') | equal(b'\\');
        if ends != 0 {
            return at + (ends.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let ends = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    chunk[at..].iter().position(ends).map_or(chunk.len(), |offset| at + offset)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    /// The key between its quotes and its surroundings, or the position of an error in it.
    type KeyText = Result<String, usize>;

    /// End and key of a value that comes in pieces; as `find_end` says it, or none when it goes on.
    fn scan(text: &[u8], cuts: &[usize], depth_max: u32) -> Result<Option<(usize, Option<KeyText>)>, usize> {
        let mut scan = ValueScan::new(depth_max);
        let mut done = 0;
        for cut in cuts.iter().copied().chain([text.len()]) {
            let cut = cut.clamp(done, text.len());
            // The chunk begins with something else, as most chunks do.
            let chunk = [b"]\"x", &text[done..cut]].concat();
            if let Some(end) = scan.find_end(&chunk, 3, &text[..done], Some("id"))? {
                let key = scan.key().map(|key| key.map(|key| String::from_utf8(text[key.quoted()].to_vec()).unwrap()));
                return Ok(Some((done + end - 3, key)));
            }
            done = cut;
        }
        Ok(None)
    }

    #[test]
    fn a_value_ends_where_json_says_so_at_every_chunk_border() {
        for text in [
            r#"{}"#,
            r#"[]"#,
            r#"{"a":[1,-0.5e+7,{"b":null}],"c":"x\"y\\","d":true,"é":"\u00e9\n"} "#,
            "{ \"a\" :\t[ 1 ,\r\n2 ] , \"b\" : { } }",
            "\"text\"",
            "0 ",
            "-12.5E9,",
            "false",
        ] {
            for cut in 0..=text.len() {
                for second in cut..=text.len() {
                    let found = scan(text.as_bytes(), &[cut, second], 127);
                    assert_eq!(
                        found,
                        Ok(Some((text.trim_end_matches([' ', ',']).len(), None))),
                        "{text} {cut} {second}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_is_not_json_is_wrong_at_its_first_wrong_byte() {
        for (text, at) in [
            ("{]", 1),
            ("{,}", 1),
            ("{\"a\"}", 4),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("{\"a\":1]", 6),
            ("{\"a\" 1}", 5),
            ("[1 2]", 3),
            ("[1,]", 3),
            ("[}", 1),
            ("[01]", 2),
            ("[-]", 2),
            ("[1.]", 3),
            ("[.5]", 1),
            ("[1e]", 3),
            ("[+1]", 1),
            ("[tru]", 4),
            ("[nulL]", 4),
            ("[\"\\x\"]", 3),
            ("[\"\\u12g4\"]", 6),
            ("[\"a\nb\"]", 3),
            ("[\"a\0b0123456789\"]", 3),
            ("}", 0),
        ] {
            for cut in 0..=text.len() {
                let in_chunk = scan(text.as_bytes(), &[cut], 127).unwrap_err();
                // Counted in the chunk, which begins with three other bytes.
                let base = if cut <= at { cut } else { 0 };
                assert_eq!(base + in_chunk - 3, at, "{text} {cut}");
            }
        }
    }

    #[test]
    fn the_key_is_found_at_the_top_whatever_stands_before_it_and_once_only() {
        for (text, key) in [
            (r#"{"id":"a"}"#, Some(r#""a""#)),
            (r#"{"x":{"id":"no"},"id" : "yes"}"#, Some(r#""yes""#)),
            (r#"{"\u0069d":"a\"b"}"#, Some(r#""a\"b""#)),
            (r#"{"i\u0064":""}"#, Some(r#""""#)),
            (r#"{"Id":"a","di":"b","id2":"c"}"#, None),
            (r#"{"a":["id"],"b":"id"}"#, None),
            (r#"["id","id"]"#, None),
        ] {
            for cut in 0..=text.len() {
                let found = scan(text.as_bytes(), &[cut], 127).unwrap().unwrap();
                assert_eq!(found, (text.len(), key.map(|key| Ok(key.to_owned()))), "{text} {cut}");
            }
        }
        for (text, at) in [
            (r#"{"id":5}"#, 2),
            (r#"{"id" : null}"#, 2),
            (r#"{"id":{"id":["a"]}}"#, 2),
            (r#"{"id":"a","id":"b"}"#, 17),
            (r#"{"id":"a","id":"b","id":"c"}"#, 26),
            (r#"{"id":[],"id":"b"}"#, 16),
        ] {
            for cut in 0..=text.len() {
                assert_eq!(scan(text.as_bytes(), &[cut], 127), Ok(Some((text.len(), Some(Err(at))))), "{text} {cut}");
            }
        }
    }

    #[test]
    fn below_the_deepest_level_brackets_are_followed() {
        let text = br#"{"a":[[{"x]":"\"}",nonsense}]],"id":"a"}"#;
        for cut in 0..=text.len() {
            assert_eq!(scan(text, &[cut], 2), Ok(Some((text.len(), None))), "{cut}");
        }
        assert!(scan(text, &[], 4).is_err());
    }

    proptest! {
        #[test]
        fn it_takes_what_serde_json_takes_and_nothing_else(
            bytes in prop::collection::vec(prop::sample::select(b"\"\\{}[],: \n0159.eE+-truefalsn/bu\xc3".to_vec()), 0..24),
            cuts in (0usize..24, 0usize..24),
        ) {
            let text = [b"[", bytes.as_slice(), b"]"].concat();
            let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<IgnoredAny>();
            let wanted = match values.next() {
                Some(Ok(_)) => Some(values.byte_offset()),
                _ => None,
            };
            let (first, second) = cuts;
            let found = scan(&text, &[first.min(second), first.max(second)], 127);
            prop_assert_eq!(found.ok().flatten().map(|(end, _)| end), wanted);
        }

        #[test]
        fn the_end_of_a_plain_text_is_found_as_byte_by_byte(
            bytes in prop::collection::vec(any::<u8>().prop_map(|byte| if byte < 0x30 { byte } else { byte | 0x80 }), 0..40), from in 0usize..40,
        ) {
            let from = from.min(bytes.len());
            let wanted = bytes[from..].iter().position(|byte| *byte == b'"' || *byte == b'\\' || *byte < 0x20);
            prop_assert_eq!(plain_end(&bytes, from), wanted.map_or(bytes.len(), |offset| from + offset));
        }
    }
}
