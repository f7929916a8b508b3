//! Starts a stand-in and holds it: settings before, commands and questions while it runs.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::auth::{Door, User};
use crate::clock::{self, ServerClock};
use crate::collation::Collation;
use crate::collections;
use crate::country::Country;
use crate::dialect::parse_version;
use crate::faults::{FaultRule, Restart, Script as FaultScript};
use crate::http::{self, Command, Shared, Switches, lock};
use crate::latency::Latency;
use crate::ledger::Ledger;
use crate::mutations::{Change, Schedule, Script};
use crate::quirks::{Quirk, Quirks};
use crate::wire::Framing;
use crate::world::{Deleted, World, WorldPlan};

/// Settings of a stand-in. Every method has a default that suits most tests.
#[derive(Debug, Clone)]
pub struct Builder {
    version: String,
    seed: u64,
    org_units: u32,
    entities: Option<u32>,
    without_analytics_tables: bool,
    sizes: HashMap<String, u32>,
    system_id: String,
    collation: Collation,
    clock: ServerClock,
    server_date: Option<String>,
    users: Vec<User>,
    locks: bool,
    password_check: Duration,
    session_timeout: Duration,
    refused: HashMap<String, u16>,
    scripts: Vec<Script>,
    schedules: Vec<Schedule>,
    quirks: Quirks,
    unstable_ties: bool,
    next_page_base: Option<String>,
    context_path: String,
    address: SocketAddr,
    switches: Switches,
    rules: Vec<FaultRule>,
    ledger_file: Option<std::path::PathBuf>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            version: "2.40".into(),
            seed: 1,
            org_units: 1000,
            entities: None,
            without_analytics_tables: false,
            sizes: HashMap::new(),
            system_id: "7d2b9a54-2f10-4f5d-9d35-5a7a5d0c0001".into(),
            collation: Collation::C,
            clock: ServerClock::default(),
            server_date: None,
            users: Vec::new(),
            locks: false,
            password_check: Duration::ZERO,
            session_timeout: Duration::from_hours(1),
            refused: HashMap::new(),
            scripts: Vec::new(),
            schedules: Vec::new(),
            quirks: Quirks::default(),
            unstable_ties: false,
            next_page_base: None,
            context_path: String::new(),
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            switches: Switches {
                gzip: false,
                framing: Framing::Length,
                chunk_bytes: 8192,
                answers_per_connection: None,
                idle_timeout: Duration::from_mins(1),
                latency: Latency::None,
            },
            rules: Vec::new(),
            ledger_file: None,
        }
    }
}

impl Builder {
    /// `2.25` to `2.43`, with or without a patch; default `2.40`.
    #[must_use]
    pub fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    /// What the content is computed from; default 1. Two stand-ins of one seed and scale hold the same rows.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Number of organisation units, default 1,000; the other collections' sizes follow from it.
    #[must_use]
    pub fn org_units(mut self, org_units: u32) -> Self {
        self.org_units = org_units;
        self
    }

    /// Number of tracked entities, default two for each organisation unit; enrollments and events follow from it.
    #[must_use]
    pub fn tracked_entities(mut self, entities: u32) -> Self {
        self.entities = Some(entities);
        self
    }

    /// Analytics of events and enrollments find no tables, as after a job that failed: 409 E7144.
    #[must_use]
    pub fn without_analytics_tables(mut self) -> Self {
        self.without_analytics_tables = true;
        self
    }

    /// Size of one other collection.
    #[must_use]
    pub fn size(mut self, collection: &str, rows: u32) -> Self {
        self.sizes.insert(collection.into(), rows);
        self
    }

    /// The database's identity; a fixed UUID by default.
    #[must_use]
    pub fn system_id(mut self, system_id: &str) -> Self {
        self.system_id = system_id.into();
        self
    }

    /// How the database orders text; bytes by default.
    #[must_use]
    pub fn collation(mut self, collation: Collation) -> Self {
        self.collation = collation;
        self
    }

    /// The server's zone: IANA name and minutes east of Greenwich; UTC by default.
    #[must_use]
    pub fn time_zone(mut self, name: &str, offset_minutes: i32) -> Self {
        self.clock.zone = name.into();
        self.clock.offset_minutes = offset_minutes;
        self
    }

