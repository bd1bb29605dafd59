//! Runs many episodes at once over one engine.

use std::collections::BTreeMap;

use asyncthink_data::{PromptTemplates, Tokenizer};
use asyncthink_engine::Engine;
use asyncthink_protocol::Protocol;

use crate::Query;
use crate::episode::Episode;
use crate::error::{Error, Result};
use crate::observer::{ProgressOnly, RolloutObserver};
use crate::organizer::{RunningEpisode, Shared, owner};

/// The rules that every episode of a rollout obeys.
#[derive(Clone, Copy, Debug)]
pub struct RolloutSettings {
    /// Tags, capacity and what an overflowing Fork does.
    pub protocol: Protocol,
    /// Decoded tokens after which a worker is cut.
    pub worker_max_tokens: usize,
    /// Decoded tokens after which the organizer is cut; every Join starts the count anew.
    pub organizer_max_tokens: usize,
    /// Decoded tokens of the organizer over the whole episode, if bounded.
    pub organizer_total_tokens: Option<usize>,
}

/// How far a rollout has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolloutProgress {
    /// Episodes that ended.
    pub finished_episodes: usize,
    /// Episodes asked for.
    pub total_episodes: usize,
    /// Tokens decoded so far by all agents.
    pub decoded_tokens: u64,
    /// Engine steps so far.
    pub num_steps: u64,
}

/// Runs one episode for every query and returns them in the order of the queries.
///
/// Episodes are admitted in order while the engine has room for a whole pool each, so that a Fork never finds the
/// engine full. `progress` is called after every step and may stop the rollout by returning `false`; the episodes
/// that have not ended are then missing from the result.
///
/// # Errors
/// When the engine fails or cannot hold one episode, or a prompt cannot be tokenised or is too long.
pub fn rollout(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    templates: &PromptTemplates,
    settings: &RolloutSettings,
    queries: &[Query],
    progress: &mut dyn FnMut(RolloutProgress) -> bool,
) -> Result<Vec<Episode>> {
    let mut observer = ProgressOnly(progress);
    rollout_observed(
        engine,
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
    engine: &mut dyn Engine,
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
    let available = engine.num_free();
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
            running.insert(index, RunningEpisode::start(index, query, &shared, engine)?);
        }
        if running.is_empty() {
            break;
        }
        let mut sampled = engine.step()?;
        state.num_steps += 1;
        state.decoded_tokens += sampled.len() as u64;
        for episode in running.values_mut() {
            episode.count_step();
        }
        // Workers first: a worker that returns in the very step of its Join has returned in time.
        sampled.sort_by_key(|sample| owner(sample.agent).1.is_none());
        for sample in sampled {
            let (index, worker) = owner(sample.agent);
            let Some(episode) = running.get_mut(&index) else {
                continue;
            };
            let ended = match worker {
                Some(worker) => episode.on_worker_token(
                    worker,
                    sample.token,
                    sample.logprob,
                    &shared,
                    engine,
                    observer,
                )?,
                None => episode.on_organizer_token(
                    sample.token,
                    sample.logprob,
                    &shared,
                    engine,
                    observer,
                )?,
            };
            if let Some(outcome) = ended
                && let Some(episode) = running.remove(&index)
            {
                let episode = episode.end(outcome, &shared, engine, observer)?;
                debug_assert!(
                    episode
                        .timeline
                        .as_ref()
                        .is_none_or(|timeline| timeline.latency() == episode.num_steps),
                    "the recursion must give the steps that the engine took"
                );
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
            episode.abandon(engine)?;
        }
    }
    Ok(finished.into_values().collect())
}
