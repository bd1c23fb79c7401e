//! One heap for all threads.
//!
//! glibc gives threads heaps of their own, which grow by mprotect and look into `/proc` before they shrink: no thread that is confined to its
//! role can do either. The process's first heap needs brk, and is enough: what is hot here allocates nothing.

#![expect(unsafe_code, reason = "mallopt(3) is the only way to tell malloc")]

/// Has every thread that is created from now on allocate where the first one does.
pub(super) fn share() {
    // SAFETY: numbers only; malloc takes its own lock.
    let done = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    debug_assert_eq!(done, 1, "glibc knows M_ARENA_MAX");
}
