//! Running a model on held-out problems.

use std::path::Path;

use asyncthink_recipe::{EvalSection, Recipe, RulesFrom};
use asyncthink_rollout::Query;
use asyncthink_tasks::Problem;
use asyncthink_trainer::{
    EpisodeSampler, MODEL_CARD_FILE, ModelCard, ModelFiles, Ranks, Stream, derive_seed,
    test_problems,
};

use crate::bootstrap::Bootstrap;
use crate::episode_line::EpisodeLine;
use crate::error::{Error, Result};
use crate::outcome::EpisodeOutcome;
use crate::share::{Measured, gather};
use crate::summary::{Evaluation, summarise};

/// How far an evaluation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvalProgress {
    /// Episodes of this rank that ended.
    pub finished_episodes: usize,
    /// Episodes of this rank in all.
    pub total_episodes: usize,
}

/// Runs the model in `model_dir` on the held-out problems of `recipe`, by the rules that `eval.rules_from` names.
///
/// Returns the figures and what they were counted from, problem after problem. Seeds depend on problem and sample only, so
/// two models meet the same draws. `progress` may stop it by returning `false`.
///
/// A collective: every rank samples a contiguous share of the problems, and the first rank alone gets a result. It is the
/// same for any number of ranks, up to the rounding of sums.
///
/// # Errors
/// When the recipe has no `[eval]`, asks for more problems than there are, the problems or the model cannot be read, or the
/// model fails; all ranks fail where one does. [`Error::Stopped`] on all ranks where one was stopped.
pub fn evaluate(
    model_dir: &Path,
    recipe: &Recipe,
    ranks: &Ranks,
    progress: &mut dyn FnMut(EvalProgress) -> bool,
) -> Result<Option<(Evaluation, Vec<EpisodeLine>)>> {
    ranks.set_phase("eval: loading the model");
    let measurement = ranks.agree_as(Measurement::open(model_dir, recipe, ranks))?;
    measurement.check_same(recipe, ranks)?;
    ranks.set_phase("eval: sampling");
    // A rank that fails from here on ends at once: the others may have hours to go.
    let own = measurement.sample(recipe, ranks, progress)?;
    ranks.set_phase("eval: gathering the episodes");
    if ranks.any(own.is_none())? {
        return Err(Error::Stopped);
    }
    let section = measurement.section;
    let num_problems = measurement.problems.len();
    let all = gather(
        own.unwrap_or_default(),
        num_problems,
        section.samples_per_problem,
        ranks,
    )?;
    let Some(all) = all else {
        return Ok(None);
    };
    let (outcomes, lines): (Vec<EpisodeOutcome>, Vec<EpisodeLine>) = all
        .into_iter()
        .map(|measured| (measured.outcome, measured.line))
        .unzip();
    let bootstrap = Bootstrap::new(
        num_problems,
        section.bootstrap_samples,
        section.confidence,
        recipe.seed,
    );
    let evaluation = Evaluation {
        model: model_dir.display().to_string(),
        num_problems,
        samples_per_problem: section.samples_per_problem,
        temperature: section.temperature,
        confidence: section.confidence,
        bootstrap_samples: section.bootstrap_samples,
        seed: recipe.seed,
        metrics: summarise(&outcomes, num_problems, &bootstrap),
    };
    Ok(Some((evaluation, lines)))
}

/// What a rank has opened to measure a model.
struct Measurement<'a> {
    section: &'a EvalSection,
    problems: Vec<Problem>,
    card: ModelCard,
    sampler: EpisodeSampler,
    model: ModelFiles,
}

impl<'a> Measurement<'a> {
    fn open(model_dir: &Path, recipe: &'a Recipe, ranks: &Ranks) -> Result<Self> {
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
        let sampler = EpisodeSampler::new(&card, section.temperature)?
            .with_max_agents(recipe.engine.max_agents);
        let device = ranks.open_device(recipe)?;
        Ok(Self {
            section,
            problems,
            card,
            sampler,
            model: ModelFiles::load(model_dir, device)?,
        })
    }

    /// Fails on all ranks unless they are to measure the same.
    fn check_same(&self, recipe: &Recipe, ranks: &Ranks) -> Result<()> {
        let Self {
            section,
            problems,
            card,
            ..
        } = self;
        let text = format!("{section:?} {} {card:?} {problems:?}", recipe.seed);
        ranks.check_same("recipe, rules and problems", &text)?;
        Ok(ranks.check_same_weights(&self.model)?)
    }

    /// The episodes of this rank's share of the problems; `None` where it was stopped.
    fn sample(
        &self,
        recipe: &Recipe,
        ranks: &Ranks,
        progress: &mut dyn FnMut(EvalProgress) -> bool,
    ) -> Result<Option<Vec<Measured>>> {
        let mut queries = Vec::new();
        for index in ranks.share_of(self.problems.len()) {
            for sample in 0..self.section.samples_per_problem {
                let seed =
                    derive_seed(recipe.seed, Stream::Evaluation, index as u64, sample as u64);
                queries.push(
                    self.sampler
                        .query(&self.problems[index], index, sample, seed),
                );
            }
        }
        if queries.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let model = &self.model;
        let episodes =
            self.sampler
                .run(&model.decoder, &model.tokenizer, &queries, &mut |state| {
                    progress(EvalProgress {
                        finished_episodes: state.finished_episodes,
                        total_episodes: state.total_episodes,
                    })
                })?;
        if episodes.len() < queries.len() {
            return Ok(None);
        }
        let protocol = self.card.rollout_settings().protocol;
        let measured = |(episode, query): (_, &Query)| {
            let outcome = EpisodeOutcome::of(episode, &self.problems[query.prompt_index]);
            let line = EpisodeLine::of(episode, &outcome, &query.text, protocol, &model.tokenizer);
            Measured { outcome, line }
        };
        Ok(Some(episodes.iter().zip(&queries).map(measured).collect()))
    }
}
