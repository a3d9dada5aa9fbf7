//! `/v1/jobs/{id}/rounds`: how each round of a training went, as JSON or CSV.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use jobs::id::JobId;
use serde::Deserialize;

use super::App;
use super::answer::json;
use super::extract::{Asked, Names};
use crate::broker::Rounds;
use crate::error::{ApiCode, ApiError};
use crate::history::RoundRecord;
use crate::record::Waiting;
use crate::store::StoreError;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoundsQuery {
    format: Option<Format>,
    #[serde(default)]
    rows: Rows,
}

/// What a line of CSV is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rows {
    #[default]
    Rounds,
    Devices,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Json,
    Csv,
}

/// `GET /v1/jobs/{id}/rounds`: every round that ended, the oldest first, as they are read: however
/// many, few are in memory.
pub(super) async fn list(
    State(app): State<App>,
    names: Names,
    Asked(query): Asked<RoundsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id: JobId = names.id("id", ApiCode::UnknownJob)?;
    let (rounds, waiting) = app.broker.rounds(&id).await?;
    let (media_type, pieces) = match query.format.unwrap_or_else(|| accepted(&headers)) {
        Format::Json => ("application/json", as_json(&id, waiting.as_ref(), rounds)),
        Format::Csv => ("text/csv; charset=utf-8", as_csv(rounds, query.rows)),
    };
    Ok(([(header::CONTENT_TYPE, media_type)], Body::from_stream(pieces)).into_response())
}

/// `GET /v1/jobs/{id}/rounds/{round}`
pub(super) async fn show(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    let id: JobId = names.id("id", ApiCode::UnknownJob)?;
    let unknown = || {
        ApiError::new(
            ApiCode::UnknownRound,
            format!("job {id} has no round {:?} that ended", names.text("round")),
            format!(
                "see which there are with 'dunlin rounds show {id}', or GET /v1/jobs/{id}/rounds"
            ),
        )
    };
    let round = names.text("round").parse().map_err(|_| unknown())?;
    json(StatusCode::OK, &app.broker.round(&id, round).await?.ok_or_else(unknown)?)
}

type Pieces = BoxStream<'static, Result<Bytes, StoreError>>;

fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    match accept {
        Some(accept) if accept.trim_start().starts_with("text/csv") => Format::Csv,
        _ => Format::Json,
    }
}

fn as_csv(rounds: Rounds, rows: Rows) -> Pieces {
    let (heading, csv): (_, fn(&RoundRecord) -> String) = match rows {
        Rows::Rounds => (RoundRecord::CSV_HEADING, RoundRecord::csv),
        Rows::Devices => (RoundRecord::DEVICES_CSV_HEADING, RoundRecord::devices_csv),
    };
    let heading = stream::iter([Ok(Bytes::from_static(heading.as_bytes()))]);
    heading.chain(rounds.map(move |round| Ok(csv(&round?).into()))).boxed()
}

fn as_json(id: &JobId, waiting: Option<&Waiting>, rounds: Rounds) -> Pieces {
    let waiting = waiting.map_or_else(String::new, |waiting| {
        let waiting = serde_json::to_string(waiting).expect("plain data is JSON");
        format!("\"waiting\":{waiting},")
    });
    let opening = format!("{{\"job\":\"{id}\",{waiting}\"rounds\":[");
    let opening = stream::iter([Ok(opening.into())]);
    let rows = rounds.enumerate().map(|(index, round)| {
        let comma = if index == 0 { "" } else { "," };
        let row = serde_json::to_string(&round?).expect("plain data is JSON");
        Ok(format!("{comma}{row}").into())
    });
    opening.chain(rows).chain(stream::iter([Ok(Bytes::from_static(b"]}"))])).boxed()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use serde_json::Value;

    use super::*;
    use crate::http::{openapi, serve};
    use crate::testing::{Device, World, ended, joined, train_spec};

    #[test]
    fn csv_is_asked_for_by_header_too() {
        let accept = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(value));
            accepted(&headers)
        };
        assert_eq!((accept("text/csv, */*"), accept("*/*")), (Format::Csv, Format::Json));
        assert_eq!(accepted(&HeaderMap::new()), Format::Json);
    }

    #[tokio::test]
    async fn every_round_is_exported_in_order() {
        let world = World::new().await;
        let broker = world.broker().await;
        let _device = Device::start(&world, "d1").await;
        joined(&broker, 1).await;
        // More than a training's stored state keeps.
        let count = 60;
        let job = broker.submit(train_spec(count, 1), Bytes::new(), None, None).await.unwrap().id;
        ended(&broker, &job).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1/jobs", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, broker, std::future::pending()));
        let get = |path: String| {
            let url = format!("{base}/{path}");
            async move { reqwest::get(url).await.unwrap() }
        };
        let list: Value = get(format!("{job}/rounds")).await.json().await.unwrap();
        assert_eq!(openapi::tests::conforms("RoundList", &list), Ok(()));
        let rounds = list["rounds"].as_array().unwrap();
        let numbers: Vec<u64> = rounds.iter().map(|r| r["round"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=u64::from(count)).collect::<Vec<_>>());
        assert_eq!(rounds[1]["members"][0]["update"]["examples"], 10);
        assert_eq!(rounds[1]["accuracy"], 0.25);
        let csv = get(format!("{job}/rounds?format=csv")).await;
        assert_eq!(csv.headers()[header::CONTENT_TYPE], "text/csv; charset=utf-8");
        let csv = csv.text().await.unwrap();
        assert_eq!(csv.lines().count(), 1 + numbers.len());
        assert!(csv.starts_with(RoundRecord::CSV_HEADING), "{csv}");
        let csv = get(format!("{job}/rounds?format=csv&rows=devices")).await.text().await.unwrap();
        assert!(csv.starts_with(RoundRecord::DEVICES_CSV_HEADING), "{csv}");
        assert_eq!(csv.lines().count(), 1 + numbers.len());
        assert!(csv.contains("\n60,d1,counted,10,"), "{csv}");
        let one: Value = get(format!("{job}/rounds/2")).await.json().await.unwrap();
        assert_eq!(one, rounds[1]);
        for (path, status, code) in [
            (format!("{job}/rounds/61"), 404, "unknown_round"),
            (format!("{job}/rounds/first"), 404, "unknown_round"),
            ("nothing/rounds".to_owned(), 404, "unknown_job"),
            (format!("{job}/rounds?format=xml"), 400, "invalid_spec"),
        ] {
            let response = get(path).await;
            assert_eq!(response.status(), status);
            let problem: Value = response.json().await.unwrap();
            assert_eq!(problem["code"], code);
        }
    }
}
