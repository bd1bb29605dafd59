//! Sums of weights by name, for ranks to compare.

use std::fmt::Write as _;

use tch::{Kind, Tensor};

use crate::error::Result;

/// The sums of parameters by name.
///
/// # Errors
/// When libtorch refuses an operation.
pub fn sums_of(parameters: &[(String, Tensor)]) -> Result<String> {
    let mut text = String::new();
    for (name, parameter) in parameters {
        add_sum(&mut text, name, parameter)?;
    }
    Ok(text)
}

/// Adds the sum of one parameter to those of others.
pub(crate) fn add_sum(text: &mut String, name: &str, parameter: &Tensor) -> Result<()> {
    let sum = parameter
        .detach()
        .f_sum(Kind::Double)?
        .f_double_value(&[])?;
    // Writing to a string cannot fail.
    let _ = write!(text, " {name} {sum:e}");
    Ok(())
}
