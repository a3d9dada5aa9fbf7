//! `webgpu`: wonnx on wgpu, for GPUs that Vulkan reaches.
//!
//! wonnx gives wrong answers on some forms of some operators, so a model is brought into a
//! [plain form](models::engine::plain) first, and nothing passes that is not in a
//! [list](allowed) whose entries are tested. Only a model that passes asks for the adapter.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};

use models::artifact::TensorInfo;
use models::engine::frames::Header;
use models::engine::plain::Plain;
use models::onnx;
use wonnx::utils::{InputTensor, OutputTensor};

use helper::engine::{About, Engine, Model, Refusal, View};

mod allowed;

/// Lets adapters pass that are programs on the processor.
const SOFTWARE: &str = "DUNLIN_WEBGPU_SOFTWARE";
/// Examples of one run, the largest number that fits first: each has shaders and buffers of its
/// own.
const SIZES: [usize; 3] = [16, 4, 1];
/// Bytes of a buffer that a shader reads or writes, at most, in WebGPU's default limits.
const BUFFER_MAX: usize = 128 << 20;
/// Elements of a value, at most: as many groups of 256 as WebGPU starts along one axis.
const ELEMENTS_MAX: usize = 65_535 * 256;

/// The engine, with the adapter that wonnx takes, once it has been looked for.
#[derive(Debug, Default)]
pub struct WebGpu {
    adapter: OnceCell<Adapter>,
}

impl WebGpu {
    /// Finds an adapter now; [`WebGpu::default`] leaves it to the first model that needs one.
    ///
    /// # Errors
    /// [`Refusal`] when there is none, or only one that is a program on the processor.
    pub fn start() -> Result<Self, Refusal> {
        let engine = Self::default();
        engine.adapter()?;
        Ok(engine)
    }

    fn adapter(&self) -> Result<&Adapter, Refusal> {
        if let Some(adapter) = self.adapter.get() {
            return Ok(adapter);
        }
        let found = Adapter::find()?;
        Ok(self.adapter.get_or_init(|| found))
    }
}

/// The adapter that wonnx takes.
#[derive(Debug)]
struct Adapter {
    about: About,
    /// wonnx makes one for each session. Drivers stay loaded as long as there is one, and take long
    /// to load.
    _instance: wgpu::Instance,
}

impl Adapter {
    fn find() -> Result<Self, Refusal> {
        let backends = wgpu::util::backend_bits_from_env().unwrap_or(wgpu::Backends::PRIMARY);
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            dx12_shader_compiler: wgpu::Dx12Compiler::Fxc,
        });
        // As wonnx asks for it, which panics where there is none.
        let adapter = wgpu::util::initialize_adapter_from_env_or_default(&instance, backends, None);
        let Some(adapter) = pollster::block_on(adapter) else {
            return Err(Refusal::of(
                "no GPU is reached through Vulkan: install its driver's Vulkan part (such as \
                 mesa-vulkan-drivers, or NVIDIA's libnvidia-gl) and libvulkan1"
                    .to_owned(),
            ));
        };
        let info = adapter.get_info();
        let software = std::env::var_os(SOFTWARE).is_some_and(|value| value == "1");
        if info.device_type == wgpu::DeviceType::Cpu && !software {
            return Err(Refusal::of(format!(
                "the only adapter, {}, is a program on the processor: {SOFTWARE}=1 allows it, for \
                 tests",
                info.name
            )));
        }
        let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
        let driver = format!("{} ({:?})", driver.trim(), info.backend);
        let about = About {
            device: Some(info.name),
            driver: Some(driver),
            library: Some("wonnx 0.5 on wgpu 0.16".to_owned()),
            memory: None,
        };
        Ok(Self { about, _instance: instance })
    }
}

