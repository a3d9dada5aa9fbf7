//! SCAFFOLD on a device: the difference of two control variates is added to every gradient, and
//! what the device's own comes to is kept for the round after one whose update counted.

use jobs::report::{Failure, FailureCode};
use jobs::spec::{ControlVariates, TaskId};
use models::federated::scaffold::{ScaffoldError, correction, device_control};
use models::params::{Layout, Parameter, Parameters};
use models::train::Trainer;

use super::prepare::wrong;
use crate::execute::failures;
use crate::kept_local::{Follows, KeptLocal};

/// The control variates of a training.
pub(super) struct Control<'a> {
    store: &'a KeptLocal,
    id: &'a TaskId,
    /// The round of this job that left the device's own, and what else stays.
    follows: Follows,
    server: Parameters,
    device: Parameters,
    /// Whether the device's own was lost.
    is_anew: bool,
    /// Names of the weights that are trained.
    weights: Vec<String>,
}

impl<'a> Control<'a> {
    /// Gives a trainer what it adds to its gradients. `received` is the server's control variate,
    /// a safetensors blob, unless that is 0 everywhere.
    pub(super) fn begin(
        trainer: &mut Trainer,
        variates: &ControlVariates,
        received: Option<&[u8]>,
        store: &'a KeptLocal,
        id: &'a TaskId,
    ) -> Result<Self, Failure> {
        let layout = trainer.layout().clone();
        let server = match received {
            Some(bytes) => Parameters::from_safetensors(bytes).map_err(wrong)?,
            None => zeros(&layout),
        };
        server.check_like(&layout).map_err(wrong)?;
        let job = variates.job.as_ref().unwrap_or(&id.job);
        let own = variates.device.and_then(|round| store.of(job, round.0));
        let own = own.filter(|own| own.check_like(&layout).is_ok());
        let is_anew = own.is_none() && variates.device.is_some();
        if let (true, Some(round)) = (is_anew, variates.device) {
            tracing::warn!(%job, "the control variate of round {round} is gone: it begins with 0");
        }
        let weights = trainer.trained_layout();
        let weights: Vec<String> = weights.spans().iter().map(|span| span.name.clone()).collect();
        let device = own.unwrap_or_else(|| zeros(&layout));
        let begun = variates.device.filter(|_| *job == id.job);
        let follows = Follows {
            round: begun.map(|round| round.0),
            kept_since: variates.kept_since.map(|round| round.0),
        };
        let control = Self { store, id, follows, server, device, is_anew, weights };
        let corrections = control.corrections()?;
        let set = trainer.set_control_variate(Some(&corrections));
        set.map_err(|error| failures::of_training(&error))?;
        Ok(control)
    }

    fn corrections(&self) -> Result<Parameters, Failure> {
        let pairs = self.server.items().iter().zip(self.device.items());
        let pairs = pairs.filter(|(server, _)| self.weights.contains(&server.name));
        let corrected = pairs.map(|(server, device)| {
            let values = correction(&server.values, &device.values).map_err(diverged)?;
            Ok(Parameter { values, ..server.clone() })
        });
        let corrected: Result<Vec<Parameter>, Failure> = corrected.collect();
        Parameters::new(corrected?).map_err(wrong)
    }

    /// Keeps the device's next control variate after plain steps of a learning rate from `global`
    /// to `trained`; gives what it changed by, a safetensors blob, and whether it was lost
    /// before.
    pub(super) fn end(
        self,
        global: &Parameters,
        trained: &Parameters,
        steps: u64,
        learning_rate: f32,
    ) -> Result<(Vec<u8>, bool), Failure> {
        let steps = (u32::try_from(steps).unwrap_or(u32::MAX), f64::from(learning_rate));
        let (mut next, mut change) = (Vec::new(), Vec::new());
        let ends = global.items().iter().zip(trained.items());
        for ((server, device), (x, y)) in
            self.server.items().iter().zip(self.device.items()).zip(ends)
        {
            let values = if self.weights.contains(&x.name) {
                let (c, c_k) = (&server.values, &device.values);
                device_control(c, c_k, &x.values, &y.values, steps).map_err(diverged)?
            } else {
                vec![0.0; x.values.len()]
            };
            let by = values.iter().zip(&device.values).map(|(new, old)| new - old).collect();
            change.push(Parameter { values: by, ..device.clone() });
            next.push(Parameter { values, ..device.clone() });
        }
        let (next, change) = (Parameters::new(next), Parameters::new(change));
        let (next, change) = (next.map_err(wrong)?, change.map_err(wrong)?);
        self.store.keep(&self.id.job, self.id.round.0, self.follows, &next)?;
        Ok((change.to_safetensors(), self.is_anew))
    }
}

fn zeros(layout: &Layout) -> Parameters {
    let zeros = |span: &models::params::Span| Parameter {
        name: span.name.clone(),
        shape: span.shape.clone(),
        values: vec![0.0; span.elements.len()],
    };
    Parameters::new(layout.spans().iter().map(zeros).collect())
        .expect("a layout's names are unique and its spans fill their shapes")
}

fn diverged(error: ScaffoldError) -> Failure {
    Failure::new(FailureCode::Diverged, format!("the control variate: {error}"))
}
