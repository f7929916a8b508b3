//! Metadata: the collections a server has, lists of their objects, and what was deleted.
//!
//! A list counts only when its envelope is what was asked for: the array has the collection's name, and there is a pager
//! with the page size of the request exactly when pages were asked for. Everything else is the wrong dialect, not
//! "no rows".
//!
//! Source: dhis2-docs `src/developer/web-api/metadata.md`; dhis2-core `AbstractCrudController`, 2.25 to 2.43.

use serde::Deserialize;

use crate::{
    client::Client,
    error::{Error, ErrorKind},
    pager::Pager,
    redaction::Redaction,
    request::{Request, Rows, path_segment},
    split::{Envelope, Row, RowFault, SplitLimits},
};

/// One request for objects of one collection.
///
/// ```no_run
/// # async fn example(client: dhis2::Client) -> Result<(), dhis2::Error> {
/// use dhis2::{metadata::MetadataList, split::Row};
///
/// let list = MetadataList { fields: ":owner", page_size: Some(1000), ..MetadataList::new("organisationUnits") };
/// let mut lines = Vec::new();
/// let mut rows = list.send(&client).await?;
/// while rows.read(&mut |row| {
///     if let Row::Whole(row) = row {
///         row.write_line(&mut lines);
///     }
///     Ok(())
/// }).await? {}
/// let page = rows.finish()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MetadataList<'a> {
    /// The collection and the name of the array in the response: `dataElements`.
    pub collection: &'a str,
    /// The path, where it is another than the collection's name (a schema's `relativeApiEndpoint`).
    pub endpoint: Option<&'a str>,
    /// Fields as the API takes them. Default `:owner`, what can be imported again.
    pub fields: &'a str,
    /// Filters as the API takes them; all of them must hold.
    pub filters: &'a [String],
    /// Only objects whose id comes behind this one in the server's own order. Needs `order_id_asc`.
    pub id_gt: Option<&'a str>,
    /// By id: the only order that is the same for all versions and never ties. Default yes.
    pub order_id_asc: bool,
    /// Rows per page; none asks for the whole collection in one response. Default none.
    pub page_size: Option<u32>,
    /// The page, from 1. Without effect when there are no pages. Default 1.
    pub page: u64,
    /// Further parameters, names and values.
    pub extra: &'a [(&'a str, &'a str)],
    /// Bounds of the response.
    pub limits: SplitLimits,
}

impl<'a> MetadataList<'a> {
    /// All objects of a collection, in one response, by id, in the form that can be imported again.
    pub fn new(collection: &'a str) -> Self {
        MetadataList {
            collection,
            endpoint: None,
            fields: ":owner",
            filters: &[],
            id_gt: None,
            order_id_asc: true,
            page_size: None,
            page: 1,
            extra: &[],
            limits: SplitLimits::default(),
        }
    }

    /// Sends the request.
    ///
    /// # Errors
    /// As [`Request::rows`].
    pub async fn send(&self, client: &Client) -> Result<MetadataRows, Error> {
        let rows = self.request(client).rows(&[self.collection], self.limits).await?.with_key("id");
        Ok(MetadataRows { rows, collection: self.collection.to_owned(), page_size: self.page_size })
    }

    fn request(&self, client: &Client) -> Request {
        let mut request = client.get(&endpoint(self.endpoint, self.collection)).query("fields", self.fields);
        for filter in self.filters {
            request = request.query("filter", filter);
        }
        if let Some(id) = self.id_gt {
            request = request.query("filter", format!("id:gt:{id}"));
        }
        if !self.filters.is_empty() || self.id_gt.is_some() {
            request = request.query("rootJunction", "AND");
        }
        if self.order_id_asc {
            // One order only: until 2.41 several have no defined precedence.
            request = request.query("order", "id:asc");
        }
        request = paged(request, self.page_size, self.page);
        for (name, value) in self.extra {
            request = request.query(name, value);
        }
        request
    }
}

/// The path of a collection.
fn endpoint(endpoint: Option<&str>, collection: &str) -> String {
    endpoint.map_or_else(|| path_segment(collection), |path| path.trim_start_matches('/').to_owned())
}

