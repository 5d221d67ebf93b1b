//! The `stockade.v1` service: what the supervisor offers beside containerd's Task service; and what the options of a
//! task may be.

#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all, reason = "generated code")]
#[allow(clippy::allow_attributes_without_reason, reason = "generated code")]
#[allow(rust_2018_idioms, unused, nonstandard_style, reason = "generated code")]
mod generated {
    pub mod runtime_options {
        include!(concat!(env!("OUT_DIR"), "/api/runtime_options.rs"));
    }
    pub mod stockade {
        include!(concat!(env!("OUT_DIR"), "/api/stockade.rs"));
    }
    pub mod stockade_ttrpc {
        use super::stockade;
        include!(concat!(env!("OUT_DIR"), "/api/stockade_ttrpc.rs"));
    }
}

mod options;

pub use options::{OptionsError, TaskOptions};

pub use generated::stockade::{
    ContainerStatsRequest, ContainerStatsResponse, CreateOptions, InspectRequest, InspectResponse, MetricsRequest,
    MetricsResponse, Process, ProcessesRequest, ProcessesResponse,
};
pub use generated::stockade_ttrpc::{Supervisor, SupervisorClient, create_supervisor};

/// `type_url` of a [`CreateOptions`] in a task's options.
pub const CREATE_OPTIONS_URL: &str = "stockade.v1.CreateOptions";

/// How a standard stream is named in a task's `stdin`, `stdout` and `stderr`: descriptor N of a living process, taken
/// by `pidfd_getfd(2)`. Other names are paths of FIFOs or files, as containerd's.
pub fn descriptor_of_process(pid: i32, descriptor: i32) -> String {
    format!("pidfd://{pid}/{descriptor}")
}

/// The opposite of [`descriptor_of_process`]; `None` when `name` is something else.
pub fn parse_descriptor_of_process(name: &str) -> Option<(i32, i32)> {
    let (pid, descriptor) = name.strip_prefix("pidfd://")?.split_once('/')?;
    Some((pid.parse().ok().filter(|pid| *pid > 0)?, descriptor.parse().ok().filter(|fd| *fd >= 0)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_of_a_process_reads_back() {
        assert_eq!(parse_descriptor_of_process(&descriptor_of_process(42, 1)), Some((42, 1)));
        for other in ["", "/run/fifo", "pidfd://", "pidfd://0/1", "pidfd://1/-1", "pidfd://x/1"] {
            assert_eq!(parse_descriptor_of_process(other), None, "{other}");
        }
    }
}
