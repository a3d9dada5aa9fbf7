//! Settings of this process that libraries read from its environment.

#![expect(unsafe_code, reason = "the environment of a process has no lock")]

/// Sets a variable, unless whoever started the process has set it. For the beginning of `main`
/// only: no thread may read the environment meanwhile, and none is there yet.
pub(crate) fn prefer(variable: &str, value: &str) {
    if std::env::var_os(variable).is_none() {
        // SAFETY: the process has one thread, as is asked of callers.
        unsafe { std::env::set_var(variable, value) }
    }
}
