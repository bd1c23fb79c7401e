//! A back-end for tests: does what the protocol says, or at one request whatever the test wants.
//! And guest RAM to share.

#![expect(unsafe_code, reason = "receiving descriptors")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::message::{HEADER_BYTES, Request};

/// Patience of front-ends in tests that provoke its end. Others have the usual one.
pub(crate) const IMPATIENT: Duration = Duration::from_millis(100);
/// `VERSION_1`, `RING_EVENT_IDX`, `RING_INDIRECT_DESC` and `PROTOCOL_FEATURES`.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
/// `MQ`, `REPLY_ACK`, `CONFIGURE_MEM_SLOTS`.
pub(crate) const PROTOCOL: u64 = 1 << 15 | 1 << 3 | 1;

/// Shared RAM: one region of 2 MiB from 0, and more of 1 MiB each at the addresses given.
pub(crate) fn shared_memory(more: &[u64]) -> GuestMemory {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    GuestMemory::new(regions_of(&Arc::new(file), more))
}

/// The same, in a file that lasts.
pub(crate) fn regions_of(file: &Arc<File>, more: &[u64]) -> GuestMemoryMmap {
    let at = |offset| Some(FileOffset::from_arc(file.clone(), offset));
    let mut ranges = vec![(GuestAddress(0), 2 << 20, at(0))];
    ranges.extend(more.iter().map(|gpa| (GuestAddress(*gpa), 1 << 20, at(*gpa))));
    GuestMemoryMmap::from_ranges_with_files(ranges).unwrap()
}

/// What a back-end does in place of answering.
#[derive(Clone, Debug)]
pub(crate) enum BackendAction {
    /// Says that it failed.
    Refuse(u64),
    /// Another number than the usual one.
    Number(u64),
    /// Leaves.
    Close,
    /// Waits for the front-end to leave.
    KeepSilent,
    /// Bytes of its own invention.
    Say(Vec<u8>),
    /// The right answer, byte by byte, each as late as possible.
    Drip,
    /// The right answer, to this request and all that follow, each after most of the time that
    /// there is for all of them.
    Dawdle,
    /// Says that it failed, from the second time on.
    RefuseLater(u64),
    /// The right answer, once the test says so.
    Finish(Arc<Mutex<Receiver<()>>>),
}

impl BackendAction {
    /// Whether only a limit in time ends it.
    pub fn is_slow(&self) -> bool {
        matches!(self, Self::KeepSilent | Self::Drip | Self::Dawdle)
    }
}

/// What a back-end can do to an eventfd that it shares: the next write blocks, and so would a read
/// once it has been emptied.
pub(crate) fn spoil(event: &EventFd) {
    // SAFETY: takes no memory.
    assert_eq!(unsafe { libc::fcntl(event.as_raw_fd(), libc::F_SETFL, 0) }, 0);
    event.write(u64::MAX - 1).unwrap();
}

/// A message as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub request: u32,
    pub payload: Vec<u8>,
    pub fds: usize,
}

/// What a back-end has heard, and what it was given.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub messages: Mutex<Vec<Message>>,
    /// By kick or call request and queue.
    pub events: Mutex<Vec<(u32, EventFd)>>,
    /// By queue, the next request that it would take.
    positions: Mutex<BTreeMap<u32, u32>>,
}

impl Heard {
    pub fn requests(&self) -> Vec<u32> {
        self.messages
            .lock()
            .unwrap()
            .iter()
            .map(|message| message.request)
            .collect()
    }

    /// Forgets and returns the messages.
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.messages.lock().unwrap())
    }

    /// Has the back-end have taken the requests of `queue` up to `position`.
    pub fn take_requests(&self, queue: u32, position: u32) {
        self.positions.lock().unwrap().insert(queue, position);
    }

    /// The descriptor that came last with `request`.
    pub fn event(&self, request: Request) -> EventFd {
        let events = self.events.lock().unwrap();
        let found = events.iter().rev().find(|(known, _)| *known == request as u32);
        found.unwrap().1.try_clone().unwrap()
    }
}

