//! The husks of this host: found in `/proc`, asked at their sockets, with no list of them anywhere.
//!
//! | file | its one reason |
//! |---|---|
//! | `process.rs` | one process as `/proc` has it |
//! | `look.rs` | what is known of one husk at one moment |
//! | `table.rs` | all of them for people and for programs |
//! | `top.rs` | the same again and again |

pub mod look;
pub mod process;
pub mod table;
pub mod top;

use std::path::Path;
use std::thread;
use std::time::Duration;

pub use look::Look;
pub use process::Husk;

/// What `husk ps` prints: every husk that the user may see, each asked for `patience` at most, all at once.
pub fn ps(patience: Duration, as_json: bool) -> String {
    let looks = look_at(process::all(Path::new("/proc")), patience);
    if as_json {
        table::json(&looks)
    } else {
        table::table(&looks, None)
    }
}

/// Asks `husks`, all at once: one that does not answer keeps nobody waiting.
pub fn look_at(husks: Vec<Husk>, patience: Duration) -> Vec<Look> {
    thread::scope(|scope| {
        let asked: Vec<_> = husks
            .into_iter()
            .map(|husk| scope.spawn(move || Look::at(husk, patience)))
            .collect();
        asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
    })
}
