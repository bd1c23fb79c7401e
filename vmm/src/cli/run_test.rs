use clap::Parser;

use super::super::{Cli, Command};
use super::*;

fn args(words: &[&str]) -> Result<RunArgs, clap::Error> {
    match Cli::try_parse_from(["husk", "run"].iter().chain(words))?.command {
        Some(Command::Run(args)) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

fn config(words: &[&str]) -> VmConfig {
    args(&[&["--kernel", "/k"], words].concat())
        .unwrap()
        .into_config()
        .unwrap()
        .0
}

/// What a user reads when `words` do not parse.
fn refused(words: &[&str]) -> String {
    super::super::one_line(&args(words).unwrap_err())
}

/// What a user reads when `words` parse and make no VM.
fn unusable(words: &[&str]) -> String {
    args(&[&["--kernel", "/k"], words].concat())
        .unwrap()
        .into_config()
        .unwrap_err()
        .to_string()
}

#[test]
fn a_kernel_alone_makes_a_small_machine_with_a_serial_console() {
    let expected = VmConfig {
        cpus: CpusConfig::fixed(1),
        memory: MemoryConfig {
            size: 512 << 20,
            ..MemoryConfig::default()
        },
        payload: PayloadConfig {
            kernel: Some("/k".into()),
            cmdline: Some("console=ttyS0 reboot=k panic=-1".into()),
            ..PayloadConfig::default()
        },
        rng: Some(RngConfig::new()),
        serial: ConsoleConfig::new(ConsoleMode::Tty),
        console: ConsoleConfig::new(ConsoleMode::Off),
        ..VmConfig::default()
    };
    assert_eq!(config(&[]), expected);
}

#[test]
fn every_option_has_its_field() {
    let words = [
        "--initramfs",
        "/i",
        "--cmdline",
        "-a \"b c\"  d",
        "--cpus",
        "4",
        "--memory",
        "2G",
        "--disk",
        "path=/a,readonly=on",
        "--disk",
        "path=/b",
        "--serial",
        "file=/s",
        "--console",
        "null",
        "--rng",
        "/dev/hwrng",
        "--pvpanic",
        "--boot-trace",
        "/t",
        "-vv",
        "--protocol",
        "linux64",
        "--kernel",
        "/k",
    ];
    let (config, options) = args(&words).unwrap().into_config().unwrap();
    assert_eq!(config.payload.initramfs, Some("/i".into()));
    assert_eq!(config.payload.cmdline.as_deref(), Some("-a \"b c\"  d"), "verbatim");
    assert_eq!((config.cpus, config.memory.size), (CpusConfig::fixed(4), 2 << 30));
    assert_eq!(
        config.disks.iter().map(|disk| disk.readonly).collect::<Vec<_>>(),
        [true, false]
    );
    assert_eq!(
        (config.serial, config.console.mode),
        (ConsoleConfig::file("/s"), ConsoleMode::Null)
    );
    assert_eq!(
        (config.rng, config.pvpanic),
        (Some(RngConfig::from(PathBuf::from("/dev/hwrng"))), true)
    );
    assert_eq!((options.boot_trace, options.verbosity), (Some("/t".into()), 2));
    assert_eq!(options.protocol, Some(BootProtocol::Linux64));
    assert!(!options.trace.is_on(), "whoever starts the run decides");
}

#[test]
fn an_empty_command_line_is_the_users_will() {
    assert_eq!(config(&["--cmdline", ""]).payload.cmdline.as_deref(), Some(""));
}

#[test]
fn a_console_on_stdio_takes_it_from_the_serial_port() {
    let config = config(&["--console", "stdio"]);
    assert_eq!(
        (config.serial.mode, config.console.mode),
        (ConsoleMode::Off, ConsoleMode::Tty)
    );
    assert_eq!(
        unusable(&["--console", "stdio", "--serial", "stdio"]),
        "serial and console both use stdio, only one of them can"
    );
}

#[test]
fn memory_is_shared_with_whoever_serves_a_folder() {
    let own = config(&["--fs", "tag=a,dir=/"]);
    assert!(!own.memory.shared, "husk has it in any case");
    let config = config(&["--fs", "tag=a,socket=/s", "--fs", "tag=b,socket=/t"]);
    assert!(config.memory.shared);
    assert_eq!(config.fs, [FsConfig::new("a", "/s"), FsConfig::new("b", "/t")]);
    let twice = unusable(&["--fs", "tag=a,socket=/s", "--fs", "tag=a,socket=/t"]);
    assert_eq!(twice, "fs: tag 'a' is used by two devices, tags must differ");
}

#[test]
fn no_rng_excludes_a_source() {
    assert_eq!(config(&["--no-rng"]).rng, None);
    assert_eq!(
        refused(&["--no-rng", "--rng", "/dev/random"]),
        "the argument '--no-rng' cannot be used with '--rng <FILE>'"
    );
}

#[test]
fn without_a_kernel_the_hosts_own_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let error = args(&[]).unwrap().into_config_on(root.path()).unwrap_err();
    assert!(matches!(error, UsageError::NoKernel(_)), "{error}");
    let kernel = root.path().join("boot/vmlinuz-6.1");
    std::fs::create_dir(root.path().join("boot")).unwrap();
    std::fs::write(&kernel, b"").unwrap();
    let (config, _) = args(&[]).unwrap().into_config_on(root.path()).unwrap();
    assert_eq!(config.payload.kernel, Some(kernel));
}

#[test]
fn wrong_values_are_named_in_one_line() {
    for (words, line) in [
        (
            &["--memory", "lots"][..],
            "invalid value 'lots' for '--memory <SIZE>': a size is a whole number and a unit, such as \
                                     512M, 2G or 1536MiB",
        ),
        (
            &["--memory", "2GB"],
            "invalid value '2GB' for '--memory <SIZE>': unknown unit 'GB', allowed: K, M, G, T (or KiB, MiB, GiB, \
                                TiB), none for bytes",
        ),
        (
            &["--cpus", "-1"],
            "invalid value '-1' for '--cpus <N>': allowed: a whole number from 1 up to what KVM offers",
        ),
        (
            &["--memory", "-1"],
            "invalid value '-1' for '--memory <SIZE>': a size is a whole number and a unit, such as 512M, 2G or \
                               1536MiB",
        ),
        (
            &["--serial", "tty"],
            "invalid value 'tty' for '--serial <WHERE>': allowed: stdio, file=PATH[,limit=SIZE[,keep=N]], socket=PATH, pty, journald[=NAME][,journal=SOCKET], null, off",
        ),
        (
            &["--disk", "path=/d,ro=on"],
            "invalid value 'path=/d,ro=on' for '--disk <KEYS>': unknown key 'ro', allowed: path, readonly, \
                                        direct, queues, queue_size, id, discard, io_uring, bandwidth, ops",
        ),
        (
            &["--protocol", "uefi"],
            "invalid value 'uefi' for '--protocol <NAME>'; [possible values: pvh, linux64]",
        ),
        (
            &["--memroy", "1G"],
            "unexpected argument '--memroy' found; tip: a similar argument exists: '--memory'",
        ),
        (&["stray"], "unexpected argument 'stray' found"),
        (
            &["--kernel"],
            "a value is required for '--kernel <FILE>' but none was supplied",
        ),
    ] {
        assert_eq!(refused(words), line);
    }
}

#[test]
fn impossible_machines_are_refused_before_anything_starts() {
    assert_eq!(
        unusable(&["--cpus", "0"]),
        "cpus.boot_vcpus: 0 vCPUs asked for, 1 to 4096 allowed"
    );
    assert_eq!(
        unusable(&["--cpus", "boot=1,max=4097"]),
        "cpus.max_vcpus: 4097 vCPUs asked for, 1 to 4096 allowed"
    );
    assert_eq!(
        unusable(&["--memory", "0"]),
        "memory: 0 bytes (0 B) asked for, 2 MiB to 8190 GiB allowed"
    );
    assert_eq!(
        unusable(&["--memory", "4096T"]),
        "memory: 4503599627370496 bytes (4096 TiB) asked for, 2 MiB to 8190 GiB allowed"
    );
    assert_eq!(
        unusable(&["--disk", "path=/d,queues=0"]),
        "disk /d: 0 queues asked for, 1 to 255 allowed"
    );
    assert_eq!(
        unusable(&["--disk", "path=/d,id=x", "--disk", "path=/e,id=x"]),
        "id 'x' is used by two devices, ids must differ"
    );
}

/// The line that `husk run --pod` would get of this annotation, or its VM.
fn of_pod(key: &str, value: &str, words: &[&str]) -> Result<VmConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, serde_json::json!({"annotations": {key: value}}).to_string()).unwrap();
    let path = path.to_str().unwrap();
    let described = args(&[&["--kernel", "/k", "--pod", path], words].concat())
        .unwrap()
        .into_config();
    let described = described.map_err(|error| format!("{:#}", anyhow::Error::new(error)).replace(path, "FILE"));
    described.map(|(config, _)| config)
}

