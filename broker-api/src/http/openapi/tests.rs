use super::*;

use std::collections::BTreeSet;

use ::jobs::report::FailureCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{DeviceRecord, JobEvent, JobRecord, ModelRecord};

fn file() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi.json")
}

#[test]
fn the_file_is_what_the_code_says() {
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(file(), TEXT.as_bytes()).unwrap();
    }
    let found = std::fs::read_to_string(file()).unwrap();
    assert!(
        found == *TEXT,
        "openapi.json differs from the code; write it anew with:\n  \
         UPDATE_OPENAPI=1 cargo nextest run -p broker-api openapi"
    );
}

#[test]
fn every_route_is_in_the_document() {
    let document = document();
    for route in routes::all() {
        assert!(!route.operations.is_empty(), "{} is not described", route.path);
        let handled = format!("{:?}", route.handler);
        for method in ["get", "post", "put", "delete"] {
            let taken = !handled.contains(&format!("{method}: None"));
            let said: Vec<&str> = route
                .operations
                .iter()
                .filter(|operation| operation.method.eq_ignore_ascii_case(method))
                .map(|operation| operation.path)
                .collect();
            assert_eq!(taken, !said.is_empty(), "{method} {}", route.path);
            for path in said {
                assert!(document["paths"][path][method].is_object(), "{method} {path}");
            }
        }
    }
}

#[test]
fn references_lead_somewhere_and_ids_are_unique() {
    let document = document();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut used = BTreeSet::new();
    for rest in text.split("#/components/schemas/").skip(1) {
        let name = rest.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name} is not described");
        used.insert(name.to_owned());
    }
    let known: BTreeSet<String> = schemas.keys().cloned().collect();
    let spare: Vec<&String> = known.difference(&used).collect();
    assert!(spare.iter().all(|name| *name == "ModelRef"), "nothing uses {spare:?}");
    let operations = document["paths"].as_object().unwrap().values();
    let ids: Vec<&Value> = operations
        .flat_map(|path| path.as_object().unwrap().values())
        .map(|operation| &operation["operationId"])
        .collect();
    let unique: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(ids.len(), unique.len());
}

/// Checks a value against a schema; unknown members are errors, so that nothing stays unsaid.
fn check(schemas: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or_default();
        return check(schemas, &schemas[name], value, at);
    }
    for word in ["oneOf", "anyOf"] {
        if let Some(options) = schema[word].as_array() {
            let tried: Vec<Result<(), String>> =
                options.iter().map(|option| check(schemas, option, value, at)).collect();
            if tried.iter().any(Result::is_ok) {
                return Ok(());
            }
            return Err(format!("{at}: none of {word} fits: {tried:?}"));
        }
    }
    if let Some(expected) = schema.get("const") {
        return if value == expected { Ok(()) } else { Err(format!("{at}: {value}")) };
    }
    if let Some(options) = schema["enum"].as_array() {
        return if options.contains(value) { Ok(()) } else { Err(format!("{at}: {value}")) };
    }
    let fits = match schema["type"].as_str() {
        Some("object") => return members(schemas, schema, value, at),
        Some("array") => return items(schemas, schema, value, at),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => true,
    };
    if fits { Ok(()) } else { Err(format!("{at}: {value} is no {}", schema["type"])) }
}

fn members(schemas: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let found = value.as_object().ok_or_else(|| format!("{at}: {value} is no object"))?;
    for name in schema["required"].as_array().into_iter().flatten() {
        if !found.contains_key(name.as_str().unwrap_or_default()) {
            return Err(format!("{at}: {name} is missing"));
        }
    }
    for (name, value) in found {
        let known = schema["properties"].get(name).or(schema.get("additionalProperties"));
        let known = known.filter(|known| known.is_object());
        let known = known.ok_or_else(|| format!("{at}: {name} is not described"))?;
        check(schemas, known, value, &format!("{at}.{name}"))?;
    }
    Ok(())
}

fn items(schemas: &Value, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let found = value.as_array().ok_or_else(|| format!("{at}: {value} is no array"))?;
    if let Some(places) = schema["prefixItems"].as_array() {
        if places.len() != found.len() {
            return Err(format!("{at}: {} items", found.len()));
        }
        return places.iter().zip(found).try_for_each(|(place, v)| check(schemas, place, v, at));
    }
    found.iter().try_for_each(|item| check(schemas, &schema["items"], item, at))
}

/// Checks an answer of the API against what the document says of it.
pub(in crate::http) fn conforms(name: &str, value: &Value) -> Result<(), String> {
    let document = document();
    let schemas = &document["components"]["schemas"];
    check(schemas, &schemas[name], value, name)
}

