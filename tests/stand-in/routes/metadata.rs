//! Answers metadata collections: lists, single objects, the gist.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::Answer;
use crate::auth::User;
use crate::dialect::{Dialect, PastTheEnd};
use crate::fields;
use crate::query::{self, Filter, Order, Question};
use crate::quirks::{IdGt, Ordering};
use crate::request::Request;
use crate::routes::number;
use crate::rows::{Pen, Plan, push_number};
use crate::world::World;

/// `total` is remembered for so long where a version remembers it.
const TOTALS_KEPT: Duration = Duration::from_mins(1);

/// Which page is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page {
    /// From 1.
    number: usize,
    /// As asked; 0 stands for "nothing", which the pager shows as 1.
    size: usize,
}

impl Page {
    pub(crate) fn read(world: &World, request: &Request) -> Result<Self, Box<Answer>> {
        let page = number(world, request, "page", 1)?;
        let size = number(world, request, "pageSize", 50)?;
        if size < 0 {
            return Err(Box::new(Answer::message(&world.dialect, 400, "max-results cannot be negative")));
        }
        Ok(Self { number: usize::try_from(page.max(1)).unwrap_or(1), size: usize::try_from(size.max(0)).unwrap_or(0) })
    }

    pub(crate) fn shown_size(self) -> usize {
        self.size.max(1)
    }

    pub(crate) fn count(self, total: usize) -> usize {
        total.div_ceil(self.shown_size()).max(1)
    }

    /// The page the pager shows.
    pub(crate) fn clamped(self, total: usize) -> usize {
        self.number.min(self.count(total))
    }

    /// The rows on it: `total` is what the pager believes, `there` what there is.
    pub(crate) fn range(self, dialect: &Dialect, total: usize, there: usize) -> Range<usize> {
        if self.size == 0 {
            return 0..0;
        }
        let page = match dialect.past_the_end {
            PastTheEnd::RepeatsLast => self.clamped(total),
            PastTheEnd::Empty => self.number,
        };
        let from = (page - 1).saturating_mul(self.size).min(there);
        from..from.saturating_add(self.size).min(there)
    }
}

/// Appends `"pager":{…}`.
pub(crate) fn push_pager(out: &mut Vec<u8>, world: &World, request: &Request, page: &Page, total: usize) {
    let (shown, pages) = (page.clamped(total), page.count(total));
    let told = if total == 0 && world.dialect.counts_no_pages { 0 } else { pages };
    out.extend_from_slice(
        format!("\"pager\":{{\"page\":{shown},\"total\":{total},\"pageSize\":{}", page.shown_size()).as_bytes(),
    );
    let truth = world.base_url(request);
    let base = world.next_page_base.as_deref().unwrap_or(&truth);
    let page_size = page.shown_size();
    let mut link = |name: &str, number: usize| {
        let collection = &request.route.segments[0];
        let suffix = request.route.suffix.as_ref().map_or_else(String::new, |suffix| format!(".{suffix}"));
        // What is the default is left out.
        let page = (number > 1).then(|| ("page".to_owned(), number.to_string()));
        let size = (page_size != 50).then(|| ("pageSize".to_owned(), page_size.to_string()));
        let rest = request.query().iter().filter(|(name, _)| !matches!(name.as_str(), "page" | "pageSize"));
        let encode =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let pairs: Vec<String> = (page.iter().chain(&size).chain(rest))
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        let mark = if pairs.is_empty() { "" } else { "?" };
        let url = format!("{base}/api/{collection}{suffix}{mark}{}", pairs.join("&"));
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        crate::rows::push_text(out, &url);
    };
    if shown < pages {
        link("nextPage", shown + 1);
    }
    if shown > 1 {
        link("prevPage", shown - 1);
    }
    out.extend_from_slice(format!(",\"pageCount\":{told}}}").as_bytes());
}

