//! What the OpenAPI description says beside what follows from each route and shape.

use utoipa::{
    OpenApi,
    openapi::{
        self, ContentBuilder, RefOr, ResponseBuilder, Schema,
        schema::{AdditionalProperties, OneOf},
    },
};

use super::Failure;

/// The head of the description.
#[derive(OpenApi)]
#[openapi(
    info(title = "foobar-lb", description = "What `foobar-lb attach` answers over its Unix socket."),
    components(schemas(Failure))
)]
pub struct Description;

/// Adds what holds for all routes and shapes.
pub fn complete(mut description: openapi::OpenApi) -> openapi::OpenApi {
    for path in description.paths.paths.values_mut() {
        for operation in [&mut path.get, &mut path.post].into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(failed()));
        }
    }
    for schema in description.components.iter_mut().flat_map(|components| components.schemas.values_mut()) {
        if let RefOr::T(Schema::OneOf(choices)) = schema {
            close(choices);
        }
    }
    description
}

fn failed() -> openapi::Response {
    let schema = openapi::Ref::from_schema_name("Failure");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    ResponseBuilder::new()
        .description("It was not done; `error` says why.")
        .content("application/json", content)
        .build()
}

/// A choice that is an object has one entry and takes no others.
fn close(choices: &mut OneOf) {
    for choice in &mut choices.items {
        if let RefOr::T(Schema::Object(object)) = choice
            && !object.properties.is_empty()
        {
            object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
        }
    }
}
