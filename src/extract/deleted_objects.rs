//! What was deleted on the server, as far as it tells.

use std::borrow::Cow;

use dhis2::{
    metadata::DeletedObjects,
    split::{Row, RowFault},
};
use harvester_actors::{
    failure::Failure,
    page::Page,
    partition::{Cursor, LeftOut, NewPartition, Partition, Position, SourceIdentity, Stream},
    plan::PlanBuilder,
};
use serde::{Deserialize, Serialize};

use super::{
    kind::Selection,
    page_builder::PageBuilder,
    source::{SourceContext, Unfetched},
};

/// The stream's name.
pub(super) const STREAM: &str = "deletedObjects";

/// The first version that tells deletions.
const DELETIONS_SINCE: u16 = 27;

/// What one partition fetches of what was deleted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct DeletedSelection {
    /// Only what was deleted at or after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deleted_at: Option<String>,
    /// Simple class names that are wanted; empty for all.
    classes: Vec<String>,
}

/// Adds the stream of deletions, where this version tells them.
///
/// - `since`: only what was deleted at or after this time;
/// - `classes`: Java classes of the objects that are wanted; empty for all.
pub(super) async fn plan(
    identity: &SourceIdentity,
    since: Option<String>,
    classes: &[&str],
    is_incremental: bool,
    plan: &mut PlanBuilder<'_>,
) -> Result<(), Failure> {
    if identity.minor < DELETIONS_SINCE {
        let reason = format!("version 2.{} does not tell deletions; 2.{DELETIONS_SINCE} and later do", identity.minor);
        plan.leave_out(LeftOut { stream: STREAM.to_owned(), reason });
        return Ok(());
    }
    let classes = classes.iter().map(|class| simple_name(class)).collect();
    let selection = Selection::DeletedObjects(DeletedSelection { deleted_at: since, classes }).to_value();
    let stream = Stream {
        name: STREAM.to_owned(),
        expected_rows: None,
        // Only superusers get it from 2.29 on; without it the rest is still worth having, and the report says so.
        optional: true,
        watermark: identity.server_date.clone().filter(|_| is_incremental),
    };
    let pass = plan.add_stream(stream, selection.clone())?;
    plan.add_partition(NewPartition { pass, key: STREAM.to_owned(), selection, requests: Some(1), expected_rows: None })
        .await
}

/// Fetches what was deleted, in one answer.
pub(crate) async fn fetch(
    source: &SourceContext<'_>,
    selection: &DeletedSelection,
    partition: &Partition,
    position: &Position,
) -> Result<Page, Unfetched> {
    #[derive(Deserialize)]
    struct Deleted<'a> {
        #[serde(borrow)]
        klass: Cow<'a, str>,
        #[serde(borrow)]
        uid: Cow<'a, str>,
    }
    let request = DeletedObjects { klass: None, deleted_at: selection.deleted_at.as_deref(), page_size: None, page: 1 };
    let mut rows = request.send(source.client).await?;
    let mut page = PageBuilder::new();
    let mut line = Vec::new();
    let mut take = |row: Row<'_>| {
        let Row::Whole(row) = row else {
            return Err(RowFault::Stopped("a deletion is larger than any deletion can be".to_owned()));
        };
        let deleted: Deleted<'_> = row.head()?;
        let class = simple_name(&deleted.klass);
        if !selection.classes.is_empty() && !selection.classes.contains(&class) {
            page.filter();
            return Ok(());
        }
        line.clear();
        row.write_line(&mut line);
        page.keep(&format!("{class} {}", deleted.uid), &line);
        Ok(())
    };
    while rows.read(&mut take).await? {}
    rows.finish()?;
    Ok(page.finish(partition, position, Cursor::End).await?)
}

/// `DataElement` of `org.hisp.dhis.dataelement.DataElement`.
fn simple_name(class: &str) -> String {
    class.rsplit('.').next().unwrap_or(class).to_owned()
}
