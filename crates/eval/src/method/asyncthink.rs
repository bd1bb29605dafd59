//! Organizer and workers, by the protocol.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use asyncthink_model::{ModelFolder, PretrainedModel};
use asyncthink_protocol::RawTrace;
use asyncthink_recipe::RulesFrom;
use asyncthink_rollout::{
    Episode, EpisodeSampler, GradedEpisode, MODEL_CARD_FILE, ModelCard, Prompt, Query,
};
use tch::Tensor;

use super::{EvalProgress, Method, OpenMethod, Question, Target};
use crate::error::Result;

/// The method `asyncthink`.
#[derive(Debug)]
pub(super) struct AsyncThink;

/// A model with the rules that it is driven by.
struct OpenModel {
    card: ModelCard,
    sampler: EpisodeSampler,
    model: PretrainedModel,
}

impl Method for AsyncThink {
    fn name(&self) -> &'static str {
        "asyncthink"
    }

    fn open(&self, target: &Target<'_>) -> Result<Box<dyn OpenMethod>> {
        let Target {
            model_dir,
            device,
            settings,
        } = *target;
        let card = match settings.rules_from {
            RulesFrom::Model if model_dir.join(MODEL_CARD_FILE).is_file() => {
                ModelCard::read(model_dir)?
            }
            _ => settings.card.clone(),
        };
        let sampler = EpisodeSampler::new(&card, settings.temperature)?
            .with_engine(settings.engine.clone())
            .with_precision(settings.precision);
        let folder = ModelFolder::new(model_dir).with_base(settings.adapter_base.as_deref());
        let model = PretrainedModel::load(folder, device, settings.precision)?;
        Ok(Box::new(OpenModel {
            card,
            sampler,
            model,
        }))
    }
}

impl OpenModel {
    /// A query for each question; the samples of a problem share their prompt.
    fn queries(&self, questions: &[Question<'_>]) -> Result<Vec<Query>> {
        let mut prompts: BTreeMap<usize, Arc<Prompt>> = BTreeMap::new();
        let mut queries = Vec::with_capacity(questions.len());
        for question in questions {
            let index = question.problem_index;
            let prompt = match prompts.entry(index) {
                Entry::Occupied(prompt) => prompt.into_mut(),
                Entry::Vacant(place) => {
                    let tokenizer = &self.model.tokenizer;
                    let problem = question.problem;
                    place.insert(self.sampler.problem_prompt(tokenizer, problem, index)?)
                }
            };
            queries.push(Query {
                prompt: Arc::clone(prompt),
                sample_index: question.sample_index,
                seed: question.seed,
            });
        }
        Ok(queries)
    }
}

impl OpenMethod for OpenModel {
    fn identity(&self) -> String {
        format!("{:?}", self.card)
    }

    fn parameters(&self) -> &[(String, Tensor)] {
        self.model.decoder.trained_parameters()
    }

    fn run(
        &mut self,
        questions: &[Question<'_>],
        progress: &mut dyn FnMut(EvalProgress) -> bool,
    ) -> Result<Option<Vec<GradedEpisode>>> {
        let queries = self.queries(questions)?;
        let PretrainedModel { decoder, tokenizer } = &self.model;
        let episodes = self
            .sampler
            .run(decoder, tokenizer, &queries, &mut |state| {
                progress(EvalProgress {
                    finished_episodes: state.finished_episodes,
                    total_episodes: state.total_episodes,
                })
            })?;
        if episodes.len() < questions.len() {
            return Ok(None);
        }
        let graded = episodes
            .into_iter()
            .zip(questions)
            .map(|(episode, question)| {
                let graded = GradedEpisode::new(episode, question.problem);
                graded.with_attempts(question.problem, tokenizer)
            });
        Ok(Some(graded.collect()))
    }

    fn raw_trace(&self, episode: &Episode) -> RawTrace {
        episode.raw_trace(&self.model.tokenizer, self.sampler.settings().protocol)
    }
}
