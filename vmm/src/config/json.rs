//! JSON from outside, read so that what is wrong names its field, and what would be right, in words
//! that are not Rust's.

use serde::de::DeserializeOwned;

/// Why JSON cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// What serde calls the types of fields, and what they are.
const TYPES: [(&str, &str); 8] = [
    ("u8", "a whole number from 0 to 255"),
    ("u16", "a whole number from 0 to 65535"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number, 0 or more"),
    ("i64", "a whole number"),
    ("path string", "a string that is a path"),
    ("a map", "an object"),
    ("a sequence", "a list"),
];

/// Reads `text`.
///
/// # Errors
/// It is no JSON, or not that of a `T`.
pub fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, JsonError> {
    if text.trim_ascii().is_empty() {
        return Err(JsonError("it is empty, allowed: a JSON object".into()));
    }
    let mut reader = serde_json::Deserializer::from_slice(text);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let place = error.path().to_string();
        let problem = plain(&error.into_inner().to_string());
        // What is wrong with the JSON itself, or with all of it, has no place but its line and column.
        JsonError(match place.as_str() {
            "." | "?" => problem,
            place => format!("{place}: {problem}"),
        })
    })?;
    reader.end().map_err(|error| JsonError(error.to_string()))?;
    Ok(read)
}

/// A message of serde's without names of Rust's.
fn plain(problem: &str) -> String {
    let Some((found, expected)) = problem.split_once(", expected ") else {
        return problem.to_owned();
    };
    let (expected, place) = match expected.find(" at line ") {
        Some(at) => expected.split_at(at),
        None => (expected, ""),
    };
    let known = TYPES.iter().find(|(name, _)| *name == expected);
    let expected = match known {
        Some((_, plain)) => plain,
        None if expected.starts_with("struct ") => "an object",
        None => expected,
    };
    format!("{found}, expected {expected}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    fn error(text: &str) -> String {
        parse::<VmConfig>(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_value_of_another_type_is_told_with_its_field_and_what_is_allowed() {
        let wrong = [
            (
                r#"{"memory":{"size":"512M"}}"#,
                r#"memory.size: invalid type: string "512M", expected a whole number, 0 or more at line 1 column 24"#,
            ),
            (
                r#"{"cpus":{"boot_vcpus":-1}}"#,
                "cpus.boot_vcpus: invalid value: integer `-1`, expected a whole number from 0 to 4294967295",
            ),
            (
                r#"{"payload":{"kernel":5}}"#,
                "payload.kernel: invalid type: integer `5`, expected a string that is a path",
            ),
            (
                r#"{"disks":{"path":"/x"}}"#,
                "disks: invalid type: map, expected a list",
            ),
            (
                r#"{"disks":[{"path":"/a"},{"path":7}]}"#,
                "disks[1].path: invalid type: integer `7`",
            ),
            (r#"{"vsock":{"socket":"/s"}}"#, "vsock: missing field `cid`"),
            (
                r#"{"serial":{"mode":"tty"}}"#,
                "serial.mode: unknown variant `tty`, expected one of `Off`, `Null`",
            ),
            (
                r#"{"fs":[{"tag":"t","translate_gid":[{"guest":"root"}]}]}"#,
                r#"fs[0].translate_gid[0].guest: invalid type: string "root", expected a whole number"#,
            ),
            (
                r#"{"net":[{"mac":"zz"}]}"#,
                "net[0].mac: mac is 'zz', allowed: six pairs",
            ),
        ];
        for (text, message) in wrong {
            assert!(error(text).starts_with(message), "{text}: {}", error(text));
        }
    }

    #[test]
    fn what_is_no_object_at_all_is_told_by_itself() {
        assert_eq!(
            error("[]"),
            "invalid type: sequence, expected an object at line 1 column 0"
        );
        for empty in ["", " \n"] {
            assert_eq!(error(empty), "it is empty, allowed: a JSON object");
        }
        assert!(error("{").starts_with("EOF while parsing an object"), "{}", error("{"));
        assert!(error("{} {}").starts_with("trailing characters"), "{}", error("{} {}"));
    }
}
