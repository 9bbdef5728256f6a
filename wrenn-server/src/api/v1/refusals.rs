//! Which refusals a route can answer with, for the document: the statuses of [`Refused`](super::answer::Refused).

use std::collections::BTreeMap;

use serde_json::json;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::{Ref, RefOr, Response};
use utoipa::{IntoResponses, ToSchema};

use crate::api::v1::answer::ErrorBody;

/// Of a route that names something.
#[derive(Debug)]
pub(super) struct Missing;

/// Of a route that asks a sandbox, or the machine for one.
#[derive(Debug)]
pub(super) struct Failing;

/// Of a route by which a key has one thing more.
#[derive(Debug)]
pub(super) struct TooMany;

/// Of a route that names where webhooks are sent.
#[derive(Debug)]
pub(super) struct NotPublic;

/// Of a route whose input is no body of JSON.
#[derive(Debug)]
pub(super) struct BadInput;

/// Of a route that speaks no HTTP.
#[derive(Debug)]
pub(super) struct NoWebSocket;

/// Of a route that takes something for as long as it comes.
#[derive(Debug)]
pub(super) struct TooSlow;

type Responses = BTreeMap<String, RefOr<Response>>;

impl IntoResponses for Missing {
    fn responses() -> Responses {
        refusals(&[(404, "not_found", "The key has no such sandbox, template, program or file.")])
    }
}

impl IntoResponses for Failing {
    fn responses() -> Responses {
        refusals(&[
            (409, "invalid_state", "Its state stands against it, such as that of a paused sandbox, or the guest does."),
            (502, "vm_ended", "The guest or its VMM failed, or what is stored is damaged."),
            (507, "no_space", "The machine's disk is full, or as much is kept for the key as it may have."),
        ])
    }
}

impl IntoResponses for TooMany {
    fn responses() -> Responses {
        refusals(&[(409, "too_many", "There are as many as there may be: remove some.")])
    }
}

impl IntoResponses for NotPublic {
    fn responses() -> Responses {
        let description = "`not_public`: the host has an address that is not on the public internet, which this server sends \
                           nothing to. `forbidden`: the key may only look.";
        refusals(&[(403, "not_public", description)])
    }
}

impl IntoResponses for NoWebSocket {
    fn responses() -> Responses {
        refusals(&[(426, "no_websocket", "The request asks for no WebSocket. `Upgrade` says that it has to.")])
    }
}

impl IntoResponses for TooSlow {
    fn responses() -> Responses {
        refusals(&[(408, "too_slow", "The client sent nothing for a while.")])
    }
}

impl IntoResponses for BadInput {
    fn responses() -> Responses {
        refusals(&[(400, "invalid_input", "The input cannot be used.")])
    }
}

/// Adds what each route can answer that wants a key, and each that takes a body of JSON.
pub(super) fn add_common(operation: &mut Operation) {
    let mut common = refusals(&[
        (401, "unauthorized", "The request has no key, or one that is not good."),
        (403, "forbidden", "The key may only look."),
        (
            429,
            "limit_reached",
            "The key has what it may have, or asks too often. `Retry-After` says when to ask again.",
        ),
        (500, "internal", "The server failed: its log says how."),
        (503, "closing", "The server ends, the machine lacks something, or the records cannot be used."),
    ]);
    if takes_json(operation) {
        common.append(&mut refusals(&[
            (400, "invalid_input", "The body, or an argument in it, cannot be used."),
            (408, "too_slow", "The body did not come in time, or the command did not end in its time."),
            (413, "too_large", "The body is too large, or what the command printed."),
            (415, "unsupported_media_type", "The body is not said to be JSON."),
        ]));
    }
    for (status, refusal) in common {
        operation.responses.responses.entry(status).or_insert(refusal);
    }
}

fn takes_json(operation: &Operation) -> bool {
    matches!(&operation.request_body, Some(RefOr::T(body)) if body.content.contains_key(JSON))
}

fn refusals(all: &[(u16, &str, &str)]) -> Responses {
    let refusal = |&(status, code, description): &(u16, &str, &str)| {
        let example = json!({"error": {"code": code, "message": "what is wrong, and what to do about it"}});
        let schema = Ref::from_schema_name(ErrorBody::name());
        let content = ContentBuilder::new().schema(Some(schema)).example(Some(example)).build();
        let response = ResponseBuilder::new().description(description).content(JSON, content).build();
        (status.to_string(), response.into())
    };
    all.iter().map(refusal).collect()
}

const JSON: &str = "application/json";
