//! Sampling on the device, as [`crate::ReferenceSampler`] defines it.
#![expect(unsafe_code, reason = "calls kernels with pointers to tensors")]

use tch::{Kind, Tensor};

use super::{Kernels, MAX_KERNEL_VOCAB, expect_kind};
use crate::error::{Error, OpContext, Result};
use crate::sampling::{SampledRow, SamplingRow};

/// Bytes of the settings of one sample on the device.
pub const SAMPLING_ROW_BYTES: usize = 32;

/// Bytes of one sampled token on the device.
pub const SAMPLED_ROW_BYTES: usize = 16;

/// Writes the settings of a sample as the device reads them, into the first [`SAMPLING_ROW_BYTES`] of `bytes`; what does
/// not fit is left out.
pub fn write_sampling_row(row: &SamplingRow, bytes: &mut [u8]) {
    let words = row
        .temperature
        .to_le_bytes()
        .into_iter()
        .chain(row.top_k.to_le_bytes())
        .chain(row.top_p.to_le_bytes())
        .chain(row.min_p.to_le_bytes())
        .chain(row.seed.to_le_bytes())
        .chain(row.position.to_le_bytes());
    for (place, byte) in bytes.iter_mut().zip(words) {
        *place = byte;
    }
}

/// Reads sampled tokens as the device wrote them.
pub fn read_sampled_rows(bytes: &[u8]) -> impl Iterator<Item = SampledRow> + '_ {
    let (rows, _) = bytes.as_chunks::<SAMPLED_ROW_BYTES>();
    rows.iter().map(
        |&[
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            t6,
            t7,
            l0,
            l1,
            l2,
            l3,
            r0,
            r1,
            r2,
            r3,
        ]| {
            SampledRow {
                token: i64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
                logprob: f32::from_le_bytes([l0, l1, l2, l3]),
                raw_logprob: f32::from_le_bytes([r0, r1, r2, r3]),
            }
        },
    )
}

impl Kernels {
    /// Samples a token for each row of `logits` `[samples, vocab]` and gives what [`read_sampled_rows`] reads, u8
    /// `[samples, SAMPLED_ROW_BYTES]`.
    ///
    /// # Shapes
    /// `rows` u8 `[samples, SAMPLING_ROW_BYTES]` of what [`write_sampling_row`] writes; `cu_banned` i32 `[samples + 1]`:
    /// number of banned ids before each sample; `banned` i32, the ids end to end.
    ///
    /// # Errors
    /// A wrong shape, kind, device or layout; a vocabulary above [`MAX_KERNEL_VOCAB`]; a failure of CUDA.
    pub fn sample(
        &self,
        logits: &Tensor,
        rows: &Tensor,
        cu_banned: &Tensor,
        banned: &Tensor,
    ) -> Result<Tensor> {
        const OP: &str = "sample";
        let kind = logits.kind();
        let code = expect_kind(OP, "logits", kind)?;
        let [samples, vocab] = Self::sizes(OP, "logits", logits)?;
        if !(1..=MAX_KERNEL_VOCAB).contains(&vocab) {
            return Err(Error::Argument {
                op: OP,
                argument: "logits",
                expected: format!("of 1 to {MAX_KERNEL_VOCAB} ids"),
                got: format!("{vocab}"),
            });
        }
        let [num_banned] = Self::sizes(OP, "banned", banned)?;
        let logits = self.place(OP, "logits", logits, kind, &[samples, vocab])?;
        let rows = self.place(
            OP,
            "rows",
            rows,
            Kind::Uint8,
            &[samples, to_size(SAMPLING_ROW_BYTES)],
        )?;
        let cu_banned = self.place(OP, "cu_banned", cu_banned, Kind::Int, &[samples + 1])?;
        let banned = self.place(OP, "banned", banned, Kind::Int, &[num_banned])?;
        let shape = [samples, to_size(SAMPLED_ROW_BYTES)];
        let out = Tensor::f_empty(shape, (Kind::Uint8, self.device)).op(OP)?;
        let stream = self.stream()?;
        // SAFETY: all are live tensors of the shapes, kinds, device and layout just checked, and `out` has room for every
        // sample; banned ids and offsets out of range are passed over.
        let message = unsafe {
            (self.functions.sample)(
                code,
                logits,
                rows,
                cu_banned,
                banned,
                out.data_ptr(),
                samples,
                vocab,
                num_banned,
                stream,
            )
        };
        self.check(OP, message)?;
        Ok(out)
    }
}

fn to_size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
