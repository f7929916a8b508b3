//! Asks the whole server over a raw socket, with a client of a hundred lines that believes nothing.

mod analytics;
mod client;
mod data_values;
mod faulty;
mod odd;
mod recorded;
mod tracker;
mod truthful;
