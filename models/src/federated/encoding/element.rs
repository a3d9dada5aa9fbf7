//! Halves of floats, rounded to nearest, ties to even.

/// Bits of the nearest binary16; infinite where the value is out of range.
pub(super) fn to_float16(value: f32) -> u16 {
    const SIGN: u32 = 1 << 31;
    let bits = value.to_bits();
    let sign = ((bits & SIGN) >> 16) as u16;
    let magnitude = f32::from_bits(bits & !SIGN);
    if magnitude.is_nan() {
        return sign | 0x7e00;
    }
    // Normal below 2^-14; there a step is 2^-24, and adding 1/2 rounds to it.
    if magnitude < f32::from_bits(0x3880_0000) {
        return sign | ((magnitude + 0.5).to_bits() & 0x7ff) as u16;
    }
    // 13 bits go; the exponent's bias is 15 instead of 127.
    let bits = magnitude.to_bits();
    let even = (bits >> 13) & 1;
    let rounded = bits.saturating_add(0xfff + even);
    let half = (rounded >> 13).saturating_sub((127 - 15) << 10);
    sign | half.min(0x7c00) as u16
}

/// The value of a binary16, exactly.
pub(super) fn from_float16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let value = match magnitude {
        0x7c00.. => f32::from_bits(0x7f80_0000 | ((magnitude & 0x3ff) << 13)),
        0x400.. => f32::from_bits((magnitude << 13) + ((127 - 15) << 23)),
        // Subnormal: so many steps of 2^-24.
        _ => f32::from(bits & 0x3ff) * f32::from_bits(0x3380_0000),
    };
    f32::from_bits(value.to_bits() | sign)
}

/// Bits of the nearest bfloat16; infinite where the value is out of range.
pub(super) fn to_bfloat16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let even = (bits >> 16) & 1;
    ((bits + 0x7fff + even) >> 16) as u16
}

/// The value of a bfloat16, exactly.
pub(super) fn from_bfloat16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The value of a binary16 by its definition.
    fn defined(bits: u16) -> f64 {
        let exponent = i32::from(bits >> 10 & 0x1f);
        let fraction = f64::from(bits & 0x3ff) / 1024.0;
        let magnitude = match exponent {
            0 => fraction * 2_f64.powi(-14),
            31 if bits & 0x3ff != 0 => f64::NAN,
            31 => f64::INFINITY,
            _ => (1.0 + fraction) * 2_f64.powi(exponent - 15),
        };
        if bits & 0x8000 == 0 { magnitude } else { -magnitude }
    }

    #[test]
    fn all_of_binary16_is_as_defined_and_comes_back() {
        for bits in 0..=u16::MAX {
            let (value, expected) = (f64::from(from_float16(bits)), defined(bits));
            assert!(value.to_bits() == expected.to_bits() || expected.is_nan(), "{bits:04x}");
            let back = to_float16(from_float16(bits));
            assert!(back == bits || expected.is_nan() && defined(back).is_nan(), "{bits:04x}");
            let wide = from_bfloat16(bits);
            let back = to_bfloat16(wide);
            assert!(back == bits || wide.is_nan() && from_bfloat16(back).is_nan(), "{bits:04x}");
        }
    }

    /// The nearest of the candidates, the even one of two.
    fn nearest(value: f32, of: impl Fn(u16) -> f64, infinity: u16) -> u16 {
        // As if the range went on by a step: so overflow begins where IEEE 754 lets it.
        let limit = 2.0 * of(infinity - 1) - of(infinity - 2);
        let candidate = |bits: u16| if bits == infinity { limit } else { of(bits) };
        let magnitude = f64::from(value.abs()).min(limit);
        let distance = |bits: &u16| (candidate(*bits) - magnitude).abs();
        let nearer =
            |a: &u16, b: &u16| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2)));
        let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
        (0..=infinity).min_by(nearer).unwrap() | sign
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn rounding_is_to_the_nearest(
            value in prop_oneof![-7e4_f32..7e4, -1e-4_f32..1e-4, -1e-7_f32..1e-7, any::<f32>()],
            tie in 0..0x7bff_u16,
        ) {
            prop_assume!(!value.is_nan());
            prop_assert_eq!(to_float16(value), nearest(value, defined, 0x7c00));
            let wide = |bits| f64::from(from_bfloat16(bits));
            prop_assert_eq!(to_bfloat16(value), nearest(value, wide, 0x7f80));
            #[expect(clippy::cast_possible_truncation, reason = "exact: one bit more than binary16")]
            let half_way = f64::midpoint(defined(tie), defined(tie + 1)) as f32;
            prop_assert_eq!(to_float16(half_way), tie + tie % 2);
        }
    }
}
