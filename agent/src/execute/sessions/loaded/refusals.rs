//! Why engines did not answer, as answers and failures tell it.

use jobs::engine::EnginePolicy;
use jobs::report::{Failure, FailureCode, RefusedEngine};
use models::engine::choice::Refusal;

/// The refusals that a reader of the answer wants to know: of engines that the request allows and
/// that failed, not of those that this device never had, unless the request names them.
pub(super) fn telling(
    ranked: &[&'static str],
    refused: Vec<Refusal>,
    policy: &EnginePolicy,
) -> Vec<RefusedEngine> {
    let failed = |refusal: &Refusal| refusal.failed && policy.allows(refusal.engine);
    // With nothing ranked every reason counts.
    let worth =
        |refusal: &Refusal| ranked.is_empty() || failed(refusal) || policy.names(refusal.engine);
    let named = |refusal: Refusal| RefusedEngine {
        engine: refusal.engine.to_owned(),
        reason: refusal.reason,
    };
    refused.into_iter().filter(worth).map(named).collect()
}

pub(super) fn refusal(engine: &str, error: &dyn std::fmt::Display) -> RefusedEngine {
    RefusedEngine { engine: engine.to_owned(), reason: error.to_string() }
}

pub(super) fn unavailable(refused: &[RefusedEngine]) -> Failure {
    let reasons: Vec<String> =
        refused.iter().map(|refused| format!("{}: {}", refused.engine, refused.reason)).collect();
    let message = format!("no engine that the request allows can answer: {}", reasons.join("; "));
    Failure::new(FailureCode::EngineUnavailable, message)
}
