//! What a process is called where several have one log.

use std::path::Path;

/// What a process is called where several have one log: 1 to 64 letters, digits and `_.-`, as the
/// tools that look for it take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag(String);

/// Sockets that container runtimes call alike in every sandbox's folder, which is named after the sandbox.
const USUAL_NAMES: [&str; 4] = ["clh-api.sock", "ch-api.sock", "ch-vm.sock", "api.sock"];
/// Folders of such a socket that are no sandbox's.
const NAMELESS: [&str; 3] = ["tmp", "run", "root"];

impl Tag {
    /// The most bytes of a tag.
    const BYTES: usize = 64;

    /// What a husk with its API at `socket` is called, in its log and by whoever lists husks: after
    /// the sandbox in whose folder the socket is where it has a name that container runtimes give
    /// it, else after the socket. `None` where that says nothing.
    pub fn of_socket(socket: &Path) -> Option<Self> {
        let name = socket.file_name()?;
        let name = match USUAL_NAMES.iter().any(|usual| name == *usual) {
            true => {
                let folder = socket.parent()?.file_name()?;
                (!NAMELESS.iter().any(|nameless| folder == *nameless)).then_some(folder)?
            }
            false => socket.file_stem()?,
        };
        Self::like(&name.to_string_lossy())
    }

    /// The tag itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A tag that is like `text`, which has other characters perhaps, or too many.
    pub fn like(text: &str) -> Option<Self> {
        let plain = |found: char| if is_plain(found) { found } else { '_' };
        let tag: String = text.chars().map(plain).take(Self::BYTES).collect();
        (!tag.is_empty()).then_some(Self(tag))
    }
}

fn is_plain(found: char) -> bool {
    found.is_ascii_alphanumeric() || matches!(found, '_' | '.' | '-')
}

impl std::str::FromStr for Tag {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if (1..=Self::BYTES).contains(&text.len()) && text.chars().all(is_plain) {
            return Ok(Self(text.into()));
        }
        Err("allowed: 1 to 64 letters, digits, _, . and -")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_what_tools_take() {
        for text in ["web", "a_B.0-9", &"x".repeat(64)] {
            assert!(text.parse::<Tag>().is_ok(), "{text}");
        }
        for text in ["", "a b", "a\n", "a[1]", "ä", &"x".repeat(65)] {
            assert!(text.parse::<Tag>().is_err(), "{text:?}");
        }
        assert_eq!(Tag::like("a b/ä"), Some(Tag("a_b__".into())));
        assert_eq!(Tag::like(""), None);
    }
}
