//! What people type.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::str::FromStr;

use asyncthink_protocol::{Overflow, TagStyle};
use asyncthink_tasks::{Registry, Task};
use asyncthink_torch::DeviceSpec;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand, ValueEnum, value_parser};

use crate::bench::BenchArgs;
use crate::launch::LaunchArgs;
use crate::think::ThinkArgs;

/// Trains organizer-worker language models: from problems to cold-start
/// traces, format fine-tuning, policy optimisation and evaluation.
#[derive(Debug, Parser)]
#[command(
    name = "asyncthink-train",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 the run failed, 2 the input was wrong, 130 and 143 stopped by a signal \
                  after saving."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make problems and cold-start traces
    Synth(StageArgs),
    /// Stage 1: cold-start format fine-tuning
    Sft(StageArgs),
    /// Stage 2: organizer-worker policy optimisation
    Grpo(StageArgs),
    /// Measure the trained models on held-out problems
    Eval(StageArgs),
    /// Run a command as several ranks, on this machine or on several
    Launch(LaunchArgs),
    /// Play one episode on a model, live
    Think(ThinkArgs),
    /// Check traces: errors, latency, concurrency
    Trace(TraceArgs),
    /// Grade answers
    Grade(GradeArgs),
    /// Log-probabilities of given tokens
    Score(ScoreArgs),
    /// Measure how fast this machine does the work of a recipe
    Bench(BenchArgs),
    /// Print the JSON Schema of a recipe
    Schema,
    /// Show what this machine offers: libtorch, devices, threads; with `--self-test`, check what it computes
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Check every kernel against a plain reference, the sampler against the trainer, collectives, and each stage once
    #[arg(long)]
    pub(crate) self_test: bool,

    /// The device to check: auto, cpu, cuda or cuda:N
    #[arg(
        long,
        value_name = "DEVICE",
        default_value = "auto",
        requires = "self_test"
    )]
    pub(crate) device: DeviceSpec,

    /// Print one JSON object for each check
    #[arg(long, requires = "self_test")]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StageArgs {
    /// The recipe, a TOML file
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,

    /// Override a key of the recipe, for example `--set grpo.group_size=16`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Check everything, write the resolved recipe to standard output, and to `recipe.toml` in the
    /// run's folder if there is none yet, and start nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Where to begin: `auto` goes on from what the run's folder holds, `never` begins anew, and a
    /// checkpoint's folder goes on from there
    #[arg(long, value_name = "auto|never|DIR", default_value = "auto")]
    pub(crate) resume: ResumeArg,
}

/// The value of `--resume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ResumeArg {
    Auto,
    Never,
    Dir(PathBuf),
}

impl FromStr for ResumeArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "auto" => Self::Auto,
            "never" => Self::Never,
            dir => Self::Dir(dir.into()),
        })
    }
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Traces as JSON lines; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// How text becomes tokens: `char` counts characters, a folder is a Hugging Face tokenizer
    #[arg(long, value_name = "char|DIR", default_value = "char")]
    pub(crate) tokenizer: TokenizerArg,

    /// Spelling of the tags
    #[arg(long, value_enum, default_value_t = TagStyleArg::Plain)]
    pub(crate) tag_style: TagStyleArg,

    /// What a Fork does when every worker is busy
    #[arg(long, value_enum, default_value_t = OverflowArg::Error)]
    pub(crate) overflow: OverflowArg,
}

/// The value of `--tokenizer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TokenizerArg {
    Char,
    Dir(PathBuf),
}

impl FromStr for TokenizerArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "char" => Self::Char,
            dir => Self::Dir(dir.into()),
        })
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TagStyleArg {
    /// `<FORK1>`
    Plain,
    /// `<FORK-1>`
    Hyphen,
}

impl From<TagStyleArg> for TagStyle {
    fn from(arg: TagStyleArg) -> Self {
        match arg {
            TagStyleArg::Plain => Self::Plain,
            TagStyleArg::Hyphen => Self::Hyphen,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum OverflowArg {
    /// It is a format error
    Error,
    /// It waits, and the latency counts the wait
    Queue,
}

impl From<OverflowArg> for Overflow {
    fn from(arg: OverflowArg) -> Self {
        match arg {
            OverflowArg::Error => Self::Error,
            OverflowArg::Queue => Self::Queue,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct GradeArgs {
    /// Answers as JSON lines; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The task that the problems belong to
    #[arg(long, value_parser = TaskParser)]
    pub(crate) task: TaskArg,
}

/// The value of `--task`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TaskArg(pub(crate) &'static dyn Task);

/// Parses the name of a registered task.
#[derive(Clone, Copy, Debug)]
struct TaskParser;

impl TypedValueParser for TaskParser {
    type Value = TaskArg;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<TaskArg, clap::Error> {
        let names = PossibleValuesParser::new(Registry::builtin().names());
        let name = names.parse_ref(command, arg, value)?;
        let task = Registry::builtin().get(&name);
        task.map(TaskArg)
            .ok_or_else(|| clap::Error::new(ErrorKind::InvalidValue).with_cmd(command))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let tasks: Vec<_> = Registry::builtin().iter().collect();
        let values = tasks
            .into_iter()
            .map(|task| PossibleValue::new(task.name()).help(task.title()));
        Some(Box::new(values))
    }
}

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Token ids as JSON lines; `-` is standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The folder of the model
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,

    /// For an adapter folder: the folder of its base model, in place of the name or path in it
    #[arg(long, value_name = "DIR")]
    pub(crate) base: Option<PathBuf>,

    /// Where the model runs: `auto` is a GPU where there is one
    #[arg(long, value_name = "auto|cpu|cuda|cuda:N", default_value = "auto")]
    pub(crate) device: DeviceSpec,

    /// How weights and activations are held; logits are f32 always
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    pub(crate) dtype: DtypeArg,

    /// Most tokens that are computed together; more take more memory, and are hardly faster
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = value_parser!(u32).range(1..))]
    pub(crate) batch_tokens: u32,

    /// CPU threads; 0 takes all cores
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u16).range(..=4096))]
    pub(crate) num_threads: u16,

    /// Say at the end, on standard error, how much was computed and how fast
    #[arg(long)]
    pub(crate) verbose: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum DtypeArg {
    /// 32 bits
    F32,
    /// 16 bits, with the range of 32
    Bf16,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}
