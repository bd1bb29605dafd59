//! Evaluation on validation problems during a run.

use std::sync::Arc;
use std::time::Instant;

use asyncthink_algorithms::RewardRule;
use asyncthink_data::{Stream, derive_seed, evaluation_sample};
use asyncthink_distributed::Ranks;
use asyncthink_gradient::PolicyModel;
use asyncthink_metrics::Phase;
use asyncthink_recipe::GrpoMetric;
use asyncthink_rollout::{EpisodeMetrics, EpisodeSampler, EpisodeSummary, Query, reward_episode};
use asyncthink_tasks::Problem;

use crate::error::{Error, Result};
use crate::observer::Observer;
use crate::problems::validation_problems;
use crate::settings::GrpoSettings;

/// Validation problems, and how they are evaluated: with the same seeds each time, so that evaluations differ by the model
/// alone.
pub(super) struct Validation {
    /// Indices among all validation problems, with the problems.
    problems: Vec<(usize, Problem)>,
    every_steps: u64,
    num_steps: u64,
    samples_per_problem: usize,
    temperature: f64,
    seed: u64,
    rule: RewardRule,
    count_unjoined: bool,
    ranks: Arc<Ranks>,
}

/// What an evaluation measured.
pub(super) struct Validated {
    pub(super) metrics: EpisodeMetrics,
    pub(super) seconds: f64,
}

impl Validation {
    /// Reads the validation problems; `None` where the recipe asks for no evaluations. Rewards are those of the last step,
    /// whose weight of concurrency is `final_lambda`.
    ///
    /// # Errors
    /// When the file is missing, damaged, empty or has fewer problems than the recipe asks for.
    pub(super) fn of(
        settings: &GrpoSettings,
        final_lambda: f64,
        ranks: &Arc<Ranks>,
    ) -> Result<Option<Self>> {
        let (run, section) = (&settings.run, &settings.section);
        let Some(every_steps) = section.eval_every_steps else {
            return Ok(None);
        };
        let all = validation_problems(&run.layout, &run.task)?;
        let wanted = section.eval_num_problems.unwrap_or(all.len());
        if wanted > all.len() {
            return Err(Error::Setting {
                key: "grpo.eval_num_problems",
                reason: format!("asks for {wanted} problems, and there are {}", all.len()),
            });
        }
        let problems = evaluation_sample(run.seed, all.len(), wanted)
            .into_iter()
            .map(|index| (index, all[index].clone()))
            .collect();
        Ok(Some(Self {
            problems,
            every_steps: every_steps as u64,
            num_steps: run.num_steps,
            samples_per_problem: section.eval_samples_per_problem.unwrap_or(1),
            temperature: section.eval_temperature.unwrap_or(section.temperature),
            seed: run.seed,
            rule: RewardRule::of(&section.reward, final_lambda),
            count_unjoined: section.reward.count_unjoined,
            ranks: Arc::clone(ranks),
        }))
    }

    /// The problems, for a fingerprint.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().map(|(_, problem)| problem)
    }

    /// Whether the step, counted from 1, is evaluated.
    pub(super) fn is_due(&self, step: u64) -> bool {
        step == self.num_steps || step.is_multiple_of(self.every_steps)
    }

    /// Evaluates the model as step `step` left it; a collective. It cannot be stopped in between: the weights have moved, and
    /// the step ends with its metrics.
    ///
    /// # Errors
    /// When the model fails, or a rank is lost.
    pub(super) fn run(
        &self,
        step: u64,
        sampler: &EpisodeSampler,
        model: &mut PolicyModel,
        observer: &mut dyn Observer,
    ) -> Result<Validated> {
        let started = Instant::now();
        self.ranks.set_step_phase("grpo", step, "evaluating");
        model.begin_sampling()?;
        let summaries = self
            .summaries(sampler, model, observer)
            .map_err(|error| error.at_step(step));
        model.end_sampling();
        let metrics = EpisodeMetrics::of_summaries(&self.of_all_ranks(summaries?)?)
            .ok_or_else(|| Error::stage("evaluating", "no episodes"))?;
        Ok(Validated {
            metrics,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// Episodes of this rank's share of the problems, in their order.
    fn summaries(
        &self,
        sampler: &EpisodeSampler,
        model: &PolicyModel,
        observer: &mut dyn Observer,
    ) -> Result<Vec<EpisodeSummary>> {
        let share = &self.problems[self.ranks.share_of(self.problems.len())];
        let mut queries = Vec::with_capacity(share.len() * self.samples_per_problem);
        for (index, problem) in share {
            let prompt = sampler.problem_prompt(&model.tokenizer, problem, *index)?;
            for sample_index in 0..self.samples_per_problem {
                let (problem, sample) = (*index as u64, sample_index as u64);
                queries.push(Query {
                    prompt: Arc::clone(&prompt),
                    sample_index,
                    seed: derive_seed(self.seed, Stream::Evaluation, problem, sample),
                });
            }
        }
        if queries.is_empty() {
            return Ok(Vec::new());
        }
        let episodes = sampler.run_at(
            self.temperature,
            model.sampler()?,
            &model.tokenizer,
            &queries,
            &mut |progress| {
                observer.phase(
                    Phase::Eval,
                    progress.finished_episodes as u64,
                    progress.total_episodes as u64,
                );
                true
            },
        )?;
        let problems = share
            .iter()
            .flat_map(|(_, problem)| std::iter::repeat_n(problem, self.samples_per_problem));
        let graded: Vec<_> = episodes
            .into_iter()
            .zip(problems)
            .map(|(episode, problem)| {
                let tokenizer = &model.tokenizer;
                reward_episode(episode, problem, tokenizer, &self.rule, self.count_unjoined)
            })
            .collect();
        Ok(EpisodeSummary::of_all(&graded))
    }

    /// Summaries of all ranks, in the order of the problems.
    fn of_all_ranks(&self, own: Vec<EpisodeSummary>) -> Result<Vec<EpisodeSummary>> {
        if self.ranks.is_alone() {
            return Ok(own);
        }
        let failed = |error| Error::stage("exchanging the metrics of an evaluation", error);
        let bytes = serde_json::to_vec(&own).map_err(failed)?;
        let mut all = Vec::new();
        for bytes in self.ranks.gather_bytes(&bytes)? {
            let of_rank: Vec<EpisodeSummary> = serde_json::from_slice(&bytes).map_err(failed)?;
            all.extend(of_rank);
        }
        Ok(all)
    }
}

/// The figures of an evaluation that checkpoints may be compared by.
pub(super) fn metrics_of_checkpoint(metrics: &EpisodeMetrics) -> [(GrpoMetric, Option<f64>); 4] {
    [
        (GrpoMetric::ValidationReward, Some(metrics.reward)),
        (
            GrpoMetric::ValidationAccuracy,
            Some(metrics.reward_accuracy),
        ),
        (GrpoMetric::ValidationAllCorrect, Some(metrics.all_correct)),
        (GrpoMetric::ValidationEtaRatio, metrics.eta_ratio),
    ]
}
