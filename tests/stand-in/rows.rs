//! Renders objects as JSON, member by member, straight into the answer's buffer.

use crate::clock;
use crate::collections::{self, Kind, Member};
use crate::country::{mix, uid_of};
use crate::fields::{self, Field, Transform};
use crate::quirks;
use crate::registry;
use crate::world::World;

/// A `fields` list made ready for one collection.
#[derive(Debug)]
pub(crate) struct Plan {
    picks: Vec<Pick>,
}

#[derive(Debug)]
struct Pick {
    /// `"name":`
    label: Vec<u8>,
    kind: Kind,
    transform: Transform,
    /// The collection a reference leads to.
    target: Option<usize>,
    nested: Nested,
}

#[derive(Debug)]
enum Nested {
    /// As the server writes it when nothing is said: references as `{"id":…}`.
    Plain,
    /// Members of the object referred to.
    Object(Plan),
    /// Members of a value that is not a reference.
    Raw(Vec<Field>),
}

fn target_of(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Parent | Kind::Children | Kind::Ancestors => Some("organisationUnits"),
        Kind::SomeUser(_) => Some("users"),
        Kind::ProgramOfStage => Some("programs"),
        Kind::StagesOfProgram => Some("programStages"),
        Kind::One(target) | Kind::Many(target, _) | Kind::List(target, _) => Some(target),
        _ => None,
    }
}

impl Plan {
    /// Picks what `fields` names out of a collection's members; unknown names are ignored, as the server does.
    pub(crate) fn new(world: &World, shelf: usize, fields: &[Field]) -> Self {
        Self::at_depth(world, shelf, fields, 0)
    }

    fn at_depth(world: &World, shelf: usize, fields: &[Field], depth: usize) -> Self {
        let mut picks = Vec::new();
        for member in &world.shelves[shelf].members {
            if fields.iter().any(|field| field.excluded && field.name == member.name) {
                continue;
            }
            let covering =
                |field: &&Field| !field.excluded && fields::covers(field, member.name, member.owned(), member.simple());
            let Some(field) = fields
                .iter()
                .rev()
                .find(|field| !field.excluded && field.name == member.name)
                .or_else(|| fields.iter().find(covering))
            else {
                continue;
            };
            picks.push(Self::pick(world, member, field, depth));
        }
        Self { picks }
    }

    fn pick(world: &World, member: &Member, field: &Field, depth: usize) -> Pick {
        let target = target_of(member.kind).and_then(collections::position);
        let named = field.name == member.name;
        let nested = if !named || field.nested.is_empty() || depth > 4 {
            Nested::Plain
        } else if let Some(target) = target {
            Nested::Object(Self::at_depth(world, target, &field.nested, depth + 1))
        } else {
            Nested::Raw(field.nested.clone())
        };
        let shown = if named { field.rename.as_deref().unwrap_or(member.name) } else { member.name };
        let mut label = Vec::new();
        push_text(&mut label, shown);
        label.push(b':');
        let transform = if named { field.transform } else { Transform::None };
        Pick { label, kind: member.kind, transform, target, nested }
    }
}

/// Appends a JSON string, escaped as the server's JSON writer escapes: other scripts stay as they are.
pub(crate) fn push_text(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0c => b"\\f",
            0..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[from..at]);
        if escape.is_empty() {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        } else {
            out.extend_from_slice(escape);
        }
        from = at + 1;
    }
    out.extend_from_slice(&bytes[from..]);
    out.push(b'"');
}

/// Appends a whole number.
pub(crate) fn push_number(out: &mut Vec<u8>, number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

const AWKWARD_NUMBERS: &[&str] = &[
    "1.10",
    "-0.0",
    "1e-7",
    "12345678901234567890123",
    "0.1000",
    "1E+3",
    "2.5",
    "100",
    "-13.10",
    "3.141592653589793238462",
];

/// Writes rows of one moment of the world.
pub(crate) struct Pen<'a> {
    pub(crate) world: &'a World,
    /// Scheme, host and context path, for `href`.
    pub(crate) base_url: &'a str,
    /// What the order of sets is computed from; `None` leaves them as they are.
    shuffle: Option<u64>,
    scratch: String,
}

impl<'a> Pen<'a> {
    pub(crate) fn new(world: &'a World, base_url: &'a str) -> Self {
        Self { world, base_url, shuffle: None, scratch: String::new() }
    }

