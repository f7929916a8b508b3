//! How the process lives among others: the lock, the open files, the signals, the service manager.

pub mod lock;
pub mod open_files;
pub mod signals;
pub mod systemd;

pub use lock::StateLock;
pub use signals::Signals;
