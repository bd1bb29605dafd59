//! What a layer does beside products and attention.
#![expect(unsafe_code, reason = "calls kernels with pointers to tensors")]

use tch::{Kind, Tensor};

use super::{Kernels, expect_kind};
use crate::error::{Error, OpContext, Result};

/// Arguments of [`Kernels::rope_and_cache_`].
#[derive(Debug)]
pub struct RopeAndCache<'a> {
    /// Queries, keys and values of every row `[rows, (heads + 2 kv_heads) * head_dim]`, before their norm.
    pub qkv: &'a Tensor,
    /// Weights `[head_dim]` of the norms of queries and keys, where the family has them.
    pub query_key_norm: Option<[&'a Tensor; 2]>,
    /// Of these norms.
    pub eps: f64,
    /// Radians per position, f32 `[head_dim / 2]`.
    pub frequencies: &'a Tensor,
    /// What cosines and sines are multiplied by.
    pub attention_factor: f64,
    /// Position of each row in its sequence, i32 `[rows]`.
    pub positions: &'a Tensor,
    /// Place of each row in the cache, i32 `[rows]`: block times block size plus the place in the block. A row outside
    /// the cache is not written: -1 says that it is padding.
    pub slots: &'a Tensor,
    /// Keys of one layer `[blocks, block_size, kv_heads, head_dim]`.
    pub k_cache: &'a Tensor,
    /// Values of the layer.
    pub v_cache: &'a Tensor,
    /// Number of query heads.
    pub heads: i64,
}

impl Kernels {
    /// Adds `x` to `residual` in place and gives the sum's RMS norm; without `x` the norm of `residual` as it is. Sums
    /// are rounded to the kind of the tensors, the norm is computed in f32 from what was rounded.
    ///
    /// # Shapes
    /// `x`, `residual` and the result `[rows, hidden]`, `weight` `[hidden]`, of one kind.
    ///
    /// # Errors
    /// A wrong shape, kind, device or layout; a failure of CUDA.
    pub fn add_rms_norm_(
        &self,
        x: Option<&Tensor>,
        residual: &Tensor,
        weight: &Tensor,
        eps: f64,
    ) -> Result<Tensor> {
        const OP: &str = "add_rms_norm";
        let [rows, hidden] = Self::sizes(OP, "residual", residual)?;
        let kind = residual.kind();
        let code = expect_kind(OP, "residual", kind)?;
        let x_place = match x {
            Some(x) => self.place(OP, "x", x, kind, &[rows, hidden])?,
            None => std::ptr::null_mut(),
        };
        let residual_place = self.place(OP, "residual", residual, kind, &[rows, hidden])?;
        let weight_place = self.place(OP, "weight", weight, kind, &[hidden])?;
        let out = residual.f_empty_like().op(OP)?;
        let stream = self.stream()?;
        // SAFETY: all are live tensors of the shapes, kind, device and layout just checked; `out` is like `residual`.
        let message = unsafe {
            (self.functions.add_rms_norm)(
                code,
                x_place,
                residual_place,
                weight_place,
                out.data_ptr(),
                rows,
                hidden,
                to_f32(eps),
                stream,
            )
        };
        self.check(OP, message)?;
        Ok(out)
    }

    /// `silu(gate) * up`, of both side by side.
    ///
    /// # Shapes
    /// `gate_up` `[rows, 2 width]`, the result `[rows, width]`.
    ///
    /// # Errors
    /// As [`Self::add_rms_norm_`].
    pub fn silu_mul(&self, gate_up: &Tensor) -> Result<Tensor> {
        const OP: &str = "silu_mul";
        let [rows, both] = Self::sizes(OP, "gate_up", gate_up)?;
        let kind = gate_up.kind();
        let code = expect_kind(OP, "gate_up", kind)?;
        let width = both / 2;
        let place = self.place(OP, "gate_up", gate_up, kind, &[rows, 2 * width])?;
        let out = Tensor::f_empty([rows, width], (kind, self.device)).op(OP)?;
        let stream = self.stream()?;
        // SAFETY: as above.
        let message =
            unsafe { (self.functions.silu_mul)(code, place, out.data_ptr(), rows, width, stream) };
        self.check(OP, message)?;
        Ok(out)
    }

