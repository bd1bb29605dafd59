//! The command `eval`: every trained model of the run, side by side.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use asyncthink_checkpoint::{RunLayout, StageLock};
use asyncthink_distributed::{DeviceSettings, RankSettings, Ranks};
use asyncthink_eval::{EpisodeLine, EvalSettings, Evaluation, Methods, Target, evaluate, table};
use asyncthink_launch::World;
use asyncthink_recipe::{EvalSplit, ModelSection, Recipe, Stage};
use asyncthink_rollout::MODEL_CARD_FILE;
use asyncthink_tasks::Problem;
use asyncthink_trainer::{StopFlag, test_problems, validation_problems};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::args::ResumeArg;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::run_folder;
use crate::signals;

/// The way of thinking that models are trained in.
const TRAINED_METHOD: &str = "asyncthink";

/// The file of results: what the table shows, and what it was made from.
#[derive(Default, Serialize, Deserialize)]
struct Results {
    models: Vec<ModelResult>,
}

#[derive(Serialize, Deserialize)]
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
    recipe: serde_json::Value,
}

pub(crate) fn run(
    recipe: &Recipe,
    resume: &ResumeArg,
    world: &World,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let ranks = Ranks::join(world, &RankSettings::of(recipe), Stage::Eval.name(), true)?;
    let stop = signals::stop_flag()?;
    let report = ranks.is_first().then(|| Report::open(recipe, resume));
    let mut report = ranks.agree(report.transpose())?;
    for wanted in unknown(report.as_ref(), &ranks)? {
        let measured = measure(&wanted, recipe, &ranks, &stop)?;
        let added = match (&mut report, measured) {
            (Some(report), Some((evaluation, episodes))) => {
                report.add(&wanted.name, &evaluation, &episodes)
            }
            _ => Ok(()),
        };
        ranks.agree(added)?;
    }
    ranks.part()?;
    report.map_or(Ok(()), |report| report.print(out))
}

/// A model to measure by a method.
#[derive(Serialize, Deserialize)]
struct Wanted {
    /// The column's name.
    name: String,
    method: String,
    model: PathBuf,
}

/// Models and methods without a result, which the first rank knows.
fn unknown(report: Option<&Report>, ranks: &Ranks) -> Result<Vec<Wanted>, Failure> {
    let own = report.map(Report::unknown);
    let told = |error| Failure::run(format!("cannot tell the ranks what to measure: {error}"));
    let bytes = ranks.agree(serde_json::to_vec(&own).map_err(told))?;
    let models: Option<_> =
        serde_json::from_slice(&ranks.first_rank_bytes(&bytes)?).map_err(told)?;
    Ok(models.unwrap_or_default())
}

/// What the first rank alone has: the run's folder, and the table.
struct Report {
    layout: RunLayout,
    split: EvalSplit,
    file: PathBuf,
    columns: Vec<Column>,
    _lock: StageLock,
}

/// A model with a method, and the result once it is known.
struct Column {
    name: String,
    method: String,
    inputs: Inputs,
    evaluation: Option<Evaluation>,
}

impl Report {
    /// Locks the stage and finds the models, and the results of an earlier call that still hold.
    fn open(recipe: &Recipe, resume: &ResumeArg) -> Result<Self, Failure> {
        let layout = RunLayout::new(&recipe.run_dir);
        let models = models(recipe, &layout)?;
        let lock = run_folder::lock(&layout, Stage::Eval, recipe)?;
        let settings = EvalSettings::from_recipe(recipe)?;
        let file = layout
            .stage(Stage::Eval)
            .join(format!("{}.json", file_stem("results", settings.split)));
        if file.is_dir() {
            let message = format!("`{}` is a folder in place of a file", file.display());
            return Err(Failure::input(message).hint("move it away"));
        }
        let earlier = match resume {
            ResumeArg::Auto => read_results(&file),
            _ => Results::default(),
        };
        let methods = settings.methods;
        let mut columns = Vec::with_capacity(models.len() * methods.len());
        for (model_name, model) in models {
            let inputs = inputs(recipe, &layout, &model)?;
            for method in &methods {
                let name = column_name(model_name, method);
                let known = earlier
                    .models
                    .iter()
                    .find(|result| result.name == name && result.inputs == inputs);
                columns.push(Column {
                    name,
                    method: method.clone(),
                    evaluation: known.map(|result| result.evaluation.clone()),
                    inputs: inputs.clone(),
                });
            }
        }
        Ok(Self {
            layout,
            split: settings.split,
            file,
            columns,
            _lock: lock,
        })
    }

    fn unknown(&self) -> Vec<Wanted> {
        let unknown = self
            .columns
            .iter()
            .filter(|column| column.evaluation.is_none());
        unknown
            .map(|column| Wanted {
                name: column.name.clone(),
                method: column.method.clone(),
                model: column.inputs.model.clone(),
            })
            .collect()
    }

    /// Takes a result and writes all that are known, so that a stop loses only the one at hand.
    fn add(
        &mut self,
        name: &str,
        evaluation: &Evaluation,
        episodes: &[EpisodeLine],
    ) -> Result<(), Failure> {
        write_episodes(&self.layout, self.split, name, episodes)?;
        for column in self.columns.iter_mut().filter(|column| column.name == name) {
            column.evaluation = Some(evaluation.clone());
        }
        self.write()
    }

    fn known(&self) -> impl Iterator<Item = (&Column, &Evaluation)> {
        self.columns
            .iter()
            .filter_map(|column| Some((column, column.evaluation.as_ref()?)))
    }

