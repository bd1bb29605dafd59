//! The JSON Schema of a recipe: what the editor completes from and what the
//! checker reads.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::recipe::RawRecipe;

/// The schema as a tree, without references.
pub(crate) fn schema_value() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings
        .into_generator()
        .into_root_schema_for::<RawRecipe>();
    let mut value = schema.to_value();
    tidy(&mut value);
    if let Value::Object(object) = &mut value {
        object.insert("title".to_owned(), "asyncthink-train recipe".into());
    }
    value
}

/// The JSON Schema of a recipe, pretty-printed.
pub fn schema() -> String {
    format!("{:#}", schema_value())
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
