//! `config.json` as text. A saved model's differs from the one that was read in the type of the weights, and in whether the
//! head is tied where the file was wrong about it, and nowhere else, so that a comparison of the two files shows what changed.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// Names of the key that holds the type of the weights, the newer one first. A file has one of them, both, or none.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// The JSON object `text` with another type of weights; every other byte is as it was.
pub(crate) fn with_dtype(text: &str, dtype: &str) -> serde_json::Result<String> {
    let dtype = format!("\"{dtype}\"");
    Ok(match with_value(text, &DTYPE_KEYS, &dtype)? {
        Some(text) => text,
        None => with_entry(text, &format!("\"torch_dtype\": {dtype}")),
    })
}

/// The JSON object `text` of a model whose head is not its embedding, although the text says so; every other byte is as it was.
pub(crate) fn untied(text: &str) -> serde_json::Result<String> {
    let changed = with_value(text, &["tie_word_embeddings"], "false")?;
    Ok(changed.unwrap_or_else(|| text.to_owned()))
}

/// The JSON object `text` with another value under those of `keys` that it has, `None` if it has none.
fn with_value(text: &str, keys: &[&str], value: &str) -> serde_json::Result<Option<String>> {
    let entries: BTreeMap<String, &RawValue> = serde_json::from_str(text)?;
    let mut places: Vec<(usize, usize)> = keys
        .iter()
        .filter_map(|key| {
            // A raw value is a part of the text that it was read from.
            let value = entries.get(*key)?.get();
            let start = value.as_ptr().addr() - text.as_ptr().addr();
            Some((start, start + value.len()))
        })
        .collect();
    if places.is_empty() {
        return Ok(None);
    }
    // From the back, so that places before stay where they are.
    places.sort_unstable_by(|a, b| b.cmp(a));
    let mut text = text.to_owned();
    for (start, end) in places {
        text.replace_range(start..end, value);
    }
    Ok(Some(text))
}

/// The JSON object `text` with one entry more, at the end and indented as the first one is.
fn with_entry(text: &str, entry: &str) -> String {
    let (open, close) = (text.find('{'), text.rfind('}'));
    let (Some(open), Some(close)) = (open, close) else {
        return text.to_owned();
    };
    let head = text[..close].trim_end();
    let first = &text[open + 1..];
    let indent = &first[..first.len() - first.trim_start().len()];
    let separator = if head.len() == open + 1 {
        String::new()
    } else {
        format!(",{indent}")
    };
    format!("{head}{separator}{entry}{}", &text[head.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_type_of_the_weights_changes() {
        for (before, after) in [
            (
                "{\n  \"z\": [1,   2.50],\n  \"torch_dtype\": \"bfloat16\",\n  \"a\": \"torch_dtype\"\n}\n",
                "{\n  \"z\": [1,   2.50],\n  \"torch_dtype\": \"float32\",\n  \"a\": \"torch_dtype\"\n}\n",
            ),
            (
                r#"{"a":{"dtype":"x"},"dtype": null}"#,
                r#"{"a":{"dtype":"x"},"dtype": "float32"}"#,
            ),
            (
                r#"{"torch_dtype":"a","dtype":"longer"}"#,
                r#"{"torch_dtype":"float32","dtype":"float32"}"#,
            ),
            (
                "{\n    \"z\": {\"y\": {}}\n}",
                "{\n    \"z\": {\"y\": {}},\n    \"torch_dtype\": \"float32\"\n}",
            ),
            (r#"{"z":1}"#, r#"{"z":1,"torch_dtype": "float32"}"#),
            ("{ }", r#"{"torch_dtype": "float32" }"#),
        ] {
            assert_eq!(with_dtype(before, "float32").unwrap(), after);
        }
        assert!(with_dtype("[]", "float32").is_err());
        let text = "{\"tie_word_embeddings\": true, \"a\": {\"tie_word_embeddings\": true}}";
        let changed = "{\"tie_word_embeddings\": false, \"a\": {\"tie_word_embeddings\": true}}";
        assert_eq!(untied(text).unwrap(), changed);
    }
}
