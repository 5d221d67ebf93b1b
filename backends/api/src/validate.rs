//! What every backend checks of a configuration before it touches the host.

use crate::{BootSource, DeviceConfig, HypervisorError, VmConfig};
use std::path::Path;

/// The least memory that a Linux guest with an initrd comes up in.
const LEAST_MEMORY_MIB: u32 = 64;
/// The most that a page table of 46 bits can name, in MiB.
const MOST_MEMORY_MIB: u32 = 64 << 20;
/// The longest kernel command line that Linux on x86 takes, without its end, less what a backend adds.
const COMMAND_LINE_LIMIT: usize = 2047 - 512;
/// The virtio-fs tag field.
const TAG_LIMIT: usize = 36;

fn refuse(option: &'static str, problem: impl Into<String>) -> HypervisorError {
    HypervisorError::Config { option, problem: problem.into() }
}

fn readable_file(option: &'static str, path: &Path) -> Result<(), HypervisorError> {
    let shown = path.display();
    if path.as_os_str().is_empty() {
        return Err(refuse(option, "no path is given"));
    }
    let file = std::fs::File::open(path).map_err(|e| refuse(option, format!("cannot read {shown}: {e}")))?;
    let meta = file.metadata().map_err(|e| refuse(option, format!("cannot read {shown}: {e}")))?;
    if meta.is_dir() {
        return Err(refuse(option, format!("{shown} is a directory")));
    }
    if meta.is_file() && meta.len() == 0 {
        return Err(refuse(option, format!("{shown} is empty")));
    }
    Ok(())
}

impl VmConfig {
    /// Checks everything that does not depend on the backend. Opens files for reading and changes nothing.
    ///
    /// # Errors
    /// [`HypervisorError::Config`] with the option's name in the configuration.
    pub fn validate(&self) -> Result<(), HypervisorError> {
        if self.id.is_empty()
            || self.id.len() > 128
            || !self.id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b))
        {
            return Err(refuse("id", format!("{:?} is not an id", self.id)));
        }
        if !self.run_dir.is_absolute() || !self.run_dir.is_dir() {
            return Err(refuse("run_dir", format!("{} is not an existing absolute directory", self.run_dir.display())));
        }
        readable_file("kernel", &self.kernel.0)?;
        match &self.boot {
            BootSource::Initrd(path) => readable_file("initrd", path)?,
            BootSource::Image { image, initrd } => {
                readable_file("image", image)?;
                if let Some(path) = initrd {
                    readable_file("initrd", path)?;
                }
            }
        }
        self.validate_sizes()?;
        self.validate_kernel_params()?;
        let mut tags = std::collections::HashSet::new();
        for device in &self.devices {
            device.validate()?;
            if let DeviceConfig::Share { tag, .. } = device
                && !tags.insert(tag)
            {
                return Err(refuse("share", format!("the tag {tag:?} is used twice")));
            }
        }
        Ok(())
    }

    fn validate_sizes(&self) -> Result<(), HypervisorError> {
        if self.vcpus == 0 {
            return Err(refuse("default_vcpus", "a machine needs at least 1 vCPU"));
        }
        if self.max_vcpus < self.vcpus {
            return Err(refuse(
                "default_maxvcpus",
                format!("{} is less than the {} vCPUs at boot", self.max_vcpus, self.vcpus),
            ));
        }
        if self.memory.0 < LEAST_MEMORY_MIB {
            return Err(refuse(
                "default_memory",
                format!("{} is too little: at least {LEAST_MEMORY_MIB} MiB are needed", self.memory),
            ));
        }
        if self.max_memory < self.memory {
            return Err(refuse(
                "default_maxmemory",
                format!("{} is less than the {} at boot", self.max_memory, self.memory),
            ));
        }
        if self.max_memory.0 > MOST_MEMORY_MIB {
            return Err(refuse("default_maxmemory", format!("{} is more than a guest can address", self.max_memory)));
        }
        if self.guest_cid < 3 || self.guest_cid == u32::MAX {
            return Err(refuse("guest_cid", format!("{} is reserved", self.guest_cid)));
        }
        Ok(())
    }

    fn validate_kernel_params(&self) -> Result<(), HypervisorError> {
        let mut length = 0;
        for param in &self.kernel_params {
            if param.is_empty() || param.chars().any(char::is_control) {
                return Err(refuse("kernel_params", format!("{param:?} is not a kernel parameter")));
            }
            length += param.len() + 1;
        }
        if length > COMMAND_LINE_LIMIT {
            return Err(refuse(
                "kernel_params",
                format!("{length} bytes are too many: the kernel takes {COMMAND_LINE_LIMIT}"),
            ));
        }
        Ok(())
    }
}

impl DeviceConfig {
    /// Checks what does not depend on the backend.
    ///
    /// # Errors
    /// [`HypervisorError::Config`] with the device's kind as the option.
    pub fn validate(&self) -> Result<(), HypervisorError> {
        match self {
            Self::Share { tag, source, .. } => {
                if tag.is_empty() || tag.len() > TAG_LIMIT || !tag.bytes().all(|b| b.is_ascii_graphic() && b != b',') {
                    return Err(refuse("share", format!("{tag:?} is not a tag of 1 to {TAG_LIMIT} plain characters")));
                }
                if !source.is_dir() {
                    return Err(refuse("share", format!("{} is not a directory", source.display())));
                }
            }
            Self::Block { path, .. } => readable_file("block device", path)?,
            Self::Net { queues, mtu, mac } => {
                if queues.0.is_empty() || queues.0.len() > 256 {
                    return Err(refuse("network interface", "it needs 1 to 256 queues"));
                }
                if *mtu < 68 {
                    return Err(refuse("network interface", format!("an MTU of {mtu} is too small: IPv4 needs 68")));
                }
                if mac[0] & 1 != 0 {
                    return Err(refuse("network interface", "its hardware address is a group address"));
                }
            }
        }
        Ok(())
    }
}
