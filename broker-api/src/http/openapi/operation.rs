//! What is said of one method of one path.

use serde_json::{Map, Value, json};

use crate::error::PROBLEM_MEDIA_TYPE;

/// One method of one path, described.
#[derive(Debug)]
pub(in crate::http) struct Operation {
    /// In capitals.
    pub(in crate::http) method: &'static str,
    /// As the document has it.
    pub(in crate::http) path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: Vec<Value>,
    body: Map<String, Value>,
    responses: Map<String, Value>,
}

/// Begins a description.
pub(in crate::http) fn op(
    method: &'static str,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
) -> Operation {
    let names = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let parameters = names.map(|name| {
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    });
    Operation {
        method,
        path,
        id,
        summary,
        parameters: parameters.collect(),
        body: Map::new(),
        responses: Map::new(),
    }
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

impl Operation {
    /// A parameter of the query: name, type, what it does.
    pub(in crate::http) fn query(mut self, (name, kind, does): (&str, &str, &str)) -> Self {
        self.parameters.push(json!({
            "name": name, "in": "query", "description": does, "schema": { "type": kind },
        }));
        self
    }

    /// A header of the request: name, what it does.
    pub(in crate::http) fn header(mut self, (name, does): (&str, &str)) -> Self {
        self.parameters.push(json!({
            "name": name, "in": "header", "description": does, "schema": { "type": "string" },
        }));
        self
    }

    /// A JSON body.
    pub(in crate::http) fn body(mut self, name: &str) -> Self {
        self.body.insert("application/json".to_owned(), json!({ "schema": schema(name) }));
        self
    }

    /// A body of bytes.
    pub(in crate::http) fn file(mut self, media_type: &str) -> Self {
        self.body.insert(media_type.to_owned(), json!({}));
        self
    }

    /// A JSON response.
    pub(in crate::http) fn json(self, status: u16, says: &str, name: &str) -> Self {
        self.content(status, says, "application/json", name)
    }

    /// A response of another media type; without a schema when `name` is empty.
    pub(in crate::http) fn content(
        mut self,
        status: u16,
        says: &str,
        media_type: &str,
        name: &str,
    ) -> Self {
        let content = if name.is_empty() { json!({}) } else { json!({ "schema": schema(name) }) };
        let response = json!({ "description": says, "content": { media_type: content } });
        self.responses.insert(status.to_string(), response);
        self
    }

    /// A response without a body.
    pub(in crate::http) fn empty(mut self, status: u16, says: &str) -> Self {
        self.responses.insert(status.to_string(), json!({ "description": says }));
        self
    }

    /// Problems that are to be expected.
    pub(in crate::http) fn problems(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            let says = match status {
                400 => "The request cannot be understood or carried out",
                404 => "There is no such thing",
                409 => "It contradicts what is there",
                413 => {
                    "Too large: a picture may have the max_payload of nats-server, JSON 8 times \
                     that, a file what --body-bytes-max says"
                }
                415 => "Not a media type that is taken here",
                422 => "The work cannot be done with this input or model",
                504 => "No answer within the deadline",
                _ => "Not now: try again",
            };
            self = self.content(*status, says, PROBLEM_MEDIA_TYPE, "Problem");
        }
        self
    }

    /// The operation as the document has it.
    pub(in crate::http) fn document(self) -> Value {
        let mut responses = self.responses;
        responses.insert(
            "default".to_owned(),
            json!({
                "description": "Any other problem",
                "content": { PROBLEM_MEDIA_TYPE: { "schema": schema("Problem") } },
            }),
        );
        let mut value = json!({
            "operationId": self.id,
            "summary": self.summary,
            "responses": responses,
        });
        if !self.parameters.is_empty() {
            value["parameters"] = self.parameters.into();
        }
        if !self.body.is_empty() {
            value["requestBody"] = json!({ "required": true, "content": self.body });
        }
        value
    }
}
