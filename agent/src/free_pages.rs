//! Pages that are free, and that the allocator keeps.

/// Gives what is free back to the system, for which it is taken otherwise: of models that were let go
/// of most was kept for as long as nothing else happened.
#[cfg(not(feature = "system-allocator"))]
#[expect(unsafe_code, reason = "mimalloc has no other way to be asked")]
pub(crate) fn give_back() {
    // SAFETY: any thread may call it at any time. Where mimalloc is not the program's allocator it has
    // nothing to give.
    unsafe {
        libmimalloc_sys::mi_collect(true);
    }
}

/// The C library's gives large buffers back at once.
#[cfg(feature = "system-allocator")]
pub(crate) fn give_back() {}
