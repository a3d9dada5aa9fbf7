//! Numbers that are drawn, the same ones in every run.

/// A linear congruential generator (Knuth's MMIX), whose upper bits are given.
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to 1, without 1.
    pub(crate) fn uniform(&mut self) -> f32 {
        f32::from(self.bits()) / 65_536.0
    }

    /// 16 bits.
    pub(crate) fn bits(&mut self) -> u16 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [.., low, high] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Nearly normally distributed, with a variance of 1/2.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..6).map(|_| self.uniform()).sum::<f32>() - 3.0
    }
}
