//! `/v2`: the Open Inference Protocol V2, and pictures as bodies.

use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use jobs::id::Millis;
use jobs::spec::{InferInput, InferSpec, ModelQuery};
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::answer::{json, set};
use super::extract::{self, Asked, Content, Names, is_json, unsupported};
use super::models::{query, versions};
use super::oip;
use crate::error::{ApiCode, ApiError};
use crate::request::{self, InferRequest};

/// Header with the length of the JSON in front of binary tensors.
const JSON_LENGTH: &str = "inference-header-content-length";
const ACCEPTED: &str = "application/json, application/octet-stream, image/png or image/jpeg";

/// `GET /v2`: what this server is.
pub(super) async fn server() -> Result<Response, ApiError> {
    json(
        StatusCode::OK,
        &json!({
            "name": "dunlin",
            "version": env!("CARGO_PKG_VERSION"),
            "extensions": [oip::BINARY_EXTENSION],
        }),
    )
}

/// `GET /v2/health/live`
pub(super) async fn live() -> Result<Response, ApiError> {
    json(StatusCode::OK, &json!({ "live": true }))
}

/// `GET /v2/health/ready`
pub(super) async fn ready(State(app): State<App>) -> Result<Response, ApiError> {
    app.broker.ready().await?;
    json(StatusCode::OK, &json!({ "ready": true }))
}

/// `GET /v2/models/{model}[/versions/{version}]`: what goes in and comes out.
pub(super) async fn metadata(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    let query = query(&names)?;
    let versions = versions(&app, &query.name)?;
    let record = app.broker.model(&query).await?;
    let versions: Vec<&str> =
        versions.iter().map(|record| record.reference.version.as_str()).collect();
    json(
        StatusCode::OK,
        &json!({
            "name": record.reference.name,
            "versions": versions,
            "platform": "onnx_onnxv1",
            "inputs": record.config.inputs,
            "outputs": record.config.outputs,
        }),
    )
}

/// `GET /v2/models/{model}[/versions/{version}]/ready`
pub(super) async fn model_ready(
    State(app): State<App>,
    names: Names,
) -> Result<Response, ApiError> {
    let record = app.broker.model(&query(&names)?).await?;
    app.broker.ready().await?;
    json(StatusCode::OK, &json!({ "name": record.reference.name, "ready": true }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InferQuery {
    top: Option<u32>,
    selector: Option<String>,
    engine: Option<String>,
    deadline_ms: Option<u64>,
}

/// `POST /v2/models/{model}[/versions/{version}]/infer`
pub(super) async fn infer(
    State(app): State<App>,
    names: Names,
    Asked(asked): Asked<InferQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let model = query(&names)?;
    let media_type = extract::media_type(request.headers());
    let length = request.headers().get(JSON_LENGTH).cloned();
    let json_length = match length {
        None => None,
        Some(value) => {
            let parsed = value.to_str().ok().and_then(|text| text.trim().parse().ok());
            Some(parsed.ok_or_else(|| {
                ApiError::new(
                    ApiCode::InvalidBody,
                    format!("Inference-Header-Content-Length is {value:?}, expected a length"),
                    "give the length of the JSON in bytes",
                )
            })?)
        }
    };
    let picture = matches!(media_type.as_str(), "image/png" | "image/jpeg" | "image/jpg");
    // Clients of the protocol often send no media type at all.
    let tensors = media_type.is_empty()
        || is_json(&media_type)
        || (media_type == "application/octet-stream" && json_length.is_some());
    if !picture && !tensors {
        return Err(unsupported(&media_type, ACCEPTED));
    }
    let content = if picture { Content::Picture } else { Content::Json };
    let (body, _place) = extract::body(request, &app, content).await?;
    if picture {
        return picture_answer(&app, model, asked, body).await;
    }
    let turn = app.broker.core.room.turn(json_length.unwrap_or(body.len())).await;
    let mut parsed = oip::parse(model, &body, json_length)?;
    drop((body, turn));
    narrow(&mut parsed.ask, &asked)?;
    let answer = ask(&app, parsed.ask).await?;
    let response = oip::respond(&answer, &parsed.form)?;
    let Some(length) = response.json_length else {
        return Ok(([(header::CONTENT_TYPE, "application/json")], response.body).into_response());
    };
    let media_type = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut response = (media_type, response.body).into_response();
    let name = HeaderName::from_static(JSON_LENGTH);
    set(response.headers_mut(), name, &length.to_string());
    Ok(response)
}

async fn picture_answer(
    app: &App,
    model: ModelQuery,
    asked: InferQuery,
    body: Bytes,
) -> Result<Response, ApiError> {
    if body.is_empty() {
        return Err(ApiError::new(
            ApiCode::InvalidBody,
            "the picture is empty",
            "send a JPEG or PNG file as the body",
        ));
    }
    let top = request::checked_top(asked.top.unwrap_or(request::TOP_DEFAULT))?;
    let engine = jobs::engine::EnginePolicy::default();
    let spec = InferSpec { model, input: InferInput::Picture, top, engine };
    let mut question = InferRequest {
        spec,
        binary: body,
        selector: jobs::selector::Selector::default(),
        deadline: None,
    };
    narrow(&mut question, &asked)?;
    let answer = ask(app, question).await?;
    json(StatusCode::OK, &request::answer_json(&answer)?)
}

/// Applies what the query says.
fn narrow(question: &mut InferRequest, asked: &InferQuery) -> Result<(), ApiError> {
    if let Some(selector) = &asked.selector {
        question.selector = request::selector(Some(selector))?;
    }
    if let Some(engine) = &asked.engine {
        question.spec.engine = request::engine(Some(engine))?;
    }
    if let Some(deadline) = asked.deadline_ms {
        question.deadline = Some(request::checked_deadline(Millis(deadline))?);
    }
    Ok(())
}

async fn ask(app: &App, question: InferRequest) -> Result<crate::broker::Answer, ApiError> {
    let deadline = question.deadline.unwrap_or(request::REQUEST_DEADLINE);
    let wait = u64::try_from(app.limits.wait.as_millis()).unwrap_or(u64::MAX);
    let deadline = deadline.min(Millis(wait));
    app.broker.infer(question.spec, question.binary, question.selector, deadline).await
}
