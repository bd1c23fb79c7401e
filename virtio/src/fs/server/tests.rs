//! A server over the file system in memory: what requests are answered, to the byte, and what reaches the file system.

mod catalogue;
mod rig;

mod broken;
mod contents;
mod extensions;
mod host;
mod init;
mod listing;
mod locks;
mod names;
mod random;
mod readonly;
mod xattrs;

use catalogue::{Case, catalogue};
use rig::*;
