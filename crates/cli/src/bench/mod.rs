//! The command `bench`: how fast this machine does the work of a recipe.

mod args;
mod cost;
mod episodes;
mod line;
mod machine;
mod meter;
mod model;
mod plain;
mod random_text;
mod report;
mod rollout;
mod rows;
mod step;
mod train;

use std::io::Write;

pub(crate) use args::BenchArgs;

use args::BenchCommand;

use crate::failure::Failure;

pub(crate) fn run(args: &BenchArgs, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Rollout(args) => rollout::run(&args.recipe, &args.set, out),
        BenchCommand::Step(args) => step::run(&args.recipe, &args.set, out),
        BenchCommand::Train(args) => train::run(&args.recipe, &args.set, out),
    }
}
