//! Micro-batches: which rows are computed together.

/// Groups rows into micro-batches of at most `budget_tokens` tokens each.
///
/// Rows are packed end to end, so nothing is padded; what is balanced is the cost: attention grows with the square of a
/// length, the rest with the length. As few micro-batches are used as the greedy search finds room in. A row that is longer
/// than the budget gets a micro-batch of its own. The result depends on the arguments only; indices within a micro-batch ascend.
pub fn pack(lengths: &[usize], budget_tokens: usize) -> Vec<Vec<usize>> {
    if lengths.is_empty() {
        return Vec::new();
    }
    let budget = budget_tokens.max(1);
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| (std::cmp::Reverse(lengths[row]), row));
    let total: usize = lengths.iter().map(|&length| length.min(budget)).sum();
    let fallback = first_fit(lengths, &order, budget);
    let mut num_bins = total.div_ceil(budget).max(1);
    let mut packed = loop {
        if num_bins >= fallback.len() {
            break balanced(lengths, &order, budget, fallback.len()).unwrap_or(fallback);
        }
        if let Some(packed) = balanced(lengths, &order, budget, num_bins) {
            break packed;
        }
        num_bins += 1 + num_bins / 64;
    };
    packed.retain(|bin| !bin.is_empty());
    for bin in &mut packed {
        bin.sort_unstable();
    }
    packed.sort_unstable_by_key(|bin| bin[0]);
    packed
}

/// The share of computed positions that are padding when each group of rows is padded to its longest; 0 for packed rows.
///
/// For code paths that must pad, such as batched prefill.
pub fn padding_share(groups: &[Vec<usize>], lengths: &[usize]) -> f64 {
    let used: usize = groups.iter().flatten().map(|&row| lengths[row]).sum();
    let computed: usize = groups
        .iter()
        .map(|group| group.len() * group.iter().map(|&row| lengths[row]).max().unwrap_or(0))
        .sum();
    if computed == 0 {
        0.0
    } else {
        1.0 - used as f64 / computed as f64
    }
}

/// First-fit decreasing: always succeeds.
fn first_fit(lengths: &[usize], order: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut used: Vec<usize> = Vec::new();
    for &row in order {
        let length = lengths[row].min(budget);
        if let Some(bin) = used.iter().position(|&tokens| tokens + length <= budget) {
            bins[bin].push(row);
            used[bin] += length;
        } else {
            bins.push(vec![row]);
            used.push(length);
        }
    }
    bins
}

/// Longest row first into the cheapest micro-batch that has room; `None` when a row fits nowhere.
fn balanced(
    lengths: &[usize],
    order: &[usize],
    budget: usize,
    num_bins: usize,
) -> Option<Vec<Vec<usize>>> {
    let mut bins = vec![Vec::new(); num_bins];
    let mut used = vec![0_usize; num_bins];
    let mut squares = vec![0_u128; num_bins];
    for &row in order {
        let length = lengths[row].min(budget);
        let bin = (0..num_bins)
            .filter(|&bin| used[bin] + length <= budget)
            .min_by_key(|&bin| (squares[bin], used[bin], bin))?;
        bins[bin].push(row);
        used[bin] += length;
        squares[bin] += (lengths[row] as u128).pow(2);
    }
    Some(bins)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn equal_rows_fill_equal_batches() {
        assert_eq!(pack(&[4; 6], 8), vec![vec![0, 3], vec![1, 4], vec![2, 5]]);
        assert_eq!(pack(&[100, 1, 1], 10), vec![vec![0], vec![1, 2]]);
        assert!(pack(&[], 10).is_empty());
    }

    #[test]
    fn padding_is_measured() {
        assert!((padding_share(&[vec![0, 1]], &[4, 2]) - 0.25).abs() < 1e-12);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_row_is_packed_once_within_the_budget(lengths in prop::collection::vec(1_usize..60, 0..80), budget in 1_usize..100) {
            let bins = pack(&lengths, budget);
            let mut rows: Vec<usize> = bins.iter().flatten().copied().collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            for bin in &bins {
                let tokens: usize = bin.iter().map(|&row| lengths[row]).sum();
                prop_assert!(bin.len() == 1 || tokens <= budget);
            }
            prop_assert_eq!(bins, pack(&lengths, budget));
        }
    }
}
