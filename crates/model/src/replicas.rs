//! Threads of a process that share the work on a batch: how many, and how they run.

use std::thread::ScopedJoinHandle;

use asyncthink_torch::{set_operation_threads, thread_budget};
use tch::Device;

use crate::decoder::Decoder;
use crate::error::{Error, Result};

/// Below this many parameters, threads work on parts of the batch instead of sharing every operation.
const SMALL_MODEL_PARAMETERS: i64 = 50_000_000;

/// Thread parallelism of this process.
///
/// Operations of a large model are large: all threads share each of them. In the operations of a small model on the CPU threads
/// would mostly wait for each other, so that each thread gets a part of the batch and a replica of the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallelism {
    num_workers: usize,
    /// `None` leaves libtorch's own number as it is.
    threads_per_operation: Option<usize>,
}

impl Parallelism {
    /// One worker, whose operations use as many threads as libtorch is set to.
    pub const SINGLE: Self = Self {
        num_workers: 1,
        threads_per_operation: None,
    };

    /// One worker, whose operations share `num_threads` threads.
    pub fn within_operations(num_threads: usize) -> Self {
        Self {
            num_workers: 1,
            threads_per_operation: Some(num_threads.max(1)),
        }
    }

    /// `num_threads` workers, one operation at a time each.
    pub fn across_batch(num_threads: usize) -> Self {
        Self {
            num_workers: num_threads.max(1),
            threads_per_operation: Some(1),
        }
    }

    /// The choice for a model of `num_parameters` on `device`, out of the threads that
    /// [`asyncthink_torch::set_num_threads`] allowed; [`Self::SINGLE`] before that call.
    pub fn for_model(num_parameters: i64, device: Device) -> Self {
        thread_budget().map_or(Self::SINGLE, |threads| {
            Self::of_threads(num_parameters, device, threads)
        })
    }

    /// The choice for a model of `num_parameters` on `device`, out of so many threads.
    pub fn of_threads(num_parameters: i64, device: Device, num_threads: usize) -> Self {
        if num_parameters < SMALL_MODEL_PARAMETERS && device == Device::Cpu {
            Self::across_batch(num_threads)
        } else {
            Self::within_operations(num_threads)
        }
    }

    /// [`Self::for_model`] of a decoder.
    pub fn for_decoder(decoder: &Decoder) -> Self {
        Self::for_model(decoder.config().num_parameters(), decoder.device())
    }

    /// Parts that a batch is cut into, each for a worker of its own.
    pub fn num_workers(self) -> usize {
        self.num_workers
    }

    /// Workers for `num_items` things to do: no more than there are things, and one at the least.
    pub fn workers_for(self, num_items: usize) -> usize {
        self.num_workers.min(num_items).max(1)
    }

    /// Sets the number of threads of libtorch's operations, for the whole process. Call it once, before the first use of the
    /// model: sums inside operations depend on this number.
    pub fn apply(self) {
        if let Some(threads) = self.threads_per_operation {
            set_operation_threads(threads);
        }
    }
}

/// Runs `own` on this thread and `other` on a thread for each of `inputs`, which are mostly replicas of a decoder, and returns all
/// results, those of the threads in the order of the inputs.
///
/// All threads have ended when this returns. `other` is called with the worker's number, from 1: `own` is worker 0.
///
/// # Errors
/// When a thread panicked; `work` says what it was doing.
pub fn run_workers<R, O, T>(
    work: &'static str,
    inputs: Vec<R>,
    own: impl FnOnce() -> O,
    other: impl Fn(usize, R) -> T + Sync,
) -> Result<(O, Vec<T>)>
where
    R: Send,
    T: Send,
{
    std::thread::scope(|scope| {
        let other = &other;
        let others: Vec<_> = inputs
            .into_iter()
            .enumerate()
            .map(|(index, input)| scope.spawn(move || other(index + 1, input)))
            .collect();
        let own = own();
        let others: Vec<_> = others.into_iter().map(ScopedJoinHandle::join).collect();
        let others = others
            .into_iter()
            .map(|joined| joined.map_err(|_| Error::Panicked { work }))
            .collect::<Result<_>>()?;
        Ok((own, others))
    })
}

/// Runs `work_on(worker, decoder)` for `num_workers` workers, the first on this thread with the decoder itself, the others on replicas.
/// Returns the results in the order of the workers.
///
/// # Errors
/// When a replica cannot be made or a thread panicked.
pub fn run_on_replicas<T: Send>(
    work: &'static str,
    decoder: &Decoder,
    num_workers: usize,
    work_on: impl Fn(usize, &Decoder) -> T + Sync,
) -> Result<Vec<T>> {
    let replicas = decoder.replicas(num_workers.saturating_sub(1))?;
    let (own, others) = run_workers(
        work,
        replicas,
        || work_on(0, decoder),
        |worker, replica| work_on(worker, &replica),
    )?;
    let mut results = vec![own];
    results.extend(others);
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_workers() {
        let (own, others) = run_workers(
            "counting",
            vec!["a", "b", "c"],
            || "own".to_owned(),
            |worker, input| {
                // The first workers end last.
                std::thread::sleep(std::time::Duration::from_millis(8 / worker as u64));
                format!("{worker}{input}")
            },
        )
        .unwrap();
        assert_eq!(
            (own.as_str(), others.join(" ").as_str()),
            ("own", "1a 2b 3c")
        );
    }

    #[test]
    fn a_panic_is_an_error_that_says_what_was_done() {
        let result = run_workers(
            "counting",
            vec![1, 2],
            || 0,
            |worker, _| {
                assert_ne!(worker, 2, "on purpose");
                worker
            },
        );
        assert_eq!(
            result.unwrap_err().to_string(),
            "counting: a thread panicked"
        );
    }

    #[test]
    fn workers_are_as_many_as_there_is_work_for() {
        assert_eq!(Parallelism::across_batch(4).workers_for(3), 3);
        assert_eq!(Parallelism::across_batch(4).workers_for(0), 1);
        assert_eq!(Parallelism::within_operations(4).workers_for(9), 1);
        assert_eq!(Parallelism::SINGLE.num_workers(), 1);
    }
}
