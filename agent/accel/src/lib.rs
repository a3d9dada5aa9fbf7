//! The helper of an agent: engines that load shared libraries, in a process of their own.
//!
//! [`probe`] finds out whether an engine can be used. A driver that crashes takes this process
//! along and no other.

use helper::engine::{Engine, Refusal};

pub mod compare;
pub mod onnxruntime;
pub mod probe;
pub mod webgpu;

mod environment;

/// The engines of this program.
pub const ENGINES: [&str; 3] = ["cuda", "webgpu", "ort-cpu"];

/// Settings for libraries that take them from the environment; before any thread is started.
pub fn prepare() {
    // Of several GPUs the fast one, in the place of the frugal one.
    environment::prefer("WGPU_POWER_PREF", "high");
    // From 1.29 on ONNX Runtime tells its makers of the process and its machine before it can be
    // asked not to, and keeps a number of the device and a data base in the user's folder.
    environment::prefer("ORT_DISABLE_TELEMETRY", "1");
}

/// Starts an engine: finds its library and its device.
///
/// # Errors
/// [`Refusal`] says what is missing and what to do.
pub fn start(engine: &str) -> Result<Box<dyn Engine>, Refusal> {
    match engine {
        "ort-cpu" => Ok(Box::new(onnxruntime::OnnxRuntime::on_cpu()?)),
        "cuda" => Ok(Box::new(onnxruntime::OnnxRuntime::on_cuda()?)),
        "webgpu" => Ok(Box::new(webgpu::WebGpu::start()?)),
        other => Err(Refusal::of(format!(
            "engine {other:?} is not known: expected one of {}",
            ENGINES.join(", ")
        ))),
    }
}

/// The same for models that come one after another. Where a model is looked at before the device is
/// needed, a device that lacks is told with the first model that would need it.
///
/// # Errors
/// As [`start`].
pub fn serve(engine: &str) -> Result<Box<dyn Engine>, Refusal> {
    match engine {
        "webgpu" => Ok(Box::<webgpu::WebGpu>::default()),
        other => start(other),
    }
}
