//! What a guest may ask for, and what must be known of it before it is looked at: how long it is at
//! least, how long its reply, and whether it changes anything.

use std::mem::size_of;

use super::{replies, requests};

/// What must hold for every request of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::fs) struct Rule {
    /// Least bytes of the request behind its header.
    pub request: usize,
    /// Least room for the reply behind its header; `None` for what gets no reply. What may be
    /// shorter (a value, a list, contents) has none here: it is cut to the room that there is.
    pub reply: Option<usize>,
    /// Refused by a share that is read-only.
    pub changes: bool,
}

/// Lists opcodes: name, number, least request, least reply, whether it changes something.
macro_rules! opcodes {
    ($($name:ident $number:literal $request:expr, $reply:expr, $changes:literal;)*) => {
        /// A request that is known (`enum fuse_opcode`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(in crate::fs) enum Opcode {
            $($name = $number,)*
        }

        impl Opcode {
            /// All of them.
            #[cfg(test)]
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The opcode of that number, if it is known.
            pub fn of(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Whether something is made, and may be made with extensions.
            pub const fn creates(self) -> bool {
                matches!(
                    self,
                    Self::Symlink | Self::Mknod | Self::Mkdir | Self::Create | Self::Tmpfile
                )
            }

            /// What must hold for it.
            pub const fn rule(self) -> Rule {
                match self {
                    $(Self::$name => Rule { request: $request, reply: $reply, changes: $changes },)*
                }
            }
        }
    };
}

/// Bytes of a structure and of `names` after it, each of which has a NUL at least.
const fn with_names<T>(names: usize) -> usize {
    size_of::<T>().saturating_add(names)
}

const ENTRY: Option<usize> = Some(size_of::<replies::Entry>());
const ATTR: Option<usize> = Some(size_of::<replies::AttrOut>());
const OPENED: Option<usize> = Some(size_of::<replies::Opened>());
const WRITTEN: Option<usize> = Some(size_of::<replies::Written>());
const CREATED: Option<usize> = Some(size_of::<replies::Created>());
const NOTHING: Option<usize> = Some(0);
const NO_REPLY: Option<usize> = None;

opcodes! {
    Lookup 1 with_names::<()>(1), ENTRY, false;
    Forget 2 size_of::<requests::Forget>(), NO_REPLY, false;
    Getattr 3 size_of::<requests::Getattr>(), ATTR, false;
    Setattr 4 size_of::<requests::Setattr>(), ATTR, true;
    Readlink 5 0, NOTHING, false;
    Symlink 6 with_names::<()>(2), ENTRY, true;
    Mknod 8 with_names::<requests::Mknod>(1), ENTRY, true;
    Mkdir 9 with_names::<requests::Mkdir>(1), ENTRY, true;
    Unlink 10 with_names::<()>(1), NOTHING, true;
    Rmdir 11 with_names::<()>(1), NOTHING, true;
    Rename 12 with_names::<requests::Rename>(2), NOTHING, true;
    Link 13 with_names::<requests::Link>(1), ENTRY, true;
    Open 14 size_of::<requests::Open>(), OPENED, false;
    Read 15 size_of::<requests::Read>(), NOTHING, false;
    Write 16 size_of::<requests::Write>(), WRITTEN, true;
    Statfs 17 0, Some(size_of::<replies::Statfs>()), false;
    Release 18 size_of::<requests::Release>(), NOTHING, false;
    Fsync 20 size_of::<requests::Fsync>(), NOTHING, false;
    Setxattr 21 with_names::<requests::Setxattr>(1), NOTHING, true;
    Getxattr 22 with_names::<requests::Getxattr>(1), NOTHING, false;
    Listxattr 23 size_of::<requests::Getxattr>(), NOTHING, false;
    Removexattr 24 with_names::<()>(1), NOTHING, true;
    Flush 25 size_of::<requests::Flush>(), NOTHING, false;
    Init 26 size_of::<requests::Init>(), Some(size_of::<replies::Init>()), false;
    Opendir 27 size_of::<requests::Open>(), OPENED, false;
    Readdir 28 size_of::<requests::Read>(), NOTHING, false;
    Releasedir 29 size_of::<requests::Release>(), NOTHING, false;
    Fsyncdir 30 size_of::<requests::Fsync>(), NOTHING, false;
    Getlk 31 size_of::<requests::Lk>(), Some(size_of::<replies::Lk>()), false;
    Setlk 32 size_of::<requests::Lk>(), NOTHING, false;
    Setlkw 33 size_of::<requests::Lk>(), NOTHING, false;
    Access 34 size_of::<requests::Access>(), NOTHING, false;
    Create 35 with_names::<requests::Create>(1), CREATED, true;
    Interrupt 36 size_of::<requests::Interrupt>(), NO_REPLY, false;
    Destroy 38 0, NOTHING, false;
    Ioctl 39 0, NOTHING, false;
    BatchForget 42 size_of::<requests::BatchForget>(), NO_REPLY, false;
    Fallocate 43 size_of::<requests::Fallocate>(), NOTHING, true;
    Readdirplus 44 size_of::<requests::Read>(), NOTHING, false;
    Rename2 45 with_names::<requests::Rename2>(2), NOTHING, true;
    Lseek 46 size_of::<requests::Lseek>(), Some(size_of::<replies::Lseek>()), false;
    CopyFileRange 47 size_of::<requests::CopyFileRange>(), WRITTEN, true;
    Syncfs 50 size_of::<requests::Syncfs>(), NOTHING, false;
    Tmpfile 51 with_names::<requests::Create>(1), CREATED, true;
    Statx 52 size_of::<requests::Statx>(), Some(size_of::<replies::StatxOut>()), false;
}
