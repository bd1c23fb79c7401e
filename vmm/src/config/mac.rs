//! MAC addresses as configurations write them.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The address of a network interface (IEEE 802-2014 §8), written `02:42:ac:11:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddr([u8; 6]);

/// Not a MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mac is '{0}', allowed: six pairs of hexadecimal digits with colons between, of one interface, not of a group")]
pub struct BadMac(String);

impl MacAddr {
    /// A random unicast address of those that everybody may use (locally administered).
    pub fn random() -> Self {
        // Two hashers with keys of the system's entropy: enough for addresses that should differ,
        // none of them is a secret.
        let [a, b, c, d, e, f, ..] = RandomState::new().hash_one(std::process::id()).to_le_bytes();
        Self([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// The six octets in the order of transmission.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    pub(super) fn null_is_random<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or_else(Self::random))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.into());
        let mut octets = [0; 6];
        let mut pairs = text.split(':');
        for octet in &mut octets {
            let pair = pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+'));
            *octet = pair
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(bad)?;
        }
        let [first, ..] = octets;
        if pairs.next().is_some() || first & 1 == 1 || octets == [0; 6] {
            return Err(bad());
        }
        Ok(Self(octets))
    }
}

impl Serialize for MacAddr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        let text = "02:42:ac:11:00:0f";
        let mac: MacAddr = text.parse().unwrap();
        assert_eq!(mac.octets(), [2, 0x42, 0xac, 0x11, 0, 0xf]);
        assert_eq!(mac.to_string(), text);
        assert_eq!("02:42:AC:11:00:0F".parse(), Ok(mac));
    }

    #[test]
    fn what_is_no_address_of_one_interface_is_refused() {
        for text in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "2:42:ac:11:0:2",
            "0x:42:ac:11:00:02",
            "+2:42:ac:11:00:02",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            let error = text.parse::<MacAddr>().unwrap_err();
            assert!(error.to_string().contains(&format!("'{text}'")), "{error}");
        }
    }

    #[test]
    fn random_addresses_are_local_unicast_and_differ() {
        let (one, other) = (MacAddr::random(), MacAddr::random());
        assert_ne!(one, other);
        assert_eq!(one.octets().map(|octet| octet & 3).first(), Some(&2));
    }
}
