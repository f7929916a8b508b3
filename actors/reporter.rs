//! The reporter hears every fact of a run in order and passes it on to those who show it.
//!
//! ```text
//! everyone ──Tell──▶ Reporter ──Event──▶ Listener (log, progress, status file, …)
//!                       │ each second: how fast, what for
//!                       └──CurrentPace──▶ RateLimiter
//! ```
//!
//! It owns the counters that only a report needs. It decides nothing and never talks back.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;

use crate::{
    events::{Event, Listener, Pace},
    rate_limiter::{CurrentPace, RateLimiter},
    supervisor::RunOver,
};

/// How often the pace is told: often enough for a bar, too rarely to cost anything.
const PACE_INTERVAL: Duration = Duration::from_secs(1);

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
    /// The last pace heard of.
    pub pace: Pace,
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
        self.0.do_send(Tell(event));
    }
}

/// See the module.
pub struct Reporter {
    /// Who shows what is told.
    listener: Arc<dyn Listener>,
    /// Who knows the pace; `None` where a test has no limiter.
    limiter: Option<Addr<RateLimiter>>,
    /// The counters.
    told: Told,
}

impl Reporter {
    /// A reporter that passes everything on to `listener`.
    pub fn new(listener: Arc<dyn Listener>, limiter: Option<Addr<RateLimiter>>) -> Self {
        Reporter { listener, limiter, told: Told::default() }
    }

    /// Counts what a report needs of `event` and passes it on.
    fn hear(&mut self, event: &Event) {
        match event {
            Event::PartitionReturned { .. } => self.told.retries += 1,
            Event::Pace(pace) => self.told.pace = pace.clone(),
            Event::Recovered { rebuilt: Some(reason), .. } => {
                self.told.warnings.push(format!("the checkpoint store was rebuilt from the spool: {reason}"));
            }
            _ => {}
        }
        self.listener.hear(event);
    }

    /// Asks the limiter how fast it goes, and tells it.
    fn ask_pace(&mut self, ctx: &mut Context<Self>) {
        let Some(limiter) = self.limiter.clone() else { return };
        let ask = async move { limiter.send(CurrentPace).await.ok() }.into_actor(self);
        ctx.spawn(ask.map(|snapshot, reporter, _| {
            if let Some(snapshot) = snapshot {
                reporter.hear(&Event::Pace(snapshot.to_pace()));
            }
        }));
    }
}

impl Actor for Reporter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(PACE_INTERVAL, |reporter, ctx| reporter.ask_pace(ctx));
    }
}

impl Handler<Tell> for Reporter {
    type Result = ();

    fn handle(&mut self, Tell(event): Tell, _: &mut Self::Context) {
        self.hear(&event);
    }
}

impl Handler<CurrentTold> for Reporter {
    type Result = ResponseActFuture<Self, Told>;

    fn handle(&mut self, _: CurrentTold, _: &mut Self::Context) -> Self::Result {
        let limiter = self.limiter.clone();
        let ask = async move {
            match limiter {
                Some(limiter) => limiter.send(CurrentPace).await.ok(),
                None => None,
            }
        };
        Box::pin(ask.into_actor(self).map(|snapshot, reporter, _| {
            if let Some(snapshot) = snapshot {
                reporter.told.pace = snapshot.to_pace();
            }
            reporter.told.clone()
        }))
    }
}

impl Handler<RunOver> for Reporter {
    type Result = ();

    fn handle(&mut self, _: RunOver, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
