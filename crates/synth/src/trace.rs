//! One checked trace, and the pairs that it becomes.

use std::collections::BTreeSet;
use std::ops::Range;

use asyncthink_data::parquet::{Role, SftPair, Span};
use asyncthink_data::{ChatSettings, PromptTemplates, PromptText, Tokenizer};
use asyncthink_protocol::{Protocol, RawTrace, SpanKind, TokenCounter, Trace};
use asyncthink_recipe::{ModelSection, ProtocolSection, Recipe, SynthSection};
use asyncthink_tasks::mcd::{SolveOptions, SubsetOrder, solve_with};
use asyncthink_tasks::{Grade, Problem, mcd};
use rand::{Rng, RngExt};
use rayon::prelude::*;

use crate::arithmetic::random_expr;
use crate::peers::Stride;
use crate::seeds::{Stream, generator, seed_of};
use crate::solver_teacher::{Lesson, Solved, TEACHER};
use crate::topology::{Event, Topologies, describe};
use crate::{Error, Result};

/// How often another target is drawn until one is allowed.
const MAX_TARGET_DRAWS: usize = 16;

/// How the solver is bounded per problem. Problems of few numbers are solved completely; of large ones a sample is enough.
const SOLVE: SolveOptions = SolveOptions {
    limit: 16,
    max_per_subset: 4,
    max_steps: 300_000,
    order: SubsetOrder::Shuffled { seed: 0 },
};

/// A legal trace with where it came from.
#[derive(Debug, Clone)]
pub struct SynthTrace {
    /// The trace's number; unique within a run.
    pub trace_id: u64,
    /// The problem, an index into the training problems; a trace may ask for another target than it.
    pub problem_index: usize,
    /// The seed that the trace was drawn with.
    pub seed: u64,
    /// Its Forks and Joins.
    pub topology: Vec<Event>,
    /// The text.
    pub raw: RawTrace,
    /// The text as checked; counts are in tokens.
    pub trace: Trace,
    /// The query that the organizer starts with.
    pub query: String,
    /// How good the answer is.
    pub grade: Grade,
    /// Tokens of each pair, prompt and end of sequence included.
    pub pair_tokens: Vec<usize>,
}

