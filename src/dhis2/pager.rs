//! The pager of a list answer, read tolerantly and compared strictly with the request.

use serde::Deserialize;

use crate::error::{Error, ErrorKind};

/// The pager of a list.
///
/// `nextPage` is not read: it is built from headers of proxies and often names another host or scheme.
/// `total` may be a minute old (2.31 to 2.36) and counts what this user may see.
/// Source: dhis2-core `Pager`; dhis2-docs `metadata.md` "Paging".
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Pager {
    /// The page, from 1; past the end it is the last page.
    #[serde(default)]
    pub page: Option<u64>,
    /// Number of pages.
    #[serde(default)]
    pub page_count: Option<u64>,
    /// Number of rows on all pages.
    #[serde(default)]
    pub total: Option<u64>,
    /// Rows per page, as the server understood the request.
    #[serde(default)]
    pub page_size: Option<u64>,
}

impl Pager {
    /// Compares the pager of a response with what was asked for.
    ///
    /// - `asked`: rows per page, or none when all were asked for without pages.
    ///
    /// # Errors
    /// Garbled: pages were asked for and the server does not page by that size, or the other way round. Then it did not
    /// understand the parameters, and its rows are not the ones asked for.
    pub(crate) fn check(pager: Option<Pager>, asked: Option<u32>) -> Result<(), Error> {
        let garbled = |text: String| Err(Error::new(ErrorKind::Garbled, text));
        match (asked, pager) {
            (None, None) => Ok(()),
            (None, Some(_)) => garbled("the response is a page, although all rows were asked for".to_owned()),
            (Some(size), None) => {
                garbled(format!("the response has no pager, although pages of {size} were asked for"))
            }
            (Some(size), Some(Pager { page_size: Some(given), .. })) if given == u64::from(size) => Ok(()),
            (Some(size), Some(Pager { page_size: Some(given), .. })) => {
                garbled(format!("the response has pages of {given}, although pages of {size} were asked for"))
            }
            (Some(size), Some(_)) => {
                garbled(format!("the response does not say its page size, although pages of {size} were asked for"))
            }
        }
    }

    /// Whether a pager fits what was asked for; for `tests/fuzz`.
    #[cfg(feature = "fuzz")]
    #[doc(hidden)]
    pub fn fits(pager: Option<Pager>, asked: Option<u32>) -> bool {
        Pager::check(pager, asked).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pager_that_does_not_fit_the_request_is_the_wrong_dialect() {
        let pager = |text: &str| serde_json::from_str::<Pager>(text).unwrap();
        let fits = pager(r#"{"page":1,"pageCount":3,"total":120,"pageSize":50,"nextPage":"https://other/api"}"#);
        assert_eq!(fits.total, Some(120));
        assert!(Pager::check(Some(fits), Some(50)).is_ok());
        assert!(Pager::check(None, None).is_ok());
        for (given, asked) in
            [(Some(fits), Some(1000)), (Some(fits), None), (None, Some(50)), (Some(pager("{}")), Some(50))]
        {
            assert_eq!(Pager::check(given, asked).unwrap_err().kind(), ErrorKind::Garbled, "{given:?} {asked:?}");
        }
    }
}
