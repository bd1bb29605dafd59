//! The trained parameters as one vector, cut into parts that ranks own.
//!
//! The vector is a row of units: what lies before the first layer and after the last, then layer after layer. In a unit,
//! parameters that decay come first, each at a multiple of [`ALIGNMENT`] elements. Where a parameter lies depends on names and
//! shapes alone, not on the number of ranks or on how it is shared out: a checkpoint addresses moments by these places.
//!
//! Shape legend: `flat` = elements of the vector, gaps included; `owned` = elements that one rank owns, padding included.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::Result;
use crate::optimizer::is_decayed;

/// Elements of f32 in 64 bytes: a cache line, and what vector instructions like best.
const ALIGNMENT: usize = 16;

/// Where a parameter lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its Hugging Face name.
    pub(crate) name: String,
    /// Its shape.
    pub(crate) shape: Vec<i64>,
    /// Its first element.
    pub(crate) start: usize,
}

impl Place {
    pub(crate) fn elements(&self) -> Range<usize> {
        let sizes = self.shape.iter();
        let num_elements: usize = sizes
            .map(|&size| usize::try_from(size).unwrap_or(0))
            .product();
        self.start..self.start + num_elements
    }

    /// The parameter as a view of `vector`, in which the element `origin` of all is the first.
    pub(crate) fn view(&self, vector: &Tensor, origin: usize) -> Result<Tensor> {
        let Range { start, end } = self.elements();
        Ok(stretch(vector, &(start - origin..end - origin))?.f_view(self.shape.as_slice())?)
    }
}

/// Parameters that are computed with together: a layer, or what lies before and after the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its elements.
    pub(crate) elements: Range<usize>,
    /// Weight decay applies to the elements before this one.
    decay_end: usize,
    /// Its places among those of the layout.
    places: Range<usize>,
}

/// The unit of what lies before the first layer and after the last.
pub(crate) const ROOT: usize = 0;

/// The unit of a layer.
pub(crate) fn unit_of_layer(layer: usize) -> usize {
    layer + 1
}

fn unit_of(name: &str) -> usize {
    name.strip_prefix("model.layers.")
        .and_then(|rest| rest.split('.').next()?.parse().ok())
        .map_or(ROOT, unit_of_layer)
}

/// The order of parameters in the vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlatLayout {
    places: Vec<Place>,
    units: Vec<Unit>,
}

impl FlatLayout {
    /// Of parameters with these shapes.
    pub(crate) fn new(shapes: &[(String, Vec<i64>)]) -> Self {
        let num_units = shapes.iter().map(|(name, _)| unit_of(name) + 1).max();
        let mut places = Vec::with_capacity(shapes.len());
        let mut units = Vec::new();
        let mut end = 0;
        for unit in 0..num_units.unwrap_or(0) {
            let (start, first_place, mut decay_end) = (end, places.len(), end);
            for decays in [true, false] {
                for (name, shape) in shapes {
                    if unit_of(name) == unit && is_decayed(name, shape.len()) == decays {
                        let place = Place {
                            name: name.clone(),
                            shape: shape.clone(),
                            start: end,
                        };
                        end = place.elements().end.next_multiple_of(ALIGNMENT);
                        places.push(place);
                    }
                }
                if decays {
                    decay_end = end;
                }
            }
            units.push(Unit {
                elements: start..end,
                decay_end,
                places: first_place..places.len(),
            });
        }
        Self { places, units }
    }

    /// Of parameters that exist.
    pub(crate) fn of(parameters: &[(String, Tensor)]) -> Self {
        let shapes = parameters.iter();
        let shapes: Vec<_> = shapes
            .map(|(name, tensor)| (name.clone(), tensor.size()))
            .collect();
        Self::new(&shapes)
    }

    /// The parameters in the order of the vector.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// The units in the order of the vector.
    pub(crate) fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The parameters of a unit.
    pub(crate) fn places_of(&self, unit: usize) -> &[Place] {
        &self.places[self.units[unit].places.clone()]
    }