/// Serves `socket` on a thread of its own until the other end leaves.
pub(crate) fn serve(mut socket: UnixStream, action: Option<(Request, BackendAction)>) -> Arc<Heard> {
    let heard = Arc::<Heard>::default();
    let ears = heard.clone();
    thread::spawn(move || {
        let (mut dawdles, mut times) = (false, 0);
        while let Some((wants_answer, message)) = receive(&mut socket, &ears) {
            let request = message.request;
            let usual = answer_to(&message, &ears).or(wants_answer.then_some(0));
            ears.messages.lock().unwrap().push(message);
            let now = action.as_ref().filter(|(at, _)| *at as u32 == request);
            times += usize::from(now.is_some());
            dawdles |= now.is_some_and(|(_, action)| matches!(action, BackendAction::Dawdle));
            if dawdles {
                thread::sleep(IMPATIENT * 4 / 5);
            }
            match now.map(|(_, action)| action.clone()) {
                Some(BackendAction::RefuseLater(number)) if times > 1 => say(&mut socket, request, number),
                Some(BackendAction::Finish(said)) => {
                    let _ = said.lock().unwrap().recv();
                    usual.into_iter().for_each(|number| say(&mut socket, request, number));
                }
                None | Some(BackendAction::Dawdle | BackendAction::RefuseLater(_)) => {
                    usual.into_iter().for_each(|number| say(&mut socket, request, number))
                }
                Some(BackendAction::Refuse(number) | BackendAction::Number(number)) => {
                    say(&mut socket, request, number)
                }
                Some(BackendAction::Close) => return,
                Some(BackendAction::Say(bytes)) => socket.write_all(&bytes).unwrap(),
                Some(BackendAction::Drip) => {
                    for byte in answer(request, usual.unwrap_or(0)) {
                        thread::sleep(IMPATIENT / 4);
                        let _ = socket.write_all(&[byte]);
                    }
                }
                Some(BackendAction::KeepSilent) => {}
            }
        }
    });
    heard
}

fn receive(socket: &mut UnixStream, heard: &Heard) -> Option<(bool, Message)> {
    let mut header = [0; HEADER_BYTES];
    let mut fds = [-1; 8];
    let mut iovecs = [libc::iovec {
        iov_base: header.as_mut_ptr().cast(),
        iov_len: header.len(),
    }];
    // SAFETY: the kernel writes at most the header's length to it, during the call only.
    let (bytes, count) = unsafe { socket.recv_with_fds(&mut iovecs, &mut fds) }.ok()?;
    // SAFETY: the descriptors were just received and belong to nobody else.
    let files: Vec<File> = fds[..count]
        .iter()
        .map(|fd| unsafe { File::from_raw_fd(*fd) })
        .collect();
    if bytes < HEADER_BYTES {
        return None;
    }
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; usize::try_from(word(8)).unwrap()];
    socket.read_exact(&mut payload).ok()?;
    let request = word(0);
    if [Request::SetVringKick as u32, Request::SetVringCall as u32].contains(&request) {
        // SAFETY: the file gives its descriptor up.
        let events = files
            .iter()
            .map(|file| (request, unsafe { EventFd::from_raw_fd(libc::dup(file.as_raw_fd())) }));
        heard.events.lock().unwrap().extend(events);
    }
    let message = Message {
        request,
        payload,
        fds: count,
    };
    Some((word(4) & 8 != 0, message))
}

fn answer_to(message: &Message, heard: &Heard) -> Option<u64> {
    let ring = || {
        let (index, position) = message.payload.split_at(4);
        [index, position].map(|bytes| u32::from_ne_bytes(bytes.try_into().unwrap()))
    };
    let is = |request: Request| message.request == request as u32;
    match () {
        () if is(Request::GetFeatures) => Some(FEATURES),
        () if is(Request::GetProtocolFeatures) => Some(PROTOCOL),
        () if is(Request::GetQueueNum) => Some(4),
        () if is(Request::GetMaxMemSlots) => Some(32),
        () if is(Request::SetVringBase) => {
            let [index, position] = ring();
            heard.take_requests(index, position);
            None
        }
        () if is(Request::GetVringBase) => {
            let index = ring()[0];
            let position = heard.positions.lock().unwrap().get(&index).copied().unwrap_or(0);
            Some(u64::from(index) | u64::from(position) << 32)
        }
        () => None,
    }
}

fn say(socket: &mut UnixStream, request: u32, number: u64) {
    // A front-end that has left does not mind.
    let _ = socket.write_all(&answer(request, number));
}

/// An answer as it should be.
pub(crate) fn answer(request: u32, number: u64) -> Vec<u8> {
    let words = [request, 5, 8].map(u32::to_ne_bytes).concat();
    [&words[..], &number.to_ne_bytes()].concat()
}