/// Reads a sample as the type, writes it again, and holds both to the schema.
fn holds<T: Serialize + DeserializeOwned>(name: &str, sample: &Value) {
    let typed = T::deserialize(sample).unwrap();
    let written = serde_json::to_value(&typed).unwrap();
    assert_eq!(conforms(name, &written), Ok(()));
    assert_eq!(conforms(name, sample), Ok(()));
    let written: BTreeSet<String> = written.as_object().unwrap().keys().cloned().collect();
    let sample: BTreeSet<String> = sample.as_object().unwrap().keys().cloned().collect();
    assert_eq!(written, sample, "the sample of {name} should have every member");
}

fn blob() -> Value {
    json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 10})
}

fn model() -> Value {
    json!({"name": "m", "version": "1", "digest": blob()["digest"]})
}

fn telemetry() -> Value {
    json!({"at": 1, "uptime_s": 2, "cpu_percent": 3.5, "load": [0.1, 0.2, 0.3],
        "memory_total": 1, "memory_used": 1, "memory_available": 1, "swap_total": 0,
        "swap_used": 0, "disks": [{"mount": "/", "total": 2, "available": 1}],
        "networks": [{"interface": "eth0", "received": 1, "sent": 2}],
        "temperatures": {"cpu": 48.5}, "agent_memory": 9,
        "refusals": [{"job": "j", "round": 3, "at": 1, "reason": "far off"}]})
}

fn outcome() -> Value {
    let failure = json!({"code": "device_lost", "message": "silent"});
    json!({"round": 1, "parameters": blob(), "server_state": blob(), "encoded": blob(), "influences": [["a", {"verdict": "refused", "reason": "far off"}]],
        "failure": failure,
        "updates": [["a", {"parameters": blob(), "examples": 3, "loss": 0.5, "accuracy": 0.5,
            "steps": 1, "duration_ms": 5, "engine": "native", "held": true}]],
        "evaluations": [["a", {"examples": 3, "loss": 0.5, "accuracy": 0.5, "duration_ms": 5}]],
        "judgement": {"judged":
            {"examples": 3, "loss": 0.5, "accuracy": 0.5, "duration_ms": 5}},
        "missing": [["b", failure]],
        "best": {"round": 1, "metric": "loss", "value": 0.5, "stale": 0},
        "moved": {"up": 5, "down": 5}, "started_at": 1, "ended_at": 2})
}

fn training() -> Value {
    json!({"kind": "train", "model": {"name": "mlp", "version": "1"},
        "begin_from": {"job": "j", "round": 3},
        "dataset": "digits", "rounds": 3,
        "local": {"epochs": 1, "batch_size": 32, "steps_max": 5, "learning_rate": 0.5,
            "momentum": 0.5, "weight_decay": 0.5, "optimizer": "adamw", "loss": "bce",
            "schedule": {"kind": "cosine", "floor": 0.1, "steps": 9}, "warm_up": 3, "proximal": 0.5,
            "gradient_norm_max": 1.0, "label_smoothing": 0.5, "frozen": ["stem.*"],
            "kept_local": ["*norm*"],
            "augment": ["flip", "pad_crop", "cutout"],
            "normalization": {"fixed": {"mean": [0.5], "std": [0.25]}}},
        "participation": {"devices": 2, "over_selection": 0.5, "quorum": 1,
            "deadline_ms": 1000, "failed_rounds_max": 3,
            "selection": {"kind": "by_speed", "exploration": 0.5},
            "quarantine": {"refused": 2, "within": 5, "rounds": 9, "left_out": true},
            "late_updates": {"policy": "staleness", "exponent": 0.5, "staleness_max": 3}},
        "update": {"encoding": "topk", "share": 0.5, "values": "int8", "block": 512},
        "download": "bfloat16", "transfer": "stored",
        "strategy": {"name": "fedadam", "learning_rate": 0.5, "beta1": 0.5, "beta2": 0.5, "tau": 0.5},
        "rule": {"name": "krum", "byzantine": 1},
        "evaluate": "both", "target_accuracy": 0.5,
        "early_stopping": {"patience": 3, "min_delta": 0.5, "metric": "accuracy"}, "keep": "best",
        "register_as": "x", "seed": 1})
}

