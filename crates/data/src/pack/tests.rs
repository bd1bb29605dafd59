use proptest::prelude::*;

use super::*;
use crate::tokenizer::TokenId;

const COSTS: RowCosts = RowCosts {
    token: 100.0,
    pair: 1.0,
    trained: 20.0,
};

/// A row of a tree: `head` tokens that all rows have, `prompt` tokens of its group, and the rest its own, which is trained.
fn row(head: usize, group: u32, prompt: usize, index: u32, own: usize) -> TrainingRow {
    let own = (0..own).map(|place| 1000 + index * 100 + u32::try_from(place).unwrap());
    let ids: Vec<TokenId> = std::iter::repeat_n(1, head)
        .chain(std::iter::repeat_n(2 + group, prompt))
        .chain(own)
        .map(TokenId)
        .collect();
    let mask = (0..ids.len()).map(|place| place >= head + prompt).collect();
    TrainingRow::sft_masked(ids, mask).unwrap()
}

struct Packed {
    rows: Vec<TrainingRow>,
    sizes: Vec<RowSize>,
    prefixes: Prefixes,
}

impl Packed {
    fn of(rows: Vec<TrainingRow>, shares: bool) -> Self {
        let sizes: Vec<RowSize> = rows.iter().map(RowSize::of).collect();
        let prefixes = if shares {
            Prefixes::of(&rows.iter().collect::<Vec<_>>())
        } else {
            Prefixes::none(rows.len())
        };
        Self {
            rows,
            sizes,
            prefixes,
        }
    }

    fn packer(&self) -> Packer<'_> {
        Packer {
            sizes: &self.sizes,
            prefixes: &self.prefixes,
            costs: COSTS,
        }
    }

    fn num_computed(&self, bin: &PackedRows) -> usize {
        let lens = bin.rows.iter().map(|&row| self.sizes[row].len);
        lens.zip(&bin.shared)
            .map(|(len, shared)| len - shared)
            .sum()
    }
}

fn rows() -> impl Strategy<Value = Vec<TrainingRow>> {
    let shape = (0..3_u32, 1..40_usize);
    (
        0..30_usize,
        1..60_usize,
        prop::collection::vec(shape, 0..60),
    )
        .prop_map(|(head, prompt, rows)| {
            let rows = (0..).zip(rows);
            rows.map(|(index, (group, own))| row(head, group, prompt, index, own))
                .collect()
        })
}

#[test]
fn equal_rows_fill_equal_batches() {
    assert_eq!(pack(&[4; 6], 8), vec![vec![0, 3], vec![1, 4], vec![2, 5]]);
    assert_eq!(pack(&[100, 1, 1], 10), vec![vec![0], vec![1, 2]]);
    assert!(pack(&[], 10).is_empty());
}

#[test]
fn groups_stay_together() {
    // Groups lie interleaved; a micro-batch has room for two of them.
    let rows = (0..32)
        .map(|index| row(0, index % 4, 100, index, 20))
        .collect();
    let packed = Packed::of(rows, true);
    for num_workers in [1, 2] {
        let bins = packed.packer().pack(600, num_workers);
        assert_eq!(bins.len(), 2);
        for bin in bins {
            // The last token of a prompt predicts the first trained one and is each row's own.
            assert_eq!(packed.num_computed(&bin), 2 * (99 + 8 * 21));
        }
    }
    // Rows without anything in common are dealt out one by one.
    let apart = Packed::of(packed.rows.clone(), false);
    assert_eq!(apart.packer().pack(600, 1).len(), 7);
}

#[test]
fn a_group_is_cut_where_workers_would_wait_for_one() {
    let rows = (0..8).map(|index| row(0, 0, 40, index, 30)).collect();
    let packed = Packed::of(rows, true);
    let bins = packed.packer().pack(10_000, 2);
    let lens: Vec<usize> = bins.iter().map(|bin| bin.rows.len()).collect();
    assert_eq!(lens, [4, 4]);
    assert_eq!((bins[0].worker, bins[1].worker), (0, 1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_row_is_packed_once_within_the_budget(
        rows in rows(), shares in any::<bool>(), budget in 1_usize..300, num_workers in 1_usize..4,
    ) {
        let packed = Packed::of(rows, shares);
        let bins = packed.packer().pack(budget, num_workers);
        let mut all: Vec<usize> = bins.iter().flat_map(|bin| bin.rows.clone()).collect();
        all.sort_unstable();
        prop_assert_eq!(all, (0..packed.rows.len()).collect::<Vec<_>>());
        for bin in &bins {
            prop_assert!(bin.worker < num_workers);
            prop_assert!(bin.rows.len() == 1 || packed.num_computed(bin) <= budget);
            prop_assert_eq!(bin.shared[0], 0);
            for (pair, &shared) in bin.rows.windows(2).zip(&bin.shared[1..]) {
                let [before, row] = [pair[0], pair[1]].map(|row| packed.rows[row].shareable());
                prop_assert!(shares || shared == 0);
                prop_assert!(shared == 0 || shared >= MIN_SHARED_TOKENS);
                prop_assert_eq!(&before[..shared], &row[..shared]);
            }
        }
        prop_assert_eq!(bins, packed.packer().pack(budget, num_workers));
    }

    #[test]
    fn no_worker_has_more_than_its_share_and_one_row(
        rows in rows(), shares in any::<bool>(), num_workers in 1_usize..6,
    ) {
        let packed = Packed::of(rows, shares);
        let bins = packed.packer().pack(usize::MAX, num_workers);
        prop_assert!(bins.len() <= num_workers);
        let apart: Vec<f64> = packed.sizes.iter().map(|&size| COSTS.of(size, 0)).collect();
        let share = apart.iter().sum::<f64>() / num_workers as f64;
        let costliest = apart.iter().copied().fold(0.0, f64::max);
        for cost in costs_of_workers(&bins, num_workers) {
            prop_assert!(cost <= (share + costliest) * (1.0 + 1e-9));
        }
    }
}
