//! The trained parameters as one vector, cut into parts that ranks own.
//!
//! The vector is a row of units: what lies before the first layer and after the last, then layer after layer. In a unit,
//! parameters that decay come first, each at a multiple of `ALIGNMENT` elements. Where a parameter lies depends on names and
//! shapes alone, not on the number of ranks or on how it is shared out: a checkpoint addresses moments by these slots.
//!
//! Shape legend: `flat` = elements of the vector, gaps included; `owned` = elements that one rank owns, padding included.

mod finite;
mod layout;
mod shards;
mod vector;

pub(crate) use finite::first_non_finite;
pub use layout::{FlatLayout, ParameterSlot, ROOT, Unit, unit_of_layer};
pub use shards::{BucketCuts, Piece, Segment, UnitCuts, segments};
pub use vector::{narrow, signed};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::layout::unit_of;
    use super::vector::ALIGNMENT;
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
                    let units = layout.units().iter();
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
                for slot in layout.slots_of(index) {
                    prop_assert_eq!(unit_of(&slot.name), index);
                    let elements = slot.elements();
                    prop_assert!(elements.start >= end && elements.start % ALIGNMENT == 0);
                    prop_assert!(elements.start >= unit.elements.start);
                    end = elements.end;
                    prop_assert!(end <= unit.elements.end);
                }
            }
            prop_assert_eq!(layout.slots().len(), sizes.len());
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
            .slots()
            .iter()
            .map(|slot| slot.name.as_str())
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
