//! OCI hooks: running them, and ending them.