#[test]
fn a_pod_describes_the_machine_and_explicit_options_win() {
    let words = "io.katacontainers.config.hypervisor.kernel_params";
    let config = of_pod(words, "quiet", &[]).unwrap();
    assert_eq!((config.cpus.boot_vcpus, config.memory.size), (1, 2 << 30));
    assert!(config.memory.hotplug_size.is_some() && config.cpus.max_vcpus >= 1);
    let line = "console=ttyS0 reboot=k panic=-1 quiet";
    assert_eq!(config.payload.cmdline.as_deref(), Some(line));
    let options = ["--cpus", "3", "--memory", "1G", "--cmdline", "mine"];
    let config = of_pod(words, "quiet", &options).unwrap();
    assert_eq!(config.cpus, CpusConfig::fixed(3));
    assert_eq!((config.memory.size, config.memory.hotplug_size), (1 << 30, None));
    assert_eq!(config.payload.cmdline.as_deref(), Some("mine"));
}

#[test]
fn a_pod_that_cannot_be_is_refused_by_its_file_and_annotation() {
    let vcpus = "io.katacontainers.config.hypervisor.default_vcpus";
    let refusal = of_pod(vcpus, "-1", &[]).unwrap_err();
    let says = format!("pod FILE: annotation {vcpus} is \"-1\", allowed: a decimal number from 0 to ");
    assert!(refusal.starts_with(&says), "{refusal}");
    let policy = ["--enable-annotations", "default_memory,kernel"];
    let refusal = of_pod(vcpus, "1", &policy).unwrap_err();
    let says = format!("pod FILE: annotation {vcpus} is not enabled on this node, enabled below");
    assert!(
        refusal.starts_with(&says) && refusal.ends_with("default_memory, kernel"),
        "{refusal}"
    );
    assert!(of_pod(vcpus, "1", &["--enable-annotations", "vcpus"]).is_ok());
    assert_eq!(
        refused(&["--enable-annotations", "a("]).split(':').next(),
        Some("invalid value 'a(' for '--enable-annotations <REGEX,...>'")
    );
    assert_eq!(
        unusable(&["--enable-annotations", "vcpus"]),
        "--enable-annotations: there is no pod that it is about, --pod FILE names one"
    );
    let missing = args(&["--kernel", "/k", "--pod", "/nowhere"]).unwrap().into_config();
    let refusal = format!("{:#}", anyhow::Error::new(missing.unwrap_err()));
    assert!(
        refusal.starts_with("pod /nowhere: cannot be read: No such file"),
        "{refusal}"
    );
}
