//! Which VMM runs the sandboxes of a host, and how it is confined.

/// A virtual machine monitor that wrenn can drive.
///
/// ```no_run
/// # async fn demo() -> wrenn_core::Result<()> {
/// use wrenn_core::{Driver, Host};
///
/// let host = Host::builder().driver(Driver::Qemu).open().await?;
/// assert_eq!(host.probe().driver, Driver::Qemu);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// Firecracker, 1.16 or later, for production. It needs KVM.
    Firecracker,
    /// QEMU, which runs on any host, under KVM or by emulating the processor.
    Qemu,
}

/// How Firecracker is isolated from the host. QEMU always runs as with [`User`](Self::User), and with its own seccomp
/// sandbox.
///
/// ```
/// use wrenn_core::{Confinement, Host};
///
/// assert_eq!(Confinement::default(), Confinement::User);
/// let builder = Host::builder().confinement(Confinement::Jailer);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Confinement {
    /// Each Firecracker runs as a user that no other process has, in network and mount namespaces of its own, and
    /// cannot gain privileges. It can read those of the host's files that every user may read.
    #[default]
    User,
    /// As [`User`](Self::User), and Firecracker's jailer starts it in a root directory with only the machine's own
    /// files, and in a cgroup where the host has cgroup version 2. Recommended in production. It costs some 30 ms at
    /// each start.
    Jailer,
}
