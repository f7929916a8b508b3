//! Understands `filter` and `order` and decides which rows they mean.

use std::cmp::Ordering;

use crate::clock;
use crate::collation::Collation;
use crate::collections::{Kind, Member};
use crate::dialect::{DefaultOrder, Dialect};
use crate::rows::Pen;
use crate::world::World;

/// One `filter=path:op[:value]`.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    member: Member,
    /// Member of the object referred to, e.g. `id` of `parent.id`.
    inner: Option<Member>,
    op: Op,
    negated: bool,
    value: String,
    values: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Eq,
    EqIgnoringCase,
    In,
    Gt,
    Ge,
    Lt,
    Le,
    Like { ignoring_case: bool, start: bool, end: bool },
    Null,
    Empty,
}

fn op(text: &str, dialect: &Dialect) -> Option<(Op, bool)> {
    let (word, negated) = match text.strip_prefix('!') {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    let like = |ignoring_case, start, end| Op::Like { ignoring_case, start, end };
    let op = match word {
        "eq" => Op::Eq,
        "ieq" if dialect.ieq_filter => Op::EqIgnoringCase,
        "in" => Op::In,
        "gt" if !negated => Op::Gt,
        "ge" | "gte" if !negated => Op::Ge,
        "lt" if !negated => Op::Lt,
        "le" | "lte" if !negated => Op::Le,
        "like" => like(false, false, false),
        "$like" => like(false, true, false),
        "like$" => like(false, false, true),
        "ilike" => like(true, false, false),
        "$ilike" | "startsWith" => like(true, true, false),
        "ilike$" | "endsWith" => like(true, false, true),
        "^like" if dialect.caret_filters => like(false, true, false),
        "^ilike" if dialect.caret_filters => like(true, true, false),
        "token" => like(true, false, false),
        "null" => Op::Null,
        "empty" if dialect.empty_filter && (!negated || dialect.not_empty_filter) => Op::Empty,
        _ => return None,
    };
    Some((op, negated))
}

impl Filter {
    /// Reads one filter for a collection.
    ///
    /// # Errors
    /// What the server would say about an unknown property, an unknown operator or a missing value.
    pub(crate) fn parse(world: &World, shelf: usize, text: &str) -> Result<Self, String> {
        let mut parts = text.splitn(3, ':');
        let path = parts.next().unwrap_or_default();
        let operator = parts.next().ok_or_else(|| format!("Invalid filter => {text}"))?;
        let value = parts.next().unwrap_or_default().to_owned();
        let (head, inner) = path.split_once('.').map_or((path, None), |(head, inner)| (head, Some(inner)));
        let unknown = || format!("Unknown path property: {path}");
        let member = *world.shelves[shelf].member(head).ok_or_else(unknown)?;
        let inner = match inner {
            None => None,
            Some(inner) => {
                let (target, _) = Pen::new(world, "").follow(shelf, 0, &member).ok_or_else(unknown)?;
                Some(*world.shelves[target].member(inner).ok_or_else(unknown)?)
            }
        };
        let (op, negated) =
            op(operator, &world.dialect).ok_or_else(|| format!("`{operator}` is not a valid operator."))?;
        let values = match op {
            Op::In => {
                let list = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                let list = list.ok_or_else(|| format!("Invalid argument `{value}` for in operator"))?;
                list.split(',').map(Into::into).collect()
            }
            _ => Vec::new(),
        };
        if value.is_empty() && !matches!(op, Op::Null | Op::Empty | Op::Eq | Op::Like { .. }) {
            return Err(format!("Query filter `{text}` has no value"));
        }
        Ok(Self { member, inner, op, negated, value, values })
    }

    /// The end of the id order that this filter cuts off, if that is all it does: lower or upper.
    fn id_bound(&self) -> Option<(bool, bool)> {
        if self.member.kind != Kind::Id || self.inner.is_some() {
            return None;
        }
        match self.op {
            Op::Gt => Some((true, false)),
            Op::Ge => Some((true, true)),
            Op::Lt => Some((false, false)),
            Op::Le => Some((false, true)),
            _ => None,
        }
    }

    /// Whether it is `id:gt:…`, what a walk by keyset asks.
    pub(crate) fn is_id_gt(&self) -> bool {
        self.id_bound() == Some((true, false))
    }

    /// Reads `gt` as `ge`.
    pub(crate) fn include_bound(&mut self) {
        self.op = Op::Ge;
    }

    fn names_ids(&self) -> Option<Vec<&str>> {
        if self.member.kind != Kind::Id || self.inner.is_some() || self.negated {
            return None;
        }
        match self.op {
            Op::Eq => Some(vec![&self.value]),
            Op::In => Some(self.values.iter().map(String::as_str).collect()),
            _ => None,
        }
    }

    fn matches(&self, pen: &mut Pen<'_>, shelf: usize, row: u32) -> bool {
        match &self.inner {
            None => {
                let text = pen.text(shelf, row, &self.member);
                self.decides(pen.world.filter_collation(), &self.member, text.as_deref())
            }
            Some(inner) => {
                let Some((target, rows)) = pen.follow(shelf, row, &self.member) else { return false };
                rows.into_iter().any(|other| {
                    let text = pen.text(target, other, inner);
                    self.decides(pen.world.filter_collation(), inner, text.as_deref())
                })
            }
        }
    }

    fn decides(&self, collation: Collation, member: &Member, text: Option<&str>) -> bool {
        if self.op == Op::Null {
            return text.is_none() != self.negated;
        }
        if self.op == Op::Empty {
            return text.is_none_or(|text| text.is_empty() || text == "[]") != self.negated;
        }
        // As in SQL: null is neither equal nor unequal to anything.
        let Some(text) = text else { return false };
        let met = match self.op {
            Op::Eq => compare(collation, member.kind, text, &self.value, true).is_eq(),
            Op::EqIgnoringCase => text.to_lowercase() == self.value.to_lowercase(),
            Op::In => self.values.iter().any(|value| compare(collation, member.kind, text, value, true).is_eq()),
            Op::Gt => compare(collation, member.kind, text, &self.value, false).is_gt(),
            Op::Ge => compare(collation, member.kind, text, &self.value, false).is_ge(),
            Op::Lt => compare(collation, member.kind, text, &self.value, false).is_lt(),
            Op::Le => compare(collation, member.kind, text, &self.value, false).is_le(),
            Op::Like { ignoring_case, start, end } => {
                let (text, value) = if ignoring_case {
                    (text.to_lowercase(), self.value.to_lowercase())
                } else {
                    (text.to_owned(), self.value.clone())
                };
                match (start, end) {
                    (true, _) => text.starts_with(&value),
                    (_, true) => text.ends_with(&value),
                    _ => text.contains(&value),
                }
            }
            Op::Null | Op::Empty => false,
        };
        met != self.negated
    }
}

fn is_date(kind: Kind) -> bool {
    matches!(kind, Kind::Created | Kind::LastUpdated | Kind::OpeningDate | Kind::ClosedDate)
}

fn is_number(kind: Kind) -> bool {
    matches!(kind, Kind::Level | Kind::Rank | Kind::Counter | Kind::AwkwardNumber)
}

fn compare(collation: Collation, kind: Kind, text: &str, value: &str, exact: bool) -> Ordering {
    if is_date(kind)
        && let (Some(a), Some(b)) = (clock::parse_local(text), clock::parse_local(value))
    {
        return a.cmp(&b);
    }
    if is_number(kind)
        && let (Ok(a), Ok(b)) = (text.parse::<f64>(), value.parse::<f64>())
    {
        return a.total_cmp(&b);
    }
    if exact { text.cmp(value) } else { collation.compare(text, value) }
}

/// One `order=property:direction`.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    member: Member,
    descending: bool,
    ignoring_case: bool,
    text: String,
}

