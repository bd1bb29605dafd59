//! Inputs of a step: one buffer on the host, one on the device, and one copy between them.

use asyncthink_torch::{
    Kernels, PinnedBuffer, SAMPLING_ROW_BYTES, SamplingBatch, SamplingRow, write_sampling_row,
};
use tch::{Kind, Tensor};

use crate::error::Result;
use crate::step_batch::StepBatch;

/// Every part begins at a multiple of so many bytes.
const ALIGNMENT: usize = 16;

/// Samples beyond those of a step are greedy, which is the least work.
const PADDING: SamplingRow = SamplingRow {
    temperature: 0.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    seed: 0,
    position: 0,
};

/// How much room a step needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) rows: usize,
    pub(super) sequences: usize,
    pub(super) samples: usize,
    /// Blocks of a table.
    pub(super) max_blocks: usize,
    pub(super) banned: usize,
    pub(super) copies: usize,
    /// Tiles of sequences with few rows, whose keys are shared out.
    pub(super) short_tiles: usize,
    /// Tiles of prompts.
    pub(super) long_tiles: usize,
}

/// Tiles of the rows of a step: first row and number of rows of each.
#[derive(Debug, Default)]
pub(super) struct Tiles {
    pub(super) short: Vec<[i32; 2]>,
    pub(super) long: Vec<[i32; 2]>,
}

impl Tiles {
    /// Cuts the rows of sequences into tiles of up to `max_tile_rows`. Sequences with up to `max_short_rows` rows may
    /// have long contexts, which more threads should share.
    pub(super) fn new(batch: &StepBatch, max_tile_rows: i64, max_short_rows: i64) -> Self {
        let mut tiles = Self::default();
        for span in batch.spans() {
            let of_size = if span.num_rows <= max_short_rows {
                &mut tiles.short
            } else {
                &mut tiles.long
            };
            let mut done = 0;
            while done < span.num_rows {
                let count = max_tile_rows.min(span.num_rows - done);
                of_size.push([to_i32(span.first_row + done), to_i32(count)]);
                done += count;
            }
        }
        tiles
    }
}

/// Parts of the buffer, by their first byte.
#[derive(Clone, Copy, Debug)]
struct Places {
    ids: usize,
    positions: usize,
    slots: usize,
    row_sequences: usize,
    context_lens: usize,
    sample_rows: usize,
    sampling: usize,
    cu_banned: usize,
    banned: usize,
    copies: usize,
    short_tiles: usize,
    long_tiles: usize,
    tables: usize,
    end: usize,
}

impl Places {
    fn new(room: &Room) -> Self {
        let mut end = 0;
        let mut take = |bytes: usize| {
            let start = end;
            end += bytes.next_multiple_of(ALIGNMENT);
            start
        };
        let word = size_of::<i32>();
        let mut places = Self {
            ids: take(room.rows * word),
            positions: take(room.rows * word),
            slots: take(room.rows * word),
            row_sequences: take(room.rows * word),
            context_lens: take(room.rows * word),
            sample_rows: take(room.samples * word),
            sampling: take(room.samples * SAMPLING_ROW_BYTES),
            cu_banned: take((room.samples + 1) * word),
            banned: take(room.banned * word),
            copies: take(room.copies * 2 * word),
            short_tiles: take(room.short_tiles * 2 * word),
            long_tiles: take(room.long_tiles * 2 * word),
            tables: take(room.sequences * room.max_blocks * word),
            end: 0,
        };
        places.end = end;
        places
    }
}

/// Numbers of one step, on the host and on the device. Rows beyond those of the step are padding: they write nothing and
/// attend to nothing.
#[derive(Debug)]
pub(super) struct StepInputs {
    room: Room,
    places: Places,
    host: PinnedBuffer,
    device: Tensor,
}

/// Views of the device's buffer, each of i32 but for `sampling`, which is u8 `[samples, SAMPLING_ROW_BYTES]`.
#[derive(Debug)]
pub(super) struct InputViews {
    pub(super) ids: Tensor,
    pub(super) positions: Tensor,
    pub(super) slots: Tensor,
    pub(super) row_sequences: Tensor,
    pub(super) context_lens: Tensor,
    pub(super) sample_rows: Tensor,
    pub(super) sampling: Tensor,
    pub(super) cu_banned: Tensor,
    pub(super) banned: Tensor,
    pub(super) copies: Tensor,
    pub(super) short_tiles: Tensor,
    pub(super) long_tiles: Tensor,
    pub(super) tables: Tensor,
}

impl StepInputs {
    /// Uses a buffer of the host that is there, if it is large enough: getting one takes the driver long.
    pub(super) fn new(kernels: Kernels, room: Room, host: Option<PinnedBuffer>) -> Result<Self> {
        let places = Places::new(&room);
        let options = (Kind::Uint8, kernels.device());
        let host = match host.filter(|host| host.bytes().len() >= places.end) {
            Some(host) => host,
            None => PinnedBuffer::new(kernels, places.end.next_power_of_two())?,
        };
        Ok(Self {
            host,
            device: Tensor::f_empty([to_size(places.end)], options)?,
            room,
            places,
        })
    }

    /// The buffer of the host, to be used again when the copy is over.
    pub(super) fn into_host(self) -> PinnedBuffer {
        self.host
    }

