//! Expressions: the only way text of a model becomes a value.
//!
//! The language is `+ - * /`, brackets and non-negative decimal integers, in ASCII, Unicode or LaTeX signs. There is no
//! sign, no decimal point, no exponent, no floor division, no implicit product and no comment; each of these has fooled
//! a grader that evaluated text as code.

use std::fmt;

use super::operator::{Operator, OperatorCounts};
use super::rational::{ArithmeticError, Rational};
use super::reason::McdReason;
use super::token::{Bracket, Token, tokens};

/// Longest text that is parsed. Six 19-digit numbers with generous blanks and brackets fit.
pub(crate) const MAX_EXPRESSION_BYTES: usize = 512;

/// Deepest nesting of brackets that is parsed; it bounds the recursion.
const MAX_DEPTH: usize = 32;

/// An arithmetic expression.
///
/// `Display` writes it without blanks and with as few parentheses as give back the same tree, so that
/// [`Expr::parse`] is its inverse.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A number of the pool.
    Number(i64),
    /// `left operator right`.
    Binary {
        /// The operator.
        operator: Operator,
        /// The left operand.
        left: Box<Expr>,
        /// The right operand.
        right: Box<Expr>,
    },
}

impl Expr {
    /// `left operator right`.
    pub fn binary(operator: Operator, left: Self, right: Self) -> Self {
        Self::Binary {
            operator,
            left: Box::new(left),
            right: Box::new(right),
        }
    }

    /// Parses a whole text as one expression.
    ///
    /// `( )`, `[ ]` and `{ }` group alike, and `\frac{a}{b}` is `(a)/(b)`. Time is linear in the text, which may have at
    /// most 512 bytes; brackets nest at most 32 deep.
    ///
    /// # Errors
    /// [`McdReason::TooLong`], [`McdReason::UnexpectedCharacter`], [`McdReason::Syntax`], [`McdReason::TooDeep`], or
    /// [`McdReason::NumberNotAvailable`] for a number beyond 64 bits, which no pool holds.
    pub fn parse(text: &str) -> Result<Self, McdReason> {
        if text.len() > MAX_EXPRESSION_BYTES {
            return Err(McdReason::TooLong);
        }
        let tokens = tokens(text)?;
        let mut parser = Parser { rest: &tokens };
        let expr = parser.sum(0)?;
        match parser.peek() {
            None => Ok(expr),
            Some(_) => Err(McdReason::Syntax),
        }
    }

    /// The exact value.
    ///
    /// # Errors
    /// [`ArithmeticError`] if a sub-expression has no value or does not fit.
    pub fn evaluate(&self) -> Result<Rational, ArithmeticError> {
        match self {
            Self::Number(value) => Ok(Rational::from(*value)),
            Self::Binary {
                operator,
                left,
                right,
            } => operator.apply(left.evaluate()?, right.evaluate()?),
        }
    }

    /// The numbers from left to right.
    pub fn numbers(&self) -> Vec<i64> {
        let mut numbers = Vec::new();
        self.collect_numbers(&mut numbers);
        numbers
    }

    fn collect_numbers(&self, numbers: &mut Vec<i64>) {
        match self {
            Self::Number(value) => numbers.push(*value),
            Self::Binary { left, right, .. } => {
                left.collect_numbers(numbers);
                right.collect_numbers(numbers);
            }
        }
    }

    /// How often each operator is used.
    pub fn operators(&self) -> OperatorCounts {
        match self {
            Self::Number(_) => OperatorCounts::default(),
            Self::Binary {
                operator,
                left,
                right,
            } => OperatorCounts::combine(left.operators(), *operator, right.operators()),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value) => write!(f, "{value}"),
            Self::Binary {
                operator,
                left,
                right,
            } => {
                fmt_operand(f, left, *operator, false)?;
                write!(f, "{}", operator.symbol())?;
                fmt_operand(f, right, *operator, true)
            }
        }
    }
}

fn fmt_operand(
    f: &mut fmt::Formatter<'_>,
    operand: &Expr,
    parent: Operator,
    is_right: bool,
) -> fmt::Result {
    let needs_parentheses = match operand {
        Expr::Number(_) => false,
        // The parser associates to the left, so a right operand of the same strength needs them.
        Expr::Binary { operator, .. } => match (operator.binds_tightly(), parent.binds_tightly()) {
            (false, true) => true,
            (true, false) => false,
            (true, true) | (false, false) => is_right,
        },
    };
    if needs_parentheses {
        write!(f, "({operand})")
    } else {
        write!(f, "{operand}")
    }
}

