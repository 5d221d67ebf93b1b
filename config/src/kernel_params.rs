//! The guest kernel's command line: an ordered list, because its order has a meaning and a parameter may stand twice.

use crate::options::{AgentLogLevel, AgentOptions, RootfsType};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The longest command line that an x86 kernel reads, in bytes, its final zero included.
pub const MAX_COMMAND_LINE: usize = 2048;
/// The vsock port on which the agent sends its log.
pub const AGENT_LOG_PORT: u32 = 1025;
/// The vsock port of the agent's debug console.
pub const DEBUG_CONSOLE_PORT: u32 = 1026;

/// One parameter, such as `quiet` or `root=/dev/vda1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KernelParam {
    key: String,
    value: Option<String>,
}

impl KernelParam {
    fn flag(key: &str) -> Self {
        Self { key: key.to_owned(), value: None }
    }

    fn pair(key: &str, value: impl Into<String>) -> Self {
        Self { key: key.to_owned(), value: Some(value.into()) }
    }

    /// The name before the first `=`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What follows the first `=`, quotes included.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }
}

impl fmt::Display for KernelParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// Parameters in the order in which the kernel reads them. Written as they stand on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelParams(pub Vec<KernelParam>);

/// Why a text is no kernel command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KernelParamsError {
    /// A quote that opens and never closes would swallow every later parameter.
    #[error("a double quote is not closed")]
    OpenQuote,
    /// Control characters would end the line or confuse the console.
    #[error("it holds a control character")]
    ControlCharacter,
    /// A parameter needs a name.
    #[error("{0:?} has no name before its =")]
    NoName(String),
    /// The kernel would cut it.
    #[error("it is {length} bytes long, beyond the {most} that the kernel reads")]
    TooLong {
        /// Its length in bytes.
        length: usize,
        /// The longest in bytes.
        most: usize,
    },
}

impl FromStr for KernelParams {
    type Err = KernelParamsError;

    fn from_str(text: &str) -> Result<Self, KernelParamsError> {
        if text.len() >= MAX_COMMAND_LINE {
            return Err(KernelParamsError::TooLong { length: text.len(), most: MAX_COMMAND_LINE - 1 });
        }
        let mut quoted = false;
        // As the kernel does it: a space within double quotes does not separate.
        let words = text.split(|c: char| {
            quoted ^= c == '"';
            !quoted && c.is_ascii_whitespace()
        });
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        if quoted {
            return Err(KernelParamsError::OpenQuote);
        }
        words.into_iter().map(parse_one).collect::<Result<_, _>>().map(Self)
    }
}

fn parse_one(word: &str) -> Result<KernelParam, KernelParamsError> {
    if word.chars().any(char::is_control) {
        return Err(KernelParamsError::ControlCharacter);
    }
    match word.split_once('=') {
        Some(("", _)) => Err(KernelParamsError::NoName(word.to_owned())),
        Some((key, value)) => Ok(KernelParam::pair(key, value)),
        None => Ok(KernelParam::flag(word)),
    }
}

impl fmt::Display for KernelParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, param) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{param}")?;
        }
        Ok(())
    }
}

impl Serialize for KernelParams {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KernelParams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Where the guest's root file system is when it boots from an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRoot {
    /// The device as the guest names it, such as `/dev/vda1`.
    pub device: String,
    /// Its file system.
    pub fstype: RootfsType,
}

/// The guest's whole command line but for what a backend must add (its console, for example): Stockade's own
/// parameters, then those of an image, then those for the agent, then the user's, so that the user has the last word.
///
/// `debug` makes the kernel talk, `tracing` lets it make the files of its tracer. `user` is the configuration's
/// `kernel_params`.
///
/// # Errors
/// [`KernelParamsError::TooLong`] when the kernel would cut it.
pub fn guest_kernel_params(
    image: Option<&ImageRoot>,
    debug: bool,
    tracing: bool,
    agent: &AgentOptions,
    user: &KernelParams,
) -> Result<KernelParams, KernelParamsError> {
    // The self-tests of the kernel's ciphers take most of a second of a boot and protect nothing here.
    let mut params = vec![KernelParam::flag("cryptomgr.notests")];
    // Buffers for devices that do not reach all memory: 64 MiB, cleared at each boot, where memory may grow past 4 GiB.
    // Devices of virtio reach all of it.
    params.push(KernelParam::pair("swiotlb", "noforce"));
    params.push(KernelParam::pair("initcall_blacklist", left_out(tracing)));
    params.push(KernelParam::flag(if debug { "debug" } else { "quiet" }));
    if let Some(root) = image {
        params.push(KernelParam::pair("root", &root.device));
        params.push(KernelParam::pair("rootfstype", root.fstype.as_str()));
        params.push(KernelParam::flag("ro"));
        params.push(KernelParam::pair("systemd.show_status", debug.to_string()));
        params.push(KernelParam::pair("systemd.unit", "kata-containers.target"));
        // The agent configures the network; systemd would take the addresses away again.
        params.push(KernelParam::pair("systemd.mask", "systemd-networkd.service"));
        params.push(KernelParam::pair("systemd.mask", "systemd-networkd.socket"));
    }
    params.extend(agent_params(agent));
    params.extend(user.0.iter().cloned());
    let params = KernelParams(params);
    let length = params.to_string().len();
    if length >= MAX_COMMAND_LINE {
        return Err(KernelParamsError::TooLong { length, most: MAX_COMMAND_LINE - 1 });
    }
    Ok(params)
}

