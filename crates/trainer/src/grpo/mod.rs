//! Stage 2: organizer-worker policy optimisation.
//!
//! # Paper
//! arXiv:2510.26658, section 3. We differ, by option or by decision:
//! 1. By default the probability ratio is taken against the log-probabilities that the sampler stored, at every update. Sampler and
//!    trainer share the weights, so at the first update the ratio is 1 up to the measured mismatch, and at later ones it
//!    is the ratio to the distribution that the tokens really came from. With `logp_old = "trainer"` it is taken against the trainer
//!    before the first update, which only later mini-batches need a score pass for.
//! 2. A rollout may be cut into mini-batches of groups; groups of equal rewards may be dropped and replaced.
//! 3. Advantages may be mean-centred only, the reward may gate its concurrency term, and a KL term is optional.

mod line;
mod sampled;
mod sampling;
mod start;
mod step;
mod step_context;
mod update;
mod validation;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use asyncthink_algorithms::LambdaSchedule;
use asyncthink_checkpoint::{Checkpoint, fingerprint, model_identity};
use asyncthink_data::Tokenizer;
use asyncthink_metrics::Phase;
use asyncthink_model::ModelConfig;
use asyncthink_recipe::{GrpoSection, Stage};
use asyncthink_tasks::Problem;

use line::{GrpoLine, report};
use start::{check_finished, warn_of_estimators};
use step::Trainer;
use validation::{Validation, metrics_of_checkpoint};

use crate::error::{Error, Result};
use crate::models::initial_model;
use crate::observer::{Observer, RunStart, StopFlag};
use crate::problems::train_problems;
use crate::run::{
    Asked, MemoryPlan, Origin, Resume, RunOptions, RunOutcome, StageRun, check_shared_folder,
    machine_of, new_optimizer, settle,
};
use crate::settings::GrpoSettings;
use asyncthink_gradient::{PolicyModel, load_reference};

/// Optimises the model that `sft` left.
///
/// # Errors
/// When an input is missing or damaged, a metric stops being finite, trainer and sampler disagree by more than the recipe
/// allows, or the disk refuses.
#[expect(clippy::too_many_lines, reason = "the loop, read from top to bottom")]
pub fn run_grpo(
    settings: &GrpoSettings,
    options: &RunOptions,
    observer: &mut dyn Observer,
    stop: &StopFlag,
) -> Result<RunOutcome> {
    let (run_settings, section) = (&settings.run, &settings.section);
    check_shared_folder(run_settings, &options.ranks)?;
    let problems = train_problems(&run_settings.layout, &run_settings.task)?;
    let initial = initial_model(&settings.initial_model);
    let may_resume = match options.resume {
        Resume::Auto => run_settings.layout.latest_model(Stage::Grpo).exists(),
        Resume::From(_) => true,
        Resume::Never => false,
    };
    if !may_resume && let Err(error) = initial {
        return Err(error);
    }
    let ranks = Arc::clone(&options.ranks);
    let checked = match &initial {
        Ok(model) if !may_resume && ranks.is_first() => check_finished(settings, model, observer),
        _ => Ok(()),
    };
    ranks.agree(checked)?;
    let num_steps = run_settings.num_steps;
    let final_lambda = LambdaSchedule::of(&section.reward, num_steps).at_end();
    let validation = Validation::of(settings, final_lambda, &ranks)?;
    let mut all_problems: Vec<&Problem> = problems.iter().collect();
    all_problems.extend(validation.iter().flat_map(Validation::problems));
    let origin = Origin {
        dataset: fingerprint::of_items(&all_problems)?,
        initial_model: match &initial {
            Ok(dir) => Some(model_identity(run_settings.policy.folder(dir))?),
            Err(_) => None,
        },
    };
    if section.prompts_per_step < ranks.world_size() {
        return Err(Error::TooManyRanks {
            key: "grpo.prompts_per_step",
            count: section.prompts_per_step,
            world_size: ranks.world_size(),
        });
    }
    let (mut run, checkpoint) = StageRun::open(run_settings, origin, options, observer)?;
    if run.is_finished() {
        return Ok(run.finished());
    }
    let has_reference = settings.needs_reference();
    if ranks.is_first() {
        warn_of_estimators(section, observer);
    }
    let (begin, reference) = model_folders(checkpoint.as_ref(), initial, has_reference)?;
    let device = ranks.open_device(&run_settings.device)?;
    let settled = settle(run_settings, &ranks, device, observer)?;
    let run_settings = &settled;
    let config = ModelConfig::from_dir(run_settings.policy.folder(&begin))?;
    let machine = machine_of(&ranks, device)?;
    let prompt_tokens = longest_prompt(settings, &begin, &problems)?;
    let mut memory = MemoryPlan::new(
        run_settings,
        &config,
        &machine,
        &settings.memory(&config, &machine, prompt_tokens),
        Asked {
            micro_batch_tokens: section.micro_batch_tokens,
            activation_checkpointing: section.activation_checkpointing,
        },
        run.chosen(),
        observer,
    )?;
    let mut model = PolicyModel::load(&begin, &run_settings.policy, &ranks, device)?;
    model.parallelism().apply();
    run.check_same_start(&model)?;
    let mut optimizer = new_optimizer(&mut model, run_settings, &ranks, checkpoint.as_ref())?;
    let reference = reference
        .map(|dir| load_reference(&dir, &run_settings.policy, &ranks, device))
        .transpose()?;
    observer.started(&RunStart {
        stage: Stage::Grpo,
        step: run.step(),
        num_steps,
        resumed_from: checkpoint.map(|checkpoint| checkpoint.dir),
        num_parameters: model.config().num_parameters(),
        num_trained: model.num_trained(),
        num_items: problems.len(),
    });
    let mut trainer = Trainer::new(
        settings,
        run_settings,
        &memory,
        &problems,
        reference,
        model.parallelism(),
        ranks,
    )?;
    while !run.is_finished() {
        let num_updates = optimizer.num_updates();
        let clock = run.clock();
        run.set_phase("preparing");
        let result = trainer.step(
            run.step(),
            clock,
            &mut model,
            &mut optimizer,
            observer,
            stop,
        );
        let result =
            result.map_err(|error| run.fail(error, &model, &optimizer, num_updates, observer))?;
        let Some(mut line) = result else {
            return run.stop(stop, &model, &optimizer, observer);
        };
        evaluate(
            validation.as_ref(),
            &trainer,
            &mut model,
            &mut line,
            observer,
        )
        .map_err(|error| run.fail(error, &model, &optimizer, num_updates, observer))?;
        run.write_metrics(line.step, line.validation.is_some(), &line)?;
        report(observer, &line, num_steps);
        memory.measure(run_settings, &options.ranks, observer)?;
        note_metrics(&mut run, &line, section, trainer.final_lambda(), observer);
        run.finish_step(&model, &optimizer, observer)?;
        if !run.is_finished() && run.stop_requested(stop)?.is_some() {
            return run.stop(stop, &model, &optimizer, observer);
        }
    }
    Ok(run.finished())
}

