//! What a machine lets nobody test.

/// Says that something is not tested here, and why. With `DUNLIN_TEST_ALL=1` that is a failure: for
/// a machine that is known to have it all.
///
/// # Panics
/// With `DUNLIN_TEST_ALL=1`.
#[expect(clippy::print_stderr, reason = "a test that tests nothing says so")]
pub fn not_tested(why: &str) {
    let all = std::env::var_os("DUNLIN_TEST_ALL").is_some_and(|value| value == "1");
    assert!(!all, "not tested, and DUNLIN_TEST_ALL=1: {why}");
    eprintln!("NOT TESTED: {why}");
}
