//! The program `dunlin`.

use std::process::ExitCode;

/// The allocators of C libraries give large buffers back to the system at once and fetch them
/// again, which costs a round of a large model up to a fifth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    give_memory_back();
    broker_api::cli::main()
}

/// Lets the allocator give pages back to the system soon after they are free. It waits for a second
/// otherwise, in which the chunks of a large model's updates take new pages all the time. To wait
/// for this long takes 10 MB more with a model of 1 MB, 5 MB more with one of 25 MB; to give pages
/// back at once costs a round up to a fifth of its time, because they are needed again.
fn give_memory_back() {
    /// `mi_option_purge_delay` of `mi_option_e` in mimalloc.h.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const MILLISECONDS: std::ffi::c_long = 10;
    #[expect(unsafe_code, reason = "mimalloc's options are set through its C interface only")]
    // SAFETY: the function takes any option and value at any time.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, MILLISECONDS);
    }
}
