//! The fused AdamW update and the norm of a gradient.
#![expect(unsafe_code, reason = "calls the C++ side")]

use std::borrow::Borrow;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::ffi;

/// The numbers of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwSettings {
    /// Learning rate of this step, schedule included.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay: `param -= learning_rate * weight_decay * param` before the update.
    pub weight_decay: f64,
    /// Added to the square root of the second moment.
    pub eps: f64,
}

/// The moments of some parameters, one of each per parameter.
#[derive(Debug, Clone, Copy)]
pub struct AdamwState<'a> {
    /// First moments.
    pub exp_avgs: &'a [Tensor],
    /// Second moments.
    pub exp_avg_sqs: &'a [Tensor],
}

/// Updates `params` and their moments in place by one step of AdamW, in one pass over memory.
///
/// ```text
/// param *= 1 - learning_rate * weight_decay
/// m = beta1 m + (1 - beta1) grad;  v = beta2 v + (1 - beta2) grad^2
/// param -= learning_rate * (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
/// ```
///
/// `step` is the number of this step, the first being 1. It is held in f32, exact up to 2^24.
///
/// # Shapes
/// The four lists are equally long; the tensors at one index have one shape, kind, device and layout, and all
/// tensors one device.
///
/// # Errors
/// Lists of different lengths, tensors of different shapes, a `step` of 0, or a failure of libtorch.
pub fn fused_adamw_(
    params: &[impl Borrow<Tensor>],
    grads: &[impl Borrow<Tensor>],
    state: AdamwState<'_>,
    step: u64,
    settings: &AdamwSettings,
) -> Result<()> {
    const OP: &str = "fused_adamw_";
    if step == 0 {
        return Err(Error::Argument {
            op: OP,
            argument: "step",
            expected: "at least 1".to_owned(),
            got: step.to_string(),
        });
    }
    check_like(OP, "grads", params, grads)?;
    check_like(OP, "exp_avgs", params, state.exp_avgs)?;
    check_like(OP, "exp_avg_sqs", params, state.exp_avg_sqs)?;
    let params = ffi::pointers(params);
    let grads = ffi::pointers(grads);
    let exp_avgs = ffi::pointers(state.exp_avgs);
    let exp_avg_sqs = ffi::pointers(state.exp_avg_sqs);
    // SAFETY: the four lists hold the same number of live tensors, borrowed for the call.
    unsafe {
        let message = ffi::asyncthink_fused_adamw(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            params.len(),
            step as f64,
            settings.learning_rate,
            settings.beta1,
            settings.beta2,
            settings.weight_decay,
            settings.eps,
        );
        ffi::check(OP, message)
    }
}

/// The 2-norm of all elements of all tensors together; 0 for none.
///
/// # Errors
/// A failure of libtorch, such as tensors on different devices.
pub fn global_norm<T: Borrow<Tensor>>(tensors: &[T]) -> Result<f64> {
    let tensors = ffi::pointers(tensors);
    let mut norm = 0.0;
    // SAFETY: the list holds that many live tensors, and `norm` outlives the call.
    unsafe {
        let message = ffi::asyncthink_global_norm(
            tensors.as_ptr(),
            tensors.len(),
            std::ptr::from_mut(&mut norm),
        );
        ffi::check("global_norm", message)?;
    }
    Ok(norm)
}

/// Multiplies all tensors by `factor`, in place.
///
/// # Errors
/// A failure of libtorch.
pub fn scale_<T: Borrow<Tensor>>(tensors: &[T], factor: f64) -> Result<()> {
    let tensors = ffi::pointers(tensors);
    // SAFETY: the list holds that many live tensors, borrowed for the call.
    unsafe {
        ffi::check(
            "scale_",
            ffi::asyncthink_scale(tensors.as_ptr(), tensors.len(), factor),
        )
    }
}

/// Scales `grads` in place so that their [`global_norm`] is at most `max_norm`; returns the norm before.
///
/// A norm that is not finite leaves the gradients as they are: the caller sees it in the value returned.
///
/// # Errors
/// A failure of libtorch.
pub fn clip_grad_norm_<T: Borrow<Tensor>>(grads: &[T], max_norm: f64) -> Result<f64> {
    let norm = global_norm(grads)?;
    if norm.is_finite() && norm > max_norm {
        scale_(grads, max_norm / norm)?;
    }
    Ok(norm)
}

