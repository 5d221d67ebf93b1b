//! What a seccomp profile may ask for, when it is applied in the guest.

use super::OciError;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

/// The highest errno that the kernel lets a filter return.
const MAX_ERRNO: u32 = 4095;
/// System calls have at most six arguments.
const MAX_ARGUMENT: usize = 5;

pub(super) fn check(profile: &LinuxSeccomp) -> Result<(), OciError> {
    if profile.listener_path().is_some() || profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(notification());
    }
    check_errno("linux.seccomp.defaultErrnoRet", profile.default_errno_ret())?;
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        if rule.action() == LinuxSeccompAction::ScmpActNotify {
            return Err(notification());
        }
        if rule.names().is_empty() {
            return Err(OciError::Missing { field: "a system call's name in linux.seccomp.syscalls" });
        }
        check_errno(&format!("linux.seccomp.syscalls[{index}].errnoRet"), rule.errno_ret())?;
        if let Some(argument) = rule.args().iter().flatten().find(|argument| argument.index() > MAX_ARGUMENT) {
            return Err(OciError::Range {
                field: format!("linux.seccomp.syscalls[{index}].args: index"),
                value: argument.index() as i128,
                allowed: "0 to 5",
            });
        }
    }
    Ok(())
}

fn check_errno(field: &str, value: Option<u32>) -> Result<(), OciError> {
    match value {
        Some(value) if value > MAX_ERRNO => {
            Err(OciError::Range { field: field.to_owned(), value: value.into(), allowed: "0 to 4095" })
        }
        _ => Ok(()),
    }
}

fn notification() -> OciError {
    OciError::Unsupported {
        field: "SCMP_ACT_NOTIFY with linux.seccomp.listenerPath".to_owned(),
        reason: "the listener is on the host, the system calls are the guest's",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(json: serde_json::Value) -> Result<(), String> {
        check(&serde_json::from_value(json).expect("a profile")).map_err(|error| error.to_string())
    }

    #[test]
    fn profiles_that_no_filter_can_hold_are_refused() {
        let rule = |more: &str| {
            let text = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["write"],"action":"SCMP_ACT_ERRNO"{more}}}]}}"#
            );
            serde_json::from_str(&text).expect("JSON")
        };
        assert_eq!(checked(rule("")), Ok(()));
        let cases: [(serde_json::Value, &str); 6] = [
            (rule(r#","errnoRet":5000"#), "errnoRet is 5000: 0 to 4095"),
            (rule(r#","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]"#), "index is 6: 0 to 5"),
            (
                serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_LOG"}]}),
                "name in linux.seccomp.syscalls is missing",
            ),
            (serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "not supported"),
            (serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/s"}), "listenerPath"),
            (
                serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}),
                "defaultErrnoRet is 70000",
            ),
        ];
        for (profile, wanted) in cases {
            let error = checked(profile.clone()).expect_err("refused");
            assert!(error.contains(wanted), "{error}");
        }
    }
}
