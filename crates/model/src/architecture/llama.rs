//! Llama 2 and 3, and models of the same shape.

use super::{Architecture, Biases, Sizes, Variant};
use crate::error::Result;
use crate::fields::Fields;

/// The family `llama`.
#[derive(Debug)]
pub(super) struct Llama;

impl Architecture for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn read(&self, fields: &Fields<'_>, sizes: Sizes) -> Result<Variant> {
        let num_key_value_heads = fields
            .size("num_key_value_heads")?
            .unwrap_or(sizes.num_attention_heads);
        let head_dim = fields
            .size("head_dim")?
            .unwrap_or(sizes.hidden_size / sizes.num_attention_heads);
        let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
        Ok(Variant {
            num_key_value_heads,
            head_dim,
            biases: Biases {
                query_key_value: attention_bias,
                attention_output: attention_bias,
                feed_forward: fields.flag("mlp_bias")?.unwrap_or(false),
            },
            has_query_key_norm: false,
        })
    }
}