/// Problems whose prompts are tokenised to find the longest: those of the longest queries.
const TOKENIZED_PROMPTS: usize = 16;

/// Tokens of the longest prompt, as far as the longest queries tell.
fn longest_prompt(settings: &GrpoSettings, model: &Path, problems: &[Problem]) -> Result<usize> {
    let tokenizer = Tokenizer::from_dir(model)?;
    let templates = settings.run.card.templates()?;
    let mut queries: Vec<String> = problems
        .iter()
        .map(|problem| templates.query(&problem.fields()))
        .collect();
    queries.sort_by_key(|query| std::cmp::Reverse(query.len()));
    queries.truncate(TOKENIZED_PROMPTS);
    let mut longest = 0;
    for query in &queries {
        longest = longest.max(templates.organizer_ids(&tokenizer, query)?.len());
    }
    Ok(longest)
}

/// Evaluates the model on validation problems where that is due after the step of `line`.
fn evaluate(
    validation: Option<&Validation>,
    trainer: &Trainer<'_>,
    model: &mut PolicyModel,
    line: &mut GrpoLine,
    observer: &mut dyn Observer,
) -> Result<()> {
    let Some(due) = validation.filter(|it| it.is_due(line.step)) else {
        return Ok(());
    };
    let done = due.run(line.step, &trainer.sampler, model, observer)?;
    trainer.yield_cache(model)?;
    line.timing.add(Phase::Eval, done.seconds);
    line.validation = Some(done.metrics);
    Ok(())
}

/// Notes what checkpoints are compared by, and what may end the run.
fn note_metrics(
    run: &mut StageRun,
    line: &GrpoLine,
    section: &GrpoSection,
    final_lambda: f64,
    observer: &mut dyn Observer,
) {
    for (metric, value) in line.metrics_of_checkpoint(final_lambda) {
        run.note(metric.name(), value);
    }
    for (metric, value) in line.validation.iter().flat_map(metrics_of_checkpoint) {
        run.note(metric.name(), value);
        if metric == section.best_metric {
            run.note_evaluation(value, observer);
        }
    }
}

/// The folders of the model to begin with and of the reference. A run that goes on needs the model that it began with for the KL
/// term alone.
fn model_folders(
    checkpoint: Option<&Checkpoint>,
    initial: Result<PathBuf>,
    has_reference: bool,
) -> Result<(PathBuf, Option<PathBuf>)> {
    Ok(match (checkpoint, has_reference) {
        (Some(checkpoint), false) => (checkpoint.dir.clone(), None),
        (Some(checkpoint), true) => (checkpoint.dir.clone(), Some(initial?)),
        (None, has_reference) => {
            let initial = initial?;
            (initial.clone(), has_reference.then_some(initial))
        }
    })
}
