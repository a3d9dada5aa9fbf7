use jobs::id::{Bytes as Size, Digest};
use models::params::{Parameter, Parameters};

use super::*;

fn parameters(values: &[f32]) -> Parameters {
    let (w, b) = values.split_at(values.len() - 1);
    let item = |name: &str, values: &[f32]| Parameter {
        name: name.to_owned(),
        shape: vec![values.len()],
        values: values.to_vec(),
    };
    Parameters::new(vec![item("w", w), item("b", b)]).unwrap()
}

fn part(device: &str, examples: u64) -> Part {
    let digest = Digest::parse(&format!("sha256:{examples:064x}")).unwrap();
    let parameters = BlobRef::by_digest(digest, Size(0));
    Part { device: DeviceId::parse(device).unwrap(), parameters, examples }
}

fn model() -> Layout {
    Layout::of(&parameters(&[0.0; 5]))
}

/// Reads an update in pieces of a length that cuts values and the header.
fn arrive(fold: &mut Fold, part: &Part, blob: &[u8]) -> Result<(), ParametersError> {
    let ticket = part.examples;
    fold.open(ticket);
    for piece in blob.chunks(7) {
        fold.read(ticket, piece);
    }
    fold.close(ticket, part.clone())
}

fn mean_of(order: &[usize], room: usize) -> Vec<u8> {
    let parts = [part("a", 1), part("b", 2), part("c", 5)];
    let blobs: Vec<Vec<u8>> = [0.1_f32, 0.7, -3.3]
        .iter()
        .map(|x| parameters(&[*x, x * 3.0, x / 7.0, x + 0.3, x * x]).to_safetensors())
        .collect();
    let mut fold = Fold::new(model(), room);
    fold.begin(parts.iter().map(|part| part.device.clone()).collect());
    for at in order {
        arrive(&mut fold, &parts[*at], &blobs[*at]).unwrap();
    }
    while let Some(at) = fold.add_known(&parts) {
        fold.open_again();
        for piece in blobs[at].chunks(5) {
            fold.add_piece(&parts[at], piece).unwrap();
        }
        fold.close_again(&parts[at]).unwrap();
    }
    fold.finish().unwrap()
}

#[test]
fn the_mean_has_the_same_bits_whatever_the_order_and_the_room() {
    let expected = mean_of(&[0, 1, 2], 100);
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for room in [0, 5, 10, 100] {
            assert_eq!(mean_of(&order, room), expected, "{order:?} with room for {room}");
        }
    }
    let mean = Parameters::from_safetensors(&expected).unwrap();
    let b = mean.items()[0].values[0];
    let exact = (0.01_f64 + 2.0 * 0.49 + 5.0 * 10.89) / 8.0;
    assert!((f64::from(b) - exact).abs() < 1e-6, "{b} is not {exact}");
}

#[test]
fn a_device_that_is_not_in_the_mean_is_left_out() {
    let mut fold = Fold::new(model(), 100);
    let (a, b) = (part("a", 1), part("b", 3));
    fold.begin(vec![a.device.clone(), b.device.clone()]);
    arrive(&mut fold, &a, &parameters(&[9.0; 5]).to_safetensors()).unwrap();
    let blob = parameters(&[2.0; 5]).to_safetensors();
    arrive(&mut fold, &b, &blob).unwrap();
    // The sum has both by now; it begins anew, and the second has to be read again.
    assert_eq!(fold.add_known(std::slice::from_ref(&b)), Some(0));
    fold.open_again();
    fold.add_piece(&b, &blob).unwrap();
    fold.close_again(&b).unwrap();
    let mean = Parameters::from_safetensors(&fold.finish().unwrap()).unwrap();
    assert_eq!(mean.items()[1].values, [2.0; 4]);
}

#[test]
fn bad_updates_are_named() {
    let cases = [
        (parameters(&[1.0, f32::NAN, 1.0, 1.0, 1.0]).to_safetensors(), "\"w\""),
        (parameters(&[1.0; 6]).to_safetensors(), "shape"),
        (Parameters::new(Vec::new()).unwrap().to_safetensors(), "missing"),
        (parameters(&[1.0; 5]).to_safetensors()[..90].to_vec(), "ends after"),
        (b"not parameters at all".to_vec(), "header"),
        ([parameters(&[1.0; 5]).to_safetensors(), vec![0; 8]].concat(), "more bytes"),
    ];
    for (blob, expected) in cases {
        let mut fold = Fold::new(model(), 100);
        fold.begin(vec![part("a", 1).device]);
        let error = arrive(&mut fold, &part("a", 1), &blob).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}
