//! Changes the country while it is being read: by command, or by a script that counts list requests.

use std::time::Duration;

/// One change of the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds so many rows; their ids are spread over the whole range.
    Insert {
        /// Plural name of the collection.
        collection: String,
        /// How many.
        count: u32,
    },
    /// Deletes one row; nothing happens when it does not live.
    Delete {
        /// Plural name of the collection.
        collection: String,
        /// The row's id.
        id: String,
    },
    /// Saves one row again: `lastUpdated` moves to the server's now, the name gains a revision.
    Update {
        /// Plural name of the collection.
        collection: String,
        /// The row's id.
        id: String,
    },
    /// Deletes rows chosen by formula; organisation units with children and default objects are spared.
    DeleteSome {
        /// Plural name of the collection.
        collection: String,
        /// How many.
        count: u32,
    },
    /// Saves rows chosen by formula again.
    UpdateSome {
        /// Plural name of the collection.
        collection: String,
        /// How many.
        count: u32,
    },
    /// Forgets every session, as a restart does.
    LoseSessions,
    /// The server becomes another one.
    SystemId(String),
    /// Another database behind the same url: another identity, another country's rows, as many; sessions are lost.
    Database {
        /// What its content is computed from.
        seed: u64,
    },
    /// Moves the server's clock.
    AdvanceClock(Duration),
}

impl Change {
    /// Adds `count` rows to a collection.
    pub fn insert(collection: &str, count: u32) -> Self {
        Self::Insert { collection: collection.into(), count }
    }

    /// Deletes `count` rows chosen by formula.
    pub fn delete_some(collection: &str, count: u32) -> Self {
        Self::DeleteSome { collection: collection.into(), count }
    }

    /// The same so many times over; `None` for none.
    pub(crate) fn times(&self, times: u32) -> Option<Self> {
        let mut change = self.clone();
        match &mut change {
            Self::Insert { count, .. } | Self::DeleteSome { count, .. } | Self::UpdateSome { count, .. } => {
                *count = count.saturating_mul(times);
            }
            _ => {}
        }
        (times > 0).then_some(change)
    }

    /// Saves `count` rows chosen by formula again.
    pub fn update_some(collection: &str, count: u32) -> Self {
        Self::UpdateSome { collection: collection.into(), count }
    }
}

/// A change that waits for its turn.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    collection: String,
    turn: Turn,
    pub(crate) change: Change,
}

/// A change that happens at a request, or all the time.
#[derive(Debug, Clone)]
pub(crate) enum Schedule {
    /// Once, just before this request is looked at.
    AtRequest(u64, Change),
    /// So many times a second, from the first request on.
    Steadily(u32, Change),
}

#[derive(Debug, Clone, Copy)]
enum Turn {
    After(u64),
    Every(u64),
}

impl Script {
    /// Once, after the `number`th list request of a collection was answered.
    pub(crate) fn after(collection: &str, number: u64, change: Change) -> Self {
        Self { collection: collection.into(), turn: Turn::After(number), change }
    }

    /// After every `number`th list request of a collection.
    pub(crate) fn every(collection: &str, number: u64, change: Change) -> Self {
        Self { collection: collection.into(), turn: Turn::Every(number.max(1)), change }
    }

    pub(crate) fn is_due(&self, collection: &str, lists: u64) -> bool {
        self.collection == collection
            && match self.turn {
                Turn::After(number) => lists == number,
                Turn::Every(number) => lists.is_multiple_of(number),
            }
    }
}