impl SynthTrace {
    /// The organizer's pair, then one per worker in Fork order.
    ///
    /// # Errors
    /// The model has no usable chat template where the prompts need one, or it refuses a message.
    pub fn pairs(
        &self,
        templates: &PromptTemplates,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<SftPair>> {
        let injected = self
            .trace
            .spans()
            .iter()
            .filter(|span| matches!(span.kind, SpanKind::Injected(_)));
        // Texts are far shorter than 4 GiB: the budgets bound them.
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let injected = injected
            .map(|span| Span {
                start: offset(span.bytes.start),
                end: offset(span.bytes.end),
            })
            .collect();
        let organizer = SftPair {
            trace_id: self.trace_id,
            role: Role::Organizer,
            worker_index: None,
            problem_index: self.problem_index as u64,
            prompt: templates.organizer_prompt(tokenizer, &self.query)?,
            response: self.raw.organizer.clone(),
            injected,
            teacher: TEACHER.to_owned(),
            seed: self.seed,
            topology: describe(&self.topology),
        };
        let mut pairs = vec![organizer.clone()];
        for ((text, worker), index) in self.raw.workers.iter().zip(self.trace.workers()).zip(0..) {
            pairs.push(SftPair {
                role: Role::Worker,
                worker_index: Some(index),
                prompt: templates.worker_prompt(tokenizer, &worker.sub_query)?,
                response: text.text.clone(),
                injected: Vec::new(),
                ..organizer.clone()
            });
        }
        Ok(pairs)
    }
}

/// The number with its last or last but one digit drawn anew.
fn with_other_digit(number: i64, rng: &mut impl Rng) -> i64 {
    let place = if rng.random_bool(0.5) { 10 } else { 1 };
    number + (rng.random_range(0..10) - number / place % 10) * place
}

/// Writes and checks traces.
pub(crate) struct Writer<'a> {
    settings: &'a SynthSection,
    budgets: &'a ProtocolSection,
    max_sequence_tokens: Option<usize>,
    protocol: Protocol,
    topologies: Topologies,
    templates: &'a PromptTemplates,
    tokenizer: &'a Tokenizer,
    held_out_targets: BTreeSet<i64>,
    seed: u64,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        recipe: &'a Recipe,
        templates: &'a PromptTemplates,
        tokenizer: &'a Tokenizer,
        held_out_targets: BTreeSet<i64>,
        seed: u64,
    ) -> Result<Self> {
        let settings = recipe.synth.as_ref().ok_or(Error::NoSection)?;
        let protocol = protocol(recipe);
        let max_sequence_tokens = match &recipe.model {
            ModelSection::Init(init) => Some(init.max_position_embeddings),
            ModelSection::Path(_) => None,
        };
        Ok(Self {
            settings,
            budgets: &recipe.protocol,
            max_sequence_tokens,
            protocol,
            topologies: Topologies::new(protocol.capacity, max_forks(recipe))?,
            templates,
            tokenizer,
            held_out_targets,
            seed,
        })
    }

    /// The same numbers with another target, and its solutions; `None` where no draw is allowed. The target is the value of
    /// an expression, or such a value with a digit exchanged.
    fn with_other_target(
        &self,
        problem: &mcd::Problem,
        rng: &mut impl Rng,
    ) -> Option<(mcd::Problem, Vec<mcd::Solution>)> {
        let target = (0..MAX_TARGET_DRAWS).find_map(|_| {
            let value = random_expr(problem, None, rng).evaluate().ok()?.parts();
            let mut target = i64::try_from(value.0).ok().filter(|_| value.1 == 1)?;
            if rng.random_bool(self.settings.near_target_rate) {
                target = with_other_digit(target, rng);
            }
            let is_allowed = target > 0 && !self.held_out_targets.contains(&target);
            is_allowed.then_some(target)
        })?;
        let problem = mcd::Problem {
            target,
            ..problem.clone()
        };
        let order = SubsetOrder::Shuffled { seed: rng.random() };
        let solutions = solve_with(&problem, &SolveOptions { order, ..SOLVE }).solutions;
        Some((problem, solutions))
    }

    /// Writes those of the traces whose problems this rank has solved, each or why the rules refuse it, in order.
    pub(crate) fn write_own(
        &self,
        trace_ids: Range<usize>,
        solved: &SolvedProblems<'_>,
    ) -> Vec<Result<SynthTrace, &'static str>> {
        let own: Vec<(usize, &SolvedProblem<'_>)> = trace_ids
            .filter_map(|id| Some((id, solved.of_trace(id)?)))
            .collect();
        own.into_par_iter()
            .map(|(id, solved)| self.write(id as u64, solved))
            .collect()
    }

    /// Writes the trace of a number, or says why the rules refuse it.
    fn write(&self, trace_id: u64, solved: &SolvedProblem<'_>) -> Result<SynthTrace, &'static str> {
        let SolvedProblem {
            index,
            problem,
            solutions,
        } = solved;
        let seed = seed_of(self.seed, Stream::Trace, trace_id);
        let mut rng = generator(seed);
        let topology = self.topologies.sample(&mut rng);
        let other = if rng.random_bool(self.settings.other_target_rate) {
            self.with_other_target(problem, &mut rng)
        } else {
            None
        };
        let (problem, solutions) = match &other {
            Some((problem, solutions)) => (problem, solutions),
            None => (*problem, solutions),
        };
        let lesson = Lesson::new(
            Solved { problem, solutions },
            self.settings,
            self.protocol,
            self.templates,
        );
        let raw = lesson.write(&topology, &mut rng).render_unchecked();
        let counter = TokenizerCounter(self.tokenizer);
        let trace = Trace::check(&raw, self.protocol.tags, self.protocol.overflow, &counter)
            .map_err(|error| error.code())?;
        let grade = mcd::grade(problem, trace.answer());
        let trace = SynthTrace {
            trace_id,
            problem_index: *index,
            seed,
            topology,
            raw,
            trace,
            query: lesson.query,
            grade,
            pair_tokens: Vec::new(),
        };
        self.check_budgets(&trace)?;
        self.with_pair_tokens(trace)
    }

    /// A trace that the runtime would cut must not be taught.
    fn check_budgets(&self, trace: &SynthTrace) -> Result<(), &'static str> {
        let timeline = trace.trace.timeline();
        let fragment_tokens = timeline
            .fragments()
            .iter()
            .map(|fragment| fragment.num_tokens)
            .max()
            .unwrap_or(0);
        if fragment_tokens > u64::from(self.budgets.organizer_max_tokens) {
            return Err("organizer_max_tokens");
        }
        if self
            .budgets
            .organizer_total_tokens
            .is_some_and(|limit| timeline.organizer_tokens() > u64::from(limit))
        {
            return Err("organizer_total_tokens");
        }
        let worker_tokens = timeline.worker_tokens().iter().max().copied().unwrap_or(0);
        if worker_tokens > u64::from(self.budgets.worker_max_tokens) {
            return Err("worker_max_tokens");
        }
        Ok(())
    }

    /// Counts each pair as it will be trained.
    fn with_pair_tokens(&self, mut trace: SynthTrace) -> Result<SynthTrace, &'static str> {
        let pairs = trace.pairs(self.templates, self.tokenizer);
        for pair in pairs.map_err(|_| "chat template")? {
            let row = pair.tokenize(self.tokenizer).map_err(|_| "tokenizer")?;
            if self
                .max_sequence_tokens
                .is_some_and(|limit| row.len() > limit)
            {
                return Err("max_position_embeddings");
            }
            trace.pair_tokens.push(row.len());
        }
        Ok(trace)
    }
}

