//! Pods that grow and shrink with their containers: what both shims ask for with
//! `static_sandbox_resource_mgmt = false`, and what the guest has then.

use husk_tests::api::Shim;
use husk_tests::dynamic::{Change, Limits, Sizer};
use husk_tests::husk;
use husk_tests::pod::{Launch, Pod};
use husk_tests::resize::{Resizing, Size};
use serde_json::{Value, json};

use crate::{folder, initrd};

const MIB: u64 = 1 << 20;

/// What happens, the requests that a shim makes of it, and the vCPUs and MiB that the pod has then.
type Step = (Change, &'static [&'static str], u32, u64);

const INFO: &str = "GET vm.info";

fn limits(millis: u32, mib: u64) -> Limits {
    Limits { millis, mib }
}

/// Containers of a pod that starts with 1 vCPU and 256 MiB come, change and go.
struct Lab {
    pod: Pod,
    agent: husk_tests::agent::Agent,
    resizing: Resizing,
    sizer: Sizer,
    _folder: tempfile::TempDir,
}

impl Lab {
    /// A pod whose guest has loaded `drivers`, of a node that starts husk with `options`.
    fn start(shim: Shim, drivers: &[&str], options: &[&str]) -> Self {
        let folder = folder();
        let program = husk().get_program().to_str().unwrap().to_owned();
        let words = options.iter().map(|option| (*option).to_owned());
        let launch = Launch {
            program: std::iter::once(program).chain(words).collect(),
            ..Launch::default()
        };
        let mut pod = Pod::launch_with(initrd(shim), folder.path(), launch).unwrap();
        let mut agent = pod.start().unwrap();
        for driver in drivers {
            agent.load_module(driver).unwrap();
        }
        let resizing = Resizing::begin(&mut pod, &mut agent).unwrap();
        let sizer = Sizer::new(&pod, &mut agent).unwrap();
        Self {
            pod,
            agent,
            resizing,
            sizer,
            _folder: folder,
        }
    }

    fn perform(&mut self, (change, requests, vcpus, mib): Step) {
        let asked = self.sizer.perform(&mut self.pod, &mut self.agent, change).unwrap();
        assert_eq!(asked, requests, "{change:?}");
        self.agree(vcpus, mib);
    }

    /// Asks for so many MiB of memory beside what the shim does, until both sides have it.
    fn resize(&mut self, mib: u64) {
        let size = Size::Memory(mib * MIB);
        self.resizing.resize(&mut self.pod, &mut self.agent, size).unwrap();
    }

    /// What the memory that has come consists of: bytes in blocks of virtio-mem, if there is such a
    /// device, and in each DIMM.
    fn comes_as(&mut self) -> (Option<u64>, Vec<u64>) {
        let status: Value = self.pod.api().get("vm.resize-status").unwrap().json().unwrap();
        let memory = &status["memory"];
        let dimms = memory["dimms"].as_array().unwrap().iter();
        let dimms = dimms.map(|dimm| dimm["bytes"].as_u64().unwrap());
        (memory["virtio_mem"]["plugged_bytes"].as_u64(), dimms.collect())
    }

    /// Host and guest have this, and the host says that it came about.
    fn agree(&mut self, vcpus: u32, mib: u64) {
        let (pod, agent) = (&mut self.pod, &mut self.agent);
        let look = || Ok((pod.info()?, agent.resources()?));
        self.resizing.check_size(look, vcpus, Some(mib * MIB)).unwrap();
        let info = self.pod.info().unwrap();
        assert_eq!(
            (info.config.memory.size, info.memory_actual_size),
            (mib * MIB, mib * MIB)
        );
        let status: Value = self.pod.api().get("vm.resize-status").unwrap().json().unwrap();
        assert_eq!(
            (&status["vcpus"]["online"], &status["memory"]["present_bytes"]),
            (&vcpus.into(), &(mib * MIB).into()),
            "{status}"
        );
    }

    fn end(self) {
        println!("vm.resize was answered within {:?}", self.sizer.longest());
        drop(self.agent);
        assert!(self.pod.stop().unwrap().status.success());
    }
}

