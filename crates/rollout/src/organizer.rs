//! The state of one running episode and how each decoded token changes it.

use std::collections::VecDeque;

use asyncthink_data::{PromptTemplates, TokenId, Tokenizer};
use asyncthink_engine::{AgentId, Request, SamplingParams};
use asyncthink_protocol::{
    Action, ForkPoint, FormatError, Fragment, OrganizerMachine, Overflow, SubQueryId, Timeline,
    WorkerIndex, WorkerMachine,
};

use crate::agent::AgentRecord;
use crate::episode::{Episode, Outcome, WorkerEnd, WorkerRecord};
use crate::error::{Error, Result};
use crate::expected::ExpectedTokens;
use crate::observer::{Agent, AgentEvent, RolloutEvent, RolloutObserver};
use crate::query::Query;
use crate::seeds::mix_seed;
use crate::settings::RolloutSettings;
use crate::steps::{StepSource, organizer_id, worker_id};

/// What every episode of a rollout shares.
pub(crate) struct Shared<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) templates: &'a PromptTemplates,
    pub(crate) settings: &'a RolloutSettings,
    /// Those of the settings, with the ends of sequence of the tokenizer.
    pub(crate) sampling: SamplingParams,
    pub(crate) expected: ExpectedTokens,
}

impl Shared<'_> {
    /// After its ANSWER or RETURN an agent decodes one token more, which should end the sequence: it is trained like the
    /// rest, as the paper's episodes end with it. A vocabulary without such a token has nothing to decode.
    fn has_eos(&self) -> bool {
        !self.tokenizer.eos_ids().is_empty()
    }

    fn is_eos(&self, token: TokenId) -> bool {
        self.tokenizer.eos_ids().contains(&token)
    }
}

pub(crate) struct RunningEpisode {
    index: u64,
    query: Query,
    organizer: AgentRecord,
    machine: OrganizerMachine,
    /// Actions behind a Join that is not served yet; only a token that runs past a Join tag can hold any.
    deferred: VecDeque<Action>,
    waiting_for: Option<(WorkerIndex, SubQueryId)>,
    /// The complete Answer, while the end of sequence is decoded.
    answer: Option<String>,
    workers: Vec<RunningWorker>,
    queued: VecDeque<WorkerIndex>,
    fragments: Vec<Fragment>,
    fragment: Fragment,
    tokens_since_join: usize,
    /// Tokens that the organizer decoded.
    num_decoded: usize,
}

struct RunningWorker {
    sub_query_id: SubQueryId,
    sub_query: String,
    record: AgentRecord,
    machine: WorkerMachine,
    /// The content of its RETURN, while the end of sequence is decoded.
    returned: Option<String>,
    state: WorkerState,
}

#[derive(PartialEq)]
enum WorkerState {
    Queued,
    Running,
    Ended(WorkerEnd),
}

impl RunningEpisode {
    /// Prefills the organizer's prompt.
    pub(crate) fn start(
        index: u64,
        query: &Query,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
    ) -> Result<Self> {
        let prompt = query.prompt.ids.clone();
        let max_tokens = source.max_sequence_tokens();
        if prompt.len() >= max_tokens {
            return Err(Error::PromptTooLong {
                prompt_index: query.prompt.index,
                num_tokens: prompt.len(),
                max_tokens,
            });
        }
        source.start(Request {
            agent: organizer_id(index),
            prompt: prompt.clone(),
            seed: mix_seed(query.seed, 0),
            sampling: shared.sampling.clone(),
            expected_tokens: shared.expected.of_organizer(),
        })?;
        Ok(Self {
            index,
            query: query.clone(),
            organizer: AgentRecord::new(prompt),
            machine: OrganizerMachine::new(shared.settings.protocol),
            deferred: VecDeque::new(),
            waiting_for: None,
            answer: None,
            workers: Vec::new(),
            queued: VecDeque::new(),
            fragments: Vec::new(),
            fragment: Fragment {
                num_tokens: 0,
                forks: Vec::new(),
                join: None,
            },
            tokens_since_join: 0,
            num_decoded: 0,
        })
    }

