//! Just enough of RFC 3492 to tell an internationalized label from junk that wears its prefix.
//!
//! Nothing is ever mapped or displayed from what is decoded here: names are compared, resolved and logged in
//! their ASCII form. The check only refuses labels that other software could fold to another name (an A-label
//! of ASCII alone, or one that does not decode), so it needs no Unicode tables. It is not a full IDNA 2008
//! validity check.

const BASE: u32 = 36;
const T_MIN: u32 = 1;
const T_MAX: u32 = 26;
const SKEW: u32 = 38;
const DAMP: u32 = 700;
const INITIAL_BIAS: u32 = 72;
const INITIAL_N: u32 = 128;

/// Tells whether the part of a lower-case label after `xn--` decodes to a label that needed encoding.
pub(super) fn is_plausible(encoded: &str) -> bool {
    decode(encoded).is_some_and(|label| {
        !label.is_ascii()
            && !label
                .chars()
                .any(|c| c.is_control() || c.is_whitespace() || c.is_uppercase())
    })
}

/// Decodes a label, RFC 3492 section 6.2. Bounded by the caller: a label has at most 63 bytes.
fn decode(encoded: &str) -> Option<String> {
    let (basic, deltas) = encoded.rsplit_once('-').unwrap_or(("", encoded));
    let mut output: Vec<char> = basic.chars().collect();
    let (mut n, mut i, mut bias) = (INITIAL_N, 0u32, INITIAL_BIAS);
    let mut digits = deltas.bytes();
    while digits.len() > 0 {
        let before = i;
        let (mut weight, mut k) = (1u32, BASE);
        loop {
            let digit = digit(digits.next()?)?;
            i = i.checked_add(digit.checked_mul(weight)?)?;
            let threshold = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
            if digit < threshold {
                break;
            }
            weight = weight.checked_mul(BASE - threshold)?;
            k += BASE;
        }
        let length = u32::try_from(output.len()).ok()? + 1;
        bias = adapt(i - before, length, before == 0);
        n = n.checked_add(i / length)?;
        i %= length;
        output.insert(i as usize, char::from_u32(n)?);
        i += 1;
    }
    Some(output.into_iter().collect())
}

fn digit(byte: u8) -> Option<u32> {
    match byte {
        b'a'..=b'z' => Some(u32::from(byte - b'a')),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 26),
        _ => None,
    }
}

/// RFC 3492 section 6.1.
fn adapt(delta: u32, length: u32, first: bool) -> u32 {
    let mut delta = if first { delta / DAMP } else { delta / 2 };
    delta += delta / length;
    let mut k = 0;
    while delta > ((BASE - T_MIN) * T_MAX) / 2 {
        delta /= BASE - T_MIN;
        k += BASE;
    }
    k + (BASE - T_MIN + 1) * delta / (delta + SKEW)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From RFC 3492 section 7.1, lower-case.
    #[test]
    fn samples_of_the_standard_decode() {
        for (encoded, label) in [
            ("ihqwcrb4cv8a8dqg056pqjye", "他们为什么不说中文"),
            ("bcher-kva", "bücher"),
            ("egbpdaj6bu4bxfgehfvwxn", "ليهمابتكلموشعربي؟"),
        ] {
            assert_eq!(decode(encoded).as_deref(), Some(label));
        }
    }

    #[test]
    fn overflow_is_refused() {
        assert_eq!(decode("999999999999999999999999999999"), None);
    }
}
