//! Micro-batches: which rows are computed together.

mod prefixes;

use std::cmp::Reverse;

pub use prefixes::{MIN_SHARED_TOKENS, Prefixes};

use crate::row::TrainingRow;

/// Cost of computing rows, in one unit for all three.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowCosts {
    /// Of a token in everything but attention.
    pub token: f64,
    /// Of a pair of a token and one that it attends to.
    pub pair: f64,
    /// Of a trained token in the output head.
    pub trained: f64,
}

impl RowCosts {
    /// Attention costs alone: a token costs as much as the tokens before it.
    pub const PAIRS: Self = Self {
        token: 0.0,
        pair: 1.0,
        trained: 0.0,
    };

    /// Of a row of `len` tokens, the first `shared` of which are computed with another one.
    fn of(&self, size: RowSize, shared: usize) -> f64 {
        let pairs = |len: usize| len as f64 * (len as f64 + 1.0) / 2.0;
        self.token * size.len.saturating_sub(shared) as f64
            + self.pair * (pairs(size.len) - pairs(shared))
            + self.trained * size.num_trained as f64
    }
}

/// Tokens of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowSize {
    /// All of them.
    pub len: usize,
    /// Those that the output head computes.
    pub num_trained: usize,
}

impl RowSize {
    /// Those of a training row.
    pub fn of(row: &TrainingRow) -> Self {
        Self {
            len: row.len(),
            num_trained: row.num_trained(),
        }
    }
}

/// Rows of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedRows {
    /// Row indices, in the order in which the rows are laid out.
    pub rows: Vec<usize>,
    /// By row: how many tokens it has in common with the row before it, which are computed once. 0 for the first.
    pub shared: Vec<usize>,
    /// Predicted cost.
    pub cost: f64,
    /// The worker that computes it.
    pub worker: usize,
}

/// Packs rows into micro-batches.
#[derive(Clone, Debug)]
pub struct Packer<'a> {
    /// Tokens of each row.
    pub sizes: &'a [RowSize],
    /// Their common beginnings.
    pub prefixes: &'a Prefixes,
    /// Cost by which micro-batches and workers are balanced.
    pub costs: RowCosts,
}

/// Most numbers of micro-batches per worker that are tried beyond the fewest.
const MORE_ROUNDS: usize = 4;

/// Share of the cost that a further micro-batch per worker must save.
const WORTH_A_ROUND: f64 = 0.01;

