//! Pods that grow and shrink with their containers: what both shims ask for with `static_sandbox_resource_mgmt = false`, and what the
//! guest has then.

use husk_tests::api::Shim;
use husk_tests::dynamic::{Change, Limits, Sizer};
use husk_tests::pod::Pod;
use husk_tests::resize::Resizing;
use serde_json::Value;

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
    /// A pod whose guest has loaded `drivers`.
    fn start(shim: Shim, drivers: &[&str]) -> Self {
        let folder = folder();
        let mut pod = Pod::launch(initrd(shim), folder.path()).unwrap();
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
    let mut lab = Lab::start(Shim::Rust, &[]);
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
    lab.end();
}

#[test]
fn containers_of_the_go_shim_come_change_and_go() {
    // Memory comes by virtio-mem; the shim asks for whole blocks of the guest all the same.
    let mut lab = Lab::start(Shim::Go, &["virtio_mem"]);
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
    lab.end();
}
