//! Attention over a paged cache.
#![expect(unsafe_code, reason = "calls kernels with pointers to tensors")]

use tch::{Kind, Tensor};

use super::{Kernels, expect_kind};
use crate::error::{Error, OpContext, Result};

/// Rows of a product on the matrix units: query rows times the heads of a group, rounded up to a power of two.
const TILE_ROWS: i64 = 16;

/// Most rows or tiles: the second dimension of a launch.
const MAX_ROWS: i64 = 65_535;

const OP: &str = "paged_attention";

/// How a launch shares out its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionPath {
    /// Every row by itself on the plain units, for all kinds of numbers.
    ByRow,
    /// On the matrix units, for few rows with long contexts: four warps share the keys of a tile.
    SharedKeys,
    /// On the matrix units, for prompts: every warp has a tile.
    SharedTiles,
}

/// The query rows of a step, and what they attend to.
#[derive(Debug)]
pub struct PagedAttention<'a> {
    /// Queries `[rows, heads, head_dim]`.
    pub q: &'a Tensor,
    /// Keys of one layer `[blocks, block_size, kv_heads, head_dim]`; `block_size` is a multiple of 16.
    pub k_cache: &'a Tensor,
    /// Values of the layer.
    pub v_cache: &'a Tensor,
    /// Blocks of every sequence, i32 `[sequences, max_blocks]`.
    pub block_tables: &'a Tensor,
    /// Sequence of each row, i32 `[rows]`.
    pub row_sequences: &'a Tensor,
    /// Keys that each row sees, i32 `[rows]`: its position + 1. 0 for padding, whose result is 0.
    pub context_lens: &'a Tensor,
}

/// The rows that a launch computes.
#[derive(Clone, Copy, Debug)]
pub enum AttentionRows<'a> {
    /// All, each a tile of its own.
    All,
    /// Tiles of rows that follow one another in one sequence, i32 `[tiles, 2]`: first row and number of rows, of which
    /// [`Kernels::max_tile_rows`] is the most.
    Tiles(&'a Tensor),
}

/// Room for results of parts of contexts, which are joined at the end.
#[derive(Debug)]
pub struct PartialSums {
    out: Tensor,
    lse: Tensor,
    splits: i64,
}

impl PartialSums {
    /// Room for contexts in up to `splits` parts.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(
        kernels: &Kernels,
        rows: i64,
        heads: i64,
        head_dim: i64,
        splits: i64,
    ) -> Result<Self> {
        let splits = splits.max(1);
        let options = (Kind::Float, kernels.device());
        // One part is written where it belongs at once.
        let rows = if splits == 1 { 0 } else { rows };
        Ok(Self {
            out: Tensor::f_empty([rows, heads, splits, head_dim], options).op("partial_sums")?,
            lse: Tensor::f_empty([rows, heads, splits], options).op("partial_sums")?,
            splits,
        })
    }

    /// Most parts of a context.
    pub fn splits(&self) -> i64 {
        self.splits
    }
}

impl Kernels {
    /// Whether the matrix units can be used for this kind of numbers, heads of this size, and so many query heads for a
    /// key-value head.
    pub fn has_matrix_attention(&self, kind: Kind, head_dim: i64, group: i64) -> bool {
        let Ok(code) = expect_kind("attention", "kind", kind) else {
            return false;
        };
        // SAFETY: takes numbers and gives one.
        unsafe { (self.functions.attention_has_mma)(code, head_dim, group) != 0 }
    }

    /// Most query rows of a tile: 16 rows of a product hold so many times the heads of a group.
    pub fn max_tile_rows(group: i64) -> i64 {
        let padded = u64::try_from(group.max(1)).unwrap_or(1).next_power_of_two();
        (TILE_ROWS / i64::try_from(padded).unwrap_or(TILE_ROWS)).max(1)
    }

