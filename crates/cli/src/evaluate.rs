//! The command `eval`: every trained model of the run, side by side.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use asyncthink_eval::{EpisodeLine, Evaluation, evaluate, table};
use asyncthink_recipe::{ModelSection, Recipe, Stage};
use asyncthink_trainer::{MODEL_CARD_FILE, RunLayout, StageLock, StopFlag};
use serde::{Deserialize, Serialize};

use crate::args::ResumeArg;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::signals;

/// The file of results: what the table shows, and what it was made from.
#[derive(Default, Serialize, Deserialize)]
struct Results {
    models: Vec<ModelResult>,
}

#[derive(Clone, Serialize, Deserialize)]
struct ModelResult {
    /// The column's name.
    name: String,
    /// Everything that the figures depend on; a result is kept while it is
    /// the same.
    inputs: Inputs,
    evaluation: Evaluation,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Inputs {
    /// The folder of the model, links followed.
    model: PathBuf,
    /// Size and time of change of the files of the weights and the problems:
    /// reading them through would take longer than most evaluations.
    files: Vec<(PathBuf, u64, u64)>,
    /// The parts of the recipe that evaluation reads.
    recipe: String,
}

pub(crate) fn run(recipe: &Recipe, resume: &ResumeArg, out: &mut dyn Write) -> Result<(), Failure> {
    let layout = RunLayout::new(&recipe.run_dir);
    let models = models(recipe, &layout)?;
    let _lock = StageLock::acquire(&layout, Stage::Eval)?;
    layout.write_recipe(recipe)?;
    let file = layout.stage(Stage::Eval).join("results.json");
    let earlier = match resume {
        ResumeArg::Auto => read_results(&file),
        _ => Results::default(),
    };
    let stop = signals::stop_flag()?;
    let mut results = Results::default();
    for (name, model) in models {
        let inputs = inputs(recipe, &layout, &model)?;
        let known = earlier
            .models
            .iter()
            .find(|result| result.name == name && result.inputs == inputs);
        let result = if let Some(known) = known {
            known.clone()
        } else {
            let (evaluation, episodes) = measure(name, &model, recipe, &stop)?;
            write_episodes(&layout, name, &episodes)?;
            ModelResult {
                name: name.to_owned(),
                evaluation,
                inputs,
            }
        };
        results.models.push(result);
        // After each model, so that a stop loses only the one at hand.
        write_results(&file, &results)?;
    }
    let columns: Vec<(&str, &Evaluation)> = results
        .models
        .iter()
        .map(|result| (result.name.as_str(), &result.evaluation))
        .collect();
    writeln!(out, "{}", table(&columns))?;
    writeln!(out, "results: {}", file.display())?;
    if let Some(last) = results.models.last() {
        writeln!(out, "model:   {}", last.inputs.model.display())?;
    }
    Ok(())
}

/// The models that the run has, in the order of the stages; the recipe's own
/// where nothing is trained yet.
fn models(recipe: &Recipe, layout: &RunLayout) -> Result<Vec<(&'static str, PathBuf)>, Failure> {
    let mut models = Vec::new();
    for (name, stage) in [("after SFT", Stage::Sft), ("after GRPO", Stage::Grpo)] {
        let link = layout.latest_model(stage);
        if link.exists() {
            models.push((name, fs_err::canonicalize(&link)?));
        }
    }
    if models.is_empty()
        && let ModelSection::Path(path) = &recipe.model
    {
        models.push(("untrained", fs_err::canonicalize(path)?));
    }
    if models.is_empty() {
        return Err(Failure::input(format!(
            "`{}` holds no trained model to measure",
            recipe.run_dir.display()
        ))
        .hint("run `asyncthink-train sft` with this recipe first"));
    }
    Ok(models)
}

fn measure(
    name: &'static str,
    model: &Path,
    recipe: &Recipe,
    stop: &StopFlag,
) -> Result<(Evaluation, Vec<EpisodeLine>), Failure> {
    let mut progress = Progress::new("eval");
    let result = evaluate(model, recipe, &mut |at| {
        progress.count(at.finished_episodes as u64, at.total_episodes as u64, name);
        stop.requested().is_none()
    });
    progress.finish();
    match (result, stop.requested()) {
        (Err(asyncthink_eval::Error::Stopped), Some(signal)) => {
            progress.say(&format!(
                "eval: stopped by {}; what was measured is kept\n\nhint: the same command goes on from there",
                signals::name(signal)
            ));
            Err(Failure::signal(signal))
        }
        (result, _) => Ok(result?),
    }
}

fn inputs(recipe: &Recipe, layout: &RunLayout, model: &Path) -> Result<Inputs, Failure> {
    let mut files = vec![layout.synth().test_problems()];
    for name in [
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        MODEL_CARD_FILE,
    ] {
        files.push(model.join(name));
    }
    files.retain(|file| file.exists());
    let mut stamps = Vec::with_capacity(files.len());
    for file in files {
        let metadata = fs_err::metadata(&file)?;
        let changed = metadata
            .modified()?
            .duration_since(UNIX_EPOCH)
            .map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        stamps.push((file, metadata.len(), changed));
    }
    Ok(Inputs {
        model: model.to_owned(),
        files: stamps,
        recipe: format!(
            "{:?} {:?} {:?} {} {}",
            recipe.eval, recipe.protocol, recipe.prompts, recipe.seed, recipe.device
        ),
    })
}

/// Results of an earlier call; a file that cannot be read is none.
fn read_results(file: &Path) -> Results {
    fs_err::read(file)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// What the model wrote, to be read and for `asyncthink-train trace`: figures alone do not say why they are as they are.
fn write_episodes(layout: &RunLayout, name: &str, episodes: &[EpisodeLine]) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for episode in episodes {
        serde_json::to_writer(&mut lines, episode)
            .map_err(|error| Failure::run(format!("cannot write an episode as JSON: {error}")))?;
        lines.push(b'\n');
    }
    let name = name.to_lowercase().replace(' ', "_");
    let file = layout
        .stage(Stage::Eval)
        .join(format!("episodes_{name}.jsonl"));
    asyncthink_data::write_bytes_atomic(&file, &lines)?;
    Ok(())
}

fn write_results(file: &Path, results: &Results) -> Result<(), Failure> {
    let json = serde_json::to_vec_pretty(results)
        .map_err(|error| Failure::run(format!("cannot write the results as JSON: {error}")))?;
    asyncthink_data::write_bytes_atomic(file, &json)?;
    Ok(())
}
