//! Rows shared out over ranks by predicted cost, so that no rank waits for the one with the longest rows.

use asyncthink_data::TrainingRow;
use asyncthink_distributed::Ranks;
use asyncthink_model::ModelConfig;

use crate::costs::pack_rows;
use crate::error::{Error, Result};

/// This rank's rows of a batch that all ranks know.
pub fn rows_of_rank(
    rows: &[TrainingRow],
    config: &ModelConfig,
    share_prefixes: bool,
    ranks: &Ranks,
) -> Vec<TrainingRow> {
    let all: Vec<&TrainingRow> = rows.iter().collect();
    let own = members_of_rank(&all, config, share_prefixes, ranks);
    own.into_iter().map(|row| rows[row].clone()).collect()
}

/// Exchanges rows, each with its weight in the loss; a collective. Together the ranks have what they had before.
///
/// Every rank gets all rows and keeps some: ids, masks and log-probabilities, nine bytes a token.
///
/// # Errors
/// When a rank is lost.
pub(crate) fn redistribute(
    own: &[(&TrainingRow, f64)],
    config: &ModelConfig,
    share_prefixes: bool,
    ranks: &Ranks,
) -> Result<Vec<(TrainingRow, f64)>> {
    let mut bytes = Vec::new();
    for (row, weight) in own {
        bytes.extend_from_slice(&weight.to_le_bytes());
        row.write_bytes(&mut bytes);
    }
    let mut all = Vec::new();
    for of_rank in ranks.gather_bytes(&bytes)? {
        let mut rest = of_rank.as_slice();
        while let Some((weight, after)) = rest.split_first_chunk() {
            rest = after;
            let row = TrainingRow::read_bytes(&mut rest);
            let row = row.map_err(|error| {
                Error::stage("redistributing rows over ranks", error.to_string())
            })?;
            all.push((row, f64::from_le_bytes(*weight)));
        }
    }
    let rows: Vec<&TrainingRow> = all.iter().map(|(row, _)| row).collect();
    let mut is_own = vec![false; rows.len()];
    for row in members_of_rank(&rows, config, share_prefixes, ranks) {
        is_own[row] = true;
    }
    let mut is_own = is_own.into_iter();
    all.retain(|_| is_own.next().unwrap_or(false));
    Ok(all)
}

/// Indices of the rows that this rank computes.
fn members_of_rank(
    rows: &[&TrainingRow],
    config: &ModelConfig,
    share_prefixes: bool,
    ranks: &Ranks,
) -> Vec<usize> {
    let shares = pack_rows(rows, config, share_prefixes, usize::MAX, ranks.world_size());
    let own = shares
        .into_iter()
        .filter(|share| share.worker == ranks.rank());
    let mut members: Vec<usize> = own.flat_map(|share| share.rows).collect();
    members.sort_unstable();
    members
}
