//! The table of what can be asked: the router and `openapi.json` are made from it.

use axum::routing::{MethodRouter, get, post};

use super::openapi::operation::{Operation, op};
use super::{App, devices, events, health, inference, jobs, models, rounds};

/// One path with its handlers.
pub(super) struct Route {
    /// As the router wants it.
    pub(super) path: &'static str,
    /// The handlers of its methods.
    pub(super) handler: MethodRouter<App>,
    /// What is said of it; empty for a second spelling of another path.
    pub(super) operations: Vec<Operation>,
}

fn route(path: &'static str, handler: MethodRouter<App>, operations: Vec<Operation>) -> Route {
    Route { path, handler, operations }
}

/// Every route.
pub(super) fn all() -> Vec<Route> {
    let mut routes = job_routes();
    routes.extend(job_part_routes());
    routes.extend(round_routes());
    routes.extend(fleet_routes());
    routes.extend(model_routes());
    routes.extend(inference_routes());
    routes.extend(health_routes());
    routes
}

/// The methods that a path takes, for the problem that says so.
pub(super) fn methods_of(path: &str) -> Vec<&'static str> {
    let fits = |pattern: &str| {
        let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
        loop {
            match (wanted.next(), given.next()) {
                (None, None) => return true,
                (Some(wanted), Some(given)) if wanted.starts_with('{') || wanted == given => {}
                _ => return false,
            }
        }
    };
    let routes = all().into_iter().filter(|route| fits(route.path));
    let mut methods: Vec<&'static str> = routes
        .flat_map(|route| route.operations.into_iter().map(|operation| operation.method))
        .collect();
    methods.sort_unstable();
    methods.dedup();
    methods
}

const WAIT: (&str, &str) =
    ("Prefer", "`wait=N` waits up to N seconds for the end; `respond-async` does not");

fn job_submission(operation: Operation) -> Operation {
    operation
        .header(WAIT)
        .query(("dry_run", "boolean", "Accept nothing; say which devices match"))
        .body("JobRequest")
        .json(200, "It ended, or the devices that match", "JobOrDevices")
        .json(202, "Accepted; see Location", "Job")
        .problems(&[400, 409, 413, 415, 503])
}

fn job_routes() -> Vec<Route> {
    let key = ("Idempotency-Key", "The same key with the same body gives the same job");
    vec![
        route(
            "/v1/jobs",
            post(jobs::create).get(jobs::list),
            vec![
                job_submission(op("POST", "/v1/jobs", "createJob", "Submit a job").header(key)),
                op("GET", "/v1/jobs", "listJobs", "Jobs, the newest first")
                    .query(("limit", "integer", "1 to 1000, 50 when absent"))
                    .query(("before", "string", "Only jobs older than this one"))
                    .json(200, "Jobs", "JobList")
                    .problems(&[400, 404, 503]),
            ],
        ),
        route(
            "/v1/jobs/{id}",
            get(jobs::show).put(jobs::put).post(jobs::act),
            vec![
                op("GET", "/v1/jobs/{id}", "getJob", "A job")
                    .header(WAIT)
                    .json(200, "The job", "Job")
                    .problems(&[404, 503]),
                job_submission(op(
                    "PUT",
                    "/v1/jobs/{id}",
                    "putJob",
                    "Submit a job under an id of your own; again gives the same job",
                )),
                op("POST", "/v1/jobs/{id}:cancel", "cancelJob", "Ask a job to stop")
                    .header(WAIT)
                    .json(200, "It has ended", "Job")
                    .json(202, "It was asked", "Job")
                    .problems(&[404, 503]),
                op("POST", "/v1/jobs/{id}:retry", "retryJob", "Submit a job again as a new one")
                    .header(WAIT)
                    .json(200, "The new job has ended", "Job")
                    .json(202, "The new job", "Job")
                    .problems(&[404, 409, 503]),
            ],
        ),
    ]
}

