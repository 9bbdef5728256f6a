//! The programs that the lab takes from the host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use wrenn_core::{Driver, find_in_path};

use super::patience::Patience;
use crate::shell;

/// The VMM that sandboxes in the lab run under, with its KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Vmm {
    Firecracker,
    Qemu,
}

impl Vmm {
    pub(super) fn driver(self) -> Driver {
        match self {
            Self::Firecracker => Driver::Firecracker,
            Self::Qemu => Driver::Qemu,
        }
    }

    /// Why the lab is skipped without it, and what to do.
    pub(crate) fn missing(self) -> &'static str {
        match self {
            Self::Firecracker => {
                "lab: there is no Firecracker: set WRENN_FIRECRACKER=/path/to/firecracker (1.16 or later, with the \
                 jailer beside it), or put both on the PATH"
            }
            Self::Qemu => "lab: there is no QEMU: run `apt-get install qemu-system-x86`, or set WRENN_QEMU",
        }
    }
}

/// What executes the instructions of QEMU's guests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Acceleration {
    #[default]
    Kvm,
    Tcg,
}

/// A VMM, and what belongs to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tools {
    pub(super) vmm: Vmm,
    acceleration: Acceleration,
    programs: Vec<Program>,
}

/// A program of the host's.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Its name in the lab.
    pub(super) name: &'static str,
    /// The variable that leads to it.
    pub(super) variable: &'static str,
    pub(super) path: PathBuf,
}

impl Tools {
    /// Finds them by their variables and on the `PATH`, the jailer also beside Firecracker.
    pub(crate) fn find(vmm: Vmm, variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let named = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let on_path = |program: &str| find_in_path(&variable("PATH").unwrap_or_default(), program);
        let found = |name, variable, path: Option<PathBuf>| path.map(|path| Program { name, variable, path });
        let programs = match vmm {
            Vmm::Firecracker => {
                let firecracker = named(FIRECRACKER).or_else(|| on_path("firecracker"))?;
                let beside = Some(firecracker.with_file_name("jailer")).filter(|path| path.is_file());
                let jailer = named(JAILER).or(beside).or_else(|| on_path("jailer"));
                vec![
                    found("firecracker", FIRECRACKER, Some(firecracker)),
                    found("jailer", JAILER, jailer),
                    // Firecracker's example page-fault handler, to compare with.
                    found("uffd_handler", UFFD_HANDLER, named(UFFD_HANDLER)),
                ]
            }
            Vmm::Qemu => {
                vec![found("qemu-system-x86_64", QEMU, Some(named(QEMU).or_else(|| on_path("qemu-system-x86_64"))?))]
            }
        };
        Some(Self { vmm, acceleration: Acceleration::default(), programs: programs.into_iter().flatten().collect() })
    }

    /// The same tools, for guests of QEMU that run in another way.
    pub(super) fn accelerated_by(self, acceleration: Acceleration) -> Self {
        Self { acceleration, ..self }
    }

    /// How many times as long as under KVM a guest takes.
    pub(super) fn slowness(&self) -> f64 {
        match self.acceleration {
            Acceleration::Kvm => 1.0,
            // Emulation within emulation.
            Acceleration::Tcg => 4.0,
        }
    }

    pub(super) fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The VMM itself.
    pub(super) fn program(&self) -> &Path {
        &self.programs[0].path
    }

