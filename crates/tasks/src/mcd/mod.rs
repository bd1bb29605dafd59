//! Multi-solution countdown: reach a target from a pool of numbers in several different ways.
//!
//! # Paper
//! arXiv:2510.26658, section 4.1. A solution uses `min_numbers..=max_numbers` numbers of the pool, each at most as
//! often as it is there, the operators `+ - * /` and parentheses. Two solutions differ if they differ in the
//! multiset of their numbers or in how often they use an operator ([`DifferenceKey`]); so `a*b+c` and `c+b*a` are
//! one solution, `a-b+c` and `a-(b-c)` are two.
//!
//! Where the paper is silent: values are exact rationals, so intermediates may be negative or fractional; a sign
//! is not part of the language; a division by zero makes an item wrong and nothing worse; only the first
//! `required` items of an answer are scored ([`grade`]).

mod answer;
mod attempts;
mod config;
mod decoration;
mod expr;
mod generate;
mod grade;
mod key;
mod operator;
mod problem;
mod rational;
mod reading;
mod reason;
mod rows;
mod solve;
mod solver;
mod subset;
mod task;
mod token;

pub use expr::Expr;
pub use generate::{GeneratorConfig, ProblemSet, generate};
pub use grade::{check_solution, grade};
pub use key::DifferenceKey;
pub use operator::{Operator, OperatorCounts};
pub use problem::{DEFAULT_REQUIRED, Problem, Rules};
pub use rational::{ArithmeticError, Rational};
pub use reason::McdReason;
pub use rows::{Row, load_rows};
pub use solve::{Solution, Solutions, SolveOptions, SubsetOrder, solve, solve_with};
pub use task::McdTask;
