//! `/v1/jobs`: jobs accepted, shown, waited for, cancelled, tried again.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use jobs::id::{DeviceId, JobId, Millis, ModelRef};
use jobs::report::FailureCode;
use jobs::selector::Selector;
use jobs::spec::{JobKind, JobSpec, ModelQuery, TrainSpec, WorkSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::answer::{json, set};
use super::extract::{Asked, Names, Nothing, Prefer, json_body, parse_id};
use super::{App, HttpLimits};
use crate::broker::Answer;
use crate::error::{ApiCode, ApiError};
use crate::record::{DeviceRecord, JobRecord, JobResult, ModelRecord};
use crate::request;
use crate::request::training::Reading;

/// Jobs in a list when the request does not say.
const LIST_DEFAULT: usize = 50;
/// Jobs in a list, at most.
const LIST_MAX: usize = 1000;
/// Of so many connections one may wait for the end of a job, so that others find a place beside these and
/// event streams.
const WAITING_SHARE: usize = 4;
/// Characters of an idempotency key, at most.
const KEY_MAX: usize = 255;

const NO_JOB: &str = "the body is not a job: ";
const JOB_HINT: &str = "such as {\"kind\": \"train\", \"spec\": {\"model\": \"mlp\", \
     \"dataset\": \"digits\", \"rounds\": 3}}";

/// What a job's body says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobForm<T> {
    #[serde(rename = "kind")]
    _kind: JobKind,
    #[serde(default)]
    selector: Selector,
    #[serde(default)]
    deadline_ms: Option<Millis>,
    spec: T,
}

#[derive(Debug, Deserialize)]
struct KindOnly {
    kind: JobKind,
}

/// Parses a job's body; the bytes are the binary part of an infer job.
fn parse(body: &[u8]) -> Result<(JobSpec, Bytes), ApiError> {
    let KindOnly { kind } = parse_json(body)?;
    let deadline = |asked: Option<Millis>, default: Millis| {
        request::checked_deadline(asked.unwrap_or(default))
    };
    match kind {
        JobKind::Train => {
            let form: JobForm<Box<TrainSpec>> = parse_json(body)?;
            // Checked with all else of the job.
            let deadline_ms = form.deadline_ms.unwrap_or(request::TRAIN_DEADLINE);
            let work = WorkSpec::Train(form.spec);
            Ok((JobSpec { selector: form.selector, deadline_ms, work }, Bytes::new()))
        }
        JobKind::Telemetry => {
            let form: JobForm<Option<Nothing>> = parse_json(body)?;
            let deadline_ms = deadline(form.deadline_ms, request::QUEUED_DEADLINE)?;
            let work = WorkSpec::Telemetry;
            Ok((JobSpec { selector: form.selector, deadline_ms, work }, Bytes::new()))
        }
        JobKind::Infer => {
            let form: JobForm<request::InferForm> = parse_json(body)?;
            let asked = form.spec.into_request()?;
            let both = [form.deadline_ms, asked.deadline].into_iter().flatten().min();
            let deadline_ms = deadline(both, request::QUEUED_DEADLINE)?;
            let selector = both_selectors(form.selector, asked.selector)?;
            let work = WorkSpec::Infer(asked.spec);
            Ok((JobSpec { selector, deadline_ms, work }, asked.binary))
        }
    }
}

