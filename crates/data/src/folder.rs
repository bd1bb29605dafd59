use std::path::{Path, PathBuf};

/// Where a run keeps what its first stage made: `<run_dir>/synth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynthFolder {
    root: PathBuf,
}

impl SynthFolder {
    /// The folder of a run.
    pub fn new(run_dir: &Path) -> Self {
        Self {
            root: run_dir.join("synth"),
        }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Training problems.
    pub fn train_problems(&self) -> PathBuf {
        self.root.join("train_problems.parquet")
    }

    /// Problems to choose settings by; absent where the recipe asks for none.
    pub fn validation_problems(&self) -> PathBuf {
        self.root.join("validation_problems.parquet")
    }

    /// Held-out problems, whose targets no training problem has.
    pub fn test_problems(&self) -> PathBuf {
        self.root.join("test_problems.parquet")
    }

    /// Query-response pairs for supervised fine-tuning.
    pub fn pairs(&self) -> PathBuf {
        self.root.join("pairs.parquet")
    }

    /// The folder of the tokenizer that the run uses.
    pub fn tokenizer(&self) -> PathBuf {
        self.root.join("tokenizer")
    }

    /// What the files were made from; written last, so that its presence says that they are complete.
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest.json")
    }
}
