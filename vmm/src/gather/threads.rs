//! Where the threads of a process are: what each waits for in the kernel, by proc(5).

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::procfs;

/// Lines of a thread's status that say how it does.
const STATUS: [&str; 5] = [
    "State:",
    "voluntary_ctxt_switches:",
    "nonvoluntary_ctxt_switches:",
    "Seccomp_filters:",
    "Cpus_allowed_list:",
];

/// A paragraph for each thread of the process in `folder`.
///
/// # Errors
/// There is no such process any more.
pub(super) fn threads(folder: &Path) -> Result<Vec<u8>, String> {
    let ids = procfs::numbers(&folder.join("task")).map_err(|error| error.to_string())?;
    let mut text = String::new();
    for id in ids {
        let task = folder.join("task").join(id.to_string());
        let read = |name: &str| match fs::read_to_string(task.join(name)) {
            Ok(text) => text.trim_end().to_owned(),
            Err(error) => format!("({error})"),
        };
        let _ = writeln!(text, "thread {id} {}", read("comm"));
        for line in read("status")
            .lines()
            .filter(|line| STATUS.iter().any(|name| line.starts_with(name)))
        {
            let _ = writeln!(text, "  {}", line.replace('\t', " "));
        }
        for name in ["wchan", "syscall", "schedstat"] {
            let _ = writeln!(text, "  {name}: {}", read(name));
        }
        for line in read("stack").lines() {
            let _ = writeln!(text, "  stack: {line}");
        }
        text.push('\n');
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_is_told_of() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let (begun, has_begun) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::Builder::new().name("waits-here".into());
        let waiting = waiting
            .spawn(move || {
                // By then it has given itself its name.
                drop(begun);
                receiver.recv()
            })
            .unwrap();
        has_begun.recv().unwrap_err();
        let text = String::from_utf8(threads(Path::new("/proc/self")).unwrap()).unwrap();
        let part = text.split("\n\n").find(|part| part.contains("waits-here")).unwrap();
        assert!(
            part.contains("  State: ") && part.contains("  wchan: ") && part.contains("  syscall: "),
            "{part}"
        );
        drop(sender);
        let _ = waiting.join().unwrap();
        assert!(threads(Path::new("/nowhere")).is_err());
    }
}
