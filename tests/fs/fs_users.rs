//! Users and groups that have other numbers on the host than in the guest.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use husk_guest::rules::Line;
use husk_tests::agent::Agent;
use serde_json::json;

use crate::served::{Plan, SERVERS, Served};
use crate::{make_users, run_as, sh};

/// The guest's users from 0 on are the host's from here on, and likewise its groups.
const USERS: u32 = 100_000;
const GROUPS: u32 = 200_000;
/// So many of them. Those of the rules of file systems are among them.
const COUNT: u32 = 4096;
/// Somebody of the host who has no number in the guest, and what he is there (`DEFAULT_OVERFLOWUID`
/// of linux/highuid.h).
const STRANGER: u32 = 7;
const NOBODY: u32 = 65_534;

const DAEMON: &[&str] = &[
    "--posix-acl",
    "--translate-uid=map:0:100000:4096",
    "--translate-gid=map:0:200000:4096",
];
/// virtiofsd has no lists beside other numbers.
const VIRTIOFSD: &[&str] = &["--translate-uid=map:0:100000:4096", "--translate-gid=map:0:200000:4096"];

/// Owner, group and mode on the host.
fn on_the_host(path: impl AsRef<Path>) -> (u32, u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid(), found.mode() & 0o7777)
}

/// What the host has before anybody serves it.
fn prepare(folder: &Path) {
    chown(folder, Some(USERS), Some(GROUPS)).unwrap();
    for (name, owner, group, mode) in [
        ("kims", USERS + 1000, GROUPS + 1000, 0o600),
        ("strangers", STRANGER, STRANGER, 0o600),
        ("nobodys", NOBODY, NOBODY, 0o600),
        ("of_root", 0, 0, 0o755),
    ] {
        let path = folder.join(name);
        fs::write(&path, name).unwrap();
        chown(&path, Some(owner), Some(group)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn who_made_it_owns_it_on_both_sides(served: &Served, agent: &mut Agent, server: &str) {
    let host = |name: &str| on_the_host(served.host(server).join(name));
    let seen = sh(agent, &format!("cd /{server}; stat -c '%n %u %g' . kims"));
    assert_eq!(seen, ". 0 0\nkims 1000 1000\n", "{server}");
    assert_eq!(run_as(agent, "kim", &format!("cat /{server}/kims")), (0, "kims".into()));
    sh(
        agent,
        &format!("cd /{server}; umask 22; echo root > roots; mkdir -m 777 common"),
    );
    assert_eq!(host("roots"), (USERS, GROUPS, 0o644), "{server}");
    let script = format!("umask 27; cd /{server}/common; echo kim > file; mkdir folder; ln -s x link; mkfifo pipe");
    assert_eq!(run_as(agent, "kim", &script), (0, String::new()), "{server}");
    let names = ["file", "folder", "link", "pipe"].map(|name| host(&format!("common/{name}")));
    let of_kim = |mode| (USERS + 1000, GROUPS + 1000, mode);
    assert_eq!(names, [0o640, 0o750, 0o777, 0o640].map(of_kim), "{server}");
    let seen = sh(
        agent,
        &format!("cd /{server}/common; stat -c '%u %g' file folder link pipe"),
    );
    assert_eq!(seen, "1000 1000\n".repeat(4), "{server}");
}

fn an_owner_is_given_where_there_is_one_on_the_host(served: &Served, agent: &mut Agent, server: &str) {
    let roots = served.host(server).join("roots");
    sh(agent, &format!("chown 5:6 /{server}/roots"));
    assert_eq!(on_the_host(&roots), (USERS + 5, GROUPS + 6, 0o644), "{server}");
    sh(agent, &format!("chown {}:{} /{server}/roots", COUNT - 1, COUNT - 1));
    let last = (USERS + COUNT - 1, GROUPS + COUNT - 1, 0o644);
    assert_eq!(on_the_host(&roots), last, "{server}");
    let mine = run_as(agent, "kim", &format!("chown kim /{server}/roots"));
    assert!(
        mine.0 == 1 && mine.1.contains("Operation not permitted"),
        "{server}: {mine:?}"
    );
    assert_eq!(on_the_host(&roots), last, "{server}");
}

/// What only husk promises: virtiofsd passes on numbers that are in no range.
fn who_has_no_number_on_the_other_side_is_nobody_and_makes_nothing(served: &Served, agent: &mut Agent, server: &str) {
    let roots = served.host(server).join("roots");
    let before = on_the_host(&roots);
    for owner in [COUNT, USERS, NOBODY] {
        for what in [
            format!("{owner}"),
            format!(":{owner}"),
            format!("0:{owner}"),
            format!("{owner}:0"),
        ] {
            let (code, told) = run_as(agent, "root", &format!("chown {what} /{server}/roots"));
            assert!(
                code == 1 && told.contains("Operation not permitted"),
                "{server}: {what}: {told}"
            );
            assert_eq!(on_the_host(&roots), before, "{server}: {what}");
        }
    }
    let (code, told) = run_as(agent, "nobody", &format!("echo > /{server}/common/nobodys"));
    assert!(
        code == 1 && told.contains("Operation not permitted"),
        "{server}: {told}"
    );
    assert!(!served.host(server).join("common/nobodys").exists(), "{server}");
    // Whoever it is on the host, he is one and the same in the guest.
    let seen = sh(agent, &format!("cd /{server}; stat -c '%u %g' strangers nobodys"));
    assert_eq!(seen, "65534 65534\n".repeat(2), "{server}");
}

/// A map keeps nothing in the share from the guest: its root, and its user 65534, come by what
/// others of the host own in there.
fn what_others_of_the_host_own_in_the_share_is_the_guests(served: &Served, agent: &mut Agent, server: &str) {
    let host = |name: &str| on_the_host(served.host(server).join(name));
    let (code, _) = run_as(agent, "kim", &format!("cat /{server}/strangers"));
    assert_eq!(code, 1, "{server}: the guest's kernel refuses him");
    for user in ["root", "nobody"] {
        assert_eq!(
            run_as(agent, user, &format!("cat /{server}/strangers")),
            (0, "strangers".into())
        );
    }
    assert_eq!(run_as(agent, "nobody", &format!("chmod 640 /{server}/nobodys")).0, 0);
    assert_eq!(host("nobodys"), (NOBODY, NOBODY, 0o640), "{server}");
    sh(
        agent,
        &format!("cd /{server}; echo other > of_root; chmod 4755 of_root"),
    );
    assert_eq!(host("of_root"), (0, 0, 0o4755), "{server}");
    assert_eq!(
        fs::read_to_string(served.host(server).join("of_root")).unwrap(),
        "other\n"
    );
    sh(
        agent,
        &format!("cd /{server}; chown 0:0 nobodys; chown 1000:1000 strangers"),
    );
    assert_eq!(host("nobodys"), (USERS, GROUPS, 0o640), "{server}");
    assert_eq!(host("strangers"), (USERS + 1000, GROUPS + 1000, 0o600), "{server}");
}

/// The rules of lists, in a folder of its own; and on the host they have the host's numbers.
fn lists_name_the_same_users_on_both_sides(served: &Served, agent: &mut Agent, server: &str) {
    /// Entries with a number of a user, and of a group (linux/posix_acl.h).
    const NAMED: [(u16, u32); 2] = [(2, USERS), (8, GROUPS)];
    sh(agent, &format!("mkdir /{server}/rules"));
    let never = u16::MAX.to_string();
    let said = agent.run(&["/init", "files", "rules", &format!("/{server}/rules"), &never, "ACL: "]);
    let lines = said.unwrap();
    let lines: Vec<Line> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let broken: Vec<_> = lines.iter().filter(|line| !line.holds()).map(Line::to_string).collect();
    assert!(lines.len() > 10 && broken.is_empty(), "{server}: {broken:#?}");
    let mut numbers = 0;
    for case in fs::read_dir(served.host(server).join("rules")).unwrap() {
        let mut list = [0; 512];
        let path = case.unwrap().path().join("x");
        let count = rustix::fs::lgetxattr(&path, "system.posix_acl_access", &mut list[..]).unwrap_or_default();
        for entry in list[..count].get(4..).unwrap_or_default().chunks_exact(8) {
            let (tag, id) = entry.split_at(4);
            let (tag, id) = (
                u16::from_le_bytes([tag[0], tag[1]]),
                u32::from_le_bytes(id.try_into().unwrap()),
            );
            if let Some((_, first)) = NAMED.iter().find(|(named, _)| *named == tag) {
                assert!(
                    (*first..first + COUNT).contains(&id),
                    "{server}: {}: {id}",
                    path.display()
                );
                numbers += 1;
            }
        }
    }
    assert!(numbers > 1, "{server}");
}

#[test]
fn users_of_a_share_have_other_numbers_on_the_host() {
    let ranges = |host| json!([{"guest": 0, "host": host, "count": COUNT}]);
    let plan = Plan {
        device: json!({"xattr": true, "posix_acl": true, "translate_uid": ranges(USERS), "translate_gid": ranges(GROUPS)}),
        daemon: DAEMON,
        virtiofsd: VIRTIOFSD,
        ..Plan::default()
    };
    let (served, mut agent) = Served::start_with(plan, prepare);
    make_users(&mut agent);
    for server in SERVERS {
        who_made_it_owns_it_on_both_sides(&served, &mut agent, server);
        an_owner_is_given_where_there_is_one_on_the_host(&served, &mut agent, server);
    }
    for server in &SERVERS[..2] {
        who_has_no_number_on_the_other_side_is_nobody_and_makes_nothing(&served, &mut agent, server);
        what_others_of_the_host_own_in_the_share_is_the_guests(&served, &mut agent, server);
        lists_name_the_same_users_on_both_sides(&served, &mut agent, server);
    }
    served.end();
}
