//! What a container is: a sandbox of its own, or one more container of a pod's sandbox.

use super::OciError;
use std::collections::HashMap;

/// A container's part in its pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerType {
    /// It gets a virtual machine of its own: a pod's sandbox, or a container without a pod.
    Sandbox,
    /// It runs in the virtual machine of a pod's sandbox.
    Container {
        /// That sandbox's id, as annotated: not checked yet.
        sandbox_id: String,
    },
}

struct Dialect {
    kind: &'static str,
    sandbox: &'static str,
    container: &'static str,
}

/// In the order in which they are asked; the first annotation that is there decides.
const DIALECTS: [Dialect; 4] = [
    Dialect { kind: "io.kubernetes.cri.container-type", sandbox: "sandbox", container: "container" },
    Dialect { kind: "io.kubernetes.cri-o.ContainerType", sandbox: "sandbox", container: "container" },
    Dialect { kind: "io.kubernetes.docker.type", sandbox: "podsandbox", container: "container" },
    Dialect { kind: "io.katacontainers.pkg.oci.container_type", sandbox: "pod_sandbox", container: "pod_container" },
];

const SANDBOX_IDS: [&str; 3] =
    ["io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID", "io.kubernetes.sandbox.id"];

/// Reads the type from the annotations of containerd's CRI, CRI-O, dockershim or Kata. Without any, a container is a
/// sandbox of its own.
///
/// # Errors
/// A type that nobody knows; a pod's container whose sandbox is not named.
pub fn container_type(annotations: Option<&HashMap<String, String>>) -> Result<ContainerType, OciError> {
    let Some(annotations) = annotations else {
        return Ok(ContainerType::Sandbox);
    };
    let Some((dialect, value)) =
        DIALECTS.iter().find_map(|dialect| annotations.get(dialect.kind).map(|value| (dialect, value)))
    else {
        return Ok(ContainerType::Sandbox);
    };
    if value == dialect.sandbox {
        Ok(ContainerType::Sandbox)
    } else if value == dialect.container {
        let sandbox_id = SANDBOX_IDS.iter().find_map(|key| annotations.get(*key).filter(|id| !id.is_empty()));
        let sandbox_id = sandbox_id.ok_or(OciError::NoSandboxId { annotation: dialect.kind })?;
        Ok(ContainerType::Container { sandbox_id: sandbox_id.clone() })
    } else {
        Err(OciError::Value {
            field: format!("annotation {}", dialect.kind),
            value: value.clone(),
            allowed: if dialect.sandbox == "sandbox" {
                "\"sandbox\" or \"container\""
            } else if dialect.sandbox == "podsandbox" {
                "\"podsandbox\" or \"container\""
            } else {
                "\"pod_sandbox\" or \"pod_container\""
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    fn of(pairs: Pairs) -> Result<ContainerType, String> {
        let map = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        container_type(Some(&map)).map_err(|error| error.to_string())
    }

    #[test]
    fn each_engines_annotations_are_understood() {
        let inside = |id: &str| Ok(ContainerType::Container { sandbox_id: id.to_owned() });
        assert_eq!(container_type(None).expect("none"), ContainerType::Sandbox);
        let cases: [(Pairs, Result<ContainerType, String>); 9] = [
            (&[("other", "x")], Ok(ContainerType::Sandbox)),
            (
                &[("io.kubernetes.cri.container-type", "sandbox"), ("io.kubernetes.cri.sandbox-id", "s")],
                Ok(ContainerType::Sandbox),
            ),
            (
                &[("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.sandbox-id", "s1")],
                inside("s1"),
            ),
            (&[("io.kubernetes.cri-o.ContainerType", "sandbox")], Ok(ContainerType::Sandbox)),
            (
                &[("io.kubernetes.cri-o.ContainerType", "container"), ("io.kubernetes.cri-o.SandboxID", "s2")],
                inside("s2"),
            ),
            (&[("io.kubernetes.docker.type", "podsandbox")], Ok(ContainerType::Sandbox)),
            (&[("io.kubernetes.docker.type", "container"), ("io.kubernetes.sandbox.id", "s3")], inside("s3")),
            (&[("io.katacontainers.pkg.oci.container_type", "pod_sandbox")], Ok(ContainerType::Sandbox)),
            (
                &[
                    ("io.katacontainers.pkg.oci.container_type", "pod_container"),
                    ("io.kubernetes.cri.sandbox-id", "s4"),
                ],
                inside("s4"),
            ),
        ];
        for (annotations, wanted) in cases {
            assert_eq!(of(annotations), wanted, "{annotations:?}");
        }
    }

    #[test]
    fn an_unknown_type_and_a_container_without_a_sandbox_are_refused() {
        let error = of(&[("io.kubernetes.cri.container-type", "init")]).expect_err("unknown");
        assert_eq!(
            error,
            r#"annotation io.kubernetes.cri.container-type "init" is not allowed: "sandbox" or "container""#
        );
        let error = of(&[("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.sandbox-id", "")]);
        assert!(error.expect_err("no sandbox").contains("no annotation names the pod's sandbox"));
    }
}
