//! The stage as a whole: problems, traces, pairs, tokenizer, files.

use std::ops::Range;
use std::path::Path;

use asyncthink_data::parquet::{SftPair, write_problems, write_sft_pairs};
use asyncthink_data::{
    PromptTemplates, SynthFolder, TaskTokenizerConfig, Tokenizer, task_tokenizer,
};
use asyncthink_protocol::{ANSWER_CLOSE, ANSWER_OPEN, RETURN_CLOSE, RETURN_OPEN, SubQueryId};
use asyncthink_recipe::{ModelSection, NumberTokens, Recipe};
use asyncthink_tasks::mcd;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::candidate::{Accepted, Candidate, Expected};
use crate::peers::{Alone, Peers, Stride, Talk, wrong};
use crate::problems::{ProblemSet, problem_set};
use crate::report::SynthReport;
use crate::solver_teacher::LEXICON;
use crate::trace::{SolvedProblems, Writer, as_mcd, max_forks, protocol, solve, templates};
use crate::{Error, Result, manifest};

/// Most candidates of a rank between two exchanges, and two calls of the progress function.
const CHUNK: usize = 512;

/// Fewest candidates of a round: a few more than are missing cost less than another round.
const MIN_ROUND: usize = 64;

/// Candidates tried per trace asked for before the stage gives up: if the rules refuse more than half, what is left is no
/// longer a uniform draw of topologies.
const MAX_CANDIDATES_PER_TRACE: usize = 2;

/// Largest number that is a token of its own in a tokenizer made from the task's text.
const MAX_NUMBER_TOKEN: u64 = 300;

/// What the stage is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthStage {
    /// Generating or loading problems; counted as one item.
    Problems,
    /// Solving training problems.
    Solutions,
    /// Writing traces.
    Traces,
    /// Writing files; counted as one item.
    Files,
}

/// How far the stage has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthProgress {
    /// What is being done.
    pub stage: SynthStage,
    /// Items done.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}