impl Order {
    /// Reads one order; `None` when the collection has no such property, which the server ignores.
    pub(crate) fn parse(world: &World, shelf: usize, text: &str) -> Option<Self> {
        let (property, direction) = text.split_once(':').unwrap_or((text, "asc"));
        let member = *world.shelves[shelf].member(property)?;
        let (descending, ignoring_case) = match direction {
            "asc" => (false, false),
            "desc" => (true, false),
            "iasc" => (false, true),
            "idesc" => (true, true),
            _ => return None,
        };
        Some(Self { member, descending, ignoring_case, text: text.to_owned() })
    }

    /// Turns it round.
    pub(crate) fn descend(&mut self) {
        self.descending = true;
    }

    fn is_by_id(&self) -> bool {
        self.member.kind == Kind::Id && !self.ignoring_case
    }
}

/// A list request's question, without its page.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) filters: Vec<Filter>,
    pub(crate) any: bool,
    /// `query=`: id or code equals, or name contains.
    pub(crate) query: Option<String>,
    pub(crate) orders: Vec<Order>,
    /// Share of the rows the user sees, in per cent.
    pub(crate) percent: u8,
    /// Decides between equals where ties are unstable.
    pub(crate) request_number: u64,
    /// Rows from this one on are not there yet.
    pub(crate) hidden_from: u32,
}

