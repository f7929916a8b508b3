//! Protections that a test can switch off, to see that a named test then fails: nothing at all in a build without `controls`.

/// Every protection with a switch; `tests/prove` turns each off in turn.
pub const CONTROLS: &[&str] = &[
    "end-of-body",
    "data-sync",
    "store-fsync",
    "torn-tail",
    "exact-window",
    "cold-start",
    "content-type",
    "identity",
    "contradiction",
    "outage-weight",
    "pager-count",
    "recount",
    "progress",
    "denial",
    "store-folder",
    "folder-lock",
    "probe-name",
    "open-files",
    "record-sync",
    "share-end",
    "out-lock",
    "run-ids",
    "own-folder",
    "watermarks-until-complete",
    "watermark-bounds",
    "masks",
    "plan-end",
    "cancel",
];

/// Whether the protection of this name is in force.
///
/// Always, but for a build with the feature `controls` that runs with `HARVESTER_CONTROL=<name>`.
#[cfg(not(feature = "controls"))]
#[inline(always)]
#[must_use]
pub const fn in_force(_: &str) -> bool {
    true
}

/// Whether the protection of this name is in force: unless `HARVESTER_CONTROL` names it.
#[cfg(feature = "controls")]
#[must_use]
pub fn in_force(name: &str) -> bool {
    static OFF: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    debug_assert!(CONTROLS.contains(&name), "`{name}` is not a control");
    OFF.get_or_init(|| std::env::var_os("HARVESTER_CONTROL")).as_deref() != Some(std::ffi::OsStr::new(name))
}

/// Whether a protection is in force; `true` in every build but that of the negative controls.
#[macro_export]
macro_rules! control {
    ($name:literal) => {
        $crate::control::in_force($name)
    };
}
