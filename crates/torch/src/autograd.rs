//! Backward from a tensor with a given gradient, which `tch` lacks.
#![expect(unsafe_code, reason = "calls the C++ side")]

use std::borrow::Borrow;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::ffi;

/// Adds to the `grad` of every leaf below `tensor` the product of `grad` with the derivative of `tensor`.
///
/// This is how a chunked head hands its gradient to the layers below: the head's own backward gives `grad` with
/// respect to the hidden states, one call sends it through the rest of the model. The graph is freed.
///
/// # Shapes
/// `tensor` any shape, part of a graph; `grad` the same shape, kind and device, no graph needed.
///
/// # Errors
/// A `grad` of another shape, a `tensor` without a graph, or a failure of libtorch.
pub fn backward_with_grad(tensor: &Tensor, grad: &Tensor) -> Result<()> {
    backward_with_grads(&[tensor], &[grad], false)
}

/// As [`backward_with_grad`] from several tensors at once, keeping the graph if `retain_graph`.
///
/// # Errors
/// As [`backward_with_grad`]; also lists of different lengths.
pub fn backward_with_grads<T: Borrow<Tensor>, G: Borrow<Tensor>>(
    tensors: &[T],
    grads: &[G],
    retain_graph: bool,
) -> Result<()> {
    const OP: &str = "backward_with_grad";
    if tensors.len() != grads.len() {
        return Err(Error::Argument {
            op: OP,
            argument: "grads",
            expected: format!("{} tensors", tensors.len()),
            got: grads.len().to_string(),
        });
    }
    for (tensor, grad) in tensors.iter().zip(grads) {
        let (tensor, grad) = (tensor.borrow(), grad.borrow());
        if tensor.size() != grad.size() {
            return Err(Error::Argument {
                op: OP,
                argument: "grad",
                expected: format!("of shape {:?}", tensor.size()),
                got: format!("{:?}", grad.size()),
            });
        }
    }
    let (tensors, grads) = (ffi::pointers(tensors), ffi::pointers(grads));
    // SAFETY: both lists hold that many live tensors, borrowed for the call.
    unsafe {
        let message = ffi::asyncthink_backward(
            tensors.as_ptr(),
            grads.as_ptr(),
            tensors.len(),
            retain_graph,
        );
        ffi::check(OP, message)
    }
}

/// Makes `grad` the place that backward passes add the gradient of `tensor` to.
///
/// It may be a view of a larger tensor, so that the gradients of many parameters are one vector. Gradients of a tensor in
/// bf16 may be summed in f32.
///
/// # Shapes
/// `tensor` a leaf that requires gradients; `grad` the same shape and device, of its kind or f32.
///
/// # Errors
/// A `grad` of another shape, or a failure of libtorch.
pub fn set_grad(tensor: &Tensor, grad: &Tensor) -> Result<()> {
    const OP: &str = "set_grad";
    let is_wider = tensor.kind() == Kind::BFloat16 && grad.kind() == Kind::Float;
    if tensor.size() != grad.size() || (tensor.kind() != grad.kind() && !is_wider) {
        return Err(Error::Argument {
            op: OP,
            argument: "grad",
            expected: format!("{:?} of shape {:?}", tensor.kind(), tensor.size()),
            got: format!("{:?} of shape {:?}", grad.kind(), grad.size()),
        });
    }
    let (tensor, grad) = (ffi::pointers(&[tensor]), ffi::pointers(&[grad]));
    // SAFETY: both tensors live during the call; libtorch shares their memory by counting.
    unsafe { ffi::check(OP, ffi::asyncthink_set_grad(tensor[0], grad[0])) }
}

/// The gradient of a trained tensor, for code that adds to it directly: zeros if there was none. `None` where none is wanted.
///
/// # Errors
/// When the memory cannot be had.
pub fn gradient_of(tensor: &Tensor) -> Result<Option<Tensor>> {
    if !tensor.requires_grad() {
        return Ok(None);
    }
    let gradient = tensor.grad();
    if gradient.defined() {
        return Ok(Some(gradient));
    }
    let zeros = tensor
        .f_detach()
        .and_then(|values| values.f_zeros_like())
        .map_err(|error| Error::torch("gradient_of", &error.to_string()))?;
    set_grad(tensor, &zeros)?;
    Ok(Some(zeros))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_given_place_collects_gradients() {
        let all = Tensor::zeros([6], (Kind::Float, Device::Cpu));
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).set_requires_grad(true);
        set_grad(&x, &all.narrow(0, 2, 3)).unwrap();
        for _ in 0..2 {
            (&x * &x).sum(Kind::Float).backward();
        }
        assert_eq!(
            Vec::<f32>::try_from(&all).unwrap(),
            [0.0, 0.0, 4.0, 8.0, 12.0, 0.0]
        );
        assert!(set_grad(&x, &all).is_err());
    }

    #[test]
    fn gradients_of_bf16_are_summed_in_f32_where_their_place_is() {
        let x = Tensor::from_slice(&[1.0_f32, 2.0]).to_kind(Kind::BFloat16);
        let x = x.set_requires_grad(true);
        let sum = Tensor::from_slice(&[1024.0_f32, 0.0]);
        set_grad(&x, &sum).unwrap();
        for _ in 0..2 {
            (&x * &x).sum(Kind::Float).backward();
        }
        // In bf16 the first sum would not move: its neighbours are 8 apart.
        assert_eq!(Vec::<f32>::try_from(&sum).unwrap(), [1028.0, 8.0]);
        assert_eq!(x.grad().kind(), Kind::Float);
        assert!(set_grad(&x, &sum.to_kind(Kind::Double)).is_err());
    }

    #[test]
    fn gradient_is_the_vector_jacobian_product() {
        let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).set_requires_grad(true);
        let y = &x * &x;
        backward_with_grad(&y, &Tensor::from_slice(&[1.0_f32, 10.0, 100.0])).unwrap();
        assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [2.0, 40.0, 600.0]);
    }

    #[test]
    fn graph_can_be_kept_for_a_second_call() {
        let x = Tensor::from_slice(&[3.0_f64]).set_requires_grad(true);
        let (y, one) = (&x * &x, Tensor::from_slice(&[1.0_f64]));
        backward_with_grads(&[&y], &[&one], true).unwrap();
        backward_with_grads(&[&y], &[&one], false).unwrap();
        assert_eq!(Vec::<f64>::try_from(x.grad()).unwrap(), [12.0]);
        let freed = backward_with_grad(&y, &one).unwrap_err();
        assert!(freed.to_string().contains("second time"), "{freed}");
    }

    #[test]
    fn errors_name_the_operation() {
        let x = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let error = backward_with_grad(&(&x * 2.0), &Tensor::from_slice(&[1.0_f32])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`backward_with_grad`: `grad` must be of shape [2], not [1]"
        );

        let no_graph = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let error = backward_with_grad(&no_graph, &no_graph)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("`backward_with_grad` failed: ") && !error.contains('\n'),
            "{error}"
        );
    }
}
