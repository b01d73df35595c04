//! Medians, and how well the rounds of a bench determine a ratio.

/// How wide an interval may be on either side of its ratio, as a share of it, so that the ratio counts as resolved.
const TOLERANCE: f64 = 0.05;

/// A ratio of two contenders: the median of the ratios of their rounds, and the interval that holds the true median with a
/// probability of at least 95 %, whatever the rounds' distribution. None with too few rounds.
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub median: f64,
    pub interval: Option<(f64, f64)>,
}

impl Ratio {
    /// Of the figures of two contenders, round by round. None without a round.
    pub fn of_pairs(pairs: &[(f64, f64)]) -> Option<Self> {
        let mut ratios: Vec<_> = pairs.iter().map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        let last = ratios.len().checked_sub(1)?;
        let interval = outside(ratios.len()).map(|outside| (ratios[outside], ratios[last - outside]));
        Some(Self { median: median(&ratios), interval })
    }

    /// Whether the interval is narrow enough.
    pub fn is_resolved(&self) -> bool {
        self.interval.is_some_and(|(low, high)| {
            high <= self.median * (1.0 + TOLERANCE) && low >= self.median * (1.0 - TOLERANCE)
        })
    }
}

/// The middle one, or the mean of the two in the middle; not a number if there is none.
pub fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
    match (sorted.get(low), sorted.get(high)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

/// How many of so many sorted numbers may be left out at either end, so that the rest still encloses the median they were
/// drawn around with 95 %. Each number is below it with probability a half, so that how many are has a binomial
/// distribution, and the numbers fail to enclose it where it is less than what is left out, or too many.
fn outside(numbers: usize) -> Option<usize> {
    let mut probability = 0.5_f64.powi(i32::try_from(numbers).ok()?);
    let mut below = 0.0;
    let mut outside = None;
    for left_out in 0..numbers / 2 {
        below += probability;
        if 2.0 * below > 0.05 {
            break;
        }
        outside = Some(left_out);
        probability *= (numbers - left_out) as f64 / (left_out + 1) as f64;
    }
    outside
}
