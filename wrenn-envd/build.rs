//! Turns `proto/` into the wire types, with no `protoc` on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use protox::prost_reflect::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = out_dir.join("descriptors.bin");
    let set = protox::compile(FILES, ["proto"])?;
    fs::write(&descriptors, set.encode_to_vec())?;
    connectrpc_build::Config::new()
        .files(&FILES)
        .descriptor_set(&descriptors)
        .gate_client_feature(true)
        .include_file("_connectrpc.rs")
        .compile()?;
    Ok(())
}

const FILES: [&str; 2] = ["filesystem.proto", "process.proto"];
