//! Answers `/api/deletedObjects` where the version has it.

use crate::answer::Answer;
use crate::auth::User;
use crate::clock;
use crate::dialect::DeletedObjects;
use crate::request::Request;
use crate::routes::metadata::Page;
use crate::world::{Deleted, World};

/// Deleted objects in the order of their deletion; `klass` and `deletedAt` narrow them.
pub(crate) fn list(world: &World, request: &Request, user: &User) -> Answer {
    let dialect = &world.dialect;
    match dialect.deleted_objects {
        DeletedObjects::Absent => return Answer::message(dialect, 404, "No handler found for GET /api/deletedObjects"),
        DeletedObjects::SuperuserOnly if !user.superuser => {
            return Answer::message(dialect, 403, "Access is denied");
        }
        DeletedObjects::SuperuserOnly | DeletedObjects::Anyone => {}
    }
    let since = request.param("deletedAt").map(clock::parse_local);
    if since == Some(None) {
        return Answer::message(dialect, dialect.bad_parameter_status, "Value is not valid for parameter deletedAt");
    }
    let since = since.flatten();
    let klasses: Vec<&str> = request.params("klass").collect();
    let rows: Vec<&Deleted> = world
        .deleted
        .iter()
        .filter(|row| klasses.is_empty() || klasses.contains(&row.klass.as_str()))
        .filter(|row| since.is_none_or(|since| row.deleted_at_ms >= since))
        .collect();
    let paged = request.param("paging") != Some("false") && request.param("skipPaging") != Some("true");
    let page = match Page::read(world, request) {
        Ok(page) => page,
        Err(answer) => return *answer,
    };
    let total = rows.len();
    let shown = if paged { page.range(dialect, total, total) } else { 0..total };
    let mut body = Vec::from(*b"{");
    if paged {
        // Without links, whatever page it is.
        let pager = format!(
            "\"pager\":{{\"page\":{},\"pageCount\":{},\"total\":{total},\"pageSize\":{}}},",
            page.clamped(total),
            page.count(total),
            page.shown_size()
        );
        body.extend_from_slice(pager.as_bytes());
    }
    body.extend_from_slice(b"\"deletedObjects\":[");
    for (at, row) in rows[shown].iter().enumerate() {
        if at > 0 {
            body.push(b',');
        }
        push(&mut body, row);
    }
    body.extend_from_slice(b"]}");
    Answer::json(200, body)
}

/// Appends one row.
pub(crate) fn push(out: &mut Vec<u8>, row: &Deleted) {
    out.extend_from_slice(format!("{{\"klass\":\"{}\",\"uid\":\"{}\"", row.klass, row.uid).as_bytes());
    if let Some(code) = &row.code {
        out.extend_from_slice(b",\"code\":");
        crate::rows::push_text(out, code);
    }
    out.extend_from_slice(b",\"deletedAt\":\"");
    clock::write_local(out, row.deleted_at_ms);
    out.extend_from_slice(b"\",\"deletedBy\":\"admin\"}");
}
