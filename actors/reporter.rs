//! The reporter hears every fact of a run in order and passes it on to those who show it.
//!
//! ```text
//! everyone ──Tell──▶ Reporter ──Event──▶ Listener (log, progress, status file, …)
//! ```
//!
//! It owns the counters that only a report needs. It decides nothing, never talks back, and has no clock of its own: the
//! pace comes from the supervisor, so that who listens hears no pace from a run whose supervisor hangs.

use std::sync::Arc;

use actix::prelude::*;

use crate::{
    events::{Event, Listener},
    last_will::send_now,
};

/// Tells the reporter one fact.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Tell(pub Event);

/// Asks for the counters. The reply comes after every fact told before it has been shown.
#[derive(Message)]
#[rtype(result = "Told")]
pub struct CurrentTold;

/// What has been counted so far.
#[derive(Clone, Debug, Default, MessageResponse)]
pub struct Told {
    /// Pages asked for again.
    pub retries: u64,
    /// Things a person should know at the end although they changed nothing.
    pub warnings: Vec<String>,
}

/// Tells facts without waiting for them to be shown. Cheap to clone.
#[derive(Clone)]
pub struct Teller(Recipient<Tell>);

impl Teller {
    /// A teller to this reporter.
    pub fn new(reporter: &Addr<Reporter>) -> Self {
        Teller(reporter.clone().recipient())
    }

    /// Tells one fact. Facts are tiny and as many as pages, so their mailbox needs no bound.
    pub fn tell(&self, event: Event) {
        send_now(&self.0, Tell(event));
    }
}

/// See the module.
pub struct Reporter {
    /// Who shows what is told.
    listener: Arc<dyn Listener>,
    /// The counters.
    told: Told,
}

impl Reporter {
    /// A reporter that passes everything on to `listener`.
    pub fn new(listener: Arc<dyn Listener>) -> Self {
        Reporter { listener, told: Told::default() }
    }

    /// Counts what a report needs of `event` and passes it on.
    fn hear(&mut self, event: &Event) {
        match event {
            Event::PartitionReturned { .. } => self.told.retries += 1,
            Event::Recovered { rebuilt: Some(reason), .. } => {
                self.told.warnings.push(format!("the checkpoint store was rebuilt from the spool: {reason}"));
            }
            _ => {}
        }
        self.listener.hear(event);
    }
}

impl Actor for Reporter {
    type Context = Context<Self>;
}

impl Handler<Tell> for Reporter {
    type Result = ();

    fn handle(&mut self, Tell(event): Tell, _: &mut Self::Context) {
        self.hear(&event);
    }
}

impl Handler<CurrentTold> for Reporter {
    type Result = Told;

    fn handle(&mut self, _: CurrentTold, _: &mut Self::Context) -> Self::Result {
        self.told.clone()
    }
}