/// Makes problems, traces, pairs and the tokenizer, and writes them to `run_dir/synth`.
///
/// If the folder holds the files of an earlier call with the same inputs, nothing is done. The same recipe gives the same files
/// whatever the number of threads.
///
/// # Errors
/// The recipe has no `[synth]` section, problems cannot be made, too few traces pass the rules, or a file cannot be read or written.
pub fn run(
    recipe: &Recipe,
    run_dir: &Path,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<SynthReport> {
    run_with(recipe, run_dir, &Alone, progress)
}

/// [`run`] by several ranks, which all call it: each solves a part of the problems and writes their traces, and the first
/// rank does the rest. The files are the same to the byte for any number of ranks; all ranks return the report.
///
/// # Errors
/// As [`run`]; where one rank fails, all do. Also when a rank is lost, or was started with another recipe.
pub fn run_with(
    recipe: &Recipe,
    run_dir: &Path,
    peers: &dyn Peers,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<SynthReport> {
    let talk = Talk::new(peers);
    let folder = SynthFolder::new(run_dir);
    let mut tell = |stage, done, total| progress(SynthProgress { stage, done, total });
    let section = recipe.synth.as_ref().ok_or(Error::NoSection);
    let inputs = section.and_then(|section| Ok((section.num_traces, manifest::inputs(recipe)?)));
    let (num_traces, inputs) = talk.agree(inputs)?;
    let start = talk
        .is_first()
        .then(|| begin(recipe, &folder, &inputs, &mut tell));
    let (first_inputs, start) = talk.tell(start.transpose())?;
    talk.agree(if first_inputs == inputs {
        Ok(())
    } else {
        Err(Error::RanksDiffer)
    })?;
    let problems = match start {
        Start::Reused(report) => {
            return Ok(SynthReport {
                is_reused: true,
                ..report
            });
        }
        Start::With(problems) => problems,
    };
    let (templates, tokenizer) = talk.agree(texts(recipe, &problems))?;
    let writer = talk.agree(Writer::new(
        recipe,
        &templates,
        &tokenizer,
        problems.held_out_targets(),
        recipe.seed,
    ))?;
    let solved = solve(
        &problems.train,
        num_traces,
        recipe.seed,
        talk.stride(),
        &mut |done, total| tell(SynthStage::Solutions, done, total),
    );
    let mut chosen = Chosen {
        report: SynthReport {
            num_train_problems: problems.train.len(),
            num_test_problems: problems.test.len(),
            num_seen_targets: problems.num_seen_targets(),
            vocab_size: tokenizer.vocab_size(),
            ..SynthReport::default()
        },
        pairs: Vec::new(),
        num_traces,
        num_tried: 0,
        seed: recipe.seed,
    };
    let write_own = |ids| {
        let traces = writer.write_own(ids, &solved);
        let candidates = traces.par_iter().map(|trace| match trace {
            Ok(trace) => Accepted::of(trace, &templates, &tokenizer),
            Err(rule) => Err((*rule).to_owned()),
        });
        candidates.collect::<Vec<Candidate>>()
    };
    let mut so_far = Ok(());
    loop {
        // What the first rank finds wrong with a round, it says when all ask for the next one.
        let round = talk
            .is_first()
            .then(|| so_far.map(|()| chosen.next_round(&solved, talk.stride())));
        let round = talk.tell(round.transpose())?;
        if round.is_empty() {
            break;
        }
        let shares = talk.collect(write_own(round.clone()))?;
        so_far = shares.map_or(Ok(()), |shares| chosen.take(round, shares, &solved));
        tell(SynthStage::Traces, chosen.report.num_traces, num_traces);
    }
    let written = talk.is_first().then(|| {
        chosen.check_enough()?;
        tell(SynthStage::Files, 0, 1);
        manifest::invalidate(&folder)?;
        write_problems(&folder.train_problems(), &problems.train)?;
        write_problems(&folder.test_problems(), &problems.test)?;
        write_sft_pairs(&folder.pairs(), &chosen.pairs)?;
        tokenizer.save(&folder.tokenizer())?;
        manifest::write(&folder, inputs, &chosen.report)?;
        Ok(chosen.report)
    });
    let report = talk.tell(written.transpose())?;
    tell(SynthStage::Files, 1, 1);
    Ok(report)
}

/// What the stage starts with.
#[derive(Debug, Serialize, Deserialize)]
enum Start {
    /// Nothing is left to do.
    Reused(SynthReport),
    With(ProblemSet),
}

/// What the first rank tells the others, with the inputs that they must have too.
fn begin(
    recipe: &Recipe,
    folder: &SynthFolder,
    inputs: &Value,
    tell: &mut dyn FnMut(SynthStage, usize, usize),
) -> Result<(Value, Start)> {
    if let Some(report) = manifest::reusable(folder, inputs) {
        return Ok((inputs.clone(), Start::Reused(report)));
    }
    tell(SynthStage::Problems, 0, 1);
    let problems = problem_set(recipe)?;
    tell(SynthStage::Problems, 1, 1);
    Ok((inputs.clone(), Start::With(problems)))
}

/// The templates and the tokenizer, which go together.
fn texts(recipe: &Recipe, problems: &ProblemSet) -> Result<(PromptTemplates, Tokenizer)> {
    let templates = templates(recipe)?;
    let tokenizer = tokenizer(recipe, problems, &templates)?;
    if templates.chat().is_some() {
        templates.check_chat(tokenizer.chat_template()?)?;
    }
    Ok((templates, tokenizer))
}

/// The model's own tokenizer, or one made from the task's text.
fn tokenizer(
    recipe: &Recipe,
    problems: &ProblemSet,
    templates: &PromptTemplates,
) -> Result<Tokenizer> {
    let number_tokens = match &recipe.model {
        ModelSection::Path(path) => return Ok(Tokenizer::from_dir(path)?),
        ModelSection::Init(init) => init.number_tokens,
    };
    let tags = protocol(recipe).tags;
    let mut corpus: Vec<String> = [ANSWER_OPEN, ANSWER_CLOSE, RETURN_OPEN, RETURN_CLOSE]
        .map(str::to_owned)
        .into();
    corpus.extend(LEXICON.map(str::to_owned));
    for id in (1..=max_forks(recipe).max(1)).map(SubQueryId) {
        corpus.extend([
            tags.fork_open(id),
            tags.fork_close(id),
            tags.join_open(id),
            tags.join_close(id),
        ]);
    }
    // Problems differ in numbers only, and those are in the vocabulary up to a bound.
    for problem in problems.train.iter().chain(&problems.test).take(1) {
        let query = templates.query(&problem.fields());
        corpus.extend([templates.organizer(&query), templates.worker(&query)]);
    }
    let all = problems
        .train
        .iter()
        .chain(&problems.test)
        .filter_map(as_mcd);
    let config = TaskTokenizerConfig {
        max_number: match number_tokens {
            NumberTokens::Pool => all.map(largest_number).max(),
            NumberTokens::Whole => all.map(largest_result).max(),
        }
        .unwrap_or(0),
        ..TaskTokenizerConfig::default()
    };
    Ok(task_tokenizer(corpus.iter().map(String::as_str), &config)?)
}

/// The largest number that a problem's attempts commonly show: its target, or a product of two of its numbers.
fn largest_result(problem: &mcd::Problem) -> u64 {
    let largest = largest_number(problem);
    let target = u64::try_from(problem.target).unwrap_or(0);
    largest
        .saturating_mul(largest)
        .max(target)
        .min(MAX_NUMBER_TOKEN)
}

fn largest_number(problem: &mcd::Problem) -> u64 {
    let largest = problem.available_numbers.iter().copied().max().unwrap_or(0);
    u64::try_from(largest).unwrap_or(0).min(MAX_NUMBER_TOKEN)
}

/// The traces that the first rank has taken, in the order of their numbers, until enough have passed the rules. That order
/// alone decides, so rounds and ranks do not show in the files.
struct Chosen {
    report: SynthReport,
    pairs: Vec<SftPair>,
    /// Traces asked for.
    num_traces: usize,
    /// Candidates looked at.
    num_tried: usize,
    seed: u64,
}

impl Chosen {
    /// The numbers of the candidates that are written next; none at the end.
    fn next_round(&self, solved: &SolvedProblems<'_>, stride: Stride) -> Range<usize> {
        let num_missing = self.num_traces - self.report.num_traces;
        let max_tried = self.num_traces.saturating_mul(MAX_CANDIDATES_PER_TRACE);
        if num_missing == 0 || solved.is_empty() {
            return 0..0;
        }
        let count = num_missing.clamp(MIN_ROUND, CHUNK * stride.world_size);
        self.num_tried..(self.num_tried + count).min(max_tried)
    }

    /// Goes through the candidates of a round.
    fn take(
        &mut self,
        round: Range<usize>,
        shares: Vec<Result<Vec<Candidate>>>,
        solved: &SolvedProblems<'_>,
    ) -> Result<()> {
        let shares = shares.into_iter().collect::<Result<Vec<_>>>()?;
        let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
        for id in round {
            self.num_tried += 1;
            let rank = solved.rank_of(id);
            let candidate = shares.get_mut(rank).and_then(Iterator::next);
            let candidate = candidate.ok_or_else(|| wrong(rank, "candidates are missing"))?;
            let expected = Expected {
                seed: self.seed,
                trace_id: id as u64,
                problem_index: solved.index_of(id),
            };
            expected
                .check(&candidate)
                .map_err(|reason| wrong(rank, reason))?;
            match candidate {
                // Candidates beyond the number asked for are not part of the run.
                _ if self.report.num_traces == self.num_traces => {}
                Ok(accepted) => {
                    self.report.add(&accepted.figures);
                    self.pairs.extend(accepted.pairs);
                }
                Err(rule) => *self.report.rejected.entry(rule).or_default() += 1,
            }
        }
        match shares.iter().position(|rest| rest.len() > 0) {
            Some(rank) => Err(wrong(rank, "candidates that nobody asked for")),
            None => Ok(()),
        }
    }

    fn check_enough(&self) -> Result<()> {
        if self.report.num_traces == self.num_traces {
            return Ok(());
        }
        Err(Error::TooFewTraces {
            wanted: self.num_traces,
            accepted: self.report.num_traces,
            rejected: self.report.rejected_text(),
        })
    }
}
