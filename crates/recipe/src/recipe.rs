//! The recipe as a whole: read, override, check, keep.

use std::ops::Deref;
use std::path::{Path, PathBuf};

use asyncthink_files::{Error as FileError, read_structured};
use asyncthink_tasks::TaskConfig;

use crate::catalogue::Catalogue;
use crate::check;
use crate::device::DeviceSpec;
use crate::document::{self, Node};
use crate::error::{ErrorKind, RecipeError, RecipeErrors};
use crate::model_folder::{self, MissingFile};
use crate::raw::RawRecipe;
use crate::rules;
use crate::saving::SaveInBackground;
use crate::schema::{fill_defaults, schema_value};
use crate::sections::{
    BenchRolloutSection, BenchSection, BenchStepSection, BenchTrainSection, DistributedSection,
    EngineSection, EvalSection, GrpoSection, LoraSection, MemorySection, ModelSection,
    PrecisionSection, PromptsSection, ProtocolSection, SftSection, SynthSection,
};
use crate::source::Source;
use crate::stage::Stage;

/// The values of a recipe, after every check.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeData {
    /// Short name of the run.
    pub name: String,
    /// Folder for everything that the run writes.
    pub run_dir: PathBuf,
    /// Seed of problems, traces, initial weights and sampling.
    pub seed: u64,
    /// Where tensors live.
    pub device: DeviceSpec,
    /// CPU threads; 0 takes all cores.
    pub num_threads: usize,
    /// Whether training goes on while a checkpoint is written.
    pub save_in_background: SaveInBackground,
    /// What may differ from the checkpoint that a run goes on from.
    pub allow_changed: Vec<String>,
    /// Places for metrics besides `metrics.jsonl`.
    pub metrics: Vec<String>,
    /// Where the problems come from.
    pub task: TaskConfig,
    /// How organizer and workers talk, and how long they may.
    pub protocol: ProtocolSection,
    /// The prompt templates.
    pub prompts: PromptsSection,
    /// The model to start from.
    pub model: ModelSection,
    /// Folder of the base model of adapter folders, in place of what they name.
    pub adapter_base: Option<PathBuf>,
    /// Adapters to train in place of the model's own weights.
    pub lora: Option<LoraSection>,
    /// How sampling uses the machine.
    pub engine: EngineSection,
    /// Number formats of training.
    pub precision: PrecisionSection,
    /// What training may take of the machine's memory.
    pub memory: MemorySection,
    /// How ranks work together.
    pub distributed: DistributedSection,
    /// For the command `synth`.
    pub synth: Option<SynthSection>,
    /// For the command `sft`.
    pub sft: Option<SftSection>,
    /// For the command `grpo`.
    pub grpo: Option<GrpoSection>,
    /// For the command `eval`.
    pub eval: Option<EvalSection>,
    /// For the command `bench`.
    pub bench: Option<BenchSection>,
}

impl RecipeData {
    fn new(raw: &RawRecipe, task: TaskConfig, model: ModelSection) -> Self {
        Self {
            name: raw.name.clone(),
            run_dir: raw.run_dir.clone(),
            seed: raw.seed,
            device: raw.device,
            num_threads: raw.num_threads,
            save_in_background: raw.save_in_background,
            allow_changed: raw.allow_changed.clone(),
            metrics: raw.metrics.clone(),
            task,
            protocol: raw.protocol.clone(),
            prompts: raw.prompts.clone(),
            model,
            adapter_base: raw.model.adapter_base.clone(),
            lora: raw.model.lora.clone(),
            engine: raw.engine.clone().unwrap_or_default(),
            precision: raw.precision.unwrap_or_default(),
            memory: raw.memory.clone().unwrap_or_default(),
            distributed: raw.distributed.clone().unwrap_or_default(),
            synth: raw.synth.clone(),
            sft: raw.sft.clone(),
            grpo: raw.grpo.clone(),
            eval: raw.eval.clone(),
            bench: raw.bench.clone(),
        }
    }
}

/// A recipe that passed every check. Only [`Recipe::load`] and
/// [`Recipe::parse`] make one.
#[derive(Clone, Debug)]
pub struct Recipe {
    data: RecipeData,
    raw: RawRecipe,
    root: Node,
    file: PathBuf,
    text: String,
    sets: Vec<String>,
}

impl Deref for Recipe {
    type Target = RecipeData;

    fn deref(&self) -> &RecipeData {
        &self.data
    }
}

