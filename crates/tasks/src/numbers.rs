//! Whole numbers in text.

/// Pads every whole number in `text` with zeros to `width` digits; longer numbers stay as they are.
pub fn pad_numbers(text: &str, width: usize) -> String {
    let mut padded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        padded.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(rest.len());
        padded.extend(std::iter::repeat_n('0', width.saturating_sub(end)));
        padded.push_str(&rest[..end]);
        rest = &rest[end..];
    }
    padded.push_str(rest);
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_padded() {
        assert_eq!(pad_numbers("9-2=7 no\n", 2), "09-02=07 no\n");
        assert_eq!(pad_numbers("9-2=7", 0), "9-2=7");
        assert_eq!(pad_numbers("105", 2), "105");
    }
}
