//! Exact rationals that notice when they do not fit.

/// Why an expression has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ArithmeticError {
    /// A division by zero.
    #[error("division by zero")]
    DivisionByZero,
    /// A numerator or denominator beyond 128 bits.
    #[error("overflow")]
    Overflow,
}

/// A fraction in lowest terms with a positive denominator, so that equality is equality of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    /// Zero.
    pub const ZERO: Self = Self {
        numerator: 0,
        denominator: 1,
    };

    /// Numerator and denominator in lowest terms, the denominator positive.
    pub fn parts(self) -> (i128, i128) {
        (self.numerator, self.denominator)
    }

    /// Whether this is zero.
    pub fn is_zero(self) -> bool {
        self.numerator == 0
    }

    fn reduced(numerator: i128, denominator: i128) -> Result<Self, ArithmeticError> {
        if denominator == 0 {
            return Err(ArithmeticError::DivisionByZero);
        }
        // `i128::MIN` has no counterpart; leaving it out keeps every later negation safe.
        if numerator == i128::MIN || denominator == i128::MIN {
            return Err(ArithmeticError::Overflow);
        }
        if denominator == 1 {
            return Ok(Self {
                numerator,
                denominator,
            });
        }
        let divisor = gcd(numerator.unsigned_abs(), denominator.unsigned_abs());
        // The divisor is at most the denominator's magnitude, which is below 2^127.
        let divisor = i128::try_from(divisor).map_err(|_| ArithmeticError::Overflow)?;
        let divisor = if denominator < 0 { -divisor } else { divisor };
        Ok(Self {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        })
    }

    /// `self + other`.
    ///
    /// # Errors
    /// [`ArithmeticError::Overflow`].
    pub fn checked_add(self, other: Self) -> Result<Self, ArithmeticError> {
        self.sum_with(other.numerator, other.denominator)
    }

    /// `self - other`.
    ///
    /// # Errors
    /// [`ArithmeticError::Overflow`].
    pub fn checked_sub(self, other: Self) -> Result<Self, ArithmeticError> {
        self.sum_with(-other.numerator, other.denominator)
    }

    fn sum_with(self, numerator: i128, denominator: i128) -> Result<Self, ArithmeticError> {
        if self.denominator == 1 && denominator == 1 {
            let numerator = checked(self.numerator.checked_add(numerator))?;
            return Self::reduced(numerator, 1);
        }
        let left = product(self.numerator, denominator)?;
        let right = product(numerator, self.denominator)?;
        Self::reduced(
            checked(left.checked_add(right))?,
            product(self.denominator, denominator)?,
        )
    }

    /// `self * other`.
    ///
    /// # Errors
    /// [`ArithmeticError::Overflow`].
    pub fn checked_mul(self, other: Self) -> Result<Self, ArithmeticError> {
        Self::reduced(
            product(self.numerator, other.numerator)?,
            product(self.denominator, other.denominator)?,
        )
    }

    /// `self / other`.
    ///
    /// # Errors
    /// [`ArithmeticError::DivisionByZero`] or [`ArithmeticError::Overflow`].
    pub fn checked_div(self, other: Self) -> Result<Self, ArithmeticError> {
        if other.is_zero() {
            return Err(ArithmeticError::DivisionByZero);
        }
        Self::reduced(
            product(self.numerator, other.denominator)?,
            product(self.denominator, other.numerator)?,
        )
    }
}

impl From<i64> for Rational {
    fn from(value: i64) -> Self {
        Self {
            numerator: i128::from(value),
            denominator: 1,
        }
    }
}

fn checked(value: Option<i128>) -> Result<i128, ArithmeticError> {
    value.ok_or(ArithmeticError::Overflow)
}

/// `a * b`; the checked product of 128-bit words is slow, and nearly every value here is small.
fn product(a: i128, b: i128) -> Result<i128, ArithmeticError> {
    match (i64::try_from(a), i64::try_from(b)) {
        (Ok(a), Ok(b)) => Ok(i128::from(a) * i128::from(b)),
        _ => checked(a.checked_mul(b)),
    }
}

/// Greatest common divisor; `gcd(0, n) = n`.
fn gcd(a: u128, b: u128) -> u128 {
    if a == 1 || b == 1 {
        return 1;
    }
    // As for products: small words are several times faster.
    if let (Ok(mut a), Ok(mut b)) = (u64::try_from(a), u64::try_from(b)) {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        return u128::from(a);
    }
    let (mut a, mut b) = (a, b);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rational(numerator: i64, denominator: i64) -> Rational {
        Rational::from(numerator)
            .checked_div(Rational::from(denominator))
            .unwrap()
    }

    #[test]
    fn lowest_terms_and_positive_denominator() {
        assert_eq!(rational(6, -4).parts(), (-3, 2));
        assert_eq!(rational(0, -4), Rational::ZERO);
    }

    #[test]
    fn division_by_zero_and_overflow_are_values() {
        let one = Rational::from(1);
        assert_eq!(
            one.checked_div(Rational::ZERO),
            Err(ArithmeticError::DivisionByZero)
        );
        let big = Rational::from(i64::MAX);
        let big = big.checked_mul(big).unwrap();
        assert_eq!(big.checked_mul(big), Err(ArithmeticError::Overflow));
        let tiny = one.checked_div(big).unwrap();
        assert_eq!(tiny.checked_mul(tiny), Err(ArithmeticError::Overflow));
        let low = Rational::from(i64::MIN);
        let low = low
            .checked_mul(low)
            .unwrap()
            .checked_mul(Rational::from(-2));
        assert_eq!(low, Err(ArithmeticError::Overflow));
    }

    proptest! {
        #[test]
        fn inverse_operations_undo(a in -999i64..999, b in 1i64..99, c in -999i64..999, d in 1i64..99) {
            let (x, y) = (rational(a, b), rational(c, d));
            prop_assert_eq!(x.checked_add(y).unwrap().checked_sub(y).unwrap(), x);
            if c != 0 {
                prop_assert_eq!(x.checked_mul(y).unwrap().checked_div(y).unwrap(), x);
            }
        }
    }
}