/// A device has to match the job's selector and the one that stands in its spec.
fn both_selectors(job: Selector, spec: Selector) -> Result<Selector, ApiError> {
    match (job.is_empty(), spec.is_empty()) {
        (_, true) => Ok(job),
        (true, false) => Ok(spec),
        (false, false) => request::selector(Some(&format!("{job},{spec}"))),
    }
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let detail = format!("{NO_JOB}{error}");
        ApiError::new(ApiCode::InvalidBody, detail, JOB_HINT)
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SubmitQuery {
    #[serde(default)]
    dry_run: bool,
}

/// `POST /v1/jobs`
pub(super) async fn create(
    State(app): State<App>,
    Asked(query): Asked<SubmitQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    submit(app, query, None, request).await
}

/// `PUT /v1/jobs/{id}`: the same body again gives the same job.
pub(super) async fn put(
    State(app): State<App>,
    names: Names,
    Asked(query): Asked<SubmitQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let id = names.id("id", ApiCode::InvalidSpec)?;
    submit(app, query, Some(id), request).await
}

async fn submit(
    app: App,
    query: SubmitQuery,
    id: Option<JobId>,
    request: Request,
) -> Result<Response, ApiError> {
    let key = idempotency_key(request.headers())?;
    let prefer = Prefer::read(request.headers(), app.limits.wait);
    let (body, place) = json_body(request, &app).await?;
    let turn = app.broker.core.room.turn(body.len()).await;
    let parsed = parse(&body).map_err(|first| (first, request::training::of_body(&body)));
    drop((body, turn));
    let (spec, binary) = match parsed {
        Ok(parsed) => parsed,
        Err((first, reading)) => return Err(unreadable(&app, first, reading).await),
    };
    if query.dry_run {
        return json(StatusCode::OK, &app.broker.check(&spec).await?);
    }
    let job = app.broker.submit(spec, binary, id, key).await?;
    drop(place);
    accepted(&app, job, prefer).await
}

/// All that is wrong with a training, where it is one.
async fn unreadable(app: &App, first: ApiError, reading: Reading) -> ApiError {
    let error = app.broker.core.unreadable(first, reading).await;
    let detail =
        if error.errors.is_empty() { error.detail } else { NO_JOB.to_owned() + &error.detail };
    ApiError { detail, ..error }
}

/// Waits as preferred; 200 for a job that ended, 202 for one that goes on.
async fn accepted(app: &App, job: JobRecord, mut prefer: Prefer) -> Result<Response, ApiError> {
    let job = waited(app, job, &mut prefer).await?;
    let status = if job.state.is_final() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = json(status, &job)?;
    let headers = response.headers_mut();
    set(headers, header::LOCATION, &format!("/v1/jobs/{}", job.id));
    mention(headers, prefer);
    Ok(response)
}

/// The job after as long as is preferred, or as it is where others take all places for that.
async fn waited(app: &App, job: JobRecord, prefer: &mut Prefer) -> Result<JobRecord, ApiError> {
    let Ok(_place) = app.waiting.try_acquire() else {
        prefer.wait = None;
        return Ok(job);
    };
    match prefer.wait {
        Some(wait) if !job.state.is_final() => {
            let wait = Millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            tokio::select! {
                job = app.broker.wait(&job.id, wait) => job,
                () = app.ending.cancelled() => app.broker.job(&job.id).await,
            }
        }
        _ => Ok(job),
    }
}

/// Requests that may wait for the end of a job at the same time.
pub(super) fn waiting_max(limits: &HttpLimits) -> usize {
    (limits.connections / WAITING_SHARE).max(1)
}

fn mention(headers: &mut HeaderMap, prefer: Prefer) {
    let applied = match prefer.wait {
        Some(wait) => format!("wait={}", wait.as_secs()),
        None => "respond-async".to_owned(),
    };
    set(headers, HeaderName::from_static("preference-applied"), &applied);
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().unwrap_or_default().trim();
    if (1..=KEY_MAX).contains(&key.len()) {
        return Ok(Some(key.to_owned()));
    }
    Err(ApiError::new(
        ApiCode::InvalidSpec,
        format!("the Idempotency-Key is not 1 to {KEY_MAX} visible characters"),
        "choose another key, a UUID for instance",
    ))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    limit: Option<usize>,
    before: Option<JobId>,
}

/// `GET /v1/jobs`
pub(super) async fn list(
    State(app): State<App>,
    Asked(query): Asked<ListQuery>,
) -> Result<Response, ApiError> {
    let limit = query.limit.unwrap_or(LIST_DEFAULT);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(ApiError::new(
            ApiCode::InvalidSpec,
            format!("limit is {limit}, expected 1 to {LIST_MAX}"),
            "ask for the next part with 'before'",
        ));
    }
    json(StatusCode::OK, &app.broker.jobs(limit, query.before).await?)
}

/// `GET /v1/jobs/{id}`; `Prefer: wait` waits for the end.
pub(super) async fn show(
    State(app): State<App>,
    names: Names,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = app.broker.job(&names.id("id", ApiCode::UnknownJob)?).await?;
    let mut prefer = Prefer::read(&headers, app.limits.wait);
    let job = waited(&app, job, &mut prefer).await?;
    let mut response = json(StatusCode::OK, &job)?;
    if prefer.wait.is_some() {
        mention(response.headers_mut(), prefer);
    }
    Ok(response)
}

