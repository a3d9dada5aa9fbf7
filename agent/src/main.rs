//! `dunlin-agent`.

use std::process::ExitCode;

/// The allocators of C libraries give large buffers back to the system at once and fetch them
/// again, which costs a round of a large model up to a fifth of its time.
#[cfg(not(feature = "system-allocator"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    #[cfg(not(feature = "system-allocator"))]
    give_memory_back();
    agent::cli::main()
}

/// Lets the allocator give pages back to the system soon after they are free. It waits for a second
/// otherwise, and an agent takes 10 MB more in rounds with a model of 25 MB.
#[cfg(not(feature = "system-allocator"))]
fn give_memory_back() {
    /// `mi_option_purge_delay` of `mi_option_e` in mimalloc.h.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const MILLISECONDS: std::ffi::c_long = 40;
    #[expect(unsafe_code, reason = "mimalloc's options are set through its C interface only")]
    // SAFETY: the function takes any option and value at any time.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, MILLISECONDS);
    }
}
