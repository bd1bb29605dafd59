//! Special tokens by their names in `tokenizer_config.json` and `special_tokens_map.json`, as `transformers` reads them.

use std::collections::BTreeMap;

use serde_json::Value;

/// The file of settings, which names the special tokens and may hold a chat template.
pub(crate) const CONFIG_FILE: &str = "tokenizer_config.json";

/// The older file that names special tokens.
pub(crate) const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// Names that `transformers` knows, also as variables of a chat template.
const NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Special tokens that classes of `transformers` name by themselves.
const CLASS_DEFAULTS: [(&str, &[(&str, &str)]); 2] = [
    (
        "LlamaTokenizer",
        &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
        ],
    ),
    (
        "Qwen2Tokenizer",
        &[
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
            ("unk_token", "<|endoftext|>"),
        ],
    ),
];

/// Text of each named special token. `special_tokens_map.json` comes first, but is not looked at where the settings hold
/// `added_tokens_decoder`; the class of the tokenizer names those that neither file mentions.
pub(crate) fn special_tokens(config: &Value, map: &Value) -> BTreeMap<String, String> {
    let is_map_read = config.get("added_tokens_decoder").is_none();
    let class = class_name(config);
    let defaults = CLASS_DEFAULTS
        .iter()
        .find(|(name, _)| class == Some(name))
        .map_or(&[][..], |(_, tokens)| tokens);
    let text = |name: &str| {
        let in_map = map.get(name).filter(|_| is_map_read);
        if let Some(value) = in_map.or_else(|| config.get(name)) {
            return text_of(value);
        }
        let (_, text) = defaults.iter().find(|(known, _)| *known == name)?;
        Some((*text).to_owned())
    };
    NAMES
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), text(name)?)))
        .collect()
}

/// Class that the settings name, without the ending `Fast`.
pub(crate) fn class_name(config: &Value) -> Option<&str> {
    let name = config["tokenizer_class"].as_str()?;
    Some(name.strip_suffix("Fast").unwrap_or(name))
}

/// Text of a special token: the value itself, or the `content` of an object.
fn text_of(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn eos(config: &Value, map: &Value) -> Option<String> {
        special_tokens(config, map).remove("eos_token")
    }

    #[test]
    fn the_map_comes_before_the_settings_unless_these_list_the_added_tokens() {
        let map = json!({"eos_token": {"content": "<map>"}});
        assert_eq!(eos(&json!({}), &map).as_deref(), Some("<map>"));
        let config = json!({"eos_token": "<config>"});
        assert_eq!(eos(&config, &map).as_deref(), Some("<map>"));
        assert_eq!(eos(&config, &Value::Null).as_deref(), Some("<config>"));
        let config = json!({"eos_token": "<config>", "added_tokens_decoder": {}});
        assert_eq!(eos(&config, &map).as_deref(), Some("<config>"));
    }

    #[test]
    fn a_class_names_what_the_files_do_not() {
        let config = json!({"tokenizer_class": "LlamaTokenizerFast"});
        assert_eq!(eos(&config, &Value::Null).as_deref(), Some("</s>"));
        let config = json!({"tokenizer_class": "LlamaTokenizer", "eos_token": null});
        assert_eq!(eos(&config, &Value::Null), None);
        assert_eq!(
            eos(&json!({"tokenizer_class": "Other"}), &Value::Null),
            None
        );
    }
}
