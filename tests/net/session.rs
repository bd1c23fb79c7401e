//! A guest with a shell and a network device, and streams between it and the host.

use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use husk_guest::traffic::{self, Content, Traffic};
use husk_guest::{Answer, Step};
use husk_tests::tap::{Tap, own_network};
use husk_tests::{Boot, Guest, Image};

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const PREFIX: &str = "10.0.0.1/24";

/// Gives the guest's interface its address.
pub const SET_UP: &str = "ip link set eth0 up && ip addr add 10.0.0.2/24 dev eth0";

/// Bytes of a stream. `HUSK_TEST_NET_MIB` has another number, such as 1024.
pub fn stream_bytes() -> u64 {
    let mebibytes = std::env::var("HUSK_TEST_NET_MIB").map_or(Ok(16), |text| text.parse::<u64>());
    mebibytes.unwrap() << 20
}

/// A network of the test's own; `false` if this user may not have one.
pub fn network() -> bool {
    let allowed = own_network().is_ok();
    if !allowed {
        println!("skipped: needs a network namespace");
    }
    allowed
}

/// A guest with a shell, its network device given by `net`.
pub fn boot(net: &str) -> Boot {
    Boot::new([Step::Shell, Step::PowerOff])
        .pod_image()
        .arguments(["--net", net])
}

/// A guest whose shell is ready, its interface up.
pub struct Session(pub Guest);

impl Session {
    pub fn start(boot: Boot) -> Self {
        let mut session = Self(boot.start());
        assert_eq!(session.0.answer(), Answer::Listening);
        session.sh(SET_UP);
        session
    }

    /// Has the guest's shell run `line`; its exit code and what it wrote.
    pub fn run(&mut self, line: &str) -> (i32, String) {
        self.0.type_text(&format!("{line}\n"));
        match self.0.answer() {
            Answer::Ran { code, output } => (code, output),
            other => panic!("`{line}`: {other:?}"),
        }
    }

    /// The same of a line that must succeed.
    pub fn sh(&mut self, line: &str) -> String {
        let (code, output) = self.run(line);
        assert_eq!(code, 0, "`{line}`: {output}");
        output
    }

    /// Ends the guest.
    pub fn end(mut self) {
        self.0.type_text("end\n");
        self.0.wait().assert_code(0).assert_nothing_refused();
    }

    /// As [`upload`].
    pub fn upload(&mut self, port: u16, bytes: u64) -> Traffic {
        upload(&mut |line| self.sh(line), port, bytes)
    }

    /// As [`download`].
    pub fn download(&mut self, port: u16, bytes: u64) -> Traffic {
        download(&mut |line| self.sh(line), port, bytes)
    }
}

/// A stream from the guest, whose shell is `sh`, to the host arrives as it was sent.
pub fn upload(sh: &mut dyn FnMut(&str) -> String, port: u16, bytes: u64) -> Traffic {
    let listener = TcpListener::bind((HOST, port)).unwrap();
    let host = thread::spawn(move || traffic::receive_from(&listener, true).unwrap());
    let sent = sh(&format!("/init net send {HOST} {port} {bytes} {port}"));
    let sent: Traffic = serde_json::from_str(&sent).unwrap();
    let received = host.join().unwrap();
    assert_eq!((sent.bytes, sent.checksum), (received.bytes, received.checksum));
    assert_eq!(received.bytes, bytes);
    sent
}

/// A stream from the host to the guest arrives as it was sent.
pub fn download(sh: &mut dyn FnMut(&str) -> String, port: u16, bytes: u64) -> Traffic {
    let seed = u64::from(port);
    let host = thread::spawn(move || traffic::send((GUEST, port), bytes, Content::Pattern(seed)).unwrap());
    let received = sh(&format!("/init net receive {port} look"));
    let received: Traffic = serde_json::from_str(&received).unwrap();
    let sent = host.join().unwrap();
    assert_eq!((sent.bytes, sent.checksum), (received.bytes, received.checksum));
    assert_eq!(sent.bytes, bytes);
    received
}

/// A guest of the older kernel uses the device given by `net`, and its driver leaves it and comes again.
pub fn a_driver_comes_again(net: &str) {
    let _tap = Tap::new("t0", false, PREFIX);
    let mut guest = Session::start(boot(net).kernel("6.1", Image::BzImage));
    guest.upload(5001, stream_bytes() / 4);
    for round in 0..3 {
        guest.sh(
            "cd /sys/bus/virtio/drivers/virtio_net && dev=$(ls -d virtio*) && echo $dev >unbind && echo $dev >bind",
        );
        guest.sh(SET_UP);
        guest.sh("ping -c 2 -w 60 10.0.0.1");
        guest.download(5002 + round, 1 << 20);
    }
    guest.end();
}
