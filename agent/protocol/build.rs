//! Generates the messages and the asynchronous ttrpc client and server of the agent contract.

use std::path::PathBuf;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> io::Result<()> {
    const INPUTS: &[&str] = &[
        "protos/agent.proto",
        "protos/csi.proto",
        "protos/health.proto",
        "protos/network.proto",
        "protos/oci.proto",
        "protos/processes.proto",
        "protos/types.proto",
    ];
    println!("cargo:rerun-if-changed=protos");
    Codegen::new()
        .inputs(INPUTS)
        .include("protos")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(true))
        .customize(Customize { async_all: true, gen_mod: true, ..Default::default() })
        .run()?;

    // The list of modules starts with an inner attribute, which `include!` does not accept.
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?);
    let modules: String = fs::read_to_string(out.join("mod.rs"))?
        .lines()
        .filter(|line| line.starts_with("pub mod "))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(out.join("contract.rs"), modules)
}
