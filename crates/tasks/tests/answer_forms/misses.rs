//! Items that are nearly right.

use crate::Written;
use crate::reference::{Puzzle, SIGNS, Tree};
use crate::rng::Rng;
use crate::styles::{Hand, dressed, step, written};

/// An item that is wrong, or one whose tree was changed and that the reference judges anew.
pub(crate) fn near_miss(puzzle: &Puzzle, rng: &mut Rng) -> Written {
    if rng.chance(40) {
        let tree = rng.pick(&puzzle.solutions).shuffled(rng);
        let (form, tree) = changed(puzzle, &tree, rng);
        let text = written(puzzle, &tree, rng);
        let right = puzzle.key_if_right(&tree).filter(|_| text.len() <= 512);
        return Written { text, right, form };
    }
    let (form, text) = if rng.chance(30) {
        misstated(puzzle, rng)
    } else {
        no_expression(puzzle, rng)
    };
    let wrapper = *rng.pick(&[
        ("", ""),
        ("", ""),
        ("$", "$"),
        ("`", "`"),
        ("**", "**"),
        ("\\(", "\\)"),
        ("\\boxed{", "}"),
    ]);
    let text = dressed(&text, wrapper, rng);
    Written {
        text,
        right: None,
        form,
    }
}

/// A tree that was changed, mostly into a wrong one.
fn changed(puzzle: &Puzzle, tree: &Tree, rng: &mut Rng) -> (&'static str, Tree) {
    let own = *rng.pick(&puzzle.problem.available_numbers);
    let foreign = rng.number(60);
    let sign = *rng.pick(&SIGNS);
    let number =
        |new: i64| move |part: &Tree| matches!(part, Tree::Number(_)).then_some(Tree::Number(new));
    let new = match rng.below(8) {
        0 => ("another number of the pool", tree.with(rng, &number(own))),
        1 => ("any other number", tree.with(rng, &number(foreign))),
        2 => (
            "another operator",
            tree.with(rng, &|part| match part {
                Tree::Node(_, left, right) => {
                    Some(Tree::node(sign, (**left).clone(), (**right).clone()))
                }
                Tree::Number(_) => None,
            }),
        ),
        3 => (
            "sides exchanged",
            tree.with(rng, &|part| match part {
                Tree::Node(sign, left, right) => {
                    Some(Tree::node(*sign, (**right).clone(), (**left).clone()))
                }
                Tree::Number(_) => None,
            }),
        ),
        4 => (
            "a part left out",
            tree.with(rng, &|part| match part {
                Tree::Node(_, left, _) => Some((**left).clone()),
                Tree::Number(_) => None,
            }),
        ),
        5 => {
            let zero = Tree::node('-', Tree::Number(own), Tree::Number(own));
            (
                "a number used again for nothing",
                Some(Tree::node('+', tree.clone(), zero)),
            )
        }
        6 => {
            let one = Tree::node('/', Tree::Number(foreign), Tree::Number(foreign));
            (
                "a number not offered for nothing",
                Some(Tree::node('*', tree.clone(), one)),
            )
        }
        _ => (
            "the target itself",
            Some(Tree::Number(puzzle.problem.target.abs())),
        ),
    };
    (new.0, new.1.unwrap_or_else(|| tree.clone()))
}

/// A right expression that is said to equal something else.
fn misstated(puzzle: &Puzzle, rng: &mut Rng) -> (&'static str, String) {
    let hand = Hand::random(rng);
    let tree = rng.pick(&puzzle.solutions).shuffled(rng);
    let core = hand.tree(&tree, rng);
    let target = puzzle.problem.target;
    let wrong = *rng.pick(&[
        target + 1,
        target - 1,
        target * 10,
        target - 1000,
        -target - 1,
        9_999_999_999,
    ]);
    match rng.below(5) {
        0 => ("another target", format!("{core} = {wrong}")),
        1 => ("another target first", format!("{wrong} = {core}")),
        2 => (
            "another value between",
            format!("{core} = {wrong} = {target}"),
        ),
        3 => {
            let more = *rng.pick(&['+', '-']);
            let other = Tree::node(more, step(&tree, rng), Tree::Number(1));
            (
                "a wrong step",
                format!("{core} = {} = {target}", hand.tree(&other, rng)),
            )
        }
        _ => {
            // Steps written on: the first is no solution, the last is.
            let other = Tree::node('+', tree.clone(), Tree::Number(1));
            (
                "a run-on",
                format!("{} = {core} = {target}", hand.tree(&other, rng)),
            )
        }
    }
}

