//! What Prometheus is told: every figure of this process and its VM, written anew for each scrape.
//!
//! | file | its one reason |
//! |---|---|
//! | `families.rs` | the names, types and meanings of all that is told |
//! | `figures.rs` | what the machine's owner knows at one moment |
//! | `process.rs` | what the kernel knows of the process, as Kata's shim tells it of a hypervisor |
//! | `calls.rs` | what clients have asked |
//! | `exposition.rs` | all of it as text |
//!
//! Nothing is registered, and nothing is kept for the next scrape but open files: a process that
//! nobody scrapes pays for counting alone. The machine's owner hands over plain numbers, for which
//! it takes no lock that a vCPU may want; the thread of the API, which reads `/proc`, writes the
//! text.

mod calls;
mod exposition;
mod families;
mod figures;
mod process;

pub use calls::{Calls, Endpoint};
pub use exposition::{Exposition, Format};
pub use families::{Family, Type, families};
pub use figures::{Figures, Mapped, Ram, Vcpu};
pub use process::ProcessFiles;
