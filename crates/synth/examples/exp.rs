//! temporary
#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason
)]
use std::path::Path;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let recipe = asyncthink_recipe::Recipe::load(Path::new(&args[1]), &args[2..])
        .unwrap_or_else(|e| panic!("{e}"));
    let r = asyncthink_synth::run(&recipe, &recipe.run_dir.clone(), &mut |_| {})
        .unwrap_or_else(|e| panic!("{e:?}"));
    println!("{r:?}");
}
