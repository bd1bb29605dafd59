use tch::{Device, Kind, Tensor};

use super::*;
use crate::step_batch::StepBatch;

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

/// Inputs of one step; the cache holds NaN where nothing was written.
struct Step {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: DecodeRows,
    batch: StepBatch,
}

impl Step {
    /// `sequences`: first position and number of rows. Blocks lie scattered over the cache.
    fn random(
        (heads, kv_heads, head_dim): (i64, i64, i64),
        block_size: i64,
        sequences: &[(i64, i64)],
    ) -> Self {
        tch::manual_seed(heads * 1000 + head_dim);
        let tables: Vec<i64> = sequences
            .iter()
            .map(|(first, num)| (first + num + block_size - 1) / block_size)
            .collect();
        let num_blocks = tables.iter().sum::<i64>() + 2;
        let shape = [num_blocks, block_size, kv_heads, head_dim];
        let cache = || Tensor::full(shape, f64::NAN, FLOAT);
        let (keys, values) = (cache(), cache());
        let mut batch = StepBatch::default();
        // Blocks are handed out from the end.
        let mut block = num_blocks;
        for (&(first, num), &table) in sequences.iter().zip(&tables) {
            let blocks: Vec<i32> = (0..table)
                .map(|index| i32::try_from(block - 1 - index).unwrap())
                .collect();
            block -= table;
            for position in 0..first {
                let page = i64::from(blocks[usize::try_from(position / block_size).unwrap()]);
                for cache in [&keys, &values] {
                    let mut place = cache.get(page).get(position % block_size);
                    place.copy_(&(Tensor::randn([kv_heads, head_dim], FLOAT) * 2.0));
                }
            }
            batch.push_sequence(0..num, usize::try_from(first).unwrap(), blocks);
        }
        let num_rows: i64 = sequences.iter().map(|(_, num)| num).sum();
        let size = usize::try_from(block_size).unwrap();
        batch
            .check(usize::try_from(num_blocks).unwrap(), size)
            .unwrap();
        Step {
            query: Tensor::randn([num_rows, heads, head_dim], FLOAT) * 2.0,
            key: Tensor::randn([num_rows, kv_heads, head_dim], FLOAT),
            value: Tensor::randn([num_rows, kv_heads, head_dim], FLOAT),
            keys,
            values,
            rows: DecodeRows::new(&batch, size, Device::Cpu).unwrap(),
            batch,
        }
    }

    fn cache(&self) -> LayerCache<'_> {
        LayerCache {
            keys: &self.keys,
            values: &self.values,
        }
    }

    fn run(&self) -> Tensor {
        paged_attention(
            &self.query,
            &self.key,
            &self.value,
            self.cache(),
            &self.rows,
        )
        .unwrap()
    }

    /// The formula in f64, one row and head at a time, from the pages that the block tables name.
    fn expected(&self) -> Tensor {
        let (block_size, heads) = (self.keys.size()[1], self.query.size()[1]);
        let group = heads / self.keys.size()[2];
        let outputs: Vec<Tensor> = self
            .batch
            .spans()
            .zip(self.batch.block_tables())
            .flat_map(|(span, table)| (0..span.num_rows).map(move |row| (span, table, row)))
            .map(|(span, table, row)| {
                let past = |cache: &Tensor, head: i64| {
                    let rows: Vec<Tensor> = (0..=span.first_position + row)
                        .map(|position| {
                            let index = usize::try_from(position / block_size).unwrap();
                            let page = cache.get(i64::from(table[index]));
                            page.get(position % block_size).get(head / group)
                        })
                        .collect();
                    Tensor::stack(&rows, 0).to_kind(Kind::Double)
                };
                let heads: Vec<Tensor> = (0..heads)
                    .map(|head| {
                        let query = self.query.get(span.first_row + row).get(head);
                        let query = query.to_kind(Kind::Double);
                        let scale = (query.size()[0] as f64).sqrt();
                        let weights = (past(&self.keys, head).mv(&query) / scale).softmax(0, None);
                        past(&self.values, head).transpose(0, 1).mv(&weights)
                    })
                    .collect();
                Tensor::stack(&heads, 0)
            })
            .collect();
        Tensor::stack(&outputs, 0)
    }
}

