//! What a stream has and its server does not list any more, and the other way round.
//!
//! Keys are compared by 128 bits of their SHA-256: an equality that the server cannot forge, at 17 bytes a fetched row
//! while the comparison lasts. The listing is only streamed.

use std::collections::HashSet;

use harvester_actors::{
    failure::Failure,
    partition::{PartitionRole, Plan, StreamId},
    sink::{Comparison, SpanReader},
};
use sha2::{Digest, Sha256};

use super::reader::SpoolReader;

/// See `Sink::compare`. Listed are the keys of the stream's newest listing, fetched those of all other partitions,
/// rejected ones included.
pub(crate) fn compare(
    reader: &SpoolReader,
    stream: StreamId,
    plan: &Plan,
    spans: &dyn SpanReader,
) -> Result<Comparison, Failure> {
    let mut buffer = Vec::new();
    let mut fetched: Vec<u128> = Vec::new();
    let mut nameless = 0;
    for partition in plan.partitions_of(stream).filter(|partition| partition.role != PartitionRole::Listing) {
        for span in spans.spans(partition.id) {
            let span = span?;
            // What was refused once would be refused again.
            for reject in &span.rejects {
                match &reject.id {
                    Some(id) => fetched.push(digest(id.as_bytes())),
                    None => nameless += 1,
                }
            }
            reader.page(&span, &mut buffer, |record| {
                fetched.push(digest(record.key));
                Ok(())
            })?;
        }
    }
    fetched.sort_unstable();
    fetched.dedup();
    let mut listed = vec![false; fetched.len()];
    let mut missing = Vec::new();
    let mut missed: HashSet<u128> = HashSet::new();
    if let Some(partition) = plan.newest_listing(stream) {
        for span in spans.spans(partition.id) {
            reader.page(&span?, &mut buffer, |record| {
                let key = digest(record.key);
                match fetched.binary_search(&key) {
                    Ok(place) => listed[place] = true,
                    Err(_) if missed.insert(key) => missing.push(String::from_utf8_lossy(record.key).into_owned()),
                    Err(_) => {}
                }
                Ok(())
            })?;
        }
    }
    let vanished = listed.iter().filter(|listed| !**listed).count() as u64;
    Ok(Comparison { missing, vanished, nameless })
}

/// 128 bits of a key's SHA-256.
fn digest(key: &[u8]) -> u128 {
    let digest = Sha256::digest(key);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(bytes)
}
