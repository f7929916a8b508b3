//! What a refusal of credentials means that were accepted before.
//!
//! A database hiccup during authentication is a 401 on a real server (`dhis2-api.md` §16: 2 of 70 cuts), and a wrong password
//! that is sent again and again locks an account. So one of the fetchers asks for all of them: after five seconds, and after
//! thirty more, by a ping. Whoever hears the same meanwhile waits for what comes of it, and nothing new is asked until then.

use std::{
    sync::{Mutex as StdMutex, PoisonError},
    time::Duration,
};

use dhis2::{Client, Error};
use harvester_actors::failure::{Failure, FailureClass};
use tokio::{sync::Mutex, time::Instant};

/// How long after a refusal the credentials are tried again, and once more.
const WAITS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];

/// See the module.
#[derive(Default)]
pub(crate) struct Denials {
    /// The refusal that is final. Locked while it is found out.
    verdict: Mutex<Option<Failure>>,
    /// When the credentials were last seen to be accepted.
    accepted_at: StdMutex<Option<Instant>>,
}

impl Denials {
    /// The source has answered a request with these credentials.
    pub(crate) fn accepted(&self) {
        *self.accepted_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn accepted_at(&self) -> Option<Instant> {
        *self.accepted_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody doubts the credentials.
    ///
    /// # Errors
    /// The refusal, once it is final.
    pub(crate) async fn settled(&self) -> Result<(), Failure> {
        self.verdict.lock().await.clone().map_or(Ok(()), Err)
    }

    /// What `error` means for a request that was sent at `asked_at`; `failure` is what it would mean without a past.
    pub(crate) async fn judge(&self, client: &Client, error: &Error, failure: Failure, asked_at: Instant) -> Failure {
        let was_accepted = self.accepted_at().is_some() && harvester_pacing::control!("denial");
        if failure.class != FailureClass::Denied || error.status() != Some(401) || !was_accepted {
            return failure;
        }
        let mut verdict = self.verdict.lock().await;
        if let Some(verdict) = &*verdict {
            return verdict.clone();
        }
        let passed = |message: &str| Failure::new(FailureClass::Transient, format!("{message}: {failure}"));
        if self.accepted_at() > Some(asked_at) {
            return passed("the credentials have been accepted since");
        }
        for wait in WAITS {
            tracing::warn!(
                wait_s = wait.as_secs(),
                error = %failure,
                "the server refuses credentials that it had accepted, and is asked again"
            );
            tokio::time::sleep(wait).await;
            match client.ping().await {
                Ok(()) => {
                    self.accepted();
                    return passed("the server refused credentials that it accepts");
                }
                Err(error) if error.status() == Some(401) => {}
                // Whatever else it says, it says nothing about the credentials.
                Err(_) => return passed("the server refused credentials that it had accepted"),
            }
        }
        *verdict = Some(failure.clone());
        failure
    }
}
