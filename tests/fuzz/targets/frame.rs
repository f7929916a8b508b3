//! The head of a spool's frame: refused, or written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: (u64, [u8; 36], bool)| {
    let (from, mut bytes, is_ours) = data;
    if is_ours {
        bytes[..8].copy_from_slice(b"\xF7hspool\x01");
        bytes[9..12].fill(0);
    }
    dhis2_harvester::sinks::fuzz_header(&bytes, from);
});
