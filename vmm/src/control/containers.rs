//! `vm.containers` and `vm.set-containers`: what clients note of the containers in a VM, kept with
//! the VM and read by nobody here.
//!
//! A writer names the revision that it has read, so that of two who change the list at once one is told. So does a
//! `vm.resize` whose size was made of the list: one that another list has overtaken is not asked for. Containers end
//! with the guest that they run in: its list does, too.

use super::{ApiError, Controller, conflict, existing};
use crate::api::{Containers, JsonText, Outcome, Reply};

impl Controller {
    pub(super) fn containers(&mut self) -> Outcome {
        let noted = &existing(&mut self.vm)?.containers;
        Ok(Reply::Containers(noted.clone()))
    }

    pub(super) fn set_containers(&mut self, wanted: Containers) -> Outcome {
        let noted = &mut existing(&mut self.vm)?.containers;
        noted.check(wanted.revision)?;
        noted.replace(wanted.containers);
        Ok(Reply::Done)
    }
}

impl Containers {
    /// Whether a client that has read revision `read` knows what is noted.
    ///
    /// # Errors
    /// It has been changed since.
    pub(super) fn check(&self, read: u64) -> Result<(), ApiError> {
        let present = self.revision;
        if read == present {
            return Ok(());
        }
        Err(conflict(format!(
            "the list of containers has changed: revision {read} was read, it is {present} now"
        )))
    }

    /// From now on `containers` is what is noted.
    pub(super) fn replace(&mut self, containers: JsonText) {
        self.revision = self.revision.wrapping_add(1);
        self.containers = containers;
    }
}
