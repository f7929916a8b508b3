//! A small DHIS2 for tests and demonstrations: every dialect from 2.25 to 2.43, faults that wrap the truth.
//!
//! ```text
//!            a request's way                                        what decides
//!  TCP ──▶ http.rs    reads the head ──▶ ledger.rs (arrival stamped) ledger: the witness, written before anything else
//!             │
//!             ├──▶ faults.rs   does a rule fire? ──▶ close, reset, refuse, another status, …
//!             ├──▶ latency.rs  think for so long
//!             ├──▶ auth.rs     who is it?  ──▶ 401 or 302, by version and headers
//!             ├──▶ routes/*    the truth   ◀── world.rs ◀── country.rs (content by formula: seed × scale)
//!             │                     │           ▲  values.rs, registry.rs (what was reported, who is tracked: by formula too)
//!             │                     │           ▲  dialect.rs (what this version does), collation.rs, query.rs
//!             │                     └───────────┴── mutations.rs (the truth changes after the nth list, at a request, all the time)
//!             │                                       quirks.rs (what is odd about this server, all the time)
//!             ├──▶ faults.rs   damage it: text, envelope, compression
//!             └──▶ wire.rs     bytes: framing, gzip, ETag ──▶ cut, stall, drip ──▶ TCP
//! ```
//!
//! It runs on a thread of its own with a runtime of its own, on 127.0.0.1, and knows nothing of the crates it tests:
//! client and stand-in cannot be wrong together. Facts come from recorded servers (2.40, 2.42, 2.43), which
//! `proof/recorded.rs` holds it against, elsewhere from dhis2-core and its documentation. It speaks system, login, schemas, metadata
//! collections, deleted objects, data values and registrations, the tracker, old and new, analytics, data store and SQL views; one file in `routes/` per area of the API.
//!
//! # How to use it
//!
//! ```
//! use dhis2_stand_in::{Change, Collation, Fault, FaultRule, Latency, Match, Place, StandIn, User};
//! use std::time::Duration;
//!
//! let stand_in = StandIn::builder()
//!     .version("2.36")
//!     .org_units(200)
//!     .collation(Collation::CaseInsensitive)
//!     .user(User::superuser("admin", "district").with_token("d2pat_x"))
//!     .user(User::limited("reader", "secret", 60))               // sees 60 % of the rows
//!     .fault(FaultRule::on(Match::nth(3)).and_path("organisationUnits").act(Fault::cut(Place::Fraction(0.5))).times(1))
//!     .after_lists("organisationUnits", 2, Change::insert("organisationUnits", 5))
//!     .latency(Latency::Constant(Duration::from_millis(1)))
//!     .start()?;
//!
//! let url = stand_in.url();                                      // http://127.0.0.1:41234
//! assert!(url.starts_with("http://127.0.0.1:"));
//! stand_in.add_fault(FaultRule::on(Match::every(10)).act(Fault::status(503)));
//! stand_in.heal();                                               // no faults any more, port open
//!
//! let rows = stand_in.truth("organisationUnits", ":owner");      // exact bytes, in the server's order of ids
//! assert_eq!(rows.len(), 200);
//! let ledger = stand_in.ledger();
//! assert_eq!(ledger.max_in_window(Duration::from_secs(1)), 0);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! | to | use |
//! |---|---|
//! | break one request, some, a share of them | [`FaultRule`] with [`Match`] and [`Fault`]; [`FaultRule::mixed`] |
//! | have an odd server, or an odd proxy before it | [`Builder::quirk`] with [`Quirk`] |
//! | take the server away and bring it back | [`StandIn::down`], [`StandIn::up`], [`StandIn::restart`], [`Fault::Refuse`] |
//! | end a session | [`StandIn::lose_sessions`], [`StandIn::oust_sessions`] |
//! | change the truth while it is read | [`Builder::after_lists`], [`Builder::at_request`], [`Builder::steadily`], [`StandIn::insert`], [`StandIn::delete`], [`StandIn::update`] |
//! | know what must be found | [`StandIn::truth`], [`StandIn::truth_survivors`], [`StandIn::appeared`], [`StandIn::vanished`] |
//! | know what was reported or tracked | [`StandIn::truth_data_values`], [`StandIn::truth_tracked`] |
//! | have somebody who sees a part of the tree | [`User::of_branches`] |
//! | know how it was asked | [`Ledger::requests`], [`Ledger::max_in_window`], [`Ledger::max_in_flight`], [`Ledger::wait_until`] |
//! | restart it under the same url | drop it, then [`Builder::port`] with [`StandIn::port`] |
//!
//! # What it does not do
//!
//! XML and CSV (406 in every version), `.json.zip`, imports, files, relationships, gist's `auto` and `absoluteUrls`, `/api/metadata`. It answers one request
//! at a time as far as computing goes; waiting is concurrent.

mod answer;
mod auth;
mod clock;
mod collation;
mod collections;
mod country;
mod dialect;
mod faults;
mod fields;
mod http;
mod latency;
mod ledger;
mod mutations;
mod periods;
mod query;
mod quirks;
mod records;
mod registry;
mod request;
mod routes;
mod rows;
mod stand_in;
mod values;
mod wire;
mod world;

pub use auth::User;
pub use collation::Collation;
pub use faults::{Body, Envelope, Fault, FaultRule, Garble, GzipFault, Match, Page, Restart, RetryAfter};
pub use latency::Latency;
pub use ledger::{Ledger, Seen};
pub use mutations::Change;
pub use quirks::{Kept, Quirk};
pub use request::Request;
pub use stand_in::{Builder, StandIn};
pub use wire::{Framing, Place};
pub use world::Deleted;

#[cfg(test)]
mod proof;
