//! `wrenn-fuzz TARGET FILE...` gives files to a target. Built by `cargo xtask fuzz` it is libFuzzer instead, for the target
//! that the variable `WRENN_FUZZ` names.
#![cfg_attr(wrenn_fuzz, no_main)]

#[cfg(wrenn_fuzz)]
mod libfuzzer {
    use std::sync::OnceLock;

    use wrenn_fuzz::{Target, target};

    static TARGET: OnceLock<Target> = OnceLock::new();

    fn chosen() -> Target {
        let name = std::env::var("WRENN_FUZZ").unwrap_or_default();
        target(&name).unwrap_or_else(|| panic!("WRENN_FUZZ names no target: {name:?}"))
    }

    libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.get_or_init(chosen).run)(bytes));
}

#[cfg(not(wrenn_fuzz))]
fn main() -> Result<(), String> {
    let mut words = std::env::args().skip(1);
    let name = words.next().unwrap_or_default();
    let target = wrenn_fuzz::target(&name).ok_or("usage: wrenn-fuzz TARGET FILE...")?;
    for file in words {
        let bytes = std::fs::read(&file).map_err(|error| format!("{file}: {error}"))?;
        (target.run)(&bytes);
    }
    Ok(())
}
