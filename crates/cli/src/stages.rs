//! The commands that run a stage of a recipe.

use std::io::Write;
use std::sync::Arc;

use asyncthink_checkpoint::RunLayout;
use asyncthink_coldstart::ColdstartSettings;
use asyncthink_data::ChatTemplate;
use asyncthink_distributed::{RankSettings, Ranks};
use asyncthink_launch::World;
use asyncthink_recipe::{ModelSection, Recipe, Stage};
use asyncthink_rollout::ModelCard;
use asyncthink_trainer::{
    Attempt, GrpoSettings, Observer, Resume, RunOptions, RunOutcome, SftSettings,
};

use crate::args::{ResumeArg, StageArgs};
use crate::catalogue::catalogue;
use crate::failure::Failure;
use crate::preflight;
use crate::progress::Progress;
use crate::run_folder;
use crate::signals;

pub(crate) fn run(stage: Stage, args: &StageArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let recipe = Recipe::load_with(&args.recipe, &args.set, &catalogue())?;
    recipe.check_inputs(stage)?;
    if stage == Stage::Synth {
        ColdstartSettings::from_recipe(&recipe)?;
    }
    let layout = RunLayout::new(&recipe.run_dir);
    // A later attempt goes on from what the first one did, which may have removed the checkpoint that it began with.
    let attempt = World::from_env().ok().and_then(|world| Attempt::of(&world));
    if !attempt.is_some_and(|attempt| attempt.may_go_on(&layout, stage)) {
        check_resume(stage, &args.resume)?;
    }
    check_chat_template(&recipe)?;
    run_folder::check(&layout, stage)?;
    if args.dry_run {
        for line in preflight::dry_run(stage, &recipe)? {
            // Standard output is the resolved recipe's.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
        // What a run was made with is not replaced by what was only tried.
        if !layout.recipe().exists() {
            layout.write_recipe(&recipe.to_toml())?;
        }
        out.write_all(recipe.to_toml().as_bytes())?;
        return Ok(());
    }
    let world = World::from_env()?;
    preflight::check_models(stage, &recipe, &args.resume, &world)?;
    match stage {
        Stage::Synth => crate::synth::run(&recipe, &args.resume, &world, out),
        Stage::Sft | Stage::Grpo => train(stage, &recipe, &args.resume, &world, out),
        Stage::Eval => crate::evaluate::run(&recipe, &args.resume, &world, out),
    }
}

/// The chat template of the recipe's model must make its prompts; that is known before anything is computed.
fn check_chat_template(recipe: &Recipe) -> Result<(), Failure> {
    if let (Some(_), ModelSection::Path(dir)) = (&recipe.prompts.chat, &recipe.model) {
        let template = ChatTemplate::from_dir(dir)?;
        ModelCard::new(&recipe.prompts, &recipe.protocol)
            .templates()?
            .check_chat(&template)?;
    }
    Ok(())
}

/// A checkpoint to resume from must be there, and only training has them.
fn check_resume(stage: Stage, resume: &ResumeArg) -> Result<(), Failure> {
    let ResumeArg::Dir(dir) = resume else {
        return Ok(());
    };
    if matches!(stage, Stage::Synth | Stage::Eval) {
        return Err(Failure::input(format!(
            "`--resume {}`: `{}` has no checkpoints to go on from",
            dir.display(),
            stage.name()
        ))
        .hint("use `--resume auto` or `--resume never`"));
    }
    if !dir.is_dir() {
        return Err(Failure::input(format!(
            "`--resume {}`: no such folder",
            dir.display()
        ))
        .hint("give the folder of a checkpoint, such as `runs/quickstart/grpo/checkpoints/step_20`, `auto` or `never`"));
    }
    Ok(())
}

fn train(
    stage: Stage,
    recipe: &Recipe,
    resume: &ResumeArg,
    world: &World,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let ranks = Arc::new(Ranks::join(
        world,
        &RankSettings::of(recipe),
        stage.name(),
        true,
    )?);
    let options = RunOptions {
        ranks: Arc::clone(&ranks),
        resume: match resume {
            ResumeArg::Auto => Resume::Auto,
            ResumeArg::Never => Resume::Never,
            ResumeArg::Dir(dir) => Resume::From(dir.clone()),
        },
        attempt: Attempt::of(world),
    };
    let stop = signals::stop_flag()?;
    // One rank speaks for all.
    let mut progress = ranks.is_first().then(|| Progress::new(stage.name()));
    let mut nobody = ();
    let observer: &mut dyn Observer = match &mut progress {
        Some(progress) => progress,
        None => &mut nobody,
    };
    let outcome = match stage {
        Stage::Grpo => GrpoSettings::from_recipe(recipe).and_then(|settings| {
            asyncthink_trainer::run_grpo(&settings, &options, observer, &stop)
        }),
        _ => SftSettings::from_recipe(recipe)
            .and_then(|settings| asyncthink_trainer::run_sft(&settings, &options, observer, &stop)),
    };
    if let Some(progress) = &mut progress {
        progress.finish();
    }
    let outcome = outcome?;
    ranks.part()?;
    match outcome {
        RunOutcome::Finished { model, num_steps } => {
            if !ranks.is_first() {
                return Ok(());
            }
            writeln!(
                out,
                "{} done, {num_steps} steps; model: {}",
                stage.name(),
                model.display()
            )?;
            Ok(())
        }
        RunOutcome::Stopped {
            signal,
            checkpoint,
            step,
        } => {
            let name = signals::name(signal);
            let saved = checkpoint.map_or_else(
                || "nothing was done yet".to_owned(),
                |dir| format!("saved in `{}`", dir.display()),
            );
            if let Some(progress) = &mut progress {
                progress.say(&format!(
                    "{}: stopped by {name} after step {step}; {saved}\n\nhint: the same command goes on from there",
                    stage.name()
                ));
            }
            Err(Failure::signal(signal))
        }
    }
}
