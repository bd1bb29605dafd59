//! The sections that every stage reads: task, protocol, prompts, model, engine.
//!
//! The structs here are what serde reads. Their doc comments are the
//! descriptions in the JSON Schema and in `docs/recipes.md`, and their
//! `range` attributes are the limits that the checker enforces: one place per
//! key.

use std::path::PathBuf;

use asyncthink_protocol::{Capacity, Overflow, Protocol, TagStyle};
use asyncthink_tasks::mcd::{GeneratorConfig, Rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults::{MAX_COUNT, MAX_ITEMS, MAX_NUMBER, count, yes};

/// `[task]`: where the problems come from. Exactly one table inside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskTable {
    /// Multi-solution countdown. From some of the given numbers and
    /// `+ - * /`, find several different expressions that equal the target.
    /// Either give the generator's keys (`num_numbers`, `number_range`,
    /// `target_range`, `num_train_problems`, `num_test_problems`) or two
    /// files (`train_file`, `test_file`).
    pub mcd: McdTable,
}

/// `[task.mcd]`: multi-solution countdown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct McdTable {
    /// How many different solutions an answer needs for the full reward.
    /// Default 4, as in the paper.
    #[serde(default = "count::<4>")]
    #[schemars(range(min = 1, max = 16))]
    pub required_solutions: usize,
    /// Fewest and most numbers that one solution may use, both included.
    /// Default [3, 6], as in the paper.
    #[serde(default = "crate::defaults::numbers_per_solution")]
    #[schemars(inner(range(max = 64)))]
    pub numbers_per_solution: [usize; 2],
    /// How many numbers a generated problem offers. The paper's problems have
    /// 12; fewer make a smaller search.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 24))]
    pub num_numbers: Option<usize>,
    /// Smallest and largest number on offer, both included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = -MAX_NUMBER, max = MAX_NUMBER)))]
    pub number_range: Option<[i64; 2]>,
    /// Smallest and largest target, both included. Targets are split between
    /// training and test, so that test targets are never seen in training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(range(min = -MAX_NUMBER, max = MAX_NUMBER)))]
    pub target_range: Option<[i64; 2]>,
    /// Problems to generate for training.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub num_train_problems: Option<usize>,
    /// Problems to generate for evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_ITEMS))]
    pub num_test_problems: Option<usize>,
    /// Share of the targets kept for evaluation. Default 0.1: enough targets
    /// to measure on, most left to learn from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "exclusiveMaximum" = 1.0))]
    pub test_target_fraction: Option<f64>,
    /// Training problems as JSON lines with `target`, `available_numbers` and
    /// optionally `index` and `solutions`: the released rows load as they
    /// are. Relative to the folder that the command runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_file: Option<PathBuf>,
    /// Evaluation problems, in the same form as `train_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_file: Option<PathBuf>,
}

/// The validated task.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskSection {
    /// Multi-solution countdown.
    Mcd(McdSection),
}

/// A validated `[task.mcd]`.
#[derive(Clone, Debug, PartialEq)]
pub struct McdSection {
    /// Solutions that an answer needs for the full reward.
    pub required_solutions: usize,
    /// Fewest and most numbers per solution, both included.
    pub numbers_per_solution: [usize; 2],
    /// Where the problems come from.
    pub source: McdSource,
}

impl McdSection {
    /// What a solution must obey besides reaching the target.
    pub fn rules(&self) -> Rules {
        Rules {
            min_numbers: self.numbers_per_solution[0],
            max_numbers: self.numbers_per_solution[1],
        }
    }

    /// The generator's settings, where the problems are generated.
    pub fn generator(&self, seed: u64) -> Option<GeneratorConfig> {
        let McdSource::Generate(generate) = &self.source else {
            return None;
        };
        Some(GeneratorConfig {
            num_numbers: generate.num_numbers,
            number_range: generate.number_range.into(),
            target_range: generate.target_range.into(),
            rules: self.rules(),
            required: self.required_solutions,
            num_train: generate.num_train_problems,
            num_test: generate.num_test_problems,
            test_target_fraction: generate.test_target_fraction,
            seed,
        })
    }
}

/// Where countdown problems come from.
#[derive(Clone, Debug, PartialEq)]
pub enum McdSource {
    /// The generator, seeded by the recipe's `seed`.
    Generate(McdGenerate),
    /// Two files of JSON lines.
    Files {
        /// Training problems.
        train_file: PathBuf,
        /// Evaluation problems.
        test_file: PathBuf,
    },
}

/// What the problem generator needs.
#[derive(Clone, Debug, PartialEq)]
pub struct McdGenerate {
    /// Numbers offered per problem.
    pub num_numbers: usize,
    /// Smallest and largest number on offer.
    pub number_range: [i64; 2],
    /// Smallest and largest target.
    pub target_range: [i64; 2],
    /// Training problems.
    pub num_train_problems: usize,
    /// Evaluation problems.
    pub num_test_problems: usize,
    /// Share of the targets kept for evaluation.
    pub test_target_fraction: f64,
}

