//! Named places at which a test can end the process, or fail: nothing at all in a build without `failpoints`.

/// A place with a name at which a crash could matter. `FAILPOINTS="writer.append.after=3*off->return"` ends the process
/// with SIGABRT at the fourth passing; `=panic` panics instead.
#[macro_export]
macro_rules! crash_point {
    ($name:literal) => {
        $crate::fail::fail_point!($name, |_| std::process::abort())
    };
}