#[test]
fn containers_of_the_rust_shim_come_change_and_go() {
    // Memory comes as DIMMs, of whole blocks.
    let mut lab = Lab::start(Shim::Rust, &[], &[]);
    let steps: &[Step] = &[
        // The sandbox's own container has no limits.
        (Change::Add("pause", limits(0, 0)), &[INFO], 1, 256),
        (
            Change::Add("a", limits(1000, 256)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":2}"#,
                INFO,
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":536870912,"desired_vcpus":null}"#,
            ],
            2,
            512,
        ),
        (
            Change::Add("b", limits(1500, 100)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":4}"#,
                INFO,
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":671088640,"desired_vcpus":null}"#,
            ],
            4,
            640,
        ),
        (
            Change::Update("b", limits(500, 300)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":3}"#,
                INFO,
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":939524096,"desired_vcpus":null}"#,
            ],
            3,
            896,
        ),
        // 1.2 and 0.5: as many as before, and room for one more container's memory.
        (Change::Update("a", limits(1200, 64)), &[INFO], 3, 896),
        (
            Change::Update("a", limits(4500, 64)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":6}"#,
                INFO,
            ],
            6,
            896,
        ),
        // As many as the pod may have.
        (
            Change::Update("a", limits(9000, 64)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":8}"#,
                INFO,
            ],
            8,
            896,
        ),
        // Less memory is not asked for.
        (
            Change::Remove("a"),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":2}"#,
                INFO,
            ],
            2,
            896,
        ),
        (
            Change::Remove("b"),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":1}"#,
                INFO,
            ],
            1,
            896,
        ),
        (Change::Remove("pause"), &[INFO], 1, 896),
    ];
    for step in steps {
        lab.perform(*step);
    }
    assert_eq!(lab.comes_as(), (Some(0), vec![128 * MIB; 5]));
    lab.end();
}

