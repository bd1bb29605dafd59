use std::io;
use std::path::PathBuf;

/// What can be wrong with rows, templates, tokenizers and files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, written or renamed; the message names it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A file is not the text that it should be.
    #[error(transparent)]
    File(asyncthink_files::Error),
    /// A tokenizer file is not what the tokenizers library reads.
    #[error("cannot read tokenizer `{path}`: {message}")]
    Tokenizer {
        /// The file, or `<memory>`.
        path: PathBuf,
        /// The library's reason.
        message: String,
    },
    /// A text could not be turned into ids.
    #[error("cannot tokenize text of {num_bytes} bytes: {message}")]
    Encode {
        /// Length of the text.
        num_bytes: usize,
        /// The library's reason.
        message: String,
    },
    /// The task's text needs more tokens than the tokenizer may have.
    #[error(
        "the task's text needs {needed} tokens, more than the bound of {bound}; narrow the range of its numbers"
    )]
    VocabularyTooLarge {
        /// Tokens needed.
        needed: usize,
        /// The bound.
        bound: usize,
    },
    /// A template lacks a placeholder that it cannot do without.
    #[error("prompt template `{template}` lacks the placeholder `{placeholder}`")]
    MissingPlaceholder {
        /// The template's key in the recipe.
        template: &'static str,
        /// The placeholder, braces included.
        placeholder: &'static str,
    },
    /// A model folder holds no chat template, and the prompts need one.
    #[error(
        "`{directory}` holds no chat template: neither `chat_template.jinja` nor `chat_template` in `tokenizer_config.json`"
    )]
    NoChatTemplate {
        /// The folder.
        directory: PathBuf,
    },
    /// A chat template cannot be used at all.
    #[error("cannot use the chat template in `{path}`: {message}")]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// Reason it is invalid.
        message: String,
    },
    /// A chat template fails on a conversation.
    #[error("the chat template in `{path}` fails: {message}")]
    ChatRender {
        /// The file.
        path: PathBuf,
        /// Why it fails.
        message: String,
    },
    /// Vectors of one training row differ in length.
    #[error("a training row has {expected} ids but {got} entries of `{field}`")]
    RowLength {
        /// The offending vector.
        field: &'static str,
        /// Number of ids.
        expected: usize,
        /// Number of entries.
        got: usize,
    },
    /// A training row is too short to predict anything.
    #[error("a training row needs at least 2 ids, got {got}")]
    RowTooShort {
        /// Number of ids.
        got: usize,
    },
    /// A training row marks its first token as decoded, which no position predicts.
    #[error("a training row marks its first token as trained, but nothing precedes it")]
    RowFirstTrained,
    /// Bytes that another process sent are no row.
    #[error("the bytes of a row are cut short")]
    RowBytes,
    /// A log-probability or advantage is NaN or infinite.
    #[error("a training row holds a value of `{field}` that is not finite: {value}")]
    RowNotFinite {
        /// The offending vector.
        field: &'static str,
        /// The value.
        value: f32,
    },
    /// A Parquet file cannot be read: damaged, cut short, or no Parquet at all.
    #[error("cannot read Parquet file `{path}`: {message}")]
    CorruptParquet {
        /// The file.
        path: PathBuf,
        /// The library's reason.
        message: String,
    },
    /// A Parquet file could not be written.
    #[error("cannot write Parquet file `{path}`: {message}")]
    WriteParquet {
        /// The file.
        path: PathBuf,
        /// The library's reason.
        message: String,
    },
    /// A Parquet file holds other rows than those asked for.
    #[error("Parquet file `{path}` holds `{got}` rows, expected `{expected}`")]
    ParquetKind {
        /// The file.
        path: PathBuf,
        /// The kind wanted.
        expected: &'static str,
        /// The kind found.
        got: String,
    },
    /// A Parquet file lacks a column, or the column has another type or missing values.
    #[error("Parquet file `{path}`: column `{column}` {problem}")]
    ParquetColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// Reason it is invalid.
        problem: &'static str,
    },
    /// A row of a Parquet file holds a value that makes no sense.
    #[error("Parquet file `{path}`, row {row}: {message}")]
    ParquetRow {
        /// The file.
        path: PathBuf,
        /// Index of the row, from 0.
        row: usize,
        /// What is wrong.
        message: String,
    },
}

impl From<asyncthink_files::Error> for Error {
    fn from(error: asyncthink_files::Error) -> Self {
        match error {
            asyncthink_files::Error::Io(error) => Self::Io(error),
            other => Self::File(other),
        }
    }
}

impl Error {
    /// Whether the user's data is at fault, rather than the machine.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            Self::File(error) => error.is_input(),
            Self::WriteParquet { .. } => false,
            _ => true,
        }
    }
}
