//! `openapi.json`: the contract of the HTTP face, made from the table of routes.
//!
//! What is said of a route stands beside its handler in `routes`; the shapes of bodies stand in
//! `openapi/schemas.json`. Tests hold the file to the routes and the shapes to the types.

use std::sync::LazyLock;

use ::jobs::report::FailureCode;
use serde_json::{Map, Value, json};

use super::routes;

pub(super) mod operation;

/// The document as it is served, and as the file has it.
pub(super) static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&document()).expect("JSON values are JSON");
    text.push('\n');
    text
});

const SCHEMAS: &str = include_str!("openapi/schemas.json");

fn document() -> Value {
    let mut paths = Map::new();
    for operation in routes::all().into_iter().flat_map(|route| route.operations) {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        let method = operation.method.to_ascii_lowercase();
        path[method] = operation.document();
    }
    let mut schemas: Value = serde_json::from_str(SCHEMAS).expect("the schemas are JSON");
    let codes = FailureCode::ALL.iter().map(|code| code.as_str());
    schemas["FailureCode"]["enum"] = codes.collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Dunlin",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Edge devices learn together and answer together.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

#[cfg(test)]
pub(super) mod tests;
