//! Rows on disk: problems, supervised pairs, episodes.
//!
//! A file says in its metadata which kind of rows it holds, is written whole or not at all, and is read without trust:
//! whatever a damaged file makes the Parquet library do becomes an [`Error`](crate::Error) that names the file.

mod episodes;
mod pairs;
mod problems;
mod table;

pub use self::episodes::{EpisodeRecord, read_episodes, write_episodes};
pub use self::pairs::{Role, SftPair, Span, read_sft_pairs, write_sft_pairs};
pub use self::problems::{read_problems, write_problems};
