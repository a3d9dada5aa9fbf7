//! Updates that travel encoded, differences among them.

use models::federated::encoding::{Coder, Encoder, Format, Header, layout_digest};

use super::*;

fn base() -> Digest {
    Digest::parse(&format!("sha256:{:064x}", 77)).unwrap()
}

const BASE: [f32; 5] = [0.5, -0.25, 8.0, 1e-3, -3.0];

/// An update in the order of the model, `b` first.
fn encoded(format: Format, values: &[f32], difference: bool) -> Vec<u8> {
    let header = Header {
        format,
        coder: Coder::Rans,
        sparse: false,
        values: 5,
        layout: layout_digest(&model()),
        base: difference.then(|| base().to_string()),
    };
    let ordered = |values: &[f32]| [&values[4..], &values[..4]].concat();
    let values = if difference {
        values.iter().zip(BASE).map(|(value, base)| value - base).collect()
    } else {
        values.to_vec()
    };
    let mut file = Vec::new();
    let mut encoder = Encoder::dense(header, 1, &mut file);
    encoder.push(&ordered(&values), &mut file).unwrap();
    encoder.finish(&mut file).unwrap();
    file
}

/// The mean of three updates that arrive in an order, handed out beside what differences are from.
fn mean_of(blobs: &[Vec<u8>], order: [usize; 3], room: usize) -> Vec<u8> {
    let parts = [part("a", 1), part("b", 2), part("c", 5)];
    let mut fold = Fold::new(model(), room);
    fold.begin(parts.iter().map(|part| part.device.clone()).collect(), Some(base()));
    for at in order {
        arrive(&mut fold, &parts[at], &blobs[at]).unwrap();
    }
    while let Some(at) = fold.add_known(&parts) {
        fold.open_again();
        for piece in blobs[at].chunks(5) {
            fold.add_piece(&parts[at], piece).unwrap();
        }
        fold.close_again(&parts[at]).unwrap();
    }
    let length = fold.seal();
    let base = [&BASE[4..], &BASE[..4]].concat();
    let (mut blob, mut at) = (Vec::new(), 0);
    loop {
        let next = fold.next_length(20);
        let piece =
            fold.next_piece(20, fold.has_differences().then(|| &base[at..at + next])).unwrap();
        at += next;
        if piece.is_empty() {
            assert_eq!(blob.len() as u64, length);
            return blob;
        }
        blob.extend(piece);
    }
}

#[test]
fn differences_and_parameters_are_one_mean_whatever_their_order() {
    let updates: Vec<Vec<f32>> =
        [0.1_f32, 0.7, -3.3].iter().map(|x| vec![*x, x * 3.0, x / 7.0, x + 0.3, x * x]).collect();
    let plain = |at: usize| parameters(&updates[at]).to_safetensors();
    let of = |format, at: usize, difference| encoded(format, &updates[at], difference);
    let expected =
        Parameters::from_safetensors(&mean_of(&[plain(0), plain(1), plain(2)], [0, 1, 2], 100))
            .unwrap();
    for (blobs, bound) in [
        // Without loss: the same bits.
        ([of(Format::Float32, 0, false), plain(1), of(Format::Float32, 2, false)], 0.0),
        ([of(Format::Float32, 0, true), plain(1), of(Format::Float32, 2, true)], 1e-6),
        ([of(Format::Float32, 0, true), of(Format::Float16, 1, true), plain(2)], 1e-2),
        ([of(Format::BFloat16, 0, true), plain(1), of(Format::Int8 { block: 256 }, 2, true)], 0.1),
    ] {
        let first = mean_of(&blobs, [0, 1, 2], 100);
        for order in [[0, 2, 1], [1, 0, 2], [2, 1, 0]] {
            for room in [0, 5, 100] {
                assert_eq!(mean_of(&blobs, order, room), first, "{order:?} with room for {room}");
            }
        }
        let found = Parameters::from_safetensors(&first).unwrap();
        for (found, expected) in found.items().iter().zip(expected.items()) {
            for (found, expected) in found.values.iter().zip(&expected.values) {
                assert!((found - expected).abs() <= bound, "{found} is not {expected}");
            }
        }
    }
}

#[test]
fn differences_that_cannot_be_added_are_named() {
    let update = [1.0, 2.0, 3.0, 4.0, 5.0];
    let other = Digest::parse(&format!("sha256:{:064x}", 78)).unwrap();
    let good = encoded(Format::Float32, &update, true);
    for (base, blob, words) in [
        (None, good.clone(), "differences from sha256:0"),
        (Some(other), good.clone(), "expected parameters, or differences from sha256:0"),
        (Some(base()), good[..good.len() - 2].to_vec(), "0 values, expected 5"),
        (Some(base()), [good, vec![0]].concat(), "more bytes"),
    ] {
        let mut fold = Fold::new(model(), 100);
        fold.begin(vec![part("a", 1).device], base);
        let error = arrive(&mut fold, &part("a", 1), &blob).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} lacks {words:?}");
    }
}
