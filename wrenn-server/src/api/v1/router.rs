//! The routes of `/v1`.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::api::state::Context;
use crate::api::v1::answer::Refused;
use crate::api::v1::{
    builds, commands, document, events, files, network, sandboxes, snapshots, streams, tags, webhooks,
};

/// Everything of the native API, and the document of it.
pub(crate) fn router() -> Router<Context> {
    let (routes, document) = routes();
    routes.merge(document::routes(&document))
}

/// Each route of the API, and the document of all of them: one list makes both.
fn routes() -> (Router<Context>, Document) {
    let (routes, document) = OpenApiRouter::with_openapi(document::begin())
        .routes(routes!(sandboxes::create, sandboxes::list))
        .routes(routes!(sandboxes::get, sandboxes::delete))
        .routes(routes!(commands::exec))
        .routes(routes!(streams::exec::stream))
        .routes(routes!(streams::terminal::stream))
        .routes(routes!(sandboxes::pause))
        .routes(routes!(sandboxes::resume))
        .routes(routes!(sandboxes::fork))
        .routes(routes!(sandboxes::ping))
        .routes(routes!(network::put))
        .routes(routes!(files::read))
        .routes(routes!(files::write).layer(DefaultBodyLimit::disable()))
        .routes(routes!(files::list))
        .routes(routes!(files::make_dir))
        .routes(routes!(files::remove))
        .routes(routes!(snapshots::create, snapshots::list))
        .routes(routes!(snapshots::delete))
        .routes(routes!(tags::list))
        .routes(routes!(tags::get, tags::assign, tags::remove))
        .routes(routes!(tags::history))
        .routes(routes!(builds::create, builds::list))
        .routes(routes!(builds::get, builds::cancel))
        .routes(routes!(builds::logs))
        .routes(routes!(events::list))
        .routes(routes!(events::stream))
        .routes(routes!(webhooks::create, webhooks::list))
        .routes(routes!(webhooks::get, webhooks::change, webhooks::delete))
        .routes(routes!(healthz))
        .split_for_parts();
    (routes, document::complete(document))
}

/// Tells that the server is there. It wants no key.
#[utoipa::path(
    get, path = "/healthz", operation_id = "healthz", tag = "server",
    responses((status = 200, description = "It is.", body = String, content_type = "text/plain", example = "ok\n")),
)]
async fn healthz() -> &'static str {
    "ok\n"
}

/// What has no route.
pub(crate) async fn no_route() -> impl IntoResponse {
    Refused::new(StatusCode::NOT_FOUND, "not_found", "there is no such route: docs/server.md has those that there are")
}

/// What has a route, and no such method.
pub(crate) async fn no_method() -> impl IntoResponse {
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route has no such method: see `Allow`")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::{Map, Value};

    use super::*;

    fn document() -> Value {
        serde_json::to_value(routes().1).expect("JSON")
    }

    fn object(value: &Value) -> &Map<String, Value> {
        value.as_object().expect("an object")
    }

    #[test]
    fn each_route_is_described_under_a_name_of_its_own() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let mut names = HashSet::new();
        for (path, item) in object(&document["paths"]) {
            for (method, operation) in object(item) {
                let at = format!("{method} {path}: {operation}");
                assert!(operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{at}");
                assert!(names.insert(operation["operationId"].to_string()), "{at}");
                let is_keyed = path.starts_with("/v1/");
                for status in ["401", "500", "503"] {
                    assert_eq!(operation["responses"].get(status).is_some(), is_keyed, "{at}");
                }
                assert_eq!(operation.get("security").is_some(), is_keyed, "{at}");
                assert_eq!(
                    operation["responses"].get("404").is_some(),
                    path.contains('{') || path == "/v1/events/stream" || is_by_name(operation),
                    "{at}"
                );
            }
        }
        assert_eq!(names.len(), 38, "as many as docs/server.md has");
    }

    /// Whether its body names what may not be there.
    fn is_by_name(operation: &Value) -> bool {
        let body = operation["requestBody"].to_string();
        body.contains("/Create\"") || body.contains("/Snapshot\"")
    }

    #[test]
    fn what_stands_in_place_of_something_else_is_said() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        let parts = |name: &str| schemas[name]["allOf"].as_array().map_or(0, Vec::len);
        assert_eq!((parts("NewBuild"), parts("Assignment")), (3, 2));
        let kinds = schemas["StepBody"]["oneOf"].as_array().expect("kinds");
        assert!(kinds.len() == 4 && kinds.iter().all(|kind| kind["additionalProperties"] == false), "{kinds:?}");
        assert!(
            document["paths"]["/v1/events/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]
                .get("schema")
                .is_none()
        );
    }

    #[test]
    fn each_schema_that_is_named_is_there_and_each_field_is_described() {
        let document = document();
        let schemas = object(&document["components"]["schemas"]);
        let text = document.to_string();
        for named in text.split("#/components/schemas/").skip(1) {
            let name = named.split('"').next().unwrap_or_default();
            assert!(schemas.contains_key(name), "{name}");
        }
        for (name, schema) in schemas {
            assert!(schema.get("description").is_some() || schema.get("oneOf").is_some(), "{name}: {schema}");
            for (field, property) in schema["properties"].as_object().into_iter().flatten() {
                let is_described = property.to_string().contains("\"description\"") || property.get("$ref").is_some();
                assert!(is_described, "{name}.{field}: {property}");
            }
        }
    }
}
