//! What looks like a secret: the value of a name that has one of [`NAMES`] in it, what stands
//! between `://` and `@`, what follows `-u` and has a colon, and keys in PEM. Too much is masked
//! rather than too little: in a text, which is no JSON as a whole, a field of JSON may stand
//! anywhere, and may be in a string itself, its quotation marks escaped.
//!
//! A guest writes its console: the time that this takes is linear in the length of a text, whatever is in it.

use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

/// What stands in place of a secret.
const MASK: &str = "***";
/// What names of secrets have in them, and whether numbers under such a name are secrets too:
/// `key_count` and `private_kib` are figures. The index of a bundle and `docs/operate.md` have it
/// from here.
const NAMES: [(&str, bool); 11] = [
    ("passw", true),
    ("passphrase", true),
    ("pwd", true),
    ("pw", false),
    ("secret", true),
    ("token", true),
    ("credential", true),
    ("auth", false),
    ("private", false),
    ("cookie", false),
    ("key", false),
];
/// What the kernel says of pages (proc(5)), with the name of a secret.
const PAGES: [&str; 3] = ["Private_Clean", "Private_Dirty", "Private_Hugetlb"];

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
    /// Names of secrets that are numbers.
    numbered: Regex,
    /// `name=` and `name =`: how far the value goes is for [`value_end`] to say.
    assignments: Regex,
    /// `"name": value` of JSON.
    fields: Regex,
    /// The same within a string of JSON: `\"name\": \"value\"`.
    escaped_fields: Regex,
    /// `name: value`, up to the end of the line.
    headers: Regex,
    /// `--name value`, also with a NUL between them, as in a command line.
    options: Regex,
    /// `-u user:password`.
    users: Regex,
    /// Passwords in addresses.
    addresses: Regex,
    /// Keys and certificates in PEM.
    pem: Regex,
}

/// These are searched for in MiB that a guest has written: `regex-lite`, which is enough for the
/// policies of a pod, takes seconds for each. Patterns are about ASCII: `[[:word:]]` and
/// `[[:space:]]` are the classes that need no tables of Unicode, and only names fold case.
static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let expression = |pattern: &str| Regex::new(pattern).expect("every pattern here is one");
    let any_of = |is_meant: fn(&(&str, bool)) -> bool| {
        let names = NAMES.iter().filter(|name| is_meant(name));
        let names: Vec<&str> = names.map(|(name, _)| *name).collect();
        format!("(?i-u:{})", names.join("|"))
    };
    let names = any_of(|_| true);
    Patterns {
        names: expression(&names),
        numbered: expression(&any_of(|(_, is_numbered)| *is_numbered)),
        assignments: expression(&format!(r"[[:word:].\-]*{names}[[:word:].\-]*[ \t]*=[ \t]*")),
        fields: expression(&format!(
            r#"("[^"\\]*{names}[^"\\]*"[[:space:]]*:[[:space:]]*)("(?:[^"\\]|\\.)*"?|\{{[^}}]*\}}?|\[[^\]]*\]?|[^[:space:]"\\,}}\]]+)"#
        )),
        escaped_fields: expression(&format!(
            r#"(\\"[^"\\]*{names}[^"\\]*\\"[[:space:]]*:[[:space:]]*)(\\"(?:\\{{3}}"|\\{{4}}|\\{{0,2}}[^"\\])*\\?"?|\{{[^}}]*\}}?|\[[^\]]*\]?|[^[:space:]"\\,}}\]]+)"#
        )),
        headers: expression(&format!(
            r#"([[:word:].\-]*{names}[[:word:].\-]*):[ \t]+(\\?"[^"]*"?|'[^'\n]*'?|[^[:space:]"'][^\n]*)"#
        )),
        options: expression(&format!(
            r"(--[[:word:]\-]*{names}[[:word:]\-]*[ \n\x00]+)(-?[^[:space:]\-\x00][^[:space:]\x00]*)"
        )),
        users: expression(r"(?m)((?:^|[[:space:]\x00])-u[ \t\n\x00]*)[^[:space:]\x00:]+:[^[:space:]\x00]+"),
        addresses: expression(r#"(://)[^[:space:]"'<>\x00]*(@)"#),
        pem: expression("(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|$)"),
    }
});

