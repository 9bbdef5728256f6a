//! The description of a guest and of its host in a snapshot, and the check whether the guest can run on this host.
//!
//! VMMs do not check this enough: Firecracker only warns when the processor's vendor differs, and QEMU does not look. A
//! guest may crash, or go wrong silently, where a feature of the processor is missing. So a restore on a host that
//! differs in such a way is refused before anything starts, and the error names the difference.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use wrenn_net::OpenConnection;
use wrenn_snapshot::Generation;

use crate::error::{Error, Result};
use crate::site::Site;
use crate::vmm::shape::{Acceleration, MachineShape};

/// The description of a guest, kept in every generation with its memory, drive and device state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The driver and the VMM's version.
    pub(crate) vmm: String,
    pub(crate) shape: MachineShape,
    /// The host on which the guest was booted. A host with more features may run it, since the guest never looks for
    /// them again.
    pub(crate) made_on: Surroundings,
    /// The image whose base disk is under the drive, and that disk's digest.
    pub(crate) image: String,
    pub(crate) base_digest: String,
    /// The token that the agent in the saved memory asks for; a restore replaces it.
    pub(crate) token: Option<String>,
    /// The connections that the guest in the saved memory has, and that nobody else has any more.
    #[serde(default)]
    pub(crate) connections: Vec<OpenConnection>,
}

/// The properties of a host that a guest under KVM depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    pub(crate) processor: Processor,
    /// The release of the host's kernel.
    pub(crate) kernel: String,
    pub(crate) page_bytes: u64,
}

/// The first processor of `/proc/cpuinfo`, which stands for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Processor {
    pub(crate) vendor: String,
    pub(crate) family: String,
    pub(crate) model: String,
    /// The processor's model name, for messages.
    pub(crate) name: String,
    pub(crate) features: BTreeSet<String>,
}

/// The host and the VMM that a restore would run on.
#[derive(Debug, Clone, Copy)]
struct Here<'a> {
    vmm: &'a str,
    acceleration: Acceleration,
    tsc_khz: Option<u32>,
    surroundings: &'a Surroundings,
}

impl Manifest {
    /// Reads the description from a generation.
    pub(crate) fn of(generation: &Generation) -> Result<Self> {
        serde_json::from_slice(generation.metadata()).map_err(|e| Error::Host {
            problem: "what the snapshot says of its guest is not understood: another version of wrenn made it"
                .to_owned(),
            remedy: "use that version, or create the sandbox anew".to_owned(),
            source: Some(e.into()),
        })
    }

    /// Refuses a guest that cannot go on correctly on this host.
    pub(crate) fn check_restorable(&self, site: &Arc<Site>) -> Result<()> {
        let here = Here {
            vmm: site.vmm.version(),
            acceleration: site.probe.acceleration,
            tsc_khz: crate::vmm::tsc::tsc_khz(),
            surroundings: Surroundings::here(),
        };
        match self.difference(here) {
            Some((problem, remedy)) => Err(Error::Host { problem, remedy: remedy.to_owned(), source: None }),
            None => Ok(()),
        }
    }

    /// The difference that keeps the guest from running here, and what to do about it.
    fn difference(&self, here: Here<'_>) -> Option<(String, &'static str)> {
        if self.vmm != here.vmm {
            let problem = format!("the snapshot is of {}, and this host has {}", self.vmm, here.vmm);
            return Some((problem, "install that version, or create the sandbox anew"));
        }
        if self.shape.acceleration != here.acceleration {
            let problem = format!(
                "the snapshot ran on {:?}, and this host uses {:?}",
                self.shape.acceleration, here.acceleration
            );
            return Some((problem, "set WRENN_ACCELERATION, or create the sandbox anew"));
        }
        if let (Some(theirs), Some(ours)) = (self.shape.tsc_khz, here.tsc_khz)
            && theirs.abs_diff(ours) > theirs / TSC_TOLERANCE
        {
            let problem = format!("the snapshot's clock runs at {theirs} kHz, and this processor's at {ours} kHz");
            return Some((problem, LIKE_IT));
        }
        if self.made_on.page_bytes != here.surroundings.page_bytes {
            let [theirs, ours] = [self.made_on.page_bytes, here.surroundings.page_bytes];
            let problem = format!("the snapshot's host has pages of {theirs} bytes, and this one of {ours}");
            return Some((problem, LIKE_IT));
        }
        // An emulated processor is the same everywhere.
        (self.shape.acceleration == Acceleration::Kvm)
            .then(|| self.made_on.difference(here.surroundings))
            .flatten()
            .map(|problem| (problem, LIKE_IT))
    }
}

impl Surroundings {
    /// The properties of this host, read once.
    pub(crate) fn here() -> &'static Self {
        static HERE: OnceLock<Surroundings> = OnceLock::new();
        HERE.get_or_init(|| {
            let read = |path| std::fs::read_to_string(path).unwrap_or_default();
            let page_bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
            Self {
                processor: Processor::parse(&read("/proc/cpuinfo")),
                kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
                page_bytes: page_bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            }
        })
    }

    fn difference(&self, here: &Self) -> Option<String> {
        let (theirs, ours) = (&self.processor, &here.processor);
        let differs = |what: &str, theirs: &str, ours: &str| {
            (theirs != ours).then(|| format!("the snapshot's {what} is {theirs}, and this host's {ours}"))
        };
        differs("processor vendor", &theirs.vendor, &ours.vendor)
            .or_else(|| differs("processor family", &theirs.named(&theirs.family), &ours.named(&ours.family)))
            .or_else(|| differs("processor model", &theirs.named(&theirs.model), &ours.named(&ours.model)))
            .or_else(|| {
                let missing: Vec<&str> = theirs.features.difference(&ours.features).map(String::as_str).collect();
                let some = missing.iter().take(5).copied().collect::<Vec<_>>().join(", ");
                (!missing.is_empty()).then(|| {
                    format!("the snapshot's processor has {} features that this one lacks ({some})", missing.len())
                })
            })
            // KVM's state has changed between kernels before, and never within one series.
            .or_else(|| differs("host kernel", series(&self.kernel), series(&here.kernel)))
    }
}

