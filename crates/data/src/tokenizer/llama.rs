//! The rules that `transformers` 5 makes for its class `LlamaTokenizer`, in place of those in `tokenizer.json`.

use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};

use crate::special_tokens::class_name;

/// Replaces normalizer and pre-tokenizer where `transformers` does: for a folder whose settings name the class, unless its
/// vocabulary is in bytes or `model_type` belongs to another class.
pub(super) fn apply_class(
    inner: &mut tokenizers::Tokenizer,
    json: &Value,
    config: &Value,
    model_type: Option<&str>,
) {
    let is_llama = class_name(config) == Some("LlamaTokenizer")
        && matches!(model_type, None | Some("llama"))
        && matches!(inner.get_model(), ModelWrapper::BPE(_));
    let has_bytes = |part: &str| json[part].to_string().contains("\"ByteLevel\"");
    if !is_llama || has_bytes("pre_tokenizer") || has_bytes("decoder") {
        return;
    }
    let scheme = match (&config["add_prefix_space"], &config["legacy"]) {
        (Value::Bool(false), _) => PrependScheme::Never,
        (_, Value::Bool(true)) => PrependScheme::Always,
        _ => PrependScheme::First,
    };
    inner.with_normalizer(None::<tokenizers::normalizers::NormalizerWrapper>);
    inner.with_pre_tokenizer(Some(Metaspace::new('\u{2581}', scheme, false)));
}
