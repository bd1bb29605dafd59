//! Callbacks on gradients that are ready, so that they can be reduced while the backward pass goes on.
#![expect(unsafe_code, reason = "calls the C++ side, and is called by it")]

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, Result};
use crate::ffi;

unsafe extern "C" {
    fn asyncthink_on_grad_ready(
        leaf: *const C_tensor,
        callback: unsafe extern "C" fn(*const c_void, *mut C_tensor, *mut c_void) -> bool,
        context: *const c_void,
        release: unsafe extern "C" fn(*const c_void),
        id: *mut u64,
    ) -> *mut c_char;
    fn asyncthink_remove_grad_hook(leaf: *const C_tensor, id: u64) -> *mut c_char;
    fn asyncthink_hook_reason(reason: *mut c_void, text: *const c_char, size: usize);
}

/// A callback on a gradient; dropping it removes the callback.
#[must_use = "dropping it removes the callback"]
pub struct HookGuard {
    leaf: Tensor,
    id: u64,
    hook: Arc<Hook>,
}

type Callback = Box<dyn FnMut(&Tensor) -> Result<()> + Send>;

struct Hook {
    callback: Mutex<Callback>,
    error: Mutex<Option<Error>>,
}

/// Calls `callback` with `leaf` in every backward pass that reaches it, once the pass has added all of its gradient to
/// `leaf.grad()`: while the pass goes on with what lies before, in the order in which gradients become ready.
///
/// What a step needs may take several passes: micro-batches, or the parts of a chunked head. Each of them calls.
///
/// The callback runs in the thread of the backward pass, on GPUs in one of libtorch's, and must not start a pass that
/// reaches the same leaf. If it fails or panics, the backward pass fails with its message, and the error itself is to
/// be had from [`HookGuard::take_error`]. A leaf can have several callbacks; they are called in the order of their
/// making. To be called while no backward pass runs.
///
/// # Errors
/// A tensor that is no leaf, or that requires no gradient.
pub fn on_grad_ready(
    leaf: &Tensor,
    callback: impl FnMut(&Tensor) -> Result<()> + Send + 'static,
) -> Result<HookGuard> {
    let hook = Arc::new(Hook {
        callback: Mutex::new(Box::new(callback)),
        error: Mutex::new(None),
    });
    let mut id = 0;
    // SAFETY: the leaf lives for the call. The context is a reference count that the other side gives back to
    // `release`, once, on failure too, and hands to `call` only before.
    unsafe {
        let message = asyncthink_on_grad_ready(
            leaf.as_ptr(),
            call,
            Arc::into_raw(Arc::clone(&hook)).cast(),
            release,
            &raw mut id,
        );
        ffi::check("on_grad_ready", message)?;
    }
    Ok(HookGuard {
        leaf: leaf.shallow_clone(),
        id,
        hook,
    })
}

impl HookGuard {
    /// The error of the callback that made a backward pass fail, once.
    pub fn take_error(&self) -> Option<Error> {
        lock(&self.hook.error).take()
    }
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        // SAFETY: the leaf lives, and a failure of removing has nobody to be told.
        let _ = unsafe {
            let message = asyncthink_remove_grad_hook(self.leaf.as_ptr(), self.id);
            ffi::check("on_grad_ready", message)
        };
    }
}

impl std::fmt::Debug for HookGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HookGuard").finish_non_exhaustive()
    }
}

/// Runs a callback for the C++ side; false, with a reason, if it failed.
///
/// # Safety
/// `context` is that of `on_grad_ready` and not released; `leaf` is handed over; `reason` goes back to
/// `asyncthink_hook_reason`.
unsafe extern "C" fn call(
    context: *const c_void,
    leaf: *mut C_tensor,
    reason: *mut c_void,
) -> bool {
    // SAFETY: as promised by the caller.
    let (hook, leaf) = unsafe { (&*context.cast::<Hook>(), Tensor::from_ptr(leaf)) };
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut callback = lock(&hook.callback);
        callback(&leaf)
    }));
    let error = match result {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error,
        Err(panic) => Error::CallbackPanicked {
            message: panic_message(panic),
        },
    };
    let text = error.to_string();
    // SAFETY: as promised by the caller; the text is borrowed for the call.
    unsafe { asyncthink_hook_reason(reason, text.as_ptr().cast(), text.len()) };
    *lock(&hook.error) = Some(error);
    false
}

/// Gives the C++ side's reference back.
///
/// # Safety
/// `context` is that of `on_grad_ready` and not used again.
unsafe extern "C" fn release(context: *const c_void) {
    // SAFETY: as promised by the caller.
    let hook = unsafe { Arc::from_raw(context.cast::<Hook>()) };
    // What the callback holds is code of others too, and no panic may reach C++. A payload whose own drop panics is
    // left alone.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(hook))) {
        std::mem::forget(panic);
    }
}

fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let text = if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "no message".to_owned()
    };
    std::mem::forget(panic);
    text
}