impl Engine for WebGpu {
    fn about(&self) -> About {
        self.adapter.get().map(|adapter| adapter.about.clone()).unwrap_or_default()
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Model>, Refusal> {
        let plain = Plain::read(onnx).map_err(Refusal::lacking)?;
        let widest = plain.widest();
        let fits = |size: &usize| {
            let elements = widest.saturating_mul(*size);
            elements <= ELEMENTS_MAX && elements.saturating_mul(4) <= BUFFER_MAX
        };
        let several = |size: &usize| *size == 1 || plain.has_batches();
        let sizes: Vec<usize> = SIZES.into_iter().filter(fits).filter(several).collect();
        if sizes.is_empty() {
            return Err(Refusal::lacking(format!(
                "a value of {widest} elements is larger than WebGPU's buffers may be"
            )));
        }
        let (inputs, outputs) = (vec![plain.input().clone()], vec![plain.output().clone()]);
        let mut loaded = Loaded { plain, inputs, outputs, sizes, sessions: BTreeMap::new() };
        let file = loaded.file(1)?;
        self.adapter()?;
        loaded.open(1, &file)?;
        Ok(Box::new(loaded))
    }
}

/// A model with the sessions that were needed so far.
#[derive(Debug)]
struct Loaded {
    plain: Plain,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    /// Examples of a run, the largest number first.
    sizes: Vec<usize>,
    sessions: BTreeMap<usize, Session>,
}

/// wonnx's session, which has no [`std::fmt::Debug`] of its own.
struct Session(wonnx::Session);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session")
    }
}

impl Loaded {
    /// What wonnx is given for runs of so many examples, all of it in the list.
    fn file(&self, size: usize) -> Result<Vec<u8>, Refusal> {
        let file = self.plain.to_onnx(size).map_err(Refusal::lacking)?;
        allowed::check(&onnx::parse(&file).map_err(Refusal::lacking)?, BUFFER_MAX)?;
        Ok(file)
    }

    fn open(&mut self, size: usize, file: &[u8]) -> Result<(), Refusal> {
        let session = pollster::block_on(wonnx::Session::from_bytes(file));
        self.sessions.insert(size, Session(session.map_err(Refusal::of)?));
        Ok(())
    }

    /// The session for runs of so many examples; made when it is first asked for.
    fn session(&mut self, size: usize) -> Result<&wonnx::Session, Refusal> {
        if !self.sessions.contains_key(&size) {
            let file = self.file(size)?;
            self.open(size, &file)?;
        }
        let session = self.sessions.get(&size).map(|session| &session.0);
        session.ok_or_else(|| Refusal::of("there is no session".to_owned()))
    }

    /// One run, whose outputs are added to `body`.
    fn piece(&mut self, size: usize, values: &[f32], body: &mut Vec<u8>) -> Result<(), Refusal> {
        let (input, output) = (self.inputs[0].name.clone(), self.outputs[0].name.clone());
        let session = self.session(size)?;
        let inputs = HashMap::from([(input, InputTensor::F32(Cow::Borrowed(values)))]);
        let mut outputs = pollster::block_on(session.run(&inputs)).map_err(Refusal::of)?;
        match outputs.remove(&output) {
            Some(OutputTensor::F32(values)) => {
                body.extend_from_slice(bytemuck::cast_slice(&values));
                Ok(())
            }
            Some(OutputTensor::I32(_) | OutputTensor::I64(_) | OutputTensor::U8(_)) | None => {
                Err(Refusal::of(format!("wonnx gave no floats for {output:?}")))
            }
        }
    }
}

impl Model for Loaded {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&mut self, inputs: &[View<'_>], body: &mut Vec<u8>) -> Result<Vec<Header>, Refusal> {
        let View { shape, bytes, .. } = inputs[0];
        let values: Cow<'_, [f32]> = bytemuck::try_cast_slice(bytes)
            .map_or_else(|_| Cow::Owned(bytemuck::pod_collect_to_vec(bytes)), Cow::Borrowed);
        let examples = shape[0];
        let width = values.len() / examples;
        let mut start = 0;
        while start < examples {
            let left = examples - start;
            let size = self.sizes.iter().copied().find(|size| *size <= left).unwrap_or(1);
            let piece = &values[start * width..(start + size) * width];
            self.piece(size, piece, body)?;
            start += size;
        }
        let output = &self.outputs[0];
        let rest = output.shape[1..].iter().filter_map(|extent| usize::try_from(*extent).ok());
        let shape = std::iter::once(examples).chain(rest).collect();
        Ok(vec![Header { datatype: output.datatype.clone(), shape }])
    }
}
