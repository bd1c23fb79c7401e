//! A server over the file system in memory: what requests are answered, to the byte, and what reaches the file system.

mod rig;

mod contents;
mod host;
mod init;

use rig::*;
