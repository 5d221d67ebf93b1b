//! Kubernetes drives it: containerd's CRI plugin, asked as a kubelet does, with real machines.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use stockade_tests::harness::cri::messages::{
    ContainerConfig, ContainerMetadata, ContainerState, CreateContainerRequest, DNSConfig, ImageSpec,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig, Mount,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RunPodSandboxRequest,
    UpdateContainerResourcesRequest,
};
use stockade_tests::harness::{Containerd, HANDLER, HANDLER_WITHOUT_CONFIGURATION, Tmpfs, image, unique_id, wait};

const SOON: Duration = Duration::from_secs(30);
/// Writes a line now and then, and ends with 42 when it is asked to.
const TALKS: &str = "trap 'exit 42' TERM; n=0; while :; do n=$((n+1)); echo line $n; sleep 0.2; done";

/// The memory limit that the guest's kernel holds the container to, whichever control groups it sees.
const LIMIT: &str = "cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max";

fn pod(name: &str, logs: &Path, annotations: &[(&str, &str)]) -> PodSandboxConfig {
    let metadata = PodSandboxMetadata {
        name: name.to_owned(),
        uid: unique_id("uid"),
        namespace: "tests".into(),
        ..PodSandboxMetadata::default()
    };
    let linux = LinuxPodSandboxConfig { cgroup_parent: format!("/{name}"), ..LinuxPodSandboxConfig::default() };
    let dns = DNSConfig { servers: vec!["10.9.8.7".into()], ..DNSConfig::default() };
    PodSandboxConfig {
        metadata: Some(metadata).into(),
        hostname: "a-pod".into(),
        log_directory: logs.display().to_string(),
        dns_config: Some(dns).into(),
        annotations: annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        linux: Some(linux).into(),
        ..PodSandboxConfig::default()
    }
}

fn container(
    pod: &PodSandboxConfig,
    id: &str,
    name: &str,
    pid: NamespaceMode,
    mounts: &[(&Path, &str)],
) -> CreateContainerRequest {
    let mounts = mounts.iter().map(|(host, inside)| Mount {
        container_path: (*inside).to_owned(),
        host_path: host.display().to_string(),
        ..Mount::default()
    });
    let resources = LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..LinuxContainerResources::default() };
    let options = NamespaceOption { pid: pid.into(), ..NamespaceOption::default() };
    let security = LinuxContainerSecurityContext { namespace_options: Some(options).into(), ..Default::default() };
    let linux = LinuxContainerConfig {
        resources: Some(resources).into(),
        security_context: Some(security).into(),
        ..LinuxContainerConfig::default()
    };
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), ..ContainerMetadata::default() }).into(),
        image: Some(ImageSpec { image: image::NAME.into(), ..ImageSpec::default() }).into(),
        command: vec!["sh".into(), "-c".into()],
        args: vec![TALKS.into()],
        mounts: mounts.collect(),
        log_path: format!("{name}.log"),
        linux: Some(linux).into(),
        ..ContainerConfig::default()
    };
    CreateContainerRequest {
        pod_sandbox_id: id.to_owned(),
        config: Some(config).into(),
        sandbox_config: Some(pod.clone()).into(),
        ..CreateContainerRequest::default()
    }
}

#[test]
fn a_pod_of_two_containers_lives_as_a_kubelet_wants_it() {
    let containerd = Containerd::with_cri();
    let name = containerd.stockade().id("kubelet");
    let folder = containerd.stockade().folder().join("pod");
    let (logs, volumes) = (folder.join("logs"), folder.join("volumes"));
    let (shared, config) =
        (volumes.join("kubernetes.io~empty-dir/shared"), volumes.join("kubernetes.io~configmap/config"));
    for path in [&logs, &shared, &config.join("..1"), &config.join("..2")] {
        fs::create_dir_all(path).unwrap();
    }
    for version in ["1", "2"] {
        fs::write(config.join(format!("..{version}")).join("key"), version).unwrap();
    }
    symlink("..1", config.join("..data")).unwrap();
    symlink("..data/key", config.join("key")).unwrap();
    let _tmpfs = Tmpfs::mount(&shared);
    let before = containerd.host();
    let cri = containerd.cri();

    let pod = pod(&name, &logs, &[]);
    let request = RunPodSandboxRequest {
        config: Some(pod.clone()).into(),
        runtime_handler: HANDLER.into(),
        ..Default::default()
    };
    let sandbox = cri.run_pod(request).unwrap();
    let mounts = [(shared.as_path(), "/shared"), (config.as_path(), "/config")];
    let [one, two] = [("one", NamespaceMode::CONTAINER), ("two", NamespaceMode::POD)]
        .map(|(name, pid)| cri.run_container(container(&pod, &sandbox, name, pid, &mounts)).unwrap());
    assert_eq!(containerd.stockade().monitors().len(), 1);

    let said = |id: &str, script: &str| cri.exec(id, script).unwrap();
    assert_eq!(
        said(&one, "hostname; cat /etc/hostname; grep -c 10.9.8.7 /etc/resolv.conf; exit 3"),
        (3, "a-pod\na-pod\n1\n".into())
    );
    assert_eq!(said(&one, "echo hello >/shared/file; echo mem >/dev/shm/file"), (0, String::new()));
    // One memory for the pod, by the volume and by /dev/shm.
    assert_eq!(said(&two, "cat /shared/file /dev/shm/file"), (0, "hello\nmem\n".into()));
    assert_eq!(said(&two, "grep ' /shared ' /proc/mounts | cut -d' ' -f3").1, "tmpfs\n");
    // One is alone with its processes; two is not the first one of the pod's.
    assert_eq!(said(&one, "head -c 2 /proc/1/cmdline").1, "sh");
    assert_ne!(said(&two, "head -c 2 /proc/1/cmdline").1, "sh");
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
    symlink("..2", config.join("..new")).unwrap();
    assert_eq!(said(&one, "cat /config/key").1, "1");
    fs::rename(config.join("..new"), config.join("..data")).unwrap();
    assert!(wait::until(SOON, || said(&one, "cat /config/key").1 == "2"), "an update does not arrive");

    let stats = cri.stats(&one).unwrap();
    let (memory, cpu) = (stats.memory.working_set_bytes.value, stats.cpu.usage_core_nano_seconds.value);
    assert!(memory > 0 && memory < 64 << 20 && cpu > 0, "{stats:?}");
    assert_eq!(said(&one, LIMIT).1.trim(), (64_u32 << 20).to_string());
    let limit = LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..LinuxContainerResources::default() };
    let update = UpdateContainerResourcesRequest {
        container_id: one.clone(),
        linux: Some(limit).into(),
        ..UpdateContainerResourcesRequest::default()
    };
    cri.update(update).unwrap();
    assert_eq!(said(&one, LIMIT).1.trim(), (96_u32 << 20).to_string());

    // Logs go on in a new file, and after containerd was away.
    let log = logs.join("one.log");
    let lines = || fs::read_to_string(&log).unwrap_or_default();
    assert!(wait::until(SOON, || lines().contains(" stdout F line 3\n")), "{}", lines());
    fs::rename(&log, logs.join("one.log.1")).unwrap();
    cri.reopen_log(&one).unwrap();
    assert!(wait::until(SOON, || lines().contains(" stdout F line ")), "{}", lines());
    containerd.kill();
    containerd.start();
    let counted = lines().lines().count();
    assert!(wait::until(SOON, || lines().lines().count() > counted + 3), "{}", lines());
    let cri = containerd.cri();
    assert_eq!(cri.exec(&two, "cat /shared/file").unwrap(), (0, "hello\n".into()));

    cri.stop_container(&one).unwrap();
    let status = cri.status(&one).unwrap();
    assert_eq!((status.state.enum_value(), status.exit_code), (Ok(ContainerState::CONTAINER_EXITED), 42), "{status:?}");
    cri.remove_container(&one).unwrap();
    assert_eq!(cri.exec(&two, "cat /shared/file").unwrap(), (0, "hello\n".into()));
    // What is left of the pod goes with it.
    cri.remove_pod(&sandbox).unwrap();
    containerd.assert_host(&before);
}

