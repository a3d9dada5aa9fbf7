//! Normalisation as a part of a model, for inputs that are given as they are measured.

use super::{FLOAT, GraphProto, ModelProto, NodeProto, TensorProto};

/// Why a model cannot normalise its input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NormalizeError {
    /// Its input is not one batch of `f32` with known extents.
    #[error("the input cannot be normalised: expected one FLOAT tensor [N, ...] of known extents")]
    Input,
    /// Neither one value nor one for each value of an example.
    #[error("{found} values of mean or std, expected 1 or {expected}")]
    Count {
        /// Values given.
        found: usize,
        /// Values of an example.
        expected: usize,
    },
}

impl ModelProto {
    /// Puts `(x - mean) / std` before whatever takes the model's input `[N, ...]`; `mean` and
    /// `std` have one value, or one for each value of an example. Values that change nothing put
    /// nothing there.
    ///
    /// # Errors
    /// [`NormalizeError`]; the model is then as it was.
    pub fn normalize_input(&mut self, mean: &[f32], std: &[f32]) -> Result<(), NormalizeError> {
        let graph = self.graph.as_mut().ok_or(NormalizeError::Input)?;
        let (input, shape) = input_of(graph).ok_or(NormalizeError::Input)?;
        let expected = shape.iter().product();
        for values in [mean, std] {
            if values.len() != 1 && values.len() != expected {
                return Err(NormalizeError::Count { found: values.len(), expected });
            }
        }
        if mean.iter().all(|mean| mean.abs() <= 0.0)
            && std.iter().all(|std| (std - 1.0).abs() <= 0.0)
        {
            return Ok(());
        }
        let [centred, normalized] = ["centred", "normalized"].map(|word| free(graph, word));
        for name in graph.node.iter_mut().flat_map(|node| &mut node.input) {
            if *name == input {
                name.clone_from(&normalized);
            }
        }
        for (at, (operator, from, values, to)) in
            [("Sub", &input, mean, &centred), ("Div", &centred, std, &normalized)]
                .into_iter()
                .enumerate()
        {
            let name = format!("{to}.values");
            let shape = if values.len() == 1 { &[][..] } else { &shape[..] };
            graph.initializer.push(TensorProto::from_f32(&name, shape, values));
            graph.node.insert(at, NodeProto::new(to, operator, &[from, &name], &[to]));
        }
        Ok(())
    }
}

/// Name and example shape of the one input that is no weight.
fn input_of(graph: &GraphProto) -> Option<(String, Vec<usize>)> {
    let weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let mut inputs = graph.input.iter().filter(|input| !weight(&input.name));
    let (Some(input), None) = (inputs.next(), inputs.next()) else { return None };
    let (FLOAT, extents) = input.tensor()? else { return None };
    let shape: Vec<usize> = extents.get(1..)?.iter().copied().collect::<Option<_>>()?;
    Some((input.name.clone(), shape))
}

/// A name that nothing in the graph has.
fn free(graph: &GraphProto, word: &str) -> String {
    let taken = |name: &str| {
        let values = graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output));
        let names = graph.node.iter().map(|node| &node.name).chain(values);
        names.chain(graph.input.iter().map(|input| &input.name)).any(|known| known == name)
    };
    let mut name = word.to_owned();
    while taken(&name) {
        name.push('_');
    }
    name
}

#[cfg(feature = "tract")]
#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Engine as _;
    use crate::engine::tract::Tract;
    use crate::onnx;
    use crate::tensor::Tensor;
    use crate::zoo;

    fn logits(model: &[u8], x: Vec<f32>) -> Vec<f32> {
        let session = Tract.load(model).unwrap();
        let input = Tensor::f32(&[2, 1, 1, 3], x).unwrap();
        session.run(&[input]).unwrap()[0].as_f32().unwrap().to_vec()
    }

    #[test]
    fn answers_are_those_of_normalised_inputs() {
        let plain = zoo::build("mlp", [1, 1, 3], 4, 1).unwrap();
        let (mean, std) = ([10.0, 20.0, 30.0], [2.0, 4.0, 0.5]);
        let raw = vec![12.0, 16.0, 30.5, 8.0, 28.0, 29.0];
        let normalized = vec![1.0, -1.0, 1.0, -1.0, 2.0, -2.0];
        let mut model = onnx::parse(&plain).unwrap();
        model.normalize_input(&mean, &std).unwrap();
        assert_eq!(logits(&model.to_bytes(), raw), logits(&plain, normalized));
        let mut model = onnx::parse(&plain).unwrap();
        model.normalize_input(&[0.0], &[1.0; 3]).unwrap();
        assert_eq!(model, onnx::parse(&plain).unwrap());
        model.normalize_input(&[1.0], &[2.0]).unwrap();
        let (raw, normalized) = (vec![3.0; 6], vec![1.0; 6]);
        assert_eq!(logits(&model.to_bytes(), raw), logits(&plain, normalized));
    }

    #[test]
    fn values_must_fit_the_input() {
        let mut model = onnx::parse(&zoo::build("mlp", [1, 1, 3], 4, 1).unwrap()).unwrap();
        let before = model.clone();
        let refused = model.normalize_input(&[1.0; 2], &[1.0]);
        assert_eq!(refused, Err(NormalizeError::Count { found: 2, expected: 3 }));
        assert_eq!(model, before);
        model.graph.as_mut().unwrap().input.clear();
        assert_eq!(model.normalize_input(&[1.0], &[1.0]), Err(NormalizeError::Input));
    }
}
