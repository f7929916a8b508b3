//! Holds what is true at this moment: which rows live, what they say, who may log in, what was deleted.

use std::collections::HashMap;
use std::ops::Range;

use tokio::time::Instant;

use crate::auth::Door;
use crate::clock::ServerClock;
use crate::collation::Collation;
use crate::collections::{COLLECTIONS, Collection, Member, Size};
use crate::country::{Country, Uid, hash_text, mix, uid_text};
use crate::dialect::Dialect;
use crate::fields;
use crate::mutations::{Change, Schedule, Script};
use crate::quirks::Quirks;
use crate::rows::{Pen, Plan};

/// The living rows of one collection.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) collection: &'static Collection,
    pub(crate) members: Vec<Member>,
    pub(crate) salt: u64,
    /// Rows there were at the start; later ones are numbered from here.
    pub(crate) base: u32,
    ids: Vec<Uid>,
    /// Living rows in the order of their ids.
    pub(crate) by_id: Vec<u32>,
    gone: HashMap<u32, u64>,
    born: HashMap<u32, (u64, i64)>,
    touched: HashMap<u32, (u32, i64)>,
    /// Living rows in the order of a list nobody ordered; forgotten at every change.
    pub(crate) default_order: Option<Vec<u32>>,
    /// List requests answered with the truth.
    pub(crate) lists_answered: u64,
}

impl Shelf {
    fn new(
        collection: &'static Collection,
        country: &Country,
        dialect: &Dialect,
        size: u32,
        collation: Collation,
    ) -> Self {
        let salt = hash_text(collection.name);
        let mut ids: Vec<Uid> = (0..size).map(|row| country.uid(salt, row)).collect();
        if let (Some(id), Some(first)) = (collection.default_id, ids.first_mut()) {
            first.copy_from_slice(id.as_bytes());
        }
        let mut keyed: Vec<(u128, u32)> = ids.iter().zip(0..).map(|(id, row)| (collation.id_key(id), row)).collect();
        keyed.sort_unstable();
        Self {
            collection,
            members: collection.members_in(dialect.minor, dialect.sharing_object, dialect.old_member_order),
            salt,
            base: size,
            by_id: keyed.into_iter().map(|(_, row)| row).collect(),
            ids,
            gone: HashMap::new(),
            born: HashMap::new(),
            touched: HashMap::new(),
            default_order: None,
            lists_answered: 0,
        }
    }

    pub(crate) fn id(&self, row: u32) -> &Uid {
        &self.ids[row as usize]
    }

    /// Rows there ever were.
    pub(crate) fn id_count(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn is_alive(&self, row: u32) -> bool {
        (row as usize) < self.ids.len() && !self.gone.contains_key(&row)
    }

    pub(crate) fn created_ms(&self, country: &Country, row: u32) -> i64 {
        self.born.get(&row).map_or_else(|| country.created_ms(self.salt, row), |(_, ms)| *ms)
    }

    pub(crate) fn last_updated_ms(&self, country: &Country, row: u32) -> i64 {
        match self.touched.get(&row) {
            Some((_, ms)) => *ms,
            None => self.born.get(&row).map_or_else(|| country.last_updated_ms(self.salt, row), |(_, ms)| *ms),
        }
    }

    pub(crate) fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }
}

/// A row of `/api/deletedObjects`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Simple class name, e.g. `DataElement`.
    pub klass: String,
    /// Id of what was deleted.
    pub uid: String,
    /// Its code, where it had one.
    pub code: Option<String>,
    /// When, local civil milliseconds.
    pub(crate) deleted_at_ms: i64,
}

impl Deleted {
    /// When it was deleted, as the server writes it: local, zone-less.
    pub fn deleted_at(&self) -> String {
        crate::clock::local(self.deleted_at_ms)
    }
}

