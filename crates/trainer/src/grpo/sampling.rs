//! Sampling and grading of a step's groups, in rounds.

use std::sync::Arc;
use std::time::Instant;

use asyncthink_algorithms::RewardRule;
use asyncthink_algorithms::reward::kl_of_token;
use asyncthink_data::{Stream, Tokenizer, derive_seed, permutation};
use asyncthink_gradient::{PolicyModel, score_rows_with};
use asyncthink_metrics::Phase;
use asyncthink_recipe::KlEstimator;
use asyncthink_rollout::{
    AdvantageRule, Episode, Query, RewardedEpisode, assign_advantages, reward_episode,
    training_rows,
};

use super::sampled::Sampled;
use super::step::Trainer;
use super::step_context::StepContext;
use crate::error::{Error, Result};

/// Sum of an estimate over tokens, and their number.
type TokenSum = [f64; 2];

impl Trainer<'_> {
    /// Samples the groups of a step, and others in place of groups of equal rewards while `max_sampling_rounds` allows; `None` if the
    /// stop flag was raised. A collective.
    ///
    /// All is a function of seed and step: a resumed run samples what the unbroken one did.
    pub(super) fn sample_groups(
        &mut self,
        done: u64,
        lambda: f64,
        model: &PolicyModel,
        context: &mut StepContext<'_>,
    ) -> Result<Option<Sampled>> {
        let wanted = self.section.prompts_per_step;
        let max_rounds = self.section.max_sampling_rounds;
        let mut prompts = self.prompts(done);
        if max_rounds > 1 {
            prompts.extend(self.refill(done, &prompts));
        }
        let mut sampled = Sampled::default();
        let mut kl = TokenSum::default();
        let (mut next_slot, mut missing) = (0, wanted);
        while missing > 0 && sampled.num_rounds < max_rounds {
            let share = self.ranks.share_of(missing);
            let slots: Vec<usize> = share.map(|place| next_slot + place).collect();
            let queries = self.queries(done, &slots, &prompts, wanted, &model.tokenizer)?;
            let Some(episodes) = self.sample(&queries, model, context)? else {
                return Ok(None);
            };
            let started = Instant::now();
            let mut episodes = self.grade(episodes, lambda, &model.tokenizer);
            context.clock.book(Phase::Reward, started);
            self.penalise(&mut episodes, &mut kl, context)?;
            let started = Instant::now();
            let rule = AdvantageRule {
                estimator: &*self.advantage,
                group: self.section.advantage_group,
                worker_weight: self.section.worker_advantage_weight,
            };
            // Groups are whole on every rank.
            let constant = assign_advantages(&mut episodes, self.section.group_size, rule);
            let groups = self.groups_of_ranks(slots.iter().copied().zip(constant).collect())?;
            for (slot, is_constant) in groups {
                sampled.num_constant += usize::from(is_constant);
                if max_rounds == 1 || !is_constant {
                    sampled.kept.push(slot);
                }
            }
            sampled.episodes.append(&mut episodes);
            sampled.slots.extend(slots);
            sampled.num_rounds += 1;
            next_slot += missing;
            missing = wanted.saturating_sub(sampled.kept.len());
            context.clock.book(Phase::Reward, started);
        }
        sampled.kept.sort_unstable();
        if self.section.has_kl_in_reward() {
            self.ranks.sum(&mut kl)?;
            sampled.kl_reference = (kl[1] > 0.0).then(|| kl[0] / kl[1]);
        }
        Ok(Some(sampled))
    }

    /// Problems to sample in place of groups without a signal, in their order: those that the step does not have first.
    fn refill(&self, done: u64, prompts: &[usize]) -> Vec<usize> {
        let order = permutation(self.seed, Stream::Refill, done, self.problems.len());
        let (again, mut fresh): (Vec<_>, Vec<_>) = order
            .into_iter()
            .partition(|problem| prompts.contains(problem));
        fresh.extend(again);
        fresh
    }

    /// Queries of this rank's slots, group after group, one per episode. `prompts` are the problems of the first `num_first` slots, and
    /// then those that further slots go through in turn.
    fn queries(
        &self,
        done: u64,
        slots: &[usize],
        prompts: &[usize],
        num_first: usize,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Query>> {
        let group_size = self.section.group_size;
        let mut queries = Vec::with_capacity(slots.len() * group_size);
        for &slot in slots {
            let place = match slot.checked_sub(num_first) {
                None => slot,
                Some(beyond) => num_first + beyond % (prompts.len() - num_first),
            };
            let prompt_index = prompts[place];
            let problem = &self.problems[prompt_index];
            let prompt = self
                .sampler
                .problem_prompt(tokenizer, problem, prompt_index)?;
            for sample_index in 0..group_size {
                // By slot, not by prompt: a step that spans two epochs may hold a prompt twice.
                let episode = (slot * group_size + sample_index) as u64;
                let seed = derive_seed(self.seed, Stream::Rollout, done, episode);
                queries.push(Query {
                    prompt: Arc::clone(&prompt),
                    sample_index,
                    seed,
                });
            }
        }
        Ok(queries)
    }

    fn sample(
        &self,
        queries: &[Query],
        model: &PolicyModel,
        context: &mut StepContext<'_>,
    ) -> Result<Option<Vec<Episode>>> {
        let started = Instant::now();
        let StepContext {
            step,
            observer,
            stop,
            ..
        } = context;
        self.set_phase(*step, "sampling");
        // A later round may have nothing for this rank.
        let episodes = if queries.is_empty() {
            Vec::new()
        } else {
            self.sampler
                .run(
                    model.sampler()?,
                    &model.tokenizer,
                    queries,
                    &mut |progress| {
                        observer.phase(
                            Phase::Rollout,
                            progress.finished_episodes as u64,
                            progress.total_episodes as u64,
                        );
                        stop.requested().is_none()
                    },
                )
                .map_err(|error| Error::from(error).at_step(*step))?
        };
        context.clock.book(Phase::Rollout, started);
        let is_cut_short = episodes.len() < queries.len();
        let mut num_cut_short = [f64::from(u8::from(is_cut_short))];
        self.ranks.sum(&mut num_cut_short)?;
        Ok((num_cut_short[0] == 0.0).then_some(episodes))
    }

    fn grade(
        &self,
        episodes: Vec<Episode>,
        lambda: f64,
        tokenizer: &Tokenizer,
    ) -> Vec<RewardedEpisode> {
        let reward = &self.section.reward;
        let rule = RewardRule::of(reward, lambda);
        episodes
            .into_iter()
            .map(|episode| {
                let problem = &self.problems[episode.prompt_index];
                let given = self.given_reward.map(|reward_of| reward_of(&episode));
                let mut rewarded =
                    reward_episode(episode, problem, tokenizer, &rule, reward.count_unjoined);
                if let Some(given) = given {
                    rewarded.reward.total = given;
                }
                rewarded
            })
            .collect()
    }

    /// Notes what is taken off the rewards; a collective where the reference model is in parts. `kl` gets the k3 of every token.
    fn penalise(
        &self,
        episodes: &mut [RewardedEpisode],
        kl: &mut TokenSum,
        context: &mut StepContext<'_>,
    ) -> Result<()> {
        if let Some(rule) = &self.overlong {
            for rewarded in &mut *episodes {
                rewarded.penalty += rule.penalty_of(&rewarded.graded.episode);
            }
        }
        let Some(reference) = self
            .reference
            .as_ref()
            .filter(|_| self.section.has_kl_in_reward())
        else {
            return Ok(());
        };
        let started = Instant::now();
        self.set_phase(context.step, "scoring with the reference");
        let rows = training_rows(episodes)?;
        let scores = score_rows_with(reference, &rows, &self.batch)?;
        let (beta, estimator) = (self.section.kl_beta, self.section.kl_estimator());
        for (row, scores) in rows.iter().zip(scores) {
            let sampled = row.logprobs().unwrap_or_default().iter();
            let sampled = sampled
                .zip(row.loss_mask())
                .filter(|(_, trained)| **trained);
            let tokens = sampled.map(|(logp, _)| f64::from(*logp)).zip(scores);
            let rewarded = &mut episodes[row.episode().0 as usize];
            for (logp, logp_ref) in tokens {
                rewarded.kl_penalty += beta * kl_of_token(estimator, logp, logp_ref);
                kl[0] += kl_of_token(KlEstimator::K3, logp, logp_ref);
                kl[1] += 1.0;
            }
        }
        context.clock.book(Phase::Reference, started);
        Ok(())
    }

    /// Slots of all ranks in this round, each with whether the group has equal rewards.
    fn groups_of_ranks(&self, own: Vec<(usize, bool)>) -> Result<Vec<(usize, bool)>> {
        if self.ranks.is_alone() {
            return Ok(own);
        }
        let exchanging = |error| Error::stage("exchanging groups", error);
        let bytes = serde_json::to_vec(&own).map_err(exchanging)?;
        let mut all = Vec::new();
        for bytes in self.ranks.gather_bytes(&bytes)? {
            let of_rank: Vec<(usize, bool)> = serde_json::from_slice(&bytes).map_err(exchanging)?;
            all.extend(of_rank);
        }
        Ok(all)
    }
}
