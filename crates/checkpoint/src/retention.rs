//! Which checkpoints stay.

/// Which checkpoints stay when a newer one is complete; the newest always does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest.
    pub num_newest: usize,
    /// So many of the best as well.
    pub num_best: usize,
    /// Metric that ranks them: a key of [`TrainerState::figures`](crate::TrainerState::figures).
    pub metric: &'static str,
    /// Whether the smallest figure is the best one.
    pub less_is_better: bool,
}

impl Retention {
    /// So many of the newest, whatever they are worth.
    pub fn newest(num_newest: usize) -> Self {
        Self {
            num_newest,
            num_best: 0,
            metric: "",
            less_is_better: true,
        }
    }

    /// Steps by their figures, the best one first; of equals the later one.
    pub(crate) fn ranking(&self, mut figures: Vec<(u64, f64)>) -> Vec<u64> {
        figures.sort_by(|(step, figure), (other_step, other)| {
            let order = figure.total_cmp(other);
            let order = if self.less_is_better {
                order
            } else {
                order.reverse()
            };
            order.then(other_step.cmp(step))
        });
        figures.into_iter().map(|(step, _)| step).collect()
    }

    /// Those of `steps`, ascending, that need not stay, given their ranking.
    pub(crate) fn superfluous(&self, steps: &[u64], ranking: &[u64]) -> Vec<u64> {
        let best = &ranking[..self.num_best.min(ranking.len())];
        let num_older = steps.len().saturating_sub(self.num_newest.max(1));
        let mut older = steps[..num_older].to_vec();
        older.retain(|step| !best.contains(step));
        older
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_or_more_is_better() {
        let figures = || vec![(1, 0.5), (2, -1.0), (3, 0.5), (4, 0.0), (5, -0.0)];
        let mut retention = Retention::newest(1);
        assert_eq!(retention.ranking(figures()), [2, 5, 4, 3, 1]);
        retention.less_is_better = false;
        assert_eq!(retention.ranking(figures()), [3, 1, 4, 5, 2]);
    }
}
