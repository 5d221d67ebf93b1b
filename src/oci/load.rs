//! From bytes to a specification, with the forms that older engines wrote.

use super::OciError;
use oci_spec::runtime::{Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

/// The largest config.json that is read.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads `bundle`/config.json. Nothing but its form and its version is checked: see [`super::validate`].
///
/// Taken as well: capabilities as one flat list (it fills all five sets), a process without a user (root), and
/// capabilities that this version does not know (left out with a warning, as the OCI asks).
///
/// # Errors
/// No such bundle; no, an unreadable or a broken config.json (with line, column and field); another OCI version.
pub fn load_spec(bundle: &Path) -> Result<Spec, OciError> {
    let metadata = fs::metadata(bundle).map_err(|source| OciError::Bundle { path: bundle.to_owned(), source })?;
    if !metadata.is_dir() {
        return Err(OciError::BundleNotDirectory { path: bundle.to_owned() });
    }
    let path = bundle.join("config.json");
    parse_spec(&read(&path)?, &path)
}

/// Parses the text of a config.json; `path` is for errors only.
///
/// # Errors
/// As [`load_spec`].
pub fn parse_spec(text: &[u8], path: &Path) -> Result<Spec, OciError> {
    let spec: Spec = parse(text, path, |document| document.get_mut("process").is_some_and(modernise_process))?;
    check_version(spec.version())?;
    Ok(spec)
}

/// Reads a process document, as `exec --process` gets one.
///
/// # Errors
/// The file cannot be read, or is no OCI process (with line, column and field).
pub fn load_process(path: &Path) -> Result<Process, OciError> {
    parse(&read(path)?, path, modernise_process)
}

fn read(path: &Path) -> Result<Vec<u8>, OciError> {
    let failed = |source| OciError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len().min(MAX_CONFIG_BYTES);
    // What is told of its length is no promise, so it is read to its end all the same.
    let mut text = Vec::with_capacity(usize::try_from(length).unwrap_or_default() + 1);
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(OciError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

/// Parses `text`; what fails is tried once more after `modernise`, if that changed anything.
fn parse<T: DeserializeOwned>(
    text: &[u8],
    path: &Path,
    modernise: impl FnOnce(&mut Value) -> bool,
) -> Result<T, OciError> {
    if let Ok(parsed) = serde_json::from_slice(text) {
        return Ok(parsed);
    }
    // Once more, for the field at fault: to keep track of it takes as long as parsing does.
    let mut reader = serde_json::Deserializer::from_slice(text);
    let first = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| (error.path().to_string(), error.into_inner()))
        .and_then(|parsed| reader.end().map(|()| parsed).map_err(|error| (String::new(), error)));
    let (field, error) = match first {
        Ok(parsed) => return Ok(parsed),
        Err(failure) => failure,
    };
    let mut place = (error.line(), error.column());
    let mut modern = if error.is_data() { serde_json::from_slice::<Value>(text).ok() } else { None };
    let (field, error) = match modern.take_if(modernise).map(serde_path_to_error::deserialize) {
        None => (field, error),
        Some(Ok(parsed)) => return Ok(parsed),
        // What is wrong now stands elsewhere, and a parsed document has no lines.
        Some(Err(error)) => {
            place = (0, 0);
            (error.path().to_string(), error.into_inner())
        }
    };
    let mut what = error.to_string();
    if let Some(at) = what.rfind(" at line ") {
        what.truncate(at);
    }
    Err(OciError::Syntax {
        path: path.to_owned(),
        line: place.0,
        column: place.1,
        field: if error.is_data() { field } else { String::new() },
        what,
    })
}

/// Rewrites a process of an older or laxer engine; whether anything changed.
fn modernise_process(process: &mut Value) -> bool {
    let Some(process) = process.as_object_mut() else {
        return false;
    };
    let mut changed = false;
    if process.get("user").is_none_or(Value::is_null) {
        process.insert("user".to_owned(), json!({"uid": 0, "gid": 0}));
        changed = true;
    }
    let Some(capabilities) = process.get_mut("capabilities") else {
        return changed;
    };
    if let Some(flat) = capabilities.as_array() {
        let flat = Value::Array(flat.clone());
        *capabilities =
            json!({"bounding": flat, "effective": flat, "inheritable": flat, "permitted": flat, "ambient": flat});
        changed = true;
    }
    for set in capabilities.as_object_mut().into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            let known = serde_json::from_value::<oci_spec::runtime::Capability>(name.clone()).is_ok();
            // A value that is no text stays, for the error that it deserves.
            if let (false, Some(name)) = (known, name.as_str()) {
                tracing::warn!(capability = name, "unknown capability is left out");
                changed = true;
                return false;
            }
            true
        });
    }
    changed
}

