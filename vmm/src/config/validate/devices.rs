//! What a device that comes and goes can get wrong in itself.

use husk_virtio::block::is_serial;
use husk_virtio::net::check_tap_name;
use husk_virtio::vsock::CIDS;

use super::super::error::ConfigError;
use super::super::path;
use super::super::{Backend, DiskConfig, NetConfig, PmemConfig, VsockConfig};
use super::{MAX_DISK_QUEUES, MAX_NET_PAIRS, MIN_MTU, PMEM_UNIT_BYTES, QUEUE_SIZES};

impl DiskConfig {
    pub(in crate::config) fn validate(&self) -> Result<(), ConfigError> {
        let disk = || self.path.display().to_string();
        path::file("disk", &self.path)?;
        if let Some(found) = self.serial.as_ref().filter(|serial| !is_serial(serial)) {
            return Err(ConfigError::Serial {
                disk: disk(),
                found: found.escape_debug().to_string(),
            });
        }
        if !(1..=MAX_DISK_QUEUES).contains(&self.num_queues) {
            return Err(ConfigError::Queues {
                disk: disk(),
                found: self.num_queues,
            });
        }
        if !self.queue_size.is_power_of_two() || !QUEUE_SIZES.contains(&self.queue_size) {
            return Err(ConfigError::QueueSize {
                disk: disk(),
                found: self.queue_size,
            });
        }
        Ok(())
    }
}

impl NetConfig {
    pub(in crate::config) fn validate(&self) -> Result<(), ConfigError> {
        let net = || self.tap.clone().unwrap_or_else(|| self.mac.to_string());
        let found = self.num_queues;
        if !found.is_multiple_of(2) || !(1..=MAX_NET_PAIRS).contains(&(found / 2)) {
            return Err(ConfigError::NetQueues { net: net(), found });
        }
        let found = self.queue_size;
        if !found.is_power_of_two() || !QUEUE_SIZES.contains(&found) {
            return Err(ConfigError::NetQueueSize { net: net(), found });
        }
        if let Some(tap) = &self.tap {
            check_tap_name(tap).map_err(|error| ConfigError::Tap(error.to_string()))?;
        }
        if let Some(found) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(ConfigError::Mtu { net: net(), found });
        }
        match (self.backend, self.rate_limiter_config) {
            (Backend::Vhost, Some(_)) => Err(ConfigError::LimitsOfKernel(net())),
            _ => Ok(()),
        }
    }
}

impl VsockConfig {
    pub(in crate::config) fn validate(&self) -> Result<(), ConfigError> {
        if !CIDS.contains(&self.cid) {
            return Err(ConfigError::Cid { found: self.cid });
        }
        match (self.backend, self.socket.as_os_str().is_empty()) {
            (Backend::Husk, true) => Err(ConfigError::NoSocket),
            (Backend::Husk, false) => Ok(path::socket("vsock", &self.socket)?),
            (Backend::Vhost, true) => Ok(()),
            (Backend::Vhost, false) => Err(ConfigError::SocketOfKernel),
        }
    }
}

impl PmemConfig {
    pub(in crate::config) fn validate(&self) -> Result<(), ConfigError> {
        if self.file.as_os_str().is_empty() {
            return Err(ConfigError::NoPmemFile);
        }
        path::file("pmem", &self.file)?;
        match self
            .size
            .filter(|size| *size == 0 || !size.is_multiple_of(PMEM_UNIT_BYTES))
        {
            Some(found) => Err(ConfigError::PmemSize {
                file: self.file.display().to_string(),
                found,
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "devices_test.rs"]
mod tests;