fn check_like<P: Borrow<Tensor>, T: Borrow<Tensor>>(
    op: &'static str,
    argument: &'static str,
    params: &[P],
    tensors: &[T],
) -> Result<()> {
    if params.len() != tensors.len() {
        return Err(Error::Argument {
            op,
            argument,
            expected: format!("{} tensors", params.len()),
            got: tensors.len().to_string(),
        });
    }
    for (index, (param, tensor)) in params.iter().zip(tensors).enumerate() {
        let (param, tensor) = (param.borrow(), tensor.borrow());
        if !tensor.defined() || param.size() != tensor.size() {
            return Err(Error::Argument {
                op,
                argument,
                expected: format!("of shape {:?} at index {index}", param.size()),
                got: if tensor.defined() {
                    format!("{:?}", tensor.size())
                } else {
                    "undefined".to_owned()
                },
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const SETTINGS: AdamwSettings = AdamwSettings {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        weight_decay: 0.1,
        eps: 1e-8,
    };

    /// AdamW from its formula, in f64.
    fn reference(param: &mut f64, moments: &mut (f64, f64), grad: f64, step: i32) {
        let s = SETTINGS;
        *param *= 1.0 - s.learning_rate * s.weight_decay;
        moments.0 = s.beta1 * moments.0 + (1.0 - s.beta1) * grad;
        moments.1 = s.beta2 * moments.1 + (1.0 - s.beta2) * grad * grad;
        let m = moments.0 / (1.0 - s.beta1.powi(step));
        let v = moments.1 / (1.0 - s.beta2.powi(step));
        *param -= s.learning_rate * m / (v.sqrt() + s.eps);
    }

    #[test]
    fn three_steps_equal_the_formula() {
        let sizes = [5_u32, 33];
        let options = (Kind::Double, Device::Cpu);
        tch::manual_seed(7);
        let params: Vec<Tensor> = sizes
            .iter()
            .map(|&n| Tensor::randn([i64::from(n)], options))
            .collect();
        let zeros = || {
            sizes
                .iter()
                .map(|&n| Tensor::zeros([i64::from(n)], options))
                .collect::<Vec<_>>()
        };
        let (exp_avgs, exp_avg_sqs) = (zeros(), zeros());
        let mut expected: Vec<Vec<f64>> = params.iter().map(|p| p.try_into().unwrap()).collect();
        let mut moments: Vec<Vec<(f64, f64)>> = sizes
            .iter()
            .map(|&n| vec![(0.0, 0.0); n as usize])
            .collect();
        for step in 1..=3 {
            let grads: Vec<Tensor> = sizes
                .iter()
                .map(|&n| Tensor::randn([i64::from(n)], options))
                .collect();
            fused_adamw_(
                &params,
                &grads,
                AdamwState {
                    exp_avgs: &exp_avgs,
                    exp_avg_sqs: &exp_avg_sqs,
                },
                step,
                &SETTINGS,
            )
            .unwrap();
            for (index, grad) in grads.iter().enumerate() {
                let grad: Vec<f64> = grad.try_into().unwrap();
                for (element, &g) in grad.iter().enumerate() {
                    let step = i32::try_from(step).unwrap();
                    reference(
                        &mut expected[index][element],
                        &mut moments[index][element],
                        g,
                        step,
                    );
                }
            }
        }
        for (param, expected) in params.iter().zip(&expected) {
            let difference = (param - Tensor::from_slice(expected))
                .abs()
                .max()
                .double_value(&[]);
            assert!(difference < 1e-12, "{difference}");
        }
    }

    #[test]
    fn wrong_lists_are_refused() {
        let one = [Tensor::zeros([2], (Kind::Float, Device::Cpu))];
        let none: [Tensor; 0] = [];
        let state = AdamwState {
            exp_avgs: &one,
            exp_avg_sqs: &one,
        };
        let error = fused_adamw_(&one, &none, state, 1, &SETTINGS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`fused_adamw_`: `grads` must be 1 tensors, not 0"
        );
        let error = fused_adamw_(&one, &[Tensor::new()], state, 1, &SETTINGS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`fused_adamw_`: `grads` must be of shape [2] at index 0, not undefined"
        );
        let error = fused_adamw_(&one, &one, state, 0, &SETTINGS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`fused_adamw_`: `step` must be at least 1, not 0"
        );
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let grads = [
            Tensor::from_slice(&[3.0_f32, 0.0]),
            Tensor::from_slice(&[4.0_f32]),
        ];
        assert!((clip_grad_norm_(&grads, 10.0).unwrap() - 5.0).abs() < 1e-6);
        assert_eq!(Vec::<f32>::try_from(&grads[0]).unwrap(), [3.0, 0.0]);
        assert!((clip_grad_norm_(&grads, 1.0).unwrap() - 5.0).abs() < 1e-6);
        assert!((global_norm(&grads).unwrap() - 1.0).abs() < 1e-6);
        assert!(global_norm::<Tensor>(&[]).unwrap().abs() < f64::EPSILON);
    }
}
