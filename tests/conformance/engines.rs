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

pub(crate) fn onnx_runtime() -> Contender {
    let floors =
        Floors { models: 8, node: 1337, exports: 97, vision: 516, classifiers: 710, fed: 1408 };
    contender(helper::onnx_runtime(), floors)
}

/// It never ran the suite so far, so its counts are not held; wrong answers are.
pub(crate) fn cuda() -> Option<Contender> {
    let floors = Floors { models: 0, node: 0, exports: 0, vision: 0, classifiers: 0, fed: 0 };
    Some(contender(helper::cuda()?, floors))
}

/// It reads classifiers only, and not all of them.
pub(crate) fn webgpu() -> Option<Contender> {
    let floors = Floors { models: 7, node: 8, exports: 0, vision: 8, classifiers: 117, fed: 0 };
    Some(contender(helper::webgpu()?, floors))
}

fn contender(engine: impl Engine + 'static, floors: Floors) -> Contender {
    Contender { engine: Box::new(engine), tolerance: tolerance::ONNX, floors }
}
