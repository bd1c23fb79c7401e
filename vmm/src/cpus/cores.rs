//! Core scheduling of vCPU threads (Linux, `admin-guide/hw-vuln/core-scheduling.rst`): what the
//! hardware threads of one core share, one guest cannot learn of another by, because the host never
//! runs threads of different cookies on one core at a time.
//!
//! The first vCPU's thread makes the cookie, and the others take it from there; hot-plugged ones
//! too, as the first vCPU is never unplugged.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;
use rustix::thread::{CoreSchedulingScope, Pid, create_core_scheduling_cookie, gettid, pull_core_scheduling_cookie};

use crate::config::CoreScheduling;

/// What a thread asks the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cookie {
    /// One that no other thread has.
    New,
    /// That of this thread.
    Of(Pid),
}

/// Who may share a core with the vCPUs of one VM.
#[derive(Clone)]
pub(super) struct Cores {
    mode: CoreScheduling,
    /// The first vCPU's thread, once it has its cookie.
    first: Arc<OnceLock<Pid>>,
    take: Take,
}

/// Gives the calling thread a cookie.
type Take = Arc<dyn Fn(Cookie) -> rustix::io::Result<()> + Send + Sync>;

impl Cores {
    pub(super) fn new(mode: CoreScheduling) -> Self {
        Self {
            mode,
            first: Arc::default(),
            take: Arc::new(take),
        }
    }

    /// Gives the calling thread, which is to run vCPU `id`, its cookie. The first vCPU's thread
    /// waits for none; others wait until it has called this.
    ///
    /// # Errors
    /// What the kernel says, unless it has no core scheduling (before Linux 5.14, or built without)
    /// or the host's cores have one thread each: then there is nothing to do.
    pub(super) fn join(&self, id: u32) -> io::Result<()> {
        let taken = match (self.mode, id) {
            (CoreScheduling::Off, _) => return Ok(()),
            (CoreScheduling::Vcpu, _) => (self.take)(Cookie::New),
            (CoreScheduling::Vm, 0) => {
                let made = (self.take)(Cookie::New);
                self.first.get_or_init(gettid);
                made
            }
            (CoreScheduling::Vm, _) => (self.take)(Cookie::Of(*self.first.wait())),
        };
        match taken {
            Err(Errno::INVAL | Errno::NODEV) => {
                log::debug!("vCPU {id}: the host has no core scheduling, or one hardware thread a core");
                Ok(())
            }
            taken => Ok(taken?),
        }
    }
}

impl fmt::Debug for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cores").field(&self.mode).finish()
    }
}

fn take(cookie: Cookie) -> rustix::io::Result<()> {
    match cookie {
        Cookie::New => create_core_scheduling_cookie(gettid(), CoreSchedulingScope::Thread),
        Cookie::Of(thread) => pull_core_scheduling_cookie(thread, CoreSchedulingScope::Thread),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::thread;

    use rustix::thread::core_scheduling_cookie;

    use super::*;

    /// Has threads of `ids` join at once, in whatever order: what each has asked for.
    fn joined(mode: CoreScheduling, ids: &[u32]) -> Vec<(Pid, Option<Cookie>)> {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let noted = taken.clone();
        let note = move |cookie| {
            noted.lock().unwrap().push((gettid(), cookie));
            Ok(())
        };
        let cores = Cores {
            take: Arc::new(note),
            ..Cores::new(mode)
        };
        let join = |id: &u32| {
            let (cores, id) = (cores.clone(), *id);
            thread::spawn(move || {
                cores.join(id).unwrap();
                gettid()
            })
        };
        let threads: Vec<_> = ids.iter().map(join).collect();
        let threads = threads.into_iter().map(|thread| thread.join().unwrap());
        let threads: Vec<Pid> = threads.collect();
        let taken = taken.lock().unwrap();
        let of = |thread: &Pid| {
            taken
                .iter()
                .rev()
                .find(|(by, _)| by == thread)
                .map(|(_, cookie)| *cookie)
        };
        threads.iter().map(|thread| (*thread, of(thread))).collect()
    }

    #[test]
    fn all_vcpus_of_a_vm_have_the_cookie_of_the_first_one() {
        let taken = joined(CoreScheduling::Vm, &[2, 1, 0]);
        let [second, first, (boot, made)] = taken[..] else {
            panic!("{taken:?}")
        };
        assert_eq!(made, Some(Cookie::New));
        assert_eq!((first.1, second.1), (Some(Cookie::Of(boot)), Some(Cookie::Of(boot))));
    }

    #[test]
    fn each_vcpu_has_a_cookie_of_its_own_or_none_as_is_said() {
        for (mode, cookie) in [(CoreScheduling::Vcpu, Some(Cookie::New)), (CoreScheduling::Off, None)] {
            for (_, taken) in joined(mode, &[1, 0]) {
                assert_eq!(taken, cookie, "{mode:?}");
            }
        }
    }

    #[test]
    fn a_host_without_core_scheduling_is_no_failure_and_another_answer_is_one() {
        let answered = |errno| {
            let cores = Cores {
                take: Arc::new(move |_| Err(errno)),
                ..Cores::new(CoreScheduling::Vcpu)
            };
            cores.join(0)
        };
        answered(Errno::INVAL).unwrap();
        answered(Errno::NODEV).unwrap();
        let refused = answered(Errno::NOMEM).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM));
    }

    /// Of threads that the host's scheduler really looks at.
    #[test]
    fn the_kernel_knows_which_threads_share_a_cookie() {
        let cookie = |thread| core_scheduling_cookie(thread, CoreSchedulingScope::Thread);
        if let Err(error) = cookie(gettid()) {
            println!("skipped: needs core scheduling: {error}");
            return;
        }
        let cookies = |mode| {
            let cores = Cores::new(mode);
            let join = |id| {
                let cores = cores.clone();
                thread::spawn(move || {
                    cores.join(id).unwrap();
                    cookie(gettid()).unwrap()
                })
            };
            // The first thread is there for as long as others need it.
            let (ready, go) = std::sync::mpsc::channel::<()>();
            let first = cores.clone();
            let boot = thread::spawn(move || {
                first.join(0).unwrap();
                let _ = go.recv();
                cookie(gettid()).unwrap()
            });
            let others = [join(1), join(2)].map(|thread| thread.join().unwrap());
            drop(ready);
            (boot.join().unwrap(), others)
        };
        let own = cookie(gettid()).unwrap();
        let (boot, others) = cookies(CoreScheduling::Vm);
        assert!(boot != 0 && boot != own);
        assert_eq!(others, [boot; 2]);
        let (boot, [one, other]) = cookies(CoreScheduling::Vcpu);
        assert!(boot != one && one != other && boot != other && one != 0);
        assert_eq!(cookies(CoreScheduling::Off), (own, [own; 2]));
    }
}
