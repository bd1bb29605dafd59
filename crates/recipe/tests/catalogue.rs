//! Names of implementations: what the catalogue lists is checked, with places and hints.

use std::path::Path;

use asyncthink_recipe::{
    Catalogue, ErrorKind, MemoryBudget, NamedTable, OrAuto, Recipe, RecipeErrors,
};
use asyncthink_tasks::Registry;
use serde_json::json;

const GOOD: &str = include_str!("good.toml");

fn catalogue() -> Catalogue {
    let gspo = json!({
        "description": "A sequence-level loss.",
        "type": "object",
        "properties": {
            "eps": { "description": "Clip range.", "type": "number", "minimum": 0.0, "default": 0.01 },
            "is_signed": { "description": "Signed.", "type": "boolean" },
        },
        "required": ["is_signed"],
        "additionalProperties": false,
    });
    Catalogue::closed(Registry::builtin())
        .with_loss("clip", Catalogue::no_options("The clipped ratio."))
        .with_loss("gspo", gspo)
        .with_teacher("solver", Catalogue::no_options("A solver."))
        .with_eval_method("asyncthink")
        .with_eval_method("parallel")
        .with_metrics_sink("tensorboard")
}

fn load(sets: &[&str]) -> Result<Recipe, RecipeErrors> {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    Recipe::parse_with(GOOD, Path::new("recipe.toml"), &sets, &catalogue())
}

#[test]
fn absent_names_are_the_defaults_and_leave_the_resolved_recipe_alone() {
    let recipe = load(&[]).unwrap_or_else(|errors| panic!("{errors}"));
    let grpo = recipe.grpo().expect("a section");
    assert_eq!(grpo.loss, NamedTable::new("clip"));
    assert_eq!(
        recipe.synth().expect("a section").teacher,
        NamedTable::new("solver")
    );
    assert_eq!(recipe.eval().expect("a section").methods, ["asyncthink"]);
    assert!(recipe.metrics.is_empty());
    let resolved = recipe.to_toml();
    for key in [
        "loss]",
        "loss.",
        "teacher",
        "methods",
        "metrics",
        "precision",
    ] {
        assert!(!resolved.contains(key), "{key} in {resolved}");
    }
}

#[test]
fn names_reach_the_sections_with_their_options() {
    let recipe = load(&[
        "grpo.loss.gspo.is_signed=true",
        "eval.methods=[\"parallel\", \"asyncthink\"]",
        "metrics=[\"tensorboard\"]",
        "precision={ reduce = \"f32\" }",
    ])
    .unwrap_or_else(|errors| panic!("{errors}"));
    let loss = &recipe.grpo().expect("a section").loss;
    assert_eq!(loss.name, "gspo");
    assert_eq!(loss.options["is_signed"].as_bool(), Some(true));
    assert_eq!(loss.options["eps"].as_float(), Some(0.01));
    assert_eq!(recipe.metrics, ["tensorboard"]);
    let resolved = recipe.to_toml();
    assert!(resolved.contains("[grpo.loss.gspo]"), "{resolved}");
    let again = Recipe::parse_with(&resolved, Path::new("r.toml"), &[], &catalogue())
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(*recipe, *again);
    assert_eq!(resolved, again.to_toml());
}

