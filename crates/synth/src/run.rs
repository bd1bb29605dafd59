//! The stage as a whole: problems, traces, pairs, tokenizer, files.

use std::path::Path;

use asyncthink_data::parquet::{SftPair, write_problems, write_sft_pairs};
use asyncthink_data::{
    PromptTemplates, SynthFolder, TaskTokenizerConfig, Tokenizer, task_tokenizer,
};
use asyncthink_protocol::{ANSWER_CLOSE, ANSWER_OPEN, RETURN_CLOSE, RETURN_OPEN, SubQueryId};
use asyncthink_recipe::{ModelSection, NumberTokens, Recipe};
use asyncthink_tasks::mcd;
use rayon::prelude::*;

use crate::problems::{ProblemSet, problem_set};
use crate::report::SynthReport;
use crate::solver_teacher::LEXICON;
use crate::trace::{
    SolvedProblem, SynthTrace, Writer, as_mcd, max_forks, protocol, solve, templates,
};
use crate::{Error, Result, manifest};

/// Items between two calls of the progress function.
const CHUNK: usize = 512;

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
    let num_traces = recipe.synth.as_ref().ok_or(Error::NoSection)?.num_traces;
    let folder = SynthFolder::new(run_dir);
    let inputs = manifest::inputs(recipe)?;
    if let Some(report) = manifest::reusable(&folder, &inputs) {
        return Ok(report);
    }
    let mut tell = |stage, done, total| progress(SynthProgress { stage, done, total });
    tell(SynthStage::Problems, 0, 1);
    let problems = problem_set(recipe)?;
    tell(SynthStage::Problems, 1, 1);

    let templates = templates(recipe)?;
    let tokenizer = tokenizer(recipe, &problems, &templates)?;
    if templates.chat().is_some() {
        templates.check_chat(tokenizer.chat_template()?)?;
    }
    let solved = solve(
        &problems.train,
        num_traces,
        recipe.seed,
        &mut |done, total| tell(SynthStage::Solutions, done, total),
    );
    let writer = Writer::new(
        recipe,
        &templates,
        &tokenizer,
        problems.held_out_targets(),
        recipe.seed,
    )?;
    let mut report = SynthReport {
        num_train_problems: problems.train.len(),
        num_test_problems: problems.test.len(),
        num_seen_targets: problems.num_seen_targets(),
        vocab_size: tokenizer.vocab_size(),
        ..SynthReport::default()
    };
    let traces = write_traces(&writer, &solved, num_traces, &mut report, &mut |done| {
        tell(SynthStage::Traces, done, num_traces);
    })?;

    tell(SynthStage::Files, 0, 1);
    let pairs: Vec<Vec<SftPair>> = traces
        .par_iter()
        .map(|trace| trace.pairs(&templates, &tokenizer))
        .collect::<Result<_>>()?;
    let pairs: Vec<SftPair> = pairs.into_iter().flatten().collect();
    report.num_pairs = pairs.len();
    manifest::invalidate(&folder)?;
    write_problems(&folder.train_problems(), &problems.train)?;
    write_problems(&folder.test_problems(), &problems.test)?;
    write_sft_pairs(&folder.pairs(), &pairs)?;
    tokenizer.save(&folder.tokenizer())?;
    manifest::write(&folder, inputs, &report)?;
    tell(SynthStage::Files, 1, 1);
    Ok(report)
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

/// Writes candidates in order until enough pass the rules.
fn write_traces(
    writer: &Writer<'_>,
    solved: &[SolvedProblem<'_>],
    num_traces: usize,
    report: &mut SynthReport,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<SynthTrace>> {
    let mut traces = Vec::new();
    let mut next_id = 0;
    let max_id = num_traces.saturating_mul(MAX_CANDIDATES_PER_TRACE);
    while traces.len() < num_traces && next_id < max_id && !solved.is_empty() {
        let chunk: Vec<_> = (next_id..(next_id + CHUNK).min(max_id))
            .into_par_iter()
            .map(|id| writer.write(id as u64, &solved[id % solved.len()]))
            .collect();
        next_id += chunk.len();
        for candidate in chunk {
            match candidate {
                // Candidates beyond the number asked for are not part of the run.
                _ if traces.len() == num_traces => break,
                Ok(trace) => {
                    report.add(&trace);
                    traces.push(trace);
                }
                Err(reason) => *report.rejected.entry(reason.to_owned()).or_default() += 1,
            }
        }
        progress(traces.len());
    }
    if traces.len() < num_traces {
        return Err(Error::TooFewTraces {
            wanted: num_traces,
            accepted: traces.len(),
            rejected: report.rejected_text(),
        });
    }
    Ok(traces)
}
