//! The records of paused sandboxes, of snapshots with a name, of booted images, and of the steps of builds.

use serde::{Deserialize, Serialize};
use wrenn_snapshot::GenerationId;

use crate::clock::time_of;
use crate::defaults::Defaults;
use crate::site::record;
use crate::state::{Fixed, SandboxInfo, SandboxState};
use crate::vmm::shape::MachineShape;

/// The record of a paused sandbox. It is kept while the sandbox runs again, so that the sandbox can be resumed after a
/// crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PausedRecord {
    #[serde(flatten)]
    pub(crate) fixed: Fixed,
    #[serde(with = "record::text")]
    pub(crate) generation: GenerationId,
    #[serde(default)]
    pub(crate) paused_at_ms: u64,
    /// What the pause stored, in bytes.
    #[serde(default)]
    pub(crate) stored_bytes: u64,
}

impl PausedRecord {
    pub(crate) fn info(&self, state: SandboxState) -> SandboxInfo {
        SandboxInfo {
            paused_at: (self.paused_at_ms > 0).then(|| time_of(self.paused_at_ms)),
            stored_bytes: Some(self.stored_bytes),
            ..self.fixed.info(state)
        }
    }
}

/// The record of a snapshot with a name, or of a booted image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TemplateRecord {
    #[serde(with = "record::text")]
    pub(crate) generation: GenerationId,
    pub(crate) shape: MachineShape,
    #[serde(default)]
    pub(crate) created_at_ms: u64,
    #[serde(default)]
    pub(crate) defaults: Defaults,
}

/// The record of a step of a template's build: what the guest is after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRecord {
    #[serde(with = "record::text")]
    pub(crate) generation: GenerationId,
    pub(crate) shape: MachineShape,
    #[serde(default)]
    pub(crate) created_at_ms: u64,
    /// What the step stored, in bytes.
    #[serde(default)]
    pub(crate) stored_bytes: u64,
    /// The step as its recipe has it, for people; without secrets.
    #[serde(default)]
    pub(crate) text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What wrenn wrote before records had a version.
    const PAUSED: &str = r#"{
        "id": "sb0123456789abcdef", "template": "base", "vcpus": 2, "memory_mib": 512,
        "envs": { "A": "1" }, "labels": { "who": "test" },
        "lifetime": { "ttl": { "secs": 60, "nanos": 0 }, "on_expiry": "Pause" }, "created_at_ms": 1700000000000,
        "published": [ { "guest_port": 80, "address": "127.0.0.1:8080" } ],
        "generation": "00112233445566778899aabbccddeeff", "paused_at_ms": 1700000001000, "stored_bytes": 4096
    }"#;
    /// What every version must have.
    const LEAST: &str = r#"{
        "version": 1, "id": "sb0123456789abcdef", "template": "base", "vcpus": 2, "memory_mib": 512,
        "generation": "00112233445566778899aabbccddeeff", "a field of a later wrenn": []
    }"#;
    const TEMPLATE: &str = r#"{
        "generation": "00112233445566778899aabbccddeeff", "created_at_ms": 1700000000000,
        "shape": { "vcpus": 1, "memory_mib": 512, "acceleration": "kvm", "tsc_khz": 2000000 }
    }"#;

    fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        record::read(file.path()).unwrap().unwrap()
    }

    #[test]
    fn records_of_earlier_versions_load() {
        let full: PausedRecord = read(PAUSED);
        let info = full.info(SandboxState::Paused);
        assert_eq!((info.vcpus, info.memory_mib, info.stored_bytes), (2, 512, Some(4096)));
        assert_eq!(info.created_at, time_of(1_700_000_000_000));
        assert_eq!(info.paused_at, Some(time_of(1_700_000_001_000)));
        assert!(full.fixed.lifetime.is_some());
        assert!(matches!(&*full.fixed.published, [port] if port.guest_port == 80 && !port.wake));
        let least: PausedRecord = read(LEAST);
        assert_eq!(least.generation, full.generation);
        assert!(least.fixed.labels.is_empty() && least.fixed.lifetime.is_none());
        let template: TemplateRecord = read(TEMPLATE);
        assert_eq!((template.shape.vcpus, template.generation), (1, full.generation));
    }

    #[test]
    fn what_is_written_reads_back() {
        let record: PausedRecord = read(PAUSED);
        let file = tempfile::NamedTempFile::new().unwrap();
        record::write(file.path(), &record).unwrap();
        assert_eq!(record::read(file.path()).unwrap(), Some(record));
    }
}