#[test]
fn containers_of_the_go_shim_come_change_and_go() {
    // Memory comes by virtio-mem; the shim asks for whole blocks of the guest all the same.
    let mut lab = Lab::start(Shim::Go, &["virtio_mem"], &[]);
    lab.perform((
        Change::Add("pause", limits(0, 0)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":1}"#,
            INFO,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_vcpus":1}"#,
            INFO,
            INFO,
        ],
        1,
        256,
    ));
    lab.perform((
        Change::Add("a", limits(1000, 256)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":2}"#,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_ram":536870912}"#,
            INFO,
            r#"PUT vm.resize {"desired_vcpus":2}"#,
            INFO,
            INFO,
        ],
        2,
        512,
    ));
    lab.perform((
        Change::Add("b", limits(1500, 100)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":4}"#,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_ram":671088640}"#,
            INFO,
            r#"PUT vm.resize {"desired_vcpus":4}"#,
            INFO,
            INFO,
        ],
        4,
        640,
    ));
    // A shim that is tired of waiting hangs up, and the container is not created. The next one says what is wanted.
    let tired = lab.pod.shape().resize_vcpus(7);
    lab.pod.api().give_up("vm.resize", &tired).unwrap();
    lab.perform((
        Change::Update("b", limits(500, 300)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":3}"#,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_ram":939524096}"#,
        ],
        3,
        896,
    ));
    // Nothing is asked for when a container ends: the next change takes its vCPUs away, and nobody its memory.
    lab.perform((Change::Remove("a"), &[], 3, 896));
    lab.perform((
        Change::Update("b", limits(4100, 100)),
        &[INFO, r#"PUT vm.resize {"desired_vcpus":6}"#, INFO, INFO],
        6,
        896,
    ));
    // As many as the pod may have.
    lab.perform((
        Change::Update("b", limits(9000, 100)),
        &[INFO, r#"PUT vm.resize {"desired_vcpus":8}"#, INFO, INFO],
        8,
        896,
    ));
    lab.perform((
        Change::Update("b", limits(0, 100)),
        &[INFO, r#"PUT vm.resize {"desired_vcpus":1}"#, INFO, INFO],
        1,
        896,
    ));
    assert_eq!(lab.comes_as(), (Some(640 * MIB), vec![]));
    lab.end();
}

#[test]
fn containers_of_the_rust_shim_go_and_come_again_in_what_is_left_of_them() {
    // Memory comes by virtio-mem.
    let mut lab = Lab::start(Shim::Rust, &["virtio_mem"], &[]);
    let steps: &[Step] = &[
        (Change::Add("pause", limits(0, 0)), &[INFO], 1, 256),
        (
            Change::Add("a", limits(3000, 384)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":4}"#,
                INFO,
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":671088640,"desired_vcpus":null}"#,
            ],
            4,
            640,
        ),
        (
            Change::Remove("a"),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":1}"#,
                INFO,
            ],
            1,
            640,
        ),
        // Its memory is there still, its vCPUs come again.
        (
            Change::Add("b", limits(2000, 384)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":3}"#,
                INFO,
            ],
            3,
            640,
        ),
        (
            Change::Update("b", limits(500, 400)),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":2}"#,
                INFO,
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":805306368,"desired_vcpus":null}"#,
            ],
            2,
            768,
        ),
        (
            Change::Remove("b"),
            &[
                r#"PUT vm.resize {"desired_balloon":null,"desired_ram":null,"desired_vcpus":1}"#,
                INFO,
            ],
            1,
            768,
        ),
    ];
    for step in steps {
        lab.perform(*step);
    }
    assert_eq!(lab.comes_as(), (Some(512 * MIB), vec![]));
    lab.end();
}

#[test]
fn a_node_that_says_acpi_has_dimms_though_the_guest_could_have_blocks() {
    let mut lab = Lab::start(Shim::Go, &["virtio_mem"], &["--hotplug-method", "acpi"]);
    lab.perform((
        Change::Add("a", limits(2000, 256)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":3}"#,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_ram":536870912}"#,
            INFO,
            r#"PUT vm.resize {"desired_vcpus":3}"#,
            INFO,
            INFO,
        ],
        3,
        512,
    ));
    lab.perform((
        Change::Update("a", limits(600, 300)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":2}"#,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_ram":671088640}"#,
        ],
        2,
        640,
    ));
    // Less is not asked for, and nothing at all when a container ends.
    lab.perform((
        Change::Update("a", limits(600, 100)),
        &[INFO, r#"PUT vm.resize {"desired_vcpus":2}"#, INFO, INFO],
        2,
        640,
    ));
    lab.perform((Change::Remove("a"), &[], 2, 640));
    lab.perform((
        Change::Add("b", limits(0, 128)),
        &[
            INFO,
            r#"PUT vm.resize {"desired_vcpus":1}"#,
            INFO,
            INFO,
            INFO,
            r#"PUT vm.resize {"desired_vcpus":1}"#,
            INFO,
            INFO,
        ],
        1,
        640,
    ));
    // A guest without a balloon is first given what it can describe in any case.
    assert_eq!(lab.comes_as(), (None, vec![128 * MIB; 3]));
    lab.end();
}

#[test]
fn a_node_that_says_virtio_mem_gives_no_memory_in_another_way_and_all_of_it_once_the_driver_is_there() {
    let mut lab = Lab::start(Shim::Rust, &[], &["--hotplug-method", "virtio-mem"]);
    let wanted = json!({"desired_ram": 512 * MIB});
    // Not taken in time: the work goes on.
    lab.pod.put("vm.resize", Some(&wanted)).unwrap().done().unwrap();
    assert_eq!(lab.comes_as(), (Some(0), vec![]));
    assert_eq!(lab.pod.info().unwrap().memory_actual_size, 256 * MIB);
    lab.agent.load_module("virtio_mem").unwrap();
    lab.resize(512);
    lab.agree(1, 512);
    assert_eq!(lab.comes_as(), (Some(256 * MIB), vec![]));
    // And back, which takes blocks of the same kind.
    lab.resize(256);
    assert_eq!(lab.comes_as().1, Vec::<u64>::new());
    lab.end();
}
