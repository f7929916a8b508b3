//! Judges the pages of a walk by keyset: what each says about itself must agree with what it holds, and with the one before.
//!
//! Every page's own pager counts what lies behind its filter. So a page takes as many from that number as it has rows, and the
//! next one's number is what it leaves. Where they differ, something changed meanwhile, or the server does not do what it is
//! asked: the rows are kept, the difference is counted, and a listing settles it in the end. Only what cannot be the truth is
//! refused: a page without rows that counts some, a listing shorter than its own number, rows that come again, a walk that
//! does not move on.
//!
//! Source: recorded from 2.40, 2.42 and 2.43: `total` counts what the user may read, under the filters of the request.

use harvester_actors::{
    failure::{Failure, FailureClass},
    partition::Cursor,
};
use harvester_pacing::control;

/// Pages in a row that bring the walk no further, as a server sends them that does not do what it is asked.
const STALLED_PAGES_MAX: u32 = 3;

/// The part of a page by which the numbers of a listing of several pages may be off: that much may change from one to the next.
const LISTING_SLACK: u64 = 100;

/// How far a walk has come.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Walk {
    /// The last id received; `None` at the beginning of its range.
    pub(crate) last: Option<String>,
    /// How many rows lie behind it, as far as the server has counted.
    left: Option<u64>,
    /// Pages in a row that have brought it no further.
    stalled: u32,
}

/// One page of a walk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct WalkedPage {
    /// Rows of the answer.
    pub(crate) rows: u64,
    /// How many rows its pager counts; `None` where it does not.
    pub(crate) total: Option<u64>,
    /// Rows that were asked for.
    pub(crate) page_size: u32,
    /// The last id of a row that belongs to the range.
    pub(crate) last: Option<String>,
    /// Whether the range's last id has been seen.
    pub(crate) has_ended: bool,
    /// Whether the row came again behind which rows were asked for.
    pub(crate) repeats: bool,
    /// Whether it lists keys.
    pub(crate) is_listing: bool,
}

impl Walk {
    /// The walk at a position; `behind` is how many rows the plan expected behind the beginning of its range.
    pub(crate) fn at(next: &Cursor, behind: Option<u64>) -> Self {
        let Cursor::After(place) = next else { return Walk { last: None, left: behind, stalled: 0 } };
        let mut parts = place.splitn(3, '\t');
        Walk {
            last: parts.next().map(str::to_owned),
            left: parts.next().and_then(|left| left.parse().ok()),
            stalled: parts.next().and_then(|stalled| stalled.parse().ok()).unwrap_or(0),
        }
    }

    /// As a position keeps it.
    fn to_cursor(&self) -> Cursor {
        let Walk { last, left, stalled } = self;
        let left = left.map(|left| left.to_string()).unwrap_or_default();
        Cursor::After(format!("{}\t{left}\t{stalled}", last.as_deref().unwrap_or_default()))
    }

    /// Where the walk goes on behind `page`, and by how many rows the server's numbers are off. `key` is the partition's.
    ///
    /// # Errors
    /// `Garbled` for what cannot be the truth, `Rejected` for a walk that does not move on or rows without ids.
    pub(crate) fn behind(&self, page: WalkedPage, key: &str) -> Result<(Cursor, u64), Failure> {
        let WalkedPage { rows, total, page_size, is_listing, .. } = page;
        let garbled = |message: String| Err(Failure::new(FailureClass::Garbled, message));
        if page.repeats && control!("progress") {
            return Err(not_moving(FailureClass::Garbled, key));
        }
        let mut miscounted = 0;
        let mut stalled = 0;
        if let Some(total) = total {
            if rows == 0 && total > 0 && control!("pager-count") {
                return garbled(format!("the server counts {total} more rows of {key} and sends none"));
            }
            let whole = total.min(u64::from(page_size));
            if is_listing && rows != whole && control!("pager-count") {
                return garbled(format!("the server counts {total} rows of {key} and lists {rows}"));
            }
            miscounted += whole.abs_diff(rows);
            if let Some(left) = self.left {
                let off = total.abs_diff(left);
                if is_listing && off > u64::from(page_size) / LISTING_SLACK && control!("pager-count") {
                    return garbled(format!("the server counted {left} more rows of {key} and now counts {total}"));
                }
                miscounted += off;
                if self.last.is_some() && total > left + u64::from(page_size / 2) {
                    stalled = self.stalled + 1;
                }
            }
            if stalled >= STALLED_PAGES_MAX && control!("progress") {
                return Err(not_moving(FailureClass::Rejected, key));
            }
        }
        let next = match page.last {
            _ if page.has_ended => Cursor::End,
            _ if rows == 0 => Cursor::End,
            Some(last) => {
                Walk { last: Some(last), left: total.map(|total| total.saturating_sub(rows)), stalled }.to_cursor()
            }
            None => {
                let message = format!("no row of a page of {key} shows its id, so the next page cannot be requested");
                return Err(
                    Failure::new(FailureClass::Rejected, message).with_next("take `id` into the fields of the job")
                );
            }
        };
        Ok((next, if control!("pager-count") { miscounted } else { 0 }))
    }
}

