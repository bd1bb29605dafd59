//! Errors of describing, building, loading and saving a model.

use std::borrow::Cow;
use std::path::PathBuf;

use tch::Kind;

/// The way out of a format that is not read.
const CONVERT: &str = "convert the model to safetensors: load it with `transformers` and write it with \
                       `model.save_pretrained(DIR)`";

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file cannot be read as text, or is something else than was expected.
    #[error(transparent)]
    File(asyncthink_files::Error),
    /// A JSON file is not what it should be.
    #[error("`{path}` is not a readable model configuration: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        source: serde_json::Error,
    },
    /// A configuration file asks for something that cannot be.
    #[error("`{path}`: {source}")]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<Error>,
    },
    /// A field of the configuration has a value that this decoder does not implement.
    #[error("`{key}` is not supported: {value} (supported: {supported})")]
    Unsupported {
        /// The key in `config.json`.
        key: String,
        /// The value found.
        value: String,
        /// What would be accepted.
        supported: Cow<'static, str>,
    },
    /// A number type that this framework does not train in.
    #[error("`precision.{part}` is not supported: {kind:?} (supported: {supported})")]
    Precision {
        /// Which of the types.
        part: &'static str,
        /// The type found.
        kind: Kind,
        /// What would be accepted.
        supported: &'static str,
    },
    /// The parts of a decoding step contradict each other: a defect of the caller.
    #[error("inconsistent decoding step: {0}")]
    StepBatch(String),
    /// The segments of a packed batch contradict each other: a defect of the caller.
    #[error("inconsistent segments: {0}")]
    Segments(String),
    /// The numbers of the configuration contradict each other.
    #[error("invalid model configuration: {0}")]
    Config(String),
    /// A weight file is damaged.
    #[error("`{path}` is not a readable safetensors file: {reason}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// A model folder holds no weights in a format that is read.
    #[error("`{dir}` holds neither `model.safetensors` nor `model.safetensors.index.json`{}", instead(*found))]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// Weights in another format that are there.
        found: Option<&'static str>,
    },
    /// The weights are stored in a quantised form.
    #[error("the weights are quantised: {what}")]
    Quantised {
        /// Sign of it.
        what: String,
    },
    /// The tensors of a checkpoint are not those of its configuration.
    #[error("`{path}` does not fit `config.json`: {reason}")]
    Tensors {
        /// The model folder.
        path: PathBuf,
        /// Names of missing, surplus or misshaped tensors.
        reason: String,
    },
    /// An adapter folder is not one, or does not fit its base model.
    #[error("`{path}`: {reason}")]
    Adapter {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The base model of an adapter folder is not where it is looked for.
    #[error("`{path}`: `base_model_name_or_path` is `{base}`, and no folder of a model is there")]
    NoBase {
        /// `adapter_config.json`.
        path: PathBuf,
        /// The name or path that it gives.
        base: String,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error(
        "the tokenizer of `{dir}` has {num_ids} ids, more than the model's `vocab_size`: {vocab_size}"
    )]
    VocabularyTooLarge {
        /// The model's folder.
        dir: PathBuf,
        /// One more than the tokenizer's largest id.
        num_ids: usize,
        /// Rows of the model's embedding.
        vocab_size: i64,
    },
    /// The folder's adapters are not those of the recipe.
    #[error("the adapters in `{dir}` are {found}; `[model.lora]` asks for {wanted}")]
    OtherAdapters {
        /// The adapter folder.
        dir: PathBuf,
        /// Adapters in the folder.
        found: String,
        /// The recipe's.
        wanted: String,
    },
    /// The tokenizer could not be read or written.
    #[error(transparent)]
    Data(#[from] asyncthink_data::Error),
    /// A thread that worked on a replica panicked.
    #[error("{work}: a thread panicked")]
    Panicked {
        /// Operation that failed.
        work: &'static str,
    },
    /// libtorch refused an operation.
    #[error("libtorch failed: {0}")]
    Torch(#[from] tch::TchError),
    /// A shim of the torch crate refused an operation.
    #[error(transparent)]
    Shim(#[from] asyncthink_torch::Error),
}

impl From<asyncthink_files::Error> for Error {
    fn from(error: asyncthink_files::Error) -> Self {
        match error {
            asyncthink_files::Error::Io(error) => Self::Io(error),
            error => Self::File(error),
        }
    }
}

/// Weights in another format, as the message names them.
fn instead(found: Option<&str>) -> String {
    found.map_or_else(String::new, |name| format!(", but `{name}`"))
}

impl Error {
    /// Advice for the user.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::File(error) => error.hint(),
            Self::InFile { source, .. } => source.hint(),
            Self::Json { .. } | Self::Weights { .. } | Self::Tensors { .. } => {
                Some("the model's folder is damaged or incomplete: fetch or train it again")
            }
            Self::NoWeights { found: None, .. } => Some(
                "fetch the model's weights too: `model.safetensors`, or its shards and their index",
            ),
            Self::NoWeights { found: Some(_), .. } => Some(CONVERT),
            Self::Quantised { .. } => Some(
                "fetch the model that it was made from, in bf16 or f32; or dequantise it: load it with `transformers`, call \
                 `model.dequantize()` and `model.save_pretrained(DIR)`",
            ),
            Self::Adapter { .. } => Some(
                "an adapter folder is PEFT's: `adapter_config.json`, `adapter_model.safetensors`, and a base model",
            ),
            Self::NoBase { .. } => Some(
                "download the base model and give its folder: `--base DIR`, in a recipe `model.adapter_base`",
            ),
            Self::Unsupported { .. } => Some("docs/models.md lists what is supported"),
            Self::Shim(error) => error.hint(),
            _ => None,
        }
    }
}

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
