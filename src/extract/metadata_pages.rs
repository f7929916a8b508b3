//! One page of a range of a metadata collection: asked for, read row by row, judged.

use std::borrow::Cow;

use dhis2::{
    Error,
    metadata::{MetadataList, MetadataRows},
    split::{Row, RowFault},
};
use harvester_actors::{
    failure::{Failure, FailureClass},
    page::{Page, Reject},
    partition::{Cursor, NewPartition, Partition, Position},
    source::PageSize,
};

use super::{
    keyset::{Walk, WalkedPage},
    kind::Selection,
    metadata::{MetadataSelection, Want},
    page_builder::PageBuilder,
    source::{SourceContext, Unfetched},
};

/// Fetches the page of a collection that begins at `position`.
pub(crate) async fn fetch(
    source: &SourceContext<'_>,
    selection: &MetadataSelection,
    partition: &Partition,
    position: &Position,
) -> Result<Page, Unfetched> {
    let size = PageSize { halvings: position.halvings };
    if let Want::Ids(ids) = &selection.want
        && position.halvings > 0
        && ids.len() > 1
    {
        return Ok(Page::split(partition, position, halves(selection, ids, partition)));
    }
    let walk = Walk::at(&position.next, selection.behind);
    let mut filters = Cow::Borrowed(selection.filters.as_slice());
    let mut page_size = selection.page_size.map(|rows| size.of(rows));
    let (mut fields, mut id_gt) = (selection.fields.as_str(), walk.last.as_deref().or(selection.after.as_deref()));
    match &selection.want {
        Want::Rows => {}
        Want::Listing => {
            fields = "id";
            filters = selection.fresh_filters();
        }
        Want::Ids(ids) => {
            filters.to_mut().push(format!("id:in:[{}]", ids.join(",")));
            page_size = Some(ids.len() as u32);
            id_gt = None;
        }
    }
    let list = MetadataList {
        endpoint: selection.endpoint.as_deref(),
        fields,
        filters: &filters,
        id_gt,
        // Without pages we sort ourselves, and the server need not.
        order_id_asc: page_size.is_some(),
        page_size,
        ..MetadataList::new(&selection.collection)
    };
    let mut rows = list.send(source.client).await?;
    let mut reader = PageReader::new(selection, partition, id_gt);
    while reader.read(&mut rows).await? {
        reader.page.spill().await?;
    }
    let answer = rows.finish()?;
    let PageReader { mut page, last, ended, repeats, strangers, .. } = reader;
    let next = match (&selection.want, page_size) {
        (Want::Ids(_), _) if strangers > 0 => {
            let message = format!("{strangers} rows of {} came that were not asked for by their ids", partition.key);
            return Err(Failure::new(FailureClass::Garbled, message).into());
        }
        // Each of them has another try: a row that is left out here would count as gone.
        (Want::Ids(_), Some(_))
            if answer.pager.and_then(|pager| pager.total).is_some_and(|total| total > answer.rows) =>
        {
            let message =
                format!("the server counts more of the rows of {} asked for by their ids than it sends", partition.key);
            return Err(Failure::new(FailureClass::Garbled, message).into());
        }
        (Want::Ids(_), _) | (_, None) => Cursor::End,
        (want, Some(page_size)) => {
            let walked = WalkedPage {
                rows: answer.rows,
                total: answer.pager.and_then(|pager| pager.total),
                page_size,
                last,
                has_ended: ended,
                repeats,
                is_listing: *want == Want::Listing,
            };
            let (next, miscounted) = walk.behind(walked, &partition.key)?;
            page.counts.miscounted = miscounted;
            next
        }
    };
    Ok(page.finish(partition, position, next).await?)
}

/// The two halves of a partition that asks for rows by their ids, which its server could not bear.
fn halves(selection: &MetadataSelection, ids: &[String], partition: &Partition) -> Vec<NewPartition> {
    let half = |(place, ids): (usize, &[String])| NewPartition {
        pass: partition.pass,
        key: format!("{}.{place}", partition.key),
        selection: Selection::Metadata(MetadataSelection { want: Want::Ids(ids.to_vec()), ..selection.clone() })
            .to_value(),
        requests: Some(1),
        expected_rows: None,
    };
    ids.chunks(ids.len().div_ceil(2)).enumerate().map(half).collect()
}

impl MetadataSelection {
    /// The filters of a request whose count must be a fresh one. A server that remembers counts does so by their filters, so
    /// there is one more that holds for all rows: an id begins with a letter.
    pub(super) fn fresh_filters(&self) -> Cow<'_, [String]> {
        let mut filters = Cow::Borrowed(self.filters.as_slice());
        if self.counts_afresh {
            filters.to_mut().push(format!("id:!eq:0{:x}", jiff::Timestamp::now().as_nanosecond()));
        }
        filters
    }

    /// Whether a page that is halved so often cannot be made any smaller.
    pub(super) fn is_smallest(&self, halvings: u32) -> bool {
        match (&self.want, self.page_size) {
            (Want::Ids(ids), _) => ids.len() <= 1,
            (Want::Rows | Want::Listing, None) => true,
            (Want::Rows | Want::Listing, Some(rows)) => PageSize { halvings }.of(rows) == 1,
        }
    }
}

