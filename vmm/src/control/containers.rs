//! `vm.containers` and `vm.set-containers`: what clients note of the containers in a VM, kept with the VM and read by nobody here.
//!
//! A writer names the revision that it has read, so that of two who change the list at once one is told. Containers end with the guest
//! that they run in: its list does, too.

use serde_json::Value;

use super::{Controller, conflict, existing};
use crate::api::{Containers, Outcome, Reply};

impl Controller {
    pub(super) fn containers(&mut self) -> Outcome {
        let noted = existing(&mut self.vm)?.containers.clone();
        Ok(Reply::Json(noted.into()))
    }

    pub(super) fn set_containers(&mut self, wanted: Containers) -> Outcome {
        let noted = &mut existing(&mut self.vm)?.containers;
        if wanted.revision != noted.revision {
            let (read, present) = (wanted.revision, noted.revision);
            return Err(conflict(format!(
                "the list of containers has changed: revision {read} was read, it is {present} now"
            )));
        }
        noted.replace(wanted.containers);
        Ok(Reply::Done)
    }
}

impl Containers {
    /// From now on `containers` is what is noted.
    pub(super) fn replace(&mut self, containers: Value) {
        self.revision = self.revision.wrapping_add(1);
        self.containers = containers;
    }
}
