//! Whether the model that a new run would start from is what the recipe means.

use std::path::Path;

use asyncthink_checkpoint::{StageLock, TrainerState};
use asyncthink_recipe::{GrpoSection, KlEstimator, KlPlacement, Stage};

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
    if (state.step >= num_steps || state.stopped_early) && !is_running {
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

/// Says where the gradient of the KL term is not that of the KL.
pub(super) fn warn_of_estimators(section: &GrpoSection, observer: &mut dyn Observer) {
    if section.kl_beta == 0.0 {
        return;
    }
    match (section.kl_in, section.kl_estimator()) {
        (KlPlacement::Loss, KlEstimator::K1) if !section.kl_bias_correction => observer.warning(
            "`grpo.kl_estimator` = \"k1\" in the loss has a gradient of zero in expectation, so it adds noise only; `k2` has that of the \
             KL, as has `k1` with `kl_bias_correction = true` or `kl_in = \"reward\"`",
        ),
        (KlPlacement::Reward, KlEstimator::K2 | KlEstimator::K3) => observer.warning(
            "`grpo.kl_estimator` taken off the reward has the gradient of the KL with \"k1\" only, the default there",
        ),
        _ => {}
    }
}
