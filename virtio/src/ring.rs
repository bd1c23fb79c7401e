//! One virtqueue at run time: ring, kick, call and memory together (virtio 1.2 §2.7).
//!
//! Notification suppression, the used ring and the interrupt are handled here and nowhere else; a device is a closure given to
//! [`Ring::drain`], or, where requests complete out of order, a user of [`Ring::pop`] and [`Ring::push`].
