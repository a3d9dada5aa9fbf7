use models::artifact::TensorInfo;

use super::*;

/// Gives back its input, in runs whose sizes it remembers.
#[derive(Debug)]
struct Echo {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// Shape of the outputs without the batch; `None`: the input's.
    fixed: Option<Vec<usize>>,
    runs: Vec<usize>,
}

impl Echo {
    fn new(shape: &[i64]) -> Self {
        let info = |name: &str| TensorInfo {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: shape.to_vec(),
        };
        Self { inputs: vec![info("x")], outputs: vec![info("y")], fixed: None, runs: Vec::new() }
    }
}

impl Model for Echo {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[View<'_>], body: &mut Vec<u8>) -> Result<Vec<Header>, Refusal> {
        self.runs.push(inputs[0].shape[0]);
        let shape = self.fixed.clone().unwrap_or_else(|| inputs[0].shape.to_vec());
        let len = shape.iter().product::<usize>() * 4;
        body.extend_from_slice(&inputs[0].bytes[..len]);
        Ok(vec![Header { datatype: "FP32".to_owned(), shape }])
    }
}

fn bytes(examples: usize) -> Vec<u8> {
    (0..examples * 2).flat_map(|at| u32::try_from(at).unwrap().to_le_bytes()).collect()
}

fn ask(model: &mut Echo, shape: &[usize], bytes: &[u8]) -> Result<(Vec<Header>, Vec<u8>), String> {
    let mut body = Vec::new();
    let view = View { datatype: "FP32", shape, bytes };
    run(model, &[view], &mut body).map(|headers| (headers, body)).map_err(|it| it.to_string())
}

#[test]
fn open_batches_run_whole_until_they_are_very_large() {
    let mut model = Echo::new(&[-1, 2]);
    for examples in [1, BATCH_MAX, BATCH_MAX + 1] {
        let (headers, body) = ask(&mut model, &[examples, 2], &bytes(examples)).unwrap();
        assert_eq!((headers[0].shape.as_slice(), body), (&[examples, 2][..], bytes(examples)));
    }
    assert_eq!(model.runs, [1, BATCH_MAX, BATCH_MAX, 1]);
}

#[test]
fn fixed_batches_are_cut_and_filled() {
    let mut model = Echo::new(&[2, 2]);
    for examples in [1, 2, 5] {
        let (headers, body) = ask(&mut model, &[examples, 2], &bytes(examples)).unwrap();
        assert_eq!((headers[0].shape.as_slice(), body), (&[examples, 2][..], bytes(examples)));
    }
    assert_eq!(model.runs, [2; 5]);
    let mut single = Echo { fixed: Some(vec![2]), ..Echo::new(&[1, 2]) };
    let (headers, body) = ask(&mut single, &[3, 2], &bytes(3)).unwrap();
    assert_eq!((headers[0].shape.as_slice(), body), (&[3, 2][..], bytes(3)));
    let mut odd = Echo { fixed: Some(vec![3]), ..Echo::new(&[2, 2]) };
    let refused = ask(&mut odd, &[3, 2], &bytes(3)).unwrap_err();
    assert!(refused.contains("at most 2 examples"), "{refused}");
}

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let mut model = Echo::new(&[-1, 2]);
    for (shape, bytes) in [(&[1, 3][..], 12), (&[2], 8), (&[0, 2], 0)] {
        let refused = ask(&mut model, shape, &vec![0; bytes]).unwrap_err();
        assert!(refused.contains("\"x\"") && refused.contains("[-1, 2]"), "{refused}");
    }
    let view = View { datatype: "INT32", shape: &[1, 2], bytes: &[0; 8] };
    let refused = run(&mut model, &[view], &mut Vec::new()).unwrap_err().to_string();
    assert!(refused.contains("found INT32"), "{refused}");
    let refused = run(&mut model, &[], &mut Vec::new()).unwrap_err().to_string();
    assert!(refused.contains("1 inputs (x), found 0"), "{refused}");
    assert!(model.runs.is_empty());
}