/// Tokens as the run's tokenizer counts them.
struct TokenizerCounter<'a>(&'a Tokenizer);

impl TokenCounter for TokenizerCounter<'_> {
    fn count(&self, text: &str) -> u64 {
        // What cannot be encoded is refused when the pair is tokenised.
        self.0.encode(text).map_or(0, |ids| ids.len() as u64)
    }
}

/// Problems solved between two calls of the progress function.
const SOLVE_CHUNK: usize = 256;

/// A problem with its place and its solutions.
struct SolvedProblem<'a> {
    index: usize,
    problem: &'a mcd::Problem,
    solutions: Vec<mcd::Solution>,
}

/// A rank's part of the problems that traces are written for.
pub(crate) struct SolvedProblems<'a> {
    own: Vec<SolvedProblem<'a>>,
    stride: Stride,
    /// Those of all ranks, as indices into the training problems.
    indices: Vec<usize>,
}

impl<'a> SolvedProblems<'a> {
    /// The place of a trace's problem among those of all ranks; traces go over the problems in turn.
    fn place_of(&self, trace_id: usize) -> usize {
        trace_id % self.indices.len()
    }

    /// The problem of a trace, if this rank has solved it.
    fn of_trace(&self, trace_id: usize) -> Option<&SolvedProblem<'a>> {
        let place = self.place_of(trace_id);
        let is_own = self.stride.holds(place);
        is_own.then(|| &self.own[place / self.stride.world_size])
    }

    /// The problem of a trace, an index into the training problems.
    pub(crate) fn index_of(&self, trace_id: usize) -> usize {
        self.indices[self.place_of(trace_id)]
    }

    /// The rank that writes a trace: whoever has solved its problem.
    pub(crate) fn rank_of(&self, trace_id: usize) -> usize {
        self.stride.rank_of(self.place_of(trace_id))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }
}

