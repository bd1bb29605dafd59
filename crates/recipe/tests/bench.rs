//! `[bench.rollout]`: defaults, and what a sequence of it holds.

use std::path::Path;

use asyncthink_protocol::Capacity;
use asyncthink_recipe::{ErrorKind, Recipe, RolloutWorkload};

const GOOD: &str = include_str!("good.toml");
const ROLLOUT: &str = "\n[bench.rollout]\nnum_prompts = 2\nprompt_tokens = 16\nnew_tokens = 8\n";

fn load(text: &str, sets: &[&str]) -> Recipe {
    let sets = [&["model.init.vocab_size=300"], sets].concat();
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    Recipe::parse(text, Path::new("recipe.toml"), &sets).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn defaults_are_those_of_training() {
    let recipe = load(&format!("{GOOD}{ROLLOUT}"), &[]);
    let bench = recipe.bench_rollout().expect("a section");
    assert_eq!(bench.workload, RolloutWorkload::Plain);
    assert_eq!((bench.group_size, bench.num_repeats), (1, 3));
    assert!(bench.share_prompts && (bench.temperature - 1.0).abs() < 1e-12);
    let again = load(&recipe.to_toml(), &[]);
    assert_eq!(*recipe, *again);
}

#[test]
fn a_sequence_of_an_episode_holds_what_joins_put_into_it() {
    let sets = [
        "bench.rollout.workload=episodes",
        "bench.rollout.capacity=4",
        "bench.rollout.return_tokens=10",
        "bench.rollout.new_tokens=60",
    ];
    let recipe = load(&format!("{GOOD}{ROLLOUT}"), &sets);
    let bench = recipe.bench_rollout().expect("a section");
    let capacity = bench.capacity.expect("a capacity");
    assert_eq!(capacity, Capacity::new(4).expect("a capacity"));
    assert_eq!(bench.forks(capacity), 3);
    assert_eq!(bench.sequence_tokens(capacity), 16 + 60 + 3 * 11);
}

#[test]
fn workloads_of_training_have_defaults() {
    let sections = "\n[bench.train]\nnum_rows = 3\nrow_tokens = [4, 9]\n[bench.step]\nnum_prompts = 2\nprompt_tokens = 16\n\
                    new_tokens = 8\n";
    let recipe = load(&format!("{GOOD}{sections}"), &[]);
    let train = recipe.bench_train().expect("a section");
    assert_eq!((train.row_tokens, train.num_repeats), ([4, 9], 3));
    assert!(train.optimizer && (train.trained_share - 1.0).abs() < 1e-12);
    assert_eq!(
        (train.micro_batch_tokens, train.activation_checkpointing),
        (None, None)
    );
    let step = recipe.bench_step().expect("a section");
    assert_eq!((step.group_size, step.num_repeats), (8, 3));
    assert_eq!(*load(&recipe.to_toml(), &[]), *recipe);
}

#[test]
fn a_recipe_without_the_section_says_what_to_add() {
    let errors = load(GOOD, &[]).bench_rollout().expect_err("no section");
    let error = &errors.errors()[0];
    assert_eq!(error.kind(), ErrorKind::MissingKey);
    assert_eq!(
        error.reason(),
        "the command `bench rollout` needs a section `[bench.rollout]`"
    );
}