fn job_part_routes() -> Vec<Route> {
    let after = ("after", "integer", "As `Last-Event-ID`, for clients that cannot set it");
    vec![
        route(
            "/v1/jobs/{id}/events",
            get(events::follow),
            vec![
                op("GET", "/v1/jobs/{id}/events", "followJob", "What happens to a job, live")
                    .header(("Last-Event-ID", "Only events after this one"))
                    .query(after)
                    .content(200, "Server-sent events", "text/event-stream", "JobEvent")
                    .empty(204, "The job ended and you have seen everything")
                    .problems(&[400, 404, 503]),
            ],
        ),
        route(
            "/v1/jobs/{id}/result",
            get(jobs::result),
            vec![
                op("GET", "/v1/jobs/{id}/result", "getJobResult", "What came out of a job")
                    .header(WAIT)
                    .json(200, "An answer, a model, or measurements", "Result")
                    .empty(303, "The ONNX file, for clients that accept application/vnd.onnx")
                    .problems(&[404, 409, 422, 503, 504]),
            ],
        ),
        route(
            "/v1/jobs/{id}/devices",
            get(jobs::devices),
            vec![
                op("GET", "/v1/jobs/{id}/devices", "listJobDevices", "Who did what for a job")
                    .json(200, "Devices", "DeviceShares")
                    .problems(&[404, 503]),
            ],
        ),
    ]
}

fn round_routes() -> Vec<Route> {
    const ROUNDS: &str = "/v1/jobs/{id}/rounds";
    const ROUND: &str = "/v1/jobs/{id}/rounds/{round}";
    let format = ("format", "string", "json, or csv; else as `Accept` says");
    let rows = ("rows", "string", "What a line of csv is: rounds, or devices, each in each round");
    vec![
        route(
            ROUNDS,
            get(rounds::list),
            vec![
                op("GET", ROUNDS, "listRounds", "Every round that ended, the oldest first")
                    .query(format)
                    .query(rows)
                    .json(200, "Rounds; text/csv where that is asked for", "RoundList")
                    .problems(&[400, 404, 503]),
            ],
        ),
        route(
            ROUND,
            get(rounds::show),
            vec![
                op("GET", ROUND, "getRound", "A round that ended, device by device")
                    .json(200, "The round", "Round")
                    .problems(&[404, 503]),
            ],
        ),
    ]
}

fn fleet_routes() -> Vec<Route> {
    vec![
        route(
            "/v1/devices",
            get(devices::list),
            vec![
                op("GET", "/v1/devices", "listDevices", "Every device that ever joined")
                    .query(("selector", "string", "Only those that match"))
                    .json(200, "Devices", "DeviceList")
                    .problems(&[400]),
            ],
        ),
        route(
            "/v1/devices/{id}",
            get(devices::show),
            vec![
                op("GET", "/v1/devices/{id}", "getDevice", "A device")
                    .json(200, "The device", "Device")
                    .problems(&[404]),
            ],
        ),
    ]
}

fn registration(operation: Operation) -> Operation {
    operation
        .query(("labels", "string", "Class labels by index, separated by commas"))
        .query(("description", "string", "What it is, for people"))
        .header(("Dunlin-Model-Config", "A ModelConfig in JSON"))
        .file("application/vnd.onnx")
        .json(201, "Registered", "Model")
        .problems(&[400, 409, 413, 415, 422, 503])
}

fn model_routes() -> Vec<Route> {
    const MODEL: &str = "/v1/models/{model}";
    const VERSION: &str = "/v1/models/{model}/versions/{version}";
    let file = |path, id| {
        op("GET", path, id, "The ONNX file")
            .content(200, "The file", "application/vnd.onnx", "")
            .empty(304, "You have it already")
            .problems(&[404, 503])
    };
    vec![
        route(
            "/v1/models",
            get(models::list),
            vec![
                op("GET", "/v1/models", "listModels", "Every version of every model")
                    .json(200, "Models", "ModelList")
                    .problems(&[503]),
            ],
        ),
        route(
            MODEL,
            get(models::show).post(models::register).delete(models::remove),
            vec![
                op("GET", MODEL, "getModel", "Every version of a model, the newest first")
                    .json(200, "Versions", "ModelVersions")
                    .problems(&[404, 503]),
                registration(op("POST", MODEL, "addModel", "Register the next version")),
                op("DELETE", MODEL, "removeModel", "Remove every version")
                    .empty(204, "Removed")
                    .problems(&[404, 503]),
            ],
        ),
        route(
            VERSION,
            get(models::version).put(models::register).delete(models::remove),
            vec![
                op("GET", VERSION, "getModelVersion", "A version of a model")
                    .json(200, "The version", "Model")
                    .problems(&[404, 503]),
                registration(op("PUT", VERSION, "putModelVersion", "Register this version")),
                op("DELETE", VERSION, "removeModelVersion", "Remove this version")
                    .empty(204, "Removed")
                    .problems(&[404, 503]),
            ],
        ),
        route(
            "/v1/models/{model}/onnx",
            get(models::onnx),
            vec![file("/v1/models/{model}/onnx", "getModelFile")],
        ),
        route(
            "/v1/models/{model}/versions/{version}/onnx",
            get(models::onnx),
            vec![file("/v1/models/{model}/versions/{version}/onnx", "getModelVersionFile")],
        ),
    ]
}