    /// Writes a step, which fits into the room, and starts its copy to the device. An earlier copy must be over.
    pub(super) fn upload(
        &mut self,
        kernels: Kernels,
        batch: &StepBatch,
        sampling: &SamplingBatch,
        tiles: &Tiles,
        block_size: usize,
    ) -> Result<()> {
        let (places, room) = (self.places, self.room);
        let bytes = self.host.bytes_mut();
        let mut ids = Words::at(bytes, places.ids, room.rows);
        ids.fill(batch.ids.iter().map(|&id| to_i32(id)), 0);
        for (place, padding, value_of) in [
            (places.positions, 0, RowValue::Position),
            (places.slots, -1, RowValue::Slot),
            (places.row_sequences, 0, RowValue::Sequence),
            (places.context_lens, 0, RowValue::Context),
        ] {
            let values = row_values(batch, block_size, value_of);
            Words::at(bytes, place, room.rows).fill(values, padding);
        }
        let sample_rows = batch.sample_rows.iter().copied();
        Words::at(bytes, places.sample_rows, room.samples).fill(sample_rows, 0);
        self.write_sampling(sampling);
        let bytes = self.host.bytes_mut();
        for (place, count, pairs) in [
            (places.copies, room.copies, &batch.block_copies),
            (places.short_tiles, room.short_tiles, &tiles.short),
            (places.long_tiles, room.long_tiles, &tiles.long),
        ] {
            Words::at(bytes, place, 2 * count).fill(pairs.iter().flatten().copied(), 0);
        }
        let tables = places.tables..places.tables + room.sequences * room.max_blocks * 4;
        let width = (room.max_blocks * size_of::<i32>()).max(1);
        for (table, row) in batch
            .block_tables()
            .zip(bytes[tables].chunks_exact_mut(width))
        {
            Words(row).fill(table.iter().copied(), 0);
        }
        Ok(kernels.upload(&self.device, &self.host, places.end)?)
    }

    fn write_sampling(&mut self, sampling: &SamplingBatch) {
        let (places, room) = (self.places, self.room);
        let bytes = self.host.bytes_mut();
        let rows = places.sampling..places.sampling + room.samples * SAMPLING_ROW_BYTES;
        let settings = sampling.rows.iter().chain(std::iter::repeat(&PADDING));
        for (row, settings) in bytes[rows]
            .chunks_exact_mut(SAMPLING_ROW_BYTES)
            .zip(settings)
        {
            write_sampling_row(settings, row);
        }
        let total = sampling.cu_banned.last().copied().unwrap_or(0);
        let offsets = sampling.cu_banned.iter().copied();
        Words::at(bytes, places.cu_banned, room.samples + 1).fill(offsets, total);
        let banned = sampling.banned.iter().map(|&id| to_i32(id));
        Words::at(bytes, places.banned, room.banned).fill(banned, -1);
    }

    pub(super) fn views(&self) -> Result<InputViews> {
        let (places, room) = (&self.places, &self.room);
        let words = |place: usize, shape: &[usize]| -> Result<Tensor> {
            let shape: Vec<i64> = shape.iter().map(|&size| to_size(size)).collect();
            let count: i64 = shape.iter().product();
            let bytes = self.device.f_narrow(0, to_size(place), 4 * count)?;
            Ok(bytes.f_view_dtype(Kind::Int)?.f_view(&*shape)?)
        };
        let sampling_bytes = to_size(room.samples * SAMPLING_ROW_BYTES);
        Ok(InputViews {
            ids: words(places.ids, &[room.rows])?,
            positions: words(places.positions, &[room.rows])?,
            slots: words(places.slots, &[room.rows])?,
            row_sequences: words(places.row_sequences, &[room.rows])?,
            context_lens: words(places.context_lens, &[room.rows])?,
            sample_rows: words(places.sample_rows, &[room.samples])?,
            sampling: self
                .device
                .f_narrow(0, to_size(places.sampling), sampling_bytes)?
                .f_view([to_size(room.samples), to_size(SAMPLING_ROW_BYTES)])?,
            cu_banned: words(places.cu_banned, &[room.samples + 1])?,
            banned: words(places.banned, &[room.banned])?,
            copies: words(places.copies, &[room.copies, 2])?,
            short_tiles: words(places.short_tiles, &[room.short_tiles, 2])?,
            long_tiles: words(places.long_tiles, &[room.long_tiles, 2])?,
            tables: words(places.tables, &[room.sequences, room.max_blocks])?,
        })
    }
}

/// A number of a row that follows from its place in the batch.
#[derive(Clone, Copy)]
enum RowValue {
    Position,
    Slot,
    Sequence,
    Context,
}

fn row_values(
    batch: &StepBatch,
    block_size: usize,
    value: RowValue,
) -> impl Iterator<Item = i32> + '_ {
    let sequences = batch.spans().zip(batch.block_tables()).enumerate();
    sequences.flat_map(move |(index, (span, table))| {
        (span.first_position..span.first_position + span.num_rows).map(
            move |position| match value {
                RowValue::Position => to_i32(position),
                RowValue::Context => to_i32(position + 1),
                RowValue::Sequence => to_i32(to_size(index)),
                RowValue::Slot => {
                    let position = usize::try_from(position).unwrap_or(0);
                    // A table that is too short was refused before.
                    let block = table
                        .get(position / block_size)
                        .map_or(-1, |&block| i64::from(block));
                    to_i32(block * to_size(block_size) + to_size(position % block_size))
                }
            },
        )
    })
}

/// Bytes that hold i32 numbers.
struct Words<'a>(&'a mut [u8]);

impl<'a> Words<'a> {
    fn at(bytes: &'a mut [u8], start: usize, count: usize) -> Self {
        Self(&mut bytes[start..start + count * size_of::<i32>()])
    }

    /// Writes the numbers, then `padding` to the end.
    fn fill(&mut self, values: impl IntoIterator<Item = i32>, padding: i32) {
        let (words, _) = self.0.as_chunks_mut::<4>();
        let values = values.into_iter().chain(std::iter::repeat(padding));
        for (word, value) in words.iter_mut().zip(values) {
            *word = value.to_le_bytes();
        }
    }
}

fn to_i32(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(-1)
}

pub(super) fn to_size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