    /// Stops the server's clock at this local time, e.g. `2024-05-01T10:11:12.345`; only commands move it then.
    #[must_use]
    pub fn server_date(mut self, local: &str) -> Self {
        self.server_date = Some(local.into());
        self
    }

    /// Lets the server's clock run, but wrongly: in `serverDate`, in what it saves, in the `Date` header.
    #[must_use]
    pub fn clock_skew_ms(mut self, skew_ms: i64) -> Self {
        self.clock.skew_ms = skew_ms;
        self
    }

    /// Adds somebody who may log in; without any it is `admin`, `district`, superuser.
    #[must_use]
    pub fn user(mut self, user: User) -> Self {
        self.users.push(user);
        self
    }

    /// Locks accounts after repeated failures (`keyLockMultipleFailedLogins`).
    #[must_use]
    pub fn lockout(mut self) -> Self {
        self.locks = true;
        self
    }

    /// What checking a password costs, as bcrypt does; nothing by default.
    #[must_use]
    pub fn password_check(mut self, time: Duration) -> Self {
        self.password_check = time;
        self
    }

    /// Idle time after which a session is gone; an hour by default.
    #[must_use]
    pub fn session_timeout(mut self, time: Duration) -> Self {
        self.session_timeout = time;
        self
    }

    /// Answers a collection with a status (403 or 404) to everybody.
    #[must_use]
    pub fn refuse_collection(mut self, collection: &str, status: u16) -> Self {
        self.refused.insert(collection.into(), status);
        self
    }

    /// Changes the truth once, after the `number`th list request of `collection` was answered.
    #[must_use]
    pub fn after_lists(mut self, collection: &str, number: u64, change: Change) -> Self {
        self.scripts.push(Script::after(collection, number, change));
        self
    }

    /// Changes the truth after every `number`th list request of `collection`.
    #[must_use]
    pub fn every_lists(mut self, collection: &str, number: u64, change: Change) -> Self {
        self.scripts.push(Script::every(collection, number, change));
        self
    }

    /// Changes the truth once, just before the `number`th request is looked at, from 1.
    #[must_use]
    pub fn at_request(mut self, number: u64, change: Change) -> Self {
        self.schedules.push(Schedule::AtRequest(number, change));
        self
    }

    /// Changes the truth so many times a second, from the first request on; what is due happens when a request comes.
    #[must_use]
    pub fn steadily(mut self, per_second: u32, change: Change) -> Self {
        self.schedules.push(Schedule::Steadily(per_second, change));
        self
    }

    /// Makes the server odd.
    #[must_use]
    pub fn quirk(mut self, quirk: Quirk) -> Self {
        self.quirks.add(quirk);
        self
    }

    /// Rows that an order leaves equal come in another order on every other request.
    #[must_use]
    pub fn unstable_ties(mut self) -> Self {
        self.unstable_ties = true;
        self
    }

    /// Scheme, host and port that `nextPage` names in place of the right ones, e.g. `https://internal:8443`.
    #[must_use]
    pub fn next_page_base(mut self, base: &str) -> Self {
        self.next_page_base = Some(base.into());
        self
    }

    /// Path before `/api`, e.g. `/dhis`; none by default.
    #[must_use]
    pub fn context_path(mut self, path: &str) -> Self {
        self.context_path = path.trim_end_matches('/').into();
        self
    }