fn paged(request: Request, page_size: Option<u32>, page: u64) -> Request {
    match page_size {
        None => request.query("paging", "false"),
        Some(size) => request.query("page", page.to_string()).query("pageSize", size.to_string()),
    }
}

/// The objects of a list, as they arrive.
#[derive(Debug)]
pub struct MetadataRows {
    rows: Rows,
    collection: String,
    page_size: Option<u32>,
}

/// The envelope of a complete list.
#[derive(Debug)]
#[non_exhaustive]
pub struct MetadataPage {
    /// The server's pager; none when no pages were asked for. `page` may differ from the request: past the
    /// end it is the last page, whose rows come again up to 2.30 and do not come from 2.31 on.
    pub pager: Option<Pager>,
    /// Rows of this response.
    pub rows: u64,
    /// Those of them that were too long or too deep.
    pub unfit_rows: u64,
}

impl MetadataRows {
    /// As [`Rows::read`].
    ///
    /// # Errors
    /// As [`Rows::read`]; garbled as soon as there are more rows than a page has.
    pub async fn read(&mut self, on_row: &mut dyn FnMut(Row<'_>) -> Result<(), RowFault>) -> Result<bool, Error> {
        let more = self.rows.read(on_row).await?;
        match self.page_size {
            Some(size) if self.rows.count() > u64::from(size) => {
                let text = format!("the response has more rows than the {size} of the page that was asked for");
                Err(self.rows.fail(Error::new(ErrorKind::Garbled, text)))
            }
            _ => Ok(more),
        }
    }

    /// As [`Rows::finish`]; checks that the response is the one asked for.
    ///
    /// # Errors
    /// As [`Rows::finish`]; garbled when the array has another name, when pages were asked for and the pager is missing
    /// or of another size.
    pub fn finish(self) -> Result<MetadataPage, Error> {
        finish_list(self.rows, &self.collection, self.page_size)
    }

    /// Rows handed out so far.
    pub fn count(&self) -> u64 {
        self.rows.count()
    }

    /// The url it came from, without credentials.
    pub fn url(&self) -> &str {
        self.rows.url()
    }
}

fn finish_list(rows: Rows, array: &str, page_size: Option<u32>) -> Result<MetadataPage, Error> {
    #[derive(Deserialize)]
    struct Paged {
        #[serde(default)]
        pager: Option<Pager>,
    }
    let mut pager = None;
    let envelope = rows.finish_with(|envelope: &Envelope| {
        let garbled = |text: String| Error::new(ErrorKind::Garbled, text);
        if !envelope.found_array() {
            return Err(garbled(format!("the response has no array `{array}`")));
        }
        pager = envelope.parse::<Paged>().map_err(crate::request::split_error)?.pager;
        Pager::check(pager, page_size)?;
        Ok(())
    })?;
    Ok(MetadataPage { pager, rows: envelope.rows(), unfit_rows: envelope.unfit_rows() })
}

/// One page of what was deleted.
///
/// 2.27 and later; from 2.29 for superusers only.
#[derive(Clone, Debug)]
pub struct DeletedObjects<'a> {
    /// Only this class: `DataElement`. Default all.
    pub klass: Option<&'a str>,
    /// Only what was deleted at or after this time, in the server's zone: `2024-01-31T00:00:00`. Default all.
    pub deleted_at: Option<&'a str>,
    /// Rows per page; none asks for all in one response.
    pub page_size: Option<u32>,
    /// The page, from 1.
    pub page: u64,
}

impl DeletedObjects<'_> {
    /// Sends the request.
    ///
    /// # Errors
    /// As [`Request::rows`]; status 403 for other users than superusers from 2.29, 404 in 2.25 and 2.26.
    pub async fn send(&self, client: &Client) -> Result<MetadataRows, Error> {
        let mut request = client.get("deletedObjects");
        if let Some(klass) = self.klass {
            request = request.query("klass", klass);
        }
        if let Some(deleted_at) = self.deleted_at {
            request = request.query("deletedAt", deleted_at);
        }
        let request = paged(request, self.page_size, self.page);
        let rows = request.rows(&["deletedObjects"], SplitLimits::default()).await?;
        Ok(MetadataRows { rows, collection: "deletedObjects".to_owned(), page_size: self.page_size })
    }
}

