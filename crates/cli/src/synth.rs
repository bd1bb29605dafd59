//! The command `synth`: problems, traces and the tokenizer, by one rank or several.

use std::io::Write;
use std::path::Path;

use asyncthink_checkpoint::{RunLayout, StageLock};
use asyncthink_coldstart::{
    ColdstartSettings, Exchange, ExchangeError, RankFailure, SynthReport, run_with,
};
use asyncthink_data::SynthFolder;
use asyncthink_distributed::{RankSettings, Ranks};
use asyncthink_launch::World;
use asyncthink_recipe::{Recipe, Stage};

use crate::args::ResumeArg;
use crate::failure::Failure;
use crate::progress::{Progress, figure};
use crate::run_folder;

pub(crate) fn run(
    recipe: &Recipe,
    resume: &ResumeArg,
    world: &World,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let settings = ColdstartSettings::from_recipe(recipe)?;
    let ranks = Ranks::join(world, &RankSettings::of(recipe), Stage::Synth.name(), false)?;
    ranks.set_phase("synth");
    let lock = ranks.is_first().then(|| open(recipe, resume));
    let _lock = ranks.agree(lock.transpose())?;
    if ranks.is_alone() && recipe.num_threads > 0 {
        rayon::ThreadPoolBuilder::new()
            .num_threads(recipe.num_threads)
            .build_global()
            .map_err(|error| {
                Failure::run(format!(
                    "cannot start {} threads: {error}",
                    recipe.num_threads
                ))
            })?;
    }
    // One rank speaks for all.
    let mut progress = ranks.is_first().then(|| Progress::new("synth"));
    let report = run_with(
        &settings,
        &recipe.run_dir,
        &RankExchange(&ranks),
        &mut |at| {
            if let Some(progress) = &mut progress {
                progress.synth(at);
            }
        },
    );
    if let Some(progress) = &progress {
        progress.finish();
    }
    let report = report?;
    ranks.part()?;
    if !ranks.is_first() {
        return Ok(());
    }
    print(&report, SynthFolder::new(&recipe.run_dir).root(), out)
}

/// Locks the stage; without the manifest, which is removed to begin anew, its files count as unfinished.
fn open(recipe: &Recipe, resume: &ResumeArg) -> Result<StageLock, Failure> {
    let layout = RunLayout::new(&recipe.run_dir);
    let lock = run_folder::lock(&layout, Stage::Synth, recipe)?;
    let manifest = SynthFolder::new(&recipe.run_dir).manifest();
    if *resume == ResumeArg::Never && manifest.exists() {
        fs_err::remove_file(manifest)?;
    }
    Ok(lock)
}

/// Exchange between the ranks of the launch.
struct RankExchange<'a>(&'a Ranks);

impl Exchange for RankExchange<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world_size(&self) -> usize {
        self.0.world_size()
    }

    fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(self.0.gather_bytes(bytes)?)
    }

    fn first_failure(
        &self,
        own: Option<&RankFailure>,
    ) -> Result<Option<(usize, RankFailure)>, ExchangeError> {
        let own = own.map(|failure| (failure.message.as_str(), failure.is_input));
        let first = self.0.first_failure(own)?;
        Ok(first.map(|(rank, message, is_input)| (rank, RankFailure { message, is_input })))
    }
}

fn print(report: &SynthReport, folder: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let kept = if report.is_reused {
        " (kept from before)"
    } else {
        ""
    };
    let rejected: u64 = report.rejected.values().sum();
    let mut rows = vec![(
        "problems to train on",
        report.num_train_problems.to_string(),
    )];
    if report.num_validation_problems > 0 {
        let count = report.num_validation_problems.to_string();
        rows.push(("problems to choose settings by", count));
    }
    rows.extend([
        ("problems to test on", report.num_test_problems.to_string()),
        ("traces", report.num_traces.to_string()),
        ("traces refused by the rules", rejected.to_string()),
        ("training pairs", report.num_pairs.to_string()),
        ("tokens", report.num_tokens.to_string()),
        ("longest pair, tokens", report.max_pair_tokens.to_string()),
        ("vocabulary", report.vocab_size.to_string()),
        ("the teacher's mean accuracy", figure(report.mean_accuracy)),
        ("the teacher's all correct", figure(report.all_correct)),
        ("the teacher's eta/c", figure(report.mean_eta_ratio)),
        (
            "the teacher's latency, tokens",
            figure(report.mean_latency_tokens),
        ),
    ]);
    for (name, value) in rows {
        writeln!(out, "{name:32}{value:>12}")?;
    }
    writeln!(out, "\ntraces{kept}: {}", folder.display())?;
    if report.num_seen_targets > 0 {
        writeln!(
            out,
            "\nwarning: {} of {} test problems have a target that a training problem has too",
            report.num_seen_targets, report.num_test_problems
        )?;
    }
    Ok(())
}