/// Locks also after a panic of the callback, which is reported in another way.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::{Device, Kind};

    use super::*;
    use crate::autograd::{backward_with_grad, backward_with_grads};

    fn leaf(value: f64) -> Tensor {
        Tensor::from_slice(&[value]).set_requires_grad(true)
    }

    fn value(tensor: &Tensor) -> f64 {
        tensor.double_value(&[0])
    }

    fn one() -> Tensor {
        Tensor::from_slice(&[1.0_f64])
    }

    /// Notes its name and the gradient of the leaf when it is called.
    type Notes = Arc<Mutex<Vec<(&'static str, f64)>>>;

    fn note(name: &'static str, leaf: &Tensor, notes: &Notes) -> HookGuard {
        let notes = Arc::clone(notes);
        on_grad_ready(leaf, move |leaf| {
            lock(&notes).push((name, value(&leaf.grad())));
            Ok(())
        })
        .unwrap()
    }

    #[test]
    fn called_once_per_pass_when_all_is_added_last_layer_first() {
        let (first, second, third) = (leaf(2.0), leaf(3.0), leaf(5.0));
        let notes = Notes::default();
        let _guards = [
            note("first", &first, &notes),
            note("third", &third, &notes),
            note("second", &second, &notes),
        ];
        // `first` is used twice: its gradient has two parts, and is ready when both are added.
        let pass = || {
            let hidden = (&first + 0.0) * &second;
            backward_with_grad(&(&hidden * &third + &first), &one()).unwrap();
        };
        pass();
        let taken = std::mem::take(&mut *lock(&notes));
        assert_eq!(taken, [("third", 6.0), ("second", 10.0), ("first", 16.0)]);
        pass();
        let taken = std::mem::take(&mut *lock(&notes));
        assert_eq!(taken, [("third", 12.0), ("second", 20.0), ("first", 32.0)]);
    }

    #[test]
    fn several_callbacks_each_removed_with_its_guard() {
        let x = leaf(1.0);
        let notes = Notes::default();
        let early = note("early", &x, &notes);
        let late = note("late", &x, &notes);
        let pass = || {
            lock(&notes).clear();
            (&x * 2.0).backward();
            lock(&notes).iter().map(|note| note.0).collect::<Vec<_>>()
        };
        assert_eq!(pass(), ["early", "late"]);
        drop(early);
        assert_eq!(pass(), ["late"]);
        drop(late);
        assert!(pass().is_empty());
        let _again = note("again", &x, &notes);
        assert_eq!(pass(), ["again"]);
    }

    #[test]
    fn what_the_callback_holds_is_dropped_with_the_guard() {
        let x = leaf(1.0);
        let held = Arc::new(());
        let guard = on_grad_ready(&x, {
            let held = Arc::clone(&held);
            move |_| {
                let _ = &held;
                Ok(())
            }
        })
        .unwrap();
        assert_eq!(Arc::strong_count(&held), 2);
        drop(guard);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_guard_can_be_dropped_by_its_own_callback() {
        let x = leaf(1.0);
        let calls = Arc::new(AtomicUsize::new(0));
        let slot: Arc<Mutex<Option<HookGuard>>> = Arc::default();
        let guard = on_grad_ready(&x, {
            let (calls, slot) = (Arc::clone(&calls), Arc::clone(&slot));
            move |_| {
                calls.fetch_add(1, Ordering::SeqCst);
                lock(&slot).take();
                Ok(())
            }
        })
        .unwrap();
        *lock(&slot) = Some(guard);
        (&x * 2.0).backward();
        (&x * 2.0).backward();
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failure_fails_the_pass_and_the_next_pass_works() {
        let x = leaf(1.0);
        let count = Arc::new(AtomicUsize::new(0));
        let guard = on_grad_ready(&x, {
            let count = Arc::clone(&count);
            move |_| match count.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("no more {}", "paper"),
                1 => Err(Error::NoGpu {
                    device: "cuda:7".to_owned(),
                }),
                _ => Ok(()),
            }
        })
        .unwrap();
        let y = &x * 2.0;
        let pass = || backward_with_grads(&[&y], &[&one()], true);
        let error = pass().unwrap_err().to_string();
        assert_eq!(
            error,
            "`backward_with_grad` failed: the callback of `on_grad_ready` panicked: no more paper"
        );
        let error = guard.take_error().unwrap();
        assert!(matches!(error, Error::CallbackPanicked { .. }), "{error}");
        assert!(pass().unwrap_err().to_string().contains("`cuda:7`"));
        let error = guard.take_error().unwrap();
        assert!(matches!(error, Error::NoGpu { .. }), "{error}");
        pass().unwrap();
        assert!(guard.take_error().is_none());
        assert!(
            (value(&x.grad()) - 6.0).abs() < 1e-12,
            "each pass had added its part"
        );
    }

    #[test]
    fn only_leaves_that_require_a_gradient() {
        let plain = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        let inner = leaf(1.0) * 2.0;
        for tensor in [&plain, &inner, &Tensor::new()] {
            let held = Arc::new(());
            let kept = Arc::clone(&held);
            let error = on_grad_ready(tensor, move |_| {
                let _ = &kept;
                Ok(())
            });
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with("`on_grad_ready` failed: "), "{error}");
            assert_eq!(Arc::strong_count(&held), 1, "given back");
        }
    }
}
