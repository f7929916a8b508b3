//! A last will is a message that is sent when its holder ends, also by a panic: the one place that sends without waiting.
//!
//! actix's own `Supervisor` does not survive a panic of the actor it holds, and nobody is told. A guard in
//! the actor's future is dropped while the stack unwinds, so what it sends always arrives.

use actix::{Message, Recipient};

/// Sends its message when it is dropped.
pub struct LastWill<M>
where
    M: Message<Result = ()> + Send + 'static,
{
    /// Who hears of the death.
    heir: Recipient<M>,
    /// What it hears; `None` only while it is being sent.
    will: Option<M>,
}

impl<M> LastWill<M>
where
    M: Message<Result = ()> + Send + 'static,
{
    /// Writes a will: `heir` gets `will` when the value is dropped.
    pub fn new(heir: Recipient<M>, will: M) -> Self {
        LastWill { heir, will: Some(will) }
    }

    /// Tells the heir something while its holder lives.
    pub fn tell(&self, news: M) {
        self.heir.do_send(news);
    }

    /// Changes what the heir will hear.
    pub fn rewrite(&mut self, will: M) {
        self.will = Some(will);
    }
}

impl<M> Drop for LastWill<M>
where
    M: Message<Result = ()> + Send + 'static,
{
    fn drop(&mut self) {
        if let Some(will) = self.will.take() {
            // A closed mailbox means that the heir died first; then nobody is left to care.
            self.heir.do_send(will);
        }
    }
}
