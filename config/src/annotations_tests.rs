use super::*;
use crate::Lookup;
use crate::options::Config;
use proptest::prelude::*;
use stockade_hypervisor::MiB;

/// The configuration of one file with this text.
fn loaded(text: &str) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stockade.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&Lookup { config: Some(path), env: None, root: dir.path().to_owned() }).unwrap()
}

fn allowing(patterns: &str) -> Loaded {
    loaded(&format!("[hypervisor.qemu]\nenable_annotations = [{patterns}]\n"))
}

fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
}

fn apply(loaded: &Loaded, pairs: &[(&str, &str)]) -> Result<Loaded, AnnotationError> {
    apply_annotations(loaded, Backend::Qemu, &annotations(pairs))
}

fn refused(loaded: &Loaded, pairs: &[(&str, &str)]) -> String {
    apply(loaded, pairs).unwrap_err().to_string()
}

#[test]
fn an_allowed_annotation_overrides_and_is_remembered_as_the_origin() {
    let all = allowing("'hypervisor\\.default_memory', 'default_max_vcpus'");
    let result = apply(&all, &[("hypervisor.default_memory", "1024"), ("hypervisor.default_max_vcpus", "3")]).unwrap();
    assert_eq!(result.config.hypervisor.qemu.machine.default_memory, MiB(1024));
    assert_eq!(result.config.hypervisor.qemu.machine.default_maxvcpus, 3);
    assert_eq!(result.config.hypervisor.kvm.machine.default_memory, MiB(512));
    let origin = result.origin("hypervisor.qemu.default_memory");
    assert_eq!(origin.to_string(), "from annotation io.katacontainers.config.hypervisor.default_memory");
}

#[test]
fn a_refused_annotation_says_which_key_in_which_file_would_allow_it() {
    let text = refused(&Loaded::built_in(), &[("hypervisor.default_memory", "1024")]);
    assert_eq!(
        text,
        "the annotation io.katacontainers.config.hypervisor.default_memory is not allowed; to allow it, add \
         \"hypervisor.default_memory\" to enable_annotations under [hypervisor.qemu] in /etc/stockade/stockade.toml"
    );
    let set = allowing("");
    let text = refused(&set, &[("agent.kernel_modules", "x")]);
    assert!(text.ends_with(&format!("in {}", set.file.as_ref().unwrap().display())), "{text}");
}

#[test]
fn the_pattern_that_a_refusal_proposes_allows_the_annotation() {
    let Err(AnnotationError::NotAllowed { pattern, .. }) =
        apply(&Loaded::built_in(), &[("runtime.disable_guest_seccomp", "true")])
    else {
        panic!("it is not allowed by default");
    };
    let result = apply(&allowing(&format!("'{pattern}'")), &[("runtime.disable_guest_seccomp", "true")]).unwrap();
    assert!(result.config.runtime.disable_guest_seccomp);
}

#[test]
fn every_namespace_is_gated() {
    for table in TABLES {
        for annotation in table.options().filter_map(|option| option.annotation) {
            let backend = if table.name == "hypervisor.kvm" { Backend::Kvm } else { Backend::Qemu };
            let result = apply_annotations(&Loaded::built_in(), backend, &annotations(&[(annotation, "1")]));
            assert!(matches!(result, Err(AnnotationError::NotAllowed { .. })), "{annotation}");
        }
    }
}

#[test]
fn a_pattern_matches_a_whole_key_and_nothing_else() {
    let some = allowing("'memory', 'default_mem', 'a|hypervisor', 'kernel_modules'");
    for key in ["hypervisor.default_memory", "hypervisor.memory_slots", "agent.kernel_modules"] {
        assert!(matches!(apply(&some, &[(key, "5")]), Err(AnnotationError::NotAllowed { .. })), "{key}");
    }
    assert!(pattern("a)|(b").is_err());
    assert!(!pattern("(?m)path").unwrap().is_match("x\npath"));
}

#[test]
fn an_unknown_annotation_is_an_error_with_the_nearest_known_one() {
    let all = allowing("'.*'");
    assert!(
        refused(&all, &[("hypervisor.default_maxvcpus", "1")])
            .ends_with("did you mean io.katacontainers.config.hypervisor.default_max_vcpus?")
    );
    assert!(
        refused(&all, &[("hypervisor.default_memroy", "1")])
            .ends_with("did you mean io.katacontainers.config.hypervisor.default_memory?")
    );
    assert!(refused(&all, &[("hypervisor.kernel_hash", "abc")]).contains("is unknown"));
    assert!(refused(&all, &[("hypervisor.enable_annotations", ".*")]).contains("in the configuration file only"));
    assert!(refused(&all, &[("hypervisor.valid_guest_paths", "/*")]).contains("in the configuration file only"));
}

#[test]
fn an_annotation_of_the_other_backend_is_an_error_that_says_so() {
    let all = loaded("[hypervisor.kvm]\nenable_annotations = ['.*']");
    let error = apply_annotations(&all, Backend::Kvm, &annotations(&[("hypervisor.machine_type", "q35")])).unwrap_err();
    assert!(error.to_string().contains("it belongs to qemu"), "{error}");
}

#[test]
fn a_pod_cannot_choose_the_configuration_file() {
    let pod = BTreeMap::from([(CONFIG_PATH.to_owned(), "/tmp/x.toml".to_owned())]);
    let result = apply_annotations(&allowing("'.*'"), Backend::Qemu, &pod);
    assert!(matches!(result, Err(AnnotationError::ConfigPath)));
}

