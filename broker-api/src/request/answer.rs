//! The public JSON of an answer: the same text as the device itself sends to a waiting client.

use jobs::report::Class;
use serde_json::{Value, json};

use super::nested;
use crate::broker::Answer;
use crate::error::{ApiCode, ApiError};

/// The public JSON of an answer.
///
/// # Errors
/// [`ApiCode::Internal`] when the device's outputs contradict their description.
pub fn answer_json(answer: &Answer) -> Result<Value, ApiError> {
    let mut outputs = Vec::with_capacity(answer.report.outputs.len());
    let mut offset = 0_usize;
    for header in &answer.report.outputs {
        let size = usize::try_from(header.size.0).unwrap_or(usize::MAX);
        let end = offset.saturating_add(size);
        let bytes = answer.outputs.get(offset..end).ok_or_else(|| {
            ApiError::new(
                ApiCode::Internal,
                format!("device {} sent too few bytes for {:?}", answer.device, header.name),
                "update the agent",
            )
        })?;
        offset = end;
        outputs.push(json!({
            "name": header.name,
            "datatype": header.datatype,
            "shape": header.shape,
            "data": nested::numbers(&header.datatype, bytes),
        }));
    }
    let mut value = json!({
        "model": answer.report.model,
        "device": answer.device,
        "engine": answer.report.engine,
        "engine_us": answer.report.engine_us,
        "classes": classes_json(&answer.report.classes),
        "outputs": outputs,
    });
    if !answer.report.refused_engines.is_empty() {
        value["refused_engines"] = json!(answer.report.refused_engines);
    }
    Ok(value)
}

fn classes_json(examples: &[Vec<Class>]) -> Value {
    let class = |class: &Class| {
        let mut value = json!(class);
        value["probability"] = nested::shortest(class.probability);
        value
    };
    examples.iter().map(|classes| classes.iter().map(class).collect::<Value>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_no_more_digits_than_they_hold() {
        let report = serde_json::from_value(json!({
            "model": {"name": "m", "version": "1", "digest": format!("sha256:{}", "0".repeat(64))},
            "engine": "tract", "engine_us": 7,
            "classes": [[{"index": 1, "probability": 0.1_f32}]],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [3], "size": 12}],
        }));
        let outputs: Vec<u8> = [0.1_f32, 16_777_216.0, f32::NAN]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let device = "pi-1".parse().unwrap();
        let answer = Answer { device, report: report.unwrap(), outputs: outputs.into() };
        let value = answer_json(&answer).unwrap();
        assert_eq!(value["outputs"][0]["data"].to_string(), "[0.1,16777216.0,null]");
        assert_eq!(value["classes"][0][0]["probability"].to_string(), "0.1");
    }
}