/// Everything that is true at this moment.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) country: Country,
    /// Number of tracked entities, deleted ones too.
    pub(crate) entities: u32,
    /// Tables for analytics of events were never built, or are gone.
    pub(crate) without_analytics_tables: bool,
    pub(crate) dialect: Dialect,
    pub(crate) version: String,
    pub(crate) system_id: String,
    pub(crate) collation: Collation,
    pub(crate) clock: ServerClock,
    pub(crate) shelves: Vec<Shelf>,
    pub(crate) deleted: Vec<Deleted>,
    pub(crate) door: Door,
    /// Collections that answer with a status of their own to everybody.
    pub(crate) refused: HashMap<String, u16>,
    /// Totals remembered by user, collection and filters, until when.
    pub(crate) totals: HashMap<(String, usize, String), (Instant, u32)>,
    pub(crate) scripts: Vec<Script>,
    /// Changes by request or by time, each with how often it happened.
    schedules: Vec<(Schedule, u64)>,
    /// When the first request came.
    first_request: Option<Instant>,
    /// What is odd about the server.
    pub(crate) quirks: Quirks,
    /// Counts changes; a mark is one of its values.
    pub(crate) moment: u64,
    mark: u64,
    /// Ties in an order that is not unique come out differently from one request to the next.
    pub(crate) unstable_ties: bool,
    /// `nextPage` starts with this in place of the truth.
    pub(crate) next_page_base: Option<String>,
    /// Path before `/api`, e.g. `/dhis`.
    pub(crate) context_path: String,
}

/// What a world is made of.
#[derive(Debug, Clone)]
pub(crate) struct WorldPlan {
    pub(crate) country: Country,
    pub(crate) entities: u32,
    pub(crate) without_analytics_tables: bool,
    pub(crate) minor: u8,
    pub(crate) version: String,
    pub(crate) system_id: String,
    pub(crate) collation: Collation,
    pub(crate) clock: ServerClock,
    pub(crate) sizes: HashMap<String, u32>,
    pub(crate) refused: HashMap<String, u16>,
    pub(crate) scripts: Vec<Script>,
    pub(crate) schedules: Vec<Schedule>,
    pub(crate) quirks: Quirks,
    pub(crate) unstable_ties: bool,
    pub(crate) next_page_base: Option<String>,
    pub(crate) context_path: String,
}

impl World {
    pub(crate) fn new(plan: WorldPlan, door: Door) -> Self {
        let dialect = Dialect::of(plan.minor);
        let shelves: Vec<Shelf> = COLLECTIONS
            .iter()
            .map(|collection| {
                let size = match collection.size {
                    Size::Fixed(size) => size,
                    Size::Per(units, least) => (plan.country.org_units / units).max(least),
                    Size::OrgUnits => plan.country.org_units,
                };
                let size = match plan.sizes.get(collection.name) {
                    Some(size) if !matches!(collection.size, Size::OrgUnits) => *size,
                    _ => size,
                };
                Shelf::new(collection, &plan.country, &dialect, size, plan.collation)
            })
            .collect();
        let mut world = Self {
            country: plan.country,
            entities: plan.entities,
            without_analytics_tables: plan.without_analytics_tables,
            dialect,
            version: plan.version,
            system_id: plan.system_id,
            collation: plan.collation,
            clock: plan.clock,
            shelves,
            deleted: Vec::new(),
            door,
            refused: plan.refused,
            totals: HashMap::new(),
            scripts: plan.scripts,
            schedules: plan.schedules.into_iter().map(|schedule| (schedule, 0)).collect(),
            first_request: None,
            quirks: plan.quirks,
            moment: 0,
            mark: 0,
            unstable_ties: plan.unstable_ties,
            next_page_base: plan.next_page_base,
            context_path: plan.context_path,
        };
        world.bury_history();
        world
    }

    /// A few objects that were deleted long before the start.
    fn bury_history(&mut self) {
        for (number, klass) in
            ["OrganisationUnit", "DataElement", "Option", "OrganisationUnit", "Indicator"].iter().enumerate()
        {
            let number = u32::try_from(number).unwrap_or(0);
            let uid = self.country.uid(hash_text("history"), number);
            self.deleted.push(Deleted {
                klass: (*klass).into(),
                uid: uid_text(&uid).into(),
                code: number.is_multiple_of(2).then(|| format!("OLD_{number}")),
                deleted_at_ms: (crate::clock::days(2019, 3, 1) + i64::from(number)) * 86_400_000,
            });
        }
    }