/// The rows a question means, in order.
pub(crate) fn rows(world: &mut World, shelf: usize, question: &Question) -> Vec<u32> {
    if question.orders.is_empty() && world.shelves[shelf].default_order.is_none() {
        let sorted = default_order(world, shelf);
        world.shelves[shelf].default_order = Some(sorted);
    }
    let world = &*world;
    let here = &world.shelves[shelf];
    let same_collation = world.filter_collation() == world.collation;
    let mut range = 0..here.by_id.len();
    let mut named: Option<Vec<u32>> = None;
    let mut rest: Vec<&Filter> = Vec::new();
    for filter in &question.filters {
        if question.any {
            rest.push(filter);
        } else if let Some((lower, inclusive)) = filter.id_bound().filter(|_| same_collation) {
            let equal = world.id_range(shelf, &filter.value);
            match (lower, inclusive) {
                (true, true) => range.start = range.start.max(equal.start),
                (true, false) => range.start = range.start.max(equal.end),
                (false, true) => range.end = range.end.min(equal.end),
                (false, false) => range.end = range.end.min(equal.start),
            }
        } else if let (Some(ids), None) = (filter.names_ids(), &named) {
            let mut found: Vec<usize> =
                ids.iter().filter_map(|id| world.find(shelf, id).map(|_| world.id_range(shelf, id).start)).collect();
            found.sort_unstable();
            found.dedup();
            named = Some(found.into_iter().filter(|at| range.contains(at)).map(|at| here.by_id[at]).collect());
        } else {
            rest.push(filter);
        }
    }
    let all = range == (0..here.by_id.len()) && named.is_none();
    let in_range = |row: &u32| {
        let at = world.id_range(shelf, crate::country::uid_text(here.id(*row))).start;
        range.contains(&at)
    };
    let candidates: Vec<u32> = match (&named, &here.default_order) {
        (Some(named), _) => named.iter().copied().filter(in_range).collect(),
        (None, Some(sorted)) if question.orders.is_empty() && all => sorted.clone(),
        _ if range.is_empty() => Vec::new(),
        _ => here.by_id[range.clone()].to_vec(),
    };
    let mut pen = Pen::new(world, "");
    let lags = question.hidden_from < u32::try_from(here.id_count()).unwrap_or(u32::MAX);
    let scans = !rest.is_empty() || question.query.is_some() || question.percent < 100 || lags;
    let mut kept = if scans {
        candidates
            .into_iter()
            .filter(|row| {
                world.is_visible(shelf, *row, question.percent)
                    && *row < question.hidden_from
                    && question.query.as_ref().is_none_or(|query| is_found(&mut pen, shelf, *row, query))
                    && (rest.is_empty()
                        || if question.any {
                            rest.iter().any(|filter| filter.matches(&mut pen, shelf, *row))
                        } else {
                            rest.iter().all(|filter| filter.matches(&mut pen, shelf, *row))
                        })
            })
            .collect()
    } else {
        candidates
    };
    if question.orders.is_empty() {
        if !all {
            sort_by_default(world, shelf, &mut kept);
        }
        if world.unstable_ties && world.dialect.default_order == DefaultOrder::NameThenCreated {
            shake_ties(world, shelf, &mut kept, question.request_number);
        }
        return kept;
    }
    sort(world, shelf, &mut kept, question);
    kept
}