/// Solves a rank's part of the problems that so many traces will be written for.
pub(crate) fn solve<'a>(
    problems: &'a [Problem],
    num_traces: usize,
    seed: u64,
    stride: Stride,
    progress: &mut dyn FnMut(usize, usize),
) -> SolvedProblems<'a> {
    let all: Vec<(usize, &mcd::Problem)> = problems
        .iter()
        .enumerate()
        .take(num_traces)
        .filter_map(|(index, problem)| Some((index, as_mcd(problem)?)))
        .collect();
    let indices: Vec<usize> = all.iter().map(|&(index, _)| index).collect();
    let own = all.into_iter().skip(stride.rank).step_by(stride.world_size);
    let used: Vec<(usize, &mcd::Problem)> = own.collect();
    let order = SubsetOrder::Shuffled {
        seed: seed_of(seed, Stream::Solver, 0),
    };
    let options = SolveOptions { order, ..SOLVE };
    let mut solved = Vec::with_capacity(used.len());
    for chunk in used.chunks(SOLVE_CHUNK) {
        solved.par_extend(chunk.par_iter().map(|&(index, problem)| SolvedProblem {
            index,
            problem,
            solutions: solve_with(problem, &options).solutions,
        }));
        progress(solved.len(), used.len());
    }
    SolvedProblems {
        own: solved,
        stride,
        indices,
    }
}

/// Writes `num_traces` candidate traces over the problems in turn and returns those that pass the rules, in order. None
/// asks for a target of `held_out_targets`, unless a problem does.
///
/// [`crate::run`] does the same with progress, replacements for refused traces, and files.
///
/// # Errors
/// The recipe has no `[synth]` section, or its topologies cannot be counted.
pub fn synthesize(
    recipe: &Recipe,
    problems: &[Problem],
    templates: &PromptTemplates,
    tokenizer: &Tokenizer,
    held_out_targets: BTreeSet<i64>,
    seed: u64,
) -> Result<Vec<SynthTrace>> {
    let writer = Writer::new(recipe, templates, tokenizer, held_out_targets, seed)?;
    let num_traces = writer.settings.num_traces;
    let solved = solve(problems, num_traces, seed, Stride::ALL, &mut |_, _| {});
    if solved.is_empty() {
        return Ok(Vec::new());
    }
    let traces = writer.write_own(0..num_traces, &solved);
    Ok(traces.into_iter().flatten().collect())
}

/// The problem as one that this teacher can solve.
pub(crate) fn as_mcd(problem: &Problem) -> Option<&mcd::Problem> {
    match problem {
        Problem::Mcd(problem) => Some(problem),
        _ => None,
    }
}

/// The recipe's protocol as rules.
pub(crate) fn protocol(recipe: &Recipe) -> Protocol {
    let section = &recipe.protocol;
    Protocol {
        tags: section.tag_style,
        capacity: section.capacity,
        overflow: section.overflow,
        max_forks: section.max_forks,
    }
}

/// The recipe's prompt templates, checked.
pub(crate) fn templates(recipe: &Recipe) -> Result<PromptTemplates> {
    let prompts = &recipe.prompts;
    let text = PromptText {
        organizer: prompts.organizer.clone(),
        worker: prompts.worker.clone(),
        query: prompts.query.clone(),
    };
    let chat = prompts.chat.as_ref().map(|chat| ChatSettings {
        system: chat.system.clone(),
        enable_thinking: chat.enable_thinking,
    });
    let max_workers = protocol(recipe).capacity.max_workers();
    Ok(PromptTemplates::new(text, max_workers)?.with_chat(chat))
}

/// Most Forks of a trace: a topology must not exceed what the protocol lets an episode do.
pub(crate) fn max_forks(recipe: &Recipe) -> u32 {
    let wanted = recipe
        .synth
        .as_ref()
        .map_or(0, |section| section.topology_max_forks);
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    recipe
        .protocol
        .max_forks
        .map_or(wanted, |limit| wanted.min(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_last_two_digits_is_drawn_anew() {
        let mut rng = generator(1);
        let drawn: BTreeSet<i64> = (0..500).map(|_| with_other_digit(147, &mut rng)).collect();
        let expected: BTreeSet<i64> = (0..10)
            .flat_map(|digit| [140 + digit, 107 + 10 * digit])
            .collect();
        assert_eq!(drawn, expected);
    }
}
