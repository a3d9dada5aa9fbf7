//! `tract`: the general CPU engine, any ONNX model that tract supports.

use super::{Engine, EngineError, Session};

/// The engine; it holds nothing, sessions do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn load(&self, _onnx: &[u8]) -> Result<Box<dyn Session>, EngineError> {
        unimplemented!()
    }
}
