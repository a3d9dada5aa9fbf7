//! What a test device answers when it is asked.

use async_nats::Message;
use async_nats::header::HeaderMap;
use bytes::Bytes;
use jobs::id::Bytes as Size;
use jobs::report::{InferReport, ReportBody, TaskReport};
use jobs::spec::{InferTask, Task, TensorHeader};
use jobs::wire;

use super::Agent;

impl Agent {
    /// Answers with the input.
    pub(super) async fn infer(
        &self,
        task: &Task,
        work: &InferTask,
        binary: Bytes,
        message: &Message,
    ) {
        let device = self.hello.device.clone();
        let values = binary.len() as u64 / 4;
        let output = TensorHeader {
            name: "y".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, values],
            size: Size(binary.len() as u64),
        };
        let inferred = InferReport {
            model: work.model.clone(),
            engine: "echo".to_owned(),
            engine_us: 10,
            refused_engines: Vec::new(),
            outputs: vec![output],
            classes: Vec::new(),
        };
        let mut outputs = binary;
        if let Some(answer_to) = &work.answer_to {
            let answer = crate::broker::Answer {
                device: device.clone(),
                report: inferred.clone(),
                outputs: std::mem::take(&mut outputs),
            };
            let json = crate::request::answer_json(&answer).unwrap().to_string();
            self.client.publish(answer_to.clone(), json.into()).await.unwrap();
        }
        let report =
            TaskReport { task: task.id.clone(), device, body: ReportBody::Inferred(inferred) };
        let encoded = wire::encode_with_binary(&report, &outputs);
        let mut headers = HeaderMap::new();
        if let Some(length) = encoded.json_length {
            headers.insert(wire::JSON_LENGTH_HEADER, length.to_string());
        }
        let reply = message.reply.clone().unwrap();
        self.client.publish_with_headers(reply, headers, encoded.payload).await.unwrap();
    }
}
