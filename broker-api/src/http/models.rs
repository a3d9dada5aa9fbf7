//! `/v1/models`: the registry as names, versions and ONNX files.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use jobs::id::{ModelName, ModelVersion};
use jobs::spec::ModelQuery;
use models::artifact::{ModelConfig, ONNX_MEDIA_TYPE};
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::answer::{json, set};
use super::extract::{self, Asked, Content, Names, unsupported};
use crate::error::{ApiCode, ApiError};
use crate::record::ModelRecord;
use crate::room::Place;

/// Bytes of a file that are given to a client at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// Header with a [`ModelConfig`] in JSON.
const CONFIG_HEADER: &str = "dunlin-model-config";

/// The model of the path.
pub(super) fn query(names: &Names) -> Result<ModelQuery, ApiError> {
    Ok(ModelQuery {
        name: names.id("model", ApiCode::UnknownModel)?,
        version: names.maybe("version", ApiCode::UnknownModel)?,
    })
}

/// `GET /v1/models`
pub(super) async fn list(State(app): State<App>) -> Result<Response, ApiError> {
    json(StatusCode::OK, &json!({ "models": app.broker.models() }))
}

/// Every version of a model, the newest first; a problem when there is none.
pub(super) fn versions(app: &App, name: &ModelName) -> Result<Vec<ModelRecord>, ApiError> {
    let mut all = app.broker.models();
    let mut names: Vec<String> =
        all.iter().map(|record| record.reference.name.to_string()).collect();
    all.retain(|record| record.reference.name == *name);
    if !all.is_empty() {
        return Ok(all);
    }
    names.dedup();
    let hint = if names.is_empty() {
        "no model is registered yet: train one, or PUT an ONNX file".to_owned()
    } else {
        format!("models are: {}", names.join(", "))
    };
    Err(ApiError::new(ApiCode::UnknownModel, format!("there is no model {name}"), hint))
}

/// `GET /v1/models/{model}`
pub(super) async fn show(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    let name = names.id("model", ApiCode::UnknownModel)?;
    let versions = versions(&app, &name)?;
    json(StatusCode::OK, &json!({ "name": name, "versions": versions }))
}

/// `GET /v1/models/{model}/versions/{version}`
pub(super) async fn version(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    json(StatusCode::OK, &app.broker.model(&query(&names)?).await?)
}

/// `GET /v1/models/{model}[/versions/{version}]/onnx`: the file.
pub(super) async fn onnx(
    State(app): State<App>,
    names: Names,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let record = app.broker.model(&query(&names)?).await?;
    let etag = format!("\"{}\"", record.onnx.digest);
    let known = headers.get_all(header::IF_NONE_MATCH).iter();
    let mut response = if known.filter_map(|tag| tag.to_str().ok()).any(|tag| tag.contains(&etag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut place = Place::default();
        let size = usize::try_from(record.onnx.size.0).unwrap_or(usize::MAX);
        app.broker.core.room.take_most(&mut place, size)?;
        file(app.broker.blob(&record.onnx.digest).await?, place)
    };
    let file = format!("{}-{}.onnx", record.reference.name, record.reference.version);
    let headers = response.headers_mut();
    set(headers, header::CONTENT_TYPE, ONNX_MEDIA_TYPE);
    set(headers, header::ETAG, &etag);
    set(headers, header::CONTENT_DISPOSITION, &format!("attachment; filename=\"{file}\""));
    Ok(response)
}

/// The answer that is a file; it takes its room until the client has taken all of it.
fn file(bytes: Bytes, place: Place) -> Response {
    let length = bytes.len();
    let pieces = stream::unfold((bytes, place), |(mut bytes, place)| async move {
        let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (bytes, place)))
    });
    let mut response = Body::from_stream(pieces).into_response();
    set(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string());
    response
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegisterQuery {
    labels: Option<String>,
    description: Option<String>,
}

/// `POST /v1/models/{model}` and `PUT /v1/models/{model}/versions/{version}`.
pub(super) async fn register(
    State(app): State<App>,
    names: Names,
    Asked(asked): Asked<RegisterQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let name: ModelName = names.id("model", ApiCode::InvalidSpec)?;
    let version: Option<ModelVersion> = names.maybe("version", ApiCode::InvalidSpec)?;
    let media_type = extract::media_type(request.headers());
    if !matches!(media_type.as_str(), "" | ONNX_MEDIA_TYPE | "application/octet-stream") {
        return Err(unsupported(&media_type, ONNX_MEDIA_TYPE));
    }
    let config = config(request.headers(), asked)?;
    let (body, _place) = extract::body(request, &app, Content::File).await?;
    if body.is_empty() {
        return Err(ApiError::new(
            ApiCode::InvalidBody,
            "the body is empty, expected an ONNX file",
            "such as: curl -T model.onnx http://.../v1/models/NAME/versions/1",
        ));
    }
    let record = app.broker.register(&name, version, body, config).await?;
    let mut response = json(StatusCode::CREATED, &record)?;
    let path = format!("/v1/models/{}/versions/{}", name, record.reference.version);
    set(response.headers_mut(), header::LOCATION, &path);
    Ok(response)
}

/// The config of the header, with what the query says put over it.
fn config(headers: &HeaderMap, asked: RegisterQuery) -> Result<ModelConfig, ApiError> {
    let mut config = match headers.get(CONFIG_HEADER) {
        None => ModelConfig::default(),
        Some(value) => serde_json::from_slice(value.as_bytes()).map_err(|error| {
            ApiError::new(
                ApiCode::InvalidSpec,
                format!("the header Dunlin-Model-Config is not a model config: {error}"),
                "such as {\"labels\": [\"cat\", \"dog\"]}",
            )
        })?,
    };
    if let Some(labels) = asked.labels {
        config.labels = match labels.trim() {
            "" => Vec::new(),
            labels => labels.split(',').map(|label| label.trim().to_owned()).collect(),
        };
    }
    if let Some(description) = asked.description {
        config.description = description;
    }
    Ok(config)
}

/// `DELETE /v1/models/{model}[/versions/{version}]`: one version, or all of them.
pub(super) async fn remove(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    let mut query = query(&names)?;
    if query.version.is_some() {
        app.broker.remove_model(&query).await?;
    } else {
        for record in versions(&app, &query.name)? {
            query.version = Some(record.reference.version);
            app.broker.remove_model(&query).await?;
        }
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}
