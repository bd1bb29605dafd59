//! Arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Sampling: the workload of `[bench.rollout]`
    Rollout(RecipeArgs),
    /// Gradient and optimizer: the workload of `[bench.train]`
    Train(RecipeArgs),
    /// Whole GRPO steps: the workload of `[bench.step]`
    Step(RecipeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RecipeArgs {
    /// The recipe, a TOML file; `recipes/bench/` has some
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,

    /// Override a key of the recipe, for example `--set num_threads=2`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}
