//! What templates' tags were assigned to, and when. Of each tag the last assignment is kept, and so there is one.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::api::e2b::answer::Refused;
use crate::api::e2b::owner::Owner;
use crate::api::e2b::query::Pairs;
use crate::api::e2b::tags::{bare, no_tag};
use crate::api::e2b::templates::created_at;
use crate::api::state::Context;
use crate::api::time::{of_ms, rfc3339};
use crate::service::builds::{build_id, uuid_of};
use crate::service::tags::normalized;
use crate::store::records::TagRecord;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct GroupsBody {
    tags: Vec<GroupBody>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct GroupBody {
    tag: String,
    assignments: Vec<AssignmentBody>,
    has_more: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AssignmentsBody {
    data: Vec<AssignmentBody>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AssignmentBody {
    assignment_id: String,
    build_id: String,
    assigned_at: String,
    build_created_at: String,
    build_finished_at: String,
}

/// The tags of a template with their assignments, page by page. A page's cursor is its last tag.
pub(super) async fn groups(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path(name): Path<String>,
    query: Pairs,
) -> Result<Json<GroupsBody>, Refused> {
    let len_max = usize::try_from(query.number("tagsLimit", 25, 0..=100)?.max(1)).unwrap_or(1);
    let assignments_max = query.number("assignmentLimit", 6, 0..=100)?;
    let (search, cursor) = (query.text("search").unwrap_or_default().to_lowercase(), query.text("tagsCursor"));
    let mut tags = context.sandboxes.tags(&owner, bare(&name)).await?;
    tags.retain(|record| record.tag.contains(&search));
    match query.text("sort") {
        None | Some("latest_desc") => tags.sort_by_key(|record| std::cmp::Reverse(record.created_at_ms)),
        Some("latest_asc") => tags.sort_by_key(|record| record.created_at_ms),
        Some("name_asc") => {}
        Some("name_desc") => tags.reverse(),
        Some(other) => {
            return Err(Refused::bad_request(format!("sort is {other:?}: it is `latest_desc`, `name_asc`, …")));
        }
    }
    let begun = match cursor {
        None => 0,
        Some(cursor) => {
            let last = tags.iter().position(|record| record.tag == cursor);
            last.ok_or_else(|| Refused::bad_request(format!("tagsCursor is {cursor:?}: no page has ended with that")))?
                + 1
        }
    };
    let is_last = tags.len() - begun <= len_max;
    let built = built(&context, &owner).await?;
    let page: Vec<_> = tags.into_iter().skip(begun).take(len_max).collect();
    let next_cursor = page.last().filter(|_| !is_last).map(|record| record.tag.clone());
    let tags = page.into_iter().map(|record| GroupBody {
        assignments: (assignments_max > 0).then(|| assignment(&record, &built)).into_iter().collect(),
        has_more: assignments_max == 0,
        tag: record.tag,
    });
    Ok(Json(GroupsBody { tags: tags.collect(), next_cursor }))
}

/// The assignments of one tag.
pub(super) async fn assignments(
    State(context): State<Context>,
    Owner(owner): Owner,
    Path((name, tag)): Path<(String, String)>,
) -> Result<Json<AssignmentsBody>, Refused> {
    let tag = normalized(&tag).ok_or_else(|| no_tag(&tag))?;
    let tags = context.sandboxes.tags(&owner, bare(&name)).await?;
    let found = tags.iter().find(|record| record.tag == tag);
    let found = found.ok_or_else(|| Refused::not_found(format!("tag '{tag}' not found")))?;
    let data = vec![assignment(found, &built(&context, &owner).await?)];
    Ok(Json(AssignmentsBody { data, next_cursor: None }))
}

/// When each template was made, by its name.
async fn built(context: &Context, owner: &str) -> Result<BTreeMap<String, String>, Refused> {
    let templates = context.sandboxes.templates(owner).await?;
    Ok(templates.iter().map(|template| (template.name().to_string(), created_at(template))).collect())
}

fn assignment(record: &TagRecord, built: &BTreeMap<String, String>) -> AssignmentBody {
    let assigned_at = rfc3339(of_ms(record.created_at_ms));
    let built_at = built.get(&record.template).unwrap_or(&assigned_at);
    AssignmentBody {
        assignment_id: uuid_of(&format!("{} {}:{} {assigned_at}", record.owner, record.name, record.tag)),
        build_id: build_id(&record.template),
        build_created_at: built_at.clone(),
        build_finished_at: built_at.clone(),
        assigned_at,
    }
}