/// Takes the rows of one answer.
struct PageReader<'a> {
    selection: &'a MetadataSelection,
    partition: &'a Partition,
    page: PageBuilder,
    /// The last id seen.
    last: Option<String>,
    /// Whether the range's last id has been seen: what follows belongs to others.
    ended: bool,
    /// The id behind which rows were asked for.
    behind: Option<&'a str>,
    /// Whether the row with that id came again.
    repeats: bool,
    /// Rows that were not asked for by their ids, where only such were asked for.
    strangers: u64,
    /// A row as one line; kept for its memory.
    line: Vec<u8>,
}

impl<'a> PageReader<'a> {
    fn new(selection: &'a MetadataSelection, partition: &'a Partition, behind: Option<&'a str>) -> Self {
        PageReader {
            selection,
            partition,
            page: PageBuilder::new(),
            last: None,
            ended: false,
            behind,
            repeats: false,
            strangers: 0,
            line: Vec::new(),
        }
    }

    /// Takes the rows that are complete with the next chunk; false at the answer's end.
    async fn read(&mut self, rows: &mut MetadataRows) -> Result<bool, Error> {
        rows.read(&mut |row| self.take(row)).await
    }

    fn take(&mut self, row: Row<'_>) -> Result<(), RowFault> {
        match row {
            Row::Whole(row) => {
                let Some(id) = row.key() else {
                    return Err(RowFault::Stopped("a row has no id: take `id` into the fields of the job".to_owned()));
                };
                if self.ended {
                    self.page.filter();
                    return Ok(());
                }
                self.seen(id);
                if self.selection.want == Want::Listing {
                    self.page.keep(id, b"");
                } else if row.has_newline() {
                    self.line.clear();
                    row.write_line(&mut self.line);
                    self.page.keep(id, &self.line);
                } else {
                    self.page.keep(id, row.text().as_bytes());
                }
            }
            Row::Oversize { prefix, bytes } => self.unfit(prefix, bytes, "too_large", "the row is larger than 16 MiB"),
            Row::TooDeep { prefix, bytes } => self.unfit(prefix, bytes, "too_deep", "the row is nested too deeply"),
            _ => return Err(RowFault::Stopped("the client hands out a kind of row this program does not know".into())),
        }
        Ok(())
    }

    /// Notes where the walk is, and whether it is at its range's end.
    fn seen(&mut self, id: &str) {
        self.ended = self.selection.until.as_deref() == Some(id);
        self.repeats |= self.behind == Some(id);
        if let Want::Ids(ids) = &self.selection.want {
            self.strangers += u64::from(!ids.iter().any(|wanted| wanted == id));
        }
        let last = self.last.get_or_insert_default();
        last.clear();
        last.push_str(id);
    }

    /// Rejects a row that cannot be taken; its id is looked for in what is there of it.
    fn unfit(&mut self, prefix: &[u8], bytes: u64, class: &str, message: &str) {
        if self.ended {
            self.page.filter();
            return;
        }
        let id = id_in(prefix);
        if let Some(id) = &id {
            self.seen(id);
        }
        let (class, message) = (class.to_owned(), message.to_owned());
        self.page.reject(Reject { partition: self.partition.key.clone(), class, message, id, bytes: Some(bytes) });
    }
}

/// The value of the member `id` at the top of an object of which only the beginning is there.
fn id_in(prefix: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(prefix);
    let mut depth = 0_u32;
    let mut rest = text.as_ref();
    loop {
        let at = rest.find(['"', '{', '[', '}', ']'])?;
        let sign = rest.as_bytes()[at];
        rest = &rest[at..];
        match sign {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {
                let mut strings = serde_json::Deserializer::from_str(rest).into_iter::<Cow<'_, str>>();
                let string = strings.next()?.ok()?;
                let behind = rest[strings.byte_offset()..].trim_start();
                if depth == 1 && string == "id" && behind.starts_with(':') {
                    let value = behind[1..].trim_start();
                    return serde_json::Deserializer::from_str(value).into_iter::<String>().next()?.ok();
                }
                rest = &rest[strings.byte_offset()..];
                continue;
            }
        }
        rest = &rest[1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_row_that_is_too_large_is_found_where_it_can_be() {
        for (prefix, id) in [
            (r#"{"id":"abc","name":"x"#, Some("abc")),
            (r#"{"name":"id","id" : "a\u0062c","big":"#, Some("abc")),
            (r#"{"parent":{"id":"no"},"id":"yes""#, Some("yes")),
            (r#"{"list":["id",{"id":"no"}],"n":1.5e3,"id":"yes""#, Some("yes")),
            (r#"{"name":"never ends"#, None),
            (r#"{"parent":{"id":"no"},"i"#, None),
            ("", None),
        ] {
            assert_eq!(id_in(prefix.as_bytes()).as_deref(), id, "{prefix}");
        }
    }
}