fn check_version(version: &str) -> Result<(), OciError> {
    let refused = || OciError::Version { version: version.to_owned() };
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<u32> = core.split('.').map(str::parse).collect::<Result<_, _>>().map_err(|_| refused())?;
    match numbers[..] {
        [1, 0..=3, _] => Ok(()),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Spec, String> {
        parse_spec(text.as_bytes(), Path::new("/b/config.json")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_bundle_that_is_missing_or_no_directory_or_empty_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let error = load_spec(&dir.path().join("no")).expect_err("missing");
        assert!(matches!(error, OciError::Bundle { .. }), "{error}");
        let file = dir.path().join("file");
        fs::write(&file, "x").expect("written");
        assert!(matches!(load_spec(&file), Err(OciError::BundleNotDirectory { .. })));
        let error = load_spec(dir.path()).expect_err("no config.json");
        assert_eq!(error.to_string(), format!("{:?} cannot be read", dir.path().join("config.json")));
    }

    #[test]
    fn a_broken_config_is_refused_with_its_place_and_field() {
        let cases = [
            ("", "EOF while parsing a value", "line 1, column 0"),
            ("{\n \"ociVersion\": \"1.0.2\",\n oops }", "key must be a string", "line 3, column 2"),
            ("{\"ociVersion\":\"1.0.2\"} x", "trailing characters", "line 1, column 24"),
            (
                "{\"ociVersion\":\"1.0.2\",\n\"process\":{\"user\":{},\"cwd\":\"/\",\"args\":[1]}}",
                "process.args[0]: invalid type: integer `1`, expected a string",
                "line 2,",
            ),
            (
                "{\"ociVersion\":\"1.0.2\",\"process\":{\"user\":{},\"cwd\":\"/\",\"rlimits\":[{\"type\":\"RLIMIT_NO\"}]}}",
                "process.rlimits[0].type: unknown variant `RLIMIT_NO`",
                "line 1,",
            ),
        ];
        for (text, what, place) in cases {
            let error = parsed(text).expect_err(text);
            assert!(error.contains(what) && error.contains(place), "{error}");
            assert!(error.starts_with("\"/b/config.json\" line ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn versions_of_the_specification_from_1_0_to_1_3_are_taken() {
        for version in ["1.0.0", "1.0.2-dev", "1.0.0-rc5", "1.1.0", "1.2.0", "1.2.1+dev", "1.3.0"] {
            assert!(parsed(&format!(r#"{{"ociVersion":"{version}"}}"#)).is_ok(), "{version}");
        }
        for version in ["", "0.9.0", "1.4.0", "2.0.0", "1", "1.0", "one", "1.0.0.0"] {
            let error = parsed(&format!(r#"{{"ociVersion":"{version}"}}"#)).expect_err(version);
            assert_eq!(error, format!("ociVersion {version:?} is not supported: 1.0.0 to 1.3.0"));
        }
        assert!(parsed("{}").expect_err("none").starts_with("ociVersion \"\""));
    }

    #[test]
    fn a_flat_list_of_capabilities_fills_all_five_sets() {
        let spec = parsed(
            r#"{"ociVersion":"1.0.0-rc5","process":{"user":{"uid":1,"gid":1},"args":["a"],"cwd":"/",
                "capabilities":["CAP_KILL","CAP_FUTURE"]}}"#,
        )
        .expect("old form");
        let capabilities = spec.process().as_ref().expect("process").capabilities().clone().expect("capabilities");
        for set in [
            capabilities.bounding(),
            capabilities.effective(),
            capabilities.inheritable(),
            capabilities.permitted(),
            capabilities.ambient(),
        ] {
            let set = set.as_ref().expect("set");
            assert_eq!(set.iter().map(ToString::to_string).collect::<Vec<_>>(), ["KILL"]);
        }
    }

    #[test]
    fn a_process_without_a_user_is_roots_and_unknown_capabilities_are_left_out() {
        let spec = parsed(
            r#"{"ociVersion":"1.0.2","process":{"args":["a"],"cwd":"/",
                "capabilities":{"bounding":["CAP_CHOWN","CAP_FUTURE"],"ambient":null}}}"#,
        )
        .expect("lax form");
        let process = spec.process().as_ref().expect("process");
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let bounding = process.capabilities().as_ref().expect("capabilities").bounding().clone().expect("bounding");
        assert_eq!(bounding.len(), 1);
    }

    #[test]
    fn a_config_that_is_wrong_after_modernising_names_the_field() {
        let error = parsed(r#"{"ociVersion":"1.0.2","process":{"cwd":"/","capabilities":[],"args":"sh"}}"#);
        assert!(error.expect_err("args").contains("args: invalid type: string \"sh\", expected a sequence"));
    }

    #[test]
    fn a_config_larger_than_the_limit_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = File::create(dir.path().join("config.json")).expect("created");
        file.set_len(MAX_CONFIG_BYTES + 1).expect("sparse");
        assert!(matches!(load_spec(dir.path()), Err(OciError::TooLarge { .. })));
    }
}