fn question(world: &World, request: &Request, user: &User, shelf: usize) -> Result<Question, Box<Answer>> {
    let filters: Result<Vec<Filter>, String> =
        request.params("filter").map(|text| Filter::parse(world, shelf, text)).collect();
    let mut filters = filters.map_err(|message| {
        let dialect = &world.dialect;
        Box::new(Answer::coded_message(dialect, dialect.bad_filter_status, &message, dialect.filter_error_code))
    })?;
    if world.dialect.refuses_unknown_order
        && let Some(text) = request.params("order").find(|text| Order::parse(world, shelf, text).is_none())
    {
        let property = text.split(':').next().unwrap_or_default();
        return Err(Box::new(Answer::message(&world.dialect, 400, &format!("No such property: {property}"))));
    }
    match world.quirks.id_gt {
        IdGt::Honest => {}
        IdGt::Ignored => filters.retain(|filter| !filter.is_id_gt()),
        IdGt::Inclusive => filters.iter_mut().filter(|filter| filter.is_id_gt()).for_each(Filter::include_bound),
    }
    let mut orders: Vec<Order> = request.params("order").filter_map(|text| Order::parse(world, shelf, text)).collect();
    match world.quirks.ordering {
        Ordering::Honest => {}
        Ordering::Ignored => orders.clear(),
        Ordering::Descending => orders.iter_mut().for_each(Order::descend),
    }
    Ok(Question {
        filters,
        any: request.param("rootJunction").is_some_and(|junction| junction.eq_ignore_ascii_case("or")),
        query: request.param("query").map(Into::into),
        orders,
        percent: user.visible_percent,
        request_number: request.number,
        hidden_from: world.hidden_from(shelf, request.number),
    })
}

/// What everybody gets from a collection that refuses, and users from the list of users.
fn refusal(world: &World, user: &User, shelf: usize) -> Option<Answer> {
    let collection = world.shelves[shelf].collection;
    let guarded = collection.name == "users" && world.dialect.users_are_guarded && !user.superuser;
    let status = world.refused.get(collection.name).copied().or(guarded.then_some(403))?;
    let answer = match status {
        403 => {
            let message = "You don't have the proper permissions to read objects of this type.";
            Answer::coded_message(&world.dialect, status, message, Some("E1006"))
        }
        _ => Answer::message(&world.dialect, status, &format!("No handler found for GET /api/{}", collection.name)),
    };
    Some(answer)
}

/// The total the pager shows: in 2.31 to 2.36 what it was up to a minute ago.
fn shown_total(world: &mut World, request: &Request, user: &User, shelf: usize, counted: usize) -> usize {
    if !world.dialect.stale_totals {
        return counted;
    }
    let mut filters: Vec<&str> = request.params("filter").collect();
    filters.sort_unstable();
    let key = (user.name.clone(), shelf, filters.join("\n"));
    let now = Instant::now();
    world.totals.retain(|_, (until, _)| *until > now);
    let fresh = u32::try_from(counted).unwrap_or(u32::MAX);
    world.totals.entry(key).or_insert((now + TOTALS_KEPT, fresh)).1 as usize
}

/// `/api/{collection}`.
pub(crate) fn list(world: &mut World, request: &Request, user: &User, shelf: usize) -> Answer {
    if let Some(answer) = refusal(world, user, shelf) {
        return answer;
    }
    let asked = question(world, request, user, shelf).and_then(|question| Ok((question, Page::read(world, request)?)));
    let (question, page) = match asked {
        Ok(asked) => asked,
        Err(answer) => return *answer,
    };
    let rows = query::rows(world, shelf, &question);
    let paged = !request.param("paging").is_some_and(|paging| paging.eq_ignore_ascii_case("false"));
    let total = if paged { shown_total(world, request, user, shelf, rows.len()) } else { rows.len() };
    let shown = if paged { page.range(&world.dialect, total, rows.len()) } else { 0..rows.len() };
    let spares_default = world.shelves[shelf].collection.default_id.is_some()
        && request.param("defaults").is_some_and(|defaults| defaults.eq_ignore_ascii_case("exclude"));
    let wanted = request.params("fields").collect::<Vec<_>>().join(",");
    let wanted = if wanted.is_empty() { "id,displayName" } else { &wanted };
    let collection = world.shelves[shelf].collection;
    let mut body = Vec::with_capacity(256 + shown.len() * 640);
    body.push(b'{');
    if paged {
        push_pager(&mut body, world, request, &page, total);
        body.push(b',');
    }
    body.extend_from_slice(format!("\"{}\":[", collection.name).as_bytes());
    let plan = Plan::new(world, shelf, &fields::parse(wanted));
    let base = world.base_url(request);
    let mut pen = Pen::new(world, &base).for_request(request.number);
    let mut first = true;
    for row in &rows[shown] {
        if spares_default && *row == 0 {
            continue;
        }
        if !first {
            body.push(b',');
        }
        first = false;
        pen.object(&mut body, shelf, *row, &plan);
    }
    body.extend_from_slice(b"]}");
    world.list_answered(shelf);
    let mut answer = Answer::json(200, body).with_header("Cache-Control", "no-cache, private");
    answer.rows = Some(collection.name);
    answer
}

