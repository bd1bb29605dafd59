//! All different ways to reach a value with exactly the numbers of one set.
//!
//! The search meets in the middle. Sets of two or three numbers have a table of every value they can take; a larger set reaches a wanted value by undoing its last operation with each value of its smaller part,
//! which leaves a wanted value for the larger part. One expression per operator counts is kept.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;

use super::expr::Expr;
use super::operator::{Operator, OperatorCounts};
use super::rational::Rational;

/// Sets of at most this many numbers are tabulated in a search of `num_numbers`; larger ones are searched.
///
/// Two numbers take 8 values, three about 150, four about 2,500. A table of three pays once it is used by many
/// sets of four, a table of four never does.
fn max_table_numbers(num_numbers: usize) -> u32 {
    if num_numbers <= 4 { 2 } else { 3 }
}

/// Which numbers of the set: bit `i` stands for its `i`-th number.
type Mask = u32;

/// One expression for each operator counts, in the order of the counts.
pub(crate) type Hits = BTreeMap<OperatorCounts, Expr>;

/// A value that a set of numbers can take, with one way to get it for each operator counts.
#[derive(Clone, Copy)]
struct Entry {
    value: Rational,
    operators: OperatorCounts,
    origin: Origin,
}

#[derive(Clone, Copy)]
enum Origin {
    Number(i64),
    Binary {
        operator: Operator,
        left: EntryRef,
        right: EntryRef,
    },
}

/// An entry of the table of `mask`.
#[derive(Clone, Copy)]
struct EntryRef {
    mask: Mask,
    index: usize,
}

/// On which side of an operator the unknown part stands.
#[derive(Clone, Copy)]
enum Unknown {
    Left,
    Right,
}

/// The search within one set of numbers.
pub(crate) struct SubsetSolver<'a> {
    numbers: &'a [i64],
    /// By mask; each sorted by value, then operator counts.
    tables: Vec<OnceCell<Vec<Entry>>>,
    max_table_numbers: u32,
    num_steps: Cell<u64>,
    max_steps: u64,
}

impl<'a> SubsetSolver<'a> {
    pub(crate) fn new(numbers: &'a [i64], max_steps: u64) -> Self {
        Self {
            numbers,
            tables: vec![OnceCell::new(); 1 << numbers.len()],
            max_table_numbers: max_table_numbers(numbers.len()),
            num_steps: Cell::new(0),
            max_steps,
        }
    }

    /// Expressions of all the numbers with the value `target`, one for each possible operator counts.
    pub(crate) fn solve(&self, target: Rational) -> Hits {
        let full: Mask = (1 << self.numbers.len()) - 1;
        match self.numbers {
            [] => Hits::new(),
            [_] => self.values(full, target).into_iter().collect(),
            _ => self.reach(full, target),
        }
    }

    /// Values computed or looked up so far.
    pub(crate) fn num_steps(&self) -> u64 {
        self.num_steps.get()
    }

    /// Counts one step; `false` when the limit is reached.
    fn step(&self) -> bool {
        self.num_steps.set(self.num_steps.get() + 1);
        self.num_steps.get() < self.max_steps
    }

    /// The expressions of the numbers in `mask` with the value `wanted`.
    fn values(&self, mask: Mask, wanted: Rational) -> Vec<(OperatorCounts, Expr)> {
        if mask.count_ones() > self.max_table_numbers {
            return self.reach(mask, wanted).into_iter().collect();
        }
        let table = self.table(mask);
        let start = table.partition_point(|entry| order(entry.value) < order(wanted));
        let equal = table[start..]
            .iter()
            .take_while(|entry| entry.value == wanted);
        equal
            .enumerate()
            .map(|(offset, entry)| {
                let index = start + offset;
                (entry.operators, self.expr(EntryRef { mask, index }))
            })
            .collect()
    }

    /// As [`Self::values`] for two numbers or more, by splitting the set at the last operation.
    fn reach(&self, mask: Mask, wanted: Rational) -> Hits {
        let mut hits = Hits::new();
        for (large, small) in splits(mask) {
            for (index, entry) in self.table(small).iter().enumerate() {
                if !self.step() {
                    return hits;
                }
                let known = EntryRef { mask: small, index };
                self.undo(large, known, entry, wanted, &mut hits);
            }
        }
        hits
    }