/// `[protocol]`: how organizer and workers talk, and how long they may.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProtocolSection {
    /// Size `c` of the agent pool: one organizer and at most `c - 1` workers
    /// at a time. The paper uses 2 for countdown and 4 for mathematics.
    #[schemars(with = "u32", range(min = 1, max = 1024))]
    pub capacity: Capacity,
    /// Tokens that a worker may decode per sub-query. A worker cut here
    /// without a complete `<RETURN>` returns the empty string. The paper uses
    /// 512 for mathematics; 2048 for countdown follows from its prose.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub worker_max_tokens: u32,
    /// Tokens that the organizer may decode before each Join; every Join
    /// resets the count. The paper uses 512 for mathematics.
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub organizer_max_tokens: u32,
    /// Spelling of the tags: `plain` is `<FORK1>`, `hyphen` is `<FORK-1>`.
    /// The paper shows both. Default `plain`, as in its prompts.
    #[serde(default)]
    #[schemars(with = "TagStyleNames")]
    pub tag_style: TagStyle,
    /// What a Fork does when all `c - 1` workers are busy: `error` ends the
    /// episode with a format error, `queue` lets it wait for a free worker
    /// and counts the wait. Default `error`, the paper's rule for training.
    #[serde(default)]
    #[schemars(with = "OverflowNames")]
    pub overflow: Overflow,
    /// Most Forks per episode; absent means no limit. A guard against
    /// episodes that fork for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_forks: Option<u32>,
    /// Most tokens that the organizer may decode in a whole episode; absent
    /// means no limit beyond `organizer_max_tokens` per fragment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_COUNT))]
    pub organizer_total_tokens: Option<u32>,
}

impl ProtocolSection {
    /// The rules that the recogniser applies.
    pub fn protocol(&self) -> Protocol {
        Protocol {
            tags: self.tag_style,
            capacity: self.capacity,
            overflow: self.overflow,
            max_forks: self.max_forks,
        }
    }
}

/// Names of the tag styles, for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum TagStyleNames {
    Plain,
    Hyphen,
}

/// Names of the overflow rules, for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum OverflowNames {
    Error,
    Queue,
}

/// `[prompts]`: the templates. `{name}` is replaced; any other brace stays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptsSection {
    /// What the organizer reads. Must hold `{query}`; may hold
    /// `{max_workers}`, which is `capacity - 1`.
    pub organizer: String,
    /// What a worker reads. Must hold `{sub_query}`. A worker never sees the
    /// organizer's context.
    pub worker: String,
    /// How a problem becomes the text of `{query}`. For mcd: must hold
    /// `{numbers}` and `{target}`; may hold `{required}`, `{min_numbers}` and
    /// `{max_numbers}`.
    pub query: String,
    /// Put the prompts into the model's own chat template. Absent means that
    /// they are used as they stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat: Option<ChatSection>,
}

/// `[prompts.chat]`: the filled template of organizer or worker is the user's
/// message, and the chat template of `model.path` makes the prompt of it. The
/// table may be empty. Needs `model.path`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChatSection {
    /// System message of organizer and workers. May hold `{max_workers}`.
    /// Absent means none, and that the template may write its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Given to the template under this name; in Qwen3's, `false` begins the
    /// answer with an empty thought. Absent means that the template does not
    /// see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_thinking: Option<bool>,
}

/// `[model]`: exactly one of `path` and `[model.init]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelTable {
    /// Folder of a Hugging Face model: `config.json`, `tokenizer.json` and
    /// `*.safetensors`. Relative to the folder that the command runs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// A new model with random weights, and a tokenizer made from the task's
    /// own text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<ModelInit>,
    /// Train low-rank adapters (LoRA) and leave the model as it is. Absent
    /// means that every weight is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraSection>,
}

/// `[model.lora]`: adapters as in PEFT, one per projection and layer. Needs
/// `model.path`, which checkpoints then refer to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraSection {
    /// Inner dimension of an adapter. PEFT's default is 8; reasoning models
    /// are usually trained with 16 to 128.
    #[schemars(range(min = 1, max = 65_536))]
    pub rank: u32,
    /// What the adapters add is multiplied with `alpha / rank`. Often once or
    /// twice the rank.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Multiply with `alpha / sqrt(rank)` instead, which keeps the size of
    /// updates the same at any rank. Default false.
    #[serde(default)]
    pub use_rslora: bool,
    /// Projections with an adapter. Default all seven of a layer.
    #[serde(default = "LoraModule::all")]
    #[schemars(length(min = 1))]
    pub target_modules: Vec<LoraModule>,
    /// At the end of a stage, also write the model with its adapters added,
    /// as a folder `merged` in the last checkpoint. Default false.
    #[serde(default)]
    pub save_merged: bool,
}

/// A projection of a decoder layer.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum LoraModule {
    /// Queries of the attention.
    QProj,
    /// Keys of the attention.
    KProj,
    /// Values of the attention.
    VProj,
    /// The attention's output.
    OProj,
    /// The gate of the feed-forward block.
    GateProj,
    /// The way up of the feed-forward block.
    UpProj,
    /// The way down of the feed-forward block.
    DownProj,
}

