//! Programs that people use, from a share and on it: a compiler, dpkg, git, sqlite with several writers, rsync.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_guest::tree::{self, Depth};
use husk_guest::{Call, Reply};
use husk_tests::agent::Agent;
use serde_json::json;

use crate::served::{Plan, SERVERS, Served};
use crate::{Mounted, sh};

/// Where the lab has Debian's programs, if this run was asked to.
fn programs() -> Option<PathBuf> {
    std::env::var_os("HUSK_TEST_PROGRAMS")?;
    Some(PathBuf::from(std::env::var_os("HUSK_LAB_DIR")?).join("programs"))
}

/// What runs a program of theirs where the share is: libraries, headers and the programs themselves come from it.
fn with_programs(server: &str, script: &str) -> String {
    format!(
        "export PATH=/usr/bin:/{server}/programs/bin:/bin HOME=/tmp
         for name in usr lib lib64; do rm -f /$name; ln -s /{server}/programs/$name /$name; done
         cd /{server}/work
         {script}"
    )
}

/// Sources of a program in so many files, each with one function that adds its number to what the one before found.
const SOURCES: usize = 12;

fn write_sources(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let mut header = String::from("#include <stdio.h>\n#include <string.h>\n");
    for number in 0..SOURCES {
        writeln!(header, "int f{number}(int sum);").unwrap();
        let source = format!("#include \"all.h\"\nint f{number}(int sum) {{ return sum + {number}; }}\n");
        fs::write(folder.join(format!("f{number}.c")), source).unwrap();
    }
    let calls = (0..SOURCES).fold("0".to_string(), |inner, number| format!("f{number}({inner})"));
    let main = format!("#include \"all.h\"\nint main(void) {{ printf(\"%d\\n\", {calls}); return 0; }}\n");
    fs::write(folder.join("main.c"), main).unwrap();
    fs::write(folder.join("all.h"), header).unwrap();
}

/// Both sides have the same in a folder of the share.
fn same(served: &Served, agent: &mut Agent, server: &str, name: &str) {
    sh(agent, "echo 3 > /proc/sys/vm/drop_caches");
    let (path, depth) = (format!("/{server}/work/{name}"), Depth::Contents);
    let survey = tree::survey(&served.host(server).join("work").join(name), depth).unwrap();
    assert!(survey.entries > 0, "{server}: {name}");
    let found = agent.must(&Call::Survey { path, depth }).unwrap();
    assert_eq!(found, Reply::Surveyed { survey }, "{server}: {name}");
}

fn a_compiler_builds_a_program_that_runs(served: &Served, agent: &mut Agent, server: &str) {
    let said = sh(
        agent,
        &with_programs(
            server,
            "mkdir src; tar -xf ../src.tar -C src
             cd src; for one in *.c; do tcc -c $one; done; tcc -o ../program *.o; ../program",
        ),
    );
    let sum: usize = (0..SOURCES).sum();
    assert_eq!(said, format!("{sum}\n"), "{server}");
    let program = fs::read(served.host(server).join("work/program")).unwrap();
    assert!(program.starts_with(b"\x7fELF"), "{server}");
    same(served, agent, server, "src");
}

fn dpkg_unpacks_a_package(served: &Served, agent: &mut Agent, server: &str) {
    let said = sh(
        agent,
        &with_programs(
            server,
            "mkdir -p root/var/lib/dpkg/updates root/var/lib/dpkg/info; touch root/var/lib/dpkg/status root/var/lib/dpkg/available
             # By their paths: busybox's shell has some of the same names.
             /usr/bin/dpkg --root=$PWD/root --log=/dev/null --force-all --unpack ../programs/rsync.deb >&2
             /usr/bin/dpkg --root=$PWD/root --verify rsync | grep -v ' c ' || true
             mkdir extracted; /usr/bin/dpkg-deb --extract ../programs/rsync.deb extracted
             cd root; md5sum -c var/lib/dpkg/info/rsync.md5sums | grep -vc OK || true
             cmp usr/bin/rsync ../extracted/usr/bin/rsync",
        ),
    );
    assert_eq!(said, "0\n", "{server}");
    same(served, agent, server, "root");
}

fn git_clones_and_finds_nothing_wrong(served: &Served, agent: &mut Agent, server: &str) {
    let said = sh(
        agent,
        &with_programs(
            server,
            "git config --global user.name n; git config --global user.email e; git config --global init.defaultBranch main
             git config --global safe.directory '*'
             cd src; git init -q; git add .; git commit -qm one; echo >> all.h; git commit -qam two; cd ..
             git clone -q src cloned; git clone -q --no-local --bare src bare.git
             git -C cloned gc -q
             for one in src cloned bare.git; do git -C $one fsck --full --strict; git -C $one rev-list --all --count; done 2>&1
             git -C cloned status --porcelain; git -C src diff --stat",
        ),
    );
    assert_eq!(said, "2\n2\n2\n", "{server}");
    same(served, agent, server, "cloned");
    same(served, agent, server, "bare.git");
}