    /// Listens on this port of 127.0.0.1; 0, the default, takes a free one.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.address.set_port(port);
        self
    }

    /// Compresses for clients that accept it, as nginx does: chunked, weak ETag.
    #[must_use]
    pub fn gzip(mut self) -> Self {
        self.switches.gzip = true;
        self
    }

    /// How bodies end; by length unless compressed.
    #[must_use]
    pub fn framing(mut self, framing: Framing) -> Self {
        self.switches.framing = framing;
        self
    }

    /// Size of chunks, default 8,192 bytes.
    #[must_use]
    pub fn chunk_bytes(mut self, bytes: usize) -> Self {
        self.switches.chunk_bytes = bytes;
        self
    }

    /// Ends every connection after so many answers (the last one says so).
    #[must_use]
    pub fn answers_per_connection(mut self, answers: u64) -> Self {
        self.switches.answers_per_connection = Some(answers);
        self
    }

    /// Ends connections after so long without a request, without a word; a minute by default.
    #[must_use]
    pub fn idle_timeout(mut self, time: Duration) -> Self {
        self.switches.idle_timeout = time;
        self
    }

    /// How slow the server is.
    #[must_use]
    pub fn latency(mut self, latency: Latency) -> Self {
        self.switches.latency = latency;
        self
    }

    /// Adds a fault.
    #[must_use]
    pub fn fault(mut self, rule: FaultRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Appends the ledger to this file as JSON lines, one when a request arrives and one when it ends.
    #[must_use]
    pub fn ledger_file(mut self, path: &Path) -> Self {
        self.ledger_file = Some(path.into());
        self
    }

    /// Starts the server on a thread of its own.
    ///
    /// # Errors
    /// A port that is taken, a version, date or collection that does not exist, a ledger file that cannot be opened.
    pub fn start(self) -> io::Result<StandIn> {
        let wrong = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
        let (version, minor) = parse_version(&self.version)
            .ok_or_else(|| wrong(format!("`{}` is no version from 2.25 to 2.43", self.version)))?;
        let mut clock = self.clock;
        if let Some(date) = &self.server_date {
            clock.fixed_ms = Some(clock::parse_local(date).ok_or_else(|| wrong(format!("`{date}` is no date")))?);
        }
        let mut users = self.users;
        if users.is_empty() {
            users.push(User::superuser("admin", "district"));
        }
        let mut door = Door::default();
        door.users = users;
        door.locks = self.locks;
        door.password_check = self.password_check;
        door.session_timeout = self.session_timeout;
        door.seed = self.seed;
        let plan = WorldPlan {
            country: Country::new(self.seed, self.org_units),
            entities: self.entities.unwrap_or(self.org_units * 2),
            without_analytics_tables: self.without_analytics_tables,
            minor,
            version,
            system_id: self.system_id,
            collation: self.collation,
            clock,
            sizes: self.sizes,
            refused: self.refused,
            scripts: self.scripts,
            schedules: self.schedules,
            quirks: self.quirks,
            unstable_ties: self.unstable_ties,
            next_page_base: self.next_page_base,
            context_path: self.context_path.clone(),
        };
        for name in plan.sizes.keys().chain(plan.refused.keys()) {
            if collections::position(name).is_none() {
                return Err(wrong(format!("there is no collection `{name}`")));
            }
        }
        let listener = std::net::TcpListener::bind(self.address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (commands, obeyed) = tokio::sync::mpsc::unbounded_channel();
        let mut faults = FaultScript::default();
        for rule in self.rules {
            faults.add(rule);
        }
        let shared = Arc::new(Shared::new(World::new(plan, door), faults, self.switches, commands));
        if let Some(path) = &self.ledger_file {
            shared.ledger.write_to(std::fs::File::options().create(true).append(true).open(path)?);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("stand-in".into())
            .spawn(move || runtime.block_on(http::listen(served, listener, obeyed)))?;
        let url = format!("http://{address}{}", self.context_path);
        Ok(StandIn { shared, url, address, thread: Some(thread) })
    }
}

/// A running stand-in. Dropping it ends every connection, frees the port and joins its thread.
#[derive(Debug)]
pub struct StandIn {
    shared: Arc<Shared>,
    url: String,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.shared.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl StandIn {
    /// Settings to start from.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A stand-in with all defaults: 2.40, 1,000 organisation units, `admin`/`district`, a free port.
    ///
    /// # Errors
    /// No port could be taken.
    pub fn start() -> io::Result<Self> {
        Builder::default().start()
    }

    /// Scheme, host, port and context path; no slash at its end, no `/api`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The witness.
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger.clone()
    }

    /// Adds a fault to the running server.
    pub fn add_fault(&self, rule: FaultRule) {
        lock(&self.shared.faults).add(rule);
    }

    /// Ends all faults, and a port that refuses listens again.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
        self.up();
    }

    /// Changes how slow the server is.
    pub fn set_latency(&self, latency: Latency) {
        lock(&self.shared.switches).latency = latency;
    }

    /// Closes the port and every connection; returns when connections are refused.
    pub fn down(&self) {
        let (done, wait) = mpsc::channel();
        let _ = self.shared.commands.send(Command::Down { lasting: None, done: Some(done) });
        let _ = wait.recv();
    }

    /// Listens again on the same port; returns when it does.
    pub fn up(&self) {
        let (done, wait) = mpsc::channel();
        let _ = self.shared.commands.send(Command::Up { done: Some(done) });
        let _ = wait.recv();
    }

    /// Ends every connection, goes on listening.
    pub fn disconnect(&self) {
        let _ = self.shared.commands.send(Command::Disconnect);
    }

    /// Restarts the server, alone or behind a proxy that stays up; returns when the first phase has begun.
    pub fn restart(&self, plan: Restart) {
        let (done, wait) = mpsc::channel();
        self.shared.restart(plan, Some(done));
        // Where no phase refuses connections the sender is gone already.
        let _ = wait.recv();
    }

    /// Forgets every session.
    pub fn lose_sessions(&self) {
        lock(&self.shared.world).door.lose_sessions();
    }

    /// Ousts a user's sessions, as logins elsewhere do: a request with such a cookie gets a 302 to `logout.action`,
    /// whatever else it carries.
    pub fn oust_sessions(&self, user: &str) {
        lock(&self.shared.world).door.oust(user);
    }

    /// Living sessions.
    pub fn session_count(&self) -> usize {
        lock(&self.shared.world).door.session_count()
    }

    /// Stops the server's clock at this local time; false when it is no date.
    pub fn set_server_date(&self, local: &str) -> bool {
        let date = clock::parse_local(local);
        if date.is_some() {
            lock(&self.shared.world).clock.fixed_ms = date;
        }
        date.is_some()
    }

    /// The server's local time, as `system/info` writes it.
    pub fn server_date(&self) -> String {
        clock::local(lock(&self.shared.world).clock.now_ms())
    }

    /// The database's identity at this moment.
    pub fn system_id(&self) -> String {
        lock(&self.shared.world).system_id.clone()
    }

    /// Applies a change now.
    pub fn apply(&self, change: &Change) {
        lock(&self.shared.world).apply(change);
    }

    /// Adds rows to a collection; their ids. Empty when this version has no such collection.
    pub fn insert(&self, collection: &str, count: u32) -> Vec<String> {
        let mut world = lock(&self.shared.world);
        world.shelf(collection).map_or_else(Vec::new, |shelf| world.insert(shelf, count))
    }

    /// Deletes a row; false when it does not live.
    pub fn delete(&self, collection: &str, id: &str) -> bool {
        let mut world = lock(&self.shared.world);
        world.shelf(collection).is_some_and(|shelf| world.delete(shelf, id))
    }

    /// Saves a row again; false when it does not live.
    pub fn update(&self, collection: &str, id: &str) -> bool {
        let mut world = lock(&self.shared.world);
        world.shelf(collection).is_some_and(|shelf| world.update(shelf, id))
    }

    /// Names of the collections of this version, in import order.
    pub fn collections(&self) -> Vec<&'static str> {
        let world = lock(&self.shared.world);
        let here = world.shelves.iter().map(|shelf| shelf.collection);
        here.filter(|collection| collection.exists_in(world.dialect.minor)).map(|collection| collection.name).collect()
    }

    /// How many rows a collection has now; 0 when this version has none such.
    pub fn count(&self, collection: &str) -> usize {
        let world = lock(&self.shared.world);
        world.shelf(collection).map_or(0, |shelf| world.shelves[shelf].by_id.len())
    }

    /// Every living row exactly as the server sends it to a superuser, in the server's order of ids.
    pub fn truth(&self, collection: &str, fields: &str) -> Vec<String> {
        let mut rows = Vec::new();
        self.truth_rows(collection, fields, |_, row| rows.push(String::from_utf8_lossy(row).into_owned()));
        rows
    }

    /// The same, row by row (id, bytes), for collections too large to hold. The server waits meanwhile.
    pub fn truth_rows(&self, collection: &str, fields: &str, each: impl FnMut(&str, &[u8])) {
        let world = lock(&self.shared.world);
        if let Some(shelf) = world.shelf(collection) {
            world.truth(shelf, fields, &self.url, 100, each);
        }
    }

    /// Rows as one user sees them; empty when there is no such user.
    pub fn truth_for(&self, user: &str, collection: &str, fields: &str) -> Vec<String> {
        let world = lock(&self.shared.world);
        let mut rows = Vec::new();
        let percent = world.door.users.iter().find(|known| known.name == user).map(|known| known.visible_percent);
        if let (Some(percent), Some(shelf)) = (percent, world.shelf(collection)) {
            world.truth(shelf, fields, &self.url, percent, |_, row| {
                rows.push(String::from_utf8_lossy(row).into_owned())
            });
        }
        rows
    }

    /// Ids of the living rows in the server's order.
    pub fn ids(&self, collection: &str) -> Vec<String> {
        let mut ids = Vec::new();
        self.truth_rows(collection, "id", |id, _| ids.push(id.to_owned()));
        ids
    }

    /// Every living data value of a data set, of the set's own period type, with its whole key, as a server of this
    /// version writes it where nothing is hoisted to the envelope; empty when there is no such data set. Elements that
    /// another data set reports by another period type have further values, which a window of dates finds too.
    pub fn truth_data_values(&self, data_set: &str) -> Vec<String> {
        let world = lock(&self.shared.world);
        let row = world.shelf("dataSets").and_then(|shelf| world.find(shelf, data_set));
        row.map_or_else(Vec::new, |row| crate::routes::data_values::truth(&world, row))
    }

    /// Ids of a program's `events`, `enrollments` or `trackedEntities` that are not deleted, in the order of bytes; empty
    /// when there is no such program.
    pub fn truth_tracked(&self, things: &str, program: &str) -> Vec<String> {
        let world = lock(&self.shared.world);
        let row = world.shelf("programs").and_then(|shelf| world.find(shelf, program));
        let thing = crate::routes::tracker::thing(things);
        row.zip(thing).map_or_else(Vec::new, |(row, thing)| crate::routes::tracker::truth(&world, thing, row))
    }

    /// Names of the members that the server holds in sets: the lists that come in another order each time where
    /// [`Quirk::ShuffledSets`] says so.
    pub fn sets(&self, collection: &str) -> Vec<&'static str> {
        let world = lock(&self.shared.world);
        let members = world.shelf(collection).map_or(&[][..], |shelf| &world.shelves[shelf].members);
        members.iter().filter(|member| member.kind.is_set()).map(|member| member.name).collect()
    }

    /// Begins to count appearances and disappearances; without it they count from the start.
    pub fn mark(&self) {
        lock(&self.shared.world).set_mark();
    }

    /// Ids of the rows that lived all the time since [`StandIn::mark`], in the server's order.
    pub fn truth_survivors(&self, collection: &str) -> Vec<String> {
        let world = lock(&self.shared.world);
        world.shelf(collection).map_or_else(Vec::new, |shelf| world.survivors(shelf))
    }

    /// Ids of the rows born since the mark, living or not.
    pub fn appeared(&self, collection: &str) -> Vec<String> {
        let world = lock(&self.shared.world);
        world.shelf(collection).map_or_else(Vec::new, |shelf| world.appeared(shelf))
    }

    /// Ids of the rows deleted since the mark.
    pub fn vanished(&self, collection: &str) -> Vec<String> {
        let world = lock(&self.shared.world);
        world.shelf(collection).map_or_else(Vec::new, |shelf| world.vanished(shelf))
    }

    /// Id of a collection's row by its number in the country, living or not.
    #[cfg(test)]
    pub(crate) fn id_of_row(&self, collection: &str, row: usize) -> Option<String> {
        let world = lock(&self.shared.world);
        let shelf = &world.shelves[world.shelf(collection)?];
        (row < shelf.base as usize)
            .then(|| crate::country::uid_text(shelf.id(u32::try_from(row).unwrap_or(u32::MAX))).to_owned())
    }

    /// Children per organisation unit.
    #[cfg(test)]
    pub(crate) fn branching(&self) -> usize {
        lock(&self.shared.world).country.branching as usize
    }

    /// What `/api/deletedObjects` holds, oldest first.
    pub fn deleted(&self) -> Vec<Deleted> {
        lock(&self.shared.world).deleted.clone()
    }

    /// The rows of `/api/deletedObjects` exactly as the server sends them, oldest first.
    pub fn truth_deleted(&self) -> Vec<String> {
        let world = lock(&self.shared.world);
        let render = |row| {
            let mut out = Vec::new();
            crate::routes::deleted_objects::push(&mut out, row);
            String::from_utf8_lossy(&out).into_owned()
        };
        world.deleted.iter().map(render).collect()
    }
}
