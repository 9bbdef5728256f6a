//! What the document says of the wire types beyond what can be derived from them.

use utoipa::openapi::path::Operation;
use utoipa::openapi::schema::{
    AdditionalProperties, AllOfBuilder, AnyOfBuilder, ArrayBuilder, ArrayItems, KnownFormat, Object, ObjectBuilder,
    OneOfBuilder, Schema, SchemaFormat, Type,
};
use utoipa::openapi::{OpenApi as Document, Ref, RefOr};

/// The tags that a build is to have.
pub(super) fn tags() -> Schema {
    let tag = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[A-Za-z0-9._-]{1,128}$"));
    let what = "The tags of the name that are to stand for it. Default: `default`, which is the name without a tag.";
    ArrayBuilder::new().items(tag).description(Some(what)).into()
}

/// The ports that speak TLS.
pub(super) fn ports() -> Schema {
    let port = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).maximum(Some(PORT_MAX));
    ArrayBuilder::new().items(port).description(Some("The ports on which the sandbox's servers speak TLS.")).into()
}

/// A network as clients send it: its proxy has a username and a password, or neither.
pub(super) fn sent_network(mut network: RefOr<Schema>, proxy: RefOr<Schema>) -> RefOr<Schema> {
    let credentials = ["username", "password"];
    let all_or_none = OneOfBuilder::new().item(fields(&credentials, &[])).item(fields(&[], &credentials));
    let proxy = AllOfBuilder::new().item(proxy).item(all_or_none);
    if let RefOr::T(Schema::Object(network)) = &mut network
        && let Some(RefOr::T(Schema::OneOf(maybe))) = network.properties.get_mut("egress_proxy")
    {
        let is_null = |kind: &RefOr<Schema>| !matches!(kind, RefOr::Ref(_));
        maybe.items.retain(is_null);
        maybe.items.push(proxy.into());
    }
    network
}

/// Says which fields stand in place of which others.
pub(super) fn add_alternatives(document: &mut Document) {
    let no_steps = ArrayBuilder::new().items(Ref::from_schema_name("StepBody")).max_items(Some(0));
    let dockerfile = fields(&["dockerfile"], &["from", "from_image"]).property("steps", no_steps);
    let base = OneOfBuilder::new()
        .item(fields(&[], &["from_image", "dockerfile"]))
        .item(fields(&["from_image"], &["from", "dockerfile"]))
        .item(dockerfile);
    let ready = AnyOfBuilder::new()
        .item(fields(&[], &["ready"]))
        .item(fields(&["start"], &[]))
        .item(fields(&["dockerfile"], &[]));
    let target = OneOfBuilder::new().item(fields(&["target"], &["build_id"])).item(fields(&["build_id"], &["target"]));
    restrict(document, "NewBuild", vec![base.into(), ready.into()]);
    restrict(document, "Assignment", vec![target.into()]);
    close_kinds(document, "StepBody");
    close_kinds(document, "ReadyBody");
    if let Some(form) = document.components.as_mut().and_then(|all| all.schemas.get_mut("WriteForm")) {
        close(form);
    }
}

/// Has the unsigned numbers of 32 bits end where they do. Their derived format is that of signed ones, which end before.
pub(super) fn widen_numbers(document: &mut Document) {
    if let Some(components) = &mut document.components {
        components.schemas.values_mut().for_each(widen);
    }
}

/// The same of an operation's parameters.
pub(super) fn widen_parameters(operation: &mut Operation) {
    for parameter in operation.parameters.iter_mut().flatten() {
        if let RefOr::T(parameter) = parameter {
            parameter.schema.iter_mut().for_each(widen);
        }
    }
}

/// Leaves out what a stream of events is made of: a schema would be that of its whole text, which never ends, and programs
/// take it for that of each event. The route's description has it in words.
pub(super) fn leave_streams_open(operation: &mut Operation) {
    for response in operation.responses.responses.values_mut() {
        let RefOr::T(response) = response else { continue };
        if let Some(RefOr::T(content)) = response.content.get_mut("text/event-stream") {
            content.schema = None;
        }
    }
}

