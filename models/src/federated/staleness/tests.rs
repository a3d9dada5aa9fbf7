//! The paper's function, value by value.

use super::*;

#[test]
fn weights_are_the_definition() {
    let weights = |exponent| [0, 1, 2, 3, 8].map(|it| Staleness { exponent }.weight(it).unwrap());
    let near = |found: [f64; 5], expected: [f64; 5]| {
        let near = found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near, "{found:?}, expected {expected:?}");
    };
    near(weights(0.5), [1.0, 0.5_f64.sqrt(), (1.0_f64 / 3.0).sqrt(), 0.5, 1.0 / 3.0]);
    near(weights(2.0), [1.0, 1.0 / 4.0, 1.0 / 9.0, 1.0 / 16.0, 1.0 / 81.0]);
    near(weights(0.0), [1.0; 5]);
}

#[test]
fn bad_exponents_are_refused() {
    for exponent in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(Staleness { exponent }.weight(1).is_err(), "{exponent}");
    }
}
