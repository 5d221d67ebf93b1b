//! An OCI image made here, so that no registry is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::busybox_rootfs;

/// The name of the image that tests' containers are made of, as containerd knows it.
pub const NAME: &str = "docker.io/library/stockade-busybox:latest";
/// The name of the image that a pod's sandbox is made of.
pub const PAUSE: &str = "docker.io/library/stockade-pause:latest";

/// Makes `image.tar` in `folder`: an archive with an OCI image layout, for `ctr images import` and `podman load`. Its one
/// layer is [`busybox_rootfs`], and without other words it runs `command`.
///
/// # Errors
/// When a file cannot be made, or `tar` fails.
pub fn archive(folder: &Path, name: &str, command: &[&str]) -> Result<PathBuf> {
    let work = tempfile::Builder::new().prefix("image-").tempdir_in(folder).context("cannot create a folder")?;
    let (root, layout) = (work.path().join("root"), work.path().join("layout"));
    fs::create_dir_all(layout.join("blobs/sha256")).context("cannot create a folder")?;
    busybox_rootfs(&root)?;
    let layer = work.path().join("layer.tar");
    tar(&root, &layer)?;
    let layer = fs::read(&layer).context("cannot read the layer")?;
    let layer = blob(&layout, &layer, "application/vnd.oci.image.layer.v1.tar")?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(&layout, config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json")?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let mut manifest = blob(&layout, manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json")?;
    manifest["annotations"] = json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "latest"});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    write(&layout.join("index.json"), index.to_string().as_bytes())?;
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let archive = folder.join("image.tar");
    tar(&layout, &archive)?;
    Ok(archive)
}

/// Puts a blob into the layout; returns its descriptor.
fn blob(layout: &Path, bytes: &[u8], kind: &str) -> Result<Value> {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    write(&layout.join("blobs/sha256").join(&digest), bytes)?;
    Ok(json!({"mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let owner = ["--numeric-owner", "--owner=0", "--group=0", "--sort=name", "--mtime=@0"];
    let status = Command::new("tar").args(owner).arg("-C").arg(folder).arg("-cf").arg(archive).arg(".").status();
    let status = status.context("cannot run tar")?;
    ensure!(status.success(), "tar failed: {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_each_blob_under_its_digest() {
        let folder = tempfile::tempdir().unwrap();
        let archive = archive(folder.path(), NAME, &["sh"]).unwrap();
        let list = Command::new("tar").arg("-tf").arg(archive).output().unwrap();
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert_eq!(
            list.lines().filter(|line| line.starts_with("./blobs/sha256/") && line.len() > 20).count(),
            3,
            "{list}"
        );
        assert!(list.contains("./index.json") && list.contains("./oci-layout"), "{list}");
    }
}
