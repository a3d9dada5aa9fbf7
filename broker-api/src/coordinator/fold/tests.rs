use jobs::id::{Bytes as Size, Digest};
use models::params::{Parameter, Parameters};

use super::*;

mod encoded;

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
    Part {
        device: DeviceId::parse(device).unwrap(),
        parameters,
        examples,
        steps: 1,
        initial_loss: 0.0,
        control_change: None,
        held: false,
        crc32: None,
        base: None,
    }
}

fn model() -> Layout {
    Layout::of(&parameters(&[0.0; 5]))
}

/// Reads an update in pieces of a length that cuts values and the header.
fn arrive(fold: &mut Fold, part: &Part, blob: &[u8]) -> Result<(), ContentError> {
    let ticket = part.examples;
    fold.open(ticket, part.clone());
    for piece in blob.chunks(7) {
        fold.read(ticket, piece);
    }
    fold.close(ticket)
}

fn three() -> ([Part; 3], Vec<Vec<u8>>) {
    let blobs = [0.1_f32, 0.7, -3.3]
        .iter()
        .map(|x| parameters(&[*x, x * 3.0, x / 7.0, x + 0.3, x * x]).to_safetensors());
    ([part("a", 1), part("b", 2), part("c", 5)], blobs.collect())
}

fn begun(parts: &[Part], room: usize) -> Fold {
    let mut fold = Fold::new(model(), room);
    fold.begin(parts.iter().map(|part| part.device.clone()).collect(), None);
    fold
}

/// The mean of updates, those that are not known read again.
fn finished(mut fold: Fold, parts: &[Part], blobs: &[Vec<u8>]) -> Vec<u8> {
    while let Some(at) = fold.add_known(parts) {
        fold.open_again();
        for piece in blobs[at].chunks(5) {
            fold.add_piece(&parts[at], piece).unwrap();
        }
        fold.close_again(&parts[at]).unwrap();
    }
    whole(&mut fold).unwrap()
}

/// The mean as a blob, in pieces of a length that cuts the header.
fn whole(fold: &mut Fold) -> Result<Vec<u8>, ParametersError> {
    let length = fold.seal();
    let mut blob = Vec::new();
    loop {
        let piece = fold.next_piece(20, None)?;
        if piece.is_empty() {
            assert_eq!(blob.len() as u64, length);
            return Ok(blob);
        }
        assert!(piece.len() == 20 || (blob.len() + piece.len()) as u64 == length);
        blob.extend(piece);
    }
}

