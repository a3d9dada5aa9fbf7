//! What is trained, apart from the values of its weights.

use bytes::Bytes;

use super::TrainError;
use crate::graph::{
    Graph, Origin, ValueId, folded_model, inference_model, training_model, without_values,
};
use crate::onnx::{self, ModelProto, TensorProto};
use crate::params::{Layout, ParametersError, append_le_bytes, layout};

/// The graph of an ONNX file, checked for training, without the values of weights and running
/// statistics. With parameters it becomes an ONNX file again.
#[derive(Debug)]
pub struct Definition {
    model: ModelProto,
    graph: Graph,
    kept: Vec<ValueId>,
    layout: Layout,
}

impl Definition {
    /// Checks a graph. Besides the file it takes one copy of the values for a moment.
    ///
    /// # Errors
    /// [`TrainError::Graph`] names the node that cannot be trained.
    pub fn read(onnx: &Bytes) -> Result<Self, TrainError> {
        Ok(Self::of(onnx::parse_shared(onnx)?)?.0)
    }

    /// The same with the file's parameters, as a blob.
    ///
    /// # Errors
    /// As [`Definition::read`].
    pub fn read_with_parameters(onnx: &Bytes) -> Result<(Self, Vec<u8>), TrainError> {
        let (definition, mut graph) = Self::of(onnx::parse_shared(onnx)?)?;
        let mut blob = definition.layout.header();
        blob.reserve_exact(definition.layout.byte_len() - blob.len());
        for id in &definition.kept {
            append_le_bytes(&std::mem::take(&mut graph.values[id.0].initial), &mut blob);
        }
        Ok((definition, blob))
    }

    /// The definition, and the graph with its initial values.
    pub(super) fn of(model: ModelProto) -> Result<(Self, Graph), TrainError> {
        let graph = Graph::read(&model)?;
        let model = without_values(model, &graph);
        let bare = graph.without_values();
        let mut kept: Vec<ValueId> = (0..bare.values.len())
            .map(ValueId)
            .filter(|id| bare.value(*id).origin.is_parameter())
            .collect();
        kept.sort_by(|a, b| bare.value(*a).name.cmp(&bare.value(*b).name));
        let layout = Layout::new(kept.iter().map(|id| {
            let value = bare.value(*id);
            (value.name.as_str(), value.shape.dims.as_slice())
        }));
        Ok((Self { model, graph: bare, kept, layout }, graph))
    }

    pub(super) fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Weights and running statistics, by name.
    pub(super) fn kept(&self) -> &[ValueId] {
        &self.kept
    }

    /// Names and shapes of the parameters.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Names of running statistics among the parameters.
    pub fn statistics(&self) -> impl Iterator<Item = &str> {
        let values = self.kept.iter().map(|id| self.graph.value(*id));
        values.filter(|value| value.origin != Origin::Weight).map(|value| value.name.as_str())
    }

    /// Shape of one example, `[c, h, w]` or `[d]`.
    pub fn example_shape(&self) -> &[usize] {
        &self.graph.value(self.graph.input).shape.dims
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.graph.value(self.graph.output).shape.dims[0]
    }

    /// The graph in training form with the parameters of a blob, as an ONNX file. Besides the
    /// blob and the file it takes no memory to speak of.
    ///
    /// # Errors
    /// [`ParametersError`] when the blob is not one of this graph's.
    pub fn to_training_onnx(&self, parameters: &Bytes) -> Result<Vec<u8>, ParametersError> {
        let tensors = layout::tensors(parameters, &self.layout)?;
        Ok(self.training_onnx(tensors))
    }

    /// The graph for inference with the parameters of a blob, as an ONNX file: batch
    /// normalisation uses its running statistics, training-only nodes are gone, batches may be
    /// of any size. Memory as [`Definition::to_training_onnx`].
    ///
    /// # Errors
    /// [`ParametersError`] when the blob is not one of this graph's.
    pub fn to_inference_onnx(&self, parameters: &Bytes) -> Result<Vec<u8>, ParametersError> {
        let tensors = layout::tensors(parameters, &self.layout)?;
        Ok(self.inference_onnx(tensors))
    }

    pub(super) fn training_onnx(&self, tensors: Vec<TensorProto>) -> Vec<u8> {
        training_model(&self.model, tensors).to_bytes()
    }

    pub(super) fn inference_onnx(&self, tensors: Vec<TensorProto>) -> Vec<u8> {
        inference_model(&self.model, &self.graph, tensors).to_bytes()
    }

    pub(super) fn folded_onnx(&self, tensors: Vec<TensorProto>) -> Vec<u8> {
        folded_model(&self.model, &self.graph, tensors).to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Sgd, Trainer};
    use crate::zoo;

    #[test]
    fn files_are_those_of_a_trainer_with_the_same_parameters() {
        let sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };
        for family in zoo::FAMILIES {
            let onnx = Bytes::from(zoo::build(family, [1, 12, 12], 3, 5).unwrap());
            let (definition, blob) = Definition::read_with_parameters(&onnx).unwrap();
            let mut trainer = Trainer::new(&onnx, sgd).unwrap();
            assert_eq!(trainer.parameters().to_safetensors(), blob, "{family}");
            trainer.step(&[0.5; 2 * 144], &[0, 2]).unwrap();
            let blob = Bytes::from(trainer.parameters().to_safetensors());
            let training = definition.to_training_onnx(&blob).unwrap();
            assert_eq!(training, trainer.to_training_onnx(), "{family}");
            let inference = definition.to_inference_onnx(&blob).unwrap();
            assert_eq!(inference, trainer.to_inference_onnx(), "{family}");
        }
    }

    #[test]
    fn blobs_of_other_graphs_are_refused() {
        let build = |side| Bytes::from(zoo::build("mlp", [1, side, side], 3, 5).unwrap());
        let definition = Definition::read(&build(4)).unwrap();
        let (_, other) = Definition::read_with_parameters(&build(5)).unwrap();
        let error = definition.to_training_onnx(&other.into()).unwrap_err().to_string();
        assert!(error.contains("hidden.weight"), "{error}");
        let (_, mut blob) = Definition::read_with_parameters(&build(4)).unwrap();
        let end = blob.len();
        blob[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        let error = definition.to_inference_onnx(&blob.into()).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
    }
}
