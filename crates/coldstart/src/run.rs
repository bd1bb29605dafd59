//! The stage as a whole: problems, traces, pairs, tokenizer, files.

use std::path::Path;

use asyncthink_data::SynthFolder;
use asyncthink_data::parquet::{write_problems, write_sft_pairs};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::candidate::{Accepted, Candidate};
use crate::error::{Error, Result};
use crate::exchange::{Exchange, RankChannel, SingleRank};
use crate::manifest;
use crate::pipeline::{Inputs, Pipeline};
use crate::problems::{ProblemTexts, held_out_keys, num_seen, problem_set};
use crate::report::SynthReport;
use crate::selection::Selection;
use crate::settings::ColdstartSettings;
use crate::tokenizer::templates_and_tokenizer;

/// Part of the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynthStage {
    /// Generating or loading problems; counted as one item.
    Problems,
    /// Preparing problems: a solver solves them.
    Solutions,
    /// Writing traces.
    Traces,
    /// Writing files; counted as one item.
    Files,
}

/// Progress of the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SynthProgress {
    /// The part that is running.
    pub stage: SynthStage,
    /// Items done.
    pub done: usize,
    /// Items in all.
    pub total: usize,
}

/// Makes problems, traces, pairs and the tokenizer, and writes them to `run_dir/synth`.
///
/// If the folder holds the files of an earlier call with the same inputs, nothing is done. The same settings give the same
/// files whatever the number of threads.
///
/// # Errors
/// Problems cannot be made, the teacher fails, too few traces pass the rules, or a file cannot be read or written.
pub fn run(
    settings: &ColdstartSettings,
    run_dir: &Path,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<SynthReport> {
    run_with(settings, run_dir, &SingleRank, progress)
}

/// [`run`] by several ranks, which all call it: each prepares a part of the problems and writes their traces, and the first
/// rank does the rest. The files are the same to the byte for any number of ranks; all ranks return the report.
///
/// # Errors
/// As [`run`]; where one rank fails, all do. Also when a rank is lost, or was started with another recipe.
pub fn run_with(
    settings: &ColdstartSettings,
    run_dir: &Path,
    exchange: &dyn Exchange,
    progress: &mut dyn FnMut(SynthProgress),
) -> Result<SynthReport> {
    let channel = RankChannel::new(exchange);
    let folder = SynthFolder::new(run_dir);
    let mut tell = |stage, done, total| progress(SynthProgress { stage, done, total });
    let inputs = channel.agree(manifest::inputs(settings))?;
    let start = channel
        .is_first()
        .then(|| begin(settings, &folder, &inputs, &mut tell));
    let (first_inputs, start) = channel.broadcast(start.transpose())?;
    channel.agree(if first_inputs == inputs {
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
        Start::With(problems) => channel.agree(problems.read(settings.task.task()))?,
    };
    let (templates, tokenizer) = channel.agree(templates_and_tokenizer(settings, &problems))?;
    let held_out = held_out_keys(&problems);
    let pipeline = Pipeline::new(
        &Inputs {
            settings,
            problems: &problems.train,
            templates: &templates,
            tokenizer: &tokenizer,
            held_out: &held_out,
            seed: settings.seed,
        },
        channel.stride(),
    );
    let prepared = pipeline.and_then(|mut pipeline| {
        pipeline.prepare(&mut |done, total| tell(SynthStage::Solutions, done, total))?;
        Ok(pipeline)
    });
    let pipeline = channel.agree(prepared)?;
    let assignment = pipeline.assignment();
    let report = SynthReport {
        num_train_problems: problems.train.len(),
        num_validation_problems: problems.validation.len(),
        num_test_problems: problems.test.len(),
        num_seen_targets: num_seen(&problems),
        vocab_size: tokenizer.vocab_size(),
        ..SynthReport::default()
    };
    let mut selection = Selection::new(report, settings);
    let write_own = |ids| {
        let traces = pipeline.write(ids)?.into_iter();
        let candidates = traces.map(|trace| Accepted::of(&trace?, &templates, &tokenizer));
        Ok(candidates.collect::<Vec<Candidate>>())
    };
    let mut so_far = Ok(());
    loop {
        // The first rank reports a wrong round when all ask for the next one.
        let round = channel
            .is_first()
            .then(|| so_far.map(|()| selection.next_round(assignment)));
        let round = channel.broadcast(round.transpose())?;
        if round.is_empty() {
            break;
        }
        let shares = channel.gather(write_own(round.clone()))?;
        so_far = shares.map_or(Ok(()), |shares| selection.take(round, shares, assignment));
        let num_traces = settings.synth.num_traces;
        tell(SynthStage::Traces, selection.report.num_traces, num_traces);
    }
    let written = channel.is_first().then(|| {
        selection.check_enough()?;
        tell(SynthStage::Files, 0, 1);
        manifest::invalidate(&folder)?;
        write_problems(&folder.train_problems(), &problems.train)?;
        if problems.validation.is_empty() {
            // One of an earlier recipe would pass for this one's.
            manifest::remove_if_there(&folder.validation_problems())?;
        } else {
            write_problems(&folder.validation_problems(), &problems.validation)?;
        }
        write_problems(&folder.test_problems(), &problems.test)?;
        write_sft_pairs(&folder.pairs(), &selection.pairs)?;
        tokenizer.save(&folder.tokenizer())?;
        manifest::write(&folder, inputs, &selection.report)?;
        Ok(selection.report)
    });
    let report = channel.broadcast(written.transpose())?;
    tell(SynthStage::Files, 1, 1);
    Ok(report)
}

/// The state that the stage starts from.
#[derive(Debug, Serialize, Deserialize)]
enum Start {
    /// Nothing is left to do.
    Reused(SynthReport),
    With(ProblemTexts),
}

/// Decides on the first rank how the stage starts, with the inputs that the others must have too.
fn begin(
    settings: &ColdstartSettings,
    folder: &SynthFolder,
    inputs: &Value,
    tell: &mut dyn FnMut(SynthStage, usize, usize),
) -> Result<(Value, Start)> {
    if let Some(report) = manifest::reusable(folder, inputs) {
        return Ok((inputs.clone(), Start::Reused(report)));
    }
    tell(SynthStage::Problems, 0, 1);
    let problems = ProblemTexts::of(&problem_set(settings)?)?;
    tell(SynthStage::Problems, 1, 1);
    Ok((inputs.clone(), Start::With(problems)))
}
