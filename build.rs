//! Generates the supervisor's own ttrpc service, and containerd's messages that no crate has, from src/api/protos.

use std::fs;
use std::path::PathBuf;
use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("api");
    fs::create_dir_all(&out).expect("OUT_DIR is writable");
    const PROTOS: [&str; 2] = ["src/api/protos/runtime_options.proto", "src/api/protos/stockade.proto"];
    for path in PROTOS {
        println!("cargo::rerun-if-changed={path}");
    }
    Codegen::new()
        .inputs(PROTOS)
        .include("src/api/protos")
        .out_dir(&out)
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize { async_all: true, ..Customize::default() })
        .run()
        .expect("the files in src/api/protos are well formed");
    // `include!` takes no inner attributes (rust-lang/rust#18810).
    for name in ["runtime_options.rs", "stockade.rs", "stockade_ttrpc.rs"] {
        let path = out.join(name);
        let text = fs::read_to_string(&path).expect("the generator wrote it");
        let kept: Vec<&str> =
            text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
        fs::write(&path, kept.join("\n")).expect("OUT_DIR is writable");
    }
}
