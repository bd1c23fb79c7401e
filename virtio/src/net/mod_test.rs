use super::*;
use crate::ring::Notify;
use crate::testing::{Driver, memory};

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
