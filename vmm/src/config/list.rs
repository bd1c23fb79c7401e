//! Lists of the wire format, of which no more is kept than it takes to see that they are too long.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Reads a list, and keeps the first `MOST` of its elements; `null` is as an empty one.
pub(super) struct Bounded<T, const MOST: usize>(PhantomData<T>);

impl<T, const MOST: usize> Bounded<T, MOST> {
    pub(super) const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<T, MOST> {
    type Value = Vec<T>;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a sequence")
    }

    fn visit_none<E: Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Vec<T>, D::Error> {
        from.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
        let mut kept = Vec::new();
        while kept.len() < MOST {
            match from.next_element()? {
                Some(element) => kept.push(element),
                None => return Ok(kept),
            }
        }
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::Deserializer::from_str(text).deserialize_option(Bounded::<u8, 2>::new())
    }

    #[test]
    fn a_list_is_kept_as_far_as_there_is_room() {
        for (text, kept) in [
            ("null", &[][..]),
            ("[]", &[]),
            ("[1,2]", &[1, 2]),
            ("[1, 2, 3, {}]", &[1, 2]),
        ] {
            assert_eq!(read(text).unwrap(), kept, "{text}");
        }
        for wrong in ["{}", "1", "[256]", "[1,2"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
