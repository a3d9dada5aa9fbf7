//! A model that no engine of the CPU takes, or has in time: ONNX Runtime on the processor is in
//! their place until one has it. Nobody checks its numbers, and other engines are held to them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs::report::{Failure, FailureCode, RefusedEngine};
use models::engine::choice::State;

use super::place::{Place, Trial};
use super::{Loaded, failures};
use crate::engines::{AnySession, CPU, Engines, SessionError};

/// The engine in the place of the CPU's.
const ENGINE: &str = "ort-cpu";

/// What is known of a model that no engine of the CPU has.
#[derive(Debug)]
pub(in crate::execute::sessions) struct Unloaded {
    places: Vec<Place>,
    refused: Vec<(&'static str, SessionError)>,
}

impl Unloaded {
    pub(super) fn new(places: Vec<Place>, refused: Vec<(&'static str, SessionError)>) -> Self {
        Self { places, refused }
    }

    /// After so long none has it, and one is being tried still.
    pub(in crate::execute::sessions) fn late(waited: Duration) -> Self {
        let [.., last] = CPU;
        let reason = format!("it does not have the model after {waited:?}");
        let places = CPU.map(|engine| Place::new(engine, true)).into();
        Self { places, refused: vec![(last, SessionError::Absent(reason))] }
    }

    /// The last engine takes the most models, so its reason is the one that counts.
    fn failure(&self) -> Failure {
        let none = || Failure::new(FailureCode::Internal, "no engine of the CPU".to_owned());
        self.refused.last().map_or_else(none, |(_, error)| failures::of_session(error))
    }

    /// Loads the model into ONNX Runtime.
    pub(in crate::execute::sessions) fn load(
        mut self,
        engines: &Engines,
        onnx: &[u8],
    ) -> Result<Loaded, Failure> {
        let refuse = |reason: &str| {
            let failure = self.failure();
            Failure::new(failure.code, format!("{}; {ENGINE}: {reason}", failure.message))
        };
        let Some(helper) = engines.helper(ENGINE) else {
            return Err(refuse(engines.unusable(ENGINE).unwrap_or("it is not known here")));
        };
        let session = helper.session(onnx).map_err(|error| refuse(&error.to_string()))?;
        let session = AnySession::Helped(Arc::new(session));
        let unchecked = self.refused.last().map(|(engine, error)| RefusedEngine {
            engine: (*engine).to_owned(),
            reason: format!("{error}: no second engine has checked the numbers of {ENGINE}"),
        });
        let mut place = Place::new(ENGINE, true);
        place.put(Trial::Well(State::Ready, session.clone()), Instant::now());
        self.places.push(place);
        Ok(Loaded::with(self.places, &session, unchecked))
    }
}
