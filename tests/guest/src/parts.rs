//! Parts of a measurement, each of which has a guest of its own and a name by which it is asked for.

/// Declares the parts of a measurement: an enum with all of them in their order (`ALL`), each
/// printed and parsed as its word.
#[macro_export]
macro_rules! parts {
    ($(#[$about:meta])* $name:ident { $($(#[$what:meta])* $part:ident = $word:literal,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$what])* $part,)*
        }

        impl $name {
            /// All, in the order in which they are measured.
            pub const ALL: &'static [Self] = &[$(Self::$part),*];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self {
                    $(Self::$part => $word,)*
                })
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$part),)*
                    _ => Err(format!("no such part: {text}")),
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use crate::{blocks, folder};

    #[test]
    fn parts_are_known_by_their_names() {
        for part in folder::Part::ALL {
            assert_eq!(part.to_string().parse().as_ref(), Ok(part));
        }
        for part in blocks::Part::ALL {
            assert_eq!(part.to_string().parse().as_ref(), Ok(part));
        }
        assert_eq!("all".parse::<blocks::Part>().unwrap_err(), "no such part: all");
    }
}