impl Processor {
    fn parse(cpuinfo: &str) -> Self {
        let first = cpuinfo.split("\n\n").next().unwrap_or_default();
        let field = |name: &str| {
            let lines = first.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned()).next()
        };
        Self {
            vendor: field("vendor_id").unwrap_or_default(),
            family: field("cpu family").unwrap_or_default(),
            model: field("model").unwrap_or_default(),
            name: field("model name").unwrap_or_default(),
            features: field("flags").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        }
    }

    fn named(&self, number: &str) -> String {
        format!("{number} ({})", self.name)
    }
}

/// `6.1` of `6.1.0-56-cloud-amd64`.
fn series(kernel: &str) -> &str {
    let end = kernel.match_indices('.').nth(1).map_or(kernel.len(), |(at, _)| at);
    &kernel[..end]
}

const LIKE_IT: &str = "resume it on a host like the one that made it, or create the sandbox anew";
/// Half a percent: beyond it the guest's clock is wrong by minutes a day.
const TSC_TOLERANCE: u32 = 200;

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC \
        7R13\nflags\t\t: fpu svm avx2\n\nprocessor\t: 1\nvendor_id\t: other\n";

    fn surroundings() -> Surroundings {
        Surroundings { processor: Processor::parse(CPUINFO), kernel: "6.1.0-56-cloud-amd64".into(), page_bytes: 4096 }
    }

    fn manifest(acceleration: Acceleration) -> Manifest {
        Manifest {
            vmm: "firecracker 1.16.1".into(),
            shape: MachineShape { vcpus: 1, memory_mib: 512, acceleration, tsc_khz: Some(2_000_000) },
            made_on: surroundings(),
            image: "base".into(),
            base_digest: String::new(),
            token: None,
            connections: Vec::new(),
        }
    }

    /// What is said of a KVM guest when `change` is made to the host.
    fn said(acceleration: Acceleration, change: impl FnOnce(&mut Here<'_>, &mut Surroundings)) -> Option<String> {
        let (mut changed, made_on) = (surroundings(), surroundings());
        let mut here =
            Here { vmm: "firecracker 1.16.1", acceleration, tsc_khz: Some(2_001_000), surroundings: &made_on };
        change(&mut here, &mut changed);
        here.surroundings = &changed;
        manifest(acceleration).difference(here).map(|(problem, _)| problem)
    }

    #[test]
    fn a_processor_is_read() {
        let processor = Processor::parse(CPUINFO);
        assert_eq!((&*processor.vendor, &*processor.family, &*processor.model), ("AuthenticAMD", "25", "1"));
        assert_eq!(processor.features.len(), 3);
        assert_eq!(Processor::parse(""), Processor::default());
    }

    #[test]
    fn the_same_host_differs_in_nothing() {
        assert_eq!(said(Acceleration::Kvm, |_, _| ()), None);
        assert_eq!(said(Acceleration::Kvm, |_, host| host.kernel = "6.1.77".into()), None);
        let more = |_: &mut Here<'_>, host: &mut Surroundings| {
            host.processor.features.insert("avx512f".into());
        };
        assert_eq!(said(Acceleration::Kvm, more), None, "more features than the guest knows of");
    }

    #[test]
    fn what_differs_is_named() {
        let kvm = |change: fn(&mut Here<'_>, &mut Surroundings)| said(Acceleration::Kvm, change).unwrap();
        assert!(kvm(|here, _| here.vmm = "firecracker 1.17.0").contains("firecracker 1.17.0"));
        assert!(kvm(|here, _| here.acceleration = Acceleration::Tcg).contains("Tcg"));
        assert!(kvm(|here, _| here.tsc_khz = Some(2_100_000)).contains("2100000 kHz"));
        assert!(kvm(|_, host| host.page_bytes = 16_384).contains("16384"));
        assert!(kvm(|_, host| host.processor.vendor = "GenuineIntel".into()).contains("processor vendor"));
        assert!(kvm(|_, host| host.processor.family = "26".into()).contains("processor family"));
        assert!(kvm(|_, host| host.processor.model = "17".into()).contains("processor model"));
        assert!(kvm(|_, host| host.processor.features.retain(|name| name != "avx2")).contains("(avx2)"));
        assert!(kvm(|_, host| host.kernel = "6.12.1".into()).contains("6.12"));
    }

    #[test]
    fn an_emulated_guest_does_not_care_for_the_processor() {
        let tcg = |change: fn(&mut Here<'_>, &mut Surroundings)| said(Acceleration::Tcg, change);
        assert_eq!(tcg(|_, host| host.processor.vendor = "GenuineIntel".into()), None);
        assert_eq!(tcg(|_, host| host.kernel = "6.12.1".into()), None);
    }
}
