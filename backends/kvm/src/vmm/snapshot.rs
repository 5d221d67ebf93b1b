//! A machine in two files: its memory, and all else as JSON.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::build::Built;
use super::{VmmError, host};
use crate::machine::{MachineError, MachineState, SlotIndex};

/// The version of [`Saved`]. Another version is refused: a saved machine is made again rather than translated.
const VERSION: u32 = 1;

/// The most bytes of a state: some hundred vCPUs and devices have a tenth of it.
const STATE_LIMIT: u64 = 64 << 20;

/// All of a machine but its memory.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    version: u32,
    /// Its devices by the supervisor's names.
    pub(super) slots: BTreeMap<String, SlotIndex>,
    pub(super) machine: MachineState,
}

/// Only what every version has, so that another one is named as the reason.
#[derive(Debug, Deserialize)]
struct Version {
    version: u32,
}

/// Saves the machine, which is paused, to the files for its state and its memory, which are empty.
pub(super) fn save(built: &mut Built, files: Vec<OwnedFd>) -> Result<(), VmmError> {
    let Ok([state, memory]) = <[OwnedFd; 2]>::try_from(files) else { return Err(VmmError::OutOfOrder) };
    let machine = built.machine.save(&File::from(memory))?;
    let saved = Saved { version: VERSION, slots: built.slots.clone(), machine };
    let bytes = serde_json::to_vec(&saved).map_err(|error| MachineError::SavedState(error.to_string()))?;
    File::from(state).write_all(&bytes).map_err(host("write the machine's state to its file"))
}

/// Says why a saved machine is not taken on.
pub(super) fn refused(problem: String) -> VmmError {
    VmmError::Machine(MachineError::SavedState(problem))
}

/// Reads what [`save`] wrote.
pub(super) fn read(state: &File) -> Result<Saved, VmmError> {
    let mut bytes = Vec::new();
    state.take(STATE_LIMIT).read_to_end(&mut bytes).map_err(host("read the machine's state from its file"))?;
    let nonsense = |error: serde_json::Error| refused(format!("the file with it makes no sense: {error}"));
    let Version { version } = serde_json::from_slice(&bytes).map_err(nonsense)?;
    if version != VERSION {
        return Err(refused(format!("its version is {version}, this program's {VERSION}")));
    }
    serde_json::from_slice(&bytes).map_err(nonsense)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Seek;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    fn problem(bytes: &[u8]) -> String {
        stockade_devices::one_line(&read(&file(bytes)).unwrap_err())
    }

    #[test]
    fn a_state_of_another_version_is_refused_as_such() {
        let problem = problem(br#"{"version": 7, "what": "only that version knows"}"#);
        assert!(problem.contains("version is 7, this program's 1"), "{problem}");
    }

    proptest! {
        #[test]
        fn a_file_that_holds_no_state_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(problem(&bytes).contains("saved state"));
        }
    }
}
