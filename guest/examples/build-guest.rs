//! Makes a guest without the command line program: `build-guest OUT_DIR AGENT CACHE_DIR [initrd|image|both]`.

use std::sync::Arc;

use stockade_guest::{BuildOptions, GuestKind, build};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [out, agent, cache, kind @ ..] = arguments.as_slice() else {
        return Err("usage: build-guest OUT_DIR AGENT CACHE_DIR [initrd|image|both]".into());
    };
    let mut options = BuildOptions::new(out, agent, cache);
    options.kind = match kind.first().map(String::as_str) {
        None | Some("initrd") => GuestKind::Initrd,
        Some("image") => GuestKind::Image,
        Some("both") => GuestKind::Both,
        Some(other) => return Err(format!("no kind of guest is called '{other}'").into()),
    };
    options.progress = Some(Arc::new(|step: &str| println!("{step}")));
    println!("{:#?}", build(&options)?);
    Ok(())
}