    /// The variables that make wrenn use these tools, where the tests run on this machine.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let paths = self.programs.iter().map(|program| (program.variable, program.path.display().to_string()));
        paths.chain(self.choice().iter().map(|&(name, value)| (name, value.to_owned()))).collect()
    }

    fn choice(&self) -> &'static [(&'static str, &'static str)] {
        match (self.vmm, self.acceleration) {
            // What wrenn chooses by itself where KVM serves.
            (Vmm::Firecracker, _) => &[],
            (Vmm::Qemu, Acceleration::Kvm) => &[("WRENN_VMM", "qemu"), ("WRENN_ACCELERATION", "kvm")],
            (Vmm::Qemu, Acceleration::Tcg) => &[("WRENN_VMM", "qemu"), ("WRENN_ACCELERATION", "tcg")],
        }
    }

    /// `script` with the variables that lead to the tools and the data, those of the host that tune what is printed, and a
    /// look whether the tests would skip themselves, and the lab be for nothing.
    pub(super) fn script(&self, script: &str, patience: Patience) -> String {
        let tools = self.programs.iter().map(|program| (program.variable, format!("/lab/bin/{}", program.name)));
        let choice = self.choice().iter().map(|&(name, value)| (name, value.to_owned()));
        let passed = PASSED_ON.iter().filter_map(|&name| Some((name, std::env::var(name).ok()?)));
        let data = ("WRENN_DATA_DIR", "/lab/data".to_owned());
        let factor = ("WRENN_TIMEOUT_FACTOR", format!("{:.1}", patience.factor() * EMULATED));
        let exports = tools.chain(choice).chain([data, factor]).chain(passed);
        let exports = exports.map(|(name, value)| format!("export {name}={}\n", shell::quote(&value)));
        let (exports, variable) = (exports.collect::<String>(), self.programs[0].variable);
        let kvm = match self.acceleration {
            Acceleration::Kvm => "test -c /dev/kvm || { echo 'lab: there is no /dev/kvm'; exit 1; }\n",
            Acceleration::Tcg => "",
        };
        format!(
            "{exports}{kvm}\
             \"${variable}\" --version > /dev/null || {{ echo \"lab: ${variable} does not run here\"; exit 1; }}\n{script}\n"
        )
    }
}

/// How much slower than on a processor's own KVM a sandbox in the lab may be: wrenn's time-outs are multiplied by it.
const EMULATED: f64 = 4.0;
const FIRECRACKER: &str = "WRENN_FIRECRACKER";
const JAILER: &str = "WRENN_JAILER";
const UFFD_HANDLER: &str = "WRENN_UFFD_HANDLER";
const QEMU: &str = "WRENN_QEMU";
/// `WRENN_PAGING`, `WRENN_TRACKING` and `WRENN_CONFINEMENT` try the same tests another way.
const PASSED_ON: [&str; 7] = [
    "RUST_BACKTRACE",
    "RUST_LOG",
    "WRENN_PAGING",
    "WRENN_TRACKING",
    "WRENN_CONFINEMENT",
    "WRENN_TEST_SEED",
    "WRENN_TEST_STEPS",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_goes_before_the_path_and_the_jailer_is_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        for program in ["firecracker", "jailer"] {
            std::fs::write(path.join(program), "").unwrap();
        }
        let with = |firecracker: &'static str| {
            Tools::find(Vmm::Firecracker, |name| match name {
                "PATH" => Some(path.into()),
                FIRECRACKER => Some(firecracker.into()),
                _ => None,
            })
        };
        let tools = with("").unwrap();
        assert_eq!(tools.program(), path.join("firecracker"));
        assert_eq!(tools.programs()[1].path, path.join("jailer"));
        assert_eq!(with("/opt/fc").unwrap().program(), "/opt/fc");
        assert_eq!(Tools::find(Vmm::Firecracker, |_| None), None);
        assert_eq!(Tools::find(Vmm::Qemu, |name| (name == "PATH").then(|| path.into())), None);
    }

    #[test]
    fn qemu_in_the_lab_is_the_hosts_and_under_kvm() {
        let tools = Tools::find(Vmm::Qemu, |name| (name == QEMU).then(|| "/opt/qemu".into())).unwrap();
        assert_eq!(tools.program(), "/opt/qemu");
        let script = tools.script("true", Patience::default());
        for line in [
            "WRENN_VMM='qemu'",
            "WRENN_ACCELERATION='kvm'",
            "WRENN_QEMU='/lab/bin/qemu-system-x86_64'",
            "WRENN_TIMEOUT_FACTOR='4.0'",
        ] {
            assert!(script.contains(&format!("export {line}\n")), "{script}");
        }
        assert!(tools.variables().contains(&("WRENN_QEMU", "/opt/qemu".to_owned())));
        let emulated = tools.accelerated_by(Acceleration::Tcg).script("true", Patience::default());
        assert!(emulated.contains("export WRENN_ACCELERATION='tcg'\n") && !emulated.contains("/dev/kvm"), "{emulated}");
    }
}
