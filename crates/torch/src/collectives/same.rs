//! Finding ranks that have come to disagree.

use std::fmt;

/// Something that all ranks must agree on and do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is.
    pub label: String,
    /// The digests and who has them, the rarest first; none for ranks that compare something else.
    pub groups: Vec<(Option<u64>, Vec<usize>)>,
}

impl Difference {
    /// From each rank's label and digest, in the order of the ranks; nothing if all agree with `label_digest`.
    pub(super) fn find(label: &str, label_digest: u64, values: &[(u64, u64)]) -> Option<Self> {
        let mut groups: Vec<(Option<u64>, Vec<usize>)> = Vec::new();
        for (rank, &(rank_label, digest)) in values.iter().enumerate() {
            let value = (rank_label == label_digest).then_some(digest);
            match groups.iter_mut().find(|(other, _)| *other == value) {
                Some((_, ranks)) => ranks.push(rank),
                None => groups.push((value, vec![rank])),
            }
        }
        if groups.len() < 2 {
            return None;
        }
        groups.sort_by_key(|(_, ranks)| ranks.len());
        Some(Difference {
            label: label.to_owned(),
            groups,
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` differs between ranks: ", self.label)?;
        for (index, (value, ranks)) in self.groups.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            f.write_str(if ranks.len() == 1 { "rank " } else { "ranks " })?;
            for (index, rank) in ranks.iter().enumerate() {
                if index > 0 {
                    f.write_str(", ")?;
                }
                write!(f, "{rank}")?;
            }
            let have = if ranks.len() == 1 { "has" } else { "have" };
            match value {
                Some(digest) => write!(f, " {have} {digest:016x}")?,
                None if ranks.len() == 1 => f.write_str(" compares something else")?,
                None => f.write_str(" compare something else")?,
            }
        }
        Ok(())
    }
}

/// FNV-1a, the same on every machine.
pub(super) fn digest_of(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_are_named_first() {
        let label = digest_of("data order");
        let find = |values: &[(u64, u64)]| Difference::find("data order", label, values);
        assert_eq!(find(&[(label, 7), (label, 7)]), None);
        let difference = find(&[(label, 7), (label, 8), (label, 7), (1, 7)]).unwrap();
        assert_eq!(
            difference.to_string(),
            "`data order` differs between ranks: rank 1 has 0000000000000008; rank 3 compares something else; \
             ranks 0, 2 have 0000000000000007"
        );
    }
}
