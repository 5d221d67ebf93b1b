//! The host cgroup of a sandbox's processes.
