//! The many ways to write down one tree.

use crate::reference::{Puzzle, Tree};
use crate::rng::Rng;

/// Lines between the items that are none.
pub(crate) const HEADINGS: [&str; 22] = [
    "Here are the solutions:",
    "```",
    "```text",
    "**Solutions**",
    "---",
    "***",
    "\\[",
    "\\]",
    "$$",
    "\\begin{align*}",
    "\\end{align*}",
    "I checked them all, and they are right.",
    "(no more)",
    "\u{2022}",
    "<answer>",
    "",
    "Solution 1:",
    "### Solution 2",
    "**Solution 3**",
    "**Step 4:**",
    "Expression 5",
    "Here are 4 different solutions:",
];

/// Signs, blanks and brackets of one item.
pub(crate) struct Hand {
    signs: [&'static str; 4],
    blank: &'static str,
    brackets: (&'static str, &'static str),
    fractions: bool,
    redundant: usize,
    wide_digits: bool,
}

impl Hand {
    pub(crate) fn plain() -> Self {
        Self {
            signs: ["+", "-", "*", "/"],
            blank: "",
            brackets: ("(", ")"),
            fractions: false,
            redundant: 0,
            wide_digits: false,
        }
    }

    pub(crate) fn random(rng: &mut Rng) -> Self {
        Self {
            signs: [
                *rng.pick(&["+", "+", "\u{ff0b}", "\u{2795}"]),
                *rng.pick(&["-", "-", "\u{2212}", "\u{2013}", "\u{ff0d}"]),
                *rng.pick(&[
                    "*",
                    "*",
                    "\u{d7}",
                    "\u{b7}",
                    "\u{2219}",
                    "\u{22c5}",
                    "\u{2217}",
                    "\\times ",
                    "\\cdot ",
                    "\\*",
                    "\u{2716}\u{fe0f}",
                ]),
                *rng.pick(&["/", "/", "\u{f7}", "\\div ", "\u{2215}", "\u{2044}"]),
            ],
            blank: *rng.pick(&[
                "", "", " ", " ", "  ", "\t", "\u{a0}", "\u{2009}", "\u{202f}", "\\,", "\\; ",
            ]),
            brackets: *rng.pick(&[
                ("(", ")"),
                ("(", ")"),
                ("[", "]"),
                ("{", "}"),
                ("\\{", "\\}"),
                ("\\left(", "\\right)"),
                ("\\left[ ", "\\right]"),
                ("\\bigl(", "\\bigr)"),
                ("\u{ff08}", "\u{ff09}"),
            ]),
            fractions: rng.chance(30),
            redundant: if rng.chance(20) { 40 } else { 0 },
            wide_digits: rng.chance(3),
        }
    }

    pub(crate) fn number(&self, number: i64) -> String {
        let digits = number.to_string();
        if !self.wide_digits {
            return digits;
        }
        let wide = |c: char| {
            c.to_digit(10)
                .and_then(|digit| char::from_u32(0xff10 + digit))
                .unwrap_or(c)
        };
        digits.chars().map(wide).collect()
    }

    pub(crate) fn tree(&self, tree: &Tree, rng: &mut Rng) -> String {
        self.part(tree, 0, rng)
    }

