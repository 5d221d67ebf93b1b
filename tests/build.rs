//! Generates the messages of the tests' CRI client from protos/.

use std::fs;
use std::path::PathBuf;
use ttrpc_codegen::{Codegen, ProtobufCustomize};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("cri");
    fs::create_dir_all(&out).expect("OUT_DIR is writable");
    println!("cargo::rerun-if-changed=protos/cri.proto");
    Codegen::new()
        .inputs(["protos/cri.proto"])
        .include("protos")
        .out_dir(&out)
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .run()
        .expect("protos/cri.proto is well formed");
    // `include!` takes no inner attributes (rust-lang/rust#18810).
    let path = out.join("cri.rs");
    let text = fs::read_to_string(&path).expect("the generator wrote it");
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
    fs::write(&path, kept.join("\n")).expect("OUT_DIR is writable");
}
