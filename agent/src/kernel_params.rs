//! The agent's options: `agent.*` on the kernel command line, and the same names as arguments.

use std::time::Duration;

use crate::log::Level;

/// Port of the agent's calls.
pub(crate) const DEFAULT_SERVER_ADDRESS: &str = "vsock://-1:1024";
const DEFAULT_HOTPLUG_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_LOG_PORT: u32 = 1025;
const DEFAULT_DEBUG_CONSOLE_PORT: u32 = 1026;
/// The largest pipe that an unprivileged process may make by default.
const MAX_PIPE_SIZE: usize = 1 << 20;

/// What the agent was told at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Least severe messages to write.
    pub(crate) log_level: Level,
    /// Vsock port of the log stream; 0 means none.
    pub(crate) log_port: u32,
    /// Whether to offer a shell.
    pub(crate) debug_console: bool,
    /// Vsock port of the shell.
    pub(crate) debug_console_port: u32,
    /// How long to wait for a device.
    pub(crate) hotplug_timeout: Duration,
    /// Size in bytes of the pipes of containers; `None` leaves the kernel's default.
    pub(crate) pipe_size: Option<usize>,
    /// Where calls are served.
    pub(crate) server_address: String,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            log_level: Level::Info,
            log_port: DEFAULT_LOG_PORT,
            debug_console: false,
            debug_console_port: DEFAULT_DEBUG_CONSOLE_PORT,
            hotplug_timeout: DEFAULT_HOTPLUG_TIMEOUT,
            pipe_size: None,
            server_address: DEFAULT_SERVER_ADDRESS.to_owned(),
        }
    }
}

impl Options {
    /// Reads a kernel command line. What is not understood is returned, to be reported once there is a log.
    pub(crate) fn parse(command_line: &str) -> (Options, Vec<String>) {
        let mut options = Options::default();
        let mut odd = Vec::new();
        for word in command_line.split_ascii_whitespace() {
            let Some(option) = word.strip_prefix("agent.") else {
                continue;
            };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            if options.set(name, value).is_none() {
                odd.push(word.to_owned());
            }
        }
        (options, odd)
    }

    fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "log" => self.log_level = Level::parse(value)?,
            "log_vport" => self.log_port = value.parse().ok()?,
            "debug_console" => self.debug_console = flag(value)?,
            "debug_console_vport" => {
                self.debug_console_port = value.parse().ok()?;
                self.debug_console = true;
            }
            "hotplug_timeout" => {
                self.hotplug_timeout = Duration::from_secs(value.parse::<u32>().ok()?.into());
            }
            "container_pipe_size" => {
                let size: usize = value.parse().ok()?;
                self.pipe_size = (size > 0).then_some(size.min(MAX_PIPE_SIZE));
            }
            "server_addr" if !value.is_empty() => self.server_address = value.to_owned(),
            // The guest has the unified hierarchy only.
            "unified_cgroup_hierarchy" => {}
            _ => return None,
        }
        Some(())
    }
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "" | "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_agent_are_taken_from_a_kernel_command_line() {
        let (options, odd) = Options::parse(
            "console=hvc0 agent.log=debug agent.hotplug_timeout=10 agent.debug_console quiet \
             agent.container_pipe_size=2097152 agent.server_addr=unix:///run/a.sock agent.log_vport=0",
        );
        assert_eq!(odd, Vec::<String>::new());
        assert_eq!(options.log_level, Level::Debug);
        assert_eq!(options.hotplug_timeout, Duration::from_secs(10));
        assert!(options.debug_console);
        assert_eq!(options.pipe_size, Some(MAX_PIPE_SIZE));
        assert_eq!(options.server_address, "unix:///run/a.sock");
        assert_eq!(options.log_port, 0);
    }

    #[test]
    fn what_is_not_understood_is_reported_and_changes_nothing() {
        let (options, odd) = Options::parse("agent.log=loud agent.unknown=1 agent.hotplug_timeout=-1");
        assert_eq!(odd, ["agent.log=loud", "agent.unknown=1", "agent.hotplug_timeout=-1"]);
        assert_eq!(options, Options::default());
    }
}
