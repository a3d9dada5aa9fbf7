//! Vectors of `f32`: what the kernels that matter most are written in, chosen for the processor at
//! run time.

#![expect(unsafe_code, reason = "vector instructions and unchecked addresses")]
#![expect(clippy::undocumented_unsafe_blocks, reason = "each passes on its caller's promise")]

use std::sync::OnceLock;

use super::tile::{Outputs, Products, Spot};

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(all(target_arch = "arm", target_os = "linux"))]
mod neon32;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

/// One set of vector instructions.
///
/// # Safety
/// Every function needs a processor that has the instructions; addresses must hold as many `f32`
/// as are read or written, of any alignment.
pub(super) trait Simd: Copy + Send + Sync + 'static {
    type Vector: Copy;
    /// `f32`s of a vector.
    const LANES: usize;
    /// Largest register tile, rows times vectors: the sums with their operands fit the registers.
    const ROWS: usize;
    const VECTORS: usize;
    /// Most rows of a tile of 1, 2, 3 and 4 vectors whose operands are not in registers: a row's
    /// number is spread over the lanes where it is used. 0 where there is no such tile.
    const TILES: [usize; 4];

    /// Runs work in a function of its own that is compiled for these instructions: a loop that
    /// fills the registers is not to share them with what is around it.
    unsafe fn apart<W: Work>(work: W);

    unsafe fn splat(value: f32) -> Self::Vector;
    unsafe fn load(from: *const f32) -> Self::Vector;
    unsafe fn store(to: *mut f32, value: Self::Vector);
    /// The first `lanes` from memory, zeros behind them.
    unsafe fn load_part(from: *const f32, lanes: usize) -> Self::Vector;
    /// The first `lanes` to memory.
    unsafe fn store_part(to: *mut f32, lanes: usize, value: Self::Vector);
    unsafe fn add(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The larger one; `b` where one of them is NaN.
    unsafe fn max(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// The smaller one; `b` where one of them is NaN.
    unsafe fn min(a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`
    unsafe fn multiply_add(a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// A tile of outputs in code that the compiler did not make; `false`, with nothing done, where
    /// there is none.
    #[inline(always)]
    unsafe fn outputs<const R: usize, const N: usize>(_: &Outputs<'_>, _: &[Spot]) -> bool {
        false
    }

    /// The same for a tile of products.
    #[inline(always)]
    unsafe fn products<const R: usize, const N: usize>(_: &Products<'_>) -> bool {
        false
    }
}

/// Largest [`Simd::LANES`] of all.
pub(super) const LANES_MAX: usize = 16;

#[cfg(test)]
thread_local! {
    /// What [`Instructions::best`] gives on this thread.
    pub(super) static CHOSEN: std::cell::Cell<Option<Instructions>> =
        const { std::cell::Cell::new(None) };
}

/// The instruction sets that kernels are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instructions {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(all(target_arch = "arm", target_os = "linux"))]
    Neon32,
    Plain,
}

impl Instructions {
    /// The best that this processor has.
    pub(super) fn best() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        #[cfg(test)]
        if let Some(chosen) = CHOSEN.get() {
            return chosen;
        }
        *BEST.get_or_init(|| Self::available()[0])
    }

    /// All that this processor has, the best first.
    pub(super) fn available() -> Vec<Self> {
        let mut available = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                available.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                available.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        available.push(Self::Neon);
        #[cfg(all(target_arch = "arm", target_os = "linux"))]
        if neon32::is_here() {
            available.push(Self::Neon32);
        }
        available.push(Self::Plain);
        available
    }

    /// `f32`s of a vector.
    pub(super) fn lanes(self) -> usize {
        self.constants().0
    }

    /// See [`Simd::ROWS`].
    pub(super) fn rows(self) -> usize {
        self.constants().1
    }

    /// See [`Simd::VECTORS`].
    pub(super) fn vectors(self) -> usize {
        self.constants().2
    }

    /// See [`Simd::TILES`].
    pub(super) fn tiles(self) -> [usize; 4] {
        self.constants().3
    }

    fn constants(self) -> (usize, usize, usize, [usize; 4]) {
        fn of<S: Simd>() -> (usize, usize, usize, [usize; 4]) {
            (S::LANES, S::ROWS, S::VECTORS, S::TILES)
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => of::<x86::Avx512>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => of::<x86::Avx2>(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => of::<neon::Neon>(),
            #[cfg(all(target_arch = "arm", target_os = "linux"))]
            Self::Neon32 => of::<neon32::Neon32>(),
            Self::Plain => of::<plain::Plain>(),
        }
    }

    /// Runs work with these instructions.
    pub(super) fn run<W: Work>(self, work: W) {
        // SAFETY: a value of a set is made only where the processor has it.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => x86::avx512(work),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::avx2(work),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => work.run::<neon::Neon>(),
                #[cfg(all(target_arch = "arm", target_os = "linux"))]
                Self::Neon32 => work.run::<neon32::Neon32>(),
                Self::Plain => work.run::<plain::Plain>(),
            }
        }
    }
}

/// Runs a loop over slices, which the compiler makes vectors of, with the best instructions.
pub(crate) fn vectorised(work: impl Loop) {
    struct Looping<L>(L);
    impl<L: Loop> Work for Looping<L> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            self.0.run();
        }
    }
    Instructions::best().run(Looping(work));
}

/// Has a processor fetch the line of a value, if there is one, that is going to be read: where many
/// rows are read side by side it does not foresee them all. Changes nothing that can be seen.
#[inline(always)]
pub(crate) fn fetch(values: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(value) = values.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86_64 has the instruction; it is an address of the slice.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (values, at);
}

/// A loop for [`vectorised`]: a closure, or where that is so long that the compiler would not copy
/// it there, a type of its own, whose method is to be inlined always.
pub(crate) trait Loop {
    fn run(self);
}

impl<F: FnOnce()> Loop for F {
    #[inline(always)]
    fn run(self) {
        self();
    }
}

/// Something to do with any set of instructions.
pub(super) trait Work {
    /// To be inlined always: only so it is compiled for the instructions.
    ///
    /// # Safety
    /// The processor has the instructions.
    unsafe fn run<S: Simd>(self);
}