/// `/api/{collection}/{id}`.
pub(crate) fn one(world: &mut World, request: &Request, user: &User, shelf: usize, id: &str) -> Answer {
    if let Some(answer) = refusal(world, user, shelf) {
        return answer;
    }
    let found = world.find(shelf, id).filter(|row| *row < world.hidden_from(shelf, request.number));
    let Some(row) = found else {
        let klass = world.shelves[shelf].collection.klass.rsplit('.').next().unwrap_or_default();
        let message = format!("{klass} with id {id} could not be found.");
        return Answer::coded_message(&world.dialect, 404, &message, Some("E1005"));
    };
    if !world.is_visible(shelf, row, user.visible_percent) {
        return Answer::message(
            &world.dialect,
            403,
            &format!("You don't have the proper permissions to read object {id}"),
        );
    }
    if world.shelves[shelf].collection.name == "organisationUnits"
        && request.param("includeDescendants") == Some("true")
    {
        return descendants(world, request, user, shelf, row);
    }
    let plan = Plan::new(world, shelf, &fields::parse(request.param("fields").unwrap_or("*")));
    let base = world.base_url(request);
    let mut body = Vec::new();
    Pen::new(world, &base).for_request(request.number).object(&mut body, shelf, row, &plan);
    Answer::json(200, body).with_header("Cache-Control", "no-cache, private")
}

/// `/api/{collection}/gist`: always paged, at most 1,000 rows, relative links, a total only on request.
pub(crate) fn gist(world: &mut World, request: &Request, user: &User, shelf: usize) -> Answer {
    if let Some(answer) = refusal(world, user, shelf) {
        return answer;
    }
    let asked = question(world, request, user, shelf).and_then(|question| Ok((question, Page::read(world, request)?)));
    let (mut question, mut page) = match asked {
        Ok(asked) => asked,
        Err(answer) => return *answer,
    };
    page.size = page.size.clamp(1, 1000);
    question.orders.extend(if question.orders.is_empty() { Order::parse(world, shelf, "id:asc") } else { None });
    let rows = query::rows(world, shelf, &question);
    let from = (page.number - 1).saturating_mul(page.size).min(rows.len());
    let to = from.saturating_add(page.size).min(rows.len());
    let flag = |name: &str| request.param(name) == Some("true");
    let collection = world.shelves[shelf].collection;
    let mut body = Vec::new();
    let headless = flag("headless");
    if !headless {
        body.extend_from_slice(format!("{{\"pager\":{{\"page\":{},\"pageSize\":{}", page.number, page.size).as_bytes());
        if flag("total") || flag("totalPages") {
            body.extend_from_slice(b",\"total\":");
            push_number(&mut body, u64::try_from(rows.len()).unwrap_or(0));
            body.extend_from_slice(format!(",\"pageCount\":{}", page.count(rows.len())).as_bytes());
        }
        let base = world.base_url(request);
        let base = if world.dialect.gist_links_are_absolute { format!("{base}/api") } else { String::new() };
        let others: Vec<String> = (request.query().iter().filter(|(name, _)| name != "page"))
            .map(|(name, value)| format!("{name}={value}&"))
            .collect();
        let link = |number: usize| format!("{base}/{}/gist?{}page={number}", collection.name, others.concat());
        if page.number > 1 {
            body.extend_from_slice(format!(",\"prevPage\":\"{}\"", link(page.number - 1)).as_bytes());
        }
        if to < rows.len() {
            body.extend_from_slice(format!(",\"nextPage\":\"{}\"", link(page.number + 1)).as_bytes());
        }
        body.extend_from_slice(format!("}},\"{}\":", collection.name).as_bytes());
    }
    body.push(b'[');
    let wanted = request.params("fields").collect::<Vec<_>>().join(",");
    let wanted = fields::parse(if wanted.is_empty() { "id,name,code" } else { &wanted });
    let plan = Plan::new(world, shelf, &wanted);
    // One simple member comes as a plain value (recorded: `gist`).
    let bare = wanted.len() == 1 && wanted[0].nested.is_empty() && wanted[0].name.starts_with(char::is_alphabetic);
    let base = world.base_url(request);
    let mut pen = Pen::new(world, &base).for_request(request.number);
    for (at, row) in rows[from..to].iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        let start = body.len();
        pen.object(&mut body, shelf, *row, &plan);
        if bare {
            let members = fields::members(&String::from_utf8_lossy(&body[start..]));
            body.truncate(start);
            body.extend_from_slice(members.first().map_or("null", |(_, value)| value.as_str()).as_bytes());
        }
    }
    body.extend_from_slice(if headless { b"]" } else { b"]}" });
    Answer::json(200, body).with_header("Cache-Control", "no-cache, private")
}

