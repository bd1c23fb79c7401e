//! A plan for people: every path, the text that would change, and what is left to do by hand.

use std::fmt::Write;
use std::path::Path;

use similar::TextDiff;

use super::containerd_drop_in;
use super::content::Content;
use super::plan::{Change, Plan};
use super::remove::Removal;

impl Plan {
    /// What would change, as a list and then as differences (`diff -u`), and what husk leaves to others.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        if self.is_done() {
            text.push_str("everything is installed as asked for\n");
        }
        for change in &self.changes {
            let word = match (&change.before, &change.after) {
                (None, _) => "create",
                (_, None) => "remove",
                (Some(Content::File { bytes, .. }), Some(Content::File { bytes: new, .. })) if bytes == new => "permit",
                _ => "replace",
            };
            let _ = writeln!(text, "{word:<8} {}{}", change.path.display(), arrow(change));
        }
        for difference in self.changes.iter().filter_map(difference) {
            text.push('\n');
            text.push_str(&difference);
        }
        if !self.problems.is_empty() || !self.notes.is_empty() {
            text.push('\n');
        }
        for problem in &self.problems {
            let _ = writeln!(text, "problem  {problem}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note     {note}");
        }
        text
    }
}

impl Removal {
    /// What would be removed, and what would stay.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for path in &self.remove {
            let _ = writeln!(text, "remove   {}", path.display());
        }
        for path in &self.keep {
            let _ = writeln!(text, "keep     {} (changed since it was installed)", path.display());
        }
        for path in &self.needed {
            let _ = writeln!(text, "keep     {} (another installation needs it)", path.display());
        }
        for (path, names) in &self.dangling {
            let _ = writeln!(text, "problem  {}", dangling(path, names));
        }
        text
    }
}

/// What is wrong with a file that stays, whose handlers `names` name what goes.
pub(super) fn dangling(path: &Path, names: &[String]) -> String {
    let (path, names) = (path.display(), names.join(", "));
    format!("{path} still has the handlers {names}, whose pods will not start: take them out, and restart the engine")
}

fn arrow(change: &Change) -> String {
    match (&change.after, &change.before) {
        (Some(Content::Link { target }), _) => format!(" -> {}", target.display()),
        (Some(Content::File { bytes, .. }), _) if text_of(&change.after).is_none() => {
            format!(" ({} bytes)", bytes.len())
        }
        _ => String::new(),
    }
}

/// What changes in a text; `None` for programs and links, and for what goes. Of one that is, or
/// was, a copy of what others have set it is what husk has added: whoever reads a plan may not be
/// who may read the original.
fn difference(change: &Change) -> Option<String> {
    let (old, new) = (text_of(&change.before)?, text_of(&change.after)?);
    let (old, new) = match &change.excerpt {
        _ if old == new || change.after.is_none() => return None,
        Some(excerpt) => ("", excerpt.as_str()),
        None if containerd_drop_in::is_copy(old) => ("", new),
        None => (old, new),
    };
    let path = change.path.display().to_string();
    let name = |there: bool| if there { path.as_str() } else { "/dev/null" };
    let (from, to) = (name(change.before.is_some()), name(change.after.is_some()));
    let diff = TextDiff::from_lines(old, new);
    Some(diff.unified_diff().context_radius(2).header(from, to).to_string())
}

/// A text, or the empty one where nothing is.
fn text_of(content: &Option<Content>) -> Option<&str> {
    match content {
        None => Some(""),
        Some(Content::File { bytes, .. }) if !bytes.contains(&0) => str::from_utf8(bytes).ok(),
        Some(_) => None,
    }
}