    /// Another database takes this one's place: another identity, other rows, as many as this one had at its start.
    fn change_database(&mut self, seed: u64) {
        self.country = Country::new(seed, self.country.org_units);
        let id = mix(seed ^ hash_text(&self.system_id));
        self.system_id = format!("{:08x}-0000-4000-8000-{:012x}", id >> 32, id & 0xffff_ffff);
        self.totals.clear();
        self.deleted.clear();
        self.bury_history();
        self.door.lose_sessions();
        for shelf in &mut self.shelves {
            let lists_answered = shelf.lists_answered;
            *shelf = Shelf::new(shelf.collection, &self.country, &self.dialect, shelf.base, self.collation);
            shelf.lists_answered = lists_answered;
        }
    }

    /// Lets what is due happen before the `number`th request is looked at.
    pub(crate) fn request_comes(&mut self, number: u64) {
        let gone = self.first_request.get_or_insert_with(Instant::now).elapsed();
        let mut due = Vec::new();
        for (schedule, happened) in &mut self.schedules {
            let (change, wanted) = match schedule {
                Schedule::AtRequest(at, change) => (&*change, u64::from(number >= *at)),
                Schedule::Steadily(per_second, change) => {
                    let times = gone.as_millis() * u128::from(*per_second) / 1000;
                    (&*change, u64::try_from(times).unwrap_or(u64::MAX))
                }
            };
            let times = u32::try_from(wanted.saturating_sub(*happened)).unwrap_or(u32::MAX);
            *happened = wanted.max(*happened);
            due.extend(change.times(times));
        }
        for change in due {
            self.apply(&change);
        }
    }

    /// Rows from this one on are hidden from the replica that the `number`th request goes to.
    pub(crate) fn hidden_from(&self, shelf: usize, number: u64) -> u32 {
        let made = u32::try_from(self.shelves[shelf].ids.len()).unwrap_or(u32::MAX);
        made.saturating_sub(self.quirks.lag(number))
    }

    /// How `filter` compares text.
    pub(crate) fn filter_collation(&self) -> Collation {
        self.quirks.filter_collation.unwrap_or(self.collation)
    }

    /// The server comes back as another version, with the same rows.
    pub(crate) fn change_version(&mut self, version: String, minor: u8) {
        self.version = version;
        self.dialect = Dialect::of(minor);
        for shelf in &mut self.shelves {
            shelf.members =
                shelf.collection.members_in(minor, self.dialect.sharing_object, self.dialect.old_member_order);
            shelf.default_order = None;
        }
    }

    /// The shelf of a collection that this version has.
    pub(crate) fn shelf(&self, name: &str) -> Option<usize> {
        self.shelves
            .iter()
            .position(|shelf| shelf.collection.name == name && shelf.collection.exists_in(self.dialect.minor))
    }

    pub(crate) fn push_name(&self, out: &mut String, shelf: usize, row: u32) {
        let here = &self.shelves[shelf];
        if row == 0 && here.collection.default_id.is_some() {
            out.push_str("default");
            return;
        }
        let revision = here.touched.get(&row).map_or(0, |(revision, _)| *revision);
        self.country.push_name(here.salt, here.collection.label, row, revision, out);
    }

    /// Whether a user whose share is so many per cent sees a row.
    pub(crate) fn is_visible(&self, shelf: usize, row: u32, percent: u8) -> bool {
        percent >= 100 || mix(self.country.hash(self.shelves[shelf].salt, row, 99)) % 100 < u64::from(percent)
    }

    /// Whether a unit lies in the part of the tree whose data a user may read.
    pub(crate) fn may_see_unit(&self, user: &crate::auth::User, unit: u32) -> bool {
        user.branches.is_empty()
            || self.country.ancestors(unit).get(1).is_some_and(|branch| user.branches.contains(&(branch - 1)))
    }

