//! `/v1/devices`: every device that ever joined.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jobs::id::DeviceId;
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::answer::json;
use super::extract::{Asked, Names};
use crate::error::{ApiCode, ApiError};
use crate::record::DeviceRecord;
use crate::request;

/// Names in a hint, at most.
const HINT_NAMES: usize = 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DevicesQuery {
    selector: Option<String>,
}

/// `GET /v1/devices`
pub(super) async fn list(
    State(app): State<App>,
    Asked(query): Asked<DevicesQuery>,
) -> Result<Response, ApiError> {
    let selector = request::selector(query.selector.as_deref())?;
    let mut devices = app.broker.devices();
    if query.selector.is_some() {
        devices.retain(|record| selector.matches(&record.hello));
    }
    json(StatusCode::OK, &json!({ "devices": devices }))
}

/// `GET /v1/devices/{id}`
pub(super) async fn show(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    let id: DeviceId = names.id("id", ApiCode::UnknownDevice)?;
    let devices = app.broker.devices();
    match devices.iter().find(|record| record.hello.device == id) {
        Some(record) => json(StatusCode::OK, record),
        None => Err(unknown(&id, &devices)),
    }
}

fn unknown(id: &DeviceId, devices: &[DeviceRecord]) -> ApiError {
    let names = devices.iter().take(HINT_NAMES).map(|record| record.hello.device.as_str());
    let names: Vec<&str> = names.collect();
    let hint = if names.is_empty() {
        "no device has joined yet: start dunlin-agent on one".to_owned()
    } else {
        format!("devices are: {}", names.join(", "))
    };
    ApiError::new(ApiCode::UnknownDevice, format!("no device {id} has ever joined"), hint)
}