/// The walk goes round in circles.
fn not_moving(class: FailureClass, key: &str) -> Failure {
    let message = format!(
        "the pages of {key} do not move on: the server, or a proxy before it, does not heed `filter=id:gt:…` or \
         `order=id:asc`, perhaps because it keeps only one of several `filter` parameters"
    );
    Failure::new(class, message).with_next("compare `harvester get` of two pages with what the server says directly")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page as it should be: 100 of `total` rows, or all that are left.
    fn page(total: u64) -> WalkedPage {
        WalkedPage {
            rows: total.min(100),
            total: Some(total),
            page_size: 100,
            last: (total > 0).then(|| "z".to_owned()),
            has_ended: false,
            repeats: false,
            is_listing: false,
        }
    }

    fn walk(left: u64) -> Walk {
        Walk { last: Some("m".into()), left: Some(left), stalled: 0 }
    }

    fn off(walk: &Walk, page: WalkedPage) -> Result<u64, FailureClass> {
        walk.behind(page, "units").map(|(_, miscounted)| miscounted).map_err(|failure| failure.class)
    }

    #[test]
    fn a_page_counts_for_what_it_is_only_where_its_pager_agrees() {
        use FailureClass::{Garbled, Rejected};
        let listing = |page: WalkedPage| WalkedPage { is_listing: true, ..page };
        for (what, walk, page, result) in [
            ("a page in the middle", walk(500), page(500), Ok(0)),
            ("the last one", walk(40), page(40), Ok(0)),
            ("the empty one behind it", walk(0), page(0), Ok(0)),
            ("nothing is known", Walk::default(), page(700), Ok(0)),
            ("the server does not count", walk(500), WalkedPage { total: None, ..page(500) }, Ok(0)),
            ("five rows came into being", walk(500), page(505), Ok(5)),
            ("more have gone", walk(500), page(380), Ok(120)),
            ("a row is left out", walk(500), WalkedPage { rows: 99, ..page(500) }, Ok(1)),
            ("the last row is left out", walk(1), WalkedPage { rows: 0, ..page(1) }, Err(Garbled)),
            ("all rows are left out", walk(500), WalkedPage { rows: 0, last: None, ..page(500) }, Err(Garbled)),
            ("the row asked behind comes again", walk(500), WalkedPage { repeats: true, ..page(500) }, Err(Garbled)),
            ("rows without ids", walk(500), WalkedPage { last: None, ..page(500) }, Err(Rejected)),
            ("a whole listing", Walk::default(), listing(page(80)), Ok(0)),
            ("one that lacks a row", Walk::default(), listing(WalkedPage { rows: 79, ..page(80) }), Err(Garbled)),
            ("its second page, one row gone", walk(300), listing(page(299)), Ok(1)),
            ("its second page, of another server", walk(300), listing(page(250)), Err(Garbled)),
        ] {
            assert_eq!(off(&walk, page), result, "{what}");
        }
    }

    #[test]
    fn a_walk_ends_with_its_range_or_an_empty_page_and_nowhere_else() {
        let next = |page: WalkedPage| walk(500).behind(page, "units").unwrap().0;
        assert_eq!(next(page(500)), Cursor::After("z\t400\t0".into()));
        assert_eq!(next(page(40)), Cursor::After("z\t0\t0".into()), "a short page is no end");
        assert_eq!(next(page(0)), Cursor::End);
        assert_eq!(next(WalkedPage { has_ended: true, ..page(500) }), Cursor::End);
        assert_eq!(next(WalkedPage { total: None, ..page(500) }), Cursor::After("z\t\t0".into()));
    }

    #[test]
    fn a_position_is_the_walk_again() {
        for place in ["z\t400\t2", "z\t\t0", "a b\t1\t1"] {
            let next = Cursor::After(place.into());
            assert_eq!(Walk::at(&next, None).to_cursor(), next);
        }
        assert_eq!(Walk::at(&Cursor::Start, Some(7)), Walk { last: None, left: Some(7), stalled: 0 });
    }

    #[test]
    fn three_pages_that_do_not_bring_the_walk_further_end_it() {
        // A server that orders downwards: each page but the first is the one before it without its last row.
        let mut at = Walk::at(&Cursor::Start, None);
        let mut pages = 0;
        let failure = loop {
            let total = if pages == 0 { 1_000 } else { 100 - pages };
            match at.behind(page(total), "units") {
                Ok((next, _)) => at = Walk::at(&next, None),
                Err(failure) => break failure,
            }
            pages += 1;
            assert!(pages < 10, "it goes on and on");
        };
        assert_eq!(failure.class, FailureClass::Rejected);
        assert!(failure.message.contains("id:gt"), "{failure}");
    }
}
