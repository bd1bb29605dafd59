//! The command `bench`: how fast this machine does the work of a recipe.

mod cost;
mod episodes;
mod line;
mod machine;
mod meter;
mod model;
mod plain;
mod rollout;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Sampling: the workload of `[bench.rollout]`
    Rollout(RecipeArgs),
}

#[derive(Debug, Args)]
struct RecipeArgs {
    /// The recipe, a TOML file; `recipes/bench/` has some
    #[arg(value_name = "RECIPE")]
    recipe: PathBuf,

    /// Override a key of the recipe, for example `--set bench.rollout.num_prompts=64`; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub(crate) fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Rollout(args) => rollout::run(&args.recipe, &args.set, out),
    }
}
