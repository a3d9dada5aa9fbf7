//! When the system gets pages back that are free: how long the allocator keeps them.
//!
//! It waits for a second by itself, in which the chunks of a large model's updates take new pages
//! all the time. To give pages back at once costs a round up to a fifth of its time, because they
//! are needed again: to keep them for 10 ms takes 10 MB more with a model of 1 MB, 5 MB more with
//! one of 25 MB. A round of a small model is over soon and needs the same few pages again: to keep
//! them for 50 ms saves a twentieth of its time, and would take 10 MB more with one of 25 MB.

#![expect(unsafe_code, reason = "mimalloc's options are set through its C interface only")]

use std::ffi::c_long;

/// `mi_option_purge_delay` of `mi_option_e` in mimalloc.h, in milliseconds.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Bytes of a small model, at most.
const SMALL: u64 = 4 * 1024 * 1024;

/// Keeps them as it suits a model of so many bytes, that of the training which began last.
pub fn suit(model: u64) {
    let milliseconds: c_long = if model <= SMALL { 50 } else { 10 };
    // SAFETY: the function takes any option and value at any time, on any thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) }
}

/// Gives back at once what this thread has freed: whoever needs much next need not wait for it.
pub fn give_back() {
    // SAFETY: the function takes nothing but whether to do all that it can, on any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
