//! Which VMM runs the sandboxes of a host, and how it is confined.

use crate::vmm::driver::Confinement;
use crate::vmm::driver::Driver;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::vmm::firecracker::Firecracker;
use crate::vmm::machine::Vmm;
use crate::vmm::probe;
use crate::vmm::probe::Probe;
use crate::vmm::qemu::{self, Qemu};
use crate::vmm::rehearsal::{Play, Rehearsal};
use crate::vmm::shape::Acceleration;
use crate::vmm::tsc;

/// The options of a host that are about its VMM.
#[derive(Debug, Clone, Default)]
pub(crate) struct Choice {
    pub(crate) driver: Option<Driver>,
    pub(crate) confinement: Option<Confinement>,
    pub(crate) firecracker: Option<PathBuf>,
    pub(crate) qemu: Option<PathBuf>,
}

/// The VMM that was chosen for a host, and whether it can be started.
pub(crate) struct Chosen {
    pub(crate) vmm: Result<(Arc<dyn Vmm>, Probe)>,
    /// How the start of the VMM went, or of another program where there is no VMM.
    pub(crate) rehearsal: Result<Rehearsal>,
}

impl Choice {
    /// Finds the VMM that this host is to use, and rehearses its start.
    pub(crate) async fn make(self, data_dir: &Path) -> Chosen {
        let play = |program: &Path, idle, acceleration| Play { program: program.to_owned(), idle, acceleration };
        match self.find(data_dir).await {
            Ok(Found::Firecracker(firecracker)) => {
                let mut rehearsal = play(firecracker.binary(), &[], Acceleration::Kvm).rehearse().await;
                // Only where what is started can be killed.
                if let Ok(Rehearsal { network: Ok(_), start: start @ Ok(()), .. }) = &mut rehearsal {
                    *start = firecracker.rehearse().await;
                }
                Chosen { vmm: Ok((Arc::new(firecracker), served())), rehearsal }
            }
            Ok(Found::Qemu(qemu, probe)) => {
                let idle = if qemu.is_traced() { qemu::IDLE } else { &[] };
                let rehearsal = play(qemu.program(), idle, probe.acceleration).rehearse().await;
                let qemu = match &rehearsal {
                    Ok(Rehearsal { tracing: Err(why), .. }) => qemu.untraced(why.clone()),
                    Ok(_) | Err(_) => qemu,
                };
                Chosen { vmm: Ok((Arc::new(qemu), probe)), rehearsal }
            }
            Err(error) => {
                let rehearsal = play(Path::new(STAND_IN), &[], Acceleration::Tcg).rehearse().await;
                Chosen { vmm: Err(error), rehearsal }
            }
        }
    }

    /// The VMM that was named, else Firecracker where it is installed and KVM serves it, else QEMU.
    async fn find(mut self, data_dir: &Path) -> Result<Found> {
        // The description of a guest needs the rate of the processor's counter, and is made where nothing may block.
        tsc::measure_ahead().await?;
        self.driver = self.driver.or_else(from_environment);
        let confinement = self.confinement.or_else(confinement_from_environment).unwrap_or_default();
        let program = Firecracker::program(self.firecracker);
        let unwanted = match (self.driver, program) {
            (Some(Driver::Qemu), _) => "it was asked for".to_owned(),
            (None, None) => "Firecracker is not installed".to_owned(),
            (Some(Driver::Firecracker), None) => return Err(no_firecracker()),
            (None, Some(_)) if !nix::unistd::geteuid().is_root() => "Firecracker needs root".to_owned(),
            (named, Some(program)) => {
                let firecracker = Firecracker::open(program, confinement, data_dir).await?;
                match (firecracker.finishes_a_guest().await, named) {
                    (Ok(true), _) => return Ok(Found::Firecracker(firecracker)),
                    (ended, Some(_)) => return Err(no_kvm(ended.err())),
                    (_, None) => "KVM does not serve Firecracker here".to_owned(),
                }
            }
        };
        let qemu = Qemu::find(self.qemu).await?;
        let mut probe = probe::probe(qemu.program()).await;
        probe.reason = format!("QEMU, since {unwanted}; {}", probe.reason);
        Ok(Found::Qemu(qemu, probe))
    }
}

/// A Firecracker as the doctor tells of it.
pub(crate) struct Installed {
    pub(crate) program: PathBuf,
    pub(crate) version: String,
    /// What is known to be wrong with this version.
    pub(crate) flaws: Vec<String>,
    /// Its jailer, and that one's version.
    pub(crate) jailer: Result<(PathBuf, String)>,
}

enum Found {
    Firecracker(Firecracker),
    Qemu(Qemu, Probe),
}

/// What is started in the place of a VMM that is not there, to find out what else is missing.
const STAND_IN: &str = "/bin/true";

impl Choice {
    /// The Firecracker that is installed, if any is.
    pub(crate) async fn firecracker(&self) -> Result<Option<Installed>> {
        let Some(program) = Firecracker::program(self.firecracker.clone()) else { return Ok(None) };
        let (version, flaws) = Firecracker::version_of(&program).await?;
        let jailer = Firecracker::jailer_of(&program).await;
        Ok(Some(Installed { program, version, flaws, jailer }))
    }

    pub(crate) async fn qemu_version(&self) -> Result<String> {
        let qemu = Qemu::find(self.qemu.clone()).await?;
        Ok(format!("{}, at {}", qemu.version(), qemu.program().display()))
    }
}

fn served() -> Probe {
    Probe {
        driver: Driver::Firecracker,
        acceleration: Acceleration::Kvm,
        reason: "Firecracker, since a short guest ran to its end under KVM".to_owned(),
    }
}

fn from_environment() -> Option<Driver> {
    match std::env::var("WRENN_VMM").as_deref() {
        Ok("firecracker") => Some(Driver::Firecracker),
        Ok("qemu") => Some(Driver::Qemu),
        Ok("") | Err(_) => None,
        Ok(other) => {
            tracing::warn!(other, "WRENN_VMM is neither firecracker nor qemu and is ignored");
            None
        }
    }
}

fn confinement_from_environment() -> Option<Confinement> {
    match std::env::var("WRENN_CONFINEMENT").as_deref() {
        Ok("jailer") => Some(Confinement::Jailer),
        Ok("user") => Some(Confinement::User),
        Ok("") | Err(_) => None,
        Ok(other) => {
            tracing::warn!(other, "WRENN_CONFINEMENT is neither user nor jailer and is ignored");
            None
        }
    }
}

fn no_firecracker() -> Error {
    Error::Host {
        problem: "Firecracker was asked for and is not here".to_owned(),
        remedy: "put a released binary on the PATH, or name it in WRENN_FIRECRACKER".to_owned(),
        source: None,
    }
}

fn no_kvm(source: Option<std::io::Error>) -> Error {
    Error::Host {
        problem: "Firecracker was asked for, and a short guest made no progress under KVM".to_owned(),
        remedy: "give this user /dev/kvm, on a host whose KVM runs ordinary guests; or use QEMU, which needs none"
            .to_owned(),
        source: source.map(Into::into),
    }
}