/// `POST /v1/jobs/{id}:cancel` and `:retry`.
pub(super) async fn act(
    State(app): State<App>,
    names: Names,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let text = names.text("id");
    let (id, verb) = text.rsplit_once(':').unwrap_or((text, ""));
    let id: JobId = parse_id(id, ApiCode::UnknownJob)?;
    match verb {
        "cancel" => {
            let job = app.broker.cancel(&id).await?;
            accepted(&app, job, Prefer::read(&headers, app.limits.wait)).await
        }
        "retry" => {
            let job = app.broker.retry(&id).await?;
            accepted(&app, job, Prefer::read(&headers, app.limits.wait)).await
        }
        other => Err(ApiError::new(
            ApiCode::UnknownPath,
            format!("a job cannot be asked to {other:?}"),
            format!("POST to /v1/jobs/{id}:cancel or /v1/jobs/{id}:retry"),
        )),
    }
}

/// `GET /v1/jobs/{id}/result`; `Prefer: wait` waits for the end.
pub(super) async fn result(
    State(app): State<App>,
    names: Names,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let job = app.broker.job(&names.id("id", ApiCode::UnknownJob)?).await?;
    let job = waited(&app, job, &mut Prefer::read(&headers, app.limits.wait)).await?;
    if let Some(failure) = job.failure {
        return Err(failure.into());
    }
    match job.result {
        Some(JobResult::Infer { device, report, outputs }) => {
            let outputs = match outputs {
                Some(blob) => app.broker.blob(&blob.digest).await?,
                None => Bytes::new(),
            };
            let answer = Answer { device, report: *report, outputs };
            json(StatusCode::OK, &request::answer_json(&answer)?)
        }
        Some(JobResult::Train { model, .. }) => {
            let path = format!("/v1/models/{}/versions/{}", model.name, model.version);
            let made = made(&app, &job.id, &model).await?;
            if !wants_onnx(&headers) {
                let mut response = json(StatusCode::OK, &made)?;
                set(response.headers_mut(), header::CONTENT_LOCATION, &path);
                return Ok(response);
            }
            let mut response = json(StatusCode::SEE_OTHER, &model)?;
            set(response.headers_mut(), header::LOCATION, &format!("{path}/onnx"));
            Ok(response)
        }
        Some(JobResult::Telemetry { devices }) => {
            let devices: Vec<_> = devices
                .iter()
                .map(|(device, telemetry)| json!({ "device": device, "telemetry": telemetry }))
                .collect();
            json(StatusCode::OK, &json!({ "devices": devices }))
        }
        None if job.state.is_final() => Err(ApiError::new(
            ApiCode::Job(FailureCode::Cancelled),
            format!("job {} was stopped and has no result", job.id),
            format!(
                "run it again with 'dunlin jobs retry {0}', or POST to /v1/jobs/{0}:retry",
                job.id
            ),
        )),
        None => Err(ApiError::new(
            ApiCode::NotEnded,
            format!("job {} is {:?} and has no result yet", job.id, job.state).to_lowercase(),
            "ask again with the header 'Prefer: wait=60', or follow its /events",
        )),
    }
}

/// The model that a job made, unless another one has its name and version by now.
async fn made(app: &App, job: &JobId, model: &ModelRef) -> Result<ModelRecord, ApiError> {
    let (name, version) = (model.name.clone(), Some(model.version.clone()));
    let record = app.broker.model(&ModelQuery { name, version }).await?;
    if record.reference == *model {
        return Ok(record);
    }
    Err(ApiError::new(
        ApiCode::UnknownModel,
        format!(
            "{}:{} is another model than the one that job {job} made",
            model.name, model.version
        ),
        "that one was removed: run the job again",
    ))
}

fn wants_onnx(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|item| {
        let item = item.split(';').next().unwrap_or_default().trim();
        item == models::artifact::ONNX_MEDIA_TYPE || item == "application/octet-stream"
    })
}

