//! Plans: a graph prepared for given input shapes, and the pool of what a run changes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::{
    InferenceFact, InferenceModel, InferenceModelExt as _, IntoRunnable as _, TValue, TVec,
    TractResult, TypedSimplePlan, TypedSimpleState,
};
use tract_onnx::tract_hir::infer::Factoid as _;

/// Plans kept per session. A plan holds packed copies of the weights, and a served model sees few
/// batch sizes.
const PLANS_MAX: usize = 4;

/// Idle states kept per plan: as many runs side by side as a device has cores.
const STATES_MAX: usize = 16;

/// The plans of one model, the one used last in front.
pub(super) struct Plans {
    template: InferenceModel,
    recent: Mutex<Vec<Entry>>,
}

struct Entry {
    shapes: Vec<Vec<usize>>,
    slot: Slot,
}

/// Filled by the first run of these shapes, while others of these shapes wait for it.
type Slot = Arc<OnceLock<Result<Arc<Plan>, String>>>;

impl std::fmt::Debug for Plans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plans").field("nodes", &self.template.nodes.len()).finish_non_exhaustive()
    }
}

impl Plans {
    pub(super) fn new(template: InferenceModel) -> Self {
        Self { template, recent: Mutex::new(Vec::with_capacity(PLANS_MAX)) }
    }

    /// The plan for these input shapes, prepared now if it is not there.
    pub(super) fn get(&self, shapes: &[&[usize]]) -> Result<Arc<Plan>, String> {
        let slot = self.slot(shapes);
        slot.get_or_init(|| guard(|| Plan::new(self.template.clone(), shapes)).map(Arc::new))
            .clone()
    }

    fn slot(&self, shapes: &[&[usize]]) -> Slot {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = recent.iter().position(|entry| entry.shapes == shapes) {
            recent[..=at].rotate_right(1);
            return Arc::clone(&recent[0].slot);
        }
        recent.truncate(PLANS_MAX - 1);
        let slot = Slot::default();
        let shapes = shapes.iter().map(|shape| shape.to_vec()).collect();
        recent.insert(0, Entry { shapes, slot: Arc::clone(&slot) });
        slot
    }
}

/// A graph optimised for fixed input shapes.
pub(super) struct Plan {
    plan: Arc<TypedSimplePlan>,
    idle: Mutex<Vec<TypedSimpleState>>,
}

impl Plan {
    fn new(mut model: InferenceModel, shapes: &[&[usize]]) -> TractResult<Self> {
        for (index, shape) in shapes.iter().enumerate() {
            let datatype = model.input_fact(index)?.datum_type.concretize();
            let fact = InferenceFact::new().with_shape(shape.iter().copied());
            let fact = match datatype {
                Some(datatype) => fact.with_datum_type(datatype),
                None => fact,
            };
            model.set_input_fact(index, fact)?;
        }
        let plan = model.into_optimized()?.into_runnable()?;
        Ok(Self { plan, idle: Mutex::default() })
    }

    /// Runs the plan with a state of its own.
    pub(super) fn run(&self, inputs: TVec<TValue>) -> Result<TVec<TValue>, String> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let state = idle().pop();
        // A state that saw an error or a panic is not used again.
        let (state, outputs) = guard(|| {
            let mut state = state.map_or_else(|| self.plan.spawn(), Ok)?;
            let outputs = state.run(inputs)?;
            Ok((state, outputs))
        })?;
        let mut idle = idle();
        if idle.len() < STATES_MAX {
            idle.push(state);
        }
        Ok(outputs)
    }
}

/// Calls tract; its errors, with their causes, and its panics become text.
pub(super) fn guard<T>(call: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| text(&format!("{error:#}"))),
        Err(panic) => {
            let said = panic
                .downcast_ref::<&str>()
                .map(|said| (*said).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("panicked: {}", text(&said.unwrap_or_default())))
        }
    }
}

/// One line of bounded length: tract may print whole tensors and nodes.
fn text(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(600) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