impl Packer<'_> {
    /// Groups rows into micro-batches of at most `budget_tokens` computed tokens each, for `num_workers` that compute at the same
    /// time. A row that is longer than the budget gets a micro-batch of its own.
    ///
    /// Nothing is padded; what is balanced over micro-batches and workers is the predicted cost. Rows that begin alike are cut apart
    /// only between micro-batches, where what they share is computed once on either side; or they are spread one by one where that
    /// makes the slowest worker faster. The result depends on the arguments only.
    pub fn pack(&self, budget_tokens: usize, num_workers: usize) -> Vec<PackedRows> {
        if self.sizes.is_empty() {
            return Vec::new();
        }
        let (budget, num_workers) = (budget_tokens.max(1), num_workers.max(1));
        let mut best = self.deal(self.spread(budget, num_workers), num_workers);
        if !self.prefixes.is_none() {
            let (mut cut, mut slowest) = (None, makespan(&best, num_workers));
            for bins in self.cuts(budget, num_workers) {
                let dealt = self.deal(bins, num_workers);
                let makespan = makespan(&dealt, num_workers);
                // The first one, of the fewest micro-batches, need only be no slower than rows one by one.
                let limit = match cut {
                    None => slowest,
                    Some(_) => slowest * (1.0 - WORTH_A_ROUND),
                };
                if makespan <= limit {
                    slowest = makespan;
                    cut = Some(dealt);
                }
            }
            best = cut.unwrap_or(best);
        }
        best
    }

    fn size(&self, place: usize) -> RowSize {
        self.sizes[self.prefixes.order()[place]]
    }

    fn num_places(&self) -> usize {
        self.prefixes.order().len()
    }

    /// A number of micro-batches of which every worker gets as many.
    fn for_workers(&self, num_bins: usize, num_workers: usize) -> usize {
        let rounded = num_bins.max(1).next_multiple_of(num_workers);
        rounded.min(self.num_places())
    }

    /// Neighbours together: the order of the prefixes cut into few pieces, the costliest of which is as cheap as can be. Several
    /// numbers of pieces, fewest first.
    fn cuts(&self, budget: usize, num_workers: usize) -> impl Iterator<Item = Vec<Vec<usize>>> {
        let fewest = self.for_workers(self.cut_at(budget, f64::INFINITY).len(), num_workers);
        let more = (fewest / num_workers / 4).min(MORE_ROUNDS) * num_workers;
        let most = self.for_workers(fewest + more, num_workers);
        (fewest..=most)
            .step_by(num_workers)
            .map(move |num_bins| self.cut_evenly(budget, num_bins))
    }

    fn cut_evenly(&self, budget: usize, num_bins: usize) -> Vec<Vec<usize>> {
        let all = (0..self.num_places()).map(|place| self.costs.of(self.size(place), 0));
        let (mut low, mut high) = (0.0, all.sum::<f64>());
        let mut best = self.cut_at(budget, f64::INFINITY);
        for _ in 0..50 {
            let limit = f64::midpoint(low, high);
            let bins = self.cut_at(budget, limit);
            if bins.len() <= num_bins {
                best = bins;
                high = limit;
            } else {
                low = limit;
            }
        }
        best
    }

    /// Cuts the order of the prefixes wherever the next row would exceed the budget or a cost.
    fn cut_at(&self, budget: usize, limit: f64) -> Vec<Vec<usize>> {
        let mut bins: Vec<Vec<usize>> = Vec::new();
        let (mut tokens, mut cost) = (0, 0.0);
        for place in 0..self.num_places() {
            let (size, shared) = (self.size(place), self.prefixes.shared(place));
            let (more_tokens, more_cost) = (size.len - shared, self.costs.of(size, shared));
            match bins.last_mut() {
                Some(bin) if tokens + more_tokens <= budget && cost + more_cost <= limit => {
                    bin.push(place);
                    tokens += more_tokens;
                    cost += more_cost;
                }
                _ => {
                    bins.push(vec![place]);
                    (tokens, cost) = (size.len, self.costs.of(size, 0));
                }
            }
        }
        bins
    }

    /// Rows one by one, as if they shared nothing, in as few micro-batches as the greedy search finds room in.
    fn spread(&self, budget: usize, num_workers: usize) -> Vec<Vec<usize>> {
        let len = |place: usize| self.size(place).len.min(budget);
        let mut longest_first: Vec<usize> = (0..self.num_places()).collect();
        longest_first.sort_by_key(|&place| (Reverse(self.size(place).len), place));
        let fallback = first_fit(&longest_first, budget, len);
        let mut costliest_first: Vec<(usize, f64)> = (0..self.num_places())
            .map(|place| (place, self.costs.of(self.size(place), 0)))
            .collect();
        costliest_first.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let total: usize = longest_first.iter().map(|&place| len(place)).sum();
        let mut num_bins = total.div_ceil(budget);
        loop {
            let rounded = self.for_workers(num_bins, num_workers);
            if let Some(bins) = balanced(&costliest_first, budget, rounded, len) {
                break bins;
            }
            if rounded >= fallback.len() {
                break fallback;
            }
            num_bins = rounded + 1 + rounded / 64;
        }
    }

    /// Deals micro-batches out to the workers, costliest first to the worker with the least so far.
    fn deal(&self, bins: Vec<Vec<usize>>, num_workers: usize) -> Vec<PackedRows> {
        let mut bins: Vec<Vec<usize>> = bins.into_iter().filter(|bin| !bin.is_empty()).collect();
        for bin in &mut bins {
            bin.sort_unstable();
        }
        bins.sort_unstable_by_key(|bin| bin[0]);
        let mut packed: Vec<PackedRows> = bins
            .into_iter()
            .map(|places| {
                let shared = self.prefixes.shared_among(&places);
                let cost = places
                    .iter()
                    .zip(&shared)
                    .map(|(&place, &shared)| self.costs.of(self.size(place), shared))
                    .sum();
                let rows = places.iter().map(|&place| self.prefixes.order()[place]);
                PackedRows {
                    rows: rows.collect(),
                    shared,
                    cost,
                    worker: 0,
                }
            })
            .collect();
        let mut order: Vec<usize> = (0..packed.len()).collect();
        order.sort_by(|&a, &b| packed[b].cost.total_cmp(&packed[a].cost).then(a.cmp(&b)));
        let mut loads = vec![0.0; num_workers];
        for index in order {
            let worker = (0..num_workers)
                .min_by(|&a, &b| f64::total_cmp(&loads[a], &loads[b]))
                .unwrap_or(0);
            loads[worker] += packed[index].cost;
            packed[index].worker = worker;
        }
        packed
    }
}

