//! A strict client of the DHIS2 Web API, 2.25 to 2.43.
//!
//! ```no_run
//! # async fn example() -> Result<(), dhis2::Error> {
//! use dhis2::{Client, Credentials};
//!
//! let client = Client::builder("https://dhis2.example.org")
//!     .credentials(Credentials::Basic { username: "reader".into(), password: "…".into() })
//!     .build()?;
//! let info = client.system_info().await?;
//! let units: serde_json::Value = client.get("organisationUnits").query("paging", "false").json().await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Whole or an error.** A response counts when its transfer, its compression, its type and its JSON are complete. A cut
//! body, a login page and an empty success are errors; see [`Error`].
//!
//! **One gate.** Every request passes one [`Gate`](gate::Gate), repeats too. No redirect is followed, and connections go to one host.
//!
//! **One login.** A session is kept and shared; wrong credentials are tried once.
//!
//! **Large answers** are read row by row in constant memory: [`Request::rows`], [`metadata::MetadataList`],
//! [`split::Splitter`].
//!
//! Requests run on actix arbiters (and anywhere inside a tokio `LocalSet`); [`Client::handle`] serves all other threads. The crate
//! knows nothing of jobs, checkpoints or what an error means for a harvest.

mod auth;
mod client;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
pub mod gate;
mod handle;
mod imports;
mod inflate;
mod interim;
pub mod metadata;
mod pager;
mod redaction;
mod request;
pub mod split;
mod system;
#[cfg(test)]
mod testing;
mod transport;
mod trust;
mod uid;
mod value_scan;
mod version;
mod wire;

pub use auth::{Credentials, Secret};
pub use client::{Client, ClientBuilder, api_path};
pub use error::{Conflict, Error, ErrorKind, ServerMessage};
pub use handle::{Handle, RowBatches};
pub use imports::ImportSummary;
pub use pager::Pager;
pub use redaction::Redaction;
pub use request::{Request, Response, Rows, path_segment};
pub use system::{Me, SystemInfo};
pub use uid::{ParseUidError, Uid};
pub use version::{ParseVersionError, Version};
