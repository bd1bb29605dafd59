//! The trained parameters as one vector, cut into parts that ranks own.
//!
//! Parameters that decay come first, then the others, each at a multiple of [`ALIGNMENT`] elements. Where a parameter lies
//! depends on names and shapes alone, not on the number of ranks: a checkpoint addresses moments by these places.
//!
//! Shape legend: `flat` = elements of the vector, gaps and the padding at its end included.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
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
    fn num_elements(&self) -> usize {
        self.shape
            .iter()
            .map(|&size| usize::try_from(size).unwrap_or(0))
            .product()
    }
}

/// The order of parameters in the vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FlatLayout {
    places: Vec<Place>,
    /// Elements that weight decay applies to: the first ones.
    num_decayed: usize,
    num_elements: usize,
}

impl FlatLayout {
    /// Of parameters in their order.
    pub(crate) fn of(parameters: &[(String, Tensor)]) -> Self {
        let mut places = Vec::with_capacity(parameters.len());
        let mut num_elements = 0;
        let mut num_decayed = 0;
        for decays in [true, false] {
            for (name, parameter) in parameters {
                if is_decayed(name, parameter.dim()) == decays {
                    let place = Place {
                        name: name.clone(),
                        shape: parameter.size(),
                        start: num_elements,
                    };
                    num_elements += place.num_elements().next_multiple_of(ALIGNMENT);
                    places.push(place);
                }
            }
            if decays {
                num_decayed = num_elements;
            }
        }
        Self {
            places,
            num_decayed,
            num_elements,
        }
    }

    /// The parameters in the order of the vector.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Elements of the vector before padding.
    pub(crate) fn num_elements(&self) -> usize {
        self.num_elements
    }
}

/// How the vector is cut: into buckets that are exchanged one at a time, and each bucket into one part per rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cuts {
    num_ranks: usize,
    /// End of each bucket; each is a multiple of [`ALIGNMENT`] times the number of ranks.
    ends: Vec<usize>,
}

impl Cuts {
    /// Cuts `num_elements` into buckets of some `bucket_elements`, the last one padded.
    pub(crate) fn new(num_elements: usize, num_ranks: usize, bucket_elements: usize) -> Self {
        let grain = ALIGNMENT * num_ranks;
        let padded = num_elements.next_multiple_of(grain);
        let bucket = bucket_elements.next_multiple_of(grain).max(grain);
        let mut ends: Vec<usize> = (1..=padded / bucket).map(|count| count * bucket).collect();
        if ends.last().copied().unwrap_or(0) < padded {
            ends.push(padded);
        }
        Self { num_ranks, ends }
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

    /// All that a rank owns, in order; neighbouring parts joined.
    pub(crate) fn owned(&self, rank: usize) -> Vec<Range<usize>> {
        let mut owned: Vec<Range<usize>> = Vec::new();
        for bucket in self.buckets() {
            let part = self.part(&bucket, rank);
            match owned.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => owned.push(part),
            }
        }
        owned
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
pub(crate) fn segments(layout: &FlatLayout, owned: &[Range<usize>]) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut owned_start = 0;
    for range in owned {
        let border = layout.num_decayed.clamp(range.start, range.end);
        for (elements, decays) in [(range.start..border, true), (border..range.end, false)] {
            if !elements.is_empty() {
                let length = elements.len();
                segments.push(Segment {
                    elements,
                    owned_start,
                    decays,
                });
                owned_start += length;
            }
        }
    }
    segments
}

/// Values and gradients of the parameters as two vectors, which the parameters are views of.
#[derive(Debug)]
pub(crate) struct FlatParameters {
    pub(crate) layout: FlatLayout,
    /// f32 `[flat]`.
    pub(crate) values: Tensor,
    /// f32 `[flat]`; where autograd adds to.
    pub(crate) gradients: Tensor,
}

impl FlatParameters {
    /// Moves parameters, with what they hold, into a vector of `padded_elements`: all that share a parameter see the same
    /// values as before, and its gradient from now on is a part of the vector of gradients.
    ///
    /// # Errors
    /// When a parameter is not f32, or the memory cannot be had.
    pub(crate) fn take_over(
        layout: FlatLayout,
        parameters: &[(String, Tensor)],
        padded_elements: usize,
    ) -> Result<Self> {
        let device = parameters
            .first()
            .map_or(tch::Device::Cpu, |(_, parameter)| parameter.device());
        let size = [signed(padded_elements)];
        let values = Tensor::f_zeros(size, (Kind::Float, device))?;
        let gradients = Tensor::f_zeros(size, (Kind::Float, device))?;
        let by_name: std::collections::BTreeMap<&str, &Tensor> = parameters
            .iter()
            .map(|(name, parameter)| (name.as_str(), parameter))
            .collect();
        let _no_grad = tch::no_grad_guard();
        for place in &layout.places {
            let refuse = |reason: &str| {
                Error::stage(
                    "laying out the parameters",
                    format!("`{}` {reason}", place.name),
                )
            };
            let parameter = by_name
                .get(place.name.as_str())
                .ok_or_else(|| refuse("is missing"))?;
            if parameter.kind() != Kind::Float {
                return Err(refuse("is not f32"));
            }
            let view = |flat: &Tensor| {
                flat.f_narrow(0, signed(place.start), signed(place.num_elements()))?
                    .f_view(place.shape.as_slice())
            };
            let mut value = view(&values)?;
            value.f_copy_(&parameter.detach())?;
            parameter.shallow_clone().f_set_data(&value)?;
            asyncthink_torch::set_grad(parameter, &view(&gradients)?)?;
        }
        Ok(Self {
            layout,
            values,
            gradients,
        })
    }
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
    use tch::Device;

