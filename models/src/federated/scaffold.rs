//! SCAFFOLD: control variates against the drift of devices (Karimireddy et al. 2020, arXiv
//! 1910.06378).
//!
//! A device adds `c - c_k` to its gradients, as
//! [`Trainer::set_control_variate`](crate::train::Trainer::set_control_variate) does, and keeps
//! `c_k`. It sends its parameters and what its `c_k` changed by. Parameters move by
//! [`ServerOptimizer::FedAvg`](super::server::ServerOptimizer::FedAvg) towards the plain mean,
//! the server's `c` by [`move_server_control`] towards the plain mean of changes.
//!
//! Every value goes its own way: vectors may be given in pieces.

/// Why a control variate cannot be moved.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ScaffoldError {
    /// Vectors of different lengths.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// Which one.
        what: &'static str,
        /// Values wanted.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// No local step, or a learning rate that is not above 0.
    #[error("{steps} steps of learning rate {learning_rate}: expected some, of a rate above 0")]
    Steps {
        /// What was given.
        steps: u32,
        /// What was given.
        learning_rate: f64,
    },
    /// More devices took part than there are, or none.
    #[error("{participants} of {devices} devices took part, expected at least 1 and at most all")]
    Participants {
        /// Devices that took part.
        participants: u32,
        /// Devices that could have.
        devices: u32,
    },
    /// A value would be NaN or infinite.
    #[error("value {index}: expected a finite result, of finite vectors")]
    NotFinite {
        /// Counted from the start of the piece.
        index: usize,
    },
}

/// What a device adds to its gradients: `c - c_k`.
///
/// # Errors
/// [`ScaffoldError::Length`], [`ScaffoldError::NotFinite`].
pub fn correction(server: &[f32], device: &[f32]) -> Result<Vec<f32>, ScaffoldError> {
    check_length("device control", server.len(), device.len())?;
    let differences = server.iter().zip(device).map(|(c, c_k)| f64::from(*c) - f64::from(*c_k));
    rounded(differences)
}

/// The device's next control variate, option II: `c_k' = c_k - c + (x - y) / (T lr)`, the mean of
/// the gradients that it saw. `trained` is `y`, after `steps` plain steps from `global`, `x`.
///
/// # Errors
/// [`ScaffoldError`].
pub fn device_control(
    server: &[f32],
    device: &[f32],
    global: &[f32],
    trained: &[f32],
    (steps, learning_rate): (u32, f64),
) -> Result<Vec<f32>, ScaffoldError> {
    let length = server.len();
    check_length("device control", length, device.len())?;
    check_length("global parameters", length, global.len())?;
    check_length("trained parameters", length, trained.len())?;
    if steps == 0 || !(learning_rate > 0.0 && learning_rate.is_finite()) {
        return Err(ScaffoldError::Steps { steps, learning_rate });
    }
    let way = f64::from(steps) * learning_rate;
    let controls = server.iter().zip(device).zip(global.iter().zip(trained));
    rounded(controls.map(|((c, c_k), (x, y))| {
        f64::from(*c_k) - f64::from(*c) + (f64::from(*x) - f64::from(*y)) / way
    }))
}

/// Moves the server's control variate: `c' = c + S / N mean(c_k' - c_k)`, the mean over the `S`
/// participants of `N` devices.
///
/// # Errors
/// [`ScaffoldError`]; nothing was moved.
pub fn move_server_control(
    server: &mut [f32],
    mean_change: &[f32],
    participants: u32,
    devices: u32,
) -> Result<(), ScaffoldError> {
    check_length("mean change", server.len(), mean_change.len())?;
    if participants == 0 || participants > devices {
        return Err(ScaffoldError::Participants { participants, devices });
    }
    let share = f64::from(participants) / f64::from(devices);
    let controls = server.iter().zip(mean_change);
    let moved = rounded(controls.map(|(c, change)| f64::from(*c) + share * f64::from(*change)))?;
    server.copy_from_slice(&moved);
    Ok(())
}

fn check_length(what: &'static str, expected: usize, found: usize) -> Result<(), ScaffoldError> {
    if expected == found { Ok(()) } else { Err(ScaffoldError::Length { what, expected, found }) }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn rounded(values: impl Iterator<Item = f64>) -> Result<Vec<f32>, ScaffoldError> {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(ScaffoldError::NotFinite { index }),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests;
