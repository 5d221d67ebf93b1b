//! The process document of an `exec`.

use crate::oci::Process;
use anyhow::{Context as _, bail};
use oci_spec::runtime::{Capability, LinuxCapabilities, LinuxCapabilitiesBuilder};
use std::path::PathBuf;
use std::str::FromStr;

/// What the command line changes in the container's own process.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Overrides {
    /// User id and group id of the process
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<User>,
    /// Further group ids; may be given several times
    #[arg(short = 'g', long = "additional-gids", value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// A variable of the environment; may be given several times
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A further capability; may be given several times
    #[arg(short, long = "cap", value_name = "CAP")]
    pub cap: Vec<String>,
    /// Let the process gain no privileges
    #[arg(long)]
    pub no_new_privs: bool,
}

/// Numbers: names would be the guest's to look up, and runc takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User {
    uid: u32,
    gid: Option<u32>,
}

impl FromStr for User {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("{text:?} is no id: ids are numbers"));
        match text.split_once(':') {
            Some((uid, gid)) => Ok(Self { uid: number(uid)?, gid: Some(number(gid)?) }),
            None => Ok(Self { uid: number(text)?, gid: None }),
        }
    }
}

/// The container's own process with other arguments, and with what the command line changes.
pub(super) fn build(
    mut process: Process,
    args: &[String],
    terminal: bool,
    overrides: &Overrides,
) -> anyhow::Result<Process> {
    if args.is_empty() {
        bail!("there is nothing to run: give a command, or --process");
    }
    process.set_args(Some(args.to_vec()));
    process.set_terminal(Some(terminal));
    if let Some(cwd) = &overrides.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(User { uid, gid }) = overrides.user {
        process.user_mut().set_uid(uid);
        if let Some(gid) = gid {
            process.user_mut().set_gid(gid);
        }
    }
    if !overrides.additional_gids.is_empty() {
        let mut gids = process.user().additional_gids().clone().unwrap_or_default();
        gids.extend(&overrides.additional_gids);
        process.user_mut().set_additional_gids(Some(gids));
    }
    for variable in &overrides.env {
        if !variable.contains('=') {
            bail!("--env {variable:?} is not of the form NAME=VALUE");
        }
        process.env_mut().get_or_insert_default().push(variable.clone());
    }
    if overrides.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if !overrides.cap.is_empty() {
        let capabilities = add(process.capabilities().as_ref(), &overrides.cap)?;
        process.set_capabilities(Some(capabilities));
    }
    Ok(process)
}

/// Adds `names` to the sets that matter for a process; to the ambient ones only where some are inheritable, without
/// which the kernel takes none.
fn add(before: Option<&LinuxCapabilities>, names: &[String]) -> anyhow::Result<LinuxCapabilities> {
    let mut more = oci_spec::runtime::Capabilities::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        let known: Capability = serde_json::from_value(format!("CAP_{short}").into())
            .with_context(|| format!("--cap {name:?} is no capability"))?;
        more.insert(known);
    }
    let set = |get: fn(&LinuxCapabilities) -> &Option<oci_spec::runtime::Capabilities>| {
        before.and_then(|sets| get(sets).clone()).unwrap_or_default()
    };
    let grown = |get| set(get).union(&more).copied().collect::<oci_spec::runtime::Capabilities>();
    let inheritable = set(LinuxCapabilities::inheritable);
    let ambient =
        if inheritable.is_empty() { set(LinuxCapabilities::ambient) } else { grown(LinuxCapabilities::ambient) };
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(grown(LinuxCapabilities::bounding))
        .effective(grown(LinuxCapabilities::effective))
        .permitted(grown(LinuxCapabilities::permitted))
        .inheritable(inheritable)
        .ambient(ambient)
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Process {
        let text = r#"{"terminal":true,"user":{"uid":1,"gid":2,"additionalGids":[3]},"args":["init"],"env":["A=1"],"cwd":"/",
            "capabilities":{"bounding":["CAP_KILL"],"permitted":["CAP_KILL"]},"noNewPrivileges":false}"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_user_is_one_or_two_numbers() {
        assert_eq!("7".parse(), Ok(User { uid: 7, gid: None }));
        assert_eq!("7:8".parse(), Ok(User { uid: 7, gid: Some(8) }));
        for text in ["", "root", "1:", ":1", "-1", "1:2:3"] {
            assert!(text.parse::<User>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_containers_own_process_is_the_base() {
        let process = build(own(), &["sh".into()], false, &Overrides::default()).unwrap();
        assert_eq!(process.args().as_deref(), Some(&["sh".to_owned()][..]));
        assert_eq!(process.terminal(), Some(false));
        assert_eq!((process.user().uid(), process.env().clone()), (1, own().env().clone()));
        assert!(build(own(), &[], false, &Overrides::default()).is_err());
    }

    #[test]
    fn every_override_lands_in_its_field() {
        let overrides = Overrides {
            user: Some(User { uid: 10, gid: None }),
            additional_gids: vec![4],
            cwd: Some("/w".into()),
            env: vec!["B=2=3".into()],
            cap: vec!["net_admin".into(), "CAP_CHOWN".into()],
            no_new_privs: true,
        };
        let process = build(own(), &["sh".into()], true, &overrides).unwrap();
        let value = serde_json::to_value(&process).unwrap();
        assert_eq!(value["user"], serde_json::json!({"uid": 10, "gid": 2, "additionalGids": [3, 4]}));
        assert_eq!(value["cwd"], "/w");
        assert_eq!(value["env"], serde_json::json!(["A=1", "B=2=3"]));
        assert_eq!(value["noNewPrivileges"], true);
        assert_eq!(process.capabilities().as_ref().unwrap().bounding().as_ref().unwrap().len(), 3);
        assert!(process.capabilities().as_ref().unwrap().ambient().as_ref().unwrap().is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        let with = |change: fn(&mut Overrides)| {
            let mut overrides = Overrides::default();
            change(&mut overrides);
            build(own(), &["sh".into()], false, &overrides)
        };
        assert!(with(|overrides| overrides.cap.push("CAP_FLY".into())).is_err());
        assert!(with(|overrides| overrides.env.push("A".into())).is_err());
    }
}
