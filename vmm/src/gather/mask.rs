//! What looks like a secret: the value of a name that has `password`, `secret`, `token`, `credential`, `auth`, `private` or `key` in it, and
//! what stands between `://` and `@`. Too much is masked rather than too little: in a text, which is no JSON as a whole, a field of JSON may
//! stand anywhere, and may be in a string itself, its quotation marks escaped.

use std::sync::LazyLock;

use regex_lite::{Captures, Regex};
use serde_json::Value;

/// What stands in place of a secret.
const MASK: &str = "***";
/// Names that a secret has.
const NAMES: &str = "passw|passphrase|passwd|pwd|secret|token|credential|auth|private|key";

/// The content of the file `path` without secrets. JSON stays JSON.
pub(super) fn content(path: &str, bytes: &[u8]) -> Vec<u8> {
    let whole = String::from_utf8_lossy(bytes);
    let masked = if path.ends_with(".jsonl") {
        whole.lines().map(|line| document(line) + "\n").collect()
    } else if path.ends_with(".json") {
        document(&whole)
    } else {
        text(&whole)
    };
    masked.into_bytes()
}

fn document(json: &str) -> String {
    let Ok(mut value) = serde_json::from_str(json) else {
        return text(json);
    };
    self::json(&mut value);
    let is_line = !json.trim_end().contains('\n');
    let shown = if is_line {
        serde_json::to_string(&value)
    } else {
        serde_json::to_string_pretty(&value)
    };
    shown.expect("a value is always JSON")
}

/// What finds secrets. Made once: a bundle has hundreds of texts.
struct Patterns {
    /// Names of secrets.
    names: Regex,
    /// `name=value` up to the next blank, or quotation mark if the value begins with one.
    values: Regex,
    /// `"name": value` of JSON.
    fields: Regex,
    /// The same within a string of JSON: `\"name\": \"value\"`.
    escaped_fields: Regex,
    /// `name: value`, as [`values`](Self::values); the scheme of an `Authorization:` belongs to the value.
    headers: Regex,
    /// The word after an option `--name`.
    options: Regex,
    /// Passwords in addresses.
    addresses: Regex,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let expression = |pattern: &str| Regex::new(pattern).expect("every pattern here is one");
    Patterns {
        names: expression(&format!("(?i)(?:{NAMES})")),
        values: expression(&format!(
            r#"(?i)([\w.\-]*(?:{NAMES})[\w.\-]*=)(\\?"[^"]*"?|'[^']*'?|[^\s"'\\]+)"#
        )),
        fields: expression(&format!(
            r#"(?i)("[^"\\]*(?:{NAMES})[^"\\]*"\s*:\s*)("(?:[^"\\]|\\.)*"?|\{{[^}}]*\}}?|\[[^\]]*\]?|[^\s"\\,}}\]]+)"#
        )),
        escaped_fields: expression(&format!(
            r#"(?i)(\\"[^"\\]*(?:{NAMES})[^"\\]*\\"\s*:\s*)(\\"(?:\\{{3}}"|\\{{4}}|\\{{0,2}}[^"\\])*\\?"?|\{{[^}}]*\}}?|\[[^\]]*\]?|[^\s"\\,}}\]]+)"#
        )),
        headers: expression(&format!(
            r#"(?i)([\w.\-]*(?:{NAMES})[\w.\-]*:[ \t]+)(\\?"[^"]*"?|'[^']*'?|(?:(?:basic|bearer|digest|token)[ \t]+)?[^\s"'\\]+)"#
        )),
        options: expression(&format!(r"(?i)(--[\w\-]*(?:{NAMES})[\w\-]*[ \n\x00]+)([^\s\-]\S*)")),
        addresses: expression(r"(://)[^/@\s]+(@)"),
    }
});

/// `text` without secrets.
fn text(text: &str) -> String {
    let Patterns {
        names,
        values,
        fields,
        escaped_fields,
        headers,
        options,
        addresses,
    } = &*PATTERNS;
    let mut masked = text.to_owned();
    if names.is_match(text) {
        for (pattern, quote) in [
            (fields, "\""),
            (escaped_fields, "\\\""),
            (values, ""),
            (headers, ""),
            (options, ""),
        ] {
            let hide = |found: &Captures<'_>| {
                let name = found.get(1).map_or("", |m| m.as_str());
                format!("{name}{quote}{MASK}{quote}")
            };
            masked = pattern.replace_all(&masked, hide).into_owned();
        }
    }
    addresses
        .replace_all(&masked, format!("${{1}}{MASK}${{2}}"))
        .into_owned()
}

/// `value` without secrets: every string below such a name, and in every other string what [`text`] masks.
fn json(value: &mut Value) {
    mask(value, false);
}

