//! Training rows as bytes, for another process of the same build.

use crate::row::{EpisodeIndex, RowLabel, TrainingRow};
use crate::tokenizer::TokenId;
use crate::{Error, Result};

impl TrainingRow {
    /// Appends the row to `bytes`.
    pub fn write_bytes(&self, bytes: &mut Vec<u8>) {
        let len = u32::try_from(self.len()).unwrap_or(u32::MAX);
        let has_logprobs = u8::from(self.logprobs().is_some());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.push(has_logprobs);
        bytes.push(match self.label() {
            RowLabel::First => 0,
            RowLabel::Second => 1,
        });
        bytes.extend_from_slice(&self.advantage().to_le_bytes());
        bytes.extend_from_slice(&self.episode().0.to_le_bytes());
        for id in self.ids() {
            bytes.extend_from_slice(&id.0.to_le_bytes());
        }
        bytes.extend(self.loss_mask().iter().map(|&trained| u8::from(trained)));
        for logprob in self.logprobs().unwrap_or_default() {
            bytes.extend_from_slice(&logprob.to_le_bytes());
        }
    }

    /// Takes a row that [`Self::write_bytes`] wrote off the front of `bytes`.
    ///
    /// # Errors
    /// When `bytes` does not begin with a row.
    pub fn read_bytes(bytes: &mut &[u8]) -> Result<Self> {
        let len = u32::from_le_bytes(take(bytes)?) as usize;
        let [has_logprobs, label] = take(bytes)?;
        let label = match label {
            0 => RowLabel::First,
            _ => RowLabel::Second,
        };
        let advantage = f32::from_le_bytes(take(bytes)?);
        let episode = EpisodeIndex(u32::from_le_bytes(take(bytes)?));
        let word = |chunk: &[u8]| [chunk[0], chunk[1], chunk[2], chunk[3]];
        let ids = take_slice(bytes, 4 * len)?.chunks_exact(4);
        let ids = ids
            .map(|chunk| TokenId(u32::from_le_bytes(word(chunk))))
            .collect();
        let loss_mask = take_slice(bytes, len)?
            .iter()
            .map(|&byte| byte != 0)
            .collect();
        if has_logprobs == 0 {
            return Ok(Self::sft_masked(ids, loss_mask)?.with_label(label));
        }
        let logprobs = take_slice(bytes, 4 * len)?.chunks_exact(4);
        let logprobs = logprobs
            .map(|chunk| f32::from_le_bytes(word(chunk)))
            .collect();
        Ok(Self::policy(ids, loss_mask, logprobs, advantage, episode)?.with_label(label))
    }
}

fn take_slice<'a>(bytes: &mut &'a [u8], len: usize) -> Result<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len).ok_or(Error::RowBytes)?;
    *bytes = rest;
    Ok(taken)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk().ok_or(Error::RowBytes)?;
    *bytes = rest;
    Ok(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        let ids: Vec<TokenId> = [3, 1_000_000, 7].map(TokenId).into();
        let mask = vec![false, true, true];
        let rows = [
            TrainingRow::policy(
                ids.clone(),
                mask.clone(),
                vec![0.0, -1.5, -0.1],
                -0.3,
                EpisodeIndex(9),
            )
            .unwrap()
            .with_label(RowLabel::Second),
            TrainingRow::sft_masked(ids, mask).unwrap(),
        ];
        let mut bytes = Vec::new();
        for row in &rows {
            row.write_bytes(&mut bytes);
        }
        let mut rest = bytes.as_slice();
        for row in &rows {
            assert_eq!(TrainingRow::read_bytes(&mut rest).unwrap(), *row);
        }
        assert!(rest.is_empty());
        for len in 0..bytes.len() / 2 {
            assert!(TrainingRow::read_bytes(&mut &bytes[..len]).is_err());
        }
    }
}
