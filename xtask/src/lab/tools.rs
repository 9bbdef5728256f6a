//! The programs that the lab takes from the host.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::shell;

/// Firecracker, and what belongs to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tools {
    pub(super) firecracker: PathBuf,
    pub(super) jailer: Option<PathBuf>,
    /// Firecracker's example page-fault handler, to compare with.
    pub(super) uffd_handler: Option<PathBuf>,
}

impl Tools {
    /// Finds them by their variables, the jailer also beside Firecracker, and both on the `PATH`.
    pub(super) fn find(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let named = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let on_path = |program: &str| {
            let path = variable("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
        };
        let firecracker = named(FIRECRACKER).or_else(|| on_path("firecracker"))?;
        let beside = || Some(firecracker.with_file_name("jailer")).filter(|path| path.is_file());
        let jailer = named(JAILER).or_else(beside).or_else(|| on_path("jailer"));
        Some(Self { jailer, uffd_handler: named(UFFD_HANDLER), firecracker })
    }

    /// Each with its name in the lab, and the variable that leads to it.
    pub(super) fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, &PathBuf)> {
        let all = [
            ("firecracker", FIRECRACKER, Some(&self.firecracker)),
            ("jailer", JAILER, self.jailer.as_ref()),
            ("uffd_handler", UFFD_HANDLER, self.uffd_handler.as_ref()),
        ];
        all.into_iter().filter_map(|(name, variable, path)| path.map(|path| (name, variable, path)))
    }

    /// `script` with the variables that lead to the tools and the data, and those of the host that tune what is printed.
    pub(super) fn script(&self, script: &str) -> String {
        let tools = self.each().map(|(name, variable, _)| (variable, format!("/lab/bin/{name}")));
        let passed = PASSED_ON.iter().filter_map(|&name| Some((name, std::env::var(name).ok()?)));
        let data = ("WRENN_DATA_DIR", "/lab/data".to_owned());
        let exports = tools.chain([data]).chain(passed);
        let exports = exports.map(|(name, value)| format!("export {name}={}\n", shell::quote(&value)));
        format!("{}{script}\n", exports.collect::<String>())
    }
}

/// Why the lab is skipped without Firecracker, and what to do.
pub(crate) const MISSING: &str = "lab: there is no Firecracker: set WRENN_FIRECRACKER=/path/to/firecracker (1.16 or later, with the jailer beside it), or put both on the PATH";

const FIRECRACKER: &str = "WRENN_FIRECRACKER";
const JAILER: &str = "WRENN_JAILER";
const UFFD_HANDLER: &str = "WRENN_UFFD_HANDLER";
const PASSED_ON: [&str; 2] = ["RUST_BACKTRACE", "RUST_LOG"];

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
            Tools::find(|name| match name {
                "PATH" => Some(path.into()),
                FIRECRACKER => Some(firecracker.into()),
                _ => None,
            })
        };
        let tools = with("").unwrap();
        assert_eq!(tools.firecracker, path.join("firecracker"));
        assert_eq!(tools.jailer, Some(path.join("jailer")));
        assert_eq!(with("/opt/fc").unwrap().firecracker, PathBuf::from("/opt/fc"));
        assert_eq!(Tools::find(|_| None), None);
    }
}
