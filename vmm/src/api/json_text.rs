//! What clients note and husk does not read: JSON, kept as its text, which takes a hundredth of what a tree of it may.

use std::fmt::{self, Write};
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::response::to_ascii_json;

/// A JSON value's text, in ASCII and on one line. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(Arc<str>);

impl JsonText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `null`.
impl Default for JsonText {
    fn default() -> Self {
        Self("null".into())
    }
}

impl From<&Value> for JsonText {
    fn from(value: &Value) -> Self {
        Self(ascii(value).into())
    }
}

impl<'de> Deserialize<'de> for JsonText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut text = String::new();
        Append(&mut text).deserialize(from)?;
        Ok(Self(text.into()))
    }
}

fn ascii(value: &impl Serialize) -> String {
    String::from_utf8(to_ascii_json(value)).expect("ASCII")
}

/// Appends the text of the value that is read.
struct Append<'a>(&'a mut String);

impl Append<'_> {
    fn write<E: Error>(self, value: impl fmt::Display) -> Result<(), E> {
        write!(self.0, "{value}").map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Append<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Append<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.write("null")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.write(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.write(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.write(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.write(ascii(&value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.write(ascii(&text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
        let Self(text) = self;
        text.push('[');
        let begin = text.len();
        while from.next_element_seed(Append(text))?.is_some() {
            text.push(',');
        }
        close(text, begin, ']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
        let Self(text) = self;
        text.push('{');
        let begin = text.len();
        while let Some(name) = from.next_key::<String>()? {
            text.push_str(&ascii(&name));
            text.push(':');
            from.next_value_seed(Append(text))?;
            text.push(',');
        }
        close(text, begin, '}');
        Ok(())
    }
}

/// Ends a list or an object that has begun at `begin`, in place of the comma after the last of what it has.
fn close(text: &mut String, begin: usize, with: char) {
    if text.len() > begin {
        text.pop();
    }
    text.push(with);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_what_was_sent_in_ascii() {
        for sent in [
            "null",
            "[]",
            "{}",
            r#"[null, true, 0, -7, 18446744073709551615, 2.5, 1e300, [], {}, [[1], {"a": [{}, {"b": false}]}]]"#,
            r#"{"schlüssel \" \\": "naïve 中 😀\n", "": ""}"#,
        ] {
            let note: JsonText = serde_json::from_str(sent).unwrap();
            let value: Value = serde_json::from_str(sent).unwrap();
            assert!(note.as_str().is_ascii(), "{sent}");
            assert_eq!(serde_json::from_str::<Value>(note.as_str()).unwrap(), value, "{sent}");
            let again = serde_json::from_str::<Value>(JsonText::from(&value).as_str()).unwrap();
            assert_eq!(again, value);
        }
        assert_eq!(JsonText::default(), serde_json::from_str(" null ").unwrap());
        assert!(serde_json::from_str::<JsonText>("[1,").is_err());
    }
}
