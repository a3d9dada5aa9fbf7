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
    contender(Tract, floors)
}

/// It reads classifiers only.
pub(crate) fn native() -> Contender {
    let floors = Floors { models: 7, node: 8, exports: 0, vision: 8, classifiers: 133, fed: 0 };
    contender(Native, floors)
}

/// Of ONNX Runtime on the processor.
const ONNX_RUNTIME: Floors =
    Floors { models: 8, node: 1337, exports: 97, vision: 516, classifiers: 710, fed: 1408 };

pub(crate) fn onnx_runtime() -> Contender {
    contender(helper::onnx_runtime(), ONNX_RUNTIME)
}

/// Its counts were never taken. ONNX Runtime leaves to the processor what it cannot do on CUDA, so
/// nine tenths of what it does there are asked for: the rest is for its version, which depends on
/// the driver, and for what CUDA does otherwise. Counts are held where the hardware is what is
/// tested.
pub(crate) fn cuda() -> Option<Contender> {
    let tenths = if helper::on_hardware() { 9 } else { 0 };
    Some(contender(helper::cuda()?, ONNX_RUNTIME.tenths(tenths)))
}

impl Floors {
    fn tenths(self, tenths: usize) -> Self {
        let part = |count: usize| count * tenths / 10;
        Self {
            models: part(self.models),
            node: part(self.node),
            exports: part(self.exports),
            vision: part(self.vision),
            classifiers: part(self.classifiers),
            fed: part(self.fed),
        }
    }
}

/// It reads classifiers only, and not all of them.
pub(crate) fn webgpu() -> Option<Contender> {
    let floors = Floors { models: 7, node: 8, exports: 0, vision: 8, classifiers: 117, fed: 0 };
    Some(contender(helper::webgpu()?, floors))
}

fn contender(engine: impl Engine + 'static, floors: Floors) -> Contender {
    Contender { engine: Box::new(engine), tolerance: tolerance::ONNX, floors }
}
