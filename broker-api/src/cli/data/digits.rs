//! The handwritten digits that the `smartcore` crate carries.
//!
//! Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
//! Learning Repository, 1998: the 1,797 examples of its test part.

use models::dataset::{Dataset, Examples, Normalization};

/// Pixels across and down.
const SIDE: usize = 8;
/// The largest pixel value in the source.
const PIXEL_MAX: f32 = 16.0;

/// All 1,797 digits, pixels scaled from 0..=16 to 0..=255; there is no test part yet.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "pixels are 0 to 255 and labels 0 to 9 once scaled and clamped"
)]
pub(super) fn load() -> Dataset {
    let source = smartcore::dataset::digits::load_dataset();
    let scale = |value: &f32| (value * 255.0 / PIXEL_MAX).round().clamp(0.0, 255.0) as u8;
    let labels = source.target.iter().map(|label| label.clamp(0.0, 9.0) as u32);
    let pixels = source.data.iter().map(scale);
    let train = Examples::pictures([1, SIDE, SIDE], pixels.collect(), labels.collect());
    let test = Examples { shape: train.shape, ..Examples::default() };
    Dataset {
        format: "idx",
        classes: 10,
        class_names: Vec::new(),
        columns: Vec::new(),
        train,
        test,
        normalization: Normalization::uniform(0.5, 0.5),
    }
}
