//! Shares of a whole, as `30%` in the configuration: exact, so that a limit is neither missed nor met by rounding.

use std::{fmt, str::FromStr};

/// Of a hundred percent, in millionths.
const WHOLE: u64 = 1_000_000;
/// Digits behind the point of a percentage that millionths have.
const DIGITS: usize = 4;

/// A share from nothing to the whole, in millionths of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u32);

/// The text is no percentage.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a percentage from 0% to 100% with at most {DIGITS} digits behind the point, such as 30% or 0.5%"
)]
pub struct NotAShare;

impl Share {
    /// Whether `part` of `whole` is more.
    pub fn is_exceeded_by(self, part: u32, whole: u32) -> bool {
        u64::from(part) * WHOLE > u64::from(self.0) * u64::from(whole)
    }
}

impl FromStr for Share {
    type Err = NotAShare;

    fn from_str(text: &str) -> Result<Self, NotAShare> {
        let percent = text.strip_suffix('%').ok_or(NotAShare)?.trim_end();
        let (whole, fraction) = percent.split_once('.').unwrap_or((percent, "0"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        if !is_number(whole) || !is_number(fraction) || whole.len() > 3 || fraction.len() > DIGITS {
            return Err(NotAShare);
        }
        let millionths: u32 = format!("{whole}{fraction:0<DIGITS$}").parse().map_err(|_| NotAShare)?;
        if u64::from(millionths) > WHOLE { Err(NotAShare) } else { Ok(Self(millionths)) }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / 10_000, self.0 % 10_000);
        let fraction = format!("{fraction:04}");
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{whole}{point}{fraction}%")
    }
}

/// `part` of `whole` for people, as `0.4 %`: what is something is never shown as nothing.
pub fn percentage(part: u32, whole: u32) -> String {
    let percent = 100.0 * f64::from(part) / f64::from(whole.max(1));
    match part {
        0 => "0 %".to_owned(),
        _ if percent < 0.1 => "less than 0.1 %".to_owned(),
        _ => format!("{percent:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_read_and_shown() {
        for (text, shown) in [
            ("30%", "30%"),
            ("30 %", "30%"),
            ("0.5%", "0.5%"),
            ("12.3400%", "12.34%"),
            ("100%", "100%"),
            ("0%", "0%"),
        ] {
            assert_eq!(text.parse::<Share>().map(|share| share.to_string()), Ok(shown.to_owned()));
        }
    }

    #[test]
    fn what_is_no_percentage_is_refused() {
        for text in [
            "",
            "%",
            "30",
            "0.3",
            "-1%",
            "+1%",
            "100.0001%",
            "101%",
            "1e1%",
            "1.00001%",
            ".5%",
            "5.%",
            "30%%",
        ] {
            assert_eq!(text.parse::<Share>(), Err(NotAShare), "{text:?}");
        }
    }

    #[test]
    fn a_limit_is_exact() {
        let third: Share = "33.3333%".parse().unwrap();
        assert!(third.is_exceeded_by(1, 3));
        assert!(!third.is_exceeded_by(333_333, 1_000_000));
        assert!(!"100%".parse::<Share>().unwrap().is_exceeded_by(7, 7));
        assert!("0%".parse::<Share>().unwrap().is_exceeded_by(1, u32::MAX));
        assert!(!"0%".parse::<Share>().unwrap().is_exceeded_by(0, 7));
    }

    #[test]
    fn a_little_is_not_shown_as_nothing() {
        assert_eq!(percentage(0, 7), "0 %");
        assert_eq!(percentage(1, 65_537), "less than 0.1 %");
        assert_eq!(percentage(262, 65_537), "0.4 %");
        assert_eq!(percentage(7, 7), "100.0 %");
    }
}
