//! Options that are lists of `key=value`, separated by commas.
//!
//! A value that holds a comma or a quote is written in double quotes; inside them `\"` and `\\` stand for `"` and `\`.

use std::iter::Peekable;
use std::str::Chars;

/// Why a list of pairs could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairsError {
    /// Something without a value.
    #[error("'{found}' has no value, write it as key=value; allowed keys: {allowed}")]
    NoValue {
        /// What was found in the place of a pair.
        found: String,
        /// All keys.
        allowed: String,
    },
    /// A key that this option does not have.
    #[error("unknown key '{found}', allowed: {allowed}")]
    UnknownKey {
        /// The key.
        found: String,
        /// All keys.
        allowed: String,
    },
    /// The same key a second time.
    #[error("key '{0}' is given twice")]
    Twice(String),
    /// A quote without its end.
    #[error("the quoted value of '{0}' has no closing quote")]
    OpenQuote(String),
    /// Something between a closing quote and the comma.
    #[error("the quoted value of '{0}' is followed by '{1}', only a comma may follow")]
    AfterQuote(String, char),
}

/// Splits `text` into pairs, in the order given. Only keys in `allowed` pass, and each of them once.
pub fn parse_pairs<'k>(text: &str, allowed: &[&'k str]) -> Result<Vec<(&'k str, String)>, PairsError> {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    let mut rest = text.chars().peekable();
    while rest.peek().is_some() {
        let (name, separator) = take_until(&mut rest, &['=', ',']);
        let Some(key) = allowed.iter().copied().find(|key| *key == name) else {
            let (found, allowed) = (name, allowed.join(", "));
            return Err(match separator {
                Some('=') => PairsError::UnknownKey { found, allowed },
                _ => PairsError::NoValue { found, allowed },
            });
        };
        if separator != Some('=') {
            return Err(PairsError::NoValue {
                found: name,
                allowed: allowed.join(", "),
            });
        }
        if pairs.iter().any(|(known, _)| *known == key) {
            return Err(PairsError::Twice(name));
        }
        let value = take_value(&mut rest, key)?;
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// As [`parse_pairs`], where the key of the first value may be left out: it is `first` then.
pub fn parse_pairs_after<'k>(
    first: &str,
    text: &str,
    allowed: &[&'k str],
) -> Result<Vec<(&'k str, String)>, PairsError> {
    let word = text.split(',').next().unwrap_or_default();
    if word.contains('=') {
        return parse_pairs(text, allowed);
    }
    parse_pairs(&format!("{first}={text}"), allowed)
}

/// The characters before the first of `ends`, which is taken as well and returned.
fn take_until(rest: &mut Peekable<Chars<'_>>, ends: &[char]) -> (String, Option<char>) {
    let mut taken = String::new();
    for c in rest.by_ref() {
        if ends.contains(&c) {
            return (taken, Some(c));
        }
        taken.push(c);
    }
    (taken, None)
}

fn take_value(rest: &mut Peekable<Chars<'_>>, key: &str) -> Result<String, PairsError> {
    if rest.next_if_eq(&'"').is_none() {
        return Ok(take_until(rest, &[',']).0);
    }
    let mut value = String::new();
    loop {
        match rest.next() {
            None => return Err(PairsError::OpenQuote(key.to_string())),
            Some('"') => break,
            Some('\\') => value.push(rest.next_if(|c| matches!(c, '"' | '\\')).unwrap_or('\\')),
            Some(c) => value.push(c),
        }
    }
    match rest.next() {
        None | Some(',') => Ok(value),
        Some(other) => Err(PairsError::AfterQuote(key.to_string(), other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEYS: [&str; 2] = ["path", "id"];

    fn parse(text: &str) -> Result<Vec<(&'static str, String)>, PairsError> {
        parse_pairs(text, &KEYS)
    }

    #[test]
    fn pairs_come_in_the_order_given() {
        assert_eq!(
            parse("id=a,path=/b c").unwrap(),
            [("id", "a".into()), ("path", "/b c".into())]
        );
        assert_eq!(
            parse("path=,id=x=y").unwrap(),
            [("path", String::new()), ("id", "x=y".into())]
        );
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn quotes_protect_commas_and_quotes() {
        assert_eq!(
            parse(r#"path="/a,b\"c\\d\e",id=x"#).unwrap(),
            [("path", r#"/a,b"c\d\e"#.into()), ("id", "x".into())]
        );
        assert_eq!(parse(r#"path=/a"b"#).unwrap(), [("path", r#"/a"b"#.into())]);
    }

    #[test]
    fn errors_name_what_was_found_and_what_is_allowed() {
        let message = |text| parse(text).unwrap_err().to_string();
        assert_eq!(message("size=1"), "unknown key 'size', allowed: path, id");
        assert_eq!(
            message("path=a,,id=b"),
            "'' has no value, write it as key=value; allowed keys: path, id"
        );
        assert_eq!(
            message("disk.img"),
            "'disk.img' has no value, write it as key=value; allowed keys: path, id"
        );
        assert_eq!(
            message("path"),
            "'path' has no value, write it as key=value; allowed keys: path, id"
        );
        assert_eq!(message("id=a,id=b"), "key 'id' is given twice");
        assert_eq!(message(r#"path="a"#), "the quoted value of 'path' has no closing quote");
        assert_eq!(
            message(r#"path="a"b"#),
            "the quoted value of 'path' is followed by 'b', only a comma may follow"
        );
    }

    proptest! {
        #[test]
        fn any_value_survives_quoting(value in ".*") {
            let quoted = value.replace('\\', r"\\").replace('"', r#"\""#);
            prop_assert_eq!(parse(&format!("id=1,path=\"{quoted}\"")), Ok(vec![("id", "1".into()), ("path", value)]));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = parse(&text);
        }
    }
}
