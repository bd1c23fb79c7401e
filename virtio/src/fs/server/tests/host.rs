//! A server over a directory of the host: that the two fit.

use rustix::io::Errno;

use super::*;
use crate::fs::serve::Serve;
use crate::fs::server::Server;
use crate::fs::share::{Cache, ShareConfig};

/// Serves `dir` to Linux 6.12 from a thread of its own, as the threads of a device would.
fn serve(config: &ShareConfig, guest: impl FnOnce(&dyn Fn(&Request) -> Reply) + Send) {
    let server = Server::open(config).unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            server.enter().unwrap();
            assert_eq!(ask_in(&server, &init_request(7, 41, LINUX_6_12), 64).error, 0);
            guest(&|request| ask_in(&server, request, 1 << 16));
        });
    });
}

/// The number at `offset` of `reply`.
fn number(reply: &Reply, offset: usize) -> u64 {
    assert_eq!(reply.error, 0);
    u64::from_le_bytes(reply.body[offset..offset + 8].try_into().unwrap())
}

#[test]
fn a_file_of_the_host_is_found_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "abcdef").unwrap();
    serve(&ShareConfig::new(dir.path()), |ask| {
        let found = ask(&request(1, 1, &[b"f\0"]));
        let node = number(&found, 0);
        assert_eq!(number(&found, 48), 6, "size");
        let handle = number(&ask(&request(14, node, &[&u32s([2, 0])])), 0);
        let read = [u64s([handle, 2]), u32s([100, 0]), u64s([0, 0])].concat();
        assert_eq!(ask(&request(15, node, &[&read])), success(*b"cdef"));
        let write = [u64s([handle, 4]), u32s([3, 0]), u64s([0, 0])].concat();
        assert_eq!(ask(&request(16, node, &[&write, b"xyz"])), success(u32s([3, 0])));
        assert_eq!(ask(&request(18, node, &[&u64s([handle, 0, 0])])), success([]));
        assert_eq!(ask(&request(15, node, &[&read])), failure(Errno::BADF));
    });
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"abcdxyz");
}

#[test]
fn a_directory_of_the_host_is_listed_with_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("name"), "abc").unwrap();
    serve(&ShareConfig::new(dir.path()), |ask| {
        let handle = number(&ask(&request(27, 1, &[&u32s([0, 0])])), 0);
        let list = [u64s([handle, 0]), u32s([4096, 0]), u64s([0, 0])].concat();
        let listed = ask(&request(44, 1, &[&list]));
        let at = listed.body.windows(4).position(|name| name == b"name").unwrap();
        assert_eq!(number(&listed, at - 152 + 48), 3, "size");
        assert_eq!(listed.body.len(), (2 + 1) * 160);
    });
}

#[test]
fn what_a_share_is_not_asked_to_do_is_not_agreed_on() {
    use crate::fs::protocol::flags::init::{DIRECT_IO_ALLOW_MMAP, FLOCK_LOCKS, POSIX_LOCKS, SECURITY_CTX};
    let dir = tempfile::tempdir().unwrap();
    let agreed = |change: &dyn Fn(&mut ShareConfig)| {
        let mut config = ShareConfig::new(dir.path());
        config.xattr = true;
        change(&mut config);
        let server = Server::open(&config).unwrap();
        let reply = ask_in(&server, &init_request(7, 41, LINUX_6_12), 64);
        let word = |at: usize| u64::from(u32::from_le_bytes(reply.body[at..at + 4].try_into().unwrap()));
        (word(12) | word(32) << 32) & (FLOCK_LOCKS | POSIX_LOCKS | SECURITY_CTX | DIRECT_IO_ALLOW_MMAP)
    };
    for (cache, flags) in [
        (Cache::Auto, 0),
        (Cache::Never, DIRECT_IO_ALLOW_MMAP),
        (Cache::Metadata, DIRECT_IO_ALLOW_MMAP),
        (Cache::Always, 0),
    ] {
        let mapped = |share: &mut ShareConfig| {
            share.cache = cache;
            share.allow_mmap = true;
        };
        assert_eq!(agreed(&mapped), flags, "{cache:?}");
    }
    assert_eq!(agreed(&|_| ()), 0, "with attributes alone");
    assert_eq!(agreed(&|share| share.locks = true), FLOCK_LOCKS | POSIX_LOCKS);
    assert_eq!(agreed(&|share| share.security_label = true), SECURITY_CTX);
    let of_its_own = |share: &mut ShareConfig| {
        share.security_label = true;
        share.readonly = true;
    };
    assert_eq!(agreed(&of_its_own), 0, "nothing is made");
    let without = |share: &mut ShareConfig| {
        share.security_label = true;
        share.xattr = false;
    };
    assert_eq!(agreed(&without), 0, "a label is an attribute");
}

#[test]
fn what_a_share_is_to_do_without_is_not_offered() {
    use crate::fs::protocol::flags::init::{DO_READDIRPLUS, HANDLE_KILLPRIV_V2};
    let dir = tempfile::tempdir().unwrap();
    for (killpriv, readdirplus, flags) in [
        (true, true, HANDLE_KILLPRIV_V2 | DO_READDIRPLUS),
        (false, true, DO_READDIRPLUS),
        (true, false, HANDLE_KILLPRIV_V2),
    ] {
        let config = ShareConfig {
            killpriv,
            readdirplus,
            ..ShareConfig::new(dir.path())
        };
        let server = Server::open(&config).unwrap();
        let reply = ask_in(&server, &init_request(7, 41, LINUX_6_12), 64);
        let agreed = number(&reply, 12) & (HANDLE_KILLPRIV_V2 | DO_READDIRPLUS);
        assert_eq!(agreed, flags, "{config:?}");
    }
}

#[test]
fn a_share_that_is_kept_by_the_guest_says_so() {
    use crate::fs::protocol::flags::init::{AUTO_INVAL_DATA, CACHE_SYMLINKS};
    let dir = tempfile::tempdir().unwrap();
    for (cache, flags) in [(Cache::Always, CACHE_SYMLINKS), (Cache::Auto, AUTO_INVAL_DATA)] {
        let mut config = ShareConfig::new(dir.path());
        config.cache = cache;
        let server = Server::open(&config).unwrap();
        let reply = ask_in(&server, &init_request(7, 41, LINUX_6_12), 64);
        let agreed = number(&reply, 12) & (AUTO_INVAL_DATA | CACHE_SYMLINKS);
        assert_eq!(agreed, flags, "{cache:?}");
    }
}