/// The initialisation that the guest's kernel leaves out: all of it is its tracer's. The first two hide functions that were
/// overridden from the list of traceable ones, and let numbers of enumerations be printed by name; tracing works without.
/// The last makes the files of the tracer, thousands of them.
fn left_out(tracing: bool) -> &'static str {
    if tracing {
        "ftrace_check_for_weak_functions,trace_eval_init"
    } else {
        "ftrace_check_for_weak_functions,trace_eval_init,tracer_init_tracefs"
    }
}

fn agent_params(agent: &AgentOptions) -> Vec<KernelParam> {
    let level = if agent.enable_debug { agent.log_level.max(AgentLogLevel::Debug) } else { agent.log_level };
    let mut params = vec![
        KernelParam::pair("agent.log", level.as_str()),
        KernelParam::pair("agent.log_vport", AGENT_LOG_PORT.to_string()),
    ];
    if agent.debug_console_enabled {
        params.push(KernelParam::flag("agent.debug_console"));
        params.push(KernelParam::pair("agent.debug_console_vport", DEBUG_CONSOLE_PORT.to_string()));
    }
    if agent.container_pipe_size > 0 {
        params.push(KernelParam::pair("agent.container_pipe_size", agent.container_pipe_size.to_string()));
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> KernelParams {
        text.parse().unwrap()
    }

    #[test]
    fn order_and_duplicates_survive() {
        let text = "console=ttyS0 console=hvc0 quiet console=ttyS0";
        assert_eq!(parse(text).to_string(), text);
        assert_eq!(parse(text).0.len(), 4);
    }

    #[test]
    fn quotes_keep_spaces_and_the_first_equals_sign_separates() {
        let params = parse("  dyndbg=\"file a.c +p; file b.c +p\"   root=UUID=1=2\n");
        assert_eq!(params.0[0].value(), Some("\"file a.c +p; file b.c +p\""));
        assert_eq!((params.0[1].key(), params.0[1].value()), ("root", Some("UUID=1=2")));
    }

    #[test]
    fn a_line_that_the_kernel_would_misread_is_refused() {
        assert_eq!("a=\"b c".parse::<KernelParams>(), Err(KernelParamsError::OpenQuote));
        assert_eq!("=b".parse::<KernelParams>(), Err(KernelParamsError::NoName("=b".into())));
        assert_eq!("a\0b".parse::<KernelParams>(), Err(KernelParamsError::ControlCharacter));
        assert_eq!("a=\"b\nc\"".parse::<KernelParams>(), Err(KernelParamsError::ControlCharacter));
        assert!(matches!("x ".repeat(1024).parse::<KernelParams>(), Err(KernelParamsError::TooLong { .. })));
    }

    #[test]
    fn an_image_gets_its_systemd_parameters_in_order_and_the_user_comes_last() {
        let root = ImageRoot { device: "/dev/vda1".into(), fstype: RootfsType::Ext4 };
        let user = parse("systemd.unit=rescue.target agent.log=trace");
        let line = guest_kernel_params(Some(&root), false, true, &AgentOptions::default(), &user).unwrap().to_string();
        assert_eq!(
            line,
            "cryptomgr.notests swiotlb=noforce initcall_blacklist=ftrace_check_for_weak_functions,trace_eval_init \
             quiet root=/dev/vda1 rootfstype=ext4 ro \
             systemd.show_status=false systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service \
             systemd.mask=systemd-networkd.socket agent.log=info agent.log_vport=1025 \
             systemd.unit=rescue.target agent.log=trace"
        );
    }

    #[test]
    fn an_initrd_boots_without_systemd_parameters() {
        let agent = AgentOptions {
            enable_debug: true,
            debug_console_enabled: true,
            container_pipe_size: 65536,
            ..AgentOptions::default()
        };
        let line = guest_kernel_params(None, true, false, &agent, &KernelParams::default()).unwrap().to_string();
        assert_eq!(
            line,
            "cryptomgr.notests swiotlb=noforce \
             initcall_blacklist=ftrace_check_for_weak_functions,trace_eval_init,tracer_init_tracefs debug agent.log=debug agent.log_vport=1025 agent.debug_console \
             agent.debug_console_vport=1026 agent.container_pipe_size=65536"
        );
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let user = parse(&"a=bcdefgh ".repeat(200));
        let refused = guest_kernel_params(None, false, false, &AgentOptions::default(), &user);
        assert!(matches!(refused, Err(KernelParamsError::TooLong { .. })));
    }
}
