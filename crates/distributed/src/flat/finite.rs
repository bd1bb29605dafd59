//! Looking for values that are no numbers in what a rank owns.

use tch::{TchError, Tensor};

use super::layout::FlatLayout;
use super::shards::Piece;
use super::vector::narrow;

/// Name of the first parameter that has a value among `owned` which is not finite. One pass where all are.
///
/// # Shapes
/// `owned` f32 `[owned]`, as `pieces` say.
pub(crate) fn first_non_finite(
    owned: &Tensor,
    pieces: &[Piece],
    layout: &FlatLayout,
) -> Result<Option<String>, TchError> {
    if is_finite(owned)? {
        return Ok(None);
    }
    for piece in pieces {
        for slot in layout.slots() {
            let of_slot = slot.elements();
            let start = of_slot.start.max(piece.elements.start);
            let end = of_slot.end.min(piece.elements.end);
            if start >= end {
                continue;
            }
            let from = piece.owned_start + start - piece.elements.start;
            if !is_finite(&narrow(owned, &(from..from + end - start))?)? {
                return Ok(Some(slot.name.clone()));
            }
        }
    }
    // Padding belongs to no parameter.
    Ok(None)
}

fn is_finite(values: &Tensor) -> Result<bool, TchError> {
    Ok(values.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

#[cfg(test)]
mod tests {
    use super::super::BucketCuts;
    use super::*;

    #[test]
    fn the_parameter_is_named_on_the_rank_that_owns_the_value() {
        let shapes = [("a.weight", vec![5, 7]), ("b.weight", vec![40, 3])];
        let shapes = shapes.map(|(name, shape)| (name.to_owned(), shape));
        let layout = FlatLayout::new(&shapes);
        let cuts = BucketCuts::new(layout.num_elements(), 2, 64);
        for slot in layout.slots() {
            let element = slot.elements().end - 1;
            let mut found = Vec::new();
            for rank in 0..2 {
                let pieces = cuts.pieces(rank);
                let mut owned = vec![0_f32; cuts.owned_elements()];
                for piece in &pieces {
                    if piece.elements.contains(&element) {
                        owned[piece.owned_start + element - piece.elements.start] = f32::NAN;
                    }
                }
                let owned = Tensor::from_slice(&owned);
                found.extend(first_non_finite(&owned, &pieces, &layout).unwrap());
            }
            assert_eq!(found, [slot.name.as_str()]);
        }
    }
}
