//! What a stream has and its server does not list any more, and the other way round.
//!
//! Keys are compared by 128 bits of their SHA-256: an equality that the server cannot forge, at 17 bytes a fetched row
//! while the comparison lasts. The listing is only streamed.

use std::collections::HashSet;

use harvester_actors::{
    failure::Failure,
    partition::{PartitionRole, Plan, StreamId},
    sink::{Comparison, SpanReader, VANISHED_KEYS_MAX},
};
use sha2::{Digest, Sha256};

use super::reader::SpoolReader;

/// See `Sink::compare`. Fetched are the keys of all partitions that are no listings, rejected ones included.
pub(crate) fn compare(
    reader: &SpoolReader,
    stream: StreamId,
    plan: &Plan,
    spans: &dyn SpanReader,
) -> Result<Comparison, Failure> {
    let Some(newest) = plan.newest_listing(stream) else { return Ok(Comparison::default()) };
    let mut buffer = Vec::new();
    // Before and since the newest listing.
    let (mut before, mut since) = (Vec::new(), Vec::new());
    let mut nameless = 0;
    for partition in plan.partitions_of(stream).filter(|partition| partition.role != PartitionRole::Listing) {
        let fetched: &mut Vec<u128> = if partition.id < newest.id { &mut before } else { &mut since };
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
    for fetched in [&mut before, &mut since] {
        fetched.sort_unstable();
        fetched.dedup();
    }
    let mut listed = vec![false; before.len()];
    let (mut listed_keys, mut missing) = (0, Vec::new());
    let mut missed: HashSet<u128> = HashSet::new();
    for span in spans.spans(newest.id) {
        reader.page(&span?, &mut buffer, |record| {
            let key = digest(record.key);
            listed_keys += 1;
            let is_since = since.binary_search(&key).is_ok();
            match before.binary_search(&key) {
                Ok(place) => listed[place] = true,
                Err(_) if !is_since && missed.insert(key) => {
                    missing.push(String::from_utf8_lossy(record.key).into_owned());
                }
                Err(_) => {}
            }
            Ok(())
        })?;
    }
    let vanished: HashSet<u128> =
        before.iter().zip(&listed).filter(|(_, listed)| !**listed).map(|(key, _)| *key).collect();
    let mut comparison = Comparison {
        missing,
        listed: listed_keys,
        relisted: 0,
        vanished: vanished.len() as u64,
        vanished_keys: Vec::new(),
        returned: vanished.iter().filter(|key| since.binary_search(key).is_ok()).count() as u64,
        nameless,
    };
    drop((before, listed));
    // Read again rather than remembered: both are the exception.
    for partition in plan.partitions_of(stream).filter(|partition| partition.id < newest.id) {
        let is_listing = partition.role == PartitionRole::Listing;
        let is_wanted = if is_listing { !missed.is_empty() } else { !vanished.is_empty() };
        for span in is_wanted.then(|| spans.spans(partition.id)).into_iter().flatten() {
            reader.page(&span?, &mut buffer, |record| {
                let key = digest(record.key);
                if is_listing {
                    comparison.relisted += u64::from(missed.remove(&key));
                } else if comparison.vanished_keys.len() < VANISHED_KEYS_MAX && vanished.contains(&key) {
                    comparison.vanished_keys.push(String::from_utf8_lossy(record.key).into_owned());
                }
                Ok(())
            })?;
        }
    }
    Ok(comparison)
}

/// 128 bits of a key's SHA-256.
fn digest(key: &[u8]) -> u128 {
    let digest = Sha256::digest(key);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(bytes)
}
