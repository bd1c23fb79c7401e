use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn map_of(text: &str) -> XattrMap {
    text.parse().unwrap()
}

/// What a name of the guest is on the host.
fn there(map: &XattrMap, name: &str) -> Result<String, Refusal> {
    let name = CString::new(name).unwrap();
    map.to_host(&name).map(|name| name.to_str().unwrap().to_string())
}

/// What a name of the host is in the guest.
fn here(map: &XattrMap, name: &str) -> Option<String> {
    let found = map.to_guest(name.as_bytes())?;
    Some(String::from_utf8(found.to_vec()).unwrap())
}

#[test]
fn each_type_does_its_part_in_each_scope() {
    let ok = |text: &str| Ok(text.to_string());
    let some = |text: &str| Some(text.to_string());
    // A rule; what becomes of `k.a` of the guest, and of `p.k.a`, `p.b` and `k.a` of the host.
    for (rule, guest, host) in [
        (":prefix:all:k.:p.:", ok("p.k.a"), [some("k.a"), some("b"), some("k.a")]),
        (
            ":prefix:client:k.:p.:",
            ok("p.k.a"),
            [some("p.k.a"), some("p.b"), some("k.a")],
        ),
        (
            ":prefix:server:k.:p.:",
            ok("k.a"),
            [some("k.a"), some("b"), some("k.a")],
        ),
        (":ok:all:k.:p.:", ok("k.a"), [some("p.k.a"), some("p.b"), some("k.a")]),
        (":bad:all:k.:p.:", Err(Refusal::Bad), [None, None, some("k.a")]),
        (
            ":bad:client:k.:p.:",
            Err(Refusal::Bad),
            [some("p.k.a"), some("p.b"), some("k.a")],
        ),
        (":bad:server:k.:p.:", ok("k.a"), [None, None, some("k.a")]),
        (":bad:server::k.:", ok("k.a"), [some("p.k.a"), some("p.b"), None]),
        (
            ":unsupported:all:k.:p.:",
            Err(Refusal::Unsupported),
            [None, None, some("k.a")],
        ),
        (":unsupported:server:k.:p.:", ok("k.a"), [None, None, some("k.a")]),
    ] {
        let map = map_of(&format!("{rule}:ok:all:::"));
        assert_eq!(there(&map, "k.a"), guest, "{rule}");
        assert_eq!(["p.k.a", "p.b", "k.a"].map(|name| here(&map, name)), host, "{rule}");
        assert_eq!(there(&map, "other").as_deref(), Ok("other"), "{rule}");
        assert_eq!(here(&map, "other").as_deref(), Some("other"), "{rule}");
    }
}

#[test]
fn the_first_rule_that_a_name_begins_as_counts() {
    let map = map_of(":ok:all:user.a.:user.a.: :bad:all:user.:user.: :ok:all:::");
    assert_eq!(there(&map, "user.a.x").as_deref(), Ok("user.a.x"));
    assert_eq!(there(&map, "user.b"), Err(Refusal::Bad));
    assert_eq!(here(&map, "user.b"), None);
    let other_way = map_of(":bad:all:user.:user.: :ok:all:user.a.:user.a.: :ok:all:::");
    assert_eq!(there(&other_way, "user.a.x"), Err(Refusal::Bad));
}

#[test]
fn a_map_of_everything_has_every_name_behind_its_prefix_and_shows_no_other() {
    let map = map_of(":map::user.virtiofs.:");
    assert_eq!(map, map_of("/prefix/all//user.virtiofs./ \n /bad/all///"));
    for name in ["security.foo", "trusted.a", "user.b", "user.virtiofs.security.foo"] {
        let host = there(&map, name).unwrap();
        assert_eq!(host, format!("user.virtiofs.{name}"));
        assert_eq!(here(&map, &host).as_deref(), Some(name));
    }
    assert_eq!(here(&map, "security.selinux"), None);
    assert!(!map.keeps(c"user.a"));
}

#[test]
fn a_map_of_some_names_lets_nobody_reach_them_by_those_of_the_host() {
    let map = map_of("/map/trusted./user.virtiofs./");
    let long = "/prefix/all/trusted./user.virtiofs.//bad/all/user.virtiofs./trusted.//ok/all///";
    assert_eq!(map, map_of(long));
    assert_eq!(there(&map, "trusted.a").as_deref(), Ok("user.virtiofs.trusted.a"));
    assert_eq!(here(&map, "user.virtiofs.trusted.a").as_deref(), Some("trusted.a"));
    assert_eq!(there(&map, "user.virtiofs.trusted.a"), Err(Refusal::Bad));
    assert_eq!(here(&map, "trusted.of-the-host"), None);
    assert!(map.keeps(c"user.a") && map.keeps(c"system.posix_acl_access"));
}

