//! The recipe as a whole: read, override, check, keep.

mod model_folder;

use std::ops::Deref;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check;
use crate::defaults::{count, seed, test_target_fraction};
use crate::device::DeviceSpec;
use crate::document::{self, Node, Source};
use crate::error::{ErrorKind, RecipeError, RecipeErrors};
use crate::rules;
use crate::saving::SaveInBackground;
use crate::schema::schema_value;
use crate::sections::{
    DistributedSection, EngineSection, LoraSection, McdGenerate, McdSection, McdSource, McdTable,
    ModelSection, ModelTable, PromptsSection, ProtocolSection, TaskSection, TaskTable,
};
use crate::stages::{EvalSection, GrpoSection, SftSection, SynthSection};

/// A whole training job in one file: problems, protocol, prompts, model, and
/// one section per stage.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawRecipe {
    /// A short name for the run, shown in progress and reports.
    #[schemars(length(min = 1))]
    pub(crate) name: String,
    /// Folder for everything that the run writes, relative to the folder that
    /// the command runs in.
    #[schemars(length(min = 1))]
    pub(crate) run_dir: PathBuf,
    /// Seed of problems, traces, initial weights and sampling. Default 1.
    #[serde(default = "seed")]
    pub(crate) seed: u64,
    /// Where tensors live: `auto` (a GPU where there is one), `cpu`, `cuda`
    /// or `cuda:N`. Default `auto`.
    #[serde(default)]
    #[schemars(with = "String")]
    pub(crate) device: DeviceSpec,
    /// CPU threads; 0 takes all cores. Default 0.
    #[serde(default = "count::<0>")]
    #[schemars(range(max = 4096))]
    pub(crate) num_threads: usize,
    /// Whether training goes on while a checkpoint is written. The weights
    /// and moments are then copied first, which takes as much host memory
    /// again as they have: `auto` does so where the model is on a GPU.
    /// Default `auto`.
    #[serde(default)]
    pub(crate) save_in_background: SaveInBackground,
    /// What may differ from the checkpoint that a run goes on from: keys or
    /// whole sections of the recipe, `dataset`, `initial_model`. Default
    /// none. A difference that is not named here is refused.
    #[serde(default)]
    pub(crate) allow_changed: Vec<String>,
    /// Where the problems come from.
    pub(crate) task: TaskTable,
    /// How organizer and workers talk, and how long they may.
    pub(crate) protocol: ProtocolSection,
    /// The prompt templates.
    pub(crate) prompts: PromptsSection,
    /// The model to start from.
    pub(crate) model: ModelTable,
    /// How sampling uses the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<EngineSection>,
    /// How ranks work together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) distributed: Option<DistributedSection>,
    /// Cold-start traces, for the command `synth`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) synth: Option<SynthSection>,
    /// Cold-start format fine-tuning, for the command `sft`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sft: Option<SftSection>,
    /// Organizer-worker policy optimisation, for the command `grpo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grpo: Option<GrpoSection>,
    /// Measurement on held-out problems, for the command `eval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eval: Option<EvalSection>,
}

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
    /// Where the problems come from.
    pub task: TaskSection,
    /// How organizer and workers talk, and how long they may.
    pub protocol: ProtocolSection,
    /// The prompt templates.
    pub prompts: PromptsSection,
    /// The model to start from.
    pub model: ModelSection,
    /// Adapters to train in place of the model's own weights.
    pub lora: Option<LoraSection>,
    /// How sampling uses the machine.
    pub engine: EngineSection,
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

/// A stage of a run, named as its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Problems and cold-start traces.
    Synth,
    /// Cold-start format fine-tuning.
    Sft,
    /// Organizer-worker policy optimisation.
    Grpo,
    /// Measurement.
    Eval,
}

impl Stage {
    /// The name of the command and of the section.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synth => "synth",
            Self::Sft => "sft",
            Self::Grpo => "grpo",
            Self::Eval => "eval",
        }
    }
}

impl Deref for Recipe {
    type Target = RecipeData;

    fn deref(&self) -> &RecipeData {
        &self.data
    }
}