/// One kind of object a server knows. What a version does not tell is false or none.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[non_exhaustive]
pub struct Schema {
    /// `dataElement`.
    pub name: Option<String>,
    /// `dataElement`.
    pub singular: Option<String>,
    /// `dataElements`.
    pub plural: Option<String>,
    /// The array's name in lists: `dataElements`.
    pub collection_name: Option<String>,
    /// The Java class.
    pub klass: Option<String>,
    /// The path below `/api`: `/dataElements`; none where there is no list.
    pub relative_api_endpoint: Option<String>,
    /// Part of the metadata export and import.
    pub metadata: bool,
    /// Kept in the database.
    pub persisted: bool,
    /// Has a uid.
    pub identifiable_object: bool,
    /// Metadata that other metadata are made from; exported apart.
    pub secondary_metadata: bool,
    /// Part of another object.
    pub embedded_object: bool,
    /// Can be shared with users and groups: then a list may lack what we may not see.
    pub shareable: bool,
    /// In which order to import, lower first.
    pub order: Option<i64>,
}

impl Schema {
    /// Its names go into requests and messages.
    fn clean(self, redaction: &Redaction) -> Self {
        let clean = |text| redaction.clean_some(text);
        Schema {
            name: clean(self.name),
            singular: clean(self.singular),
            plural: clean(self.plural),
            collection_name: clean(self.collection_name),
            klass: clean(self.klass),
            relative_api_endpoint: clean(self.relative_api_endpoint),
            ..self
        }
    }

    /// The collection this schema stands for: the array's name and the path, where it has a list of its own.
    pub fn collection(&self) -> Option<(&str, &str)> {
        if !(self.persisted && self.identifiable_object) {
            return None;
        }
        let path = self.relative_api_endpoint.as_deref()?.trim_start_matches('/');
        let name = self.collection_name.as_deref().or(self.plural.as_deref())?;
        Some((name, path)).filter(|(name, path)| !name.is_empty() && !path.is_empty())
    }
}

/// The object at one place of a collection in order of ids.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdAt {
    /// Its id; none past the end.
    pub id: Option<String>,
    /// Counts of objects, among others.
    pub pager: Pager,
}

impl Client {
    /// The kinds of object this server knows.
    ///
    /// # Errors
    /// As every request; garbled when there is none among them.
    pub async fn schemas(&self) -> Result<Vec<Schema>, Error> {
        #[derive(Deserialize)]
        struct Raw {
            schemas: Vec<Schema>,
        }
        let fields = "name,singular,plural,collectionName,klass,relativeApiEndpoint,metadata,persisted,\
                      identifiableObject,secondaryMetadata,embeddedObject,shareable,order";
        let raw: Raw = self.get("schemas").query("fields", fields).json().await?;
        if raw.schemas.is_empty() {
            let error = Error::new(ErrorKind::Garbled, "the server says it knows no kind of object");
            return Err(error.about(&format!("{}/api/schemas", self.url()), ""));
        }
        let redaction = self.inner.session.redaction();
        Ok(raw.schemas.into_iter().map(|schema| schema.clean(&redaction)).collect())
    }

    /// The id at one place of a collection in order of ids, and how many objects there are.
    ///
    /// - `place`: from 1.
    /// - `list`: whose collection, path and filters count; the rest of it does not.
    ///
    /// # Errors
    /// As a list.
    pub async fn id_at(&self, list: &MetadataList<'_>, place: u64) -> Result<IdAt, Error> {
        #[derive(Deserialize)]
        struct Head {
            id: String,
        }
        let list = MetadataList {
            fields: "id",
            id_gt: None,
            order_id_asc: true,
            page_size: Some(1),
            page: place,
            ..list.clone()
        };
        let mut rows = list.send(self).await?;
        let mut id = None;
        while rows
            .read(&mut |row| {
                if let Row::Whole(row) = row {
                    id = Some(row.head::<Head>()?.id);
                }
                Ok(())
            })
            .await?
        {}
        let pager = rows.finish()?.pager.unwrap_or_default();
        // Past the end the server gives the last page again (up to 2.30), or none.
        let there = pager.page.is_none_or(|page| page == place);
        Ok(IdAt { id: id.filter(|_| there), pager })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CountingGate, Server, Then, answer, gzipped, json};