/// Cost of the slowest worker.
fn makespan(packed: &[PackedRows], num_workers: usize) -> f64 {
    costs_of_workers(packed, num_workers)
        .into_iter()
        .fold(0.0, f64::max)
}

/// Cost of each worker's micro-batches.
pub fn costs_of_workers(packed: &[PackedRows], num_workers: usize) -> Vec<f64> {
    let mut loads = vec![0.0; num_workers];
    for bin in packed {
        loads[bin.worker] += bin.cost;
    }
    loads
}

/// Rows of these lengths that share nothing, as micro-batches of at most `budget_tokens` tokens each, balanced by attention.
pub fn pack(lengths: &[usize], budget_tokens: usize) -> Vec<Vec<usize>> {
    let sizes: Vec<RowSize> = lengths
        .iter()
        .map(|&len| RowSize {
            len,
            num_trained: 0,
        })
        .collect();
    let packer = Packer {
        sizes: &sizes,
        prefixes: &Prefixes::none(sizes.len()),
        costs: RowCosts::PAIRS,
    };
    let packed = packer.pack(budget_tokens, 1);
    packed.into_iter().map(|packed| packed.rows).collect()
}

/// First-fit decreasing: always succeeds.
fn first_fit(order: &[usize], budget: usize, len: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut used: Vec<usize> = Vec::new();
    for &place in order {
        let length = len(place);
        if let Some(bin) = used.iter().position(|&tokens| tokens + length <= budget) {
            bins[bin].push(place);
            used[bin] += length;
        } else {
            bins.push(vec![place]);
            used.push(length);
        }
    }
    bins
}

/// Costliest row first into the cheapest micro-batch that has room; `None` when a row fits nowhere.
fn balanced(
    costliest_first: &[(usize, f64)],
    budget: usize,
    num_bins: usize,
    len: impl Fn(usize) -> usize,
) -> Option<Vec<Vec<usize>>> {
    let mut bins = vec![Vec::new(); num_bins];
    let mut used = vec![0_usize; num_bins];
    let mut costs = vec![0.0_f64; num_bins];
    for &(place, cost) in costliest_first {
        let length = len(place);
        let bin = (0..num_bins)
            .filter(|&bin| used[bin] + length <= budget)
            .min_by(|&a, &b| costs[a].total_cmp(&costs[b]).then(used[a].cmp(&used[b])))?;
        bins[bin].push(place);
        used[bin] += length;
        costs[bin] += cost;
    }
    Some(bins)
}

#[cfg(test)]
mod tests;