#[test]
fn a_name_that_is_kept_is_the_same_both_ways() {
    let name = c"system.posix_acl_access";
    for (text, kept) in [
        (":ok:all:::", true),
        (":bad:client:system.:: :ok:all:::", false),
        (":bad:server::system.: :ok:all:::", false),
        (":prefix:client:system.:user.: :ok:all:::", false),
    ] {
        assert_eq!(map_of(text).keeps(name), kept, "{text}");
    }
}

#[test]
fn a_name_that_would_be_too_long_there_is_none() {
    let map = map_of(":map::user.:");
    let name = |len: usize| "n".repeat(len);
    assert_eq!(there(&map, &name(250)).unwrap().len(), 255);
    assert_eq!(there(&map, &name(251)), Err(Refusal::TooLong));
}

#[test]
fn what_is_wrong_with_rules_is_told_with_the_number_of_the_rule() {
    let long = format!(":ok:all:{}::", "k".repeat(256));
    for (text, says) in [
        ("", "there is no rule"),
        (" \n", "there is no rule"),
        (
            "prefix:all::a:",
            "rule 1: it begins with 'p', allowed: the character between its fields",
        ),
        (
            ":ok:all::::",
            "rule 2: it has 0 of 4 fields, each of which ends with ':'",
        ),
        (
            ":ok:all:::/",
            "rule 2: it has 0 of 4 fields, each of which ends with '/'",
        ),
        (":ok:all:: /bad/all///", "rule 1: it has 3 of 4 fields"),
        (
            ":allow:all:::",
            "rule 1: type 'allow', allowed: prefix, ok, bad, unsupported, map",
        ),
        (":OK:all:::", "rule 1: type 'OK'"),
        ("::all:::", "rule 1: type ''"),
        (
            ":ok:all::: :bad:both:::",
            "rule 2: scope 'both', allowed: client, server, all",
        ),
        (
            ":ok:all:::  :bad:all::",
            "rule 2: it has 3 of 4 fields, each of which ends with ':'",
        ),
        (":prefix:all:user.:", "rule 1: it has 3 of 4 fields"),
        (":map:user.:", "rule 1: it has 2 of 3 fields"),
        (":map::user.: :ok:all:::", "rule 1: rules follow a map"),
        (":map::user.::map::user.:", "rule 1: rules follow a map"),
        (&long, "rule 1: a part of a name has 256 bytes, allowed: up to 255"),
        (":ok:all:a\0b::", "rule 1: a part of a name has a NUL in it"),
        (
            ":prefix:all:trusted.:user.virtiofs.:",
            "no rule is for every other name of the guest",
        ),
        (
            ":prefix:all::user.virtiofs.:",
            "no rule is for every other name of the host",
        ),
        (
            ":ok:client:::",
            "no rule is for every other name of the host, allowed at the end: :bad:all:::",
        ),
        (":ok:server:::", "no rule is for every other name of the guest"),
    ] {
        let told = text.parse::<XattrMap>().unwrap_err().to_string();
        assert!(told.contains(says), "{text}: {told}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn any_text_is_read_or_refused(text in "[ \n:/]{0,2}(ok|bad|map|prefix|all|client|server|[:/ a-c.é])*") {
        if let Ok(map) = text.parse::<XattrMap>() {
            // Of every name something is known, and it is no longer than names are.
            for name in [c"a", c"user.a", c"c.b.a"] {
                let there = map.to_host(name);
                prop_assert_ne!(&there, &Err(Refusal::Unsupported));
                prop_assert!(there.is_err() || there.unwrap().count_bytes() <= NAME_MAX);
            }
        }
    }

    #[test]
    fn names_become_what_the_first_rule_that_fits_says(
        rules in prop::collection::vec(
            (select(vec!["prefix", "ok", "bad", "unsupported"]), select(vec!["client", "server", "all"]), "[ab]{0,2}", "[ab]{0,2}"),
            0..5,
        ),
        name in "[ab]{1,4}",
    ) {
        let all: Vec<_> = rules.into_iter().chain([("ok", "all", String::new(), String::new())]).collect();
        let text: String = all.iter().map(|(kind, scope, key, prepend)| format!(" /{kind}/{scope}/{key}/{prepend}/")).collect();
        let map = map_of(&text);
        let first = |other: &str, begins: &dyn Fn(&str, &str) -> bool| {
            let found = all.iter().find(|(_, scope, key, prepend)| *scope != other && begins(key, prepend));
            found.cloned().unwrap()
        };
        let (kind, _, _, prepend) = first("server", &|key, _| name.starts_with(key));
        prop_assert_eq!(there(&map, &name), match kind {
            "prefix" => Ok(format!("{prepend}{name}")),
            "ok" => Ok(name.clone()),
            "bad" => Err(Refusal::Bad),
            _ => Err(Refusal::Unsupported),
        });
        let (kind, _, _, prepend) = first("client", &|_, prepend| name.starts_with(prepend));
        prop_assert_eq!(here(&map, &name), match kind {
            "prefix" => Some(name[prepend.len()..].to_string()),
            "ok" => Some(name.clone()),
            _ => None,
        });
    }
}
