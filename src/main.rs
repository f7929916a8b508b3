//! The door. Everything is in the library beside it.

fn main() -> std::process::ExitCode {
    dhis2_harvester::main()
}
