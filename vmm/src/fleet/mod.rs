//! The husks of this host: found in `/proc`, asked at their sockets, with no list of them anywhere.
//!
//! | file | its one reason |
//! |---|---|
//! | `process.rs` | one process as `/proc` has it |
//! | `limited.rs` | looks that may hang, and that nobody waits for |
//! | `snapshot.rs` | what is known of one husk at one moment |
//! | `table.rs` | all of them for people and for programs |
//! | `top.rs` | the same again and again |

mod limited;
pub mod process;
pub mod snapshot;
pub mod table;
pub mod top;

use std::path::Path;
use std::thread;
use std::time::Duration;

pub use process::HuskProcess;
pub use snapshot::Snapshot;

pub(crate) use limited::look_at_all;
use snapshot::ReportedState;

/// What `husk ps` prints: every husk that the user may see, each asked for `patience` at most, all at once.
pub fn ps(patience: Duration, as_json: bool) -> String {
    let snapshots = take_snapshots(&process::all(Path::new("/proc"), patience), patience);
    if as_json {
        table::json(&snapshots)
    } else {
        table::table(&snapshots, None)
    }
}

/// Asks `husks`, all at once, then looks at their memory: one that does not answer, or whose memory
/// the kernel does not tell of, keeps nobody waiting. Each has `patience` for its connection and
/// each of three answers, and for its memory.
pub fn take_snapshots(husks: &[HuskProcess], patience: Duration) -> Vec<Snapshot> {
    let asked = husks.iter().map(|husk| (husk.pid, husk.clone())).collect();
    let answers = look_at_all("answers", asked, patience.saturating_mul(4), move |husk| {
        ReportedState::query(&husk, patience)
    });
    let reported = answers.into_iter().zip(husks).map(|(answer, husk)| {
        let reported = answer.unwrap_or_else(|| ReportedState::silent(husk));
        (husk.pid, (husk.clone(), reported))
    });
    let reported: Vec<_> = reported.collect();
    let memory = look_at_all("memory", reported.clone(), patience, |(husk, reported)| {
        snapshot::overhead(&husk, reported.shared)
    });
    let all = reported.into_iter().zip(memory);
    all.map(|((_, (husk, reported)), overhead)| Snapshot::new(husk, reported, overhead.flatten()))
        .collect()
}

/// `work` for each of `items`, on a thread of its own: here, one after the other, for those for
/// which the host has no thread any more.
pub fn all_at_once<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let work = &work;
    thread::scope(|scope| {
        let begun: Vec<_> = items
            .iter()
            .map(|item| (item, thread::Builder::new().spawn_scoped(scope, move || work(item))))
            .collect();
        let done = begun.into_iter().filter_map(|(item, thread)| match thread {
            Ok(thread) => thread.join().ok(),
            Err(_) => Some(work(item)),
        });
        done.collect()
    })
}
