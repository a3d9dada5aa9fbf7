//! Answers as responses.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::error::{ApiCode, ApiError};

/// A JSON response.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, ApiError> {
    let text = serde_json::to_vec(value).map_err(|error| {
        ApiError::new(ApiCode::Internal, format!("the answer is not JSON: {error}"), "report it")
    })?;
    let media_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok((status, [media_type], text).into_response())
}

/// Adds a header whose value is text of ours: names, digests, numbers.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
