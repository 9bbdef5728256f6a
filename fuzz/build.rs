//! Tells the compiler of the `cfg` that `cargo xtask fuzz` sets.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(wrenn_fuzz)");
    println!("cargo::rerun-if-changed=build.rs");
}
