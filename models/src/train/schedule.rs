//! The step size over time: a pure function of the step.

/// What the optimizer's step size is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Schedule {
    /// Steps over which the factor rises linearly to 1, before `decay` begins.
    pub warm_up: u64,
    /// What follows.
    pub decay: Decay,
}

/// How the step size falls.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Decay {
    /// It does not.
    #[default]
    Constant,
    /// Every so many steps it is multiplied with a factor.
    Step {
        /// Steps between two falls; 0 is never.
        every: u64,
        /// 0 to 1.
        factor: f64,
    },
    /// Half a cosine from 1 to `floor`, which then stays (Loshchilov & Hutter 2017).
    Cosine {
        /// Steps of the fall.
        steps: u64,
        /// The last factor, 0 to 1.
        floor: f64,
    },
}

impl Schedule {
    /// The factor of a step, counted from 0. In a warm-up of `w` steps, step `i` has
    /// `(i + 1) / (w + 1)`.
    #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^53")]
    pub fn factor(&self, step: u64) -> f64 {
        let Some(step) = step.checked_sub(self.warm_up) else {
            return (step + 1) as f64 / (self.warm_up + 1) as f64;
        };
        match self.decay {
            Decay::Constant | Decay::Step { every: 0, .. } => 1.0,
            Decay::Step { every, factor } => {
                factor.powi(i32::try_from(step / every).unwrap_or(i32::MAX))
            }
            Decay::Cosine { steps, floor } => {
                if step >= steps {
                    return floor;
                }
                let angle = std::f64::consts::PI * step as f64 / steps as f64;
                floor + (1.0 - floor) * f64::midpoint(1.0, angle.cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(schedule: Schedule, expected: &[(u64, f64)]) {
        for (step, expected) in expected {
            let found = schedule.factor(*step);
            assert!((found - expected).abs() < 1e-12, "{schedule:?} {step}: {found}, {expected}");
        }
    }

    #[test]
    fn factors_are_those_of_the_definitions() {
        close(Schedule::default(), &[(0, 1.0), (u64::MAX, 1.0)]);
        let warm = Schedule { warm_up: 4, decay: Decay::Step { every: 3, factor: 0.5 } };
        close(warm, &[(0, 0.2), (3, 0.8), (4, 1.0), (6, 1.0), (7, 0.5), (10, 0.25)]);
        let cosine = Schedule { warm_up: 0, decay: Decay::Cosine { steps: 100, floor: 0.1 } };
        close(cosine, &[(0, 1.0), (50, 0.55), (100, 0.1), (1000, 0.1)]);
        close(Schedule { warm_up: 0, decay: Decay::Step { every: 0, factor: 0.5 } }, &[(9, 1.0)]);
    }

    #[test]
    fn a_schedule_never_rises_after_its_warm_up() {
        for decay in
            [Decay::Step { every: 7, factor: 0.9 }, Decay::Cosine { steps: 50, floor: 0.0 }]
        {
            let schedule = Schedule { warm_up: 5, decay };
            let factors: Vec<f64> = (5..100).map(|step| schedule.factor(step)).collect();
            assert!(factors.windows(2).all(|pair| pair[0] >= pair[1]), "{decay:?}");
        }
    }
}