/// [`NAMES`] as a sentence has them, each between `quote`s.
pub(super) fn names(quote: &str) -> String {
    let names: Vec<String> = NAMES.iter().map(|(name, _)| format!("{quote}{name}{quote}")).collect();
    match names.split_last() {
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

/// `text` without secrets.
fn text(text: &str) -> String {
    let patterns = &*PATTERNS;
    let mut masked = patterns.pem.replace_all(text, MASK).into_owned();
    if patterns.names.is_match(&masked) {
        for (pattern, quote) in [(&patterns.fields, "\""), (&patterns.escaped_fields, "\\\"")] {
            let hide = |found: &Captures<'_>| format!("{}{quote}{MASK}{quote}", group(found, 1));
            masked = pattern.replace_all(&masked, hide).into_owned();
        }
        masked = without_assigned(&masked);
        let hide = |found: &Captures<'_>| match group(found, 1) {
            name if PAGES.contains(&name) => group(found, 0).to_owned(),
            name => format!("{name}: {MASK}"),
        };
        masked = patterns.headers.replace_all(&masked, hide).into_owned();
        let hide = |found: &Captures<'_>| format!("{}{MASK}", group(found, 1));
        masked = patterns.options.replace_all(&masked, hide).into_owned();
    }
    masked = patterns
        .users
        .replace_all(&masked, format!("${{1}}{MASK}"))
        .into_owned();
    patterns
        .addresses
        .replace_all(&masked, format!("${{1}}{MASK}${{2}}"))
        .into_owned()
}

fn group<'t>(found: &Captures<'t>, number: usize) -> &'t str {
    found.get(number).map_or("", |found| found.as_str())
}

/// `text` without the values of `name=value`.
fn without_assigned(text: &str) -> String {
    let (mut masked, mut done) = (String::with_capacity(text.len()), 0);
    let mut around = OpenString::default();
    for found in PATTERNS.assignments.find_iter(text) {
        // A name within the value of another.
        if found.start() < done {
            continue;
        }
        around.advance(text, found.start());
        let end = found.end() + value_end(&around, &text[found.end()..]);
        masked.push_str(&text[done..found.end()]);
        if end > found.end() {
            masked.push_str(MASK);
        }
        done = end;
    }
    masked.push_str(&text[done..]);
    masked
}

/// What opens or closes a string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    Single,
    Double,
    /// That of a string within a string of JSON: `\"`.
    Escaped,
}

/// The string, if any, that is open at a place in a text. Each line begins without one. A text is gone through once.
#[derive(Default)]
struct OpenString {
    /// The place: so many bytes into the text.
    at: usize,
    /// Where the mark that opens it is, and which it is.
    open: Option<(usize, Quote)>,
    /// Whether a backslash stands before the place that is none itself.
    escaped: bool,
}

impl OpenString {
    /// Goes on to the place `to` in `text`.
    fn advance(&mut self, text: &str, to: usize) {
        let rest = &text.as_bytes()[self.at..to];
        for (number, byte) in rest.iter().enumerate() {
            let next = rest.get(number + 1).copied();
            if *byte == b'\n' {
                (self.open, self.escaped) = (None, false);
            } else if let Some(quote) = mark(*byte, next, &mut self.escaped) {
                self.open = match self.open {
                    Some((_, opened)) if opened == quote => None,
                    // An apostrophe in a string, or an escaped mark in one, is no end of it; a
                    // string in a string of JSON is one of its own.
                    Some((_, Quote::Double)) if quote == Quote::Escaped => Some((self.at + number, quote)),
                    Some(open) => Some(open),
                    None => Some((self.at + number, quote)),
                };
            }
        }
        self.at = to;
    }

    /// Whether it begins at the place.
    fn begins_here(&self) -> bool {
        self.open.is_some_and(|(at, quote)| at + quote.len() == self.at)
    }
}

/// How many bytes of `value` belong to a secret whose name stands where `around` is open: up to
/// white space outside quotation marks, or to the mark that closes the string in which the name
/// stands too. Where such a string begins with the name, all of it is the secret.
fn value_end(around: &OpenString, value: &str) -> usize {
    let bytes = value.as_bytes();
    let (mut inside, mut escaped): (Option<Quote>, bool) = (None, false);
    for (at, found) in value.char_indices() {
        if found == '\n' {
            return at;
        }
        let byte = bytes.get(at).copied().unwrap_or_default();
        if let Some(quote) = mark(byte, bytes.get(at + 1).copied(), &mut escaped) {
            match inside {
                Some(opened) if opened == quote => inside = None,
                Some(_) => {}
                // A value that has marks of its own begins with them, also in a string.
                None if at == 0 && quotes(value).skip(1).any(|other| other == quote) => inside = Some(quote),
                None if around.open.is_some_and(|(_, outer)| outer == quote) => return at,
                None => inside = Some(quote),
            }
        } else if (found.is_whitespace() || found == '\0') && inside.is_none() && !around.begins_here() {
            return at;
        }
    }
    value.len()
}

