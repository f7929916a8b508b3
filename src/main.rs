//! The binary: calls the library.

fn main() -> std::process::ExitCode {
    dhis2_harvester::main()
}
