//! Has cargo build the server anew when a migration is added, of which the compiler knows nothing.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=migrations");
}
