//! `docs/recipes.md` says what the schema says. To write its key reference
//! anew: `UPDATE_DOCS=1 cargo test -p asyncthink-recipe --test reference`.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

/// Everything below this line of the file is generated.
const MARK: &str = "<!-- Below: made from the schema. Do not edit. -->\n";

/// The limit that most counts share.
const MAX_COUNT: f64 = 2_147_483_647.0;

/// Sections in the order of a recipe; `*` is every section at this place.
const SECTIONS: [&str; 23] = [
    "",
    "task.*",
    "protocol",
    "prompts",
    "prompts.chat",
    "model",
    "model.init",
    "engine",
    "precision",
    "memory",
    "synth",
    "synth.teacher",
    "sft",
    "sft.optimizer",
    "grpo",
    "grpo.loss",
    "grpo.sampler_correction",
    "grpo.optimizer",
    "grpo.reward",
    "eval",
    "bench.rollout",
    "bench.train",
    "bench.step",
];

/// [`SECTIONS`] with the names of this schema.
fn sections(schema: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for path in SECTIONS {
        match path.strip_suffix(".*") {
            Some(parent) => {
                let names = section(schema, parent)["properties"].as_object();
                let names = names.into_iter().flatten();
                all.extend(names.map(|(name, _)| format!("{parent}.{name}")));
            }
            None => all.push(path.to_owned()),
        }
    }
    all
}

fn section<'a>(schema: &'a Value, path: &str) -> &'a Value {
    path.split('.')
        .filter(|part| !part.is_empty())
        .fold(schema, |schema, part| &schema["properties"][part])
}

/// The type in a reader's words, with the limits.
fn kind(schema: &Value) -> String {
    if let Some(variants) = schema["oneOf"].as_array().or(schema["enum"].as_array()) {
        let names: Vec<_> = variants
            .iter()
            .filter_map(|variant| variant["const"].as_str().or(variant.as_str()))
            .map(|name| format!("`\"{name}\"`"))
            .collect();
        return names.join(", ");
    }
    let word = schema["x-or"].as_str();
    let or_word = word.map_or_else(String::new, |word| format!(" or `\"{word}\"`"));
    let first = schema["type"].as_array().and_then(|types| types.first());
    let name = match first.unwrap_or(&schema["type"]).as_str() {
        Some("array") => {
            let items = kind(&schema["items"]);
            let (name, limits) = items.split_once(',').unwrap_or((&items, ""));
            let comma = if limits.is_empty() { "" } else { "," };
            let count = schema["minItems"].as_u64();
            let count = count.filter(|_| schema["maxItems"] == schema["minItems"]);
            let count = count.map_or_else(String::new, |count| format!("{count} "));
            return format!("{count}{name}s{comma}{limits}");
        }
        Some("number") => "number",
        Some(name) => name,
        None => "value",
    };
    let limits = [
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    ]
    .iter()
    .filter_map(|(key, sign)| {
        let limit = schema[*key].as_f64()?;
        // Every unsigned integer is at least 0, and the limit of most counts is said once.
        let is_plain = name == "integer" && (limit == 0.0 || limit == MAX_COUNT);
        (!is_plain).then(|| format!("{sign} {limit}"))
    })
    .collect::<Vec<_>>();
    if limits.is_empty() {
        format!("{name}{or_word}")
    } else {
        format!("{name}{or_word}, {}", limits.join(", "))
    }
}

fn reference(schema: &Value) -> String {
    let mut text = format!("\nCounts without an upper limit here go up to {MAX_COUNT}.\n");
    for path in sections(schema) {
        let section = section(schema, &path);
        let title = if path.is_empty() {
            "Top level".to_owned()
        } else {
            format!("`[{path}]`")
        };
        let _ = writeln!(text, "\n## {title}\n");
        if let (false, Some(description)) = (path.is_empty(), section["description"].as_str()) {
            let _ = writeln!(text, "{description}");
        }
        let Some(properties) = section["properties"].as_object() else {
            continue;
        };
        let blank = if path.is_empty() { "" } else { "\n" };
        let _ = writeln!(
            text,
            "{blank}| Key | Type | Default | Meaning |\n|---|---|---|---|"
        );
        let required: Vec<_> = section["required"]
            .as_array()
            .into_iter()
            .flatten()
            .collect();
        for (key, property) in properties {
            // Sections have tables of their own.
            if property["type"] == "object" {
                continue;
            }
            let default = match &property["default"] {
                Value::Null if required.contains(&&Value::from(key.as_str())) => {
                    "required".to_owned()
                }
                Value::Null => "absent".to_owned(),
                default => format!("`{default}`"),
            };
            let meaning = property["description"]
                .as_str()
                .expect("every key is described");
            let _ = writeln!(
                text,
                "| `{key}` | {} | {default} | {meaning} |",
                kind(property)
            );
        }
    }
    text
}

#[test]
fn the_key_reference_is_the_schema() {
    let schema: Value = serde_json::from_str(&asyncthink_recipe::schema(
        &asyncthink_recipe::Catalogue::builtin(),
    ))
    .expect("JSON");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes.md");
    let text = std::fs::read_to_string(&file).expect("docs/recipes.md");
    let (guide, found) = text.split_once(MARK).expect("the line that ends the guide");
    let expected = reference(&schema);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&file, format!("{guide}{MARK}{expected}")).expect("the file can be written");
        return;
    }
    assert_eq!(
        found, expected,
        "the reference is out of date: see the top of this test"
    );
}