impl LoraModule {
    fn all() -> Vec<Self> {
        vec![
            Self::QProj,
            Self::KProj,
            Self::VProj,
            Self::OProj,
            Self::GateProj,
            Self::UpProj,
            Self::DownProj,
        ]
    }

    /// The module's name in Hugging Face models, for instance `q_proj`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }
}

/// The validated model choice.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSection {
    /// A Hugging Face model folder.
    Path(PathBuf),
    /// Random weights of this shape.
    Init(ModelInit),
}

/// `[model.init]`: the shape of a new decoder in the Qwen3 architecture. The
/// vocabulary size comes from the tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelInit {
    /// Width of the residual stream.
    #[schemars(range(min = 2, max = 65_536))]
    pub hidden_size: usize,
    /// Decoder layers.
    #[schemars(range(min = 1, max = 1024))]
    pub num_layers: usize,
    /// Query heads per layer. Must be a multiple of `num_kv_heads`.
    #[schemars(range(min = 1, max = 1024))]
    pub num_heads: usize,
    /// Key and value heads per layer.
    #[schemars(range(min = 1, max = 1024))]
    pub num_kv_heads: usize,
    /// Width of one head. Must be even, because rotary embeddings turn pairs.
    #[schemars(range(min = 2, max = 1024))]
    pub head_dim: usize,
    /// Width of the gated feed-forward layer.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub intermediate_size: usize,
    /// Base of the rotary position embedding. Default 10000: right for
    /// contexts of a few thousand tokens; long-context models use 1000000.
    #[serde(default = "crate::defaults::rope_theta")]
    #[schemars(extend("exclusiveMinimum" = 1.0))]
    pub rope_theta: f64,
    /// One matrix for token embeddings and output head. Default true: a small
    /// model has better use for the parameters.
    #[serde(default = "yes")]
    pub tie_embeddings: bool,
    /// Longest sequence in tokens, prompt and injected text included. Default
    /// 2048.
    #[serde(default = "count::<2048>")]
    #[schemars(range(min = 8, max = 16_777_216))]
    pub max_position_embeddings: usize,
    /// How the tokenizer made for the model writes numbers. Default `whole`:
    /// numbers are then copied in one step.
    #[serde(default)]
    pub number_tokens: NumberTokens,
}

/// How a tokenizer made from the task's text writes numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NumberTokens {
    /// A token per whole number up to the largest product of two of a pool:
    /// short, and easy to copy, but numbers share nothing that the traces do
    /// not teach.
    #[default]
    Whole,
    /// A token per whole number up to the largest of a pool; larger ones are
    /// spelled in digits.
    Pool,
}

/// `[distributed]`: how ranks work together. It may change between a stop and
/// a resume, and so may the number of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DistributedSection {
    /// How long ranks wait for each other before the run fails, in seconds.
    /// Longer than what the slowest rank's episodes of a step take more than
    /// the fastest one's. Default 1800.
    #[serde(default = "count::<1800>")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub timeout_secs: usize,
    /// Megabytes of gradients or parameters that are exchanged at a time with
    /// `shard = "optimizer"`. An exchange among many ranks takes longer to
    /// begin, so the default is 5 per rank, and at least 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub bucket_mb: Option<usize>,
    /// What the ranks share out. Default `optimizer`.
    #[serde(default)]
    pub shard: Shard,
    /// With `shard = "full"`: how many micro-batches go through a layer each
    /// time that it is gathered. More of them exchange less, and keep the
    /// inputs of all layers of so many micro-batches in memory. Default 1.
    #[serde(default = "count::<1>")]
    #[schemars(range(min = 1, max = 65_536))]
    pub micro_batches_per_gather: usize,
}

impl Default for DistributedSection {
    fn default() -> Self {
        Self {
            timeout_secs: 1800,
            bucket_mb: None,
            shard: Shard::default(),
            micro_batches_per_gather: 1,
        }
    }
}

/// What the ranks share out between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// The optimizer's moments (`ZeRO`, stage 1): every rank has all weights
    /// and gradients.
    #[default]
    Optimizer,
    /// Weights, gradients and moments (`ZeRO`, stage 3): a layer is gathered
    /// when it is computed with. Sampling gathers the whole model.
    Full,
}

impl DistributedSection {
    /// Bytes that so many ranks exchange at a time.
    pub fn bucket_bytes(&self, num_ranks: usize) -> usize {
        self.bucket_mb.unwrap_or((5 * num_ranks).max(25)) << 20
    }
}

/// `[engine]`: how sampling uses the machine. It decides which agents share a
/// batch, hence the rounding of sums and nothing else, and may change between
/// a stop and a resume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EngineSection {
    /// Most agents that decode at a time, per sampling thread; the others
    /// wait. Each holds keys and values of the longest sequence, so this
    /// bounds the memory that sampling needs. Absent means 256 on a CPU and
    /// 1024 on a GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_agents: Option<usize>,
}
