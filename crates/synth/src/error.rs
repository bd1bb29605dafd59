use std::io;
use std::path::PathBuf;

/// Why traces could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Rows, templates or the tokenizer.
    #[error(transparent)]
    Data(#[from] asyncthink_data::Error),
    /// Problems could not be generated.
    #[error(transparent)]
    Tasks(#[from] asyncthink_tasks::Error),
    /// A file of problems is wrong.
    #[error("cannot read problems from `{path}`: {source}")]
    ProblemFile {
        /// The file.
        path: PathBuf,
        /// The cause, with its line.
        source: asyncthink_tasks::Error,
    },
    /// A file of problems holds none.
    #[error("`{path}` holds no problems")]
    NoProblems {
        /// The file.
        path: PathBuf,
    },
    /// A file holds fewer problems than a stage uses.
    #[error(
        "`{key}` is {wanted}, and `{path}` holds {found} problems; lower it, or leave it out where it may be absent"
    )]
    TooFewProblems {
        /// The recipe's key.
        key: &'static str,
        /// Problems asked for.
        wanted: usize,
        /// Problems in the file.
        found: usize,
        /// The file.
        path: PathBuf,
    },
    /// More Fork/Join sequences than can be counted exactly.
    #[error(
        "the Fork/Join sequences of capacity {capacity} with at most {max_forks} forks are too many to draw from uniformly; \
         set `synth.topology_max_forks` to 28 or less"
    )]
    TooManyTopologies {
        /// The pool's capacity.
        capacity: u32,
        /// The bound on Forks.
        max_forks: u32,
    },
    /// The recipe has no `[synth]` section.
    #[error("the recipe has no section `[synth]`")]
    NoSection,
    /// The rules refused too many traces.
    #[error(
        "only {accepted} of {wanted} traces pass the rules; refused: {rejected}; \
         raise the budgets in `[protocol]`, or lower the attempts in `[synth]`"
    )]
    TooFewTraces {
        /// Traces asked for.
        wanted: usize,
        /// Traces that passed.
        accepted: usize,
        /// Refused traces by reason.
        rejected: String,
    },
    /// The manifest could not be written as JSON.
    #[error("cannot write the manifest: {0}")]
    Manifest(#[from] serde_json::Error),
}
