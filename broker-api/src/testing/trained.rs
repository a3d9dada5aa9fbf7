//! What a test device's training makes of parameters.

use jobs::id::DeviceId;
use models::params::Parameter;

/// What a device of number 1 measures, as a running mean and as a running variance; the others
/// measure so many times more.
pub(crate) const MEAN: f32 = -0.25;
pub(crate) const VARIANCE: f32 = 0.0625;

/// Whether a device, by its name, loses what it keeps.
pub(super) fn forgets(device: &DeviceId) -> bool {
    device.as_str().starts_with("forgetful")
}

/// Gives all values the same one.
pub(super) fn fill(items: &mut [Parameter], value: f32) {
    for item in items {
        item.values.fill(value);
    }
}

/// Adds the device's number to every value, but to statistics of a batch normalisation: these
/// become what it measures.
pub(super) fn move_by(items: &mut [Parameter], number: f32) {
    for item in items {
        if item.name.ends_with(".running_mean") {
            item.values.fill(number * MEAN);
        } else if item.name.ends_with(".running_var") {
            item.values.fill(number * VARIANCE);
        } else {
            item.values.iter_mut().for_each(|value| *value += number);
        }
    }
}