    fn client(server: &Server) -> Client {
        Client::builder(server.url()).retries(0).build().unwrap()
    }

    async fn lines(list: &MetadataList<'_>, client: &Client) -> Result<(String, MetadataPage), Error> {
        let mut lines = Vec::new();
        let mut rows = list.send(client).await?;
        while rows
            .read(&mut |row| {
                if let Row::Whole(row) = row {
                    row.write_line(&mut lines);
                }
                Ok(())
            })
            .await?
        {}
        Ok((String::from_utf8(lines).unwrap(), rows.finish()?))
    }

    #[actix_rt::test]
    async fn a_list_asks_as_the_api_takes_it() {
        let server = Server::saying(json(r#"{"dataElements":[]}"#));
        let client = client(&server);
        let filters = ["name:like:a b".to_owned(), "id:in:[x,y]".to_owned()];
        let keyset = MetadataList {
            filters: &filters,
            id_gt: Some("abcdefghijk"),
            page_size: Some(1000),
            extra: &[("defaults", "INCLUDE")],
            ..MetadataList::new("dataElements")
        };
        let _ = lines(&keyset, &client).await;
        let whole = MetadataList {
            endpoint: Some("/dataElements2"),
            fields: "id,name[x]",
            ..MetadataList::new("dataElements")
        };
        let _ = lines(&whole, &client).await;
        let unordered = MetadataList { order_id_asc: false, ..MetadataList::new("dataElements") };
        let _ = lines(&unordered, &client).await;
        let deleted = DeletedObjects {
            klass: Some("DataElement"),
            deleted_at: Some("2024-01-31T00:00:00"),
            page_size: Some(50),
            page: 2,
        };
        let _ = deleted.send(&client).await;
        let paths: Vec<_> = server.heard().into_iter().map(|heard| heard.path).collect();
        assert_eq!(
            paths,
            [
                "/api/dataElements?fields=:owner&filter=name:like:a%20b&filter=id:in:%5Bx,y%5D&filter=id:gt:abcdefghijk\
                 &rootJunction=AND&order=id:asc&page=1&pageSize=1000&defaults=INCLUDE",
                "/api/dataElements2?fields=id,name%5Bx%5D&order=id:asc&paging=false",
                "/api/dataElements?fields=:owner&paging=false",
                "/api/deletedObjects?klass=DataElement&deletedAt=2024-01-31T00:00:00&page=2&pageSize=50",
            ]
        );
    }

    #[actix_rt::test]
    async fn rows_come_as_the_server_wrote_them_with_the_pager() {
        let body = r#"{"pager":{"page":1,"pageCount":3,"total":5,"pageSize":2,"nextPage":"http://other/"},"dataElements":[{"id":"b","n":1.10},
            {"id":"a","x":"é"}]}"#;
        for bytes in [json(body), gzipped(body.as_bytes())] {
            let server = Server::saying(bytes);
            let list = MetadataList { page_size: Some(2), ..MetadataList::new("dataElements") };
            let (lines, page) = lines(&list, &client(&server)).await.unwrap();
            assert_eq!(lines, "{\"id\":\"b\",\"n\":1.10}\n{\"id\":\"a\",\"x\":\"é\"}\n");
            assert_eq!((page.rows, page.pager.unwrap().total), (2, Some(5)));
        }
    }

