//! `husk install` and `husk uninstall` as a shell sees them: the built program puts itself into a
//! system below a temporary directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const HUSK: &str = env!("CARGO_BIN_EXE_husk");

/// A system with the Go shim and containerd.
fn system() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in [
        ("opt/kata/bin/containerd-shim-kata-v2", ""),
        (
            "opt/kata/share/defaults/kata-containers/configuration-clh.toml",
            "[hypervisor.clh]\npath = \"/opt/kata/bin/cloud-hypervisor\"\n",
        ),
        (
            "etc/containerd/config.toml",
            "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
        ),
    ] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

/// `husk COMMAND --root ROOT OPTIONS`: exit code, standard output, standard error.
fn husk(root: &Path, command: &str, options: &[&str]) -> (i32, String, String) {
    let mut husk = Command::new(HUSK);
    husk.args([command, "--root"]).arg(root).args(options);
    let Output { status, stdout, stderr } = husk.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[test]
fn the_program_installs_itself_and_leaves_without_a_trace() {
    let system = system();
    let root = system.path();
    let (code, told, errors) = husk(root, "install", &["--dry-run"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(told.contains("create   /opt/husk/bin/husk -> "), "{told}");
    assert!(!root.join("opt/husk").exists());
    let (code, told, plan) = husk(root, "install", &[]);
    assert_eq!((code, told.as_str()), (0, ""), "{plan}");
    assert!(
        plan.contains("create   /etc/containerd/conf.d/90-kata-husk.toml\n"),
        "{plan}"
    );
    assert!(fs::read(root.join("opt/husk/bin/husk")).unwrap() == fs::read(HUSK).unwrap());
    // It runs from there, and says that all is well.
    let installed = Command::new(root.join("opt/husk/bin/husk"))
        .args(["install", "--status", "--root"])
        .arg(root)
        .output()
        .unwrap();
    assert_eq!(installed.status.code(), Some(0));
    let table = String::from_utf8(installed.stdout).unwrap();
    assert!(table.lines().skip(1).all(|line| line.starts_with("ok ")), "{table}");
    fs::write(root.join("etc/containerd/conf.d/90-kata-husk.toml"), "mine").unwrap();
    let (code, table, _) = husk(root, "install", &["--status"]);
    assert!(
        code == 1 && table.contains("changed    /etc/containerd/conf.d/90-kata-husk.toml\n"),
        "{table}"
    );
    let (code, told, _) = husk(root, "uninstall", &["--dry-run"]);
    assert!(
        code == 0 && told.contains("keep     /etc/containerd/conf.d/90-kata-husk.toml"),
        "{told}"
    );
    assert!(root.join("opt/husk/bin/husk").exists());
    assert_eq!(husk(root, "uninstall", &[]).0, 0);
    assert!(!root.join("opt/husk").exists());
    assert_eq!(
        fs::read(root.join("etc/containerd/conf.d/90-kata-husk.toml")).unwrap(),
        b"mine"
    );
    let (code, _, errors) = husk(root, "uninstall", &[]);
    assert!(
        code == 1 && errors.ends_with("husk is not installed below this prefix\n"),
        "{errors}"
    );
}

#[test]
fn a_vm_that_runs_keeps_its_program_through_an_upgrade_and_the_end() {
    let system = system();
    let root = system.path();
    assert_eq!(husk(root, "install", &[]).0, 0);
    let socket = root.join("api.sock");
    let mut running = Command::new(root.join("opt/husk/bin/husk"))
        .arg("--api-socket")
        .arg(&socket)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    process::ready(&running, &socket);
    // Its program has another name than the link by which it was started.
    let pid = running.id();
    let is_found = |when: &str| {
        let listed = Command::new(HUSK).args(["ps", "--json"]).output().unwrap();
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let mut pids = listed.as_array().unwrap().iter().map(|husk| &husk["pid"]);
        assert!(pids.any(|found| *found == pid), "{when}: {listed}");
        let bundle = root.join(when);
        let gather = Command::new(HUSK)
            .args(["gather", "--all", "--dir"])
            .arg(&bundle)
            .output();
        assert!(gather.unwrap().status.success(), "{when}");
        let mut folders = fs::read_dir(&bundle).unwrap().map(|entry| entry.unwrap().file_name());
        let end = format!("-{pid}");
        assert!(
            folders.any(|name| name.to_str().unwrap().ends_with(&end) || *name == *pid.to_string()),
            "{when}"
        );
    };
    is_found("before");
    // A newer program: as it is, with a byte behind its end.
    let newer = root.join("newer");
    let mut bytes = fs::read(HUSK).unwrap();
    bytes.push(0);
    fs::write(&newer, bytes).unwrap();
    fs::set_permissions(&newer, fs::metadata(HUSK).unwrap().permissions()).unwrap();
    let with_newer = |options: &[&str]| {
        let mut install = Command::new(&newer);
        install.args(["install", "--root"]).arg(root).args(options);
        install.output().unwrap()
    };
    let status = with_newer(&["--status"]);
    let table = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.code() == Some(1) && table.contains("\nstale "), "{table}");
    let upgrade = with_newer(&[]);
    assert_eq!(upgrade.status.code(), Some(0), "{upgrade:?}");
    assert_eq!(with_newer(&["--status"]).status.code(), Some(0));
    let told = String::from_utf8(upgrade.stderr).unwrap();
    assert!(told.contains("replace  /opt/husk/bin/husk -> "), "{told}");
    assert!(fs::read(root.join("opt/husk/bin/husk")).unwrap() == fs::read(&newer).unwrap());
    // The kernel still has the program that the process was started with, whose name may have gone.
    let runs_its_own = || fs::read(format!("/proc/{pid}/exe")).unwrap() == fs::read(HUSK).unwrap();
    assert!(runs_its_own());
    is_found("after");
    assert_eq!(husk(root, "uninstall", &[]).0, 0);
    assert!(!root.join("opt/husk").exists() && runs_its_own());
    is_found("uninstalled");
    let ping = Command::new(HUSK).arg("ctl").arg(&socket).arg("ping").output().unwrap();
    assert_eq!(ping.status.code(), Some(0), "it goes on: {ping:?}");
    running.kill().unwrap();
    assert_eq!(running.wait().unwrap().signal(), Some(9));
}

#[test]
fn folders_and_files_are_for_everybody_whatever_the_umask_is() {
    let system = system();
    let root = system.path();
    let installed = Command::new("sh")
        .args(["-c", "umask 077; exec \"$@\"", "sh", HUSK, "install", "--root"])
        .arg(root)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(installed.status.success(), "{installed:?}");
    let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
    for path in [
        "opt/husk",
        "opt/husk/bin",
        "opt/husk/bin/husk",
        "opt/husk/share/husk/kata/kata-husk/config.d",
        "etc/containerd/conf.d",
    ] {
        assert_eq!(mode(path), 0o755, "{path}");
    }
    assert_eq!(mode("etc/containerd/conf.d/90-kata-husk.toml"), 0o644);
}

/// The recipe of docs/operate.md: an upgrade is `husk install`.
#[test]
fn an_upgrade_without_options_keeps_those_of_the_first_time() {
    let system = system();
    let root = system.path();
    let overhead = root.join("overhead.json");
    fs::write(&overhead, r#"{"memory_mib": 77, "cpu_millis": 250, "method": "m"}"#).unwrap();
    let overhead = overhead.to_str().unwrap();
    let first = ["--runtime-class", "x", "--file-server", "--overhead", overhead];
    assert_eq!(husk(root, "install", &first).0, 0);
    let (code, told, _) = husk(root, "install", &["--dry-run"]);
    assert!(
        code == 0 && told.starts_with("everything is installed as asked for\n"),
        "{told}"
    );
    let (code, _, told) = husk(root, "install", &["--file-server=false", "--overhead", "kata"]);
    assert_eq!(code, 0, "{told}");
    assert!(!root.join("opt/husk/libexec").exists() && root.join("etc/containerd/conf.d/90-x.toml").exists());
    let classes = fs::read_to_string(root.join("opt/husk/share/husk/kubernetes/runtimeclass.yaml")).unwrap();
    assert!(
        classes.contains("name: x\n") && classes.contains("memory: \"130Mi\""),
        "{classes}"
    );
}

/// Has a shell of a mount namespace of its own do `commands`, with the program as `$0` and `root`
/// as `$1`; `None` where there is none to be had.
fn with_mounts(root: &Path, commands: &str) -> Option<Output> {
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-ec", "mount -t tmpfs none /tmp"]);
    if !shell
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        println!("skipped: needs mounts");
        return None;
    }
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-ec", commands, HUSK]).arg(root);
    Some(shell.stdin(Stdio::null()).output().unwrap())
}

#[test]
fn a_folder_of_drop_ins_may_be_a_mount_of_its_own() {
    let system = system();
    let newer = system.path().join("newer");
    let mut bytes = fs::read(HUSK).unwrap();
    bytes.push(0);
    fs::write(&newer, bytes).unwrap();
    fs::set_permissions(&newer, fs::metadata(HUSK).unwrap().permissions()).unwrap();
    let told = with_mounts(
        system.path(),
        "cd \"$1\"; mkdir -p etc/containerd/conf.d opt/husk/bin
         mount -t tmpfs none etc/containerd/conf.d
         mount -t tmpfs none opt/husk/bin
         touch etc/containerd/conf.d/.husk-install
         \"$0\" install --root \"$1\" 2>/dev/null
         stat --format '%n %a' etc/containerd/conf.d/* etc/containerd/conf.d/.[!.]* opt/husk/bin/* 2>/dev/null || true
         grep -c kata-husk etc/containerd/conf.d/90-kata-husk.toml
         ./newer install --root \"$1\" --runtime-class kata-husk 2>/dev/null
         cmp newer opt/husk/bin/husk
         \"$0\" uninstall --root \"$1\" >/dev/null
         ls -A etc/containerd/conf.d opt/husk/bin",
    );
    let Some(told) = told else {
        return;
    };
    assert!(told.status.success(), "{told:?}");
    let said = String::from_utf8(told.stdout).unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines[..2],
        ["etc/containerd/conf.d/90-kata-husk.toml 644", "opt/husk/bin/husk 777"],
        "{said}"
    );
    assert_eq!(lines[3..], ["etc/containerd/conf.d:", "", "opt/husk/bin:"], "{said}");
}

#[test]
fn a_folder_that_cannot_be_written_to_says_why() {
    let system = system();
    fs::create_dir(system.path().join("etc/containerd/conf.d")).unwrap();
    let told = with_mounts(
        system.path(),
        "mount -t tmpfs -o ro none \"$1/etc/containerd/conf.d\"
         \"$0\" install --root \"$1\" 2>\"$1/said\" && exit 9
         test ! -e \"$1/opt/husk\"
         tail -n 1 \"$1/said\"",
    );
    let Some(told) = told else {
        return;
    };
    assert!(told.status.success(), "{told:?}");
    let said = String::from_utf8(told.stdout).unwrap();
    assert!(
        said.ends_with("90-kata-husk.toml; nothing was changed: Read-only file system (os error 30)\n"),
        "{said}"
    );
}

#[test]
fn what_only_root_may_read_is_unknown_to_others() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let system = system();
    let root = system.path();
    let everybody = fs::Permissions::from_mode(0o755);
    fs::set_permissions(root, everybody).unwrap();
    let kata = "opt/kata/share/defaults/kata-containers/configuration-clh.toml";
    fs::set_permissions(root.join(kata), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(husk(root, "install", &[]).0, 0);
    let mut asked = Command::new(root.join("opt/husk/bin/husk"));
    asked
        .args(["install", "--status", "--root"])
        .arg(root)
        .uid(65534)
        .gid(65534);
    let told = asked.current_dir("/").stdin(Stdio::null()).output().unwrap();
    let table = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(1), "{table}");
    let copy = "/opt/husk/share/husk/kata/kata-husk/configuration.toml";
    assert!(
        table.contains(&format!("unknown    {copy} is not for you to read\n")),
        "{table}"
    );
    assert!(
        table.contains(&format!("stale      /{kata} cannot be read: Permission denied")),
        "{table}"
    );
    assert!(!table.contains("changed "), "{table}");
}

#[test]
fn while_one_is_at_work_another_changes_nothing_and_says_so() {
    let system = system();
    let root = system.path();
    // What the first of two has for as long as it is at work.
    let first = husk::install::Lock::take(root).unwrap();
    for command in ["install", "uninstall"] {
        let (code, out, errors) = husk(root, command, &[]);
        assert_eq!((code, out.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
        assert!(
            errors.contains("another husk install or uninstall is at work on"),
            "{errors}"
        );
    }
    assert!(!root.join("opt/husk").exists());
    let (code, plan, _) = husk(root, "install", &["--dry-run"]);
    assert!(code == 0 && plan.contains("create "), "{plan}");
    drop(first);
    assert_eq!(husk(root, "install", &[]).0, 0);
    assert_eq!(husk(root, "uninstall", &[]).0, 0);
}

/// Nobody writes into a FIFO: whoever opened one would wait.
#[test]
fn a_fifo_in_the_place_of_a_file_is_named_and_holds_up_nothing() {
    for (path, says) in [
        (
            "etc/containerd/config.toml",
            "etc/containerd/config.toml: it is no regular file\n",
        ),
        (
            "opt/kata/share/defaults/kata-containers/configuration-clh.toml",
            "opt/kata: has neither of Kata's shims",
        ),
    ] {
        let system = system();
        let place = system.path().join(path);
        fs::remove_file(&place).unwrap();
        process::make_fifo(&place);
        let (code, out, errors) = husk(system.path(), "install", &[]);
        assert_eq!((code, out.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
        assert!(errors.contains(says), "{errors}");
        assert!(!system.path().join("opt/husk").exists());
    }
}

#[test]
fn what_cannot_be_installed_is_one_line() {
    let system = system();
    let root = system.path();
    for (options, code, says) in [
        (
            &["--runtime-class", "A"][..],
            2,
            "--runtime-class A: is no name of a handler; allowed: 1 to 60 of",
        ),
        (
            &["--prefix", "opt"],
            2,
            "--prefix opt: is relative; allowed: an absolute path",
        ),
        (&["--kata", "/opt/../kata"], 2, "--kata /opt/../kata: has . or .. in it"),
        (&["--kata", "/nowhere"], 1, "/nowhere: has neither of Kata's shims"),
        (&["--overhead", "/nowhere"], 1, "cannot read /nowhere: No such file"),
        (&["--overhead", "/"], 1, "cannot read /: it is no regular file"),
        (
            &["--overhead", "/dev/zero"],
            1,
            "cannot read /dev/zero: it is no regular file",
        ),
        (
            &["--engine", "docker"],
            2,
            "invalid value 'docker' for '--engine <ENGINE>'; [possible values: containerd, crio]",
        ),
        (&["--status", "--dry-run"], 2, "cannot be used with"),
        (&["--status"], 1, "husk is not installed below this prefix"),
    ] {
        let (told, out, errors) = husk(root, "install", options);
        assert_eq!(
            (told, out.as_str(), errors.lines().count()),
            (code, "", 1),
            "{options:?}: {errors}"
        );
        assert!(errors.contains(says), "{options:?}: {errors}");
    }
    fs::create_dir(root.join("etc/crio")).unwrap();
    let (code, _, errors) = husk(root, "install", &[]);
    assert!(
        code == 2 && errors.contains("both containerd and CRI-O are here: say which one with --engine"),
        "{errors}"
    );
    assert!(!root.join("opt/husk").exists());
}
