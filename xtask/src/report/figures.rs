//! Figures and texts out of JSON, as they are shown. What is not there is shown as nothing.

use serde_json::Value;

/// The list, or an empty one.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The text, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A number, to three digits that count.
pub fn number(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, digits)
}

/// Three digits that count, or all of a whole number, in groups of three.
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size.fract() == 0.0 || size >= 100.0 => grouped(value),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The one in the middle, or the mean of the two in the middle; none of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().saturating_sub(1) / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

fn grouped(value: f64) -> String {
    let plain = format!("{value:.0}");
    let (sign, digits) = plain.split_at(usize::from(plain.starts_with('-')));
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(ascii).collect();
    format!("{sign}{}", groups.join(","))
}

fn ascii(digits: &[u8]) -> &str {
    str::from_utf8(digits).expect("a number is written in ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn three_digits_count() {
        let shown = [0.0412, 0.94, 2.956, 57.48, 642.3, 10_007.0, -1_234_567.0].map(digits);
        assert_eq!(shown, ["0.041", "0.94", "2.96", "57.5", "642", "10,007", "-1,234,567"]);
    }
}
