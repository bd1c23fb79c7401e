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

/// What `file` has by that name on the host.
fn on_host(file: &std::path::Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = [0; 99];
    let len = rustix::fs::getxattr(file, name, &mut value[..])?;
    Ok(value[..len].to_vec())
}

fn set(node: u64, name: &[u8]) -> Request {
    request(21, node, &[&u32s([3, 0, 0, 0]), name, b"\0abc"])
}

fn get(node: u64, name: &[u8]) -> Request {
    request(22, node, &[&u32s([9, 0]), name, b"\0"])
}

fn list(node: u64, size: u32) -> Request {
    request(23, node, &[&u32s([size, 0])])
}

fn remove(node: u64, name: &[u8]) -> Request {
    request(24, node, &[name, b"\0"])
}

#[test]
fn attributes_have_the_names_on_the_host_that_a_map_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "").unwrap();
    // The host's own, one that is nothing without the prefix, and one that no guest could ask for.
    for name in ["user.own", "user.virtiofs.", "user.virtiofs.own"] {
        rustix::fs::setxattr(&file, name, b"host", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let config = ShareConfig {
        xattr: true,
        xattr_map: Some(":map::user.virtiofs.:".parse().unwrap()),
        ..ShareConfig::new(dir.path())
    };
    serve(&config, |ask| {
        let node = number(&ask(&request(1, 1, &[b"f\0"])), 0);
        assert_eq!(ask(&list(node, 0)), success(u32s([0, 0])));
        assert_eq!(ask(&set(node, b"security.foo")), success([]));
        assert_eq!(on_host(&file, "user.virtiofs.security.foo").unwrap(), b"abc");
        assert_eq!(ask(&get(node, b"security.foo")), success(*b"abc"));
        let length = request(22, node, &[&u32s([0, 0]), b"security.foo\0"]);
        assert_eq!(ask(&length), success(u32s([3, 0])));
        // As long as they are in the guest.
        assert_eq!(ask(&list(node, 0)), success(u32s([13, 0])));
        assert_eq!(ask(&list(node, 12)), failure(Errno::RANGE));
        assert_eq!(ask(&list(node, 13)), success(*b"security.foo\0"));
        for name in [&b"user.own"[..], b"user.virtiofs.security.foo"] {
            assert_eq!(ask(&get(node, name)), failure(Errno::NODATA), "{name:?}");
            assert_eq!(ask(&remove(node, name)), failure(Errno::NODATA), "{name:?}");
        }
        // One that is too long on the host is not there, and cannot be.
        let long = [&b"user."[..], &[b'x'; 250]].concat();
        assert_eq!(ask(&set(node, &long)), failure(Errno::RANGE));
        assert_eq!(ask(&get(node, &long)), failure(Errno::NODATA));
        assert_eq!(ask(&remove(node, &long)), failure(Errno::NODATA));
        assert_eq!(ask(&set(node, &long[..242])), failure(Errno::RANGE));
        assert_eq!(ask(&set(node, &long[..241])), success([]));
        assert_eq!(ask(&remove(node, &long[..241])), success([]));
        assert_eq!(ask(&remove(node, b"security.foo")), success([]));
        assert_eq!(ask(&list(node, 0)), success(u32s([0, 0])));
    });
    assert_eq!(on_host(&file, "user.virtiofs.security.foo"), Err(Errno::NODATA));
    assert_eq!(on_host(&file, "user.own").unwrap(), b"host");
}

#[test]
fn what_a_map_hides_cannot_be_had_by_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    std::fs::write(&file, "").unwrap();
    let map = ":unsupported:all:user.none.:user.none.: :map:security.:user.virtiofs.:";
    let config = ShareConfig {
        xattr: true,
        xattr_map: Some(map.parse().unwrap()),
        ..ShareConfig::new(dir.path())
    };
    serve(&config, |ask| {
        let node = number(&ask(&request(1, 1, &[b"f\0"])), 0);
        assert_eq!(ask(&set(node, b"security.foo")), success([]));
        assert_eq!(ask(&set(node, b"user.a")), success([]));
        let there = b"user.virtiofs.security.foo";
        assert_eq!(ask(&set(node, there)), failure(Errno::PERM));
        assert_eq!(ask(&remove(node, there)), failure(Errno::PERM));
        assert_eq!(ask(&get(node, there)), failure(Errno::NODATA));
        let none = b"user.none.a";
        assert_eq!(ask(&set(node, none)), failure(Errno::OPNOTSUPP));
        assert_eq!(ask(&remove(node, none)), failure(Errno::OPNOTSUPP));
        assert_eq!(ask(&get(node, none)), failure(Errno::OPNOTSUPP));
        rustix::fs::setxattr(&file, "user.none.a", b"host", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(ask(&list(node, 0)), success(u32s([20, 0])), "security.foo, user.a");
    });
    assert_eq!(on_host(&file, "user.virtiofs.security.foo").unwrap(), b"abc");
    assert_eq!(on_host(&file, "user.a").unwrap(), b"abc");
}
