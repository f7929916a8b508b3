//! Of neighbours with one key one row stays: the choice depends on the rows alone.
//!
//! The one with the later `updatedAt` or `lastUpdated` stays, as text; then the greater bytes.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Takes rows in the order of their keys, and hands each on once it is known that it stays.
#[derive(Debug, Default)]
pub(super) struct Deduplicator {
    /// Key and row that may still be replaced, where there is one.
    last: Option<(Vec<u8>, Vec<u8>)>,
    /// How many rows did not stay.
    pub(super) duplicates: u64,
}

impl Deduplicator {
    /// Takes the next row.
    ///
    /// # Errors
    /// What `stays` returns.
    pub(super) fn take<E>(
        &mut self,
        key: &[u8],
        row: &[u8],
        stays: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((last_key, last_row)) = &mut self.last else {
            self.last = Some((key.to_vec(), row.to_vec()));
            return Ok(());
        };
        if last_key == key {
            self.duplicates += 1;
            if !replaces(row, last_row) {
                return Ok(());
            }
        } else {
            stays(last_row)?;
            last_key.clear();
            last_key.extend_from_slice(key);
        }
        last_row.clear();
        last_row.extend_from_slice(row);
        Ok(())
    }

    /// Hands on the last row.
    ///
    /// # Errors
    /// What `stays` returns.
    pub(super) fn finish<E>(&mut self, stays: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(), E> {
        self.last.take().map_or(Ok(()), |(_, row)| stays(&row))
    }
}

/// Whether a row takes the place of another with the same key.
pub(super) fn replaces(new: &[u8], old: &[u8]) -> bool {
    if new == old {
        return false;
    }
    let (new_time, old_time) = (last_updated(new), last_updated(old));
    new_time.cmp(&old_time).then_with(|| new.cmp(old)).is_gt()
}

/// When a row was last changed, as the server writes it; `None` for rows that do not say.
fn last_updated(row: &[u8]) -> Option<&str> {
    let times: Times<'_> = serde_json::from_slice(row).ok()?;
    times.updated_at.or(times.last_updated).map(RawValue::get).filter(|text| text.starts_with('"'))
}

/// The latest of the times at which rows were changed or deleted.
#[derive(Debug, Default)]
pub(super) struct Newest(pub(super) Option<String>);

impl Newest {
    /// Takes a row into account.
    pub(super) fn see(&mut self, row: &[u8]) {
        let Ok(times) = serde_json::from_slice::<Times<'_>>(row) else { return };
        let time = times.deleted_at.or(times.updated_at).or(times.last_updated).map(RawValue::get);
        let Some(time) = time.and_then(|text| text.strip_prefix('"')?.strip_suffix('"')) else { return };
        let is_later = self.0.as_deref().is_none_or(|newest| newest < time);
        if is_later && is_local_time(time) {
            self.0 = Some(time.to_owned());
        }
    }
}

/// Whether a text is a date and time without a zone; one with a zone cannot be compared with the server's own date.
fn is_local_time(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || b"-:.T".contains(&byte))
        && text.parse::<jiff::civil::DateTime>().is_ok()
}

/// When a row says that it was changed or deleted.
#[derive(Deserialize)]
struct Times<'a> {
    #[serde(borrow, default, rename = "lastUpdated")]
    last_updated: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "updatedAt")]
    updated_at: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "deletedAt")]
    deleted_at: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_row_is_found_by_times_that_can_be_compared() {
        let mut newest = Newest::default();
        for (row, expected) in [
            (r#"{"id":"a"}"#, None),
            (r#"{"id":"a","lastUpdated":7}"#, None),
            (r#"{"id":"a","lastUpdated":"2024-01-02T00:00:00.000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"2024-01-01T00:00:00.000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"2024-01-03T00:00:00.000+0000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"2024-99-03T00:00:00.000"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"id":"a","lastUpdated":"zzz"}"#, Some("2024-01-02T00:00:00.000")),
            (r#"{"uid":"a","deletedAt":"2024-01-04T00:00:00.000"}"#, Some("2024-01-04T00:00:00.000")),
        ] {
            newest.see(row.as_bytes());
            assert_eq!(newest.0.as_deref(), expected, "{row}");
        }
    }
}