/// `/api/organisationUnits/{id}?includeDescendants=true`: a list of the unit and all below it, in the default order; its
/// pager comes with 2.42, pages come before (recorded: `orgunit-children`).
fn descendants(world: &mut World, request: &Request, user: &User, shelf: usize, unit: u32) -> Answer {
    let asked = question(world, request, user, shelf).and_then(|question| Ok((question, Page::read(world, request)?)));
    let (question, page) = match asked {
        Ok(asked) => asked,
        Err(answer) => return *answer,
    };
    let mut rows = query::rows(world, shelf, &question);
    rows.retain(|row| world.country.ancestors(*row).contains(&unit));
    let mut body = Vec::from(*b"{");
    if world.dialect.descendants_are_paged {
        push_pager(&mut body, world, request, &page, rows.len());
        body.push(b',');
    }
    body.extend_from_slice(b"\"organisationUnits\":[");
    let wanted = request.params("fields").collect::<Vec<_>>().join(",");
    let plan = Plan::new(world, shelf, &fields::parse(if wanted.is_empty() { "id,displayName" } else { &wanted }));
    let base = world.base_url(request);
    let mut pen = Pen::new(world, &base);
    for (at, row) in rows[page.range(&world.dialect, rows.len(), rows.len())].iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        pen.object(&mut body, shelf, *row, &plan);
    }
    body.extend_from_slice(b"]}");
    Answer::json(200, body).with_header("Cache-Control", "no-cache, private")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_behind_the_last_repeats_it_up_to_2_30_and_is_empty_later() {
        let page = |number, size| Page { number, size };
        // page, total, what 2.30 shows, what 2.31 shows, the pager's page, the pager's pageCount
        let table = [
            (page(1, 50), 120, 0..50, 0..50, 1, 3),
            (page(3, 50), 120, 100..120, 100..120, 3, 3),
            (page(4, 50), 120, 100..120, 120..120, 3, 3),
            (page(900, 50), 120, 100..120, 120..120, 3, 3),
            (page(2, 60), 120, 60..120, 60..120, 2, 2),
            (page(1, 50), 0, 0..0, 0..0, 1, 1),
            (page(7, 50), 0, 0..0, 0..0, 1, 1),
            (page(1, 0), 120, 0..0, 0..0, 1, 120),
            (page(1, 1000), 120, 0..120, 0..120, 1, 1),
        ];
        for (page, total, old, new, shown, pages) in table {
            assert_eq!(page.range(&Dialect::of(30), total, total), old, "{page:?} of {total} in 2.30");
            assert_eq!(page.range(&Dialect::of(31), total, total), new, "{page:?} of {total} in 2.31");
            assert_eq!((page.clamped(total), page.count(total)), (shown, pages), "{page:?} of {total}");
        }
    }
}
