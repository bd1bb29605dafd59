//! Attention over a paged cache.

use tch::{Kind, Tensor};

use super::check::KernelCheck;
use super::numbers::{Numbers, Rounded, check, difference, ints, values_of};
use crate::cuda_kernels::{
    AttentionPath, AttentionRows, KERNEL_HEAD_DIMS, Kernels, PagedAttention, PartialSums, reference,
};
use crate::error::{OpContext, Result};

const KV_HEADS: usize = 2;

/// Sequences of a case: rows, and the position of the first. The cache holds what lies before and these rows themselves.
type Sequences<'a> = &'a [(usize, usize)];

/// Decoding: one row each. Contexts around the sizes of tiles, blocks and parts; the largest has three parts.
const DECODING: Sequences<'static> = &[(1, 0), (1, 16), (1, 127), (1, 300)];

/// Prompts and parts of prompts between decoding rows, as a mixed step has them.
const MIXED: Sequences<'static> = &[(21, 0), (1, 33), (3, 150), (1, 0), (6, 14)];

struct Case {
    group: usize,
    head_dim: usize,
    block_size: usize,
    splits: i64,
}

/// Keys and values of sequences in blocks in disorder, with rows that attend to them.
struct Setting {
    case: Case,
    q: Rounded,
    k_cache: Rounded,
    v_cache: Rounded,
    tables: Vec<Vec<usize>>,
    /// Sequence and context of each row.
    rows: Vec<(usize, usize)>,
    max_blocks: usize,
}

impl Setting {
    fn new(kernels: Kernels, kind: Kind, case: Case, sequences: Sequences<'_>) -> Result<Self> {
        let mut numbers = Numbers::new((case.head_dim * case.group) as u64);
        let blocks_of = |&(rows, first): &(usize, usize)| (rows + first).div_ceil(case.block_size);
        let num_blocks: usize = sequences.iter().map(blocks_of).sum::<usize>() + 2;
        let mut order = numbers.shuffled(num_blocks).into_iter();
        let tables: Vec<Vec<usize>> = sequences
            .iter()
            .map(|sequence| order.by_ref().take(blocks_of(sequence)).collect())
            .collect();
        let rows: Vec<(usize, usize)> = sequences
            .iter()
            .enumerate()
            .flat_map(|(index, &(rows, first))| (0..rows).map(move |row| (index, first + row + 1)))
            .collect();
        let token = KV_HEADS * case.head_dim;
        // What no sequence holds is not a number: whoever reads it shows it.
        let mut cache = || {
            let mut values = vec![f64::NAN; num_blocks * case.block_size * token];
            for (table, &(rows, first)) in tables.iter().zip(sequences) {
                for position in 0..first + rows {
                    let start = place(table, position, case.block_size) * token;
                    values[start..start + token].copy_from_slice(&numbers.values(token, 2.0));
                }
            }
            let shape = [num_blocks, case.block_size, KV_HEADS, case.head_dim].map(|n| n as i64);
            Rounded::new(kernels, &values, &shape, kind)
        };
        let (k_cache, v_cache) = (cache()?, cache()?);
        let heads = KV_HEADS * case.group;
        let q_values = numbers.values(rows.len() * heads * case.head_dim, 2.0);
        let q_shape = [rows.len(), heads, case.head_dim].map(|n| n as i64);
        Ok(Self {
            q: Rounded::new(kernels, &q_values, &q_shape, kind)?,
            k_cache,
            v_cache,
            max_blocks: tables.iter().map(Vec::len).max().unwrap_or(0) + 1,
            tables,
            rows,
            case,
        })
    }

    fn expected(&self) -> Vec<f64> {
        let Case {
            group,
            head_dim,
            block_size,
            ..
        } = self.case;
        let heads = KV_HEADS * group;
        let queries = self.q.values.chunks(head_dim);
        let rows = queries.enumerate().flat_map(|(index, query)| {
            let ((sequence, context), kv_head) = (self.rows[index / heads], index % heads / group);
            let of = |cache: &Rounded| -> Vec<Vec<f64>> {
                let places = (0..context).map(|p| place(&self.tables[sequence], p, block_size));
                let starts = places.map(|place| (place * KV_HEADS + kv_head) * head_dim);
                starts
                    .map(|start| cache.values[start..start + head_dim].to_vec())
                    .collect()
            };
            let (keys, values) = (of(&self.k_cache), of(&self.v_cache));
            reference::attend(query, &slices(&keys), &slices(&values))
        });
        rows.collect()
    }