/// As [`json`], where `value` stands below the name of a secret if it is `secret`.
fn mask(value: &mut Value, secret: bool) {
    match value {
        Value::Object(fields) => fields
            .iter_mut()
            .for_each(|(name, value)| mask(value, secret || PATTERNS.names.is_match(name))),
        Value::Array(values) => values.iter_mut().for_each(|value| mask(value, secret)),
        Value::String(string) if secret => *string = MASK.into(),
        Value::String(string) => *string = text(string),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_of_secret_names_are_masked_and_the_rest_is_not() {
        for (said, shown) in [
            (
                "console=hvc0 db_password=hunter2 root=/dev/vda agent.aa_kbc_params=x",
                "console=hvc0 db_password=*** root=/dev/vda agent.aa_kbc_params=x",
            ),
            ("TOKEN=\"a b\" quiet", "TOKEN=*** quiet"),
            ("api-key='a b' quiet", "api-key=*** quiet"),
            ("token=a=b==, next", "token=*** next"),
            ("--auth-token abc --verbose", "--auth-token *** --verbose"),
            ("--auth-token --verbose", "--auth-token --verbose"),
            ("https_proxy=http://me:pw@host/x", "https_proxy=http://***@host/x"),
            ("secret=", "secret="),
            ("line=\\\"token=\\\"a b\\\"\\\"", "line=\\\"token=***\\\""),
            ("no tokens here", "no tokens here"),
            (r#"{"password": "hunter2", "b": 1}"#, r#"{"password": "***", "b": 1}"#),
            (r#"said {"apiToken":"a\"b c"} and"#, r#"said {"apiToken":"***"} and"#),
            (r#"{"pin_key" : 1234,"b":"x"}"#, r#"{"pin_key" : "***","b":"x"}"#),
            (r#"{"auth": {"user": "a"}, "b": [1]}"#, r#"{"auth": "***", "b": [1]}"#),
            (r#"{"keys": ["a", "b"], "c": 2}"#, r#"{"keys": "***", "c": 2}"#),
            (
                r#"{"msg":"got {\"db_password\": \"a b\", \"c\": \"d\"}"}"#,
                r#"{"msg":"got {\"db_password\": \"***\", \"c\": \"d\"}"}"#,
            ),
            (
                r#"{"msg":"{\"token\":\"a\\\"b\\\\\",\"c\":1}"}"#,
                r#"{"msg":"{\"token\":\"***\",\"c\":1}"}"#,
            ),
            (
                r#"{"msg":"{\"pwd\": 12, \"c\":1}"}"#,
                r#"{"msg":"{\"pwd\": \"***\", \"c\":1}"}"#,
            ),
            (r#""token": "cut off"#, r#""token": "***""#),
            ("db-password: hunter2 next", "db-password: *** next"),
            ("Authorization: Bearer abc.def\nHost: x", "Authorization: ***\nHost: x"),
            ("api_key: 'a b' next", "api_key: *** next"),
            ("husk::keys::x and a:b", "husk::keys::x and a:b"),
            (r#"{"name": "keeps", "n": 1}"#, r#"{"name": "keeps", "n": 1}"#),
        ] {
            assert_eq!(text(said), shown);
        }
    }

    #[test]
    fn secrets_in_json_are_masked_by_their_names_and_in_strings() {
        let mut value = json!({
            "payload": {"cmdline": "quiet password=1"},
            "rest": [{"apiToken": "x", "key_count": 3, "name": "keep"}],
            "credentials": {"users": ["a", {"name": "b", "uid": 7}]},
        });
        json(&mut value);
        assert_eq!(
            value,
            json!({
                "payload": {"cmdline": "quiet password=***"},
                "rest": [{"apiToken": "***", "key_count": 3, "name": "keep"}],
                "credentials": {"users": ["***", {"name": "***", "uid": 7}]},
            })
        );
    }

    #[test]
    fn what_is_no_text_is_made_one() {
        assert_eq!(content("a.txt", b"a\xffsecret=b c"), "a\u{fffd}secret=*** c".as_bytes());
    }

    #[test]
    fn json_stays_json() {
        let one = "{\"a\": \"secret=\", \"token\": \"t\", \"b\": \"x key=\\\"1 2\\\" y\"}";
        let lines = String::from_utf8(content("a.jsonl", format!("{one}\n{one}\n").as_bytes())).unwrap();
        assert_eq!(lines.lines().count(), 2);
        for line in lines.lines() {
            let value: Value = serde_json::from_str(line).unwrap();
            assert_eq!(value, json!({"a": "secret=", "token": "***", "b": "x key=*** y"}));
        }
        assert_eq!(content("a.json", b"{\n\"key\": \"k\"\n}"), b"{\n  \"key\": \"***\"\n}");
        assert_eq!(content("a.json", b"no JSON, token=1"), b"no JSON, token=***");
    }
}
