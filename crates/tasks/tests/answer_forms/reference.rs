//! Trees of expressions, and what is right by the rules of the task, from the trees alone.

use asyncthink_tasks::mcd::{Expr, Operator, Problem, Rules, solve};

use crate::rng::Rng;

/// Numbers in ascending order, and how often each operator is used.
pub(crate) type Key = (Vec<i64>, [usize; 4]);

pub(crate) const SIGNS: [char; 4] = ['+', '-', '*', '/'];

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Tree {
    Number(i64),
    Node(char, Box<Tree>, Box<Tree>),
}

impl Tree {
    pub(crate) fn node(sign: char, left: Tree, right: Tree) -> Self {
        Self::Node(sign, Box::new(left), Box::new(right))
    }

    fn of(expr: &Expr) -> Self {
        match expr {
            Expr::Number(number) => Self::Number(*number),
            Expr::Binary {
                operator,
                left,
                right,
            } => {
                let at = Operator::ALL.iter().position(|one| one == operator);
                Self::node(
                    SIGNS[at.expect("one of four")],
                    Self::of(left),
                    Self::of(right),
                )
            }
        }
    }

    /// Numerator and denominator, the latter above zero; `None` for a division by zero.
    pub(crate) fn value(&self) -> Option<(i128, i128)> {
        let Self::Node(sign, left, right) = self else {
            let Self::Number(number) = self else {
                return None;
            };
            return Some((i128::from(*number), 1));
        };
        let (left, right) = (left.value()?, right.value()?);
        let (top, bottom) = match sign {
            '+' => (left.0 * right.1 + right.0 * left.1, left.1 * right.1),
            '-' => (left.0 * right.1 - right.0 * left.1, left.1 * right.1),
            '*' => (left.0 * right.0, left.1 * right.1),
            _ => (left.0 * right.1, left.1 * right.0),
        };
        if bottom == 0 {
            return None;
        }
        let (mut larger, mut smaller) = (top.abs(), bottom.abs());
        while smaller != 0 {
            (larger, smaller) = (smaller, larger % smaller);
        }
        let divisor = larger * bottom.signum();
        Some((top / divisor, bottom / divisor))
    }

    /// The value where it is a whole number that an expression can hold.
    pub(crate) fn natural(&self) -> Option<i64> {
        let (top, bottom) = self.value()?;
        (bottom == 1 && top >= 0).then(|| i64::try_from(top).ok())?
    }

    fn key(&self) -> Key {
        match self {
            Self::Number(number) => (vec![*number], [0; 4]),
            Self::Node(sign, left, right) => {
                let ((mut numbers, mut counts), (more, others)) = (left.key(), right.key());
                numbers.extend(more);
                numbers.sort_unstable();
                for (count, other) in counts.iter_mut().zip(others) {
                    *count += other;
                }
                let at = SIGNS.iter().position(|one| one == sign).expect("a sign");
                counts[at] += 1;
                (numbers, counts)
            }
        }
    }

    /// Same solution, operands in another order.
    pub(crate) fn shuffled(&self, rng: &mut Rng) -> Self {
        match self {
            Self::Number(_) => self.clone(),
            Self::Node(sign, left, right) => {
                let (left, right) = (left.shuffled(rng), right.shuffled(rng));
                if matches!(sign, '+' | '*') && rng.chance(50) {
                    Self::node(*sign, right, left)
                } else {
                    Self::node(*sign, left, right)
                }
            }
        }
    }

    /// The tree with one of its parts replaced, chosen at random among those that `replace` takes.
    pub(crate) fn with(
        &self,
        rng: &mut Rng,
        replace: &dyn Fn(&Tree) -> Option<Tree>,
    ) -> Option<Self> {
        let own = |rng: &mut Rng| replace(self).filter(|_| rng.chance(60));
        if let Some(tree) = own(rng) {
            return Some(tree);
        }
        if let Self::Node(sign, left, right) = self {
            let mut sides = [true, false];
            if rng.chance(50) {
                sides.reverse();
            }
            for is_left in sides {
                let side = if is_left { left } else { right };
                if let Some(new) = side.with(rng, replace) {
                    let (left, right) = if is_left {
                        (new, (**right).clone())
                    } else {
                        ((**left).clone(), new)
                    };
                    return Some(Self::node(*sign, left, right));
                }
            }
        }
        replace(self)
    }
}

/// A problem and trees that solve it.
pub(crate) struct Puzzle {
    pub(crate) problem: Problem,
    pub(crate) solutions: Vec<Tree>,
}

impl Puzzle {
    /// The key of a solution; `None` for what is none.
    pub(crate) fn key_if_right(&self, tree: &Tree) -> Option<Key> {
        let (numbers, counts) = tree.key();
        let rules = self.problem.rules;
        let mut left = self.problem.available_numbers.clone();
        let is_offered = numbers.iter().all(|number| {
            let at = left.iter().position(|one| one == number);
            at.map(|at| left.swap_remove(at)).is_some()
        });
        let is_right = is_offered
            && (rules.min_numbers..=rules.max_numbers).contains(&numbers.len())
            && tree.value() == Some((i128::from(self.problem.target), 1));
        is_right.then_some((numbers, counts))
    }
}

fn random_tree(numbers: &[i64], rng: &mut Rng) -> Tree {
    if let [number] = numbers {
        return Tree::Number(*number);
    }
    let (left, right) = numbers.split_at(1 + rng.below(numbers.len() - 1));
    let sign = *rng.pick(&SIGNS);
    Tree::node(sign, random_tree(left, rng), random_tree(right, rng))
}

/// Problems with solutions; some have targets below zero, some beyond a thousand.
pub(crate) fn puzzles(rng: &mut Rng, count: usize) -> Vec<Puzzle> {
    let mut puzzles = Vec::new();
    while puzzles.len() < count {
        let pool: Vec<i64> = (0..6).map(|_| rng.number(40)).collect();
        let used = 2 + rng.below(3);
        let target = match random_tree(&pool[..used], rng).value() {
            Some((top, 1)) if (-5_000_000..5_000_000).contains(&top) => top,
            _ => continue,
        };
        let wanted = match puzzles.len() % 4 {
            0 => target >= 1000,
            1 => target < 0,
            // Labels are numbers of up to 12.
            _ => target > 12,
        };
        if !wanted {
            continue;
        }
        let rules = Rules {
            min_numbers: if puzzles.len() % 10 == 9 { 1 } else { 2 },
            max_numbers: 4,
        };
        let target = i64::try_from(target).expect("in range");
        let required = 1 + rng.below(5);
        let problem = Problem::new(target, pool, required, rules).expect("a problem");
        let solutions: Vec<Tree> = solve(&problem, 12)
            .iter()
            .map(|one| Tree::of(&one.expr))
            .collect();
        if solutions.is_empty() {
            continue;
        }
        let puzzle = Puzzle { problem, solutions };
        assert!(
            puzzle
                .solutions
                .iter()
                .all(|tree| puzzle.key_if_right(tree).is_some())
        );
        puzzles.push(puzzle);
    }
    puzzles
}
