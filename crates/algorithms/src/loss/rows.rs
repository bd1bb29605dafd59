//! Sums over the tokens of each row.

use tch::{TchError, Tensor};

use super::TokenBatch;

/// The sum of `values` over each token's row, at every token.
///
/// # Shapes
/// `values` `[trained]`; returns `[trained]`.
pub(super) fn row_sums(values: &Tensor, tokens: &TokenBatch<'_>) -> Result<Tensor, TchError> {
    let zeros = Tensor::f_zeros([tokens.num_rows], (values.kind(), values.device()))?;
    zeros
        .f_index_add(0, tokens.rows, values)?
        .f_index_select(0, tokens.rows)
}

/// The mean of `values` over each token's row, at every token.
///
/// # Shapes
/// As [`row_sums`].
pub(super) fn row_means(values: &Tensor, tokens: &TokenBatch<'_>) -> Result<Tensor, TchError> {
    let counts = row_sums(&tokens.logp.f_ones_like()?, tokens)?;
    row_sums(values, tokens)?.f_div(&counts)
}
