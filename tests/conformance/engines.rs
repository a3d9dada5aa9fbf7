//! The engines that the suite asks, each with what it reaches.

use models::engine::{Engine, native::Native, tract::Tract};

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
    /// Of both with every input fed.
    pub(crate) fed: usize,
}

/// Every engine that this machine has.
pub(crate) fn all() -> Vec<Contender> {
    let tract = Floors { models: 8, node: 1154, exports: 121, vision: 539, fed: 1046 };
    let native = Floors { models: 7, node: 0, exports: 0, vision: 0, fed: 0 };
    vec![contender(Tract, tolerance::ONNX, tract), contender(Native, tolerance::ONNX, native)]
}

fn contender(engine: impl Engine + 'static, tolerance: Tolerance, floors: Floors) -> Contender {
    Contender { engine: Box::new(engine), tolerance, floors }
}
