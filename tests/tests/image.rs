//! A guest that boots from a disk image, whose systemd starts the agent.

use std::time::Duration;

use stockade_tests::harness::{Bundle, HostState, Stockade, guest, wait};

/// systemd needs half a minute to start under emulation.
const BOOT: Duration = Duration::from_secs(200);

#[test]
fn a_guest_with_systemd_runs_a_container_and_gets_its_kernel_parameters_in_order() {
    let folder = guest();
    let (image, initrd) = (folder.join("image.erofs"), folder.join("image-initrd.img"));
    assert!(image.is_file(), "there is no {}: `cargo xtask test` makes it", image.display());
    let limit = 150 * wait::slowness();
    let machine = format!(
        "initrd = \"\"\nimage = {image:?}\nimage_initrd = {initrd:?}\nrootfs_type = \"erofs\"\nboot_timeout = {limit}\n\
         kernel_params = \"user.first=1 quiet user.last=2\""
    );
    let stockade = Stockade::with_config(&machine, &format!("[agent.kata]\nreconnect_timeout_ms = {limit}000"));
    let before = HostState::capture(&stockade);
    let id = stockade.id("image");
    let bundle = Bundle::shell("cat /proc/cmdline; exit 3").unwrap();
    let ran = stockade.start_run(&id, &bundle, &[]).wait(BOOT);
    assert_eq!(ran.code(), 3, "{ran:?}");
    let line = ran.text();
    let mut rest = line.as_str();
    for parameter in [
        "systemd.unit=kata-containers.target",
        "systemd.mask=systemd-networkd.service",
        "systemd.mask=systemd-networkd.socket",
        "agent.log=",
        "user.first=1",
        "user.last=2",
    ] {
        let at = rest.find(parameter).unwrap_or_else(|| panic!("{parameter} is missing, or out of order, in {line}"));
        rest = &rest[at + parameter.len()..];
    }
    before.assert_same(&stockade);
}
