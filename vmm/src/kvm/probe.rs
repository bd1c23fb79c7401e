//! What `/dev/kvm` says of itself, for `husk check`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::Kvm;

use super::{REQUIRED, create_vm, max_vcpus};

/// The answers of an open `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvmFacts {
    /// `KVM_GET_API_VERSION`.
    pub api_version: i32,
    /// Those of [`REQUIRED`] that this host lacks, by name.
    pub missing: Vec<&'static str>,
    /// The most vCPUs of one VM.
    pub max_vcpus: u32,
    /// Why no VM could be created, if so: the host's words.
    pub create_vm_error: Option<String>,
}

/// Opens the KVM device at `path`, asks it, creates an empty VM and lets everything go again.
///
/// # Errors
/// What opening `path` says.
pub fn probe(path: &Path) -> io::Result<KvmFacts> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let kvm = Kvm::new_with_path(path.as_c_str()).map_err(from_errno)?;
    Ok(KvmFacts {
        api_version: kvm.get_api_version(),
        missing: REQUIRED
            .iter()
            .filter(|(cap, _)| !kvm.check_extension(*cap))
            .map(|(_, name)| *name)
            .collect(),
        max_vcpus: max_vcpus(&kvm),
        create_vm_error: create_vm(|| kvm.create_vm())
            .err()
            .map(|errno| from_errno(errno).to_string()),
    })
}

fn from_errno(errno: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(errno.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = probe(&dir.path().join("kvm")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_file_that_is_no_kvm_has_none_of_the_capabilities() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let facts = probe(file.path()).unwrap();
        assert_ne!(facts.api_version, super::super::KVM_API_VERSION);
        assert_eq!(facts.missing.len(), REQUIRED.len());
        assert!(facts.create_vm_error.is_some());
    }
}
