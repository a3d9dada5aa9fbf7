//! The engines that the suite asks, each with what it reaches.
//!
//! Each has a test of its own in `main.rs` and in `onnx.rs`.

use models::engine::{Engine, native::Native, tract::Tract};

use crate::helper;
use crate::tolerance::{self, Tolerance};

/// An engine and what must not get worse.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) engine: Box<dyn Engine>,
    /// How near its floating-point numbers have to come.
    pub(crate) tolerance: Tolerance,
    pub(crate) floors: Floors,
    /// Tests that it is known to answer otherwise than the ONNX project.
    pub(crate) differs: &'static [&'static str],
}

/// How many cases an engine answers rightly, at least.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floors {
    /// Of the models of `../shared/data/models`.
    pub(crate) models: usize,
    /// Of the ONNX project's tests of one operator, what models hold as constants folded.
    pub(crate) node: usize,
    /// Of its exported models.
    pub(crate) exports: usize,
    /// Of those among both that hold nothing but operators of convolutional networks.
    pub(crate) vision: usize,
    /// Of both in the form of classifiers.
    pub(crate) classifiers: usize,
    /// Of both with every input fed.
    pub(crate) fed: usize,
}

pub(crate) fn tract() -> Contender {
    let floors =
        Floors { models: 8, node: 1154, exports: 121, vision: 539, classifiers: 742, fed: 1046 };
    contender(Tract, floors, &[])
}

/// It reads classifiers only.
pub(crate) fn native() -> Contender {
    let floors = Floors { models: 7, node: 8, exports: 0, vision: 8, classifiers: 133, fed: 0 };
    contender(Native, floors, &[])
}

pub(crate) fn onnx_runtime() -> Contender {
    let floors =
        Floors { models: 8, node: 1337, exports: 97, vision: 516, classifiers: 717, fed: 1410 };
    contender(helper::onnx_runtime(), floors, &ONNX_RUNTIME_DIFFERS)
}

/// It reads classifiers only, and not all of them.
pub(crate) fn webgpu() -> Option<Contender> {
    let floors = Floors { models: 7, node: 8, exports: 0, vision: 8, classifiers: 117, fed: 0 };
    Some(contender(helper::webgpu()?, floors, &[]))
}

/// What ONNX Runtime 1.32 answers otherwise than the ONNX project: the products of attention that
/// it gives out are those before the mask was added; indices of unpooling count in the shape that is
/// asked for; corners are aligned by the output's extent, not by the exact scale.
const ONNX_RUNTIME_DIFFERS: [&str; 10] = [
    "test_attention_3d_with_past_and_present_qk_matmul_bias",
    "test_attention_4d_with_past_and_present_qk_matmul_bias",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
    "test_attention_4d_with_qk_matmul_bias",
    "test_maxunpool_export_with_output_shape",
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
];

fn contender(
    engine: impl Engine + 'static,
    floors: Floors,
    differs: &'static [&'static str],
) -> Contender {
    Contender { engine: Box::new(engine), tolerance: tolerance::ONNX, floors, differs }
}
