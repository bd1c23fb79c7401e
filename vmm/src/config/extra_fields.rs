//! Fields of the wire format that husk gives no meaning to.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// What an object holds beside the fields that husk knows: kept, so that `vm.info` echoes what was sent, but for `null`, which says
/// no more than absence does and which strict readers of the echo refuse.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ExtraFields(Map<String, Value>);

impl ExtraFields {
    /// The value of `key`, if it was sent and is not `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }
}

impl<'de> Deserialize<'de> for ExtraFields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(from)?;
        drop_nulls(&mut fields);
        Ok(Self(fields))
    }
}

fn drop_nulls(fields: &mut Map<String, Value>) {
    fields.retain(|_, value| !value.is_null());
    fields.values_mut().for_each(drop_nested_nulls);
}

fn drop_nested_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => drop_nulls(fields),
        Value::Array(values) => values.iter_mut().for_each(drop_nested_nulls),
        _ => {}
    }
}
