//! The commands whose arguments depend on a driver: their arguments are a JSON object that this crate builds.

use qapi::qmp::QmpCommand;
use qapi::{Command, Empty};
use serde::Serialize;
use serde_json::Value;

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $wire:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Serialize)]
        #[serde(transparent)]
        pub(crate) struct $name(pub(crate) Value);

        impl Command for $name {
            type Ok = Empty;
            const NAME: &'static str = $wire;
            const ALLOW_OOB: bool = false;
        }
        impl QmpCommand for $name {}
    )*};
}

commands! {
    /// Adds a block node.
    BlockdevAdd = "blockdev-add";
    /// Plugs a device.
    DeviceAdd = "device_add";
    /// Adds a network backend.
    NetdevAdd = "netdev_add";
    /// Makes an object, such as a memory backend.
    ObjectAdd = "object-add";
}