impl Recipe {
    /// Reads a recipe file, lays the `--set` arguments (`a.b=value`) over it
    /// and checks everything that needs no other file. Names of losses,
    /// teachers, evaluation methods and metrics sinks are not checked.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once: an unreadable file, syntax, unknown
    /// keys, wrong types, values outside their limits, missing keys and
    /// contradictions.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, RecipeErrors> {
        Self::load_with(path, sets, &Catalogue::builtin())
    }

    /// As [`Recipe::load`], with the names of a catalogue.
    ///
    /// # Errors
    ///
    /// As [`Recipe::load`].
    pub fn load_with(
        path: &Path,
        sets: &[String],
        catalogue: &Catalogue,
    ) -> Result<Self, RecipeErrors> {
        let text = read_structured(path).map_err(|error| {
            let (reason, hint) = match &error {
                FileError::Io(io) if io.kind() == std::io::ErrorKind::NotFound => (
                    "no such recipe file".to_owned(),
                    "check the path; recipes that come with the project are in `recipes/`",
                ),
                _ => (
                    format!("cannot read the recipe: {error}"),
                    error
                        .hint()
                        .unwrap_or("a recipe is a UTF-8 text file that you may read"),
                ),
            };
            let error =
                RecipeError::new(ErrorKind::Unreadable, Source::Root, "", None, reason, hint);
            RecipeErrors::new(path, "", sets, vec![error])
        })?;
        Self::parse_with(&text, path, sets, catalogue)
    }

    /// As [`Recipe::load`], from text; `file` is used in messages only.
    ///
    /// # Errors
    ///
    /// As [`Recipe::load`].
    pub fn parse(text: &str, file: &Path, sets: &[String]) -> Result<Self, RecipeErrors> {
        Self::parse_with(text, file, sets, &Catalogue::builtin())
    }

    /// As [`Recipe::load_with`], from text; `file` is used in messages only.
    ///
    /// # Errors
    ///
    /// As [`Recipe::load`].
    pub fn parse_with(
        text: &str,
        file: &Path,
        sets: &[String],
        catalogue: &Catalogue,
    ) -> Result<Self, RecipeErrors> {
        let fail = |errors| RecipeErrors::new(file, text, sets, errors);
        let mut root = document::parse(text).map_err(fail)?;
        let mut errors = Vec::new();
        for (index, argument) in sets.iter().enumerate() {
            if let Err(error) = document::apply_set(&mut root, index, argument) {
                errors.push(*error);
            }
        }
        let schema = schema_value(catalogue);
        errors.extend(check::check(&root, &schema));
        errors.extend(rules::check(&root, &schema, &catalogue.tasks));
        if !errors.is_empty() {
            return Err(fail(errors));
        }
        // The checker knows the schema that serde reads by, so this is a gap
        // in the checker; the user still gets an answer.
        let gap = |kind, reason: String| {
            fail(vec![RecipeError::new(
                kind,
                Source::Root,
                "",
                None,
                reason,
                "compare the recipe with `asyncthink-train schema`",
            )])
        };
        let mut json = root.value.to_json();
        fill_defaults(&mut json, &schema);
        let mut raw: RawRecipe = serde_json::from_value(json.clone())
            .map_err(|error| gap(ErrorKind::WrongType, error.to_string()))?;
        let incomplete = || {
            gap(
                ErrorKind::MissingKey,
                "the task or the model is incomplete".to_owned(),
            )
        };
        let task = catalogue.tasks.get(&raw.task.name).ok_or_else(incomplete)?;
        let task = task
            .configure(&json["task"][&raw.task.name])
            .map_err(|error| gap(ErrorKind::WrongType, error.to_string()))?;
        raw.task.options = task.config().clone();
        let model = match (raw.model.path.clone(), raw.model.init.clone()) {
            (Some(path), _) => ModelSection::Path(path),
            (None, init) => ModelSection::Init(init.ok_or_else(incomplete)?),
        };
        Ok(Self {
            data: RecipeData::new(&raw, task, model),
            raw,
            root,
            file: file.to_path_buf(),
            text: text.to_owned(),
            sets: sets.to_vec(),
        })
    }

    /// The recipe with every default and every override written out, as TOML
    /// that loads again to the same values.
    pub fn to_toml(&self) -> String {
        // Every field is a number, string, array or table, which TOML can
        // say, so the fallback is never seen.
        toml::to_string(&self.raw).unwrap_or_else(|_| self.text.clone())
    }

    /// The file that the recipe was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The `[synth]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn synth(&self) -> Result<&SynthSection, RecipeErrors> {
        self.data
            .synth
            .as_ref()
            .ok_or_else(|| self.no_section("synth", "synth"))
    }

    /// The `[sft]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn sft(&self) -> Result<&SftSection, RecipeErrors> {
        self.data
            .sft
            .as_ref()
            .ok_or_else(|| self.no_section("sft", "sft"))
    }

    /// The `[grpo]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn grpo(&self) -> Result<&GrpoSection, RecipeErrors> {
        self.data
            .grpo
            .as_ref()
            .ok_or_else(|| self.no_section("grpo", "grpo"))
    }

    /// The `[eval]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn eval(&self) -> Result<&EvalSection, RecipeErrors> {
        self.data
            .eval
            .as_ref()
            .ok_or_else(|| self.no_section("eval", "eval"))
    }

    /// The `[bench.rollout]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn bench_rollout(&self) -> Result<&BenchRolloutSection, RecipeErrors> {
        let bench = self.data.bench.as_ref();
        bench
            .and_then(|bench| bench.rollout.as_ref())
            .ok_or_else(|| self.no_section("bench rollout", "bench.rollout"))
    }

    /// The `[bench.train]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn bench_train(&self) -> Result<&BenchTrainSection, RecipeErrors> {
        let bench = self.data.bench.as_ref();
        bench
            .and_then(|bench| bench.train.as_ref())
            .ok_or_else(|| self.no_section("bench train", "bench.train"))
    }

    /// The `[bench.step]` section.
    ///
    /// # Errors
    ///
    /// When the recipe has none.
    pub fn bench_step(&self) -> Result<&BenchStepSection, RecipeErrors> {
        let bench = self.data.bench.as_ref();
        bench
            .and_then(|bench| bench.step.as_ref())
            .ok_or_else(|| self.no_section("bench step", "bench.step"))
    }

    /// Checks that `stage` can start: its section is there, and so are the
    /// files that the recipe names. What an earlier stage writes is not
    /// looked for.
    ///
    /// # Errors
    ///
    /// The absent section, or every absent file.
    pub fn check_inputs(&self, stage: Stage) -> Result<(), RecipeErrors> {
        let present = match stage {
            Stage::Synth => self.data.synth.is_some(),
            Stage::Sft => self.data.sft.is_some(),
            Stage::Grpo => self.data.grpo.is_some(),
            Stage::Eval => self.data.eval.is_some(),
        };
        if !present {
            return Err(self.no_section(stage.name(), stage.name()));
        }
        let mut errors = Vec::new();
        let task = self.data.task.task().name();
        for file in self.data.task.input_files() {
            let hint = "give the path of a file of JSON lines, relative to the current folder";
            let missing = if file.path.is_dir() {
                MissingFile::new("is a folder, not a file", hint)
            } else if !file.path.is_file() {
                MissingFile::new("no such file", hint)
            } else {
                continue;
            };
            errors.push(self.missing(&format!("task.{task}.{}", file.key), &file.path, &missing));
        }
        if let ModelSection::Path(path) = &self.data.model {
            let is_chat = self.data.prompts.chat.is_some();
            let missing = [
                model_folder::missing_model(path),
                is_chat
                    .then(|| model_folder::missing_chat_template(path))
                    .flatten(),
            ];
            let missing = missing.iter().flatten();
            errors.extend(missing.map(|missing| self.missing("model.path", path, missing)));
            if let Some(base) = &self.data.adapter_base
                && let Some(missing) = model_folder::missing_base(path, base)
            {
                errors.push(self.missing("model.adapter_base", base, &missing));
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(RecipeErrors::new(
                &self.file, &self.text, &self.sets, errors,
            ))
        }
    }

    fn missing(&self, key: &str, path: &Path, missing: &MissingFile) -> RecipeError {
        let (source, _) = self.root.locate(key);
        RecipeError::new(
            ErrorKind::MissingFile,
            source,
            key,
            Some(format!("{:?}", path.display().to_string())),
            missing.reason.clone(),
            missing.hint,
        )
    }

    fn no_section(&self, command: &str, section: &str) -> RecipeErrors {
        let error = RecipeError::new(
            ErrorKind::MissingKey,
            Source::Root,
            section,
            None,
            format!("the command `{command}` needs a section `[{section}]`"),
            format!("add `[{section}]`; `asyncthink-train schema` lists its keys"),
        );
        RecipeErrors::new(&self.file, &self.text, &self.sets, vec![error])
    }
}
