//! Parameters that weight decay applies to.

/// Whether weight decay applies to a parameter.
pub fn is_decayed(name: &str, num_dims: usize) -> bool {
    num_dims >= 2 && !name.ends_with("embed_tokens.weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embeddings_and_norms_do_not_decay() {
        assert!(is_decayed("model.layers.0.self_attn.q_proj.weight", 2));
        assert!(is_decayed("lm_head.weight", 2));
        assert!(!is_decayed("model.embed_tokens.weight", 2));
        assert!(!is_decayed("model.norm.weight", 1));
    }
}
