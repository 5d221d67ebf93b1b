//! The capabilities that a device process keeps.

use super::{JailError, call};
use crate::sys;

/// Which capabilities a process needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capabilities {
    /// None: it serves no files.
    None,
    /// Those of a file server that acts for all users of a guest:
    ///
    /// | capability | for |
    /// |---|---|
    /// | CHOWN | `chown` by the guest's root |
    /// | DAC_OVERRIDE | the guest's root reads and writes files of other users |
    /// | FOWNER | the guest's root changes mode, times and attributes of other users' files |
    /// | FSETID | writes by the guest's root keep set-user-id bits, as the guest expects; dropped for writes that must clear them |
    /// | SETGID, SETUID | files are made as the user and group that the guest's process has |
    /// | MKNOD | device nodes in a container's root, as package managers make them; the mounts are nodev, so that none can be opened here |
    /// | SETFCAP | `security.capability` of programs like ping |
    FileServer,
}

/// Highest capability number that the kernel could know: the sets have 64 bits.
const LAST: u8 = 63;

const CAP_CHOWN: u8 = 0;
const CAP_DAC_OVERRIDE: u8 = 1;
const CAP_FOWNER: u8 = 3;
const CAP_FSETID: u8 = 4;
const CAP_SETGID: u8 = 6;
const CAP_SETUID: u8 = 7;
const CAP_MKNOD: u8 = 27;
const CAP_SETFCAP: u8 = 31;

const FILE_SERVER: [u8; 8] =
    [CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_FSETID, CAP_SETGID, CAP_SETUID, CAP_MKNOD, CAP_SETFCAP];

impl Capabilities {
    /// The set as bits.
    fn mask(self) -> u64 {
        match self {
            Self::None => 0,
            Self::FileServer => FILE_SERVER.iter().fold(0, |mask, cap| mask | 1 << cap),
        }
    }
}

/// Drops all others from every set. The bounding set goes first, since dropping from it takes a capability itself.
pub(super) fn keep_only(capabilities: Capabilities) -> Result<(), JailError> {
    shrink_bounding_set(capabilities)?;
    sys::set_capabilities(capabilities.mask()).map_err(call("drop capabilities"))
}

/// Drops all others from the bounding and the ambient set.
pub(super) fn shrink_bounding_set(capabilities: Capabilities) -> Result<(), JailError> {
    let mask = capabilities.mask();
    for capability in (0..=LAST).filter(|capability| mask & (1 << capability) == 0) {
        let known = sys::drop_from_bounding_set(capability).map_err(call("shrink the capability bounding set"))?;
        if !known {
            break;
        }
    }
    sys::clear_ambient_set().map_err(call("empty the ambient capability set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_server_cannot_administer_nor_open_by_handle() {
        let mask = Capabilities::FileServer.mask();
        for forbidden in [2, 8, 12, 13, 16, 17, 18, 19, 21, 23, 24] {
            assert_eq!(mask & (1 << forbidden), 0, "capability {forbidden}");
        }
        assert_eq!(mask.count_ones(), 8);
        assert_eq!(Capabilities::None.mask(), 0);
    }
}