    /// Writes sets as the `number`th request gets them.
    pub(crate) fn for_request(mut self, number: u64) -> Self {
        self.shuffle = self.world.quirks.shuffle(number);
        self
    }

    /// Appends one object.
    pub(crate) fn object(&mut self, out: &mut Vec<u8>, shelf: usize, row: u32, plan: &Plan) {
        out.push(b'{');
        let mut first = true;
        for pick in &plan.picks {
            let before = out.len();
            if !first {
                out.push(b',');
            }
            out.extend_from_slice(&pick.label);
            if self.picked(out, shelf, row, pick) {
                first = false;
            } else {
                out.truncate(before);
            }
        }
        out.push(b'}');
    }

    fn picked(&mut self, out: &mut Vec<u8>, shelf: usize, row: u32, pick: &Pick) -> bool {
        let start = out.len();
        let written = match (&pick.nested, pick.target) {
            (Nested::Object(plan), Some(target)) => self.referred(out, shelf, row, pick.kind, target, plan),
            _ => self.value(out, shelf, row, pick.kind, pick.target),
        };
        if !written {
            return match pick.transform {
                Transform::None => false,
                Transform::Size => replace(out, start, "0"),
                Transform::IsEmpty => replace(out, start, "true"),
                Transform::IsNotEmpty => replace(out, start, "false"),
            };
        }
        if let Nested::Raw(fields) = &pick.nested {
            let kept = fields::select(&String::from_utf8_lossy(&out[start..]), fields);
            replace(out, start, &kept);
        }
        if pick.transform != Transform::None {
            let items: Option<Vec<serde::de::IgnoredAny>> = serde_json::from_slice(&out[start..]).ok();
            let size = items.map_or(1, |items| items.len());
            match pick.transform {
                Transform::Size => replace(out, start, &size.to_string()),
                Transform::IsEmpty => replace(out, start, if size == 0 { "true" } else { "false" }),
                _ => replace(out, start, if size == 0 { "false" } else { "true" }),
            };
        }
        true
    }

    /// The rows of another collection that a member refers to; `None` when the member is null.
    pub(crate) fn references(&self, shelf: usize, row: u32, kind: Kind, target: usize) -> Option<Vec<u32>> {
        let mut rows = self.stored_references(shelf, row, kind, target)?;
        if let Some(seed) = self.shuffle.filter(|_| kind.is_set()) {
            quirks::shuffled(&mut rows, mix(seed ^ u64::from(row)));
        }
        Some(rows)
    }

    fn stored_references(&self, shelf: usize, row: u32, kind: Kind, target: usize) -> Option<Vec<u32>> {
        let world = self.world;
        let here = &world.shelves[shelf];
        let there = world.shelves[target].base;
        match kind {
            Kind::Parent => world.country.parent(row).map(|parent| vec![parent]),
            Kind::ProgramOfStage if there > 0 => Some(vec![registry::program_of(row, there, here.base)]),
            Kind::StagesOfProgram => Some(registry::stages_of(row, there)),
            Kind::Ancestors => {
                let mut line = world.country.ancestors(row);
                line.pop();
                Some(line)
            }
            Kind::Children => {
                if row >= world.country.org_units {
                    return Some(Vec::new());
                }
                let branching = world.country.branching;
                let from = row.saturating_mul(branching).saturating_add(1).min(there);
                Some((from..from.saturating_add(branching).min(there)).filter(|child| here.is_alive(*child)).collect())
            }
            Kind::SomeUser(_) | Kind::One(_) if there > 0 => {
                let salt = if let Kind::SomeUser(salt) = kind { salt } else { 73 };
                let hash = world.country.hash(here.salt, row, salt);
                Some(vec![u32::try_from(hash % u64::from(there)).unwrap_or(0)])
            }
            Kind::Many(_, most) | Kind::List(_, most) if there > 0 => {
                let hash = world.country.hash(here.salt, row, 74);
                let count = u32::try_from(hash % u64::from(most + 1)).unwrap_or(0).min(there);
                let from = u32::try_from(mix(hash) % u64::from(there)).unwrap_or(0);
                Some((0..count).map(|step| (from + step) % there).collect())
            }
            Kind::Many(..) | Kind::List(..) => Some(Vec::new()),
            _ => None,
        }
    }