fn mean_of(order: &[usize], room: usize) -> Vec<u8> {
    let (parts, blobs) = three();
    let mut fold = begun(&parts, room);
    for at in order {
        arrive(&mut fold, &parts[*at], &blobs[*at]).unwrap();
    }
    finished(fold, &parts, &blobs)
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
fn updates_that_are_read_side_by_side_are_added_in_order() {
    let (parts, blobs) = three();
    for room in [0, 5, 100] {
        let mut fold = begun(&parts, room);
        for (ticket, part) in (0..).zip(&parts) {
            fold.open(ticket, part.clone());
        }
        let longest = blobs.iter().map(Vec::len).max().unwrap();
        for at in (0..longest).step_by(11) {
            for (ticket, blob) in (0..).zip(&blobs) {
                fold.read(ticket, &blob[at.min(blob.len())..(at + 11).min(blob.len())]);
            }
        }
        for ticket in [1, 2, 0] {
            fold.close(ticket).unwrap();
        }
        assert_eq!(finished(fold, &parts, &blobs), mean_of(&[0, 1, 2], 100), "room for {room}");
    }
}

#[test]
fn updates_are_too_early_while_they_have_no_place() {
    let (parts, blobs) = three();
    let early = |fold: &Fold| parts.clone().map(|part| fold.is_too_early(&part.device));
    let mut fold = begun(&parts, 5);
    assert_eq!(early(&fold), [false; 3], "one of them can wait");
    arrive(&mut fold, &parts[2], &blobs[2]).unwrap();
    assert_eq!(early(&fold), [false, true, true], "the room is taken");
    fold.open(7, parts[0].clone());
    fold.read(7, &blobs[0]);
    assert_eq!((early(&fold), fold.turns()), ([true; 3], (0, true)), "the first is being added");
    fold.close(7).unwrap();
    assert_eq!((early(&fold), fold.turns()), ([false, false, true], (1, false)));
    arrive(&mut fold, &parts[1], &blobs[1]).unwrap();
    assert_eq!((early(&fold), fold.turns()), ([false; 3], (3, false)), "the third waited");
    assert_eq!(finished(fold, &parts, &blobs), mean_of(&[0, 1, 2], 100));
    let stranger = part("d", 1).device;
    assert!(!begun(&parts, 0).is_too_early(&stranger), "its turn never comes");
    let mut looks = Fold::without_mean(model());
    looks.begin(parts.iter().map(|part| part.device.clone()).collect(), None);
    assert_eq!(early(&looks), [false; 3], "nothing is added");
}

#[test]
fn of_many_updates_fewer_wait_in_memory() {
    let waiting = |devices: usize, room: usize| {
        let parts: Vec<Part> = (0..devices).map(|at| part(&format!("d{at:03}"), 1)).collect();
        let mut fold = begun(&parts, room);
        let early = parts[1..].iter().zip(0..);
        early
            .take_while(|(part, ticket)| {
                let too_early = fold.is_too_early(&part.device);
                fold.open(*ticket, (*part).clone());
                !too_early
            })
            .count()
    };
    // A model has 5 values.
    assert_eq!((waiting(MANY, 40), waiting(MANY + 1, 40)), (8, 2));
    assert_eq!((waiting(MANY + 1, 9), waiting(MANY + 1, 4)), (1, 0));
}

#[test]
fn an_update_that_was_added_in_part_leaves_no_trace() {
    let (parts, blobs) = three();
    let bad = parameters(&[1e30, 1.0, 1.0, 1.0, f32::NAN]).to_safetensors();
    let expected = {
        let parts = [parts[0].clone(), parts[2].clone()];
        finished(begun(&parts, 0), &parts, &[blobs[0].clone(), blobs[2].clone()])
    };
    for cut in [bad.len(), bad.len() - 6] {
        let mut fold = begun(&parts, 100);
        arrive(&mut fold, &parts[0], &blobs[0]).unwrap();
        arrive(&mut fold, &parts[1], &bad[..cut]).unwrap_err();
        arrive(&mut fold, &parts[2], &blobs[2]).unwrap();
        let left = [parts[0].clone(), parts[2].clone()];
        assert_eq!(finished(fold, &left, &[blobs[0].clone(), blobs[2].clone()]), expected);
    }
    // The first of all, of which nothing was counted before.
    let mut fold = begun(&parts, 100);
    arrive(&mut fold, &parts[0], &bad).unwrap_err();
    let left = [parts[1].clone(), parts[2].clone()];
    let blobs_left = [blobs[1].clone(), blobs[2].clone()];
    let clean = finished(begun(&left, 0), &left, &blobs_left);
    assert_eq!(finished(fold, &left, &blobs_left), clean);
    // One of the round before, cut off by the next.
    let mut fold = begun(&parts, 100);
    fold.open(7, parts[0].clone());
    fold.read(7, &blobs[0][..blobs[0].len() - 3]);
    fold.begin(left.iter().map(|part| part.device.clone()).collect(), None);
    assert_eq!(finished(fold, &left, &blobs_left), clean);
    // One that cannot be read to its end, and one that is still being read at the end.
    for forgotten in [true, false] {
        let mut fold = begun(&parts, 100);
        arrive(&mut fold, &parts[0], &blobs[0]).unwrap();
        fold.open(7, parts[1].clone());
        fold.read(7, &blobs[1][..blobs[1].len() - 3]);
        if forgotten {
            fold.forget(7);
        }
        arrive(&mut fold, &parts[2], &blobs[2]).unwrap();
        let left = [parts[0].clone(), parts[2].clone()];
        assert_eq!(finished(fold, &left, &[blobs[0].clone(), blobs[2].clone()]), expected);
    }
}

#[test]
fn a_late_update_does_not_get_into_a_mean_that_is_handed_out() {
    let (parts, blobs) = three();
    let expected = {
        let two = &parts[..2];
        finished(begun(two, 0), two, &blobs[..2])
    };
    let mut fold = begun(&parts, 100);
    arrive(&mut fold, &parts[0], &blobs[0]).unwrap();
    arrive(&mut fold, &parts[1], &blobs[1]).unwrap();
    assert_eq!(fold.add_known(&parts[..2]), None);
    fold.open(7, parts[2].clone());
    fold.read(7, &blobs[2]);
    fold.seal();
    let mut blob = fold.next_piece(12, None).unwrap();
    fold.close(7).unwrap();
    loop {
        let piece = fold.next_piece(12, None).unwrap();
        if piece.is_empty() {
            break;
        }
        blob.extend(piece);
    }
    assert_eq!(blob, expected);
}

#[test]
fn a_device_that_is_not_in_the_mean_is_left_out() {
    let mut fold = Fold::new(model(), 100);
    let (a, b) = (part("a", 1), part("b", 3));
    fold.begin(vec![a.device.clone(), b.device.clone()], None);
    arrive(&mut fold, &a, &parameters(&[9.0; 5]).to_safetensors()).unwrap();
    let blob = parameters(&[2.0; 5]).to_safetensors();
    arrive(&mut fold, &b, &blob).unwrap();
    // The sum has both by now; it begins anew, and the second has to be read again.
    assert_eq!(fold.add_known(std::slice::from_ref(&b)), Some(0));
    fold.open_again();
    fold.add_piece(&b, &blob).unwrap();
    fold.close_again(&b).unwrap();
    let mean = Parameters::from_safetensors(&whole(&mut fold).unwrap()).unwrap();
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
        fold.begin(vec![part("a", 1).device], None);
        let error = arrive(&mut fold, &part("a", 1), &blob).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}