impl Recipe {
    /// Reads a recipe file, lays the `--set` arguments (`a.b=value`) over it
    /// and checks everything that needs no other file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, at once: an unreadable file, syntax, unknown
    /// keys, wrong types, values outside their limits, missing keys and
    /// contradictions.
    pub fn load(path: &Path, sets: &[String]) -> Result<Self, RecipeErrors> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let (reason, hint) = if error.kind() == std::io::ErrorKind::NotFound {
                (
                    "no such recipe file".to_owned(),
                    "check the path; recipes that come with the project are in `recipes/`",
                )
            } else {
                (
                    format!("cannot read the recipe: {error}"),
                    "a recipe is a UTF-8 text file that you may read",
                )
            };
            let error =
                RecipeError::new(ErrorKind::Unreadable, Source::Root, "", None, reason, hint);
            RecipeErrors::new(path, "", sets, vec![error])
        })?;
        Self::parse(&text, path, sets)
    }

    /// As [`Recipe::load`], from text; `file` is used in messages only.
    ///
    /// # Errors
    ///
    /// As [`Recipe::load`].
    pub fn parse(text: &str, file: &Path, sets: &[String]) -> Result<Self, RecipeErrors> {
        let fail = |errors| RecipeErrors::new(file, text, sets, errors);
        let mut root = document::parse(text).map_err(fail)?;
        let mut errors = Vec::new();
        for (index, argument) in sets.iter().enumerate() {
            if let Err(error) = document::apply_set(&mut root, index, argument) {
                errors.push(*error);
            }
        }
        let schema = schema_value();
        errors.extend(check::check(&root, &schema));
        errors.extend(rules::check(&root, &schema));
        if !errors.is_empty() {
            return Err(fail(errors));
        }
        let mut raw: RawRecipe = serde_json::from_value(root.value.to_json()).map_err(|error| {
            // The checker knows the schema that serde reads by, so this is a
            // gap in the checker; the user still gets an answer.
            fail(vec![RecipeError::new(
                ErrorKind::WrongType,
                Source::Root,
                "",
                None,
                error.to_string(),
                "compare the recipe with `asyncthink-train schema`",
            )])
        })?;
        let task = resolve_mcd(&mut raw.task.mcd);
        let model = match (raw.model.path.clone(), raw.model.init.clone()) {
            (Some(path), _) => Some(ModelSection::Path(path)),
            (None, init) => init.map(ModelSection::Init),
        };
        let (Some(mcd), Some(model)) = (task, model) else {
            return Err(fail(vec![RecipeError::new(
                ErrorKind::MissingKey,
                Source::Root,
                "",
                None,
                "the task or the model is incomplete",
                "compare the recipe with `asyncthink-train schema`",
            )]));
        };
        let data = RecipeData {
            name: raw.name.clone(),
            run_dir: raw.run_dir.clone(),
            seed: raw.seed,
            device: raw.device,
            num_threads: raw.num_threads,
            save_in_background: raw.save_in_background,
            allow_changed: raw.allow_changed.clone(),
            task: TaskSection::Mcd(mcd),
            protocol: raw.protocol.clone(),
            prompts: raw.prompts.clone(),
            model,
            lora: raw.model.lora.clone(),
            engine: raw.engine.clone().unwrap_or_default(),
            distributed: raw.distributed.clone().unwrap_or_default(),
            synth: raw.synth.clone(),
            sft: raw.sft.clone(),
            grpo: raw.grpo.clone(),
            eval: raw.eval.clone(),
        };
        Ok(Self {
            data,
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
            .ok_or_else(|| self.no_section(Stage::Synth))
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
            .ok_or_else(|| self.no_section(Stage::Sft))
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
            .ok_or_else(|| self.no_section(Stage::Grpo))
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
            .ok_or_else(|| self.no_section(Stage::Eval))
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
            return Err(self.no_section(stage));
        }
        let mut errors = Vec::new();
        if let TaskSection::Mcd(McdSection {
            source:
                McdSource::Files {
                    train_file,
                    test_file,
                },
            ..
        }) = &self.data.task
        {
            for (key, path) in [
                ("task.mcd.train_file", train_file),
                ("task.mcd.test_file", test_file),
            ] {
                if !path.is_file() {
                    errors.push(self.missing(
                        key,
                        path,
                        "no such file",
                        "give the path of a file of JSON lines, relative to the current folder",
                    ));
                }
            }
        }
        if let ModelSection::Path(path) = &self.data.model {
            errors.extend(self.missing_model(path));
            errors.extend(self.missing_chat_template(path));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(RecipeErrors::new(
                &self.file, &self.text, &self.sets, errors,
            ))
        }
    }

    fn missing(&self, key: &str, path: &Path, reason: &str, hint: &str) -> RecipeError {
        let (source, _) = self.root.locate(key);
        RecipeError::new(
            ErrorKind::MissingFile,
            source,
            key,
            Some(format!("{:?}", path.display().to_string())),
            reason,
            hint,
        )
    }

    fn no_section(&self, stage: Stage) -> RecipeErrors {
        let name = stage.name();
        let error = RecipeError::new(
            ErrorKind::MissingKey,
            Source::Root,
            name,
            None,
            format!("the command `{name}` needs a section `[{name}]`"),
            format!("add `[{name}]`; `asyncthink-train schema` lists its keys"),
        );
        RecipeErrors::new(&self.file, &self.text, &self.sets, vec![error])
    }
}

/// The validated task; writes the default of a generator's key back, so that
/// the resolved recipe shows it. None when the rules let a gap pass.
fn resolve_mcd(table: &mut McdTable) -> Option<McdSection> {
    let source = match (&table.train_file, &table.test_file) {
        (Some(train_file), Some(test_file)) => McdSource::Files {
            train_file: train_file.clone(),
            test_file: test_file.clone(),
        },
        _ => McdSource::Generate(McdGenerate {
            num_numbers: table.num_numbers?,
            number_range: table.number_range?,
            target_range: table.target_range?,
            num_train_problems: table.num_train_problems?,
            num_test_problems: table.num_test_problems?,
            test_target_fraction: *table
                .test_target_fraction
                .get_or_insert_with(test_target_fraction),
        }),
    };
    Some(McdSection {
        required_solutions: table.required_solutions,
        numbers_per_solution: table.numbers_per_solution,
        source,
    })
}