    fn referred(&mut self, out: &mut Vec<u8>, shelf: usize, row: u32, kind: Kind, target: usize, plan: &Plan) -> bool {
        let Some(rows) = self.references(shelf, row, kind, target) else { return false };
        let many = is_list(kind);
        if many {
            out.push(b'[');
        }
        for (at, other) in rows.into_iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            self.object(out, target, other, plan);
        }
        if many {
            out.push(b']');
        }
        true
    }

    /// Appends a member's value as JSON; false when it is null, and then nothing is appended.
    pub(crate) fn value(
        &mut self,
        out: &mut Vec<u8>,
        shelf: usize,
        row: u32,
        kind: Kind,
        target: Option<usize>,
    ) -> bool {
        let world = self.world;
        let country = &world.country;
        let here = &world.shelves[shelf];
        let collection = here.collection;
        let hash = |salt: u64| country.hash(here.salt, row, salt);
        let is_default = row == 0 && collection.default_id.is_some();
        match kind {
            Kind::Id => {
                out.push(b'"');
                out.extend_from_slice(here.id(row));
                out.push(b'"');
            }
            Kind::Code if is_default => out.extend_from_slice(b"\"default\""),
            Kind::Code => {
                if hash(3).is_multiple_of(5) {
                    return false;
                }
                out.extend_from_slice(b"\"");
                out.extend_from_slice(&collection.singular.as_bytes()[..3]);
                out.extend_from_slice(if hash(4).is_multiple_of(7) { b" / " } else { b"_" });
                push_number(out, u64::from(row));
                out.push(b'"');
            }
            Kind::Name | Kind::DisplayName | Kind::ShortName | Kind::DisplayShortName => {
                self.scratch.clear();
                world.push_name(&mut self.scratch, shelf, row);
                if matches!(kind, Kind::ShortName | Kind::DisplayShortName) {
                    let short: String = self.scratch.chars().take(50).collect();
                    push_text(out, &short);
                } else {
                    push_text(out, &self.scratch);
                }
            }
            Kind::Description => {
                if !hash(5).is_multiple_of(3) {
                    return false;
                }
                self.scratch.clear();
                world.push_name(&mut self.scratch, shelf, row);
                self.scratch.push_str(": what it is for, \"quoted\", and\na second line");
                push_text(out, &self.scratch);
            }
            Kind::Created => push_date(out, here.created_ms(country, row)),
            Kind::LastUpdated => push_date(out, here.last_updated_ms(country, row)),
            Kind::OpeningDate => {
                push_date(out, clock::days(1970 + i64::try_from(hash(6) % 50).unwrap_or(0), 1, 1) * 86_400_000)
            }
            Kind::ClosedDate => {
                if !hash(7).is_multiple_of(13) {
                    return false;
                }
                push_date(out, clock::days(2021, 6, 30) * 86_400_000);
            }
            Kind::Href => {
                out.push(b'"');
                out.extend_from_slice(self.base_url.as_bytes());
                out.extend_from_slice(b"/api/");
                out.extend_from_slice(collection.name.as_bytes());
                out.push(b'/');
                out.extend_from_slice(here.id(row));
                out.push(b'"');
            }
            Kind::Path => {
                out.push(b'"');
                for ancestor in country.ancestors(row) {
                    out.push(b'/');
                    out.extend_from_slice(here.id(ancestor));
                }
                out.push(b'"');
            }
            Kind::Level => push_number(out, u64::try_from(country.ancestors(row).len()).unwrap_or(0)),
            Kind::Leaf => push_flag(out, row >= country.inner_units() || country.org_units < 2),
            Kind::Rank => push_number(out, u64::from(row) + 1),
            Kind::Counter => push_number(out, hash(8) % 100),
            Kind::AwkwardNumber => {
                let which = usize::try_from(hash(9) % 10).unwrap_or(0);
                out.extend_from_slice(AWKWARD_NUMBERS[which].as_bytes());
            }
            Kind::Flag => push_flag(out, hash(10).is_multiple_of(2)),
            Kind::Choice(words) => {
                let which = usize::try_from(hash(11)).unwrap_or(usize::MAX) % words.len();
                push_text(out, words[which]);
            }
            Kind::Escaped => {
                if hash(12).is_multiple_of(4) {
                    return false;
                }
                out.extend_from_slice(br#""caf\u00e9 \ud83c\udfe5 a\/b "#);
                push_number(out, u64::from(row));
                out.push(b'"');
            }
            Kind::Geometry => return push_geometry(out, hash(13)),
            Kind::Username => {
                out.extend_from_slice(b"\"user");
                push_number(out, u64::from(row));
                out.push(b'"');
            }
            Kind::UserCredentials => {
                out.extend_from_slice(b"{\"username\":\"user");
                push_number(out, u64::from(row));
                out.extend_from_slice(b"\"}");
            }
            Kind::Sharing => {
                out.extend_from_slice(b"{");
                if collection.shareable && !(is_default && world.dialect.external_sharing) {
                    out.extend_from_slice(b"\"owner\":\"");
                    out.extend_from_slice(&uid_of(hash(14)));
                    out.extend_from_slice(b"\",");
                }
                if world.dialect.external_sharing {
                    out.extend_from_slice(b"\"external\":false,");
                }
                out.extend_from_slice(b"\"users\":{},\"userGroups\":{}");
                out.extend_from_slice(if collection.shareable { b",\"public\":\"rw------\"}" } else { b"}" });
            }
            Kind::PublicAccess => out.extend_from_slice(b"\"rw------\""),
            Kind::Access => {
                out.extend_from_slice(b"{\"manage\":true,");
                if world.dialect.external_sharing {
                    out.extend_from_slice(b"\"externalize\":true,");
                }
                out.extend_from_slice(b"\"write\":true,\"read\":true,\"update\":true,\"delete\":true}");
            }
            Kind::Translations => {
                if hash(15).is_multiple_of(6) {
                    out.extend_from_slice(b"[{\"property\":\"NAME\",\"locale\":\"fr\",\"value\":");
                    push_text(out, "Nom traduit");
                    out.extend_from_slice(b"}]");
                } else {
                    out.extend_from_slice(b"[]");
                }
            }
            Kind::AttributeValues => {
                if hash(16).is_multiple_of(5) {
                    out.extend_from_slice(b"[{\"value\":\"1.10\",\"attribute\":{\"id\":\"");
                    out.extend_from_slice(&uid_of(hash(17)));
                    out.extend_from_slice(b"\"}}]");
                } else {
                    out.extend_from_slice(b"[]");
                }
            }
            Kind::Empty => out.extend_from_slice(b"[]"),
            Kind::Fixed(json) => out.extend_from_slice(json.as_bytes()),
            Kind::Turn(words) => push_text(out, words[row as usize % words.len()]),
            Kind::SetElements(most) => self.push_set_elements(out, shelf, row, most),
            Kind::SomeUser(_) if world.dialect.users_are_named => {
                let Some(target) = target else { return false };
                let Some(rows) = self.references(shelf, row, kind, target) else { return false };
                self.push_user(out, target, rows[0]);
            }
            Kind::Parent
            | Kind::Children
            | Kind::Ancestors
            | Kind::ProgramOfStage
            | Kind::StagesOfProgram
            | Kind::SomeUser(_)
            | Kind::One(_)
            | Kind::Many(..)
            | Kind::List(..) => {
                let Some(target) = target else { return false };
                let Some(rows) = self.references(shelf, row, kind, target) else { return false };
                let many = is_list(kind);
                if many {
                    out.push(b'[');
                }
                for (at, other) in rows.into_iter().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(b"{\"id\":\"");
                    out.extend_from_slice(world.shelves[target].id(other));
                    out.extend_from_slice(b"\"}");
                }
                if many {
                    out.push(b']');
                }
            }
        }
        true
    }

    /// A user as others refer to them since they are named with their references (recorded: `collection-*`).
    fn push_user(&mut self, out: &mut Vec<u8>, users: usize, row: u32) {
        self.scratch.clear();
        self.world.push_name(&mut self.scratch, users, row);
        let mut name = Vec::new();
        push_text(&mut name, &self.scratch);
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(self.world.shelves[users].id(row));
        out.extend_from_slice(b"\",\"code\":\"user");
        push_number(out, u64::from(row));
        for label in [&b"\",\"name\":"[..], b",\"displayName\":"] {
            out.extend_from_slice(label);
            out.extend_from_slice(&name);
        }
        out.extend_from_slice(b",\"username\":\"user");
        push_number(out, u64::from(row));
        out.extend_from_slice(b"\"}");
    }

    /// The data elements of a data set.
    pub(crate) fn set_elements(&self, shelf: usize, row: u32, most: u32) -> Vec<u32> {
        let Some(elements) = self.world.shelf("dataElements") else { return Vec::new() };
        let there = self.world.shelves[elements].base;
        if there == 0 {
            return Vec::new();
        }
        // Neighbouring sets share none while there are enough.
        let count = (most / 2 + row % (most / 2 + 1)).clamp(1, there);
        let mut rows: Vec<u32> = (0..count).map(|step| (row.wrapping_mul(most) + step) % there).collect();
        if let Some(seed) = self.shuffle {
            quirks::shuffled(&mut rows, mix(seed ^ u64::from(row) ^ self.world.shelves[shelf].salt));
        }
        rows
    }

    fn push_set_elements(&self, out: &mut Vec<u8>, shelf: usize, row: u32, most: u32) {
        let Some(elements) = self.world.shelf("dataElements") else { return out.extend_from_slice(b"[]") };
        out.push(b'[');
        for (at, element) in self.set_elements(shelf, row, most).into_iter().enumerate() {
            out.extend_from_slice(if at > 0 { b",{\"dataSet\":{\"id\":\"" } else { b"{\"dataSet\":{\"id\":\"" });
            out.extend_from_slice(self.world.shelves[shelf].id(row));
            out.extend_from_slice(b"\"},\"dataElement\":{\"id\":\"");
            out.extend_from_slice(self.world.shelves[elements].id(element));
            out.extend_from_slice(b"\"}}");
        }
        out.push(b']');
    }

    /// A member's value as text, unquoted; `None` when it is null.
    pub(crate) fn text(&mut self, shelf: usize, row: u32, member: &Member) -> Option<String> {
        let mut out = Vec::new();
        let target = target_of(member.kind).and_then(collections::position);
        if !self.value(&mut out, shelf, row, member.kind, target) {
            return None;
        }
        if out.first() == Some(&b'"') {
            return serde_json::from_slice(&out).ok();
        }
        Some(String::from_utf8_lossy(&out).into_owned())
    }

    /// The collection and the rows a reference leads to, for filters such as `parent.id:eq:…`.
    pub(crate) fn follow(&self, shelf: usize, row: u32, member: &Member) -> Option<(usize, Vec<u32>)> {
        let target = collections::position(target_of(member.kind)?)?;
        Some((target, self.references(shelf, row, member.kind, target).unwrap_or_default()))
    }
}