fn max_difference(a: &Tensor, b: &Tensor) -> f64 {
    let difference = a.to_kind(Kind::Double) - b.to_kind(Kind::Double);
    difference.abs().max().double_value(&[])
}

#[test]
fn pages_give_the_formula_in_f64() {
    let sequences = [(0, 1), (40, 1), (7, 5), (33, 1), (0, 19), (16, 1)];
    for sizes in [(4, 2, 16), (4, 4, 8), (3, 1, 20), (6, 2, 7)] {
        for block_size in [1, 4, 16, 64] {
            let step = Step::random(sizes, block_size, &sequences);
            let output = step.run();
            let difference = max_difference(&output, &step.expected());
            assert!(difference < 5e-6, "{sizes:?} {block_size}: {difference}");
        }
    }
}

#[test]
fn a_sequence_reads_blocks_that_another_fills_in_the_same_step() {
    let mut step = Step::random((4, 2, 16), 4, &[(0, 6), (6, 1)]);
    // The second sequence goes on after the first one's six tokens, whose last block it has copied.
    step.batch.blocks[2] = step.batch.blocks[0];
    step.rows = DecodeRows::new(&step.batch, 4, Device::Cpu).unwrap();
    let output = step.run();
    assert!(max_difference(&output, &step.expected()) < 5e-6);
}

#[test]
fn portions_equal_the_whole() {
    let sequences = [(3, 1), (0, 9), (30, 1), (5, 1), (31, 4)];
    let step = Step::random((4, 2, 16), 4, &sequences);
    let whole = step.run();
    let row = 36 * 4;
    for max_elements in [0, row, 3 * row + 1, 40 * row] {
        let cut = read(&step.query, step.cache(), &step.rows, max_elements).unwrap();
        assert_eq!(cut.size(), whole.size());
        let difference = max_difference(&cut, &whole);
        assert!(difference < 1e-6, "{max_elements}: {difference}");
    }
}

#[test]
fn a_row_is_the_same_whoever_shares_the_batch() {
    let step = Step::random((8, 4, 32), 16, &[(20, 1), (40, 1), (7, 1)]);
    let together = step.run();
    for row in 0..3 {
        let mut batch = StepBatch::default();
        let index = usize::try_from(row).unwrap();
        let table = step.batch.block_tables().nth(index).unwrap().to_vec();
        let first = usize::try_from(step.batch.first_positions[index]).unwrap();
        batch.push_sequence([0], first, table);
        let rows = DecodeRows::new(&batch, 16, Device::Cpu).unwrap();
        let one = |tensor: &Tensor| tensor.narrow(0, row, 1);
        let alone = paged_attention(
            &one(&step.query),
            &one(&step.key),
            &one(&step.value),
            step.cache(),
            &rows,
        )
        .unwrap();
        assert!(max_difference(&alone.get(0), &together.get(row)) < 1e-6);
    }
}

#[test]
fn extreme_scores_stay_finite_and_other_kinds_are_taken() {
    let mut step = Step::random((2, 1, 16), 4, &[(5, 1), (0, 3)]);
    let expected = step.run();
    for tensor in [
        &mut step.query,
        &mut step.key,
        &mut step.value,
        &mut step.keys,
        &mut step.values,
    ] {
        *tensor = tensor.to_kind(Kind::BFloat16);
    }
    let output = step.run();
    assert_eq!(output.kind(), Kind::BFloat16);
    assert!(max_difference(&output, &expected) < 0.1);
    step.query = &step.query * 1e4;
    assert!(bool::try_from(step.run().isfinite().all()).unwrap());
    let empty = Step::random((2, 1, 16), 4, &[]);
    assert_eq!(empty.run().size(), [0, 2, 16]);
}