    /// `strength` is that of the operator around: 0 for none, 1 for a sum, 2 on the right of one, 3 for a product, 4 on its
    /// right.
    fn part(&self, tree: &Tree, strength: usize, rng: &mut Rng) -> String {
        let (text, own) = match tree {
            Tree::Number(number) => (self.number(*number), 9),
            Tree::Node('/', left, right) if self.fractions => (
                format!(
                    "\\frac{{{}}}{{{}}}",
                    self.part(left, 0, rng),
                    self.part(right, 0, rng)
                ),
                9,
            ),
            Tree::Node(sign, left, right) => {
                let at = crate::reference::SIGNS.iter().position(|one| one == sign);
                let at = at.expect("a sign");
                let base = if at < 2 { 1 } else { 3 };
                let blank = self.blank;
                let text = format!(
                    "{}{blank}{}{blank}{}",
                    self.part(left, base, rng),
                    self.signs[at],
                    self.part(right, base + 1, rng)
                );
                (text, base)
            }
        };
        if own < strength || rng.chance(self.redundant) {
            format!("{}{text}{}", self.brackets.0, self.brackets.1)
        } else {
            text
        }
    }
}

/// The target as models state it.
fn target(puzzle: &Puzzle, hand: &Hand, may_be_bold: bool, rng: &mut Rng) -> String {
    let target = puzzle.problem.target;
    let digits = target.unsigned_abs().to_string();
    let text = if digits.len() > 3 && rng.chance(50) {
        let separator = *rng.pick(&[",", ",", "{,}", "\\,", "\u{202f}", "\u{a0}"]);
        let mut groups: Vec<&str> = Vec::new();
        let mut rest = digits.as_str();
        while rest.len() > 3 {
            let (head, group) = rest.split_at(rest.len() - 3);
            groups.push(group);
            rest = head;
        }
        groups.push(rest);
        groups.reverse();
        groups.join(separator)
    } else {
        hand.number(target.abs())
    };
    let minus = if target < 0 {
        *rng.pick(&["-", "\u{2212}"])
    } else {
        ""
    };
    let text = format!("{minus}{text}");
    match rng.below(12) {
        0 if may_be_bold => format!("**{text}**"),
        1 => format!("\\boxed{{{text}}}"),
        2 => format!("${text}$"),
        _ => text,
    }
}

/// The tree with a part worked out, as in a chain of steps; the tree itself where none is a whole number.
pub(crate) fn step(tree: &Tree, rng: &mut Rng) -> Tree {
    let worked_out = |part: &Tree| match part {
        Tree::Number(_) => None,
        Tree::Node(..) => part.natural().map(Tree::Number),
    };
    tree.with(rng, &worked_out).unwrap_or_else(|| tree.clone())
}

/// A right item: the tree, what it is said to equal, and all that stands around.
pub(crate) fn written(puzzle: &Puzzle, tree: &Tree, rng: &mut Rng) -> String {
    let hand = Hand::random(rng);
    let wrapper = wrapper(rng);
    let may_be_bold = !wrapper.0.contains(['*', '_']);
    let equals = *rng.pick(&["=", " = ", " = ", " &= ", "\u{ff1d}"]);
    let core = hand.tree(tree, rng);
    let core = match rng.below(10) {
        0..3 => core,
        3..7 => format!("{core}{equals}{}", target(puzzle, &hand, may_be_bold, rng)),
        7 => format!("{}{equals}{core}", target(puzzle, &hand, may_be_bold, rng)),
        8 => {
            let step = hand.tree(&step(tree, rng), rng);
            format!(
                "{core}{equals}{step}{equals}{}",
                target(puzzle, &hand, may_be_bold, rng)
            )
        }
        _ => {
            let own = target(puzzle, &hand, false, rng);
            format!("{own}{equals}{core}{equals}{own}")
        }
    };
    dressed(&core, wrapper, rng)
}

fn wrapper(rng: &mut Rng) -> (&'static str, &'static str) {
    *rng.pick(&[
        ("", ""),
        ("", ""),
        ("", ""),
        ("", ""),
        ("$", "$"),
        ("$$", "$$"),
        ("\\(", "\\)"),
        ("\\[ ", " \\]"),
        ("`", "`"),
        ("**", "**"),
        ("*", "*"),
        ("_", "_"),
        ("\\boxed{", "}"),
        ("$\\boxed{", "}$"),
        ("**$", "$**"),
        ("\"", "\""),
        ("\u{201c}", "\u{201d}"),
    ])
}

const LABELS: [&str; 36] = [
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    "- ",
    "* ",
    "+ ",
    "\u{2022} ",
    "\u{2022}",
    "\u{2013} ",
    "> ",
    "- [x] ",
    "1. ",
    "2) ",
    "(3) ",
    "[4] ",
    "12. ",
    "5: ",
    "a) ",
    "(b) ",
    "iv. ",
    "Solution 1: ",
    "Solution 2:",
    "**Solution 3:** ",
    "**Solution 4**: ",
    "### Solution 5: ",
    "Solution #6. ",
    "Answer: ",
    "One more way: ",
    "- **7.** ",
    "\u{2460} ",
    "8\u{fe0f}\u{20e3} ",
    "\u{89e3}9\u{ff1a}",
];

/// An item with a marker before it, delimiters around and a mark behind.
pub(crate) fn dressed(core: &str, (open, close): (&str, &str), rng: &mut Rng) -> String {
    let mut label = *rng.pick(&LABELS);
    if label.starts_with(['(', '[']) && open.is_empty() && core.starts_with(['-', '\u{2212}']) {
        // `(3) -2` is an expression as it stands.
        label = "";
    }
    let mark = if rng.chance(60) {
        ""
    } else {
        *rng.pick(&[
            ".",
            " \u{2713}",
            " \u{2714}\u{fe0f}",
            " \u{2705}",
            " (correct)",
            " \u{2713}.",
            ". \u{2713}",
            " (it works!)",
        ])
    };
    let blank = *rng.pick(&["", "", " ", "\t"]);
    format!("{blank}{label}{open}{core}{close}{mark}{blank}")
}