/// Processes that write to one database, and rows of each.
const WRITERS: usize = 4;
const ROWS: usize = 8;

fn sqlite_has_every_row_of_several_writers(served: &Served, agent: &mut Agent, server: &str) {
    for mode in ["delete", "wal"] {
        let rows = format!(
            "sqlite3 {mode}.db 'pragma journal_mode={mode}; create table t(writer, row);' >&2; all=
             for writer in $(seq {WRITERS}); do
               for row in $(seq {ROWS}); do echo \"insert into t values($writer, $row);\"; done |
                 sqlite3 -bail -cmd '.timeout 200000' {mode}.db & all=\"$all $!\"
             done
             for one in $all; do wait $one; done
             sqlite3 {mode}.db 'select count(*), sum(row) from t; pragma integrity_check;'"
        );
        let sum = WRITERS * ROWS * (ROWS + 1) / 2;
        let expected = format!("{}|{sum}\nok\n", WRITERS * ROWS);
        assert_eq!(sh(agent, &with_programs(server, &rows)), expected, "{server}: {mode}");
        // By the host's own eyes.
        let programs = programs().unwrap();
        let libraries = ["usr/lib", "lib"].map(|lib| format!("{}/{lib}/x86_64-linux-gnu", programs.display()));
        let read = Command::new(programs.join("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"))
            .args(["--library-path", &libraries.join(":")])
            .arg(programs.join("usr/bin/sqlite3"))
            .arg(served.host(server).join("work").join(format!("{mode}.db")))
            .arg("select count(*), sum(row) from t; pragma integrity_check;")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&read.stdout),
            expected,
            "{server}: {mode}: {read:?}"
        );
    }
}

fn rsync_copies_to_the_share_and_from_it(served: &Served, agent: &mut Agent, server: &str) {
    let said = sh(
        agent,
        &with_programs(
            server,
            "rm -rf /tmp/one /tmp/back; cp -a src /tmp/one
             rsync -a /tmp/one/ there; echo changed >> there/all.h; rm there/main.c
             rsync -ac --delete --itemize-changes /tmp/one/ there | wc -l
             rsync -a --inplace there/ /tmp/back; rsync -acn --itemize-changes --delete /tmp/one/ /tmp/back | wc -l",
        ),
    );
    assert_eq!(said.lines().last(), Some("0"), "{server}: {said}");
    same(served, agent, server, "there");
}

fn programs_work_from_a_share_and_on_it(server: &str) {
    let Some(programs) = programs() else {
        println!("left out: HUSK_TEST_PROGRAMS=1 has the lab fetch programs, and runs them");
        return;
    };
    let sources = tempfile::tempdir().unwrap();
    write_sources(&sources.path().join("src"));
    let mut mounts = Vec::new();
    let plan = Plan {
        vcpus: 2,
        memory_mib: 512,
        device: json!({"num_queues": 2}),
        ..Plan::default()
    };
    let (served, mut agent) = Served::start_with(plan, |folder| {
        for name in ["programs", "work"] {
            fs::create_dir(folder.join(name)).unwrap();
        }
        mounts.push(Mounted::new(
            &["--bind", programs.to_str().unwrap()],
            &folder.join("programs"),
        ));
        let mut tar = Command::new("tar");
        tar.arg("-cf")
            .arg(folder.join("src.tar"))
            .arg("-C")
            .arg(sources.path().join("src"))
            .arg(".");
        assert!(tar.status().unwrap().success());
    });
    a_compiler_builds_a_program_that_runs(&served, &mut agent, server);
    dpkg_unpacks_a_package(&served, &mut agent, server);
    sqlite_has_every_row_of_several_writers(&served, &mut agent, server);
    rsync_copies_to_the_share_and_from_it(&served, &mut agent, server);
    git_clones_and_finds_nothing_wrong(&served, &mut agent, server);
    served.end();
}

#[test]
fn programs_people_use_work_from_a_share_of_husks_own_and_on_it() {
    programs_work_from_a_share_and_on_it(SERVERS[0]);
}

#[test]
fn programs_people_use_work_from_a_share_of_husk_fs_and_on_it() {
    programs_work_from_a_share_and_on_it(SERVERS[1]);
}
