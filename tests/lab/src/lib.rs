//! Runs tests that need KVM: on this host where its KVM runs stock guests, else on lab hosts, which are machines that
//! QEMU emulates together with a processor's virtualisation.
//!
//! ```text
//! cargo xtask ── pool ──┬── Here                               a test is a child process
//!                       └── Labs ── socket ── QEMU (tcg, svm)
//!                                            └── Debian's kernel, stockade-lab-init as init
//!                                                root: this host's files, read-only, under a tmpfs overlay
//!                                                └── runner: a test is a child process; reports line by line
//! ```
//! One boot runs many tests: [`pool`] hands them out one at a time, so a lab that dies costs one test, which is begun
//! again in a new lab. A test that fails is never begun again.

pub mod assets;
pub mod listing;
pub mod machine;
pub mod pool;
pub mod process;
pub mod report;
pub mod suites;
pub mod wire;
