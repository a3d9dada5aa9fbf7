mod pytorch;

use super::*;
use crate::zoo;

const SGD: Sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4 };

fn batch(trainer: &Trainer, n: usize) -> (Vec<f32>, Vec<u32>) {
    let len: usize = trainer.example_shape().iter().product();
    let classes = trainer.classes();
    let labels: Vec<u32> = (0..n).map(|i| u32::try_from(i % classes).unwrap()).collect();
    let pixel = |i: usize| {
        let wave = u16::try_from((i * 37 + i / len * 101) % 255).unwrap();
        f32::from(wave) / 127.5 - 1.0
    };
    ((0..n * len).map(pixel).collect(), labels)
}

#[test]
fn every_family_learns_on_small_and_usual_pictures() {
    for family in zoo::FAMILIES {
        for shape in [[1, 8, 8], [3, 32, 32]] {
            let onnx = zoo::build(family, shape, 4, 7).unwrap();
            let mut trainer = Trainer::new(&onnx, SGD).unwrap();
            let (examples, labels) = batch(&trainer, 8);
            let first = trainer.step(&examples, &labels).unwrap();
            let mut last = first;
            for _ in 0..30 {
                last = trainer.step(&examples, &labels).unwrap();
            }
            assert!(last.loss < first.loss / 2.0, "{family} {shape:?}: {first:?} {last:?}");
            assert_eq!(last.examples, 8);
        }
    }
}
