//! Segments of a packed batch: which tokens belong together, and which earlier ones they attend to.

use std::ops::Range;

use crate::error::{Error, Result};

/// A run of tokens of a packed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Tokens; at least one.
    pub len: i64,
    /// Index of the earlier segment that this one continues; `None` for one that starts at position 0.
    pub prefix: Option<usize>,
}

/// Segments that lie end to end in a packed batch and form trees: a token attends to all tokens of the segments that its own one
/// continues, and causally to its own one. Positions go on from the end of the prefix.
///
/// Sequences that begin alike share their beginning as one segment, which is computed once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "segments are what it is made of")]
pub struct Segments {
    segments: Vec<Segment>,
    lens: Vec<i64>,
    prefixes: Vec<i64>,
    /// First token of each segment in the batch, and the number of tokens at the end.
    starts: Vec<i64>,
    /// Position of the first token of each segment: tokens of its prefixes.
    first_positions: Vec<i64>,
}

impl Segments {
    /// Segments in the order in which they lie in the batch.
    ///
    /// # Errors
    /// When a segment is empty, or its prefix does not come before it.
    pub fn new(segments: Vec<Segment>) -> Result<Self> {
        let mut starts = Vec::with_capacity(segments.len() + 1);
        let mut first_positions: Vec<i64> = Vec::with_capacity(segments.len());
        let mut start: i64 = 0;
        for (index, segment) in segments.iter().enumerate() {
            let first_position = match segment.prefix {
                None => 0,
                Some(prefix) if prefix < index => first_positions[prefix] + segments[prefix].len,
                Some(prefix) => {
                    return Err(Error::Segments(format!(
                        "segment {index} continues segment {prefix}, which does not come before it"
                    )));
                }
            };
            if segment.len < 1 {
                return Err(Error::Segments(format!(
                    "segment {index} has {} tokens",
                    segment.len
                )));
            }
            starts.push(start);
            first_positions.push(first_position);
            start += segment.len;
        }
        starts.push(start);
        let lens = segments.iter().map(|segment| segment.len).collect();
        let index = |index| i64::try_from(index).unwrap_or(i64::MAX);
        let prefixes = segments
            .iter()
            .map(|segment| segment.prefix.map_or(-1, index))
            .collect();
        Ok(Self {
            segments,
            lens,
            prefixes,
            starts,
            first_positions,
        })
    }

    /// Sequences of these lengths that share nothing.
    ///
    /// # Errors
    /// When a length is below one.
    pub fn separate(lengths: &[i64]) -> Result<Self> {
        let separate = |&len| Segment { len, prefix: None };
        Self::new(lengths.iter().map(separate).collect())
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Tokens of all segments.
    pub fn num_tokens(&self) -> i64 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Whether any segment continues another one.
    pub fn has_prefixes(&self) -> bool {
        self.segments.iter().any(|segment| segment.prefix.is_some())
    }

    /// The segments, in the order of the batch.
    pub fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// Tokens of each segment.
    pub fn lens(&self) -> &[i64] {
        &self.lens
    }

    /// Index of the segment that each one continues, or -1.
    pub fn prefixes(&self) -> &[i64] {
        &self.prefixes
    }

    /// Tokens of a segment, as a range of the batch.
    pub fn range(&self, index: usize) -> Range<i64> {
        self.starts[index]..self.starts[index + 1]
    }

    /// Position of a segment's first token: how many tokens of prefixes its tokens attend to.
    pub fn first_position(&self, index: usize) -> i64 {
        self.first_positions[index]
    }

    /// The segments that a token of segment `index` attends to: its prefixes from position 0 on, then itself.
    pub fn chain(&self, index: usize) -> Vec<usize> {
        let next = |&index: &usize| self.segments[index].prefix;
        let mut chain: Vec<usize> = std::iter::successors(Some(index), next).collect();
        chain.reverse();
        chain
    }

    /// Position of every token of the batch in its sequence.
    pub fn positions(&self) -> Vec<i64> {
        self.segments
            .iter()
            .zip(&self.first_positions)
            .flat_map(|(segment, &first)| first..first + segment.len)
            .collect()
    }

    /// Pairs of a token and one that it attends to.
    pub fn num_pairs(&self) -> i64 {
        self.segments
            .iter()
            .zip(&self.first_positions)
            .map(|(segment, &first)| segment.len * first + segment.len * (segment.len + 1) / 2)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(len: i64, prefix: Option<usize>) -> Segment {
        Segment { len, prefix }
    }

    #[test]
    fn positions_go_on_from_the_end_of_the_prefix() {
        let segments = Segments::new(vec![
            segment(3, None),
            segment(2, Some(0)),
            segment(2, None),
            segment(1, Some(1)),
            segment(2, Some(0)),
        ])
        .unwrap();
        assert_eq!(segments.positions(), [0, 1, 2, 3, 4, 0, 1, 5, 3, 4]);
        assert_eq!(segments.num_tokens(), 10);
        assert_eq!(segments.chain(3), [0, 1, 3]);
        assert_eq!((segments.range(3), segments.first_position(3)), (7..8, 5));
        let pairs: i64 = segments
            .positions()
            .iter()
            .map(|position| position + 1)
            .sum();
        assert_eq!(segments.num_pairs(), pairs);
        assert!(segments.has_prefixes());
        assert!(!Segments::separate(&[4, 1]).unwrap().has_prefixes());
    }

    #[test]
    fn segments_that_contradict_each_other_are_refused() {
        assert!(Segments::separate(&[3, 0]).is_err());
        assert!(Segments::new(vec![segment(2, Some(0))]).is_err());
        assert!(Segments::new(vec![segment(2, Some(1)), segment(2, None)]).is_err());
        assert!(Segments::new(Vec::new()).unwrap().is_empty());
    }
}