#[test]
fn wrong_names_and_options_have_a_place_and_a_hint() {
    let cases = [
        (
            "grpo.loss.gsop.eps=1",
            ErrorKind::UnknownKey,
            "grpo.loss.gsop",
            "did you mean `gspo`?",
        ),
        (
            "grpo.loss={}",
            ErrorKind::MissingKey,
            "grpo.loss",
            "`[grpo.loss.clip]`, `[grpo.loss.gspo]`",
        ),
        (
            "grpo.loss={ clip = {}, gspo = { is_signed = true } }",
            ErrorKind::Conflict,
            "grpo.loss.gspo",
            "keep one of",
        ),
        (
            "grpo.loss.gspo={ is_signed = true, eps = -1 }",
            ErrorKind::OutOfRange,
            "grpo.loss.gspo.eps",
            "the default",
        ),
        (
            "grpo.loss.gspo={}",
            ErrorKind::MissingKey,
            "grpo.loss.gspo.is_signed",
            "Signed",
        ),
        (
            "grpo.loss=\"clip\"",
            ErrorKind::WrongType,
            "grpo.loss",
            "Policy loss",
        ),
        (
            "synth.teacher.llm={}",
            ErrorKind::UnknownKey,
            "synth.teacher.llm",
            "knows `solver`",
        ),
        (
            "eval.methods=[\"paralel\"]",
            ErrorKind::OutOfRange,
            "eval.methods[0]",
            "did you mean `\"parallel\"`?",
        ),
        (
            "eval.methods=[]",
            ErrorKind::WrongType,
            "eval.methods",
            "the default",
        ),
        (
            "metrics=[\"wandb\"]",
            ErrorKind::OutOfRange,
            "metrics[0]",
            "choose one of `tensorboard`",
        ),
        (
            "precision.compute=fp8",
            ErrorKind::OutOfRange,
            "precision.compute",
            "set `compute = \"f32\"`, the default",
        ),
        (
            "precision.master=bf16",
            ErrorKind::OutOfRange,
            "precision.master",
            "set `master = \"f32\"`, the default",
        ),
        (
            "memory.budget=plenty",
            ErrorKind::OutOfRange,
            "memory.budget",
            "`auto`",
        ),
        (
            "grpo.micro_batch_tokens=all",
            ErrorKind::WrongType,
            "grpo.micro_batch_tokens",
            "auto",
        ),
        (
            "grpo.activation_checkpointing=some",
            ErrorKind::WrongType,
            "grpo.activation_checkpointing",
            "auto",
        ),
    ];
    for (set, kind, key, hint) in cases {
        let errors = load(&[set]).expect_err(set);
        let found = errors.errors().iter().find(|error| error.key() == key);
        let error = found.unwrap_or_else(|| panic!("{set}: {errors}"));
        assert_eq!(error.kind(), kind, "{set}: {errors}");
        assert!(error.hint().contains(hint), "{set}: {errors}");
    }
}

#[test]
fn an_open_catalogue_accepts_any_name() {
    let sets = [
        "grpo.loss.mine.eps=1".to_owned(),
        "synth.teacher.mine={}".to_owned(),
        "eval.methods=[\"mine\"]".to_owned(),
        "metrics=[\"mine\"]".to_owned(),
    ];
    let recipe = Recipe::parse(GOOD, Path::new("recipe.toml"), &sets)
        .unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(recipe.grpo().expect("a section").loss.name, "mine");
    assert_eq!(recipe.synth().expect("a section").teacher.name, "mine");
    let sets = ["grpo.loss.mine=1".to_owned()];
    Recipe::parse(GOOD, Path::new("recipe.toml"), &sets).expect_err("options are a table");
}

#[test]
fn the_schema_lists_the_names() {
    let schema: serde_json::Value =
        serde_json::from_str(&asyncthink_recipe::schema(&catalogue())).expect("JSON");
    let properties = &schema["properties"];
    let losses = &properties["grpo"]["properties"]["loss"]["properties"];
    assert_eq!(losses["gspo"]["properties"]["eps"]["default"], 0.01);
    let methods = &properties["eval"]["properties"]["methods"];
    assert_eq!(methods["items"]["enum"], json!(["asyncthink", "parallel"]));
    assert!(properties["task"]["properties"]["mcd"].is_object());
}

#[test]
fn keys_that_may_be_left_to_the_program_take_a_value_or_the_word() {
    for (value, expected) in [("\"auto\"", OrAuto::Auto), ("512", OrAuto::Given(512))] {
        let set = format!("grpo.micro_batch_tokens={value}");
        let recipe = load(&[&set]).unwrap_or_else(|errors| panic!("{errors}"));
        let grpo = recipe.grpo().expect("a section");
        assert_eq!(grpo.micro_batch_tokens, expected);
        assert_eq!(grpo.activation_checkpointing, OrAuto::Auto);
        let again = Recipe::parse_with(&recipe.to_toml(), Path::new("r.toml"), &[], &catalogue())
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(*recipe, *again);
    }
    let recipe = load(&["grpo.activation_checkpointing=true", "memory.budget=80GiB"])
        .unwrap_or_else(|errors| panic!("{errors}"));
    let grpo = recipe.grpo().expect("a section");
    assert_eq!(grpo.activation_checkpointing, OrAuto::Given(true));
    assert_eq!(recipe.memory.budget, Some(MemoryBudget::Bytes(80 << 30)));
}