    /// The row with this id, if it lives.
    pub(crate) fn find(&self, shelf: usize, id: &str) -> Option<u32> {
        let here = &self.shelves[shelf];
        let range = self.id_range(shelf, id);
        here.by_id.get(range.start).copied().filter(|row| uid_text(here.id(*row)) == id)
    }

    /// The part of `by_id` that equals this text in the collation.
    pub(crate) fn id_range(&self, shelf: usize, id: &str) -> Range<usize> {
        let here = &self.shelves[shelf];
        let compare = |row: &u32| self.collation.compare(uid_text(here.id(*row)), id);
        let from = here.by_id.partition_point(|row| compare(row).is_lt());
        let to = from + here.by_id[from..].partition_point(|row| compare(row).is_eq());
        from..to
    }

    /// Adds rows, returns their ids.
    pub(crate) fn insert(&mut self, shelf: usize, count: u32) -> Vec<String> {
        let now = self.clock.now_ms();
        let mut ids = Vec::new();
        for _ in 0..count {
            self.moment += 1;
            let moment = self.moment;
            let here = &mut self.shelves[shelf];
            let row = u32::try_from(here.ids.len()).unwrap_or(u32::MAX);
            let uid = self.country.uid(here.salt, row);
            here.ids.push(uid);
            here.born.insert(row, (moment, now));
            here.default_order = None;
            let at = self.id_range(shelf, uid_text(&uid)).start;
            self.shelves[shelf].by_id.insert(at, row);
            ids.push(uid_text(&uid).to_owned());
        }
        ids
    }

    /// Deletes a row; false when it does not live.
    pub(crate) fn delete(&mut self, shelf: usize, id: &str) -> bool {
        let Some(row) = self.find(shelf, id) else { return false };
        let code =
            self.shelves[shelf].member("code").copied().and_then(|member| Pen::new(self, "").text(shelf, row, &member));
        let at = self.id_range(shelf, id).start;
        self.moment += 1;
        let moment = self.moment;
        let now = self.clock.now_ms();
        let here = &mut self.shelves[shelf];
        here.by_id.remove(at);
        here.gone.insert(row, moment);
        here.default_order = None;
        let klass = here.collection.klass.rsplit('.').next().unwrap_or_default().to_owned();
        self.deleted.push(Deleted { klass, uid: id.to_owned(), code, deleted_at_ms: now });
        true
    }

    /// Saves a row again: its `lastUpdated` is now, its name gains a revision; false when it does not live.
    pub(crate) fn update(&mut self, shelf: usize, id: &str) -> bool {
        let Some(row) = self.find(shelf, id) else { return false };
        self.moment += 1;
        let now = self.clock.now_ms();
        let here = &mut self.shelves[shelf];
        let revision = here.touched.get(&row).map_or(0, |(revision, _)| *revision) + 1;
        here.touched.insert(row, (revision, now));
        here.default_order = None;
        true
    }