/// Recursive descent; the recursion is as deep as the brackets and no deeper.
struct Parser<'a> {
    rest: &'a [Token],
}

impl Parser<'_> {
    fn peek(&self) -> Option<Token> {
        self.rest.first().copied()
    }

    fn next(&mut self) -> Option<Token> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn operator(&mut self, binds_tightly: bool) -> Option<Operator> {
        match self.peek()? {
            Token::Operator(operator) if operator.binds_tightly() == binds_tightly => {
                self.next();
                Some(operator)
            }
            _ => None,
        }
    }

    fn sum(&mut self, depth: usize) -> Result<Expr, McdReason> {
        let mut expr = self.product(depth)?;
        while let Some(operator) = self.operator(false) {
            expr = Expr::binary(operator, expr, self.product(depth)?);
        }
        Ok(expr)
    }

    fn product(&mut self, depth: usize) -> Result<Expr, McdReason> {
        let mut expr = self.operand(depth)?;
        while let Some(operator) = self.operator(true) {
            expr = Expr::binary(operator, expr, self.operand(depth)?);
        }
        Ok(expr)
    }

    fn operand(&mut self, depth: usize) -> Result<Expr, McdReason> {
        match self.next() {
            Some(Token::Number(value)) => {
                value.map(Expr::Number).ok_or(McdReason::NumberNotAvailable)
            }
            Some(Token::Open(bracket)) => self.group(bracket, depth),
            Some(Token::Fraction) => {
                let numerator = self.braces(depth)?;
                Ok(Expr::binary(
                    Operator::Divide,
                    numerator,
                    self.braces(depth)?,
                ))
            }
            _ => Err(McdReason::Syntax),
        }
    }

    fn braces(&mut self, depth: usize) -> Result<Expr, McdReason> {
        match self.next() {
            Some(Token::Open(Bracket::Curly)) => self.group(Bracket::Curly, depth),
            _ => Err(McdReason::Syntax),
        }
    }

    /// Parses the inside of an opened bracket, and its end.
    fn group(&mut self, bracket: Bracket, depth: usize) -> Result<Expr, McdReason> {
        if depth == MAX_DEPTH {
            return Err(McdReason::TooDeep);
        }
        let expr = self.sum(depth + 1)?;
        match self.next() {
            Some(Token::Close(closing)) if closing == bracket => Ok(expr),
            _ => Err(McdReason::Syntax),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> (i128, i128) {
        Expr::parse(text).unwrap().evaluate().unwrap().parts()
    }

    #[test]
    fn precedence_and_association() {
        assert_eq!(value("2+3*4"), (14, 1));
        assert_eq!(value("2-3-4"), (-5, 1));
        assert_eq!(value("2-(3-4)"), (3, 1));
        assert_eq!(value("8/4/2"), (1, 1));
        assert_eq!(value("8/(4/2)"), (4, 1));
        assert_eq!(value("1/3+1/6"), (1, 2));
        assert_eq!(value(" ( 2\t+ 3 ) * 4 "), (20, 1));
    }

    #[test]
    fn signs_of_unicode_and_latex_are_read() {
        for (text, expected) in [
            ("2\u{d7}3\u{b7}4\u{22c5}5\u{2219}6\u{2217}7", "2*3*4*5*6*7"),
            ("9\u{2212}3\u{2013}2\u{2011}1", "9-3-2-1"),
            ("8\u{f7}4\u{2215}2\u{2044}1", "8/4/2/1"),
            (
                "\u{ff12}\u{ff0b}\u{ff08}\u{ff13}\u{ff10}\u{ff0f}\u{ff14}\u{ff09}",
                "2+30/4",
            ),
            ("2\u{a0}+\u{2009}3\u{202f}*\u{3000}4", "2+3*4"),
            ("[2+3]*{4-(1+2)}", "(2+3)*(4-(1+2))"),
            (r"2 \times \left(3 + 4\right) \div 5 \cdot 6", "2*(3+4)/5*6"),
            (r"\frac{2+3}{4}\times6", "(2+3)/4*6"),
            (r"8\,/\;\dfrac{1}{\tfrac{2}{3}}", "8/(1/(2/3))"),
            (r"\Bigl[2+3\Bigr]\*\{4\}", "(2+3)*4"),
        ] {
            assert_eq!(
                Expr::parse(text),
                Ok(Expr::parse(expected).unwrap()),
                "{text}"
            );
        }
    }

    #[test]
    fn display_writes_only_the_parentheses_that_matter() {
        for (text, written) in [
            ("((2*3)+4)", "2*3+4"),
            ("2*(3+4)", "2*(3+4)"),
            ("2-(3-4)", "2-(3-4)"),
            ("(2-3)-4", "2-3-4"),
            ("2*(3/4)", "2*(3/4)"),
        ] {
            assert_eq!(Expr::parse(text).unwrap().to_string(), written);
        }
    }

    #[test]
    fn no_other_language_is_spoken() {
        use McdReason::{Syntax, UnexpectedCharacter};
        for (text, reason) in [
            ("", Syntax),
            ("2**3", Syntax),
            ("7//2", Syntax),
            ("-2+3", Syntax),
            ("2+-3", Syntax),
            ("+2", Syntax),
            ("2(3)", Syntax),
            ("(2)(3)", Syntax),
            ("1 2", Syntax),
            ("2+", Syntax),
            ("(2+3", Syntax),
            ("2+3)", Syntax),
            ("()", Syntax),
            ("1.5", UnexpectedCharacter),
            ("1e3", UnexpectedCharacter),
            ("1_0", UnexpectedCharacter),
            ("2^3", UnexpectedCharacter),
            ("7%2", UnexpectedCharacter),
            ("2+3 # =9", UnexpectedCharacter),
            ("\u{0663}+1", UnexpectedCharacter),
            ("3\u{b2}", UnexpectedCharacter),
            ("1\u{bd}", UnexpectedCharacter),
            ("4 x 6", UnexpectedCharacter),
            ("4\\pm6", UnexpectedCharacter),
            ("4\\cdots6", UnexpectedCharacter),
            ("1\u{a0}2", Syntax),
            ("1\u{200b}2", Syntax),
            ("2\u{d7}\u{d7}3", Syntax),
            ("7\u{f7}\u{f7}2", Syntax),
            ("(2+3]", Syntax),
            ("[2+3}", Syntax),
            ("\\frac{1}", Syntax),
            ("\\frac{1}(2)", Syntax),
            ("\\frac12", Syntax),
            ("2\\frac{1}{2}", Syntax),
            ("\\frac{1}{2}3", Syntax),
            ("__import__('os')", UnexpectedCharacter),
        ] {
            assert_eq!(Expr::parse(text), Err(reason), "{text}");
        }
    }

    #[test]
    fn size_and_depth_are_bounded() {
        let nested = |depth: usize| format!("{}1{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(Expr::parse(&nested(32)), Ok(Expr::Number(1)));
        assert_eq!(Expr::parse(&nested(33)), Err(McdReason::TooDeep));
        assert_eq!(Expr::parse(&"(".repeat(512)), Err(McdReason::TooDeep));
        assert_eq!(Expr::parse(&"(".repeat(513)), Err(McdReason::TooLong));
        let chain = vec!["1"; 256].join("+");
        let chain = Expr::parse(&chain).unwrap();
        assert_eq!(chain.evaluate(), Ok(Rational::from(256)));
        assert_eq!(chain.numbers().len(), 256);
        assert_eq!(chain.operators().count(Operator::Add), 255);
        assert_eq!(
            Expr::parse("9223372036854775808"),
            Err(McdReason::NumberNotAvailable)
        );
    }

    fn exprs() -> impl Strategy<Value = Expr> {
        (0i64..100)
            .prop_map(Expr::Number)
            .prop_recursive(5, 24, 2, |inner| {
                let operator = prop::sample::select(Operator::ALL.to_vec());
                (operator, inner.clone(), inner)
                    .prop_map(|(operator, left, right)| Expr::binary(operator, left, right))
            })
    }

    proptest! {
        #[test]
        fn parse_inverts_display(expr in exprs()) {
            let text = expr.to_string();
            prop_assume!(text.len() <= MAX_EXPRESSION_BYTES);
            let parsed = Expr::parse(&text).unwrap();
            prop_assert_eq!(parsed.evaluate(), expr.evaluate());
            prop_assert_eq!(parsed, expr);
        }
    }
}