/// A right expression made into text that is none.
#[expect(clippy::too_many_lines, reason = "a list of near misses")]
fn no_expression(puzzle: &Puzzle, rng: &mut Rng) -> (&'static str, String) {
    let hand = if rng.chance(50) {
        Hand::plain()
    } else {
        Hand::random(rng)
    };
    let mut tree = rng.pick(&puzzle.solutions).shuffled(rng);
    if let Tree::Number(_) = tree {
        // Words and a number would be a heading.
        tree = Tree::node('*', tree, Tree::Number(1));
    }
    let core = hand.tree(&tree, rng);
    let target = puzzle.problem.target;
    let claim = if rng.chance(50) {
        format!(" = {target}")
    } else {
        String::new()
    };
    let e = &core;
    let (form, broken) = match rng.below(14) {
        0 => (
            "a power",
            rng.pick(&[
                format!("{e}**1"),
                format!("{e}^1"),
                format!("{e}^{{1}}"),
                format!("{e}\u{b2}"),
                format!("({e}) ** 1"),
            ])
            .clone(),
        ),
        1 => (
            "integer division",
            rng.pick(&[
                format!("{e}//1"),
                format!("({e})//1"),
                format!("({e}) // 1"),
                format!("\\lfloor {e} \\rfloor"),
                format!("floor({e})"),
            ])
            .clone(),
        ),
        2 => (
            "an implicit product",
            rng.pick(&[
                format!("({e})(1)"),
                format!("1({e})"),
                format!("({e})1"),
                format!("[{e}]{{1}}"),
                format!("1\\frac{{{e}}}{{1}}"),
                format!("({e}) 1"),
            ])
            .clone(),
        ),
        3 => (
            "a sign",
            rng.pick(&[
                format!("-{e}"),
                format!("+{e}"),
                format!("\u{2212}{e}"),
                format!("\u{2212} {e}"),
                format!("(-{e})"),
                format!("1*-({e})"),
            ])
            .clone(),
        ),
        4 => (
            "a decimal",
            rng.pick(&[
                format!("{e}.0"),
                format!("1.0*({e})"),
                format!("({e})*1.0"),
                format!("1.5 + {e} - 1.5"),
                format!("{e}e0"),
            ])
            .clone(),
        ),
        5 => (
            "a bracket too many",
            rng.pick(&[
                format!("({e}"),
                format!("{e})"),
                format!("(({e})"),
                format!("({e}]"),
                format!("{e}]"),
                format!("\\frac{{{e}}}"),
                format!("\\left({e}"),
            ])
            .clone(),
        ),
        6 => (
            "an operator too many",
            rng.pick(&[
                format!("{e}*"),
                format!("{e} -"),
                format!("*{e}"),
                format!("/{e}"),
                format!("1**({e})"),
                format!("({e})+-1"),
                format!("({e})--1"),
                format!("({e})\u{d7}\u{d7}1"),
                format!("({e})\u{f7}\u{f7}1"),
            ])
            .clone(),
        ),
        7 => (
            "letters",
            rng.pick(&[
                format!("{e} x"),
                format!("{e}a"),
                format!("sqrt({e})"),
                format!("\\sqrt{{{e}}}"),
                format!("x4*{e}"),
                format!("{e} + six"),
                format!("about {e}"),
                format!("eval({e})"),
                format!("4 x {e}"),
            ])
            .clone(),
        ),
        8 => (
            "a remark with a number",
            rng.pick(&[
                format!("{e} # 1"),
                format!("{e} (using 1 and 2)"),
                format!("{e} / 2 more"),
                format!("{e} or 4*6"),
            ])
            .clone(),
        ),
        9 => (
            "digits parted",
            rng.pick(&[
                format!("1 0*({e})"),
                format!("({e}) + 1 2 - 1 2"),
                format!("({e})*1_0/1_0"),
                format!("({e}) + 1\u{a0}2 - 1\u{a0}2"),
                format!("({e}) + 1\u{200b}2"),
            ])
            .clone(),
        ),
        10 => (
            "other signs",
            rng.pick(&[
                format!("{e}%"),
                format!("{e}!"),
                format!("|{e}|"),
                format!("~{e}"),
                format!("~~{e}~~"),
                format!("{e} \u{2717}"),
                format!("{e} \u{274c}"),
                format!("\u{221a}({e})"),
                format!("\u{00bd}*2*({e})"),
            ])
            .clone(),
        ),
        11 => (
            "no equation",
            rng.pick(&[
                format!("{e} =="),
                format!("= {e}"),
                format!("{e} = "),
                format!("{e} = = {target}"),
                format!("{e} \u{2260} {target}"),
                format!("{e} \u{2248} {target}"),
                format!("{e} == {target}"),
                format!("{e} != {target}"),
                format!("{e} =\u{338} {target}"),
                format!("{e} \\neq {target}"),
                format!("{e} > {target}"),
                format!("{e} = {target}.0"),
                format!("{e} = about {target}"),
            ])
            .clone(),
        ),
        12 => (
            "empty brackets",
            rng.pick(&[
                format!("{e}()"),
                format!("()+{e}"),
                format!("{e}*()"),
                format!("{e}\\,\\frac{{}}{{}}"),
            ])
            .clone(),
        ),
        _ => (
            "another script",
            rng.pick(&[
                format!("{e}+\u{663}-\u{663}"),
                format!("({e})*\u{4e00}1"),
                format!("{e}+\u{2160}1"),
                format!("\u{200e}{e}\u{202e}1"),
            ])
            .clone(),
        ),
    };
    let text = if form == "no equation" {
        broken
    } else {
        format!("{broken}{claim}")
    };
    (form, text)
}