    /// Attention of query rows over what the cache holds of their sequences, into `out` `[rows, heads, head_dim]`; query
    /// head `h` uses key-value head `h / (heads / kv_heads)`, scores are divided by the root of `head_dim`.
    ///
    /// Sums are in f32. Contexts are split into as many parts as `partial` has room for, if they are long. Rows of no
    /// tile keep what `out` holds.
    ///
    /// # Errors
    /// A wrong shape, kind, device or layout; a path or head dimension without a kernel; a failure of CUDA.
    pub fn paged_attention_(
        &self,
        inputs: &PagedAttention<'_>,
        rows: AttentionRows<'_>,
        path: AttentionPath,
        partial: &PartialSums,
        out: &Tensor,
    ) -> Result<()> {
        let Sizes {
            kind,
            rows: num_rows,
            heads,
            head_dim,
            cache: [blocks, block_size, kv_heads, _],
            tables: [sequences, max_blocks],
        } = self.attention_sizes(inputs, path, partial)?;
        let code = expect_kind(OP, "q", kind)?;
        let cache = [blocks, block_size, kv_heads, head_dim];
        let row_shape = [num_rows, heads, head_dim];
        let int = |argument, tensor: &Tensor, shape: &[i64]| {
            self.place(OP, argument, tensor, Kind::Int, shape)
        };
        let places = [
            self.place(OP, "q", inputs.q, kind, &row_shape)?,
            self.place(OP, "k_cache", inputs.k_cache, kind, &cache)?,
            self.place(OP, "v_cache", inputs.v_cache, kind, &cache)?,
            int(
                "block_tables",
                inputs.block_tables,
                &[sequences, max_blocks],
            )?,
            int("row_sequences", inputs.row_sequences, &[num_rows])?,
            int("context_lens", inputs.context_lens, &[num_rows])?,
            self.place(OP, "out", out, kind, &row_shape)?,
        ];
        let (tiles, num_tiles) = match rows {
            AttentionRows::All => (std::ptr::null_mut(), num_rows),
            AttentionRows::Tiles(tiles) => {
                let [count, _] = Self::sizes(OP, "tiles", tiles)?;
                (int("tiles", tiles, &[count, 2])?, count)
            }
        };
        if num_tiles > MAX_ROWS {
            return Err(wrong("tiles", "of at most 65535", &num_tiles.to_string()));
        }
        let path = match path {
            AttentionPath::ByRow => 0,
            AttentionPath::SharedKeys => 1,
            AttentionPath::SharedTiles => 2,
        };
        let stream = self.stream()?;
        // SAFETY: all are live tensors of the shapes, kinds, device and layout just checked; numbers on the device that
        // are out of range are bent into it by the kernel; partial results have the room just checked.
        let message = unsafe {
            (self.functions.paged_attention)(
                code,
                path,
                places[0],
                places[1],
                places[2],
                places[3],
                places[4],
                places[5],
                tiles,
                places[6],
                partial.out.data_ptr(),
                partial.lse.data_ptr(),
                num_tiles,
                num_rows,
                heads,
                kv_heads,
                head_dim,
                block_size,
                blocks,
                sequences,
                max_blocks,
                partial.splits,
                stream,
            )
        };
        self.check(OP, message)
    }

    /// Sizes of the arguments, as far as they agree.
    fn attention_sizes(
        &self,
        inputs: &PagedAttention<'_>,
        path: AttentionPath,
        partial: &PartialSums,
    ) -> Result<Sizes> {
        let sizes = Sizes {
            kind: inputs.q.kind(),
            rows: 0,
            heads: 0,
            head_dim: 0,
            cache: Self::sizes(OP, "k_cache", inputs.k_cache)?,
            tables: Self::sizes(OP, "block_tables", inputs.block_tables)?,
        };
        let [rows, heads, head_dim] = Self::sizes(OP, "q", inputs.q)?;
        let [blocks, block_size, kv_heads, _] = sizes.cache;
        if block_size % TILE_ROWS != 0 || block_size == 0 || blocks == 0 {
            let expected = "of blocks whose size is a multiple of 16";
            return Err(wrong("k_cache", expected, &format!("{:?}", sizes.cache)));
        }
        if kv_heads == 0 || heads % kv_heads != 0 {
            let expected = format!("of a multiple of {kv_heads} heads");
            return Err(wrong("q", &expected, &heads.to_string()));
        }
        if rows > MAX_ROWS {
            return Err(wrong("q", "of at most 65535 rows", &rows.to_string()));
        }
        if rows > 0 && sizes.tables.contains(&0) {
            return Err(wrong("block_tables", "of sequences with blocks", "empty"));
        }
        let group = heads / kv_heads;
        if path != AttentionPath::ByRow && !self.has_matrix_attention(sizes.kind, head_dim, group) {
            let got = format!(
                "{:?} heads of {head_dim}, {group} for a key-value head",
                sizes.kind
            );
            return Err(wrong("path", "by row for these heads", &got));
        }
        // Attention that is not split needs no room.
        let room = partial.out.size();
        let fits = room[0] >= rows && room[1..] == [heads, partial.splits, head_dim];
        if partial.splits > 1 && !fits {
            let expected = format!("room for {rows} rows of {heads} heads of {head_dim}");
            return Err(wrong("partial", &expected, &format!("{room:?}")));
        }
        Ok(Sizes {
            rows,
            heads,
            head_dim,
            ..sizes
        })
    }
}

struct Sizes {
    kind: Kind,
    rows: i64,
    heads: i64,
    head_dim: i64,
    /// `[blocks, block_size, kv_heads, head_dim]`
    cache: [i64; 4],
    /// `[sequences, max_blocks]`
    tables: [i64; 2],
}

fn wrong(argument: &'static str, expected: &str, got: &str) -> Error {
    Error::Argument {
        op: OP,
        argument,
        expected: expected.to_owned(),
        got: got.to_owned(),
    }
}