    /// Elements of the vector.
    pub(crate) fn num_elements(&self) -> usize {
        self.units.last().map_or(0, |unit| unit.elements.end)
    }
}

/// A stretch of the vector that one rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Where in the vector.
    pub(crate) elements: Range<usize>,
    /// Where among all that the rank owns.
    pub(crate) owned_start: usize,
}

/// The vector cut into buckets that are exchanged one at a time, and each bucket into one part per rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketCuts {
    num_ranks: usize,
    num_elements: usize,
    /// End of each bucket; each is a multiple of [`ALIGNMENT`] times the number of ranks.
    ends: Vec<usize>,
}

impl BucketCuts {
    /// Cuts `num_elements` into buckets of some `bucket_elements`, the last one padded.
    pub(crate) fn new(num_elements: usize, num_ranks: usize, bucket_elements: usize) -> Self {
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
    pub(crate) fn padded_elements(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The buckets, in order.
    pub(crate) fn buckets(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        (0..self.ends.len()).map(|index| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            start..self.ends[index]
        })
    }

    /// A rank's part of a bucket.
    pub(crate) fn part(&self, bucket: &Range<usize>, rank: usize) -> Range<usize> {
        let length = bucket.len() / self.num_ranks;
        let start = bucket.start + rank * length;
        start..start + length
    }

    /// Elements that each rank owns, padding included.
    pub(crate) fn owned_elements(&self) -> usize {
        self.padded_elements() / self.num_ranks
    }

    /// All that a rank owns, in order, without padding; neighbouring parts joined.
    pub(crate) fn pieces(&self, rank: usize) -> Vec<Piece> {
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
pub(crate) struct UnitCuts {
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
    pub(crate) fn new(layout: &FlatLayout, num_ranks: usize) -> Self {
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
    pub(crate) fn owned_elements(&self) -> usize {
        self.units.iter().map(|unit| unit.part_elements).sum()
    }

    /// Elements of a unit with its padding: the parts of all ranks.
    pub(crate) fn padded_elements(&self, unit: usize) -> usize {
        self.units[unit].part_elements * self.num_ranks
    }

    /// Where every rank's part of a unit lies among all that it owns.
    pub(crate) fn owned(&self, unit: usize) -> Range<usize> {
        let UnitCut {
            part_elements,
            owned_start,
            ..
        } = self.units[unit];
        owned_start..owned_start + part_elements
    }

    /// All that a rank owns, in order, without padding.
    pub(crate) fn pieces(&self, rank: usize) -> Vec<Piece> {
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

/// A stretch of the vector that one rank owns and that has one weight decay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where in the vector.
    pub(crate) elements: Range<usize>,
    /// Where among all that the rank owns.
    pub(crate) owned_start: usize,
    /// Whether weight decay applies.
    pub(crate) decays: bool,
}

/// What a rank owns, cut where weight decay ends.
pub(crate) fn segments(layout: &FlatLayout, pieces: &[Piece]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for piece in pieces {
        for unit in &layout.units {
            let Range { start, end } = unit.elements.clone();
            for (stretch, decays) in [(start..unit.decay_end, true), (unit.decay_end..end, false)] {
                let from = stretch.start.max(piece.elements.start);
                let elements = from..stretch.end.min(piece.elements.end);
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

/// A stretch of a vector, as a view.
pub(crate) fn stretch(flat: &Tensor, elements: &Range<usize>) -> Result<Tensor> {
    Ok(flat.f_narrow(0, signed(elements.start), signed(elements.len()))?)
}

pub(crate) fn signed(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Parameters of three units; every third does not decay.
    fn shapes(sizes: &[(i64, i64)]) -> Vec<(String, Vec<i64>)> {
        let shape = |index: usize, rows, columns| {
            if index % 3 == 2 {
                vec![rows]
            } else {
                vec![rows, columns]
            }
        };
        let name = |index: usize| match index % 4 {
            0 => format!("p{index}.weight"),
            unit => format!("model.layers.{}.p{index}.weight", unit % 2),
        };
        sizes
            .iter()
            .enumerate()
            .map(|(index, &(rows, columns))| (name(index), shape(index, rows, columns)))
            .collect()
    }

    /// How often each element is owned, while checking that segments have what decays apart.
    fn owners(layout: &FlatLayout, all: &[Vec<Piece>], owned_elements: usize) -> Vec<usize> {
        let mut owners = vec![0; layout.num_elements()];
        for pieces in all {
            let mut end = 0;
            for segment in segments(layout, pieces) {
                assert!(segment.owned_start >= end);
                end = segment.owned_start + segment.elements.len();
                for element in segment.elements {
                    owners[element] += 1;
                    let units = layout.units.iter();
                    let mut decayed = units.map(|unit| unit.elements.start..unit.decay_end);
                    let decays = decayed.any(|range| range.contains(&element));
                    assert_eq!(segment.decays, decays);
                }
            }
            assert!(end <= owned_elements);
        }
        owners
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_element_has_one_owner(
            sizes in prop::collection::vec((1_i64..40, 1_i64..40), 1..9),
            num_ranks in 1_usize..9,
            bucket_elements in 1_usize..3000,
        ) {
            let layout = FlatLayout::new(&shapes(&sizes));
            let cuts = BucketCuts::new(layout.num_elements(), num_ranks, bucket_elements);
            prop_assert_eq!(cuts.owned_elements() * num_ranks, cuts.padded_elements());
            prop_assert!(cuts.padded_elements() - layout.num_elements() < ALIGNMENT * num_ranks);
            let all: Vec<_> = (0..num_ranks).map(|rank| cuts.pieces(rank)).collect();
            let owners_of_buckets = owners(&layout, &all, cuts.owned_elements());
            prop_assert!(owners_of_buckets.iter().all(|&count| count == 1));

            let cuts = UnitCuts::new(&layout, num_ranks);
            let all: Vec<_> = (0..num_ranks).map(|rank| cuts.pieces(rank)).collect();
            let owners_of_units = owners(&layout, &all, cuts.owned_elements());
            prop_assert!(owners_of_units.iter().all(|&count| count == 1));
            for (index, unit) in layout.units().iter().enumerate() {
                let padding = cuts.padded_elements(index) - unit.elements.len();
                prop_assert!(padding < ALIGNMENT * num_ranks);
            }
        }

        #[test]
        fn places_do_not_overlap_and_lie_in_their_units(
            sizes in prop::collection::vec((1_i64..40, 1_i64..40), 1..9),
        ) {
            let layout = FlatLayout::new(&shapes(&sizes));
            let mut end = 0;
            for (index, unit) in layout.units().iter().enumerate() {
                for place in layout.places_of(index) {
                    prop_assert_eq!(unit_of(&place.name), index);
                    let elements = place.elements();
                    prop_assert!(elements.start >= end && elements.start % ALIGNMENT == 0);
                    prop_assert!(elements.start >= unit.elements.start);
                    end = elements.end;
                    prop_assert!(end <= unit.elements.end);
                }
            }
            prop_assert_eq!(layout.places().len(), sizes.len());
        }
    }

    #[test]
    fn layers_follow_each_other_by_number() {
        let names = [
            "lm_head",
            "model.layers.10.a",
            "model.layers.2.a",
            "model.norm",
        ];
        let shapes = names.map(|name| (format!("{name}.weight"), vec![4, 4]));
        let layout = FlatLayout::new(&shapes);
        let order: Vec<&str> = layout
            .places()
            .iter()
            .map(|place| place.name.as_str())
            .collect();
        let expected = [
            "lm_head.weight",
            "model.norm.weight",
            "model.layers.2.a.weight",
            "model.layers.10.a.weight",
        ];
        assert_eq!(order, expected);
        assert_eq!(layout.units().len(), 12);
    }
}
