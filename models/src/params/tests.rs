use super::*;
use proptest::prelude::*;

fn parameter(name: &str, shape: &[usize], first: f32) -> Parameter {
    let count: u16 = shape.iter().product::<usize>().try_into().unwrap();
    let values = (0..count).map(|i| first + f32::from(i) * 0.5).collect();
    Parameter { name: name.to_owned(), shape: shape.to_vec(), values }
}

fn sample() -> Parameters {
    Parameters::new(vec![
        parameter("w", &[2, 3], 1.0),
        parameter("b", &[3], -1.0),
        parameter("scalar", &[], 7.0),
        parameter("none", &[0, 4], 0.0),
    ])
    .unwrap()
}

#[test]
fn safetensors_round_trip_in_name_order() {
    let parameters = sample();
    let names: Vec<_> = parameters.items().iter().map(|item| item.name.as_str()).collect();
    assert_eq!(names, ["b", "none", "scalar", "w"]);
    assert_eq!(parameters.total_len(), 10);
    assert_eq!(parameters.find("w").unwrap().shape, [2, 3]);
    assert_eq!(parameters.find("x"), None);
    let bytes = parameters.to_safetensors();
    assert_eq!(Parameters::from_safetensors(&bytes).unwrap(), parameters);
    let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(other.tensor("w").unwrap().data()[..4], 1.0_f32.to_le_bytes());
}

#[test]
fn bytes_are_those_of_the_safetensors_crate() {
    let parameters = sample();
    let raw: Vec<Vec<u8>> = parameters
        .items()
        .iter()
        .map(|item| item.values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views: Vec<_> = parameters
        .items()
        .iter()
        .zip(&raw)
        .map(|(item, raw)| {
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                item.shape.clone(),
                raw,
            );
            (item.name.clone(), view.unwrap())
        })
        .collect();
    assert_eq!(parameters.to_safetensors(), safetensors::serialize(views, None).unwrap());
}

