//! `husk ctl container …`: a pod that grows and shrinks with its containers.
//!
//! A container is noted first, and then the VM is brought to the size that all noted ones need. The request names the
//! revision of the list that the size was made of, and husk refuses it if there is a later one: no client takes back
//! what another one's container has been given meanwhile. A container that does not come to its size is taken from the
//! list again, and what came of the size is given back.

use std::thread;
use std::time::{Duration, Instant};

use husk_hotplug::sizing::resources::CpuTime;
use husk_hotplug::sizing::{Change, PodSize, Shim, Sizing, SizingError};
use serde_json::{Value, json};

use super::client::{Client, ClientError};
use super::container_list::{ContainerList, ContainerListError, revision};
use super::resize::{ResizeError, TargetSize, resize_of, state};
use super::show::table;
use super::status::Status;
use crate::config::Size;
use crate::pod::{LinuxResources, Node, PodBaseSize, PodContainers, PodError, Policy, Spec};

/// Between two looks at a resize that another one came before.
const PAUSE: Duration = Duration::from_millis(10);
/// How long others may come before at least, also one that does not wait for its size.
const UNREST: Duration = Duration::from_secs(1);

/// In what memory is asked for: in which blocks it comes is known to husk, which rounds up.
const BYTE: u64 = 1;

