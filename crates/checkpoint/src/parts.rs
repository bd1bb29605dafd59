//! Names of the files of a checkpoint that ranks write: one per rank, all of which it needs.

use std::collections::BTreeSet;

/// Names of all files of which `names` has some: where a rank's part is there, those of the other ranks must be.
pub(crate) fn expected_parts<'a>(names: impl IntoIterator<Item = &'a String>) -> BTreeSet<String> {
    let mut expected = BTreeSet::new();
    for name in names {
        if let Some((before, world_size, after)) = of_rank(name) {
            expected.extend(
                (0..world_size).map(|rank| format!("{before}{rank}_of_{world_size}{after}")),
            );
        }
    }
    expected
}

/// Splits `trainer/optimizer/rank_1_of_4.safetensors` around its numbers.
fn of_rank(name: &str) -> Option<(&str, usize, &str)> {
    let start = name.rfind("/rank_")? + "/rank_".len();
    let (before, numbers) = name.split_at(start);
    let (numbers, after) = numbers.split_at(numbers.find('.')?);
    let (rank, world_size) = numbers.split_once("_of_")?;
    let (rank, world_size) = (rank.parse::<usize>().ok()?, world_size.parse().ok()?);
    (rank < world_size && name.starts_with("trainer/")).then_some((before, world_size, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_part_tells_of_the_others() {
        let expected = |name: &str| expected_parts(&[name.to_owned()]);
        assert_eq!(
            expected("trainer/optimizer/rank_1_of_2.safetensors"),
            [0, 1]
                .map(|rank| format!("trainer/optimizer/rank_{rank}_of_2.safetensors"))
                .into()
        );
        for name in [
            "model.safetensors",
            "rank_0_of_2.safetensors",
            "trainer/optimizer/rank_2_of_2.safetensors",
            "trainer/optimizer/rank_x_of_2.safetensors",
        ] {
            assert!(expected(name).is_empty(), "{name}");
        }
    }
}