    /// Norms (where the family does) and rotates queries and keys, writes keys and values into their places of the cache,
    /// and gives the queries `[rows, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`Self::add_rms_norm_`]; a head dimension without a kernel.
    pub fn rope_and_cache_(&self, inputs: &RopeAndCache<'_>) -> Result<Tensor> {
        const OP: &str = "rope_and_cache";
        let kind = inputs.qkv.kind();
        let code = expect_kind(OP, "qkv", kind)?;
        let [rows, _] = Self::sizes(OP, "qkv", inputs.qkv)?;
        let [blocks, block_size, kv_heads, head_dim] = Self::sizes(OP, "k_cache", inputs.k_cache)?;
        let heads = inputs.heads;
        let cache = [blocks, block_size, kv_heads, head_dim];
        let places = [
            self.place(
                OP,
                "qkv",
                inputs.qkv,
                kind,
                &[rows, (heads + 2 * kv_heads) * head_dim],
            )?,
            self.place(
                OP,
                "frequencies",
                inputs.frequencies,
                Kind::Float,
                &[head_dim / 2],
            )?,
            self.place(OP, "positions", inputs.positions, Kind::Int, &[rows])?,
            self.place(OP, "slots", inputs.slots, Kind::Int, &[rows])?,
            self.place(OP, "k_cache", inputs.k_cache, kind, &cache)?,
            self.place(OP, "v_cache", inputs.v_cache, kind, &cache)?,
        ];
        let [q_norm, k_norm] = match inputs.query_key_norm {
            Some([query, key]) => [
                self.place(OP, "query_norm", query, kind, &[head_dim])?,
                self.place(OP, "key_norm", key, kind, &[head_dim])?,
            ],
            None => [std::ptr::null_mut(); 2],
        };
        let q = Tensor::f_empty([rows, heads, head_dim], (kind, self.device)).op(OP)?;
        let stream = self.stream()?;
        // SAFETY: as above; slots outside of the cache are not written.
        let message = unsafe {
            (self.functions.rope_and_cache)(
                code,
                places[0],
                q_norm,
                k_norm,
                places[1],
                places[2],
                places[3],
                q.data_ptr(),
                places[4],
                places[5],
                rows,
                heads,
                kv_heads,
                head_dim,
                blocks * block_size,
                to_f32(inputs.attention_factor),
                to_f32(inputs.eps),
                stream,
            )
        };
        self.check(OP, message)?;
        Ok(q)
    }

    /// Copies whole blocks within every plane of a cache `[planes, blocks, ...]`: `copies` is i32 `[count, 2]`, from and
    /// to. No block is written by one copy and named by another.
    ///
    /// # Errors
    /// As [`Self::add_rms_norm_`]; a block whose size is no multiple of 16 bytes.
    pub fn copy_blocks_(&self, cache: &Tensor, copies: &Tensor) -> Result<()> {
        const OP: &str = "copy_blocks";
        let size = cache.size();
        let [count, _] = Self::sizes(OP, "copies", copies)?;
        let copies_place = self.place(OP, "copies", copies, Kind::Int, &[count, 2])?;
        let place = self.place(OP, "cache", cache, cache.kind(), &size)?;
        let element_bytes = i64::try_from(cache.kind().elt_size_in_bytes()).unwrap_or(1);
        let block_bytes = size.iter().skip(2).product::<i64>() * element_bytes;
        let (Some(&planes), Some(&blocks)) = (size.first(), size.get(1)) else {
            return Err(wrong_cache(&size));
        };
        if block_bytes % 16 != 0 {
            return Err(wrong_cache(&size));
        }
        let stream = self.stream()?;
        // SAFETY: as above; blocks outside of the cache are not copied.
        let message = unsafe {
            (self.functions.copy_blocks)(
                place,
                copies_place,
                count,
                planes,
                blocks,
                block_bytes,
                stream,
            )
        };
        self.check(OP, message)
    }
}

fn wrong_cache(size: &[i64]) -> Error {
    Error::Argument {
        op: "copy_blocks",
        argument: "cache",
        expected: "planes of blocks, each of a multiple of 16 bytes".to_owned(),
        got: format!("{size:?}"),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "kernels compute in f32")]
fn to_f32(value: f64) -> f32 {
    value as f32
}
