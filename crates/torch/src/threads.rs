//! The number of threads and the seed of libtorch's own generator.

use crate::error::{Error, Result};

/// Lets libtorch's operations and rayon use `count` threads each; 0 means all cores that this process may use.
///
/// Both from one number, because they compete for the same cores. To be called once, before either is used.
///
/// # Errors
/// Rayon's threads already run and are another number.
pub fn set_num_threads(count: usize) -> Result<()> {
    let count = if count == 0 {
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
    } else {
        count
    };
    if rayon::ThreadPoolBuilder::new()
        .num_threads(count)
        .build_global()
        .is_err()
    {
        let current = rayon::current_num_threads();
        if current != count {
            return Err(Error::ThreadsStarted {
                requested: count,
                current,
            });
        }
    }
    tch::set_num_threads(i32::try_from(count).unwrap_or(i32::MAX));
    Ok(())
}

/// The number of threads that libtorch's operations use.
pub fn num_threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Seeds libtorch's generators on all devices. Sampling has its own seeds; this one serves initialisation.
pub fn manual_seed(seed: u64) {
    tch::manual_seed(i64::from_ne_bytes(seed.to_ne_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_for_both_and_no_second_one() {
        set_num_threads(2).unwrap();
        assert_eq!((num_threads(), rayon::current_num_threads()), (2, 2));
        set_num_threads(2).unwrap();
        let error = set_num_threads(3).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot use 3 threads: 2 are already running"
        );
    }
}
