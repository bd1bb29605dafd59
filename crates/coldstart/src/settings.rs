//! The settings of the stage.

use std::path::PathBuf;

use asyncthink_data::{ChatSettings, PromptTemplates, PromptText};
use asyncthink_protocol::Protocol;
use asyncthink_recipe::{
    EvalSplit, ModelSection, NumberTokens, PromptsSection, ProtocolSection, Recipe, SynthSection,
};
use asyncthink_tasks::TaskConfig;

use crate::error::{Error, Result};
use crate::teacher::{Registry, Teacher};

/// Tokenizer of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The tokenizer of a model folder.
    Model(PathBuf),
    /// A tokenizer made from the task's text, for a new model.
    Task {
        /// How it writes numbers.
        number_tokens: NumberTokens,
        /// Longest sequence of the model, in tokens.
        max_position_embeddings: usize,
    },
}

/// Everything that the stage takes from a recipe.
#[derive(Debug, Clone)]
pub struct ColdstartSettings {
    /// Seed of problems and traces.
    pub seed: u64,
    /// The task.
    pub task: TaskConfig,
    /// Rules and budgets of a trace.
    pub protocol: ProtocolSection,
    /// Prompt templates.
    pub prompts: PromptsSection,
    /// Number of traces, topologies, and the teacher's options.
    pub synth: SynthSection,
    /// The tokenizer.
    pub tokenizer: TokenizerSource,
    /// Training problems that `grpo.prompts_per_step` needs.
    pub min_train_problems: Option<usize>,
    /// Problems that `eval.num_problems` needs.
    pub min_eval_problems: Option<usize>,
    /// The split that they are of.
    pub eval_split: EvalSplit,
    /// The teacher.
    pub(crate) teacher: &'static dyn Teacher,
}

impl ColdstartSettings {
    /// Takes the settings from a recipe, with the teachers that come with the project.
    ///
    /// # Errors
    /// As [`Self::from_recipe_with`].
    pub fn from_recipe(recipe: &Recipe) -> Result<Self> {
        Self::from_recipe_with(recipe, &Registry::builtin())
    }

    /// Takes the settings from a recipe.
    ///
    /// # Errors
    /// The recipe has no `[synth]` section, or its teacher does not exist or cannot teach the task.
    pub fn from_recipe_with(recipe: &Recipe, teachers: &Registry) -> Result<Self> {
        let synth = recipe.synth.clone().ok_or(Error::NoSection)?;
        let teacher = teachers.get(&synth.teacher.name);
        let teacher = teacher.ok_or_else(|| {
            let known: Vec<_> = teachers
                .iter()
                .map(|one| format!("`{}`", one.name()))
                .collect();
            Error::UnknownTeacher {
                name: synth.teacher.name.clone(),
                known: known.join(", "),
            }
        })?;
        let task = recipe.task.task();
        if !teacher.can_teach(task) {
            return Err(Error::TaskNotTaught {
                teacher: teacher.name().to_owned(),
                task: task.name().to_owned(),
            });
        }
        Ok(Self {
            seed: recipe.seed,
            task: recipe.task.clone(),
            protocol: recipe.protocol.clone(),
            prompts: recipe.prompts.clone(),
            synth,
            tokenizer: match &recipe.model {
                ModelSection::Path(path) => TokenizerSource::Model(path.clone()),
                ModelSection::Init(init) => TokenizerSource::Task {
                    number_tokens: init.number_tokens,
                    max_position_embeddings: init.max_position_embeddings,
                },
            },
            min_train_problems: recipe.grpo.as_ref().map(|grpo| grpo.prompts_per_step),
            min_eval_problems: recipe.eval.as_ref().and_then(|eval| eval.num_problems),
            eval_split: recipe
                .eval
                .as_ref()
                .map_or(EvalSplit::Test, |eval| eval.split),
            teacher,
        })
    }

    /// Rules of the trace language.
    pub(crate) fn rules(&self) -> Protocol {
        self.protocol.protocol()
    }

    /// Longest sequence that the model takes, where it is known.
    pub(crate) fn max_sequence_tokens(&self) -> Option<usize> {
        match self.tokenizer {
            TokenizerSource::Model(_) => None,
            TokenizerSource::Task {
                max_position_embeddings,
                ..
            } => Some(max_position_embeddings),
        }
    }

    /// Most Forks of a trace: a topology must not exceed what the protocol lets an episode do.
    pub(crate) fn max_forks(&self) -> u32 {
        let wanted = u32::try_from(self.synth.topology_max_forks).unwrap_or(u32::MAX);
        let limit = self.protocol.max_forks;
        limit.map_or(wanted, |limit| wanted.min(limit))
    }

    /// The prompt templates, checked.
    pub(crate) fn templates(&self) -> Result<PromptTemplates> {
        let prompts = &self.prompts;
        let text = PromptText {
            organizer: prompts.organizer.clone(),
            worker: prompts.worker.clone(),
            query: prompts.query.clone(),
        };
        let chat = prompts.chat.as_ref().map(|chat| ChatSettings {
            system: chat.system.clone(),
            enable_thinking: chat.enable_thinking,
        });
        let max_workers = self.protocol.capacity.max_workers();
        Ok(PromptTemplates::new(text, max_workers)?.with_chat(chat))
    }
}
