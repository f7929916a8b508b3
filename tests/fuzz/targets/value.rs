//! Values of the checkpoint store: refused, or read again once written.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| dhis2_harvester::checkpoints::fuzz_value(data));
