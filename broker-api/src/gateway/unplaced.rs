//! Why work is on no device, as people get it.

use jobs::engine::EnginePolicy;
use jobs::id::DeviceId;
use jobs::job::Event;
use jobs::report::{Failure, FailureCode};
use jobs::selector::Selector;

use super::Driver;
use crate::error::{ApiCode, ApiError};
use crate::fleet::placement::Lacking;

/// Devices that are told of, at most.
const TOLD_MAX: usize = 4;
/// Characters of a reason.
const REASON_MAX: usize = 200;

impl Driver<'_> {
    /// No device has the work now; `may_come` says whether it has a sense to wait for one.
    pub(super) fn unplaced(
        &mut self,
        avoid: Vec<DeviceId>,
        error: ApiError,
        may_come: bool,
    ) -> Result<(), ApiError> {
        if !(self.errand.patient && may_come) {
            return Err(error);
        }
        self.look_again(avoid, FailureCode::NoDevice, error.detail);
        Ok(())
    }

    pub(super) fn look_again(&mut self, avoid: Vec<DeviceId>, code: FailureCode, why: String) {
        self.step(&Event::Unplaced { failure: Failure::new(code, why) });
        self.looking = Some(avoid);
    }
}

/// No device that matches is online.
pub(crate) fn nobody(selector: &Selector) -> ApiError {
    let text = String::from(selector.clone());
    let detail = if text.is_empty() {
        "no device is online".to_owned()
    } else {
        format!("no device that matches {text:?} is online")
    };
    let hint = "start dunlin-agent on a device, or see which are there with 'dunlin devices'";
    ApiError::new(ApiCode::Job(FailureCode::NoDevice), detail, hint)
}

/// Devices that match are online, and none of them has an engine that the request allows.
pub(super) fn lacking(selector: &Selector, policy: &EnginePolicy, devices: &[Lacking]) -> ApiError {
    let selector = String::from(selector.clone());
    let matching =
        if selector.is_empty() { String::new() } else { format!(" that matches {selector:?}") };
    let policy_text = policy.to_string();
    let engines = if policy_text.starts_with('!') {
        format!("an engine that {policy_text:?} allows")
    } else {
        policy_text.replace(',', " or ")
    };
    let mut detail = format!("no online device{matching} has {engines}");
    for Lacking { device, reason } in devices.iter().take(TOLD_MAX) {
        let reason: String = reason.chars().take(REASON_MAX).collect();
        detail = format!("{detail}; {device}: {reason}");
    }
    if let more @ 1.. = devices.len().saturating_sub(TOLD_MAX) {
        detail = format!("{detail}; and {more} more");
    }
    let hint = "allow other engines, or see what each device has with 'dunlin devices NAME'";
    ApiError::new(ApiCode::Job(FailureCode::NoDevice), detail, hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_what_devices_lack() {
        let devices: Vec<Lacking> = (0..6)
            .map(|index| Lacking {
                device: DeviceId::parse(&format!("d{index}")).unwrap(),
                reason: format!("no GPU {}", "x".repeat(300)),
            })
            .collect();
        let say = |selector: &str, engines: &str, count: usize| {
            let (selector, policy) = (selector.parse().unwrap(), engines.parse().unwrap());
            lacking(&selector, &policy, &devices[..count])
        };
        let error = say("", "cuda", 1);
        assert!(error.detail.starts_with("no online device has cuda; d0: no GPU x"), "{error}");
        assert_eq!(error.code.as_str(), "no_device");
        assert!(error.hint.contains("dunlin devices"));
        let error = say("device=stat", "cuda,webgpu", 6).detail;
        let expected = "no online device that matches \"device=stat\" has cuda or webgpu; d0: ";
        assert!(error.starts_with(expected), "{error}");
        assert!(error.ends_with("x; and 2 more") && error.len() < 1000, "{error}");
        let error = say("", "!native,!tract", 1).detail;
        assert!(error.contains("has an engine that \"!native,!tract\" allows; d0: "), "{error}");
    }
}