    /// Tells the observer what happened to an agent.
    fn tell(&self, observer: &mut dyn RolloutObserver, agent: Agent, event: AgentEvent<'_>) {
        observer.event(&RolloutEvent {
            query: usize::try_from(self.index).unwrap_or(usize::MAX),
            agent,
            event,
        });
    }

    fn organizer_agent(&self) -> AgentId {
        organizer_id(self.index)
    }

    fn worker_agent(&self, worker: WorkerIndex) -> AgentId {
        worker_id(self.index, worker)
    }

    /// Takes a token of the organizer; `Some` when the episode has ended.
    pub(crate) fn on_organizer_token(
        &mut self,
        token: TokenId,
        logprob: Option<f32>,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Option<Outcome>> {
        let bytes = shared.tokenizer.token_bytes(token);
        let decoded = AgentEvent::Decoded { token, bytes };
        self.tell(observer, Agent::Organizer, decoded);
        self.organizer.push_decoded(token, logprob);
        self.tokens_since_join += 1;
        self.num_decoded += 1;
        let is_eos = shared.is_eos(token);
        if is_eos {
            self.organizer.end_with_eos();
        } else {
            self.fragment.num_tokens += 1;
        }
        if let Some(answer) = self.answer.take() {
            return Ok(Some(Outcome::Answered(answer)));
        }
        if is_eos {
            return Ok(Some(self.cut()));
        }
        match self.machine.push(bytes) {
            Ok(actions) => self.deferred.extend(actions),
            Err(error) => return Ok(Some(Outcome::Failed(error))),
        }
        self.act(shared, source, observer)
    }

    /// Takes a token of a worker; `Some` when that ended the episode (the organizer could not go on after its Join).
    pub(crate) fn on_worker_token(
        &mut self,
        worker: WorkerIndex,
        token: TokenId,
        logprob: Option<f32>,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Option<Outcome>> {
        let agent = self.worker_agent(worker);
        let bytes = shared.tokenizer.token_bytes(token);
        let decoded = AgentEvent::Decoded { token, bytes };
        self.tell(observer, Agent::Worker(worker), decoded);
        let Some(running) = self.workers.get_mut(worker.0) else {
            return Ok(None);
        };
        running.record.push_decoded(token, logprob);
        let is_eos = shared.is_eos(token);
        if is_eos {
            running.record.end_with_eos();
        }
        let had_returned = running.returned.is_some();
        if let Some(text) = running.machine.push(bytes) {
            running.returned = Some(text);
        }
        let num_ids = running.record.ids().len();
        let is_over = is_eos
            || had_returned
            || (running.returned.is_some() && !shared.has_eos())
            || num_ids - running.record.prompt_tokens() >= shared.settings.worker_max_tokens
            || num_ids >= source.max_sequence_tokens();
        if !is_over {
            return Ok(None);
        }
        if running.returned.is_none() && !is_eos {
            running.record.truncate();
        }
        let end = running
            .returned
            .take()
            .map_or(WorkerEnd::Empty, WorkerEnd::Returned);
        self.end_worker(worker, end, observer);
        source.cancel(agent)?;
        if let Some(next) = self.queued.pop_front() {
            self.launch(next, shared, source)?;
        }
        match self.waiting_for {
            Some((awaited, id)) if awaited == worker => {
                self.waiting_for = None;
                if let Some(outcome) = self.inject(worker, id, shared, source, observer)? {
                    return Ok(Some(outcome));
                }
                self.act(shared, source, observer)
            }
            _ => Ok(None),
        }
    }

    fn end_worker(
        &mut self,
        worker: WorkerIndex,
        end: WorkerEnd,
        observer: &mut dyn RolloutObserver,
    ) {
        self.tell(observer, Agent::Worker(worker), AgentEvent::Ended(&end));
        self.workers[worker.0].state = WorkerState::Ended(end);
    }

    /// Carries out actions up to the first Join that must wait, then applies the budgets.
    fn act(
        &mut self,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Option<Outcome>> {
        while self.waiting_for.is_none()
            && let Some(action) = self.deferred.pop_front()
        {
            match action {
                Action::Fork {
                    id,
                    worker,
                    sub_query,
                    ..
                } => self.fork(worker, id, sub_query, shared, source, observer)?,
                Action::Join { id, worker, .. } => {
                    if let Some(outcome) = self.join(worker, id, shared, source, observer)? {
                        return Ok(Some(outcome));
                    }
                }
                Action::Answer { text, .. } if !shared.has_eos() => {
                    return Ok(Some(Outcome::Answered(text)));
                }
                Action::Answer { text, .. } => self.answer = Some(text),
            }
        }
        if self.waiting_for.is_none() && self.budget_is_spent(shared.settings, source) {
            let answered = self.answer.take().map(Outcome::Answered);
            return Ok(Some(answered.unwrap_or_else(|| self.truncate())));
        }
        Ok(None)
    }

    fn budget_is_spent(&self, settings: &RolloutSettings, source: &StepSource<'_>) -> bool {
        self.tokens_since_join >= settings.organizer_max_tokens
            || settings
                .organizer_total_tokens
                .is_some_and(|limit| self.num_decoded >= limit)
            || self.organizer.ids().len() >= source.max_sequence_tokens()
    }

    /// The outcome of an organizer that stops without an Answer.
    fn cut(&self) -> Outcome {
        Outcome::Failed(self.machine.finish().err().unwrap_or(FormatError::NoAnswer))
    }

    /// The outcome of an organizer that a token limit stops without an Answer.
    fn truncate(&mut self) -> Outcome {
        self.organizer.truncate();
        self.cut()
    }

    fn fork(
        &mut self,
        worker: WorkerIndex,
        id: SubQueryId,
        sub_query: String,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<()> {
        let forked = AgentEvent::Forked {
            sub_query_id: id,
            sub_query: &sub_query,
        };
        self.tell(observer, Agent::Worker(worker), forked);
        let prompt = match shared.templates.worker_ids(shared.tokenizer, &sub_query) {
            Ok(prompt) => Some(prompt),
            // The sub-query is the model's text: a chat template that refuses it ends the worker, not the run.
            Err(asyncthink_data::Error::ChatRender { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        self.fragment.forks.push(ForkPoint {
            worker,
            at_tokens: self.fragment.num_tokens,
        });
        // A prompt that fills the context leaves its worker no token to decode.
        let fits = prompt
            .as_ref()
            .is_some_and(|prompt| prompt.len() < source.max_sequence_tokens());
        self.workers.push(RunningWorker {
            sub_query_id: id,
            sub_query,
            record: AgentRecord::new(prompt.unwrap_or_default()),
            machine: WorkerMachine::new(),
            returned: None,
            state: WorkerState::Queued,
        });
        if !fits {
            self.end_worker(worker, WorkerEnd::Empty, observer);
            return Ok(());
        }
        let running = self
            .workers
            .iter()
            .filter(|worker| worker.state == WorkerState::Running)
            .count();
        let max_workers = shared.settings.protocol.capacity.max_workers() as usize;
        if shared.settings.protocol.overflow == Overflow::Queue && running >= max_workers {
            self.queued.push_back(worker);
            return Ok(());
        }
        self.launch(worker, shared, source)
    }

    fn launch(
        &mut self,
        worker: WorkerIndex,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
    ) -> Result<()> {
        let agent = self.worker_agent(worker);
        let seed = mix_seed(self.query.seed, worker.0 as u64 + 1);
        let running = &mut self.workers[worker.0];
        running.state = WorkerState::Running;
        source.start(Request {
            agent,
            prompt: running.record.ids().to_vec(),
            seed,
            sampling: shared.sampling.clone(),
            expected_tokens: shared.expected.of_worker(),
        })?;
        Ok(())
    }

    fn join(
        &mut self,
        worker: WorkerIndex,
        id: SubQueryId,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Option<Outcome>> {
        self.fragment.join = Some(worker);
        let next = Fragment {
            num_tokens: 0,
            forks: Vec::new(),
            join: None,
        };
        self.fragments
            .push(std::mem::replace(&mut self.fragment, next));
        self.tokens_since_join = 0;
        if let WorkerState::Ended(_) = self.workers[worker.0].state {
            return self.inject(worker, id, shared, source, observer);
        }
        self.tell(observer, Agent::Organizer, AgentEvent::Waiting { worker });
        self.waiting_for = Some((worker, id));
        source.pause(self.organizer_agent())?;
        Ok(None)
    }

    /// Appends the returned text and the closing tag to the organizer's context.
    fn inject(
        &mut self,
        worker: WorkerIndex,
        id: SubQueryId,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Option<Outcome>> {
        let returned = match &self.workers[worker.0].state {
            WorkerState::Ended(WorkerEnd::Returned(text)) => text.as_str(),
            _ => "",
        };
        let text = format!("{returned}{}", shared.settings.protocol.tags.join_close(id));
        let last = self.organizer.ids().last().copied();
        let ids = shared.tokenizer.encode_continuation(&text, last)?;
        if self.organizer.ids().len() + ids.len() >= source.max_sequence_tokens() {
            return Ok(Some(self.truncate()));
        }
        let text = &text;
        let injected = AgentEvent::Injected { worker, text };
        self.tell(observer, Agent::Organizer, injected);
        source.inject(self.organizer_agent(), self.organizer.ids().len(), &ids)?;
        self.organizer.push_injected(&ids);
        Ok(None)
    }

    /// Frees every agent of the episode.
    pub(crate) fn abandon(&self, source: &mut StepSource<'_>) -> Result<()> {
        source.cancel(self.organizer_agent())?;
        for (index, worker) in self.workers.iter().enumerate() {
            if worker.state == WorkerState::Running {
                source.cancel(self.worker_agent(WorkerIndex(index)))?;
            }
        }
        Ok(())
    }

    /// Frees every agent of the episode and hands over its record.
    pub(crate) fn end(
        self,
        outcome: Outcome,
        shared: &Shared<'_>,
        source: &mut StepSource<'_>,
        observer: &mut dyn RolloutObserver,
    ) -> Result<Episode> {
        self.abandon(source)?;
        let mut this = self;
        this.tell(observer, Agent::Organizer, AgentEvent::Finished(&outcome));
        for index in 0..this.workers.len() {
            if !matches!(this.workers[index].state, WorkerState::Ended(_)) {
                this.end_worker(WorkerIndex(index), WorkerEnd::Cancelled, observer);
            }
        }
        let num_joins = this.fragments.len();
        this.fragments.push(this.fragment);
        let worker_tokens = this
            .workers
            .iter()
            .map(|worker| worker.record.num_counted() as u64)
            .collect();
        let timeline = match outcome {
            Outcome::Failed(_) => None,
            Outcome::Answered(_) => {
                let protocol = shared.settings.protocol;
                Some(Timeline::new(
                    protocol.capacity,
                    protocol.overflow,
                    this.fragments,
                    worker_tokens,
                )?)
            }
        };
        let workers = this
            .workers
            .into_iter()
            .map(RunningWorker::into_record)
            .collect();
        Ok(Episode {
            prompt_index: this.query.prompt.index,
            query: this.query.prompt.query.clone(),
            sample_index: this.query.sample_index,
            organizer: this.organizer,
            workers,
            outcome,
            timeline,
            num_joins,
        })
    }
}

impl RunningWorker {
    fn into_record(self) -> WorkerRecord {
        let end = match self.state {
            WorkerState::Ended(end) => end,
            // `end` has ended every worker by now.
            WorkerState::Queued | WorkerState::Running => WorkerEnd::Cancelled,
        };
        WorkerRecord {
            sub_query_id: self.sub_query_id,
            sub_query: self.sub_query,
            record: self.record,
            end,
        }
    }
}
