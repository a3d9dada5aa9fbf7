//! `ort-cpu` and `cuda`: ONNX Runtime from a library that is found at run time.

use std::path::PathBuf;

use models::artifact::TensorInfo;
use models::engine::frames::Header;
use ort::ep::{CUDA, cuda::ConvAlgorithmSearch};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::{TensorElementType, ValueType};
use ort::{ErrorCode, MINOR_VERSION};

use helper::engine::{About, Engine, Model, Refusal, View};

mod denied;
mod driver;
mod library;
mod nvidia;
mod tensors;

/// ONNX Runtime with one of its execution providers.
#[derive(Debug)]
pub struct OnnxRuntime {
    environment: Environment,
    about: About,
    threads: usize,
    /// Whether every session runs on CUDA.
    cuda: bool,
}

/// The library's environment, which has no [`std::fmt::Debug`] of its own.
struct Environment(ort::environment::Environment);

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Environment")
    }
}

impl OnnxRuntime {
    /// On the processor.
    ///
    /// # Errors
    /// [`Refusal`] when no library is found, with the places that were looked at.
    pub fn on_cpu() -> Result<Self, Refusal> {
        let (environment, path) = load(library::Wanted::Cpu)?;
        let about = About { library: Some(library_name(&path)), ..About::default() };
        Ok(Self { environment, about, threads: helper::threads()?, cuda: false })
    }

    /// On the first NVIDIA GPU.
    ///
    /// # Errors
    /// [`Refusal`] when there is no GPU, driver or library; whether a session opens is seen when
    /// a model is loaded.
    pub fn on_cuda() -> Result<Self, Refusal> {
        let device = driver::first_device()?;
        let (environment, path) = load(library::Wanted::Cuda)?;
        nvidia::preload(&path);
        let about = About {
            device: Some(device.name),
            driver: Some(device.driver),
            memory: Some(device.memory),
            library: Some(library_name(&path)),
        };
        Ok(Self { environment, about, threads: helper::threads()?, cuda: true })
    }

    fn session(&self, onnx: &[u8]) -> Result<Session, Refusal> {
        let builder = Session::builder(&self.environment.0).map_err(Refusal::of)?;
        let builder = builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(Refusal::of)?
            .with_intra_threads(self.threads)
            .map_err(Refusal::of)?;
        let mut builder = if self.cuda {
            // TF32 has a mantissa of 10 bits: answers would not be the CPU's. An exhaustive search
            // for algorithms takes seconds for each batch size.
            let provider = CUDA::default()
                .with_device_id(0)
                .with_tf32(false)
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
                .build()
                .error_on_failure();
            builder.with_execution_providers([provider]).map_err(Refusal::of)?
        } else {
            builder
        };
        builder.commit_from_memory(onnx).map_err(|error| of_model(&error))
    }
}

/// The libraries that would be loaded, and what lies beside them, without loading any.
pub fn libraries() -> Vec<PathBuf> {
    let wanted = [library::Wanted::Cpu, library::Wanted::Cuda];
    let mut found: Vec<PathBuf> = wanted.into_iter().flat_map(library::likely).collect();
    found.sort();
    found.dedup();
    found
}

/// The library that most engines can use: the first for CUDA, else the first, of those that can be
/// loaded and are new enough.
pub fn library() -> Option<PathBuf> {
    let wanted = [library::Wanted::Cuda, library::Wanted::Cpu];
    let mut found = wanted.into_iter().flat_map(|wanted| library::find(wanted).unwrap_or_default());
    let fits = |path: &PathBuf| ort::util::probe(path).is_some_and(|minor| minor >= MINOR_VERSION);
    found.find(fits)
}

/// Why a model cannot be loaded.
fn of_model(error: &ort::Error) -> Refusal {
    let lacking = matches!(
        error.code(),
        ErrorCode::InvalidArgument
            | ErrorCode::InvalidGraph
            | ErrorCode::InvalidProtobuf
            | ErrorCode::NotImplemented
    );
    // Otherwise memory or a device may have lacked.
    if lacking { Refusal::lacking(error) } else { Refusal::of(error) }
}

/// Loads the first library that fits, and its path.
fn load(wanted: library::Wanted) -> Result<(Environment, PathBuf), Refusal> {
    let found = library::find(wanted)?;
    let mut reasons = Vec::new();
    for path in found {
        match ort::init_from(&path) {
            Ok(builder) => {
                let built = builder.with_name("dunlin").with_telemetry(false).build();
                return Ok((Environment(built.map_err(Refusal::of)?), path));
            }
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    Err(Refusal::of(format!("{}; {}", reasons.join("; "), library::advice(wanted))))
}

fn library_name(path: &std::path::Path) -> String {
    let version = ort::util::probe(path).map_or(String::new(), |minor| format!(" 1.{minor}"));
    format!("ONNX Runtime{version}, {}", path.display())
}

impl Engine for OnnxRuntime {
    fn about(&self) -> About {
        self.about.clone()
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Model>, Refusal> {
        denied::check(&models::onnx::parse(onnx).map_err(Refusal::lacking)?)?;
        let session = self.session(onnx)?;
        let infos = |outlets: &[ort::value::Outlet], what: &str| {
            outlets.iter().map(|outlet| info(outlet, what)).collect::<Result<Vec<_>, _>>()
        };
        let inputs = infos(session.inputs(), "input")?;
        let outputs = infos(session.outputs(), "output")?;
        Ok(Box::new(Loaded { session, inputs, outputs }))
    }
}

fn info(outlet: &ort::value::Outlet, what: &str) -> Result<TensorInfo, Refusal> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Err(Refusal::lacking(format!("{what} {:?} is no tensor", outlet.name())));
    };
    let datatype = datatype(*ty).ok_or_else(|| {
        Refusal::lacking(format!(
            "{what} {:?} has elements of type {ty}, which no request carries",
            outlet.name()
        ))
    })?;
    let shape = shape.iter().map(|extent| if *extent > 0 { *extent } else { -1 }).collect();
    Ok(TensorInfo { name: outlet.name().to_owned(), datatype: datatype.to_owned(), shape })
}

/// Open Inference Protocol's name, for the types that frames carry.
fn datatype(element: TensorElementType) -> Option<&'static str> {
    [
        (TensorElementType::Float32, "FP32"),
        (TensorElementType::Float64, "FP64"),
        (TensorElementType::Int64, "INT64"),
        (TensorElementType::Int32, "INT32"),
        (TensorElementType::Int8, "INT8"),
        (TensorElementType::Uint8, "UINT8"),
        (TensorElementType::Bool, "BOOL"),
    ]
    .into_iter()
    .find_map(|(known, name)| (known == element).then_some(name))
}

/// A session with what it declares.
#[derive(Debug)]
struct Loaded {
    session: Session,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
}

impl Model for Loaded {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[View<'_>], body: &mut Vec<u8>) -> Result<Vec<Header>, Refusal> {
        let values: Vec<SessionInputValue<'_>> =
            inputs.iter().map(tensors::input).collect::<Result<_, _>>()?;
        let outputs = self.session.run(values.as_slice()).map_err(Refusal::of)?;
        let mut headers = Vec::with_capacity(outputs.len());
        for (name, value) in &outputs {
            headers.push(tensors::output(name, &value, body)?);
        }
        Ok(headers)
    }
}