#[test]
fn other_annotations_are_left_alone() {
    let pod = BTreeMap::from([
        ("io.katacontainers.pkg.oci.container_type".to_owned(), "pod_sandbox".to_owned()),
        ("io.kubernetes.cri.sandbox-id".to_owned(), "x".to_owned()),
    ]);
    assert_eq!(apply_annotations(&Loaded::built_in(), Backend::Qemu, &pod).unwrap(), Loaded::built_in());
}

#[test]
fn a_value_is_checked_like_one_in_a_file() {
    let all = allowing("'.*'");
    assert!(refused(&all, &[("hypervisor.default_memory", "4")]).ends_with("= \"4\": allowed is 64 to 4194304"));
    assert!(refused(&all, &[("hypervisor.default_memory", "1G")]).ends_with("allowed is a whole number"));
    assert!(refused(&all, &[("hypervisor.machine_type", "virt")]).ends_with("allowed is q35, pc, microvm"));
    assert!(refused(&all, &[("runtime.sandbox_cgroup_only", "yes")]).ends_with("allowed is true or false"));
    assert!(
        refused(&all, &[("hypervisor.cpu_features", "a\nb")])
            .ends_with("allowed is one line without control characters")
    );
    let conflict = apply(&all, &[("hypervisor.default_vcpus", "4"), ("hypervisor.default_max_vcpus", "2")]);
    assert!(matches!(conflict, Err(AnnotationError::Conflict(_))));
}

#[test]
fn a_path_must_match_the_globs_for_it() {
    let all = allowing("'.*'");
    let guest = "/usr/share/stockade/guest";
    let result = apply(&all, &[("hypervisor.image", &format!("{guest}/pod.img"))]).unwrap();
    assert_eq!(result.config.hypervisor.qemu.machine.image, Some(format!("{guest}/pod.img").into()));
    assert_eq!(result.config.hypervisor.qemu.machine.initrd, None);
    for bad in [
        "/etc/shadow",
        "/usr/share/stockade/guest/../x",
        "/usr/share/stockade/guest/a/b",
        "/usr/share/stockade/guest/.",
    ] {
        let error = apply(&all, &[("hypervisor.kernel", bad)]).unwrap_err();
        assert!(matches!(error, AnnotationError::PathNotAllowed { globs: "valid_guest_paths", .. }), "{bad}");
    }
    assert!(matches!(apply(&all, &[("hypervisor.path", "evil")]), Err(AnnotationError::PathNotAllowed { .. })));
    assert!(apply(&all, &[("hypervisor.path", "/usr/bin/qemu-system-x86_64")]).is_ok());
}

#[test]
fn kernel_parameters_of_a_pod_come_after_those_of_the_file() {
    let both = loaded("[hypervisor.qemu]\nkernel_params = 'a=1'\nenable_annotations = ['kernel_params']");
    let result = apply(&both, &[("hypervisor.kernel_params", "a=2 quiet")]).unwrap();
    assert_eq!(result.config.hypervisor.qemu.machine.kernel_params.to_string(), "a=1 a=2 quiet");
}

#[test]
fn lists_are_separated_as_kata_does_it() {
    let result =
        apply(&allowing("'.*'"), &[("agent.kernel_modules", "e1000e InterruptThrottleRate=3000; i915 ")]).unwrap();
    assert_eq!(result.config.agent.kata.kernel_modules, ["e1000e InterruptThrottleRate=3000", "i915"]);
}

#[test]
fn a_pod_chooses_a_hypervisor_only_where_that_one_allows_it() {
    let pod = |name| annotations(&[("runtime.hypervisor_name", name)]);
    let only_qemu = allowing("'runtime.hypervisor_name'");
    assert_eq!(chosen_hypervisor(&only_qemu, &pod("qemu")).unwrap(), HypervisorChoice::Qemu);
    assert!(matches!(chosen_hypervisor(&only_qemu, &pod("kvm")), Err(AnnotationError::NotAllowed { .. })));
    assert!(matches!(chosen_hypervisor(&only_qemu, &pod("auto")), Err(AnnotationError::NotAllowed { .. })));
    assert!(matches!(chosen_hypervisor(&only_qemu, &pod("xen")), Err(AnnotationError::Value { .. })));
    assert_eq!(chosen_hypervisor(&only_qemu, &BTreeMap::new()).unwrap(), HypervisorChoice::Auto);
    let result = apply_annotations(&only_qemu, Backend::Qemu, &pod("qemu")).unwrap();
    assert_eq!(result.config.runtime.hypervisor, HypervisorChoice::Qemu);
}

#[test]
fn a_long_or_binary_annotation_stays_one_short_line_of_an_error() {
    let text = refused(&allowing("'.*'"), &[("hypervisor.machine_type", &"\n\u{1b}".repeat(5000))]);
    assert!(text.len() < 2000 && !text.contains('\n') && !text.contains('\u{1b}'));
    let text = refused(&allowing("'.*'"), &[(&"x\n".repeat(5000), "1")]);
    assert!(text.len() < 2000 && !text.contains('\n'));
}

proptest! {
    #[test]
    fn arbitrary_annotations_never_panic(key in "[a-z_.]{0,40}", value in "\\PC{0,40}", known in 0..200usize) {
        let mut all = Loaded::built_in();
        all.config.hypervisor.qemu.machine.enable_annotations = vec![".*".to_owned()];
        let keys: Vec<_> = tables(Backend::Qemu).flat_map(|t| t.options().filter_map(|o| o.annotation)).collect();
        let key = if known < 150 { keys[known % keys.len()] } else { key.as_str() };
        drop(apply(&all, &[(key, &value)]));
    }
}