/// The quotation marks of the first line of `text`.
fn quotes(text: &str) -> impl Iterator<Item = Quote> {
    let mut escaped = false;
    let line = text.bytes().take_while(|byte| *byte != b'\n').enumerate();
    line.filter_map(move |(at, byte)| mark(byte, text.as_bytes().get(at + 1).copied(), &mut escaped))
}

/// The quotation mark that begins with `byte`, behind which `next` comes. `escaped` is whether a
/// backslash that is none itself stands before it.
fn mark(byte: u8, next: Option<u8>, escaped: &mut bool) -> Option<Quote> {
    let was_escaped = *escaped;
    *escaped = byte == b'\\' && !was_escaped;
    match (byte, was_escaped) {
        (b'\\', false) if next == Some(b'"') => Some(Quote::Escaped),
        (b'"', false) => Some(Quote::Double),
        (b'\'', false) => Some(Quote::Single),
        _ => None,
    }
}

impl Quote {
    fn len(self) -> usize {
        match self {
            Self::Escaped => 2,
            Self::Single | Self::Double => 1,
        }
    }
}

/// `value` without secrets: every string below such a name, and in every other string what [`text`] masks.
fn json(value: &mut Value) {
    mask(value, false);
}

/// As [`json`], where `value` stands below the name of a secret if it is `secret`.
fn mask(value: &mut Value, secret: bool) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if value.is_number() && PATTERNS.numbered.is_match(name) {
                    *value = MASK.into();
                }
                mask(value, secret || PATTERNS.names.is_match(name));
            }
        }
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
            ("db-password: two words\nnext", "db-password: ***\nnext"),
            ("Private_Dirty:    12 kB", "Private_Dirty:    12 kB"),
            ("db_password=hunter\\2x rest", "db_password=*** rest"),
            ("\"app_secret=two words\" rest", "\"app_secret=***\" rest"),
            ("x=\"quiet key=1\" root=/", "x=\"quiet key=***\" root=/"),
            ("token=ab\"c d\"e rest", "token=*** rest"),
            ("token=ab\"c d\nrest", "token=***\nrest"),
            ("key=a'b c", "key=***"),
            ("aws_secret_access_key = abc rest", "aws_secret_access_key = *** rest"),
            ("rootpw=abc rest", "rootpw=*** rest"),
            ("http://me:p@x@host/y z", "http://***@host/y z"),
            ("https://me:p/w@host z", "https://***@host z"),
            ("--token -abc rest", "--token *** rest"),
            ("curl -u me:abc https://x", "curl -u *** https://x"),
            ("Set-Cookie: id=abc; Path=/\nHost: x", "Set-Cookie: ***\nHost: x"),
            (
                "a -----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nb",
                "a ***\nb",
            ),
            ("-----BEGIN PRIVATE KEY-----\nabc", "***"),
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
            "passwd": 1234,
            "credentials": {"users": ["a", {"name": "b", "uid": 7}]},
        });
        json(&mut value);
        assert_eq!(
            value,
            json!({
                "payload": {"cmdline": "quiet password=***"},
                "rest": [{"apiToken": "***", "key_count": 3, "name": "keep"}],
                "passwd": "***",
                "credentials": {"users": ["***", {"name": "***", "uid": 7}]},
            })
        );
    }

    #[test]
    fn the_manual_names_what_is_masked() {
        let manual = include_str!("../../../docs/operate.md");
        let sentence = format!("whose name has {} in it", names("`"));
        assert!(manual.contains(&sentence), "{sentence}");
    }

    #[test]
    fn a_string_is_known_wherever_a_line_is_looked_at() {
        let line = "it's\nx='token=a' y=\"key=b\" z=\\\"pwd=c\\\" ".repeat(3);
        let mut around = OpenString::default();
        let found = PATTERNS.assignments.find_iter(&line);
        let open = found.map(|found| {
            around.advance(&line, found.start());
            around.begins_here()
        });
        assert_eq!(open.collect::<Vec<_>>(), [true; 9]);
    }

    /// A guest whose console is one long line of names holds up nobody: if each name were looked at
    /// together with the line before it or behind it, this would take minutes.
    #[test]
    fn a_line_of_any_length_is_masked_as_its_parts_are() {
        let one = "token=abcdef \"pwd\": 1 http://a@b -u a:b x='key=1' ";
        assert!(text(&one.repeat(5000)) == text(one).repeat(5000));
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
