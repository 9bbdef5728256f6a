//! The requests of Firecracker's API. Firecracker refuses fields that it does not know.

use serde::Serialize;
use serde_json::{Value, json};

use crate::vmm::firecracker::room::{BASE, DRIVE};
use crate::vmm::metadata::Metadata;
use crate::vmm::shape::MachineShape;

/// Names of the files in a VMM's room.
pub(super) const API_SOCKET: &str = "api.sock";
pub(super) const KERNEL: &str = "kernel";
pub(super) const INITRAMFS: &str = "initramfs";
pub(super) const MEMORY: &str = "memory";
pub(super) const MEMORY_SOCKET: &str = "memory.sock";
pub(super) const STATE: &str = "state";
pub(super) const FLAT_MEMORY: &str = "flat-memory";

/// The requests that describe a machine, in order, and the one that starts it.
pub(super) fn boot(shape: &MachineShape) -> Vec<(&'static str, Value)> {
    vec![
        (
            "/machine-config",
            // Without tracking a Diff snapshot finds what is resident by `mincore`, which is wrong once the host swaps.
            json!({ "vcpu_count": shape.vcpus, "mem_size_mib": shape.memory_mib, "track_dirty_pages": true }),
        ),
        (
            "/boot-source",
            json!({ "kernel_image_path": KERNEL, "initrd_path": INITRAMFS, "boot_args": KERNEL_COMMAND_LINE }),
        ),
        ("/drives/base", drive(BASE, true)),
        ("/drives/drive", drive(DRIVE, false)),
        (
            "/network-interfaces/eth0",
            json!({
                "iface_id": "eth0",
                "host_dev_name": wrenn_net::Tap::NAME,
                "guest_mac": wrenn_net::GUEST_MAC,
            }),
        ),
        // Version 2 answers nobody who did not ask for a token first, so that no program is made to ask by a mere
        // address.
        ("/mmds/config", json!({ "version": "V2", "network_interfaces": ["eth0"] })),
        // The guest has no identity yet.
        (METADATA, json!({})),
        ("/actions", json!({ "action_type": "InstanceStart" })),
    ]
}

/// `Async` I/O can freeze a resume, so it is `Sync`. Flushes are left out: a pause stores the drive durably, and a host
/// that crashes falls back to the last pause whatever the guest had flushed.
fn drive(name: &str, is_read_only: bool) -> Value {
    json!({
        "drive_id": name,
        "path_on_host": name,
        "is_root_device": false,
        "is_read_only": is_read_only,
        "cache_type": "Unsafe",
        "io_engine": "Sync",
    })
}

/// `PUT /snapshot/load`. The machine stays stopped.
pub(super) fn load(backend: Backend) -> Value {
    let (backend_type, backend_path) = match backend {
        Backend::Uffd => ("Uffd", MEMORY_SOCKET),
        Backend::File(name) => ("File", name),
    };
    json!({
        "snapshot_path": STATE,
        "mem_backend": { "backend_type": backend_type, "backend_path": backend_path },
        // Not part of a snapshot: without it every later diff would be a full copy.
        "track_dirty_pages": true,
        "resume_vm": false,
    })
}

/// Where a restored machine's memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    Uffd,
    /// That file of the room, mapped privately.
    File(&'static str),
}

/// Where the data of the metadata service are put. They are not part of a snapshot; the service's configuration is.
pub(super) const METADATA: &str = "/mmds";

/// The names are those that E2B's agent reads. Its `address`, of a collector of logs, has no counterpart here.
pub(super) fn metadata(guest: &Metadata) -> Value {
    json!({
        "instanceID": guest.sandbox.to_string(),
        "envID": guest.template.to_string(),
        "accessTokenHash": guest.token_hash(),
    })
}

/// `PUT /snapshot/create`. Onto a file that is there already, a diff adds.
pub(super) fn create() -> Value {
    json!({ "snapshot_type": "Diff", "snapshot_path": STATE, "mem_file_path": MEMORY })
}

/// `PATCH /vm`.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "state")]
pub(super) enum VmState {
    Paused,
    Resumed,
}

/// Firecracker's default has `nomodule`, with which no driver would load. The tail is what its documentation advises
/// for a quick start without devices that it does not have.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=4 reboot=k panic=-1 random.trust_cpu=on \
    net.ifnames=0 \
    wrenn.base=/dev/vda wrenn.drive=/dev/vdb wrenn.addr=169.254.0.21/30 wrenn.gw=169.254.0.22 \
    wrenn.addr6=fec0::15/126 wrenn.gw6=fec0::16 wrenn.mmds=1 \
    i8042.noaux i8042.nomux i8042.dumbkbd";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::shape::Acceleration;

    #[test]
    fn a_machine_is_described_by_names_that_every_room_has() {
        let shape = MachineShape { vcpus: 2, memory_mib: 256, acceleration: Acceleration::Kvm, tsc_khz: None };
        for (path, body) in boot(&shape) {
            let text = body.to_string();
            assert!(!text.contains("\"/"), "{path} names a path of the host: {text}");
        }
        let order: Vec<_> = boot(&shape).into_iter().map(|(path, _)| path).collect();
        let at = |path| order.iter().position(|known| *known == path);
        assert!(at("/network-interfaces/eth0") < at("/mmds/config") && at(METADATA) < at("/actions"), "{order:?}");
        assert_eq!(serde_json::to_string(&VmState::Paused).unwrap(), r#"{"state":"Paused"}"#);
        assert_eq!(load(Backend::Uffd)["track_dirty_pages"], true);
    }

    #[test]
    fn a_guests_metadata_have_the_tokens_hash_and_not_the_token() {
        let guest = Metadata {
            sandbox: "sb0123456789abcdef".parse().unwrap(),
            template: "base".parse().unwrap(),
            token: "secret".to_owned(),
        };
        let data = metadata(&guest);
        assert_eq!((data["instanceID"].as_str(), data["envID"].as_str()), (Some("sb0123456789abcdef"), Some("base")));
        // `printf secret | sha512sum`
        let hash = data["accessTokenHash"].as_str().unwrap();
        assert!(
            hash.len() == 128 && hash.starts_with("bd2b1aaf7ef4f09be9f52ce2d8d599674d81aa9d6a4421696dc4d93dd0619d68")
        );
        assert!(!data.to_string().contains("secret") && !format!("{guest:?}").contains("secret"));
    }
}