    /// Living rows chosen by formula, spread over the ids; organisation units with children are spared.
    pub(crate) fn choose(&self, shelf: usize, count: u32, salt: u64) -> Vec<String> {
        let here = &self.shelves[shelf];
        let spared = if matches!(here.collection.size, Size::OrgUnits) {
            self.country.inner_units()
        } else {
            u32::from(here.collection.default_id.is_some())
        };
        let mut chosen: Vec<(u64, u32)> = here
            .by_id
            .iter()
            .filter(|row| **row >= spared)
            .map(|row| (mix(self.country.hash(here.salt, *row, 500 + salt)), *row))
            .collect();
        chosen.sort_unstable();
        chosen.truncate(count as usize);
        chosen.iter().map(|(_, row)| uid_text(here.id(*row)).to_owned()).collect()
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Insert { collection, count } => {
                if let Some(shelf) = self.shelf(collection) {
                    self.insert(shelf, *count);
                }
            }
            Change::Delete { collection, id } => {
                if let Some(shelf) = self.shelf(collection) {
                    self.delete(shelf, id);
                }
            }
            Change::Update { collection, id } => {
                if let Some(shelf) = self.shelf(collection) {
                    self.update(shelf, id);
                }
            }
            Change::DeleteSome { collection, count } => {
                if let Some(shelf) = self.shelf(collection) {
                    for id in self.choose(shelf, *count, self.moment) {
                        self.delete(shelf, &id);
                    }
                }
            }
            Change::UpdateSome { collection, count } => {
                if let Some(shelf) = self.shelf(collection) {
                    for id in self.choose(shelf, *count, self.moment) {
                        self.update(shelf, &id);
                    }
                }
            }
            Change::LoseSessions => self.door.lose_sessions(),
            Change::SystemId(id) => self.system_id.clone_from(id),
            Change::Database { seed } => self.change_database(*seed),
            Change::AdvanceClock(by) => {
                let by = i64::try_from(by.as_millis()).unwrap_or(0);
                match &mut self.clock.fixed_ms {
                    Some(fixed) => *fixed += by,
                    None => self.clock.skew_ms += by,
                }
            }
        }
    }

    /// Tells that a list was answered, and lets the script go on.
    pub(crate) fn list_answered(&mut self, shelf: usize) {
        self.shelves[shelf].lists_answered += 1;
        let count = self.shelves[shelf].lists_answered;
        let name = self.shelves[shelf].collection.name;
        let due: Vec<Change> = self
            .scripts
            .iter()
            .filter(|script| script.is_due(name, count))
            .map(|script| script.change.clone())
            .collect();
        for change in due {
            self.apply(&change);
        }
    }

    /// From now on the survivors are counted.
    pub(crate) fn set_mark(&mut self) {
        self.mark = self.moment;
    }

    /// Rows of a collection in the order of their ids: text of the id, and the object as a superuser gets it.
    pub(crate) fn truth(
        &self,
        shelf: usize,
        fields: &str,
        base_url: &str,
        percent: u8,
        mut each: impl FnMut(&str, &[u8]),
    ) {
        let plan = Plan::new(self, shelf, &fields::parse(fields));
        let mut pen = Pen::new(self, base_url);
        let mut out = Vec::new();
        for row in &self.shelves[shelf].by_id {
            if !self.is_visible(shelf, *row, percent) {
                continue;
            }
            out.clear();
            pen.object(&mut out, shelf, *row, &plan);
            each(uid_text(self.shelves[shelf].id(*row)), &out);
        }
    }

    /// Ids of rows that lived at the mark and live now.
    pub(crate) fn survivors(&self, shelf: usize) -> Vec<String> {
        let here = &self.shelves[shelf];
        let lived = |row: &&u32| here.born.get(row).is_none_or(|(moment, _)| *moment <= self.mark);
        here.by_id.iter().filter(lived).map(|row| uid_text(here.id(*row)).to_owned()).collect()
    }

    /// Ids born since the mark, whether they live or not.
    pub(crate) fn appeared(&self, shelf: usize) -> Vec<String> {
        let here = &self.shelves[shelf];
        let mut rows: Vec<u32> =
            here.born.iter().filter(|(_, (moment, _))| *moment > self.mark).map(|(row, _)| *row).collect();
        rows.sort_unstable();
        rows.iter().map(|row| uid_text(here.id(*row)).to_owned()).collect()
    }

    /// Ids deleted since the mark.
    pub(crate) fn vanished(&self, shelf: usize) -> Vec<String> {
        let here = &self.shelves[shelf];
        let mut rows: Vec<u32> =
            here.gone.iter().filter(|(_, moment)| **moment > self.mark).map(|(row, _)| *row).collect();
        rows.sort_unstable();
        rows.iter().map(|row| uid_text(here.id(*row)).to_owned()).collect()
    }
}

impl World {
    /// Scheme, host and context path as the request saw them.
    pub(crate) fn base_url(&self, request: &crate::request::Request) -> String {
        format!("http://{}{}", request.header("host").unwrap_or("localhost"), self.context_path)
    }
}
