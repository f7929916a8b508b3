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

use std::sync::Arc;

pub(crate) use block::{fetched_bytes, waits};
pub use finding::{Finding, Severity};
use harvester_actors::events::{Event, Listener};
pub use log::LogListener;
pub(crate) use redactor::Redacting;
pub use redactor::Redactor;
pub use screen::{ProgressMode, Screen};
pub use show::ProgressListener;
pub use status::{Status, StatusListener};

/// Tells every event to each of its parts, in order.
#[derive(Clone, Default)]
pub struct Listeners(Vec<Arc<dyn Listener>>);

impl Listeners {
    /// Adds a part.
    #[must_use]
    pub fn with(mut self, listener: impl Listener + 'static) -> Self {
        self.0.push(Arc::new(listener));
        self
    }
}

impl Listener for Listeners {
    fn on_event(&self, event: &Event) {
        for listener in &self.0 {
            listener.on_event(event);
        }
    }
}
