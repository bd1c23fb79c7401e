//! Fields of the wire format that husk gives no meaning to.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The most values of all these fields of an object, what lists and objects among them hold included. A value in a tree
/// takes up to a hundred times the bytes of its text. Of what Cloud Hypervisor has, nothing that asks for nothing has
/// more than a few.
const VALUES: usize = 256;
/// The most bytes of their names and texts.
const TEXT_BYTES: usize = 8 << 10;

/// What an object holds beside the fields that husk knows: kept, so that `vm.info` echoes what was
/// sent, but for `null`, which says no more than absence does and which strict readers of the echo
/// refuse. Clones share it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtraFields(Arc<Map<String, Value>>);

impl ExtraFields {
    /// The value of `key`, if it was sent and is not `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }
}

impl Serialize for ExtraFields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(to)
    }
}

impl<'de> Deserialize<'de> for ExtraFields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let room = Room {
            values: Cell::new(VALUES),
            text_bytes: Cell::new(TEXT_BYTES),
        };
        let fields = from.deserialize_map(Fields(&room))?;
        Ok(Self(Arc::new(fields)))
    }
}

/// What there is room for.
struct Room {
    values: Cell<usize>,
    text_bytes: Cell<usize>,
}

impl Room {
    /// Takes room for a value, or for a name, with a text of `text_bytes`.
    fn take<E: Error>(&self, values: usize, text_bytes: usize) -> Result<(), E> {
        let left = self.values.get().checked_sub(values);
        let text_left = self.text_bytes.get().checked_sub(text_bytes);
        let (Some(left), Some(text_left)) = (left, text_left) else {
            return Err(E::custom(format_args!(
                "the fields that husk does not know hold more than {VALUES} values or {TEXT_BYTES} bytes of text"
            )));
        };
        self.values.set(left);
        self.text_bytes.set(text_left);
        Ok(())
    }

    fn text<E: Error>(&self, text: &str) -> Result<String, E> {
        self.take(0, text.len())?;
        Ok(text.to_owned())
    }
}

/// Reads the fields of an object that are not `null`.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a Room);

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = from.next_key::<String>()? {
            let value = from.next_value_seed(OneValue(self.0))?;
            if !value.is_null() {
                let name = self.0.text(&name)?;
                fields.insert(name, value);
            }
        }
        Ok(fields)
    }
}

/// Reads a value.
#[derive(Clone, Copy)]
struct OneValue<'a>(&'a Room);

impl<'de> DeserializeSeed<'de> for OneValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneValue<'_> {
    type Value = Value;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        self.deserialize(from)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.0.take(1, 0)?;
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.0.take(1, 0)?;
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.0.take(1, 0)?;
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.0.take(1, 0)?;
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        self.0.take(1, 0)?;
        self.0.text(text).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        self.0.take(1, 0)?;
        let mut values = Vec::new();
        while let Some(value) = from.next_element_seed(self)? {
            // A place in a list is one, whatever it says.
            self.0.take(usize::from(value.is_null()), 0)?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, from: A) -> Result<Value, A::Error> {
        self.0.take(1, 0)?;
        Fields(self.0).visit_map(from).map(Value::Object)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<ExtraFields, String> {
        serde_json::from_str(&value.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_kept_is_what_was_sent_but_for_nulls() {
        let sent = json!({"a": [1, -2, 2.5, null, "t", {"n": null, "m": false}], "n": null, "o": {}});
        let rest = read(&sent).unwrap();
        let kept = json!({"a": [1, -2, 2.5, null, "t", {"m": false}], "o": {}});
        assert_eq!(serde_json::to_value(&rest).unwrap(), kept);
        assert_eq!((rest.get("o"), rest.get("n")), (Some(&json!({})), None));
    }

    #[test]
    fn what_is_kept_is_bounded_in_values_and_text() {
        let too_much = "the fields that husk does not know hold more than 256 values or 8192 bytes of text";
        // The list is a value, too.
        for (most, value) in [
            (255, json!(0)),
            (255, Value::Null),
            (127, json!({"a": 0})),
            (255, json!([])),
        ] {
            let list = |count| json!({"x": vec![value.clone(); count]});
            assert!(read(&list(most)).is_ok(), "{value}");
            let error = read(&list(most + 1)).unwrap_err();
            assert!(error.starts_with(too_much), "{value}: {error}");
        }
        let text = |bytes| json!({"name": "x".repeat(bytes)});
        assert!(read(&text((8 << 10) - 4)).is_ok());
        assert!(read(&text((8 << 10) - 3)).unwrap_err().starts_with(too_much));
    }
}
