//! Tokens of an expression, in the signs that models write: ASCII, Unicode and LaTeX.

use std::iter::Peekable;
use std::str::CharIndices;

use super::operator::Operator;
use super::reason::McdReason;

/// A token of an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// A number; `None` beyond 64 bits.
    Number(Option<i64>),
    /// An operator.
    Operator(Operator),
    /// An opening bracket.
    Open(Bracket),
    /// A closing bracket.
    Close(Bracket),
    /// `\frac`, which two groups in braces follow.
    Fraction,
}

/// Brackets, which group alike but close only their own kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bracket {
    /// `( )`
    Round,
    /// `[ ]`
    Square,
    /// `{ }`
    Curly,
}

/// Splits a text into tokens. Blanks separate tokens and mean nothing else: they never join digits.
///
/// # Errors
/// [`McdReason::UnexpectedCharacter`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token>, McdReason> {
    let mut tokens = Vec::with_capacity(text.len().min(64));
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if is_blank(c) {
            continue;
        }
        let token = if let Some(digit) = digit_of(c) {
            number(digit, &mut chars)
        } else if let Some(operator) = operator_of(c) {
            Token::Operator(operator)
        } else if c == '\\' {
            match command(&text[at + 1..], &mut chars)? {
                Some(token) => token,
                None => continue,
            }
        } else {
            bracket_of(c).ok_or(McdReason::UnexpectedCharacter)?
        };
        tokens.push(token);
    }
    Ok(tokens)
}

fn number(first: i64, chars: &mut Peekable<CharIndices<'_>>) -> Token {
    let mut value = Some(first);
    while let Some(digit) = chars.peek().and_then(|&(_, c)| digit_of(c)) {
        chars.next();
        value = value
            .and_then(|value| value.checked_mul(10))
            .and_then(|value| value.checked_add(digit));
    }
    Token::Number(value)
}

/// A LaTeX command, of which `rest` and `chars` hold what follows the backslash; `None` for one that only sets space.
fn command(rest: &str, chars: &mut Peekable<CharIndices<'_>>) -> Result<Option<Token>, McdReason> {
    let len = rest
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(rest.len());
    for _ in 0..len.max(1) {
        chars.next();
    }
    if len == 0 {
        return match rest.chars().next() {
            Some(',' | ';' | ':' | '!' | ' ') => Ok(None),
            Some('{') => Ok(Some(Token::Open(Bracket::Curly))),
            Some('}') => Ok(Some(Token::Close(Bracket::Curly))),
            // Markdown's way to write a star.
            Some('*') => Ok(Some(Token::Operator(Operator::Multiply))),
            _ => Err(McdReason::UnexpectedCharacter),
        };
    }
    Ok(Some(match &rest[..len] {
        "times" | "cdot" | "ast" => Token::Operator(Operator::Multiply),
        "div" => Token::Operator(Operator::Divide),
        "frac" | "dfrac" | "tfrac" => Token::Fraction,
        "left" | "right" | "big" | "bigl" | "bigr" | "Big" | "Bigl" | "Bigr" | "bigg" | "biggl"
        | "biggr" | "displaystyle" | "quad" | "qquad" => return Ok(None),
        _ => return Err(McdReason::UnexpectedCharacter),
    }))
}

/// Whether a character separates and is not seen: blanks of every width, and what only says how a sign is drawn.
pub(super) fn is_blank(c: char) -> bool {
    match c {
        '\n' | '\r' | '!'..='~' => false,
        ' ' | '\t' | '\u{200b}' | '\u{2060}' | '\u{feff}' | '\u{fe0e}' | '\u{fe0f}' => true,
        _ => c.is_whitespace(),
    }
}

/// The text without blanks around it.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// The operator of a sign.
pub(super) fn operator_of(c: char) -> Option<Operator> {
    Some(match c {
        '+' | '\u{ff0b}' | '\u{fe62}' | '\u{2795}' => Operator::Add,
        '-' | '\u{2212}' | '\u{2010}'..='\u{2013}' | '\u{ff0d}' | '\u{fe63}' | '\u{2796}' => {
            Operator::Subtract
        }
        '*' | '\u{d7}' | '\u{b7}' | '\u{2219}' | '\u{22c5}' | '\u{2217}' | '\u{ff0a}'
        | '\u{2715}' | '\u{2716}' | '\u{2a2f}' => Operator::Multiply,
        '/' | '\u{f7}' | '\u{2215}' | '\u{2044}' | '\u{ff0f}' | '\u{2797}' => Operator::Divide,
        _ => return None,
    })
}

fn bracket_of(c: char) -> Option<Token> {
    Some(match c {
        '(' | '\u{ff08}' => Token::Open(Bracket::Round),
        ')' | '\u{ff09}' => Token::Close(Bracket::Round),
        '[' | '\u{ff3b}' => Token::Open(Bracket::Square),
        ']' | '\u{ff3d}' => Token::Close(Bracket::Square),
        '{' | '\u{ff5b}' => Token::Open(Bracket::Curly),
        '}' | '\u{ff5d}' => Token::Close(Bracket::Curly),
        _ => return None,
    })
}

/// The value of a digit, ASCII or of full width.
pub(super) fn digit_of(c: char) -> Option<i64> {
    let zero = match c {
        '0'..='9' => '0',
        '\u{ff10}'..='\u{ff19}' => '\u{ff10}',
        _ => return None,
    };
    Some(i64::from(u32::from(c) - u32::from(zero)))
}
