//! Variables of an environment, as clients give them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};
use wrenn_core::Command;

/// Values by their names.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// The command, with these variables besides those that it has.
    pub(super) fn add_to(self, command: Command) -> Command {
        self.0.into_iter().fold(command, |command, (name, value)| command.env(name, value))
    }

    pub(super) fn into_vec(self) -> Vec<(String, String)> {
        self.0.into_iter().collect()
    }
}

/// With what an environment cannot have, which a map of strings would not say.
impl PartialSchema for Variables {
    fn schema() -> RefOr<Schema> {
        let text = |pattern| Schema::from(ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)));
        let variables = ObjectBuilder::new()
            .schema_type(Type::Object)
            .description(Some("Variables of an environment: values by their names."))
            .property_names(Some(text(NAME)))
            .additional_properties(Some(text(VALUE)))
            .examples([json!({"LANG": "C.UTF-8"})]);
        RefOr::T(variables.into())
    }
}

impl ToSchema for Variables {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("Variables")
    }
}

const NAME: &str = r"^[^=\u0000]+$";
const VALUE: &str = r"^[^\u0000]*$";
