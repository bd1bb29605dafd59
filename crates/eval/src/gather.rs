//! What ranks sampled, put together on the first one.

use asyncthink_distributed::Ranks;
use asyncthink_rollout::GradedEpisode;

use crate::error::{Error, Result};

/// The episodes of all ranks, on the first of them: those of the problems of `indices` in turn, with so many samples each.
pub(crate) fn gather(
    own: Vec<GradedEpisode>,
    indices: &[usize],
    samples_per_problem: usize,
    ranks: &Ranks,
) -> Result<Option<Vec<GradedEpisode>>> {
    if ranks.is_alone() {
        return Ok(Some(own));
    }
    let bytes = serde_json::to_vec(&own).map_err(|error| wrong(error.to_string()));
    let shares = ranks.gather_bytes(&ranks.agree(bytes)?)?;
    let all = ranks
        .is_first()
        .then(|| join(&shares, indices, samples_per_problem));
    ranks.agree(all.transpose())
}

/// Reads the shares and makes sure that they are one episode per place.
fn join(
    shares: &[Vec<u8>],
    indices: &[usize],
    samples_per_problem: usize,
) -> Result<Vec<GradedEpisode>> {
    let mut all: Vec<GradedEpisode> = Vec::new();
    for (rank, share) in shares.iter().enumerate() {
        let share: Vec<GradedEpisode> = serde_json::from_slice(share)
            .map_err(|error| wrong(format!("those of rank {rank}: {error}")))?;
        all.extend(share);
    }
    let wanted = indices.len() * samples_per_problem;
    if all.len() != wanted {
        return Err(wrong(format!("{} instead of {wanted}", all.len())));
    }
    for (place, graded) in all.iter().enumerate() {
        let expected = (
            indices[place / samples_per_problem],
            place % samples_per_problem,
        );
        let found = (graded.episode.prompt_index, graded.episode.sample_index);
        if found != expected {
            let id = |(problem, sample): (usize, usize)| format!("p{problem}.s{sample}");
            let (found, expected) = (id(found), id(expected));
            return Err(wrong(format!("`{found}` in the place of `{expected}`")));
        }
    }
    Ok(all)
}

fn wrong(reason: String) -> Error {
    Error::Shares { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::graded;

    fn share(places: &[(usize, usize)]) -> Vec<u8> {
        let share: Vec<GradedEpisode> = places.iter().map(|&(p, s)| of(p, s)).collect();
        serde_json::to_vec(&share).unwrap()
    }

    fn of(problem: usize, sample: usize) -> GradedEpisode {
        let mut graded = graded(problem, 1, sample == 1);
        graded.episode.sample_index = sample;
        graded.accuracy = 1.0 / 3.0;
        graded
    }

    #[test]
    fn shares_come_back_to_the_bit() {
        let shares = [
            share(&[]),
            share(&[(0, 0), (0, 1)]),
            share(&[(4, 0), (4, 1)]),
        ];
        let expected = [(0, 0), (0, 1), (4, 0), (4, 1)].map(|(p, s)| of(p, s));
        assert_eq!(join(&shares, &[0, 4], 2).unwrap(), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let good = share(&[(0, 0), (0, 1)]);
        let other_code = String::from_utf8(good.clone()).unwrap();
        let other_code = other_code.replace("NoAnswer", "BadAnswer").into_bytes();
        for (second, reason) in [
            (share(&[(1, 0)]), "3 instead of 4"),
            (share(&[(1, 1), (1, 0)]), "`p1.s1` in the place of `p1.s0`"),
            (other_code, "those of rank 1: unknown variant `BadAnswer`"),
            (good[..40].to_vec(), "those of rank 1: EOF"),
        ] {
            let error = join(&[good.clone(), second], &[0, 1], 2)
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
