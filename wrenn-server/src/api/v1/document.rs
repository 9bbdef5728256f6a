//! The OpenAPI document, which is made of the routes and the wire types themselves, and a page that shows it.

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ComponentsBuilder, OpenApi as Document, RefOr, Schema};
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::api::v1::answer::ErrorBody;
use crate::api::v1::streams::{exec, message, terminal};
use crate::api::v1::{exact, refusals};

/// What is said of the API as a whole; its routes come to it one by one.
pub(super) fn begin() -> Document {
    Whole::openapi()
}

/// Says of each route what all have: the key, and the refusals that come with it.
pub(super) fn complete(mut document: Document) -> Document {
    let scheme = ApiKeyValue::with_description("X-API-Key", "What `wrenn-server keys create NAME` prints.");
    let components = ComponentsBuilder::from(document.components.take().unwrap_or_default());
    let components = components.security_scheme(KEY, SecurityScheme::ApiKey(ApiKey::Header(scheme)));
    document.components = Some(components.build());
    open_messages(&mut document);
    exact::add_alternatives(&mut document);
    exact::widen_numbers(&mut document);
    for operation in document.paths.paths.values_mut().flat_map(operations) {
        exact::widen_parameters(operation);
        exact::leave_streams_open(operation);
    }
    let keyed = document.paths.paths.iter_mut().filter(|(path, _)| path.starts_with("/v1/"));
    for operation in keyed.flat_map(|(_, item)| operations(item)) {
        operation.security = Some(vec![SecurityRequirement::new::<_, [&str; 0], &str>(KEY, [])]);
        refusals::add_common(operation);
    }
    document
}

/// The routes at which the document is, for whoever asks.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(document: &Document) -> Router<S> {
    // It is made of what is in the program alone, and so it is always the same.
    let json = document.to_pretty_json().expect("a document can be written");
    let yaml = document.to_yaml().expect("a document can be written");
    let page = Config::from("../openapi.json").validator_url("none");
    Router::new()
        .route("/openapi.json", get(async || written("application/json", json)))
        .route("/openapi.yaml", get(async || written("application/yaml", yaml)))
        .merge(SwaggerUi::new("/docs").config(page))
}

/// Has the parts of a stream's message say nothing of fields that they do not have themselves, since the message has its type
/// besides.
fn open_messages(document: &mut Document) {
    let Some(components) = &mut document.components else { return };
    let open = |schema: &mut RefOr<Schema>| {
        if let RefOr::T(Schema::Object(object)) = schema {
            object.additional_properties = None;
        }
    };
    let mut parts = Vec::new();
    for schema in components.schemas.values_mut() {
        let RefOr::T(Schema::OneOf(kinds)) = schema else { continue };
        for kind in &mut kinds.items {
            let RefOr::T(Schema::AllOf(kind)) = kind else { continue };
            kind.items.iter_mut().for_each(open);
            let named = kind.items.iter().filter_map(|part| match part {
                RefOr::Ref(part) => part.ref_location.rsplit('/').next().map(str::to_owned),
                RefOr::T(_) => None,
            });
            parts.extend(named);
        }
    }
    for part in parts {
        components.schemas.entry(part).and_modify(open);
    }
}

fn written(kind: &'static str, document: String) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind)], document)
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, trace, .. } = item;
    [get, put, post, delete, options, head, patch, trace].into_iter().flatten()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "wrenn",
        description = "Sandboxes in microVMs.\n\nA field that a route does not know is refused. Times are those of RFC 3339 in UTC.",
    ),
    tags(
        (name = "sandboxes", description = "Sandboxes: made, paused, resumed, forked and ended."),
        (name = "commands", description = "Commands in a sandbox, and terminals."),
        (name = "files", description = "A sandbox's files."),
        (name = "snapshots", description = "What sandboxes are made from."),
        (name = "templates", description = "What names stand for with their tags."),
        (name = "builds", description = "Templates that are built."),
        (name = "events", description = "What happens to sandboxes."),
        (name = "server", description = "The server itself."),
    ),
    components(schemas(
        ErrorBody,
        message::FromClient<exec::ExecStart>,
        message::FromClient<terminal::TerminalStart>,
        message::FromServer,
    )),
)]
struct Whole;

const KEY: &str = "key";