/// Why a container was not added, updated or removed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Its `config.json` makes none.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// There is one of this id.
    #[error("container {0} is there already: update it, or remove it first")]
    Exists(String),
    /// There is none.
    #[error("there is no container {id}, there are: {known}")]
    Unknown {
        /// The id.
        id: String,
        /// The others.
        known: String,
    },
    /// Nothing can come to a VM without a running guest.
    #[error("the VM is {0}, its guest has to run")]
    NotRunning(String),
    /// The list.
    #[error(transparent)]
    List(#[from] ContainerListError),
    /// The sum is too large.
    #[error("the pod cannot be large enough")]
    Sizing(#[from] SizingError),
    /// The VM did not come to its size.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The list changed again and again.
    #[error("others change the pod all the time")]
    Unsettled,
}

impl From<ClientError> for ContainerError {
    fn from(error: ClientError) -> Self {
        Self::Resize(error.into())
    }
}

/// A container's `config.json`, held against the node and its policy.
#[derive(Clone, Debug)]
pub struct Container {
    spec: Spec,
    node: Node,
}

impl Container {
    /// Checks `spec`.
    ///
    /// # Errors
    /// An annotation is not enabled, unknown, or says what this host does not have.
    pub fn new(spec: Spec, policy: &Policy, node: Node) -> Result<Self, PodError> {
        policy.check(spec.annotations())?;
        let mut sizing = Sizing::new(Shim::Rust, node.vcpus, node.memory_bytes);
        sizing.annotate(spec.annotations())?;
        sizing.workload(spec.annotations())?;
        Ok(Self { spec, node })
    }

    /// What the pod has without containers, if this is the first of them ever and the VM is as `status` says.
    fn base(&self, status: &Status) -> Result<PodBaseSize, PodError> {
        let mut sizing = Sizing {
            default_vcpus: CpuTime::from_vcpus(status.vcpus_now()),
            default_memory_bytes: status.memory_now(),
            ..Sizing::new(Shim::Rust, self.node.vcpus, self.node.memory_bytes)
        };
        sizing.annotate(self.spec.annotations())?;
        Ok(PodBaseSize {
            default_vcpus: sizing.default_vcpus.to_string(),
            max_vcpus: sizing.max_vcpus,
            default_memory_bytes: sizing.default_memory_bytes,
            least_vcpus: 0,
            is_orphaned: false,
        })
    }
}

/// Makes room for a container, and returns when it is there.
///
/// # Errors
/// There is one of this id, there is no room, or the VM does not come to the size; the list is as it was then.
pub fn add(client: &mut Client, id: &str, container: &Container, wait: Duration) -> Result<Status, ContainerError> {
    runs(client)?;
    let status = Status::ask(client)?;
    let base = container.base(&status)?;
    let mut made_base = false;
    ContainerList::change(client, |list| {
        if list.containers.contains_key(id) {
            return Err(ContainerError::Exists(id.into()));
        }
        // Once: a guest that keeps what a container had has it in its size.
        made_base = list.pod.is_none();
        list.pod.get_or_insert_with(|| base.clone());
        list.containers.insert(id.into(), container.spec.resources());
        wanted(list, &status, Change::Add)?;
        Ok(())
    })?;
    settle(client, Change::Add, wait)
        .inspect_err(|_| take_back(client, Change::Exit, |list| list.undo_add(id, made_base)))
}

/// Gives a container other limits, and returns when they are there.
///
/// # Errors
/// There is none of this id, there is no room, or the VM does not come to the size; the list is as it was then.
pub fn update(client: &mut Client, id: &str, container: &Container, wait: Duration) -> Result<Status, ContainerError> {
    runs(client)?;
    let status = Status::ask(client)?;
    let mut before = LinuxResources::default();
    ContainerList::change(client, |list| {
        before = std::mem::replace(find(list, id)?, container.spec.resources());
        wanted(list, &status, Change::Update)?;
        Ok::<_, ContainerError>(())
    })?;
    // One that stays may need more than the VM has by now.
    settle(client, Change::Update, wait).inspect_err(|_| {
        take_back(client, Change::Update, |list| {
            // Unless it has ended meanwhile.
            if let Some(noted) = list.containers.get_mut(id) {
                noted.clone_from(&before);
            }
        });
    })
}

/// Forgets a container, and takes back what it had; of a paused guest that is asked for and not waited for.
///
/// # Errors
/// There is none of this id, or the VM does not come to the size. It is forgotten then: it has ended.
pub fn remove(client: &mut Client, id: &str, wait: Duration) -> Result<Status, ContainerError> {
    let wait = match state(client)?.as_str() {
        "Running" => wait,
        "Paused" => Duration::ZERO,
        other => return Err(ContainerError::NotRunning(other.into())),
    };
    ContainerList::change(client, |list| {
        find(list, id)?;
        list.containers.remove(id);
        Ok::<_, ContainerError>(())
    })?;
    settle(client, Change::Exit, wait)
}

/// Every container with what it asks for: for programs, and for people.
///
/// # Errors
/// There is no VM, no answer, or no list of ours.
pub fn list(client: &mut Client) -> Result<(Value, String), ContainerError> {
    let list = ContainerList::read(client)?.list;
    let mut rows = vec![["container", "vcpus", "cpuset", "memory"].map(str::to_owned).to_vec()];
    for (id, resources) in &list.containers {
        let sized = resources.sized().unwrap_or_default();
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        rows.push(vec![
            id.clone(),
            or_none(sized.cpu_time().map(|time| time.to_string())),
            or_none((!sized.cpus.is_empty()).then(|| sized.cpus.len().to_string())),
            or_none((sized.memory_bytes() > 0).then(|| Size(sized.memory_bytes()).to_string())),
        ]);
    }
    Ok((json!(list), table(&rows)))
}

fn runs(client: &mut Client) -> Result<(), ContainerError> {
    match state(client)?.as_str() {
        "Running" => Ok(()),
        other => Err(ContainerError::NotRunning(other.into())),
    }
}

fn find<'a>(list: &'a mut PodContainers, id: &str) -> Result<&'a mut LinuxResources, ContainerError> {
    let known: Vec<String> = list.containers.keys().cloned().collect();
    list.containers.get_mut(id).ok_or_else(|| ContainerError::Unknown {
        id: id.into(),
        known: if known.is_empty() {
            "none".into()
        } else {
            known.join(", ")
        },
    })
}