#[test]
fn exec_and_attach_carry_streams_a_terminal_and_the_status() {
    let containerd = Containerd::with_cri();
    let before = containerd.host();
    let cri = containerd.cri();
    let name = containerd.stockade().id("streams");
    let pod = pod(&name, &containerd.stockade().folder().join("logs"), &[]);
    let request = RunPodSandboxRequest {
        config: Some(pod.clone()).into(),
        runtime_handler: HANDLER.into(),
        ..Default::default()
    };
    let sandbox = cri.run_pod(request).unwrap();
    let mut request = container(&pod, &sandbox, "one", NamespaceMode::CONTAINER, &[]);
    let config = request.config.mut_or_insert_default();
    config.stdin = true;
    config.args = vec!["while read line; do echo got $line; echo about $line >&2; done".into()];
    let id = cri.run_container(request).unwrap();

    let mut attached = cri.attach(&id).unwrap();
    attached.write("hello\n");
    attached.expect("got hello\n");
    // Who attaches goes, and the container goes on.
    drop(attached);
    let mut again = cri.attach(&id).unwrap();
    again.write("more\n");
    again.expect("got more\n");
    again.expect_error("about more\n");
    assert!(!again.stdout().contains("hello"), "{}", again.stdout());

    let mut exec = cri.exec_streams(&id, "read word; echo out $word; echo err $word >&2; exit 7", false).unwrap();
    exec.write("hi\n");
    assert_eq!((exec.wait(), exec.stdout().as_str(), exec.stderr().as_str()), (7, "out hi\n", "err hi\n"));
    let mut exec = cri.exec_streams(&id, "while :; do stty size; sleep 0.2; done", true).unwrap();
    exec.resize(93, 41);
    exec.expect("41 93\r\n");
    exec.write("\u{3}");
    assert_eq!(exec.wait(), 130);

    cri.remove_pod(&sandbox).unwrap();
    containerd.assert_host(&before);
}

#[test]
fn a_pod_that_cannot_be_had_says_why_and_leaves_nothing() {
    let containerd = Containerd::with_cri();
    let before = containerd.host();
    let cri = containerd.cri();
    let logs = containerd.stockade().folder().join("logs");
    let forbidden = [("io.katacontainers.config.hypervisor.default_memory", "4096")];
    for (handler, annotations, network, wanted) in [
        (HANDLER, &forbidden[..], NamespaceMode::POD, "enable_annotations"),
        (HANDLER, &[], NamespaceMode::NODE, "host networking is not supported"),
        // A runtime class's own configuration is read, and no other in its place.
        (HANDLER_WITHOUT_CONFIGURATION, &[], NamespaceMode::POD, "/no/such/stockade.toml"),
    ] {
        let name = containerd.stockade().id("refused");
        let mut pod = pod(&name, &logs, annotations);
        let options = NamespaceOption { network: network.into(), ..NamespaceOption::default() };
        pod.linux.mut_or_insert_default().security_context.mut_or_insert_default().namespace_options =
            Some(options).into();
        let request =
            RunPodSandboxRequest { config: Some(pod).into(), runtime_handler: handler.into(), ..Default::default() };
        let error = cri.run_pod(request).unwrap_err();
        assert!(error.message().contains(wanted), "{error:?}");
        containerd.assert_host(&before);
    }
}
