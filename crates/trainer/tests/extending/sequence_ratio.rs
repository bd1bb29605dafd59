//! A sequence loss, after GSPO: one probability ratio per row, `s = exp(mean_t(logp_t - logp_old_t))`, `l_t = -A s`.

use std::sync::Arc;

use asyncthink_algorithms::loss::{PolicyLossSpec, differentiate};
use asyncthink_algorithms::{Scope, TokenBatch, TokenGradient, TokenLoss};
use asyncthink_recipe::Catalogue;
use tch::{Kind, TchError};

pub(super) const SPEC: PolicyLossSpec = PolicyLossSpec {
    schema: || Catalogue::no_options("One ratio per row."),
    build: |_| Ok(Arc::new(SequenceRatio)),
};

#[derive(Debug)]
pub(super) struct SequenceRatio;

impl TokenLoss for SequenceRatio {
    fn gradient(&self, tokens: &TokenBatch<'_>) -> Result<TokenGradient, TchError> {
        differentiate(tokens.logp, |logp| {
            let log_ratio = logp.f_sub(tokens.logp_old)?;
            // `[num_rows]`: sums and counts of each row's tokens.
            let zeros = log_ratio
                .f_detach()?
                .f_new_zeros([tokens.num_rows], (Kind::Float, logp.device()))?;
            let sums = zeros.f_index_add(0, tokens.rows, &log_ratio)?;
            let counts =
                zeros.f_index_add(0, tokens.rows, &log_ratio.f_detach()?.f_ones_like()?)?;
            let ratio = sums
                .f_div(&counts)?
                .f_exp()?
                .f_index_select(0, tokens.rows)?;
            ratio
                .f_mul(tokens.advantages)?
                .f_mul(tokens.weights)?
                .f_sum(Kind::Float)?
                .f_neg()
        })
    }

    fn scope(&self) -> Scope {
        Scope::Sequence
    }
}
