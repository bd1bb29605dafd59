//! Qwen2 and Qwen2.5: biases on queries, keys and values.

use super::{Architecture, Biases, Sizes, Variant};
use crate::error::Result;
use crate::fields::Fields;

/// The family `qwen2`.
#[derive(Debug)]
pub(super) struct Qwen2;

impl Architecture for Qwen2 {
    fn model_type(&self) -> &'static str {
        "qwen2"
    }

    fn read(&self, fields: &Fields<'_>, sizes: Sizes) -> Result<Variant> {
        let num_key_value_heads = fields.required_size("num_key_value_heads")?;
        let head_dim = fields
            .size("head_dim")?
            .unwrap_or(sizes.hidden_size / sizes.num_attention_heads);
        // The family has no key for its biases, but a value of another type is still refused.
        fields.flag("attention_bias")?;
        Ok(Variant {
            num_key_value_heads,
            head_dim,
            biases: Biases {
                query_key_value: true,
                ..Biases::default()
            },
            has_query_key_norm: false,
        })
    }
}
