//! Soft overlong punishment.

/// Share of the penalty of an agent that decoded `num_tokens` of at most `max_tokens`, in `[0, 1]`: 0 up to the last
/// `buffer_tokens`, and rising in a straight line to 1 at the limit.
///
/// # Paper
/// DAPO, arXiv:2503.14476, Eq. 13.
pub fn overlong_share(num_tokens: usize, max_tokens: usize, buffer_tokens: usize) -> f64 {
    let begin = max_tokens.saturating_sub(buffer_tokens);
    let beyond = num_tokens.saturating_sub(begin);
    (beyond as f64 / buffer_tokens.max(1) as f64).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_rises_over_the_buffer() {
        let shares = [0, 80, 90, 95, 100, 120].map(|tokens| overlong_share(tokens, 100, 20));
        let expected: [f64; 6] = [0.0, 0.0, 0.5, 0.75, 1.0, 1.0];
        assert_eq!(shares.map(f64::to_bits), expected.map(f64::to_bits));
    }
}
