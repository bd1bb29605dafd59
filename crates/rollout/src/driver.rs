//! Runs many episodes at once over one backend.

use asyncthink_data::{PromptTemplates, Tokenizer};

use crate::backend::AgentBackend;
use crate::episode::Episode;
use crate::error::{Error, Result};
use crate::expected::ExpectedTokens;
use crate::observer::{ProgressOnly, RolloutObserver, RolloutProgress};
use crate::organizer::{RunningEpisode, Shared};
use crate::query::Query;
use crate::settings::RolloutSettings;
use crate::steps::{StepSource, owner};

/// Runs one episode for every query and returns them in the order of the queries.
///
/// Episodes are admitted in order while the backend has room for a whole pool each, so that a Fork never finds the
/// backend full. `progress` is called after every step of decoding and may stop the rollout by returning `false`; the episodes
/// that have not ended are then missing from the result.
///
/// # Errors
/// When the backend fails or cannot hold one episode, or a prompt cannot be tokenised or is too long.
pub fn rollout(
    backend: &mut dyn AgentBackend,
    tokenizer: &Tokenizer,
    templates: &PromptTemplates,
    settings: &RolloutSettings,
    queries: &[Query],
    progress: &mut dyn FnMut(RolloutProgress) -> bool,
) -> Result<Vec<Episode>> {
    let mut observer = ProgressOnly(progress);
    rollout_observed(
        backend,
        tokenizer,
        templates,
        settings,
        queries,
        &mut observer,
    )
}

/// [`rollout`] with every event of every agent told to `observer`, in the order in which they take effect: within a
/// step workers come before organizers.
///
/// # Errors
/// As [`rollout`].
pub fn rollout_observed(
    backend: &mut dyn AgentBackend,
    tokenizer: &Tokenizer,
    templates: &PromptTemplates,
    settings: &RolloutSettings,
    queries: &[Query],
    observer: &mut dyn RolloutObserver,
) -> Result<Vec<Episode>> {
    let mut expected = ExpectedTokens::default();
    let parts = (tokenizer, templates, settings);
    run_episodes(backend, parts, queries, observer, &mut expected)
}

/// [`rollout_observed`] that knows how long agents were before, and learns from the episodes.
pub(crate) fn run_episodes(
    backend: &mut dyn AgentBackend,
    (tokenizer, templates, settings): (&Tokenizer, &PromptTemplates, &RolloutSettings),
    queries: &[Query],
    observer: &mut dyn RolloutObserver,
    expected: &mut ExpectedTokens,
) -> Result<Vec<Episode>> {
    let eos_ids = tokenizer.eos_ids();
    let mut shared = Shared {
        tokenizer,
        templates,
        settings,
        sampling: settings.sampling.clone().with_eos_ids(eos_ids),
        expected: *expected,
    };
    let agents_per_episode = settings.protocol.capacity.get() as usize;
    let source = &mut StepSource::new(backend);
    let available = source.num_free();
    if available < agents_per_episode {
        return Err(Error::TooFewSlots {
            needed: agents_per_episode,
            available,
        });
    }
    let max_running = available / agents_per_episode;
    let mut waiting = queries.iter().enumerate();
    let mut running: Vec<Option<RunningEpisode>> = Vec::new();
    running.resize_with(queries.len(), || None);
    let mut num_running = 0;
    let mut finished: Vec<Option<Episode>> = vec![None; queries.len()];
    let mut step = Vec::new();
    let mut state = RolloutProgress {
        total_episodes: queries.len(),
        ..RolloutProgress::default()
    };
    loop {
        while num_running < max_running
            && let Some((index, query)) = waiting.next()
        {
            let episode = RunningEpisode::start(index as u64, query, &shared, source)?;
            running[index] = Some(episode);
            num_running += 1;
        }
        if num_running == 0 {
            break;
        }
        // Workers first: a worker that returns in the very step of its Join has returned in time.
        source.next(&mut step)?;
        state.num_steps += 1;
        state.decoded_tokens += step.len() as u64;
        for decoded in &step {
            let (index, worker) = owner(decoded.agent);
            let Some(Some(episode)) = running.get_mut(index) else {
                continue;
            };
            let (token, logprob) = (decoded.token, decoded.logprob);
            let ended = match worker {
                Some(worker) => {
                    episode.on_worker_token(worker, token, logprob, &shared, source, observer)?
                }
                None => episode.on_organizer_token(token, logprob, &shared, source, observer)?,
            };
            if let Some(outcome) = ended
                && let Some(episode) = running[index].take()
            {
                let episode = episode.end(outcome, &shared, source, observer)?;
                shared.expected.observe(&episode);
                finished[index] = Some(episode);
                num_running -= 1;
                state.finished_episodes += 1;
            }
        }
        if !observer.step(state) {
            break;
        }
    }
    for episode in running.iter().flatten() {
        episode.abandon(source)?;
    }
    *expected = shared.expected;
    Ok(finished.into_iter().flatten().collect())
}