    /// Adds all `x op known = wanted` and `known op x = wanted` with `x` made of the numbers in `large`.
    fn undo(&self, large: Mask, known: EntryRef, entry: &Entry, wanted: Rational, hits: &mut Hits) {
        let value = entry.value;
        let mut add = |operator, side, x: (OperatorCounts, Expr)| {
            let (operators, x) = x;
            let operators = OperatorCounts::combine(operators, operator, entry.operators);
            hits.entry(operators).or_insert_with(|| match side {
                Unknown::Left => Expr::binary(operator, x, self.expr(known)),
                Unknown::Right => Expr::binary(operator, self.expr(known), x),
            });
        };
        let inverses = [
            (Operator::Add, Unknown::Left, wanted.checked_sub(value)),
            (Operator::Subtract, Unknown::Left, wanted.checked_add(value)),
            (
                Operator::Subtract,
                Unknown::Right,
                value.checked_sub(wanted),
            ),
            (Operator::Multiply, Unknown::Left, wanted.checked_div(value)),
            (Operator::Divide, Unknown::Left, wanted.checked_mul(value)),
            (Operator::Divide, Unknown::Right, value.checked_div(wanted)),
        ];
        for (operator, side, unknown) in inverses {
            // An inverse that does not fit is no value that an expression could have.
            let Ok(unknown) = unknown else { continue };
            // With a zero on either side of `/` the inverse is no solution: x / 0, or 0 / x = wanted.
            if matches!(operator, Operator::Divide) && value.is_zero() {
                continue;
            }
            for x in self.values(large, unknown) {
                add(operator, side, x);
            }
        }
        if value.is_zero() && wanted.is_zero() {
            // Zero times anything, and zero divided by anything but zero.
            for (index, any) in self.table(large).iter().enumerate() {
                let x = EntryRef { mask: large, index };
                add(
                    Operator::Multiply,
                    Unknown::Left,
                    (any.operators, self.expr(x)),
                );
                if !any.value.is_zero() {
                    add(
                        Operator::Divide,
                        Unknown::Right,
                        (any.operators, self.expr(x)),
                    );
                }
            }
        }
    }

    /// Every value of the numbers in `mask`, whatever their count; incomplete only once the steps are used up.
    fn table(&self, mask: Mask) -> &[Entry] {
        self.tables[mask as usize].get_or_init(|| {
            if mask.is_power_of_two() {
                let number = self.numbers[mask.trailing_zeros() as usize];
                return vec![Entry {
                    value: Rational::from(number),
                    operators: OperatorCounts::default(),
                    origin: Origin::Number(number),
                }];
            }
            let mut entries = self.combinations(mask);
            // Stable, so that which of several equal ways stays is decided by the order of the search.
            entries.sort_by_key(|entry| (order(entry.value), entry.operators));
            entries.dedup_by_key(|entry| (entry.value, entry.operators));
            entries
        })
    }

    fn combinations(&self, mask: Mask) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (large, small) in splits(mask) {
            for (index, left) in self.table(large).iter().enumerate() {
                let left_ref = EntryRef { mask: large, index };
                for (index, right) in self.table(small).iter().enumerate() {
                    let right_ref = EntryRef { mask: small, index };
                    if !self.step() {
                        return entries;
                    }
                    let mut add = |operator: Operator, left: (&Entry, _), right: (&Entry, _)| {
                        // A combination without a value is none.
                        if let Ok(value) = operator.apply(left.0.value, right.0.value) {
                            entries.push(Entry {
                                value,
                                operators: OperatorCounts::combine(
                                    left.0.operators,
                                    operator,
                                    right.0.operators,
                                ),
                                origin: Origin::Binary {
                                    operator,
                                    left: left.1,
                                    right: right.1,
                                },
                            });
                        }
                    };
                    let (left, right) = ((left, left_ref), (right, right_ref));
                    add(Operator::Add, left, right);
                    add(Operator::Multiply, left, right);
                    for operator in [Operator::Subtract, Operator::Divide] {
                        add(operator, left, right);
                        add(operator, right, left);
                    }
                }
            }
        }
        entries
    }

    fn expr(&self, at: EntryRef) -> Expr {
        match self.table(at.mask)[at.index].origin {
            Origin::Number(number) => Expr::Number(number),
            Origin::Binary {
                operator,
                left,
                right,
            } => Expr::binary(operator, self.expr(left), self.expr(right)),
        }
    }
}

/// Any total order of values serves the tables; this one needs no arithmetic.
fn order(value: Rational) -> (i128, i128) {
    value.parts()
}

/// The ways to part a set of at least two numbers in two, each once, the part with more numbers first.
fn splits(mask: Mask) -> impl Iterator<Item = (Mask, Mask)> {
    let lowest = mask & mask.wrapping_neg();
    // All proper parts that hold the lowest number, descending.
    let parts = std::iter::successors(Some((mask - 1) & mask), move |part| {
        (*part != 0).then(|| (part - 1) & mask)
    });
    parts
        .filter(move |part| part & lowest != 0)
        .map(move |part| {
            let other = mask & !part;
            if other.count_ones() > part.count_ones() {
                (other, part)
            } else {
                (part, other)
            }
        })
}