/// Brings the VM to the size of the list, until the list has not changed meanwhile.
fn settle(client: &mut Client, change: Change, wait: Duration) -> Result<Status, ContainerError> {
    let begin = Instant::now();
    loop {
        let kept = ContainerList::read(client)?;
        let now = Status::ask(client)?;
        let wanted = wanted(&kept.list, &now, change)?;
        // What is left, and not nothing unless that was asked for.
        let left = wait.saturating_sub(begin.elapsed()).max(PAUSE.min(wait));
        match fit(client, wanted, &now, kept.revision, left) {
            Ok(status) if revision(client)? == kept.revision => return Ok(status),
            // Another list, or another size, has taken its place.
            Err(ResizeError::Client(error)) if error.status() == Some(409) => {}
            Ok(_) | Err(ResizeError::Superseded) => {}
            Err(ResizeError::Late { missing, hint, .. }) => {
                let seconds = wait.as_secs_f64();
                return Err(ResizeError::Late { seconds, missing, hint }.into());
            }
            Err(error) => return Err(error.into()),
        }
        if begin.elapsed() > wait.max(UNREST) {
            return Err(ContainerError::Unsettled);
        }
        thread::sleep(PAUSE);
    }
}

/// Asks for what the containers of the list of this `revision` need, and then for memory that none of them needs: what
/// a guest cannot give back keeps no container from its size.
fn fit(
    client: &mut Client,
    wanted: TargetSize,
    now: &Status,
    revision: u64,
    wait: Duration,
) -> Result<Status, ResizeError> {
    let begin = Instant::now();
    let (asked, present) = (now.memory_now(), now.memory.present_bytes);
    let has_less = |bytes: u64| bytes > asked || present.is_some_and(|present| bytes > present);
    let needed = TargetSize {
        // What is on its way is not asked back before it is there: others may wait for it.
        memory_bytes: wanted
            .memory_bytes
            .filter(|bytes| has_less(*bytes))
            .map(|bytes| bytes.max(asked)),
        ..wanted
    };
    let status = ask_for(client, needed, revision, wait)?;
    let Some(bytes) = wanted.memory_bytes.filter(|bytes| *bytes < asked) else {
        return Ok(status);
    };
    let rest = TargetSize {
        memory_bytes: Some(bytes),
        ..TargetSize::default()
    };
    ask_for(client, rest, revision, wait.saturating_sub(begin.elapsed()))
}

fn ask_for(client: &mut Client, wanted: TargetSize, revision: u64, wait: Duration) -> Result<Status, ResizeError> {
    match resize_of(client, wanted, wait, Some(revision)) {
        Err(error) => {
            let now = Status::ask(client)?;
            if wanted.is_there_despite(&error, &now) {
                Ok(now)
            } else {
                Err(error)
            }
        }
        done => done,
    }
}

/// Has the list be what it was, by `undo`, and asks for that size without waiting for it. What fails here is told by
/// the error that led here.
fn take_back(client: &mut Client, change: Change, mut undo: impl FnMut(&mut PodContainers)) {
    let undone = ContainerList::change(client, |list| {
        undo(list);
        Ok::<_, ContainerError>(())
    });
    if undone.is_ok() {
        let _ = settle(client, change, Duration::ZERO);
    }
}

/// The size that the containers of `list` need, in a VM of the size `status`.
fn wanted(list: &PodContainers, status: &Status, change: Change) -> Result<TargetSize, SizingError> {
    let now = PodSize {
        vcpus: status.vcpus_now(),
        max_vcpus: status.vcpus.max.unwrap_or_else(|| status.vcpus_now()),
        memory_bytes: status.memory_now(),
    };
    let all = Sizing::new(Shim::Rust, now.max_vcpus, status.most_bytes());
    let sizing = match &list.pod {
        Some(base) => Sizing {
            default_vcpus: base.vcpus(),
            max_vcpus: base.max_vcpus,
            default_memory_bytes: base.default_memory_bytes,
            ..all
        },
        None => Sizing {
            default_memory_bytes: status.boot_bytes(),
            ..all
        },
    };
    let size = sizing.fitted(now, &list.resources(), change, status.boot_bytes(), BYTE)?;
    // The limits of a pod's boot are its containers' already.
    let least = list.pod.as_ref().map_or(0, |base| base.least_vcpus).min(now.max_vcpus);
    Ok(TargetSize {
        vcpus: Some(size.vcpus.max(least)),
        memory_bytes: Some(size.memory_bytes),
        balloon_bytes: None,
    })
}

#[cfg(test)]
#[path = "containers_test.rs"]
mod tests;