    fn write(&self) -> Result<(), Failure> {
        let models = self.known().map(|(column, evaluation)| ModelResult {
            name: column.name.clone(),
            inputs: column.inputs.clone(),
            evaluation: evaluation.clone(),
        });
        let models = models.collect();
        write_results(&self.file, &Results { models })
    }

    fn print(&self, out: &mut dyn Write) -> Result<(), Failure> {
        // Where nothing was measured, an earlier call may have written more models than these.
        self.write()?;
        let columns: Vec<(&str, &Evaluation)> = self
            .known()
            .map(|(column, evaluation)| (column.name.as_str(), evaluation))
            .collect();
        writeln!(out, "{}", table(&columns))?;
        writeln!(out, "results: {}", self.file.display())?;
        if let Some(last) = self.columns.last() {
            writeln!(out, "model:   {}", last.inputs.model.display())?;
        }
        Ok(())
    }
}

/// The name of a model's column; that of the trained way of thinking is the model's alone.
fn column_name(model: &str, method: &str) -> String {
    if method == TRAINED_METHOD {
        model.to_owned()
    } else {
        format!("{model}, {method}")
    }
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

/// What a measurement needs besides the model, by all ranks together.
fn open(recipe: &Recipe, ranks: &Ranks) -> Result<(EvalSettings, Vec<Problem>, Device), Failure> {
    ranks.set_phase("eval: loading the problems");
    let open = || -> Result<_, Failure> {
        let settings = EvalSettings::from_recipe(recipe)?;
        let layout = RunLayout::new(&recipe.run_dir);
        let problems = match settings.split {
            EvalSplit::Test => test_problems(&layout, &recipe.task)?,
            EvalSplit::Validation => validation_problems(&layout, &recipe.task)?,
        };
        Ok((
            settings,
            problems,
            ranks.open_device(&DeviceSettings::of(recipe))?,
        ))
    };
    ranks.agree(open())
}

/// Measures a model by all ranks; the first one gets the result, shows how far it has come, and says why it ended.
fn measure(
    wanted: &Wanted,
    recipe: &Recipe,
    ranks: &Ranks,
    stop: &StopFlag,
) -> Result<Option<(Evaluation, Vec<EpisodeLine>)>, Failure> {
    let (settings, problems, device) = open(recipe, ranks)?;
    let target = Target {
        model_dir: &wanted.model,
        device,
        settings: &settings,
    };
    let method = Methods::builtin().find(&wanted.method)?;
    let mut progress = ranks.is_first().then(|| Progress::new("eval"));
    let result = evaluate(&target, &problems, method, ranks, &mut |at| {
        if let Some(progress) = &mut progress {
            let (done, total) = (at.finished_episodes as u64, at.total_episodes as u64);
            progress.count(done, total, &wanted.name);
        }
        stop.requested().is_none()
    });
    if let Some(progress) = &progress {
        progress.finish();
    }
    if !matches!(result, Err(asyncthink_eval::Error::Stopped)) {
        return Ok(result?);
    }
    let signal = ranks.stop_requested(stop.requested())?.unwrap_or_default();
    ranks.part()?;
    if let Some(progress) = &progress {
        progress.say(&format!(
            "eval: stopped by {}; what was measured is kept\n\nhint: the same command goes on from there",
            signals::name(signal)
        ));
    }
    Err(Failure::signal(signal))
}

fn inputs(recipe: &Recipe, layout: &RunLayout, model: &Path) -> Result<Inputs, Failure> {
    let synth = layout.synth();
    let mut files = vec![match EvalSettings::from_recipe(recipe)?.split {
        EvalSplit::Test => synth.test_problems(),
        EvalSplit::Validation => synth.validation_problems(),
    }];
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
    let mut sections = serde_json::json!({
        "eval": recipe.eval,
        // Fewer problems than there are were the first ones once.
        "problems": "sampled by seed",
        "protocol": recipe.protocol,
        "prompts": recipe.prompts,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "device": recipe.device,
    });
    if let Some(base) = &recipe.adapter_base {
        sections["adapter_base"] = serde_json::json!(base);
    }
    Ok(Inputs {
        model: model.to_owned(),
        files: stamps,
        recipe: sections,
    })
}

/// Results of the two splits lie side by side.
fn file_stem(name: &str, split: EvalSplit) -> String {
    match split {
        EvalSplit::Test => name.to_owned(),
        EvalSplit::Validation => format!("{name}_{}", split.name()),
    }
}

/// Results of an earlier call; a file that cannot be read is none.
fn read_results(file: &Path) -> Results {
    fs_err::read(file)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default()
}

/// What the model wrote, to be read and for `asyncthink-train trace`: figures alone do not say why they are as they are.
fn write_episodes(
    layout: &RunLayout,
    split: EvalSplit,
    name: &str,
    episodes: &[EpisodeLine],
) -> Result<(), Failure> {
    let mut lines = Vec::new();
    for episode in episodes {
        serde_json::to_writer(&mut lines, episode)
            .map_err(|error| Failure::run(format!("cannot write an episode as JSON: {error}")))?;
        lines.push(b'\n');
    }
    let name = name.to_lowercase().replace(", ", "_").replace(' ', "_");
    let file = layout
        .stage(Stage::Eval)
        .join(format!("{}_{name}.jsonl", file_stem("episodes", split)));
    asyncthink_data::write_bytes_atomic(&file, &lines)?;
    Ok(())
}

fn write_results(file: &Path, results: &Results) -> Result<(), Failure> {
    let json = serde_json::to_vec_pretty(results)
        .map_err(|error| Failure::run(format!("cannot write the results as JSON: {error}")))?;
    asyncthink_data::write_bytes_atomic(file, &json)?;
    Ok(())
}
