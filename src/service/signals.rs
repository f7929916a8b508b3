//! The first signal asks the run to stop, the second exits at once.
//!
//! SIGINT comes by `ctrlc`, SIGTERM and SIGHUP by tokio on a thread of their own, so that 130 and 143 stay apart and
//! no arbiter of the engine is needed to receive them. `--max-seconds` is one more reason to stop, from the same thread.

use std::{io, process, sync::Arc, thread, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time,
};

use crate::exit_code::StopReason;

/// Reaction to a reason to stop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reaction {
    /// The run is asked to stop.
    Stop,
    /// The process exits at once, with this code. The checkpoint makes that safe at any instant.
    Exit(u8),
    /// Nothing: the run is stopping already.
    Nothing,
}

/// Decides the reaction to a reason, given the one before it.
fn reaction(before: Option<StopReason>, now: StopReason) -> Reaction {
    match (before, now) {
        (None, _) => Reaction::Stop,
        (Some(_), StopReason::MaxSeconds) => Reaction::Nothing,
        (Some(_), signal) => Reaction::Exit(signal.exit_code()),
    }
}

/// Signal handlers, installed once per process.
#[derive(Clone, Debug)]
pub struct Signals {
    /// Becomes `Some` once, when the run is asked to stop.
    pub stop: watch::Receiver<Option<StopReason>>,
}

impl Signals {
    /// Installs the handlers. Once a process; the second call is an error.
    ///
    /// - `max_seconds`: asks to stop after this time.
    /// - `before_exit`: called before the process exits at once; restores the terminal, must not block.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn install(
        max_seconds: Option<Duration>,
        before_exit: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Signals> {
        let (sender, stop) = watch::channel(None);
        let on_reason: Arc<dyn Fn(StopReason) + Send + Sync> = Arc::new(move |reason| {
            let mut reacts = Reaction::Nothing;
            sender.send_if_modified(|stop| {
                reacts = reaction(*stop, reason);
                let first = reacts == Reaction::Stop;
                if first {
                    *stop = Some(reason);
                }
                first
            });
            if let Reaction::Exit(code) = reacts {
                before_exit();
                process::exit(i32::from(code));
            }
        });
        let sigint = Arc::clone(&on_reason);
        ctrlc::set_handler(move || sigint(StopReason::Sigint)).map_err(io::Error::other)?;
        let (installed, is_installed) = std::sync::mpsc::channel();
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(installed.send(Err(error))),
            };
            runtime.block_on(async move {
                let handlers = signal(SignalKind::terminate()).and_then(|t| Ok((t, signal(SignalKind::hangup())?)));
                let (mut terminate, mut hangup) = match handlers {
                    Ok(handlers) => handlers,
                    Err(error) => return drop(installed.send(Err(error))),
                };
                let _ = installed.send(Ok(()));
                // No --max-seconds: as far away as the clock can say.
                let far = Duration::from_secs(60 * 60 * 24 * 365);
                let over = time::sleep(max_seconds.unwrap_or(far).min(far));
                tokio::pin!(over);
                let mut limited = max_seconds.is_some();
                loop {
                    tokio::select! {
                        _ = terminate.recv() => on_reason(StopReason::Sigterm),
                        _ = hangup.recv() => on_reason(StopReason::Sighup),
                        () = &mut over, if limited => { limited = false; on_reason(StopReason::MaxSeconds); }
                    }
                }
            });
        })?;
        is_installed.recv().map_err(io::Error::other)??;
        Ok(Signals { stop })
    }

    /// No signals, for commands and tests that need a value.
    pub fn none() -> Signals {
        Signals { stop: watch::channel(None).1 }
    }

    /// Why the run was asked to stop, if it was.
    pub fn reason(&self) -> Option<StopReason> {
        *self.stop.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stops_and_a_second_signal_leaves_with_its_own_code() {
        use StopReason::{MaxSeconds, Sighup, Sigint, Sigterm};
        for first in [Sigint, Sigterm, Sighup, MaxSeconds] {
            assert_eq!(reaction(None, first), Reaction::Stop);
            assert_eq!(reaction(Some(first), Sigint), Reaction::Exit(130));
            assert_eq!(reaction(Some(first), Sigterm), Reaction::Exit(143));
            assert_eq!(reaction(Some(first), Sighup), Reaction::Exit(143));
            assert_eq!(reaction(Some(first), MaxSeconds), Reaction::Nothing);
        }
    }
}
