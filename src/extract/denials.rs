//! What a refusal of credentials means that were accepted before.
//!
//! A database hiccup during authentication is a 401 on a real server (measured: after 2 of 70 cuts of its database connection), and a wrong password
//! that is sent again and again locks an account. So one of the fetchers asks for all of them: after five seconds, and after
//! thirty more, by a ping, behind which the question itself has another try. Whoever hears the same meanwhile waits for what comes of it, and nothing new is asked until then.

use std::{
    collections::BTreeMap,
    sync::{Mutex as StdMutex, MutexGuard, PoisonError},
    time::Duration,
};

use dhis2::{Client, Error};
use harvester_actors::failure::{Failure, FailureClass};
use tokio::{sync::Mutex, time::Instant};

use super::gate::SourceGate;

/// How long after a refusal the credentials are tried again, and once more.
const WAITS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(30)];

/// Decides refusals of credentials for all fetchers of a run.
#[derive(Default)]
pub(crate) struct Denials {
    /// The refusal that is final. Locked while it is found out.
    verdict: Mutex<Option<Failure>>,
    known: StdMutex<Known>,
}

/// What is known of the credentials.
#[derive(Default)]
struct Known {
    /// When they were last seen to be accepted.
    accepted_at: Option<Instant>,
    /// How often each question that is refused has been asked again.
    asked_again: BTreeMap<String, usize>,
}

impl Denials {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The source has answered a question with these credentials. `question` names it.
    pub(crate) fn accepted(&self, question: &str) {
        let mut known = self.known();
        known.accepted_at = Some(Instant::now());
        known.asked_again.remove(question);
    }

    /// Waits until nobody doubts the credentials.
    ///
    /// # Errors
    /// The refusal, once it is final.
    pub(crate) async fn settled(&self) -> Result<(), Failure> {
        self.verdict.lock().await.clone().map_or(Ok(()), Err)
    }

    /// What `error` means for a question that was asked at `asked_at`; `failure` is what it would mean without a past.
    pub(crate) async fn judge(
        &self,
        client: &Client,
        gate: &SourceGate,
        question: &str,
        error: &Error,
        failure: Failure,
        asked_at: Instant,
    ) -> Failure {
        let was_accepted = self.known().accepted_at.is_some() && harvester_pacing::control!("denial");
        if failure.class != FailureClass::Denied || error.status() != Some(401) || !was_accepted {
            return failure;
        }
        let mut verdict = self.verdict.lock().await;
        if let Some(verdict) = &*verdict {
            return verdict.clone();
        }
        let passed = |message: &str| Failure::new(FailureClass::Transient, format!("{message}: {failure}"));
        if self.known().accepted_at > Some(asked_at) {
            return passed("the credentials have been accepted since");
        }
        while let Some(wait) = self.next_wait(question) {
            tracing::warn!(
                wait_s = wait.as_secs(),
                error = %failure,
                "the server refuses credentials that it had accepted, and is asked again"
            );
            if !gate.rests(wait).await {
                return passed("the run stops");
            }
            match client.ping().await {
                // The question itself has another try; what a ping is granted says little about it.
                Ok(()) => {
                    self.known().accepted_at = Some(Instant::now());
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

    /// How long until a question is asked again; `None` when it has been often enough.
    fn next_wait(&self, question: &str) -> Option<Duration> {
        let mut known = self.known();
        let asked_again = known.asked_again.entry(question.to_owned()).or_default();
        let wait = WAITS.get(*asked_again).copied();
        *asked_again += 1;
        wait
    }
}
