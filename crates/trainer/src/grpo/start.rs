//! Whether the model that a new run would start from is what the recipe means.

use std::path::Path;

use asyncthink_checkpoint::{StageLock, TrainerState};
use asyncthink_recipe::Stage;

use crate::error::{Error, Result};
use crate::observer::Observer;
use crate::settings::GrpoSettings;

/// The recipe's key of the steps of `sft`, as a checkpoint has it.
const SFT_STEPS: &str = "sft.num_steps";

/// Refuses a model of `sft` that has not done its steps, or that `sft` is working on, unless the recipe asks for it. A model that
/// `sft` has not written is taken as it is.
pub(super) fn check_finished(
    settings: &GrpoSettings,
    model: &Path,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Some(goal) = settings.sft else {
        return Ok(());
    };
    let stage = Stage::Sft.name();
    let Some(state) = TrainerState::read(model).filter(|state| state.stage == stage) else {
        return Ok(());
    };
    let own_goal = || state.recipe.get(SFT_STEPS)?.parse().ok();
    let num_steps = goal.num_steps.or_else(own_goal).unwrap_or(state.step);
    let is_running = StageLock::is_held(&settings.run.layout, Stage::Sft);
    if state.step >= num_steps && !is_running {
        return Ok(());
    }
    let error = Error::UnfinishedStage {
        path: model.to_owned(),
        stage,
        is_running,
        step: state.step,
        num_steps,
    };
    if settings.section.init_from_unfinished {
        observer.warning(&format!(
            "{error}; starting from it, as `grpo.init_from_unfinished` says"
        ));
        return Ok(());
    }
    Err(error)
}
