//! The vector cut into parts that ranks own.

use std::ops::Range;

use super::layout::FlatLayout;
use super::vector::ALIGNMENT;

/// A range of the vector that one rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the vector.
    pub elements: Range<usize>,
    /// Where among all that the rank owns.
    pub owned_start: usize,
}

/// The vector cut into buckets that are exchanged one at a time, and each bucket into one part per rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketCuts {
    num_ranks: usize,
    num_elements: usize,
    /// End of each bucket; each is a multiple of [`ALIGNMENT`] times the number of ranks.
    ends: Vec<usize>,
}

impl BucketCuts {
    /// Cuts `num_elements` into buckets of some `bucket_elements`, the last one padded.
    pub fn new(num_elements: usize, num_ranks: usize, bucket_elements: usize) -> Self {
        let grain = ALIGNMENT * num_ranks;
        let padded = num_elements.next_multiple_of(grain);
        let bucket = bucket_elements.next_multiple_of(grain).max(grain);
        let mut ends: Vec<usize> = (1..=padded / bucket).map(|count| count * bucket).collect();
        if ends.last().copied().unwrap_or(0) < padded {
            ends.push(padded);
        }
        Self {
            num_ranks,
            num_elements,
            ends,
        }
    }

    /// Elements of the padded vector.
    pub fn padded_elements(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The buckets, in order.
    pub fn buckets(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        (0..self.ends.len()).map(|index| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            start..self.ends[index]
        })
    }

    /// A rank's part of a bucket.
    pub fn part(&self, bucket: &Range<usize>, rank: usize) -> Range<usize> {
        let length = bucket.len() / self.num_ranks;
        let start = bucket.start + rank * length;
        start..start + length
    }

    /// Elements that each rank owns, padding included.
    pub fn owned_elements(&self) -> usize {
        self.padded_elements() / self.num_ranks
    }

    /// All that a rank owns, in order, without padding; neighbouring parts joined.
    pub fn pieces(&self, rank: usize) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut owned_start = 0;
        for bucket in self.buckets() {
            let part = self.part(&bucket, rank);
            let length = part.len();
            let elements = part.start..part.end.min(self.num_elements);
            match pieces.last_mut() {
                _ if elements.is_empty() => {}
                Some(last) if last.elements.end == elements.start => {
                    last.elements.end = elements.end;
                }
                _ => pieces.push(Piece {
                    elements,
                    owned_start,
                }),
            }
            owned_start += length;
        }
        pieces
    }
}

/// The vector cut into its units, and each unit into one part per rank, all of one length: the last ones may be short of
/// elements, or have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitCuts {
    num_ranks: usize,
    units: Vec<UnitCut>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct UnitCut {
    elements: Range<usize>,
    /// Elements of a part.
    part_elements: usize,
    /// Where a rank's part of the unit lies among all that it owns.
    owned_start: usize,
}

impl UnitCuts {
    /// Cuts every unit of `layout` into one part per rank.
    pub fn new(layout: &FlatLayout, num_ranks: usize) -> Self {
        let mut owned_start = 0;
        let units = layout
            .units()
            .iter()
            .map(|unit| {
                let part_elements =
                    unit.elements.len().next_multiple_of(ALIGNMENT * num_ranks) / num_ranks;
                let cut = UnitCut {
                    elements: unit.elements.clone(),
                    part_elements,
                    owned_start,
                };
                owned_start += part_elements;
                cut
            })
            .collect();
        Self { num_ranks, units }
    }

    /// Elements that each rank owns, padding included.
    pub fn owned_elements(&self) -> usize {
        self.units.iter().map(|unit| unit.part_elements).sum()
    }

    /// Elements of a unit with its padding: the parts of all ranks.
    pub fn padded_elements(&self, unit: usize) -> usize {
        self.units[unit].part_elements * self.num_ranks
    }

    /// Where every rank's part of a unit lies among all that it owns.
    pub fn owned(&self, unit: usize) -> Range<usize> {
        let UnitCut {
            part_elements,
            owned_start,
            ..
        } = self.units[unit];
        owned_start..owned_start + part_elements
    }

    /// All that a rank owns, in order, without padding.
    pub fn pieces(&self, rank: usize) -> Vec<Piece> {
        let piece = |unit: &UnitCut| {
            let start = unit.elements.start + rank * unit.part_elements;
            let end = (start + unit.part_elements).min(unit.elements.end);
            (start < end).then_some(Piece {
                elements: start..end,
                owned_start: unit.owned_start,
            })
        };
        self.units.iter().filter_map(piece).collect()
    }
}

/// A range of the vector that one rank owns and that has one weight decay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the vector.
    pub elements: Range<usize>,
    /// Where among all that the rank owns.
    pub owned_start: usize,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// Elements owned by a rank, split at the end of the decayed parameters.
pub fn segments(layout: &FlatLayout, pieces: &[Piece]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for piece in pieces {
        for unit in layout.units() {
            let Range { start, end } = unit.elements.clone();
            for (range, decays) in [(start..unit.decay_end, true), (unit.decay_end..end, false)] {
                let from = range.start.max(piece.elements.start);
                let elements = from..range.end.min(piece.elements.end);
                if !elements.is_empty() {
                    segments.push(Segment {
                        owned_start: piece.owned_start + elements.start - piece.elements.start,
                        elements,
                        decays,
                    });
                }
            }
        }
    }
    segments
}
