//! Runs many episodes at once over one backend.

use std::collections::BTreeMap;

use asyncthink_data::{PromptTemplates, Tokenizer};

use crate::backend::AgentBackend;
use crate::episode::Episode;
use crate::error::{Error, Result};
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
    let shared = Shared {
        tokenizer,
        templates,
        settings,
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
    let mut running: BTreeMap<u64, RunningEpisode> = BTreeMap::new();
    let mut finished: BTreeMap<u64, Episode> = BTreeMap::new();
    let mut state = RolloutProgress {
        total_episodes: queries.len(),
        ..RolloutProgress::default()
    };
    loop {
        while running.len() < max_running
            && let Some((index, query)) = waiting.next()
        {
            let index = index as u64;
            running.insert(index, RunningEpisode::start(index, query, &shared, source)?);
        }
        if running.is_empty() {
            break;
        }
        let mut tokens = source.next()?;
        state.num_steps += 1;
        state.decoded_tokens += tokens.len() as u64;
        // Workers first: a worker that returns in the very step of its Join has returned in time.
        tokens.sort_by_key(|token| owner(token.agent).1.is_none());
        for decoded in tokens {
            let (index, worker) = owner(decoded.agent);
            let Some(episode) = running.get_mut(&index) else {
                continue;
            };
            let ended = match worker {
                Some(worker) => episode.on_worker_token(
                    worker,
                    decoded.token,
                    decoded.logprob,
                    &shared,
                    source,
                    observer,
                )?,
                None => episode.on_organizer_token(
                    decoded.token,
                    decoded.logprob,
                    &shared,
                    source,
                    observer,
                )?,
            };
            if let Some(outcome) = ended
                && let Some(episode) = running.remove(&index)
            {
                let episode = episode.end(outcome, &shared, source, observer)?;
                finished.insert(index, episode);
            }
        }
        state.finished_episodes = finished.len();
        if !observer.step(state) {
            break;
        }
    }
    for index in running.keys().copied().collect::<Vec<_>>() {
        if let Some(episode) = running.remove(&index) {
            episode.abandon(source)?;
        }
    }
    Ok(finished.into_values().collect())
}
