//! Running a model on held-out problems.

use std::path::Path;

use asyncthink_recipe::{Recipe, RulesFrom};
use asyncthink_trainer::{
    EpisodeSampler, MODEL_CARD_FILE, ModelCard, ModelFiles, Stream, derive_seed,
    open_recipe_device, test_problems,
};

use crate::bootstrap::Bootstrap;
use crate::episode_line::EpisodeLine;
use crate::error::{Error, Result};
use crate::outcome::EpisodeOutcome;
use crate::summary::{Evaluation, summarise};

/// How far an evaluation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalProgress {
    /// Episodes that ended.
    pub finished_episodes: usize,
    /// Episodes in all.
    pub total_episodes: usize,
}

/// Runs the model in `model_dir` on the held-out problems of `recipe`, by the rules that `eval.rules_from` names.
///
/// Returns the figures and what they were counted from, problem after problem. Seeds depend on problem and sample only, so two models meet the same draws. `progress` may stop it by returning
/// `false`.
///
/// # Errors
/// When the recipe has no `[eval]`, asks for more problems than there are, the problems or the model cannot be read, or the model fails.
pub fn evaluate(
    model_dir: &Path,
    recipe: &Recipe,
    progress: &mut dyn FnMut(EvalProgress) -> bool,
) -> Result<(Evaluation, Vec<EpisodeLine>)> {
    let section = recipe.eval.as_ref().ok_or(Error::MissingSection)?;
    let mut problems = test_problems(recipe)?;
    if let Some(wanted) = section.num_problems {
        // A smaller sample than the recipe asks for would pass for the one asked for.
        if wanted > problems.len() {
            return Err(Error::TooFewProblems {
                wanted,
                found: problems.len(),
            });
        }
        problems.truncate(wanted);
    }
    let card = match section.rules_from {
        RulesFrom::Model if model_dir.join(MODEL_CARD_FILE).is_file() => {
            ModelCard::read(model_dir)?
        }
        _ => ModelCard::of(recipe),
    };
    let protocol = card.rollout_settings().protocol;
    let sampler =
        EpisodeSampler::new(&card, section.temperature)?.with_max_agents(recipe.engine.max_agents);
    let mut queries = Vec::new();
    for (index, problem) in problems.iter().enumerate() {
        for sample in 0..section.samples_per_problem {
            let seed = derive_seed(recipe.seed, Stream::Evaluation, index as u64, sample as u64);
            queries.push(sampler.query(problem, index, sample, seed));
        }
    }
    let device = open_recipe_device(recipe)?;
    let model = ModelFiles::load(model_dir, device)?;
    let episodes = sampler.run(&model.decoder, &model.tokenizer, &queries, &mut |state| {
        progress(EvalProgress {
            finished_episodes: state.finished_episodes,
            total_episodes: state.total_episodes,
        })
    })?;
    if episodes.len() < queries.len() {
        return Err(Error::Stopped);
    }
    let outcomes: Vec<EpisodeOutcome> = episodes
        .iter()
        .map(|episode| EpisodeOutcome::of(episode, &problems[episode.prompt_index]))
        .collect();
    let lines = episodes
        .iter()
        .zip(&outcomes)
        .zip(&queries)
        .map(|((episode, outcome), query)| {
            EpisodeLine::of(episode, outcome, &query.text, protocol, &model.tokenizer)
        })
        .collect();
    let bootstrap = Bootstrap::new(
        problems.len(),
        section.bootstrap_samples,
        section.confidence,
        recipe.seed,
    );
    let evaluation = Evaluation {
        model: model_dir.display().to_string(),
        num_problems: problems.len(),
        samples_per_problem: section.samples_per_problem,
        temperature: section.temperature,
        confidence: section.confidence,
        bootstrap_samples: section.bootstrap_samples,
        seed: recipe.seed,
        metrics: summarise(&outcomes, problems.len(), &bootstrap),
    };
    Ok((evaluation, lines))
}
