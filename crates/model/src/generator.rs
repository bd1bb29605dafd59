//! libtorch's random generator, of which there is one per process.

use std::sync::{Mutex, PoisonError};

/// Seeding and drawing must not interleave with another thread's.
static GENERATOR: Mutex<()> = Mutex::new(());

/// Runs `draw` with the generator at a seed, while no other thread draws.
pub(crate) fn seeded<T>(seed: u64, draw: impl FnOnce() -> T) -> T {
    let _alone = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed.cast_signed());
    draw()
}
