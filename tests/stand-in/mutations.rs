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
