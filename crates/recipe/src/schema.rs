//! The JSON Schema of a recipe: editors complete from it, and the checker reads it.

use asyncthink_tasks::Registry;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::catalogue::{Catalogue, Names};
use crate::raw::RawRecipe;

/// The schema as a tree, without references.
pub(crate) fn schema_value(catalogue: &Catalogue) -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<RawRecipe>();
    let mut value = schema.to_value();
    complete(&mut value, catalogue);
    tidy(&mut value);
    if let Value::Object(object) = &mut value {
        object.insert("title".to_owned(), "asyncthink-train recipe".into());
    }
    value
}

/// The JSON Schema of a recipe with the names of a catalogue, pretty-printed.
pub fn schema(catalogue: &Catalogue) -> String {
    let mut schema = schema_value(catalogue);
    allow_words(&mut schema);
    format!("{schema:#}")
}

/// Tells editors of the word that some keys take besides a number or a truth value.
fn allow_words(schema: &mut Value) {
    if let Value::Object(object) = schema {
        if object.contains_key("x-or")
            && let Some(kind) = object.get("type").cloned()
        {
            object.insert("type".to_owned(), vec![kind, "string".into()].into());
        }
        object.values_mut().for_each(allow_words);
    }
}

/// Tables whose one table inside names an implementation with options.
const NAMED_TABLES: [[&str; 2]; 2] = [["grpo", "loss"], ["synth", "teacher"]];

/// Writes out the defaults of the options of implementations that the recipe names.
pub(crate) fn fill_defaults(recipe: &mut Value, schema: &Value) {
    for [section, key] in NAMED_TABLES {
        let Some(Value::Object(tables)) = recipe
            .get_mut(section)
            .and_then(|section| section.get_mut(key))
        else {
            continue;
        };
        for (name, options) in tables {
            let named = &schema["properties"][section]["properties"][key]["properties"][name];
            let properties = named["properties"].as_object();
            let Value::Object(options) = options else {
                continue;
            };
            for (option, property) in properties.into_iter().flatten() {
                if let Some(default) = property.get("default") {
                    options
                        .entry(option.clone())
                        .or_insert_with(|| default.clone());
                }
            }
        }
    }
}

/// Writes the names of the catalogue into the schema.
fn complete(schema: &mut Value, catalogue: &Catalogue) {
    let tasks = catalogue.tasks.iter();
    let tasks = tasks.map(|task| (task.name().to_owned(), task.schema()));
    restrict_tables(at_mut(schema, "task"), &Names::Only(tasks.collect()));
    restrict_tables(at_mut(schema, "grpo.loss"), &catalogue.losses);
    restrict_tables(at_mut(schema, "synth.teacher"), &catalogue.teachers);
    restrict_items(at_mut(schema, "eval.methods"), &catalogue.eval_methods);
    restrict_items(at_mut(schema, "metrics"), &catalogue.metrics_sinks);
    let query = &mut at_mut(schema, "prompts.query")["description"];
    if let Some(text) = query.as_str() {
        *query = format!("{text}{}", placeholders(&catalogue.tasks)).into();
    }
}

fn at_mut<'a>(schema: &'a mut Value, key: &str) -> &'a mut Value {
    let mut schema = schema;
    for part in key.split('.') {
        // A section that may be absent is one of two choices until it is tidied.
        if schema.get("anyOf").is_some() {
            schema = &mut schema["anyOf"][0];
        }
        schema = &mut schema["properties"][part];
    }
    schema
}

fn restrict_tables(schema: &mut Value, names: &Names) {
    if let (Names::Only(names), Value::Object(schema)) = (names, schema) {
        let properties: Map<String, Value> = names.iter().cloned().collect();
        schema.insert("properties".to_owned(), properties.into());
        schema.insert("additionalProperties".to_owned(), false.into());
    }
}

fn restrict_items(schema: &mut Value, names: &Names) {
    if let Names::Only(names) = names {
        let names: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
        schema["items"]["enum"] = names.into();
    }
}

/// Placeholders of each task, as sentences.
fn placeholders(tasks: &Registry) -> String {
    let mut text = String::new();
    for task in tasks.iter() {
        let found = task.placeholders();
        let parts = [("must", found.required), ("may", found.optional)];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(verb, names)| format!("{verb} hold {}", enumeration(names)))
            .collect();
        if !parts.is_empty() {
            text = format!("{text} For {}: {}.", task.name(), parts.join("; "));
        }
    }
    text
}

/// Names in braces as `{a}`, `{b}` and `{c}`.
fn enumeration(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{{{name}}}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Takes out what TOML cannot say: null, and the formats of Rust integers.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            drop_null(object);
            object.remove("format");
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            for (_, child) in object.iter_mut() {
                tidy(child);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn drop_null(object: &mut Map<String, Value>) {
    if object.get("default") == Some(&Value::Null) {
        object.remove("default");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".to_owned(), only);
        }
    }
    let Some(Value::Array(mut choices)) = object.remove("anyOf") else {
        return;
    };
    choices.retain(|choice| choice.get("type") != Some(&Value::from("null")));
    match (choices.pop(), choices.is_empty()) {
        (Some(Value::Object(only)), true) => {
            for (key, inner) in only {
                object.entry(key).or_insert(inner);
            }
        }
        (Some(last), _) => {
            choices.push(last);
            object.insert("anyOf".to_owned(), choices.into());
        }
        (None, _) => {}
    }
}
