//! Primes, of which tables and walks have as many places.

/// The least prime that is `number` or more, far from the limits of the type.
pub fn next_prime(number: u32) -> u32 {
    (number..).find(|&candidate| is_prime(candidate)).expect("a prime is never twice as far")
}

/// Whether it is one.
pub fn is_prime(number: u32) -> bool {
    let divisors = (2..).take_while(|&divisor: &u32| divisor * divisor <= number);
    number >= 2 && divisors.into_iter().all(|divisor| !number.is_multiple_of(divisor))
}

/// The largest prime up to a number; absent below 2.
pub fn largest_prime(number: u32) -> Option<u32> {
    (2..=number).rev().find(|number| is_prime(*number))
}