#[test]
fn a_blob_is_read_in_pieces() {
    // Tensors that end within pieces, on one's end, and none.
    let shapes: [&[usize]; 5] = [&[3], &[70_000], &[0], &[1 << 16], &[2, 100_000]];
    let make = |first: f32| {
        let tensor = |(at, shape): (u8, &&[usize])| Parameter {
            name: format!("t{at}"),
            shape: shape.to_vec(),
            values: (0..shape.iter().product())
                .map(|i: usize| first + f32::from(u16::try_from(i % 1000).unwrap()))
                .collect(),
        };
        Parameters::new((0..).zip(&shapes).map(tensor).collect()).unwrap()
    };
    let (before, after) = (make(1.0), make(3.5));
    let bytes = before.to_safetensors();
    let blob = ParametersBlob::parse(&bytes).unwrap();
    let all: Vec<f32> = before.items().iter().flat_map(|item| item.values.clone()).collect();
    let mut found = Vec::new();
    for (start, values) in blob.pieces() {
        assert_eq!(start, found.len());
        found.extend(values);
    }
    assert_eq!(found, all);
    let mut moved = after.clone();
    moved.combine(&blob, |after, before| after - before);
    assert_eq!(moved.values_mut().concat(), vec![2.5; all.len()]);
    assert_eq!(blob.check_like(&Layout::of(&after)), Ok(()));
    assert!(blob.check_like(&Layout::of(&sample())).is_err());
    let mut spoiled = bytes.clone();
    let last = spoiled.len() - 4;
    spoiled[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = ParametersBlob::parse(&spoiled).unwrap().check_like(&Layout::of(&after));
    assert!(error.unwrap_err().to_string().contains("\"t4\" has the value NaN at index 199999"));
    assert!(ParametersBlob::parse(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn a_name_twice_or_a_wrong_length_is_refused() {
    let twice = vec![parameter("a", &[1], 0.0), parameter("a", &[1], 1.0)];
    assert_eq!(Parameters::new(twice), Err(ParametersError::Unexpected("a".to_owned())));
    let mut short = parameter("a", &[3], 0.0);
    short.values.pop();
    assert!(matches!(Parameters::new(vec![short]), Err(ParametersError::Format(_))));
}

#[test]
fn differences_from_the_model_are_named() {
    let model = sample();
    assert_eq!(model.check_like(&Layout::of(&model)), Ok(()));
    let without = |name: &str| {
        let items = model.items().iter().filter(|item| item.name != name).cloned().collect();
        Parameters::new(items).unwrap()
    };
    for name in ["b", "scalar", "w"] {
        let less = without(name);
        assert_eq!(
            less.check_like(&Layout::of(&model)),
            Err(ParametersError::Missing(name.to_owned()))
        );
        assert_eq!(
            model.check_like(&Layout::of(&less)),
            Err(ParametersError::Unexpected(name.to_owned()))
        );
    }
    let mut items = model.items().to_vec();
    items[3].shape = vec![3, 2];
    let error = Parameters::new(items).unwrap().check_like(&Layout::of(&model)).unwrap_err();
    assert_eq!(error.to_string(), "parameter \"w\" has shape [3, 2], the model has [2, 3]");
    let mut items = model.items().to_vec();
    items[3].values[4] = f32::INFINITY;
    let error = Parameters::new(items).unwrap().check_like(&Layout::of(&model)).unwrap_err();
    assert_eq!(error.to_string(), "parameter \"w\" has the value inf at index 4");
}

#[test]
fn another_order_in_the_blob_reads_but_does_not_stream() {
    let b = r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let mut bytes = (b.len() as u64).to_le_bytes().to_vec();
    bytes.extend(b.as_bytes());
    bytes.extend([2.0_f32, 1.0].iter().flat_map(|value| value.to_le_bytes()));
    let parameters = Parameters::from_safetensors(&bytes).unwrap();
    assert_eq!(parameters.find("w").unwrap().values, [2.0]);
    let layout = Layout::parse(&bytes).unwrap().unwrap();
    let error = layout.check_like(&Layout::of(&parameters)).unwrap_err();
    assert!(error.to_string().contains("name order"), "{error}");
}

#[test]
fn foreign_bytes_are_refused_with_a_reason() {
    let text = Parameters::from_safetensors(b"<html><body>404</body></html>").unwrap_err();
    assert!(text.to_string().contains("safetensors header"), "{text}");
    let mut half = (2_u64).to_le_bytes().to_vec();
    half.extend(b"{}");
    assert_eq!(Parameters::from_safetensors(&half).unwrap(), Parameters::default());
    half.push(0);
    assert!(Parameters::from_safetensors(&half).is_err());
    let json = r#"{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend([0; 4]);
    let error = Parameters::from_safetensors(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "not parameters: tensor \"w\" is of F16, expected F32");
}

proptest! {
    #[test]
    fn a_blob_read_in_pieces_is_the_blob_read_whole(cut in 0_usize..400) {
        let parameters = sample();
        let bytes = parameters.to_safetensors();
        let layout = Layout::of(&parameters);
        prop_assert_eq!(layout.byte_len(), bytes.len());
        let cut = cut.min(bytes.len());
        let parsed = Layout::parse(&bytes[..cut]).unwrap();
        prop_assert_eq!(parsed.is_some(), cut >= layout.data_start());
        if let Some(parsed) = parsed {
            prop_assert_eq!(parsed, layout);
        }
    }

    #[test]
    fn damaged_blobs_never_panic(at in 0_usize..400, byte: u8, cut in 0_usize..400) {
        let mut bytes = sample().to_safetensors();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut.max(1));
        if let Ok(parameters) = Parameters::from_safetensors(&bytes) {
            prop_assert!(parameters.total_len() <= bytes.len() / 4);
        }
    }
}

#[test]
fn some_take_the_place_of_others() {
    let mut parameters = sample();
    let own = Parameters::new(vec![parameter("w", &[2, 3], 9.0)]).unwrap();
    parameters.replace(own.clone()).unwrap();
    assert_eq!(parameters.named(&["w".to_owned(), "x*".to_owned()]), own);
    assert_eq!(parameters.find("b"), sample().find("b"));
    let wide = Parameters::new(vec![parameter("b", &[4], 0.0)]).unwrap();
    assert!(matches!(parameters.replace(wide), Err(ParametersError::Shape { .. })));
    let other = Parameters::new(vec![parameter("x", &[1], 0.0)]).unwrap();
    assert_eq!(parameters.replace(other), Err(ParametersError::Unexpected("x".to_owned())));
}