#[test]
fn types_are_what_the_schemas_say() {
    holds::<crate::error::Problem>(
        "Problem",
        &json!({"type": "t", "title": "T", "status": 404, "detail": "d", "code": "c",
            "hint": "h", "error": "d", "errors": ["a", "b"]}),
    );
    holds::<DeviceRecord>(
        "Device",
        &json!({"hello": {"device": "pi", "instance": "i", "started_at": 1, "heartbeat_ms": 2,
                "agent_version": "0", "groups": ["g"], "labels": {"a": "b"},
                "datasets": [{"name": "d", "format": "idx", "shape": [1, 8, 8], "classes": 10,
                    "train_examples": 1, "test_examples": 1, "train_class_counts": [1],
                    "labels": ["a"], "columns": ["x"], "mean": [0.5], "std": [0.5],
                    "channel_mean": [0.5], "channel_std": [0.5]}],
                "engines": ["tract"], "slots": 1,
                "engine_facts": [{"engine": "cuda", "device": "d", "driver": "v", "library": "l",
                    "memory": 1, "gflops": 1.5}, {"engine": "webgpu", "unusable": "no"}],
                "facts": {"arch": "arm", "os": "linux", "os_version": "", "kernel": "",
                    "host_name": "", "model": "", "cpu": "", "cpus": 1, "memory": 1, "disk": 1}},
            "presence": "online", "last_seen": 1, "telemetry": telemetry(), "tasks": 0}),
    );
    let train = training();
    let infer = json!({"kind": "infer", "model": {"name": "m"},
        "input": {"type": "tensors", "tensors": [
            {"name": "x", "datatype": "FP32", "shape": [1], "size": 4}]}, "top": 5, "engine": "!webgpu"});
    let answered = json!({"kind": "infer", "device": "pi", "outputs": blob(),
        "report": {"model": model(), "engine": "tract", "engine_us": 5,
            "refused_engines": [{"engine": "cuda", "reason": "signal 11"}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "size": 4}],
            "classes": [[{"index": 3, "label": "three", "probability": 0.5}]]}});
    let measured = json!({"kind": "telemetry", "devices": [["pi", telemetry()]]});
    let trained = json!({"kind": "train", "model": model(), "round": 1, "enough": "rounds"});
    for (work, result) in
        [(train, trained.clone()), (infer, answered), (json!({"kind": "telemetry"}), measured)]
    {
        holds::<JobRecord>(
            "Job",
            &json!({"id": "j", "spec": {"selector": "", "deadline_ms": 5, "work": work},
                "state": "succeeded", "accepted_at": 1, "ended_at": 2, "devices": ["pi"],
                "failure": {"code": "busy", "message": "m"}, "result": result,
                "waiting": {"round": 1, "reason": "r", "since": 1, "until": 2},
                "rounds": [outcome()]}),
        );
    }
    let mut ended = outcome();
    ended["event"] = json!("round_ended");
    for body in [
        json!({"event": "accepted"}),
        json!({"event": "placed", "device": "pi"}),
        json!({"event": "progress", "device": "pi", "round": 1, "progress":
            {"step": 1, "steps": 2, "loss": 0.5, "examples_per_second": 1.5, "accuracy": 0.5,
                "epoch": 1, "remaining_ms": 5}}),
        json!({"event": "round_started", "round": 1, "devices": ["pi"]}),
        json!({"event": "waiting", "round": 1, "reason": "r", "since": 1, "until": 2}),
        ended,
        json!({"event": "ended", "state": "failed", "failure": null, "result": trained}),
    ] {
        holds::<JobEvent>("JobEvent", &json!({"sequence": 1, "job": "j", "at": 1, "body": body}));
    }
}

#[test]
fn models_are_what_the_schemas_say() {
    let tensor = json!({"name": "x", "datatype": "FP32", "shape": [-1, 64]});
    let mut record = model();
    record["onnx"] = blob();
    record["registered_at"] = json!(1);
    record["config"] = json!({"description": "d", "inputs": [tensor], "outputs": [tensor],
        "labels": ["a"], "parameters": 5,
        "preprocessing": {"width": 8, "height": 8, "channels": 1, "layout": "nchw",
            "divisor": 255.0, "mean": [0.5], "std": [0.5]},
        "lineage": {"job": "j", "dataset": "d", "began_with": "model m:1", "rounds": 1, "devices": ["pi"],
            "accuracy": 0.5}});
    holds::<ModelRecord>("Model", &record);
}

#[test]
fn failure_codes_are_listed() {
    let document = document();
    let listed = document["components"]["schemas"]["FailureCode"]["enum"].as_array().unwrap();
    let codes: Vec<Value> = FailureCode::ALL.iter().map(|code| json!(code)).collect();
    assert_eq!(*listed, codes);
}
