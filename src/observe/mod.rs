//! Events become what people and machines see.

mod block;
mod canvas;
pub mod finding;
pub mod log;
pub mod numbers;
pub mod progress;
pub mod redactor;
pub mod report;
pub mod screen;
mod show;
pub mod status;
mod voice;
pub(crate) mod waits;
pub(crate) mod words;

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

pub(crate) use block::{fetched_bytes, waits};
pub use finding::{Finding, Severity};
use harvester_actors::events::{Event, Listener};
pub use log::LogObserver;
pub use progress::Progress;
pub(crate) use redactor::Redacting;
pub use redactor::Redactor;
pub use screen::{ProgressMode, Screen};
pub use show::ProgressObserver;
pub use status::{Status, StatusObserver};
use tokio::time::Instant;

/// Shows what happens: is given each event of a run, and what all events so far amount to.
pub trait Observer: Send + Sync {
    /// Takes one event.
    ///
    /// - `now`: time since the process began.
    fn observe(&self, event: &Event, progress: &Progress, now: Duration);
}

/// The one listener of a run: adds the events up, and hands the sums to each observer in order.
pub struct Observers {
    began: Instant,
    progress: Mutex<Progress>,
    observers: Vec<Box<dyn Observer>>,
}

impl Default for Observers {
    fn default() -> Self {
        Observers { began: Instant::now(), progress: Mutex::default(), observers: Vec::new() }
    }
}

impl Observers {
    /// Adds an observer.
    #[must_use]
    pub fn with(mut self, observer: impl Observer + 'static) -> Self {
        self.observers.push(Box::new(observer));
        self
    }
}

impl Listener for Observers {
    fn on_event(&self, event: &Event) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.began.elapsed();
        progress.apply(event, now);
        for observer in &self.observers {
            observer.observe(event, &progress, now);
        }
    }
}
