//! What is trained, apart from the values of its weights.

use bytes::Bytes;

use super::TrainError;
use crate::federated::statistics::Statistics;
use crate::graph::{
    Graph, GraphError, Node, Origin, ValueId, folded_model, inference_model, training_model,
    without_values,
};
use crate::onnx::{self, ModelProto, TensorProto};
use crate::params::{Layout, ParametersError, append_le_bytes, layout};

mod bare;

/// The graph of an ONNX file, checked for training, without the values of weights and running
/// statistics. With parameters it becomes an ONNX file again.
#[derive(Debug)]
pub struct Definition {
    model: ModelProto,
    graph: Graph,
    kept: Vec<ValueId>,
    layout: Layout,
    /// Whether the file had no values of parameters.
    bare: bool,
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
    /// As [`Definition::read`], and [`GraphError::Graph`] for a [bare](Self::to_bare_onnx) file.
    pub fn read_with_parameters(onnx: &Bytes) -> Result<(Self, Vec<u8>), TrainError> {
        let (definition, mut graph) = Self::of(onnx::parse_shared(onnx)?)?;
        if definition.bare {
            let text = "its parameters are kept apart from it: give a file that has them";
            return Err(GraphError::Graph(text.to_owned()).into());
        }
        let mut blob = definition.layout.header();
        blob.reserve_exact(definition.layout.byte_len() - blob.len());
        for id in &definition.kept {
            append_le_bytes(&std::mem::take(&mut graph.values[id.0].initial), &mut blob);
        }
        Ok((definition, blob))
    }

    /// The definition, and the graph with its initial values.
    pub(super) fn of(mut model: ModelProto) -> Result<(Self, Graph), TrainError> {
        let bare = bare::fill(&mut model)?;
        let graph = Graph::read(&model)?;
        let model = without_values(model, &graph);
        let empty = graph.without_values();
        let mut kept: Vec<ValueId> = (0..empty.values.len())
            .map(ValueId)
            .filter(|id| empty.value(*id).origin.is_parameter())
            .collect();
        kept.sort_by(|a, b| empty.value(*a).name.cmp(&empty.value(*b).name));
        let layout = Layout::new(kept.iter().map(|id| {
            let value = empty.value(*id);
            (value.name.as_str(), value.shape.dims.as_slice())
        }));
        Ok((Self { model, graph: empty, kept, layout, bare }, graph))
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
    pub fn statistics_names(&self) -> impl Iterator<Item = &str> {
        let values = self.kept.iter().map(|id| self.graph.value(*id));
        values.filter(|value| value.origin != Origin::Weight).map(|value| value.name.as_str())
    }

    /// Which values of the parameters are running statistics.
    pub fn statistics(&self) -> Statistics {
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        // Spans are in the order of what is kept; normalisations may share statistics.
        for (id, span) in self.kept.iter().zip(self.layout.spans()) {
            let is = |at: usize| {
                let states = |node: &Node| node.states.get(at) == Some(id);
                self.graph.nodes.iter().any(states)
            };
            if is(1) {
                variances.push(span.elements.clone());
            } else if is(0) {
                means.push(span.elements.clone());
            }
        }
        Statistics::new(means, variances)
    }

    /// Shape of one example, `[c, h, w]` or `[d]`.
    pub fn example_shape(&self) -> &[usize] {
        &self.graph.value(self.graph.input).shape.dims
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.graph.value(self.graph.output).shape.dims[0]
    }

    /// The graph in training form without any parameters, for those who get these apart: a small
    /// file, which only [`Definition::read`] and a [`Trainer`](super::Trainer) take, with zeros in
    /// their place.
    pub fn to_bare_onnx(&self) -> Vec<u8> {
        bare::marked(self.model.clone()).to_bytes()
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
    use crate::params::Parameters;
    use crate::train::{Sgd, Trainer};
    use crate::zoo;

    #[test]
    fn statistics_are_those_of_normalisations() {
        for (family, layers) in [("lenet", 0), ("resnet8", 9)] {
            let onnx = Bytes::from(zoo::build(family, [1, 12, 12], 3, 5).unwrap());
            let definition = Definition::read(&onnx).unwrap();
            let layout = definition.layout();
            let mut values = vec![-1.0; layout.total_len()];
            let statistics = definition.statistics();
            statistics.put(0, &vec![-2.0; layout.total_len()], &mut values);
            statistics.bound(0, &mut values);
            let mut found = 0;
            for span in layout.spans() {
                let expected = match span.name.rsplit('.').next() {
                    Some("running_mean") => -2.0,
                    Some("running_var") => 0.0,
                    _ => -1.0,
                };
                found += usize::from(span.name.ends_with(".running_var"));
                let values = &values[span.elements.clone()];
                assert!(
                    values.iter().all(|value| (value - expected).abs() < 1e-9),
                    "{}",
                    span.name
                );
            }
            assert_eq!(found, layers, "{family}");
        }
    }

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
    fn a_bare_file_is_small_and_trains_with_parameters_as_the_whole_one_does() {
        for (family, shape) in
            [("mlp", [1, 8, 8]), ("lenet", [1, 28, 28]), ("resnet8", [3, 32, 32])]
        {
            let whole: Bytes = crate::zoo::build(family, shape, 10, 3).unwrap().into();
            let (definition, parameters) = Definition::read_with_parameters(&whole).unwrap();
            let bare: Bytes = definition.to_bare_onnx().into();
            assert!(bare.len() < whole.len() / 3, "{family}: {} of {}", bare.len(), whole.len());
            let read = Definition::read(&bare).unwrap();
            assert_eq!(read.layout(), definition.layout());
            assert_eq!(read.to_bare_onnx(), bare, "as often as one likes");
            let parameters = Bytes::from(parameters);
            let file = |of: &Definition| of.to_training_onnx(&parameters).unwrap();
            assert_eq!(file(&read), file(&definition), "{family}: no mark remains");
            let trained = |onnx: &[u8]| {
                let sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };
                let mut trainer = Trainer::new(onnx, sgd).unwrap();
                trainer
                    .set_parameters(&Parameters::from_safetensors(&parameters).unwrap())
                    .unwrap();
                let values: Vec<f32> = (0..2 * shape.iter().product::<usize>())
                    .map(|at| f32::from(u16::try_from(at % 17).unwrap()) / 17.0)
                    .collect();
                trainer.step(&values, &[1, 7]).unwrap();
                trainer.parameters().to_safetensors()
            };
            assert_eq!(trained(&bare), trained(&whole), "{family}");
        }
    }

    #[test]
    fn bare_files_without_parameters_or_of_impossible_size_are_refused() {
        let whole: Bytes = crate::zoo::build("mlp", [1, 2, 2], 2, 3).unwrap().into();
        let definition = Definition::read(&whole).unwrap();
        let bare = definition.to_bare_onnx();
        let said = |error: TrainError| error.to_string();
        let error = Definition::read_with_parameters(&bare.clone().into()).map(drop).unwrap_err();
        assert!(said(error).contains("kept apart"));
        let mut huge = onnx::parse(&bare).unwrap();
        let tensors = &mut huge.graph.as_mut().unwrap().initializer;
        for tensor in tensors {
            tensor.dims = vec![1 << 20, 1 << 12];
        }
        let error = Definition::read(&huge.to_bytes().into()).map(drop).unwrap_err();
        assert!(said(error).contains("too large"));
        let mut unmarked = onnx::parse(&bare).unwrap();
        unmarked.metadata_props.clear();
        Definition::read(&unmarked.to_bytes().into()).map(drop).unwrap_err();
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
