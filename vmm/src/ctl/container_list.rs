//! The list of a VM's containers, which its husk keeps for us: `vm.containers` and `vm.set-containers`.

use serde::Deserialize;
use serde_json::json;

use super::client::{Client, ClientError};
use crate::pod::PodContainers;

/// How often a change is tried again that others have come before.
const TRIES: u32 = 100;

/// Why the list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ContainerListError {
    /// It was not answered.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Somebody else keeps something else there.
    #[error("the list of containers is another client's")]
    Foreign(#[source] serde_json::Error),
}

/// The list, and which one it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerList {
    /// How often it has been changed.
    pub revision: u64,
    /// The containers, and the size of the pod without them.
    pub list: PodContainers,
}

#[derive(Deserialize)]
struct Answer {
    revision: u64,
    containers: Option<PodContainers>,
}

impl ContainerList {
    /// Reads it.
    ///
    /// # Errors
    /// There is no VM, no answer, or no list of ours.
    pub fn read(client: &mut Client) -> Result<Self, ContainerListError> {
        let answer: Answer =
            serde_json::from_value(client.get("vm.containers")?).map_err(ContainerListError::Foreign)?;
        Ok(Self {
            revision: answer.revision,
            list: answer.containers.unwrap_or_default(),
        })
    }

    /// Changes it by `edit`, which is asked again when somebody else has changed it meanwhile.
    ///
    /// # Errors
    /// What `edit` says; or as [`ContainerList::read`].
    pub fn change<E: From<ContainerListError>>(
        client: &mut Client,
        mut edit: impl FnMut(&mut PodContainers) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut tries = 0;
        loop {
            let mut kept = Self::read(client)?;
            edit(&mut kept.list)?;
            let body = json!({"revision": kept.revision, "containers": kept.list});
            match client.put("vm.set-containers", Some(&body)) {
                Err(error) if error.status() == Some(409) && tries < TRIES => tries += 1,
                answer => return answer.map(drop).map_err(|e| ContainerListError::from(e).into()),
            }
        }
    }
}

/// Which list it is now.
///
/// # Errors
/// There is no VM, or no answer.
pub fn revision(client: &mut Client) -> Result<u64, ClientError> {
    Ok(client.get("vm.containers")?["revision"].as_u64().unwrap_or_default())
}
