//! Parts that both stages share: opening a run, resuming, saving, metrics, by all ranks together.

mod folder;
mod launch_file;
mod memory_plan;
mod options;
mod saving;
mod settle;
mod shared_folder;
mod snapshot;
mod stage_run;

use asyncthink_checkpoint::Checkpoint;
use asyncthink_distributed::{AdamW, Ranks, optimizer_files};
use asyncthink_metrics::ByteCounts;
use asyncthink_torch::empty_cache;

pub(crate) use memory_plan::{Asked, MemoryPlan, machine_of};
pub use options::{Attempt, Resume, RunOptions, RunOutcome};
pub use settle::settle;
pub(crate) use shared_folder::check_shared_folder;
pub(crate) use stage_run::{Origin, StageRun};

use crate::error::{Error, Result};
use crate::settings::RunSettings;
use asyncthink_gradient::PolicyModel;

/// Bytes that this rank has put into operations between ranks, by kind.
pub(crate) fn exchanged_bytes(ranks: &Ranks) -> ByteCounts {
    ranks.group().traffic().by_kind().into_iter().collect()
}

/// Makes the optimizer of a stage, with the moments of the checkpoint that the run resumes from.
///
/// # Errors
/// When the memory cannot be had, the moments cannot be read, or a rank is lost.
pub fn new_optimizer(
    model: &mut PolicyModel,
    settings: &RunSettings,
    ranks: &Ranks,
    checkpoint: Option<&Checkpoint>,
) -> Result<AdamW> {
    let bucket_bytes = settings.distributed.bucket_bytes(ranks.world_size());
    let mut optimizer = model.new_optimizer(settings.adamw(), bucket_bytes)?;
    if let Some(checkpoint) = checkpoint {
        let num_updates = checkpoint.state.num_updates;
        optimizer_files::restore(&mut optimizer, ranks, &checkpoint.dir, num_updates)?;
    }
    // What the weights took while they were loaded one by one.
    empty_cache(model.device())?;
    Ok(optimizer)
}

/// Fails if a metric is not finite.
pub(crate) fn check_finite(step: u64, what: &'static str, value: f64) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(Error::NonFinite { step, what, value })
    }
}

/// Fails if a weight or a moment of this rank is not finite: such a checkpoint would take the place of good ones.
fn check_finite_state(step: u64, model: &PolicyModel, optimizer: &AdamW) -> Result<()> {
    let found = match model.first_non_finite()? {
        Some(weights) => Some(weights),
        None => optimizer.first_non_finite()?,
    };
    found.map_or(Ok(()), |tensor| {
        Err(Error::NonFiniteTensor { step, tensor })
    })
}