fn oip_routes(paths: [&'static str; 3], ids: [&'static str; 3]) -> Vec<Route> {
    vec![
        route(
            paths[0],
            get(inference::metadata),
            vec![
                op("GET", paths[0], ids[0], "What goes into a model and comes out")
                    .json(200, "Metadata", "OipModel")
                    .problems(&[404, 503]),
            ],
        ),
        route(
            paths[1],
            get(inference::model_ready),
            vec![
                op("GET", paths[1], ids[1], "Whether a model can be asked")
                    .json(200, "It can", "OipModelReady")
                    .problems(&[404, 503]),
            ],
        ),
        route(
            paths[2],
            post(inference::infer),
            vec![
                op("POST", paths[2], ids[2], "Ask a model: tensors, or a picture as the body")
                    .query(("top", "integer", "For pictures: classes to name, 5 when absent"))
                    .query(("selector", "string", "Only devices that match may answer"))
                    .query(("engine", "string", "Engines that may answer: cuda, or !webgpu"))
                    .query(("deadline_ms", "integer", "How long to wait, 10000 when absent"))
                    .header(("Inference-Header-Content-Length", "Length of the JSON"))
                    .body("OipRequest")
                    .file("application/octet-stream")
                    .file("image/png")
                    .file("image/jpeg")
                    .json(200, "The answer; to a picture, an Answer", "OipResponseOrAnswer")
                    .problems(&[400, 404, 413, 415, 422, 503, 504]),
            ],
        ),
    ]
}

fn inference_routes() -> Vec<Route> {
    let server = || op("GET", "/v2", "getServer", "What this inference server is");
    let mut routes = vec![
        route("/v2", get(inference::server), vec![server().json(200, "Metadata", "OipServer")]),
        route(
            "/v2/",
            get(inference::server),
            vec![op("GET", "/v2/", "getServerSlash", "As /v2, as registry clients ask it").json(
                200,
                "Metadata",
                "OipServer",
            )],
        ),
        route(
            "/v2/health/live",
            get(inference::live),
            vec![
                op("GET", "/v2/health/live", "getLive", "Whether the server runs")
                    .json(200, "It does", "OipLive"),
            ],
        ),
        route(
            "/v2/health/ready",
            get(inference::ready),
            vec![
                op("GET", "/v2/health/ready", "getReady", "Whether the server can work")
                    .json(200, "It can", "OipReady")
                    .problems(&[503]),
            ],
        ),
    ];
    routes.extend(oip_routes(
        ["/v2/models/{model}", "/v2/models/{model}/ready", "/v2/models/{model}/infer"],
        ["getOipModel", "getOipModelReady", "infer"],
    ));
    routes.extend(oip_routes(
        [
            "/v2/models/{model}/versions/{version}",
            "/v2/models/{model}/versions/{version}/ready",
            "/v2/models/{model}/versions/{version}/infer",
        ],
        ["getOipModelVersion", "getOipModelVersionReady", "inferVersion"],
    ));
    routes
}

fn health_routes() -> Vec<Route> {
    vec![
        route(
            "/healthz",
            get(health::alive),
            vec![
                op("GET", "/healthz", "getHealth", "Whether the process answers")
                    .json(200, "It does", "Health"),
            ],
        ),
        route(
            "/readyz",
            get(health::ready),
            vec![
                op("GET", "/readyz", "getReadiness", "Whether NATS and JetStream answer too")
                    .json(200, "They do", "Health")
                    .problems(&[503]),
            ],
        ),
        route(
            "/metrics",
            get(health::metrics),
            vec![
                op("GET", "/metrics", "getMetrics", "Counters and gauges for Prometheus").content(
                    200,
                    "Prometheus text",
                    "text/plain",
                    "",
                ),
            ],
        ),
        route(
            "/openapi.json",
            get(health::document),
            vec![op("GET", "/openapi.json", "getOpenapi", "This document").content(
                200,
                "OpenAPI 3.1",
                "application/json",
                "",
            )],
        ),
    ]
}
