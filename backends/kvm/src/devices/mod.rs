//! The virtio devices, a folder each.
