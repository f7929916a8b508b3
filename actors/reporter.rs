//! The reporter receives every fact of a run in order and passes it on to those who show it.
//!
//! ```text
//! everyone ──EmitEvent──▶ Reporter ──Event──▶ Listener (log, progress, status file, …)
//! ```
//!
//! It owns the counters that only a report needs. It decides nothing, never talks back, and has no clock of its own: the
//! pace comes from the supervisor, so that listeners see no pace from a run whose supervisor hangs.

use std::sync::Arc;

use actix::prelude::*;

use crate::{
    events::{Event, Listener},
    last_will::send_now,
};

/// Hands the reporter one fact.
#[derive(Message)]
#[rtype(result = "()")]
pub struct EmitEvent(pub Event);

/// Asks for the counters. The reply comes after every fact emitted before it has been shown.
#[derive(Message)]
#[rtype(result = "RunCounters")]
pub struct CurrentCounters;

/// What has been counted so far.
#[derive(Clone, Debug, Default, MessageResponse)]
pub struct RunCounters {
    /// Pages asked for again.
    pub retries: u64,
    /// Things a person should know at the end although they changed nothing.
    pub warnings: Vec<String>,
}

/// Emits facts without waiting for them to be shown. Cheap to clone.
#[derive(Clone)]
pub struct EventSender(Recipient<EmitEvent>);

impl EventSender {
    /// A sender to this reporter.
    pub fn new(reporter: &Addr<Reporter>) -> Self {
        EventSender(reporter.clone().recipient())
    }

    /// Emits one fact. Facts are tiny and as many as pages, so their mailbox needs no bound.
    pub fn emit(&self, event: Event) {
        send_now(&self.0, EmitEvent(event));
    }
}

/// See the module.
pub struct Reporter {
    /// Shows what is emitted.
    listener: Arc<dyn Listener>,
    /// The counters.
    counters: RunCounters,
}

impl Reporter {
    /// A reporter that passes everything on to `listener`.
    pub fn new(listener: Arc<dyn Listener>) -> Self {
        Reporter { listener, counters: RunCounters::default() }
    }

    /// Counts what a report needs of `event` and passes it on.
    fn record(&mut self, event: &Event) {
        match event {
            Event::PartitionReturned { .. } => self.counters.retries += 1,
            Event::Recovered { rebuilt: Some(reason), .. } => {
                self.counters.warnings.push(format!("the checkpoint store was rebuilt from the spool: {reason}"));
            }
            _ => {}
        }
        self.listener.on_event(event);
    }
}

impl Actor for Reporter {
    type Context = Context<Self>;
}

impl Handler<EmitEvent> for Reporter {
    type Result = ();

    fn handle(&mut self, EmitEvent(event): EmitEvent, _: &mut Self::Context) {
        self.record(&event);
    }
}

impl Handler<CurrentCounters> for Reporter {
    type Result = RunCounters;

    fn handle(&mut self, _: CurrentCounters, _: &mut Self::Context) -> Self::Result {
        self.counters.clone()
    }
}
