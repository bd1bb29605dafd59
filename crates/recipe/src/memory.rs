//! Memory budgets.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Units of a budget in bytes, the largest first.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// Memory budget of a part of the program.
///
/// As text: `auto`, a share of the free memory as `70%`, or bytes as `24GiB`, `512MiB` or `4096`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum MemoryBudget {
    /// Chosen from the memory that is free.
    #[default]
    Auto,
    /// A share of the memory that is free, above 0 and at most 1.
    Share(f64),
    /// Bytes, at least 1.
    Bytes(u64),
}

impl MemoryBudget {
    /// Bytes that it allows where `free_bytes` are free; `None` for no limit.
    ///
    /// # Errors
    /// For a share of memory that cannot be told.
    pub fn limit_bytes(self, free_bytes: Option<u64>) -> Result<Option<u64>, String> {
        match self {
            Self::Auto => Ok(None),
            Self::Bytes(bytes) => Ok(Some(bytes)),
            Self::Share(share) => {
                let free = free_bytes.ok_or_else(|| {
                    format!("`{self}` of the free memory is not known on this device; give bytes")
                })?;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a share of a count of bytes"
                )]
                Ok(Some((free as f64 * share) as u64))
            }
        }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Auto => f.write_str("auto"),
            // Rounded, or 0.29 would come out as 28.999999999999996.
            Self::Share(share) => write!(f, "{}%", (share * 1e11).round() / 1e9),
            Self::Bytes(bytes) => {
                let is_whole = |shift: u32| bytes > 0 && bytes.trailing_zeros() >= shift;
                match UNITS.into_iter().find(|&(_, shift)| is_whole(shift)) {
                    Some((unit, shift)) => write!(f, "{}{unit}", bytes >> shift),
                    None => write!(f, "{bytes}"),
                }
            }
        }
    }
}

impl FromStr for MemoryBudget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "must be `auto`, a share such as `70%`, or a size such as `24GiB` or `512MiB`"
                .to_owned()
        };
        let text = text.trim();
        if text == "auto" {
            return Ok(Self::Auto);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| wrong())?;
            let is_share = percent > 0.0 && percent <= 100.0;
            return is_share
                .then_some(Self::Share(percent / 100.0))
                .ok_or_else(wrong);
        }
        let with_unit = UNITS
            .into_iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)));
        let (digits, shift) = with_unit.unwrap_or((text, 0));
        let number: u64 = digits.trim().parse().map_err(|_| wrong())?;
        number
            .checked_mul(1 << shift)
            .filter(|&bytes| bytes > 0)
            .map(Self::Bytes)
            .ok_or_else(wrong)
    }
}

impl TryFrom<String> for MemoryBudget {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MemoryBudget> for String {
    fn from(budget: MemoryBudget) -> Self {
        budget.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_read_back_as_written() {
        for (text, budget) in [
            ("auto", MemoryBudget::Auto),
            ("70%", MemoryBudget::Share(0.7)),
            ("100%", MemoryBudget::Share(1.0)),
            ("24GiB", MemoryBudget::Bytes(24 << 30)),
            ("512MiB", MemoryBudget::Bytes(512 << 20)),
            ("1000", MemoryBudget::Bytes(1000)),
            ("1KiB", MemoryBudget::Bytes(1024)),
        ] {
            assert_eq!(text.parse(), Ok(budget), "{text}");
            assert_eq!(budget.to_string().parse(), Ok(budget), "{text}");
        }
        assert_eq!(" 3 GiB".parse(), Ok(MemoryBudget::Bytes(3 << 30)));
        assert_eq!(MemoryBudget::Bytes(1536 << 20).to_string(), "1536MiB");
        for text in ["29%", "57%", "0.1%", "100%"] {
            assert_eq!(text.parse::<MemoryBudget>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_budget_is_refused() {
        for text in [
            "",
            "0",
            "-1",
            "0%",
            "101%",
            "NaN%",
            "12GB",
            "GiB",
            "1.5GiB",
            "99999999999TiB",
            "all",
        ] {
            let error = text.parse::<MemoryBudget>().unwrap_err();
            assert!(error.contains("`70%`"), "{text}: {error}");
        }
    }

    #[test]
    fn limits_are_bytes_shares_or_none() {
        let limit = |text: &str, free| text.parse::<MemoryBudget>().unwrap().limit_bytes(free);
        assert_eq!(limit("auto", None), Ok(None));
        assert_eq!(limit("2KiB", None), Ok(Some(2048)));
        assert_eq!(limit("25%", Some(4096)), Ok(Some(1024)));
        assert!(limit("25%", None).unwrap_err().contains("`25%`"));
    }
}