fn is_list(kind: Kind) -> bool {
    matches!(kind, Kind::Many(..) | Kind::List(..) | Kind::Children | Kind::Ancestors | Kind::StagesOfProgram)
}

fn replace(out: &mut Vec<u8>, start: usize, text: &str) -> bool {
    out.truncate(start);
    out.extend_from_slice(text.as_bytes());
    true
}

fn push_flag(out: &mut Vec<u8>, flag: bool) {
    out.extend_from_slice(if flag { b"true" } else { b"false" });
}

fn push_date(out: &mut Vec<u8>, ms: i64) {
    out.push(b'"');
    clock::write_local(out, ms);
    out.push(b'"');
}

fn push_geometry(out: &mut Vec<u8>, hash: u64) -> bool {
    let coordinate = |out: &mut Vec<u8>, hash: u64| {
        if hash.is_multiple_of(4) {
            let which = usize::try_from(hash / 4 % 10).unwrap_or(0);
            out.extend_from_slice(AWKWARD_NUMBERS[which].as_bytes());
        } else {
            if hash.is_multiple_of(3) {
                out.push(b'-');
            }
            push_number(out, hash / 16 % 180);
            out.push(b'.');
            push_number(out, 1000 + hash / 4096 % 9000);
        }
    };
    match hash % 8 {
        0 | 1 => return false,
        2 => {
            out.extend_from_slice(b"{\"type\":\"Polygon\",\"coordinates\":[[");
            for corner in 0..5 {
                if corner > 0 {
                    out.push(b',');
                }
                out.push(b'[');
                coordinate(out, mix(hash ^ (corner % 4)));
                out.push(b',');
                coordinate(out, mix(hash ^ (corner % 4 + 8)));
                out.push(b']');
            }
            out.extend_from_slice(b"]]}");
        }
        _ => {
            out.extend_from_slice(b"{\"type\":\"Point\",\"coordinates\":[");
            coordinate(out, mix(hash));
            out.push(b',');
            coordinate(out, mix(hash + 1));
            out.extend_from_slice(b"]}");
        }
    }
    true
}
