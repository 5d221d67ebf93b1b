use super::*;
use crate::kernel_params::KernelParams;
use crate::schema::Kind;
use proptest::prelude::*;
use stockade_hypervisor::MiB;
use tempfile::TempDir;

/// A host's root with these files.
fn root(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn lookup(root: &TempDir) -> Lookup {
    Lookup { config: None, env: None, root: root.path().to_owned() }
}

fn slots(loaded: &Loaded) -> u32 {
    loaded.config.hypervisor.qemu.machine.memory_slots
}

fn memory_slots(number: u32) -> String {
    format!("[hypervisor.qemu]\nmemory_slots = {number}\n")
}

#[test]
fn without_a_file_the_built_in_defaults_hold() {
    let loaded = Config::load(&lookup(&root(&[]))).unwrap();
    assert_eq!(loaded, Loaded::built_in());
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn the_first_file_of_the_lookup_order_is_the_one_that_counts() {
    let dir = root(&[
        ("option.toml", &memory_slots(1)),
        ("env.toml", &memory_slots(2)),
        (ETC, &memory_slots(3)),
        (SHARE, &memory_slots(4)),
    ]);
    let mut look = Lookup {
        config: Some(dir.path().join("option.toml")),
        env: Some(dir.path().join("env.toml")),
        root: dir.path().to_owned(),
    };
    assert_eq!(slots(&Config::load(&look).unwrap()), 1);
    look.config = None;
    assert_eq!(slots(&Config::load(&look).unwrap()), 2);
    look.env = Some(PathBuf::new());
    assert_eq!(slots(&Config::load(&look).unwrap()), 3);
    std::fs::remove_file(dir.path().join(ETC)).unwrap();
    assert_eq!(slots(&Config::load(&look).unwrap()), 4);
}

#[test]
fn a_file_that_was_named_must_exist() {
    let dir = root(&[(ETC, "")]);
    for look in [
        Lookup { config: Some("/nonexistent/a.toml".into()), ..lookup(&dir) },
        Lookup { env: Some("/nonexistent/a.toml".into()), ..lookup(&dir) },
    ] {
        let error = Config::load(&look).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration /nonexistent/a.toml");
    }
}

#[test]
fn drop_ins_override_key_by_key_in_name_order() {
    let dir = root(&[
        (ETC, "[hypervisor.qemu]\nmemory_slots = 3\ndefault_memory = 1024\n"),
        ("etc/stockade/stockade.d/20-b.toml", &memory_slots(20)),
        ("etc/stockade/stockade.d/10-a.toml", &memory_slots(10)),
        ("etc/stockade/stockade.d/.30-hidden.toml", &memory_slots(30)),
        ("etc/stockade/stockade.d/40.toml.bak", &memory_slots(40)),
    ]);
    let loaded = Config::load(&lookup(&dir)).unwrap();
    assert_eq!(slots(&loaded), 20);
    assert_eq!(loaded.config.hypervisor.qemu.machine.default_memory, MiB(1024));
    assert_eq!(loaded.drop_ins.len(), 2);
    let origin = |key| loaded.origin(key).to_string().replace(dir.path().to_str().unwrap(), "");
    assert_eq!(origin("hypervisor.qemu.memory_slots"), "from /etc/stockade/stockade.d/20-b.toml:2");
    assert_eq!(origin("hypervisor.qemu.default_memory"), "from /etc/stockade/stockade.toml:3");
    assert_eq!(origin("hypervisor.qemu.path"), "built-in default");
}

#[test]
fn a_drop_in_of_the_administrator_changes_a_packaged_file_or_the_defaults() {
    let drop_in = ("etc/stockade/stockade.d/10.toml", &*memory_slots(10));
    assert_eq!(slots(&Config::load(&lookup(&root(&[drop_in]))).unwrap()), 10);
    let packaged = (SHARE, &*memory_slots(4));
    let beside = ("usr/share/stockade/stockade.d/99.toml", &*memory_slots(99));
    assert_eq!(slots(&Config::load(&lookup(&root(&[packaged, beside, drop_in]))).unwrap()), 10);
    let dir = root(&[("my/stockade.toml", ""), drop_in]);
    let named = Lookup { config: Some(dir.path().join("my/stockade.toml")), ..lookup(&dir) };
    assert_eq!(slots(&Config::load(&named).unwrap()), 10, "built in: a named file has the drop-ins beside it only");
    assert!(Config::load(&named).unwrap().drop_ins.is_empty());
}

#[test]
fn naming_an_image_takes_the_initrd_of_an_earlier_layer_away_and_back() {
    let image = "[hypervisor.qemu]\nimage = '/a.img'\n";
    let initrd = "[hypervisor.qemu]\ninitrd = '/a.initrd'\n";
    let machine = Config::load(&lookup(&root(&[(ETC, image)]))).unwrap().config.hypervisor.qemu.machine;
    assert_eq!((machine.image, machine.initrd), (Some("/a.img".into()), None));
    let dir = root(&[(ETC, image), ("etc/stockade/stockade.d/1.toml", initrd)]);
    let machine = Config::load(&lookup(&dir)).unwrap().config.hypervisor.qemu.machine;
    assert_eq!((machine.image, machine.initrd), (None, Some("/a.initrd".into())));
    let dir = root(&[(ETC, "[hypervisor.qemu]\nimage = '/a.img'\ninitrd = '/a.initrd'\n")]);
    let error = Config::load(&lookup(&dir)).unwrap_err().to_string();
    assert!(error.contains("hypervisor.qemu.image = \"/a.img\" does not go with"), "{error}");
    let dir = root(&[(ETC, "[hypervisor.qemu]\ninitrd = ''\n")]);
    assert!(Config::load(&lookup(&dir)).unwrap_err().to_string().contains("boots from one of them"));
}

#[test]
fn values_that_exclude_each_other_are_told_with_both_places() {
    let dir = root(&[
        (ETC, "[hypervisor.qemu]\ndefault_vcpus = 4\n"),
        ("etc/stockade/stockade.d/1.toml", "[hypervisor.qemu]\ndefault_maxvcpus = 2\n"),
    ]);
    let error = Config::load(&lookup(&dir)).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "");
    assert_eq!(
        error,
        "/etc/stockade/stockade.d/1.toml:2: hypervisor.qemu.default_maxvcpus = 2 does not go with \
         hypervisor.qemu.default_vcpus = 4 (from /etc/stockade/stockade.toml:2): the ceiling is below the start"
    );
    for text in [
        "[hypervisor.kvm]\ndefault_maxmemory = 128",
        "[hypervisor.qemu]\nmachine_type = 'microvm'\nblock_device_driver = 'virtio-blk-pci'",
        "[hypervisor.qemu]\nblock_device_driver = 'virtio-blk-mmio'",
        "[agent.kata]\ndial_timeout_ms = 2000\nreconnect_timeout_ms = 1000",
        "[runtime]\ndisable_new_netns = true",
    ] {
        let error = Config::load(&lookup(&root(&[(ETC, text)]))).unwrap_err();
        assert!(matches!(error, ConfigError::Conflict(_)), "{text}");
    }
}

#[test]
fn a_file_that_is_no_text_or_too_large_is_refused_with_its_name() {
    let dir = root(&[(ETC, &"#".repeat((1 << 20) + 1))]);
    assert!(matches!(Config::load(&lookup(&dir)), Err(ConfigError::TooLarge { .. })));
    std::fs::write(dir.path().join(ETC), b"\xff\xfe").unwrap();
    assert!(matches!(Config::load(&lookup(&dir)), Err(ConfigError::NotText { .. })));
}

#[test]
fn the_effective_configuration_is_a_file_that_says_the_same() {
    let dir =
        root(&[(ETC, "[hypervisor.qemu]\nkernel_params = 'x=\"a b\" y'\n[agent.kata]\nkernel_modules = ['a b=1']\n")]);
    let loaded = Config::load(&lookup(&dir)).unwrap();
    let text = loaded.effective().to_toml();
    assert!(
        text.contains(&format!("kernel_modules = [\"a b=1\"] # from {}:4\n", dir.path().join(ETC).display())),
        "{text}"
    );
    assert!(text.contains("\nhypervisor = \"auto\" # built-in default\n"), "{text}");
    let again = Config::load(&lookup(&root(&[(ETC, &text)]))).unwrap();
    assert_eq!(again.config, loaded.config);
    let json: serde_json::Value = serde_json::from_str(&loaded.effective().to_json().unwrap()).unwrap();
    let entries = json["entries"].as_array().unwrap();
    assert_eq!(entries.len(), TABLES.iter().map(|table| table.options().count()).sum::<usize>());
    let entry = entries.iter().find(|entry| entry["key"] == "kernel_modules").unwrap();
    assert_eq!((&entry["origin"]["from"], &entry["origin"]["line"]), (&"file".into(), &4.into()));
}

#[test]
fn what_was_loaded_survives_the_way_to_the_supervisor() {
    let loaded = Config::load(&lookup(&root(&[(ETC, &memory_slots(7))]))).unwrap();
    let json = serde_json::to_string(&loaded).unwrap();
    assert_eq!(serde_json::from_str::<Loaded>(&json).unwrap(), loaded);
}

#[test]
fn schema_options_and_defaults_agree() {
    let defaults = flatten(&Config::default());
    let listed: usize = TABLES.iter().map(|table| table.options().count()).sum();
    assert_eq!(defaults.len(), listed, "an option of the schema has no field");
    for (table, option, value) in &defaults {
        assert_eq!(option.kind.check(value), Ok(()), "{}.{}", table.name, option.key);
    }
    let root = Value::try_from(Config::default()).unwrap();
    assert_eq!(leaves(&root), listed, "a field has no option in the schema");
    Merged::defaults().check().unwrap();
}

fn leaves(value: &Value) -> usize {
    match value {
        Value::Table(table) => table.values().map(leaves).sum(),
        _ => 1,
    }
}

#[test]
fn every_word_of_a_choice_fits_its_field() {
    for table in TABLES {
        for option in table.options() {
            let Kind::Choice(words) = option.kind else { continue };
            for word in words {
                let mut merged = Merged::defaults();
                let key = format!("{}.{}", table.name, option.key);
                merged.values.insert(key, (Value::String((*word).to_owned()), Origin::BuiltIn));
                let fits = merged.finish(None, Vec::new());
                assert!(!matches!(fits, Err(ConfigError::Mismatch(_))), "{}.{} = {word}", table.name, option.key);
            }
        }
    }
}

#[test]
fn both_ends_of_a_range_fit_their_field() {
    for table in TABLES {
        for option in table.options() {
            let ends = match option.kind {
                Kind::Number { min, max } | Kind::PowerOfTwo { min, max } => [Value::Integer(min), Value::Integer(max)],
                Kind::Decimal { min, max } => [Value::Float(min), Value::Float(max)],
                _ => continue,
            };
            for end in ends {
                let mut merged = Merged::defaults();
                merged.values.insert(format!("{}.{}", table.name, option.key), (end.clone(), Origin::BuiltIn));
                let fits = merged.finish(None, Vec::new());
                assert!(!matches!(fits, Err(ConfigError::Mismatch(_))), "{}.{} = {end}", table.name, option.key);
            }
        }
    }
}

/// The shipped file, with every `# key = value` taken out of its comment.
mod shipped {
    use super::*;

    const TEXT: &str = include_str!("../stockade.toml");

    fn key_of(line: &str) -> Option<&str> {
        let (key, _) = line.strip_prefix("# ")?.split_once(" = ")?;
        key.chars().all(|c| c.is_ascii_lowercase() || c == '_').then_some(key)
    }

    #[test]
    fn it_sets_nothing_and_its_comments_are_the_built_in_defaults() {
        assert!(document::parse(Path::new("stockade.toml"), TEXT).unwrap().is_empty());
        let live: String = TEXT
            .lines()
            .map(|l| if key_of(l).is_some() { &l[2..] } else { l })
            .fold(String::new(), |t, l| t + l + "\n");
        let settings = document::parse(Path::new("stockade.toml"), &live).unwrap();
        let mut set: BTreeMap<_, _> = settings.into_iter().map(|setting| (setting.key, setting.value)).collect();
        for (table, option, value) in flatten(&Config::default()) {
            let key = format!("{}.{}", table.name, option.key);
            assert_eq!(set.remove(&key), Some(value), "{key}");
        }
        assert!(set.is_empty());
    }

    #[test]
    fn every_option_is_documented_with_its_unit_or_its_choices() {
        let mut table = "";
        let mut comment = String::new();
        let mut documented = 0;
        for line in TEXT.lines() {
            if let Some(name) = line.strip_prefix('[') {
                table = name.trim_end_matches(']');
                comment.clear();
            } else if let Some(key) = key_of(line) {
                let option = crate::schema::table(table).and_then(|t| t.option(key)).unwrap();
                assert!(comment.len() > 20, "[{table}] {key} has no comment");
                assert!(comment.contains(option.unit), "[{table}] {key} does not name its unit, {}", option.unit);
                if let Kind::Choice(words) = option.kind {
                    for word in words {
                        assert!(comment.contains(&format!("\"{word}\"")), "[{table}] {key} does not name {word}");
                    }
                }
                documented += 1;
            } else if line.is_empty() {
                comment.clear();
            } else {
                comment.push_str(line);
            }
        }
        assert_eq!(documented, TABLES.iter().map(|t| t.options().count()).sum::<usize>());
    }
}

fn layer() -> impl Strategy<Value = BTreeMap<String, i64>> {
    let key = prop_oneof![
        Just("hypervisor.qemu.memory_slots"),
        Just("hypervisor.kvm.memory_slots"),
        Just("factory.vm_cache_number"),
        Just("hypervisor.kvm.boot_timeout"),
        Just("agent.kata.request_timeout"),
    ];
    prop::collection::btree_map(key.prop_map(str::to_owned), 1..200i64, 0..5)
}

proptest! {
    #[test]
    fn the_last_layer_that_sets_a_key_wins(layers in prop::collection::vec(layer(), 0..5)) {
        let files: Vec<(String, String)> = layers.iter().enumerate().map(|(index, layer)| {
            let text = layer.iter().fold(String::new(), |text, (key, value)| format!("{text}{key} = {value}\n"));
            (format!("etc/stockade/stockade.d/{index}.toml"), text)
        }).collect();
        let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
        let dir = root(&files);
        let loaded = Config::load(&lookup(&dir)).unwrap();
        let defaults: BTreeMap<_, _> = Loaded::built_in().merged().values;
        for (key, (value, origin)) in loaded.merged().values {
            let last = layers.iter().enumerate().filter_map(|(i, layer)| Some((i, *layer.get(&key)?))).next_back();
            match last {
                None => prop_assert_eq!((&value, &origin), (&defaults[&key].0, &Origin::BuiltIn)),
                Some((index, expected)) => {
                    prop_assert_eq!(value, Value::Integer(expected));
                    let Origin::File(at) = origin else { panic!("{key} came from a file") };
                    let file = format!("{index}.toml");
                    prop_assert!(at.path.ends_with(file));
                }
            }
        }
    }

    #[test]
    fn kernel_parameters_survive_being_written_and_read(text in "([a-z.]{1,6}(=[a-z0-9,=]{0,6})?[ ]{1,3}){0,8}") {
        let params: KernelParams = text.parse().unwrap();
        prop_assert_eq!(params.to_string().parse::<KernelParams>().unwrap(), params);
    }
}

#[test]
fn an_option_that_nothing_acts_on_is_named_with_its_place_when_it_is_set() {
    let text = "[hypervisor.qemu]\ndefault_memory = 300\nmemory_slots = 3\nreclaim_guest_freed_memory = true\n\
                [hypervisor.kvm]\ndefault_memory = 300\nreclaim_guest_freed_memory = true\n";
    let loaded = Config::load(&lookup(&root(&[(ETC, text)]))).unwrap();
    let inert = loaded.without_effect();
    let keys: Vec<&str> = inert.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["hypervisor.qemu.memory_slots", "hypervisor.qemu.reclaim_guest_freed_memory"]);
    assert!(inert.iter().all(|(_, origin)| matches!(origin, Origin::File(_))), "{inert:?}");
    assert_eq!(Loaded::built_in().without_effect(), []);
}

#[test]
fn every_name_without_effect_is_an_option() {
    let names: Vec<&str> =
        crate::schema::TABLES.iter().flat_map(|table| table.options().map(|option| option.key)).collect();
    for name in WITHOUT_EFFECT {
        assert!(names.contains(&name), "{name}");
    }
}