    /// Runs the kernel with one more row at the end, which is padding and must become zero.
    fn run(
        &self,
        kernels: Kernels,
        launches: &[(AttentionPath, Option<Vec<i32>>)],
    ) -> Result<Vec<f64>> {
        const OP: &str = "self_test";
        let num_rows = self.rows.len() as i64 + 1;
        let padded = Tensor::f_cat(
            &[&self.q.tensor, &self.q.tensor.f_narrow(0, 0, 1).op(OP)?],
            0,
        );
        let q = padded.op(OP)?;
        let numbers = |values: &[usize]| -> Vec<i32> {
            values
                .iter()
                .map(|&n| i32::try_from(n).unwrap_or(0))
                .collect()
        };
        let tables = self.tables.iter().flat_map(|table| {
            // Behind a table anything may stand.
            let unused = vec![1 << 30; self.max_blocks - table.len()];
            table.iter().copied().chain(unused)
        });
        let tables: Vec<usize> = tables.collect();
        let tables_shape = [self.tables.len() as i64, self.max_blocks as i64];
        let sequences: Vec<usize> = self.rows.iter().map(|row| row.0).chain([0]).collect();
        let contexts: Vec<usize> = self.rows.iter().map(|row| row.1).chain([0]).collect();
        let out = q.f_empty_like().op(OP)?.f_fill(7.0).op(OP)?;
        let (heads, head_dim) = (q.size()[1], q.size()[2]);
        let partial = PartialSums::new(&kernels, num_rows, heads, head_dim, self.case.splits)?;
        for (path, tiles) in launches {
            let tiles = match tiles {
                Some(tiles) => Some(ints(kernels, tiles, &[tiles.len() as i64 / 2, 2])?),
                None => None,
            };
            kernels.paged_attention_(
                &PagedAttention {
                    q: &q,
                    k_cache: &self.k_cache.tensor,
                    v_cache: &self.v_cache.tensor,
                    block_tables: &ints(kernels, &numbers(&tables), &tables_shape)?,
                    row_sequences: &ints(kernels, &numbers(&sequences), &[num_rows])?,
                    context_lens: &ints(kernels, &numbers(&contexts), &[num_rows])?,
                },
                tiles
                    .as_ref()
                    .map_or(AttentionRows::All, AttentionRows::Tiles),
                *path,
                &partial,
                &out,
            )?;
        }
        values_of(&out)
    }
}

fn slices(rows: &[Vec<f64>]) -> Vec<&[f64]> {
    rows.iter().map(Vec::as_slice).collect()
}

fn place(table: &[usize], position: usize, block_size: usize) -> usize {
    table[position / block_size] * block_size + position % block_size
}

/// Tiles of up to `max_rows` rows for sequences with several rows, or for those with one; then the padding row.
fn tiles(sequences: Sequences<'_>, max_rows: usize, of_prompts: bool) -> Vec<i32> {
    let mut tiles = Vec::new();
    let mut first = 0;
    for &(rows, _) in sequences {
        if (rows > 1) == of_prompts {
            for start in (0..rows).step_by(max_rows) {
                let count = max_rows.min(rows - start);
                tiles.extend([first + start, count].map(|n| i32::try_from(n).unwrap_or(0)));
            }
        }
        first += rows;
    }
    if !of_prompts {
        tiles.extend([i32::try_from(first).unwrap_or(0), 1]);
    }
    tiles
}

pub(in crate::cuda_kernels) fn run(kernels: Kernels, kind: Kind) -> Result<Vec<KernelCheck>> {
    let mut checks = Vec::new();
    for head_dim in KERNEL_HEAD_DIMS {
        let head_dim = usize::try_from(head_dim).unwrap_or(1);
        for (group, splits, block_size) in
            [(1, 1, 32), (3, 4, 16), (4, 4, 48), (6, 1, 16), (12, 3, 16)]
        {
            let case = || Case {
                group,
                head_dim,
                block_size,
                splits,
            };
            checks.extend(paths(kernels, kind, &case)?);
        }
    }
    Ok(checks)
}

fn paths(kernels: Kernels, kind: Kind, case: &dyn Fn() -> Case) -> Result<Vec<KernelCheck>> {
    let Case {
        group,
        head_dim,
        splits,
        ..
    } = case();
    let max_rows = usize::try_from(Kernels::max_tile_rows(group as i64)).unwrap_or(1);
    let has_matrix = kernels.has_matrix_attention(kind, head_dim as i64, group as i64);
    let mut checks = Vec::new();
    let mut compare = |what: &str, setting: &Setting, launches: &[_]| -> Result<()> {
        let mut expected = setting.expected();
        expected.extend(vec![0.0; KV_HEADS * group * head_dim]);
        let apart = difference(&setting.run(kernels, launches)?, &expected);
        let name =
            format!("paged_attention {what}, head_dim {head_dim}, group {group}, splits {splits}");
        checks.push(check(&name, kind, apart, (1e-5, 1.0 / 128.0)));
        Ok(())
    };
    let decoding = Setting::new(kernels, kind, case(), DECODING)?;
    compare("by row", &decoding, &[(AttentionPath::ByRow, None)])?;
    if has_matrix {
        compare(
            "shared keys",
            &decoding,
            &[(AttentionPath::SharedKeys, None)],
        )?;
        let mixed = Setting::new(kernels, kind, case(), MIXED)?;
        let prompts = tiles(MIXED, max_rows, true);
        let singles = tiles(MIXED, max_rows, false);
        for path in [AttentionPath::SharedTiles, AttentionPath::SharedKeys] {
            let launches = [
                (path, Some(prompts.clone())),
                (AttentionPath::SharedKeys, Some(singles.clone())),
            ];
            compare(&format!("mixed, {path:?}"), &mixed, &launches)?;
        }
    } else if group <= 3 {
        let mixed = Setting::new(kernels, kind, case(), MIXED)?;
        compare("mixed, by row", &mixed, &[(AttentionPath::ByRow, None)])?;
    }
    Ok(checks)
}