fn is_found(pen: &mut Pen<'_>, shelf: usize, row: u32, query: &str) -> bool {
    let world = pen.world;
    let mut text = |name: &str| world.shelves[shelf].member(name).and_then(|member| pen.text(shelf, row, member));
    text("id").as_deref() == Some(query)
        || text("code").as_deref() == Some(query)
        || text("name").is_some_and(|name| name.to_lowercase().contains(&query.to_lowercase()))
}

fn sort(world: &World, shelf: usize, kept: &mut [u32], question: &Question) {
    let mut orders: Vec<&Order> = question.orders.iter().collect();
    if orders.len() > 1 && !world.dialect.orders_keep_precedence {
        orders.sort_by_key(|order| crate::country::mix(crate::country::hash_text(&order.text)));
    }
    if let [only] = orders.as_slice()
        && only.is_by_id()
    {
        // Candidates come in the order of their ids.
        if only.descending {
            kept.reverse();
        }
        return;
    }
    let mut pen = Pen::new(world, "");
    let mut keyed: Vec<(Vec<Option<String>>, u32)> = kept
        .iter()
        .map(|row| (orders.iter().map(|order| pen.text(shelf, *row, &order.member)).collect(), *row))
        .collect();
    let flip = world.unstable_ties && question.request_number % 2 == 1;
    keyed.sort_by(|(a, a_row), (b, b_row)| {
        for ((order, a), b) in orders.iter().zip(a).zip(b) {
            let ordering = match (a, b) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) if order.ignoring_case => a.to_lowercase().cmp(&b.to_lowercase()),
                (Some(a), Some(b)) => compare(world.collation, order.member.kind, a, b, false),
            };
            let ordering = if order.descending { ordering.reverse() } else { ordering };
            if ordering.is_ne() {
                return ordering;
            }
        }
        if flip { b_row.cmp(a_row) } else { a_row.cmp(b_row) }
    });
    for (slot, (_, row)) in kept.iter_mut().zip(keyed) {
        *slot = row;
    }
}

fn default_order(world: &World, shelf: usize) -> Vec<u32> {
    let mut rows = world.shelves[shelf].by_id.clone();
    sort_by_default(world, shelf, &mut rows);
    rows
}

/// Name and, between equals, what the version adds. Stable: ids decide where the version decides nothing.
fn sort_by_default(world: &World, shelf: usize, rows: &mut [u32]) {
    let here = &world.shelves[shelf];
    let mut name = String::new();
    rows.sort_by_cached_key(|row| {
        name.clear();
        if here.collection.named {
            world.push_name(&mut name, shelf, *row);
        }
        let created = match world.dialect.default_order {
            DefaultOrder::NameThenCreated => -here.created_ms(&world.country, *row),
            DefaultOrder::NameThenId => 0,
        };
        (name.to_lowercase(), created, world.collation.id_key(here.id(*row)))
    });
}

/// Turns runs of equals round on every other request.
fn shake_ties(world: &World, shelf: usize, rows: &mut [u32], request_number: u64) {
    if request_number.is_multiple_of(2) {
        return;
    }
    let key = |row: u32| {
        let mut name = String::new();
        if world.shelves[shelf].collection.named {
            world.push_name(&mut name, shelf, row);
        }
        (name.to_lowercase(), world.shelves[shelf].created_ms(&world.country, row))
    };
    let mut from = 0;
    while from < rows.len() {
        let mut to = from + 1;
        let first = key(rows[from]);
        while to < rows.len() && key(rows[to]) == first {
            to += 1;
        }
        rows[from..to].reverse();
        from = to;
    }
}
