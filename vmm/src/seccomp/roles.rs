//! Roles, and what stands in a role's compiled filter for what only a running process knows.

/// Stands for the number of the process. No process has it.
pub(super) const ANY_PID: u32 = 0x8000_5ecc;
/// Stands for the action that meets a denied call.
pub(super) const DENIED: u32 = libc::SECCOMP_RET_TRAP;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The first thread: builds, changes and serves machines, and starts their vCPUs.
    Control,
    /// The first thread once there will be no other machine: serves this one and takes it apart.
    EventLoop,
    /// Starts the threads of devices.
    Spawner,
    /// Runs a vCPU.
    Vcpu,
    /// Brings the kernel into RAM.
    Loader,
    /// Serves the API's socket.
    Api,
    /// Serves a disk.
    Block,
    /// Serves a network device.
    Net,
    /// Serves persistent memory.
    Pmem,
    /// Serves vsock.
    Vsock,
    /// Has the kernel serve a network or vsock device.
    Vhost,
    /// Serves a share by vhost-user.
    Fs,
    /// Serves a share itself.
    Files,
    /// The whole process that serves a share to another one.
    FileServer,
    /// Serves virtio-mem.
    Mem,
    /// Serves a balloon.
    Balloon,
    /// Serves a device that moves bytes between the guest and a file that is open: console, entropy.
    Stream,
    /// Takes devices and machines apart for a first thread that may start no thread, and starts more threads that do.
    Closer,
    /// Writes a guest's output, the log or events to a file.
    Writer,
    /// Closes descriptors that clients of the API have passed.
    FdCloser,
}
