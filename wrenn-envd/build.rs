//! Turns `proto/` into the wire types, with no `protoc` on the machine.

use std::{env, error::Error, fs, path::PathBuf};

use buffa_codegen::BytesRepr;
use connectrpc_build::CodeGenConfig;
use protox::prost_reflect::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let descriptors = out_dir.join("descriptors.bin");
    let set = protox::compile(FILES, ["proto"])?;
    fs::write(&descriptors, set.encode_to_vec())?;
    let mut codegen = CodeGenConfig::default();
    codegen.generate_json = true;
    // Output is handed on as it lies.
    codegen.bytes_fields = vec![(".process.ProcessEvent.DataEvent".to_owned(), BytesRepr::Bytes)];
    connectrpc_build::Config::new()
        .buffa_config(codegen)
        .files(&FILES)
        .descriptor_set(&descriptors)
        .gate_client_feature(true)
        .include_file("_connectrpc.rs")
        // It would have cargo watch the descriptors, which are newer than their own build: each build would be stale at once.
        .emit_rerun_directives(false)
        .compile()?;
    Ok(())
}

const FILES: [&str; 2] = ["filesystem.proto", "process.proto"];
