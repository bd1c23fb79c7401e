//! `husk gather`: what somebody needs who is to find out what is wrong with a VM, and nothing that is the guest's.
//!
//! | file | its one reason |
//! |---|---|
//! | `subject.rs` | whom it is about |
//! | `parts.rs` | what of the host, and by a husk's own word, is looked at |
//! | `process_parts.rs` | what of its process is looked at, and its log |
//! | `kernel_log.rs` | what the kernel's log has of interest |
//! | `consoles.rs` | the end of what its guest printed into files |
//! | `written.rs` | files that a process writes to, read through its own descriptors |
//! | `threads.rs` | where the threads of a process are |
//! | `mask.rs` | what looks like a secret is not told |
//! | `bundle.rs` | the archive or folder, and its index |
//!
//! Guest memory, environments and contents of files are never read, but for the ends of husk's log
//! and of the guest's console where those are files, and for what husk says of indices and flags of
//! virtqueues. Each part has a thread and a time limit of its own, in which it is read and masked:
//! a husk that hangs costs the parts that it would have to say.

mod bundle;
mod consoles;
mod kernel_log;
mod mask;
mod parts;
mod process_parts;
mod subject;
mod threads;
mod written;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bundle::{Bundle, Entry};
use parts::Part;
use subject::Subject;

use crate::fleet::all_at_once;

pub use subject::{SubjectError, Target};

/// Husks that are looked at at the same time.
const AT_ONCE: usize = 16;

/// Where it goes.
#[derive(Clone, Debug)]
pub enum Output {
    /// A new archive: tar in zstd.
    Archive(PathBuf),
    /// A new folder.
    Folder(PathBuf),
}

/// What was gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    husks: usize,
    files: usize,
    bytes: usize,
    missing: usize,
}

/// Why nothing was.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// Nobody to gather it of.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// Nowhere to put it.
    #[error("{} cannot be written", .path.display())]
    Output {
        /// Where.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
}

/// Gathers all about `target` into `output`, which must not be there yet; each part has `limit`.
/// What could not be had is in the index.
///
/// # Errors
/// There is no such husk, or the output cannot be written: nothing is left of it then.
pub fn gather(target: &Target, output: &Output, limit: Duration) -> Result<Summary, GatherError> {
    let subjects = subject::subjects(target, limit)?;
    let (Output::Archive(path) | Output::Folder(path)) = output;
    let failed = |source| GatherError::Output {
        path: path.clone(),
        source,
    };
    let mut bundle = Bundle::create(output).map_err(failed)?;
    let mut all = carry_out("host", parts::of_host(&subjects, limit), limit);
    for some in subjects.chunks(AT_ONCE) {
        let gathered = all_at_once(some, |subject| of_one(subject, limit));
        all.extend(gathered.into_iter().flatten());
    }
    let summary = Summary {
        husks: subjects.len(),
        files: all.iter().filter(|entry| entry.content.is_ok()).count(),
        bytes: all
            .iter()
            .filter_map(|entry| entry.content.as_ref().ok())
            .map(Vec::len)
            .sum(),
        missing: all.iter().filter(|entry| entry.content.is_err()).count(),
    };
    match bundle.fill(&all) {
        Ok(()) => Ok(summary),
        Err(error) => {
            bundle.discard();
            Err(failed(error))
        }
    }
}

/// What is known of one husk. When it does not answer at all, it is not asked again and again.
fn of_one(subject: &Subject, limit: Duration) -> Vec<Entry> {
    let folder = &subject.name;
    let not_asked = |parts: Vec<Part>, why: &str| -> Vec<Entry> {
        let entries = parts.into_iter().map(|part| Entry {
            path: format!("{folder}/{}", part.path),
            about: part.about,
            took: Duration::ZERO,
            content: Err(format!("not asked for: {why}")),
        });
        entries.collect()
    };
    let (mut entries, answers) = match &subject.socket {
        Some(socket) => {
            let entries = carry_out(folder, parts::hello(socket, limit), limit);
            let answers = entries.iter().all(|entry| entry.content.is_ok());
            (entries, answers)
        }
        None => (not_asked(parts::hello(Path::new(""), limit), NO_API), false),
    };
    entries.extend(match (&subject.socket, answers) {
        (Some(socket), true) => carry_out(folder, parts::said(socket, limit), limit),
        (Some(socket), false) => not_asked(parts::said(socket, limit), "vmm.ping was not answered"),
        (None, _) => not_asked(parts::said(Path::new(""), limit), NO_API),
    });
    entries.extend(carry_out(folder, vec![parts::console(subject, answers, limit)], limit));
    entries.extend(carry_out(folder, process_parts::of_process(subject), limit));
    entries
}

/// Why a husk without a socket is asked nothing.
const NO_API: &str = "it serves no API";

/// Has each part read and masked by a thread of its own, and goes on without it when that takes longer than `limit`.
fn carry_out(folder: &str, parts: Vec<Part>, limit: Duration) -> Vec<Entry> {
    let entries = parts.into_iter().map(|part| {
        let begun = Instant::now();
        let (sender, receiver) = mpsc::channel();
        let (read, path) = (part.read, part.path.clone());
        let started = thread::Builder::new().spawn(move || {
            // Nobody waits for it any more.
            let _ = sender.send(read().map(|content| mask::content(&path, &content)));
        });
        let content = match started {
            Err(error) => Err(format!("no thread to read it: {error}")),
            // A request gives up at the same time, and says more about why.
            Ok(_) => receiver
                .recv_timeout(limit + limit / 4)
                .unwrap_or_else(|_| Err(format!("not there within {} s", limit.as_secs_f64()))),
        };
        Entry {
            path: format!("{folder}/{}", part.path),
            about: part.about,
            took: begun.elapsed(),
            content,
        }
    });
    entries.collect()
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            husks,
            files,
            bytes,
            missing,
        } = self;
        write!(
            f,
            "{husks} husks, {files} files, {} KiB; {missing} parts could not be had: see index.txt",
            bytes.div_ceil(1024)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(path: &'static str, read: impl FnOnce() -> Result<Vec<u8>, String> + Send + 'static) -> Part {
        Part {
            path: path.into(),
            about: "a part",
            read: Box::new(read),
        }
    }

    #[test]
    fn a_part_that_takes_too_long_keeps_no_other_from_its_turn() {
        let (_keep, never) = mpsc::channel::<()>();
        let parts = vec![
            part("hangs", move || {
                let _ = never.recv();
                Ok(Vec::new())
            }),
            part("fails", || Err("why".into())),
            part("there", || Ok(b"token=abc\n".to_vec())),
        ];
        let entries = carry_out("x", parts, Duration::from_millis(40));
        assert_eq!(entries[0].content, Err("not there within 0.04 s".into()));
        assert_eq!(entries[1].content, Err("why".into()));
        assert_eq!(entries[2].content, Ok(b"token=***\n".to_vec()));
        assert_eq!(entries[2].path, "x/there");
    }
}