/// What a device did for a job.
#[derive(Debug, Serialize)]
struct DeviceShare {
    device: DeviceId,
    presence: Option<jobs::device::Presence>,
    /// Rounds whose mean holds this device's update.
    rounds: usize,
    /// Examples it trained on, over all rounds.
    examples: u64,
    /// Rounds to which it was invited and whose mean it is not in.
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Missing {
    round: u32,
    code: FailureCode,
    message: String,
}

/// `GET /v1/jobs/{id}/devices`
pub(super) async fn devices(State(app): State<App>, names: Names) -> Result<Response, ApiError> {
    let job = app.broker.job(&names.id("id", ApiCode::UnknownJob)?).await?;
    let known = app.broker.devices();
    let mut ids: Vec<&DeviceId> = job.devices.iter().collect();
    for outcome in &job.rounds {
        ids.extend(outcome.updates.iter().map(|(device, _)| device));
        ids.extend(outcome.missing.iter().map(|(device, _)| device));
    }
    ids.sort();
    ids.dedup();
    let shares: Vec<DeviceShare> =
        ids.into_iter().map(|device| share(&job, &known, device)).collect();
    json(StatusCode::OK, &json!({ "devices": shares }))
}

fn share(job: &JobRecord, known: &[DeviceRecord], device: &DeviceId) -> DeviceShare {
    let updates = job.rounds.iter().flat_map(|outcome| &outcome.updates);
    let mine: Vec<u64> =
        updates.filter(|(who, _)| who == device).map(|(_, update)| update.examples).collect();
    let missing = job.rounds.iter().flat_map(|outcome| {
        let mine = outcome.missing.iter().filter(|(who, _)| who == device);
        mine.map(|(_, failure)| Missing {
            round: outcome.round.0,
            code: failure.code,
            message: failure.message.clone(),
        })
    });
    DeviceShare {
        device: device.clone(),
        presence: known.iter().find(|record| record.hello.device == *device).map(|r| r.presence),
        rounds: mine.len(),
        examples: mine.iter().sum(),
        missing: missing.collect(),
    }
}

#[cfg(test)]
mod tests {
    use models::artifact::ModelConfig;
    use serde_json::Value;

    use super::*;
    use crate::http::serve;
    use crate::testing::{Device, World, ended, joined, train_spec};

    #[tokio::test]
    async fn the_result_of_a_training_is_the_model_that_it_made_or_none() {
        let world = World::new().await;
        let broker = world.broker().await;
        let _device = Device::start(&world, "d1").await;
        joined(&broker, 1).await;
        let job = broker.submit(train_spec(1, 1), Bytes::new(), None, None).await.unwrap().id;
        let Some(JobResult::Train { model, .. }) = ended(&broker, &job).await.result else {
            panic!("expected a model")
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/jobs/{job}/result", listener.local_addr().unwrap());
        tokio::spawn(serve(listener, broker.clone(), std::future::pending()));
        let result: Value = reqwest::get(&url).await.unwrap().json().await.unwrap();
        assert_eq!(result["digest"], json!(model.digest));
        let (name, version) = (model.name.clone(), Some(model.version.clone()));
        broker.remove_model(&ModelQuery { name, version: version.clone() }).await.unwrap();
        assert_eq!(reqwest::get(&url).await.unwrap().status(), 404);
        let other = models::zoo::build("mlp", [1, 2, 2], 3, 8).unwrap().into();
        broker.register(&model.name, version, other, ModelConfig::default()).await.unwrap();
        for accept in ["application/json", "application/vnd.onnx"] {
            let client = reqwest::Client::new();
            let answer = client.get(&url).header("accept", accept).send().await.unwrap();
            assert_eq!(answer.status(), 404);
            let problem: Value = answer.json().await.unwrap();
            assert_eq!(problem["code"], "unknown_model", "{problem}");
        }
    }

    #[test]
    fn a_selector_in_the_spec_of_a_request_counts() {
        let selector = |job: &str, spec: &str| {
            let body = json!({"kind": "infer", "selector": job,
                "spec": {"model": "m", "input": [1], "selector": spec}});
            parse(body.to_string().as_bytes()).unwrap().0.selector.to_string()
        };
        assert_eq!(selector("", "device=a"), "device=a");
        assert_eq!(selector("device=a", ""), "device=a");
        assert_eq!(selector("device=a", "label.site=lab"), "device=a,label.site=lab");
    }
}