    #[actix_rt::test]
    async fn the_wrong_dialect_is_never_no_rows() {
        let paged = MetadataList { page_size: Some(2), ..MetadataList::new("dataElements") };
        let whole = MetadataList::new("dataElements");
        for (list, body) in [
            (&paged, r#"{"dataElements":[{"id":"a"}]}"#),
            (&paged, r#"{"pager":{"page":1,"pageSize":50},"dataElements":[]}"#),
            (&paged, r#"{"pager":{"page":1},"dataElements":[]}"#),
            (&paged, r#"{"pager":{"page":1,"pageSize":2},"dataElements":[{},{},{}]}"#),
            (&paged, r#"{"pager":{"page":1,"pageSize":2},"instances":[]}"#),
            (&paged, r#"{"pager":{"page":"x","pageSize":2},"dataElements":[]}"#),
            (&whole, r#"{"pager":{"page":1,"pageSize":50},"dataElements":[]}"#),
            (&whole, r#"{"dataElements":null}"#),
            (&whole, "{}"),
            (&whole, "[]"),
            (&whole, r#"{"dataElements":[{"id":"a"}]"#),
            (&whole, r#"{"dataElements":[{"id":"a"},5]}"#),
        ] {
            let server = Server::saying(json(body));
            let gate = CountingGate::default();
            let client = client(&server).with_gate(std::sync::Arc::new(gate.clone()));
            let error = lines(list, &client).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Garbled, "{body}: {error:?}");
            assert!(error.url().unwrap().contains("/api/dataElements?"));
            assert_eq!(*gate.outcomes.lock().unwrap(), [crate::gate::RequestOutcome::Failed { retry_after: None }]);
        }
        let server = Server::saying(answer("200 OK", &["Content-Type: application/json"], "\u{feff}<x>"));
        assert_eq!(lines(&whole, &client(&server)).await.unwrap_err().kind(), ErrorKind::NotJson);
    }

    #[actix_rt::test]
    async fn an_answer_not_read_to_its_end_does_not_count() {
        let server = Server::saying(json(r#"{"dataElements":[]}"#));
        let rows = MetadataList::new("dataElements").send(&client(&server)).await.unwrap();
        assert_eq!(rows.finish().unwrap_err().kind(), ErrorKind::Cancelled);
    }

    #[actix_rt::test]
    async fn the_id_at_a_place_is_none_past_the_end_in_both_dialects() {
        let server = Server::start(|heard, out| {
            out.write(json(match heard.number {
                0 => r#"{"pager":{"page":7,"pageCount":9,"total":9,"pageSize":1},"options":[{"id":"abcdefghijk"}]}"#,
                1 => r#"{"pager":{"page":9,"pageCount":9,"total":9,"pageSize":1},"options":[{"id":"lastlastlas"}]}"#,
                _ => r#"{"pager":{"page":9,"pageCount":9,"total":9,"pageSize":1},"options":[]}"#,
            }));
            Then::Keep
        });
        let client = client(&server);
        let list = MetadataList { page_size: Some(1000), id_gt: Some("x"), ..MetadataList::new("options") };
        let at = client.id_at(&list, 7).await.unwrap();
        assert_eq!((at.id.as_deref(), at.pager.total), (Some("abcdefghijk"), Some(9)));
        assert_eq!(client.id_at(&list, 10).await.unwrap().id, None);
        assert_eq!(client.id_at(&list, 10).await.unwrap().id, None);
        assert_eq!(server.heard()[0].path, "/api/options?fields=id&order=id:asc&page=7&pageSize=1");
    }

    #[actix_rt::test]
    async fn schemas_are_read_whatever_a_version_leaves_out() {
        let body = r#"{"schemas":[
            {"name":"dataElement","singular":"dataElement","plural":"dataElements","collectionName":"dataElements","klass":"org.hisp.dhis.dataelement.DataElement","relativeApiEndpoint":"/dataElements","metadata":true,"persisted":true,"identifiableObject":true,"order":3,"unknown":[]},
            {"name":"attributeValue","plural":"attributeValues","persisted":false},
            {"name":"x","plural":"xs","relativeApiEndpoint":"/xs","persisted":true,"identifiableObject":true}]}"#;
        let server = Server::saying(json(body));
        let schemas = client(&server).schemas().await.unwrap();
        let collections: Vec<_> = schemas.iter().map(Schema::collection).collect();
        assert_eq!(collections, [Some(("dataElements", "dataElements")), None, Some(("xs", "xs"))]);
        let server = Server::saying(json(r#"{"schemas":[]}"#));
        assert_eq!(client(&server).schemas().await.unwrap_err().kind(), ErrorKind::Garbled);
    }
}