    use super::*;

    fn parameters(sizes: &[(i64, i64)]) -> Vec<(String, Tensor)> {
        sizes
            .iter()
            .enumerate()
            .map(|(index, &(rows, columns))| {
                // One dimension of every third: these do not decay.
                let shape: &[i64] = if index % 3 == 2 {
                    &[rows]
                } else {
                    &[rows, columns]
                };
                let tensor = Tensor::rand(shape, (Kind::Float, Device::Cpu));
                (format!("p{index}.weight"), tensor.set_requires_grad(true))
            })
            .collect()
    }

    #[test]
    fn parameters_keep_their_values_and_share_the_vector() {
        let parameters = parameters(&[(3, 5), (7, 2), (9, 1), (4, 4)]);
        let before: Vec<Tensor> = parameters.iter().map(|(_, p)| p.detach().copy()).collect();
        let elsewhere: Vec<Tensor> = parameters.iter().map(|(_, p)| p.shallow_clone()).collect();
        let layout = FlatLayout::of(&parameters);
        let padded = layout.num_elements();
        let flat = FlatParameters::take_over(layout, &parameters, padded).unwrap();
        for (index, old) in before.iter().enumerate() {
            assert!(elsewhere[index].equal(old));
        }
        let loss = elsewhere
            .iter()
            .map(|p| (p * p).sum(Kind::Float))
            .reduce(|sum, part| sum + part)
            .unwrap();
        loss.backward();
        loss_gradient_is_in_the_vector(&flat, &before);
        let _no_grad = tch::no_grad_guard();
        let _ = flat.values.shallow_clone().fill_(2.0);
        assert!(elsewhere.iter().all(|p| p.equal(&p.full_like(2.0))));
    }

    fn loss_gradient_is_in_the_vector(flat: &FlatParameters, before: &[Tensor]) {
        for place in flat.layout.places() {
            let index: usize = place.name[1..2].parse().unwrap();
            let range = place.start..place.start + place.num_elements();
            let gradient = stretch(&flat.gradients, &range).unwrap();
            let expected = before[index].flatten(0, -1) * 2.0;
            assert!(gradient.allclose(&expected, 1e-6, 1e-6, false), "{place:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn parts_of_all_ranks_make_the_vector(
            sizes in prop::collection::vec((1_i64..40, 1_i64..40), 1..9),
            num_ranks in 1_usize..9,
            bucket_elements in 1_usize..3000,
        ) {
            let layout = FlatLayout::of(&parameters(&sizes));
            let cuts = Cuts::new(layout.num_elements(), num_ranks, bucket_elements);
            let mut seen = vec![0; cuts.padded_elements()];
            for rank in 0..num_ranks {
                let owned = cuts.owned(rank);
                let num_owned: usize = owned.iter().map(Range::len).sum();
                prop_assert_eq!(num_owned * num_ranks, cuts.padded_elements());
                let mut next = 0;
                for segment in segments(&layout, &owned) {
                    prop_assert_eq!(segment.owned_start, next);
                    next += segment.elements.len();
                    for element in segment.elements {
                        seen[element] += 1;
                        prop_assert_eq!(segment.decays, element < layout.num_decayed);
                    }
                }
                prop_assert_eq!(next, num_owned);
            }
            prop_assert!(seen.iter().all(|&count| count == 1));
            prop_assert!(cuts.padded_elements() - layout.num_elements() < ALIGNMENT * num_ranks);
        }

        #[test]
        fn places_do_not_overlap(sizes in prop::collection::vec((1_i64..40, 1_i64..40), 1..9)) {
            let layout = FlatLayout::of(&parameters(&sizes));
            let mut end = 0;
            for place in layout.places() {
                prop_assert!(place.start >= end && place.start % ALIGNMENT == 0);
                end = place.start + place.num_elements();
            }
            prop_assert!(end <= layout.num_elements());
        }
    }
}
