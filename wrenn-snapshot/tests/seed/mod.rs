//! Where the random cases of a test come from: the seed in `WRENN_TEST_SEED`, or a new one. A test that fails prints it.

use proptest::test_runner::{Config, RngSeed};

/// So many cases, from one seed.
#[allow(clippy::print_stdout, reason = "clippy takes this for a test in the crate, and for none in tests/")]
pub(crate) fn cases(cases: u32) -> Config {
    let seed = match std::env::var("WRENN_TEST_SEED") {
        Ok(seed) => seed.parse().expect("WRENN_TEST_SEED is a number of 64 bits"),
        Err(_) => rand::random(),
    };
    // The test harness shows what a test that failed has printed.
    println!("WRENN_TEST_SEED={seed}");
    Config { cases, rng_seed: RngSeed::Fixed(seed), ..Config::default() }
}