/// An object that has these fields with text, and none of those.
fn fields(given: &[&str], absent: &[&str]) -> ObjectBuilder {
    let typed = |kind| ObjectBuilder::new().schema_type(kind);
    let object = given
        .iter()
        .fold(ObjectBuilder::new(), |object, name| object.property(*name, typed(Type::String)).required(*name));
    absent.iter().fold(object, |object, name| object.property(*name, typed(Type::Null)))
}

fn restrict(document: &mut Document, name: &str, by: Vec<RefOr<Schema>>) {
    let Some(components) = &mut document.components else { return };
    let restricted = |schema: &mut RefOr<Schema>| {
        let RefOr::T(Schema::Object(object)) = &mut *schema else { return };
        let all = AllOfBuilder::new().description(object.description.take()).item(object.clone());
        *schema = by.into_iter().fold(all, AllOfBuilder::item).into();
    };
    components.schemas.entry(name.to_owned()).and_modify(restricted);
}

/// Has each kind of something refuse fields that it does not have, as it does.
fn close_kinds(document: &mut Document, name: &str) {
    let Some(components) = &mut document.components else { return };
    let Some(RefOr::T(Schema::OneOf(kinds))) = components.schemas.get_mut(name) else { return };
    kinds.items.iter_mut().for_each(close);
}

/// The same of one kind, and of the objects in it.
fn close(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::Object(object)) = schema else { return };
    let is_open_map = object.properties.is_empty();
    object.properties.values_mut().for_each(close);
    if !is_open_map {
        object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    }
}

fn widen(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => widen_object(object),
        Schema::Array(array) => {
            if let ArrayItems::RefOrSchema(items) = &mut array.items {
                widen(items);
            }
        }
        Schema::OneOf(kinds) => kinds.items.iter_mut().for_each(widen),
        Schema::AllOf(parts) => parts.items.iter_mut().for_each(widen),
        Schema::AnyOf(kinds) => kinds.items.iter_mut().for_each(widen),
        _ => {}
    }
}

fn widen_object(object: &mut Object) {
    if let Some(RefOr::T(Schema::Object(port))) = object.properties.get_mut("port") {
        port.maximum.get_or_insert_with(|| PORT_MAX.into());
    }
    object.properties.values_mut().for_each(widen);
    if let Some(AdditionalProperties::RefOr(schema)) = object.additional_properties.as_deref_mut() {
        widen(schema);
    }
    // What has no least value is signed.
    let is_int32 = object.format == Some(SchemaFormat::KnownFormat(KnownFormat::Int32));
    if is_int32 && object.minimum.is_some() {
        object.format = None;
        object.maximum.get_or_insert_with(|| usize::try_from(u32::MAX).unwrap_or(usize::MAX).into());
    }
}

const PORT_MAX: usize = 65535;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unsigned_numbers_end_where_they_do_and_others_are_as_they_were() {
        let number = |minimum: Option<usize>| {
            let format = SchemaFormat::KnownFormat(KnownFormat::Int32);
            ObjectBuilder::new().schema_type(Type::Integer).format(Some(format)).minimum(minimum)
        };
        let object = ObjectBuilder::new().property("port", number(Some(0))).property("code", number(None));
        let list = ArrayBuilder::new().items(number(Some(1)));
        let mut schema = RefOr::T(object.property("all", list).into());
        widen(&mut schema);
        let expected = json!({"type": "object", "properties": {
            "port": {"type": "integer", "minimum": 0, "maximum": 65535},
            "code": {"type": "integer", "format": "int32"},
            "all": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 4_294_967_295_u32}},
        }});
        assert_eq!(serde_json::to_value(&schema).expect("JSON"), expected);
    }
}
