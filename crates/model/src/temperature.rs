//! Logits at a sampling temperature, the same for whoever samples and whoever trains.

use tch::{TchError, Tensor};

/// Smallest temperature above 0: smaller numbers have no f32 of full precision.
pub const MIN_TEMPERATURE: f64 = 1.2e-38;

/// Below this, quotients of logits may leave the range of f32.
const SMALL: f64 = 1e-6;

/// Where quotients end at a small temperature. Their probability is 0, and its product with them is a number.
const LOWEST: f64 = -1e38;

/// Divides logits by a temperature of at least [`MIN_TEMPERATURE`]; what a softmax makes of them is finite where they are.
///
/// # Shapes
/// `logits` `[n, vocab]`, as is the result.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn at_temperature(logits: Tensor, temperature: f64) -> Result<Tensor, TchError> {
    // A division by exactly one would still cost a pass over the largest tensor there is.
    if (temperature - 1.0).abs() <= f64::EPSILON {
        return Ok(logits);
    }
    if temperature >= SMALL {
        return logits.f_div_scalar(temperature);
    }
    // A softmax does not change where all logits of a row move together.
    let largest = logits.f_detach()?.f_amax([-1_i64].as_slice(), true)?;
    logits
        .f_sub(&largest)?
        .f_div_scalar(temperature)?
        .f_clamp_min(LOWEST)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn log_softmax(logits: &[f32], temperature: f64) -> Vec<f32> {
        let logits = Tensor::from_slice(logits).unsqueeze(0);
        let all = at_temperature(logits, temperature).unwrap();
        let all = all.log_softmax(-1, Kind::Float).squeeze();
        Vec::try_from(all).unwrap()
    }

    #[test]
    fn the_smallest_temperatures_take_the_likeliest_token() {
        for temperature in [9e-7, 1e-20, 1e-37, MIN_TEMPERATURE] {
            let all = log_softmax(&[3.0, -400.0, 3.0, 2.0], temperature);
            assert!(all.iter().all(|logp| logp.is_finite()), "{all:?}");
            let half = -std::f32::consts::LN_2;
            assert!((all[0] - half).abs() < 1e-6 && (all[2] - half).abs() < 1e-6);
            assert!(all[1] < -1e5 && all[3] < -1e5, "{all:?}");
        }
        // A logit that is not finite gives NaN.
        assert!(log_softmax(&[1.0, f32::NAN], 1e-30)[0].is_nan());
        assert!(log_softmax(&[1.0, f32::INFINITY], 1e-30)[0].is_nan());
    }

    #[test]
    fn both_ways_of_dividing_agree() {
        let logits = [1.0e-6, 3.0e-6, -2.0e-6];
        let (a, b) = (
            log_softmax(&logits, 1e-6),
            log_softmax(&logits, 0.999_999e-6),
        );
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        assert_eq!(log_softmax(&[0.5, 1.0], 1.0).len(), 2);
    }

    #[test]
    fn gradients_at_a_small_temperature_are_numbers() {
        let logits = Tensor::from_slice(&[3.0_f32, 1.0, -5.0]).unsqueeze(0);
        let logits = logits.set_requires_grad(true);
        let all = at_temperature(logits.shallow_clone(), 1e-37).unwrap();
        let all = all.log_softmax(-1, Kind::Float);
        all.narrow(1, 0, 1).sum(Kind::Float).backward();
        let gradient = Vec::<f32>::try_from(logits.grad().squeeze()).unwrap();
        assert_eq!(gradient, [0.0; 3]);
    }
}
