//! An output head in the weights of a model whose configuration says that embedding and head are one matrix.

use crate::error::Result;
use crate::tensor_file::TensorFile;

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// Whether the files hold an embedding and a head of other values. `transformers` then keeps the two apart, whatever the
/// configuration says.
pub(crate) fn head_differs(files: &[TensorFile]) -> Result<bool> {
    let find = |name: &str| files.iter().find(|file| file.has(name));
    match (find(EMBEDDING), find(HEAD)) {
        (Some(embedding), Some(head)) => Ok(!embedding.same_values(EMBEDDING, head, HEAD)?),
        _ => Ok(false),
    }
}
