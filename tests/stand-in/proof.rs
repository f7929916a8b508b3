//! Asks the whole server over a raw socket, with a client of a hundred lines that believes nothing.

mod client;
mod faulty;
mod odd;
mod recorded;
mod truthful;
