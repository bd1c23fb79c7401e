use husk_devices::testing::until;

use super::*;
use crate::ring::Notify;
use crate::testing::{Driver, memory};
use crate::vhost::testing::{FEATURES, FakeKernel};
use crate::worker::Worker;

fn device(features: u64) -> (KernelVsock, Arc<FakeKernel>, GuestMemory) {
    let mem = memory();
    let kernel = FakeKernel::new(features);
    let handles = FakeKernel::handles(std::slice::from_ref(&kernel), &mem);
    (KernelVsock::on(7, handles), kernel, mem)
}

fn activation(mem: &GuestMemory, queues: [bool; 3]) -> Activation {
    let rings = (0u64..).zip(queues).map(|(number, enabled)| {
        let driver = Driver::new(mem, 0x1000 + 0x1_0000 * number, 16);
        enabled.then(|| driver.ring())
    });
    Activation {
        mem: mem.clone(),
        features: 1 << 32 | VIRTIO_VSOCK_F_STREAM,
        rings: rings.collect(),
        config_changed: Notify::none(),
    }
}

#[test]
fn identity_is_that_of_the_specification_and_message_boundaries_are_the_kernels_to_offer() {
    let (vsock, ..) = device(FEATURES);
    let profile = vsock.profile();
    assert_eq!((profile.id, profile.features, profile.queue_sizes.len()), (19, 1, 3));
    let mut cid = [0xff; 10];
    vsock.config().lock().unwrap().read(0, &mut cid);
    assert_eq!(cid, [7, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(device(FEATURES | 2).0.profile().features, 3);
}

#[test]
fn reserved_contexts_are_refused() {
    for cid in [0, 2, u32::MAX] {
        let refused = KernelVsock::open(cid, &memory()).err().unwrap();
        assert_eq!(refused.to_string(), format!("cid {cid}, allowed: 3 to 4294967294"));
    }
}

#[test]
fn the_kernel_has_the_packets_and_the_queue_for_events_stays() {
    let (mut vsock, kernel, mem) = device(FEATURES);
    let handler = vsock.start(activation(&mem, [true; 3])).unwrap().remove(0);
    let worker = Worker::spawn("io-vsock", handler, Box::new(|error| panic!("{error}"))).unwrap();
    until(|| vsock.handles.metrics().starts.get() > 0);
    assert_eq!(worker.join().len(), 3);
    let asked = kernel.asked();
    assert_eq!(
        asked[0], "features 0x100000000",
        "streams are nothing that it is told of"
    );
    assert_eq!(asked.iter().filter(|asked| asked.starts_with("ring")).count(), 2);
}

#[test]
fn a_driver_needs_both_data_queues() {
    let (mut vsock, _, mem) = device(FEATURES);
    for (queues, missing) in [([false, true, true], 0), ([true, false, true], 1)] {
        let refused = vsock.start(activation(&mem, queues)).err();
        assert!(matches!(refused, Some(StartError::QueueMissing(queue)) if queue == missing));
    }
    assert_eq!(vsock.start(activation(&mem, [true, true, false])).unwrap().len(), 1);
}
