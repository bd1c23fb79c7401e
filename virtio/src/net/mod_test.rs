use virtio_bindings::virtio_net::VIRTIO_NET_F_CTRL_MAC_ADDR;

use husk_devices::testing::until;

use super::*;
use crate::ring::Notify;
use crate::testing::{Buf, Driver, memory};
use crate::vhost::testing::{FEATURES, FakeKernel};
use crate::worker::Worker;

fn net(config: NetConfig) -> Net {
    let taps = (0..config.pairs).map(|_| Tap::fake(tempfile::tempfile().unwrap().into()));
    let taps = taps.collect();
    Net::new(config, taps)
}

fn several(pairs: u16) -> NetConfig {
    NetConfig {
        pairs,
        ..NetConfig::new([2, 0, 0, 0, 0, 1])
    }
}

fn activation(features: u64, queues: &[bool]) -> Activation {
    let mem = memory();
    let ring = |(number, enabled): (usize, &bool)| {
        enabled.then(|| Driver::new(&mem, 0x1000 + 0x1000 * number as u64, 8).ring())
    };
    Activation {
        mem: mem.clone(),
        features,
        rings: queues.iter().enumerate().map(ring).collect(),
        config_changed: Notify::none(),
    }
}

#[test]
fn a_device_has_two_queues_a_pair_and_one_for_commands() {
    let profile = net(several(3)).profile();
    assert_eq!(profile.queue_sizes, [256, 256, 256, 256, 256, 256, 16]);
    assert_eq!((profile.id, profile.class), (1, 0x02_00_00));
    assert!(has(profile.features, VIRTIO_NET_F_MQ));
    assert!(!has(net(several(1)).profile().features, VIRTIO_NET_F_MQ));
}

#[test]
fn the_configuration_space_says_what_there_is() {
    let net = net(NetConfig {
        mtu: Some(9000),
        ..several(2)
    });
    let mut bytes = [0xff; 14];
    net.config().lock().unwrap().read(0, &mut bytes);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x28, 0x23, 0, 0]);
}

#[test]
fn only_what_was_agreed_on_holds_for_frames() {
    let net = net(NetConfig {
        mtu: Some(1400),
        ..several(1)
    });
    let agreed = 1 << VIRTIO_NET_F_MRG_RXBUF | 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_MTU;
    let terms = |mergeable, checksums, mtu| RxTerms {
        mergeable,
        checksums,
        mtu,
    };
    assert_eq!(net.terms(agreed), terms(true, true, Some(1400)));
    assert_eq!(net.terms(0), terms(false, false, None));
}

#[test]
fn a_handler_serves_each_pair_that_is_complete() {
    let handlers = |pairs, features, queues: &[bool]| {
        net(several(pairs))
            .start(activation(features, queues))
            .map(|handlers| handlers.len())
    };
    assert_eq!(handlers(1, 0, &[true, true, false]).unwrap(), 1);
    assert_eq!(
        handlers(3, 1 << VIRTIO_NET_F_MQ, &[true, true, true, false, true, true, false]).unwrap(),
        2
    );
    for queues in [[true, false, true], [false, true, true]] {
        assert!(matches!(handlers(1, 0, &queues), Err(StartError::QueueMissing(_))));
    }
}

#[test]
fn receive_queues_look_at_memory_that_was_removed() {
    let mut net = net(several(2));
    let mut activation = activation(1 << VIRTIO_NET_F_MQ, &[true; 5]);
    let doorbells: Vec<_> = activation.rings.iter().flatten().map(Ring::doorbell).collect();
    let mem = activation.mem.clone();
    activation.rings[4] = None;
    let _handlers = net.start(activation).unwrap();
    let listener = net.memory_listener().unwrap();
    listener.memory_added(&mem, Instant::now()).unwrap();
    assert!(doorbells.iter().all(|doorbell| doorbell.read().is_err()));
    listener.memory_removed(&mem).unwrap();
    let rung: Vec<_> = doorbells.iter().map(|doorbell| doorbell.read().is_ok()).collect();
    assert_eq!(rung, [true, false, true, false, false]);
}

#[test]
fn commands_come_after_the_pairs_that_the_driver_knows_of() {
    let net = net(several(3));
    assert_eq!(net.control_index(1 << VIRTIO_NET_F_MQ), 6);
    assert_eq!(net.control_index(0), 2);
    let control = |features| {
        let mut activation = activation(features, &[true; 7]);
        net.control(&mut activation).map(|control| {
            control.stop();
        })
    };
    assert!(control(1 << VIRTIO_NET_F_CTRL_VQ).is_some());
    assert!(control(0).is_none());
}

/// A device of `pairs` pairs whose frames move handles that have `features`.
fn by_kernel(pairs: u16, features: u64) -> (Net, Vec<Arc<FakeKernel>>) {
    let handles: Vec<_> = (0..pairs).map(|_| FakeKernel::new(features)).collect();
    let link = FakeKernel::handles(&handles, &memory());
    (net(several(pairs)).with_kernel(link), handles)
}

#[test]
fn what_the_kernel_cannot_do_is_not_offered() {
    let merges = 1 << VIRTIO_NET_F_MRG_RXBUF;
    let offered = |features| by_kernel(1, features).0.profile().features;
    assert_eq!(offered(FEATURES), net(several(1)).profile().features);
    assert_eq!(offered(FEATURES) & !offered(FEATURES & !merges), merges);
}

#[test]
fn the_kernel_has_each_pair_that_is_complete_and_commands_stay() {
    let (mut net, handles) = by_kernel(3, FEATURES);
    let features = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
    let queues = [true, true, true, false, true, true, true];
    let mut handlers = net.start(activation(features, &queues)).unwrap();
    assert_eq!(handlers.len(), 1);
    let on_failure = Box::new(|error| panic!("{error}"));
    let worker = Worker::spawn("io-net", handlers.remove(0), on_failure).unwrap();
    until(|| net.metrics_source().metrics()[0] == ("starts", 1));
    assert_eq!(worker.join().len(), 5);
    let lent = handles.iter().map(|handle| handle.asked().contains(&"run true".into()));
    assert_eq!(lent.collect::<Vec<_>>(), [true, false, true]);
    let missing = net.start(activation(features, &[true, false, true, true]));
    assert!(matches!(missing, Err(StartError::QueueMissing(1))));
}

#[test]
fn commands_are_carried_out_while_the_kernel_has_the_rest() {
    let (mut net, _) = by_kernel(1, FEATURES);
    let mem = memory();
    let mut drivers = [0x1000u64, 0x2000, 0x3000].map(|base| Driver::new(&mem, base, 8));
    // Class 1, command 1: the address.
    drivers[2].write(0x8000, &[1, 1, 2, 0, 0, 0, 0, 9]);
    drivers[2].add(&[Buf::Out(0x8000, 8), Buf::In(0x9000, 1)]);
    let activation = Activation {
        mem,
        features: 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR,
        rings: drivers.iter().map(|driver| Some(driver.ring())).collect(),
        config_changed: Notify::none(),
    };
    let handler = net.start(activation).unwrap().remove(0);
    let worker = Worker::spawn("io-net", handler, Box::new(|error| panic!("{error}"))).unwrap();
    drivers[2].kick.write(1).unwrap();
    let carried_out = || net.metrics_source().metrics().contains(&("control_commands", 1));
    until(carried_out);
    worker.join();
    assert_eq!(drivers[2].take_used(), Some((0, 1)));
    assert_eq!(drivers[2].read(0x9000, 1), [0]);
    let mut mac = [0; 6];
    net.config().lock().unwrap().read(0, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
}
