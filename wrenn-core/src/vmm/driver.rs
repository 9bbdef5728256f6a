//! Which VMM runs the sandboxes of a host, and how it is confined.

/// A virtual machine monitor that wrenn can drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// Firecracker, 1.16 or later, which needs KVM: the one for production.
    Firecracker,
    /// QEMU, which runs anywhere, under KVM or by emulating the processor.
    Qemu,
}

/// How a Firecracker is kept from the host. QEMU always runs as [`User`](Self::User), with its own sandbox on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Confinement {
    /// As a user that no other process has, in network and mount namespaces of its own, without new privileges. The
    /// host's files that every user may read are in sight.
    #[default]
    User,
    /// By Firecracker's jailer too: in a root that holds the machine's own files alone, and in a cgroup where the host
    /// has version 2. Recommended in production; a start takes some 30 ms longer.
    Jailer,
}
