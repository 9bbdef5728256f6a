//! Which kernel modules a guest needs, and the order in which they load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use object::{Object as _, ObjectSection as _};

use crate::image::digest;
use crate::image::error::ImageError;

/// A module as it travels in the initramfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) file_name: String,
    pub(super) bytes: Vec<u8>,
}

/// The modules of one kernel release, as its package lays them out.
#[derive(Debug)]
pub(super) struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Reads `lib/modules/<release>`. The package has no `modules.dep`: that is made when it is installed.
    pub(super) fn read(directory: &Path) -> Result<Self, ImageError> {
        let mut files = BTreeMap::new();
        let kernel = directory.join("kernel");
        collect(&kernel, &mut files).map_err(ImageError::io("list", &kernel))?;
        let list = directory.join("modules.builtin");
        let text = fs::read_to_string(&list).map_err(ImageError::io("read", &list))?;
        let builtin = text.lines().map(|line| module_name(Path::new(line)));
        Ok(Self { files, builtin: builtin.collect() })
    }

    /// The modules that the guest needs, in the order in which they load.
    pub(super) fn wanted(&self) -> Result<Vec<Module>, ImageError> {
        let mut read = BTreeMap::new();
        let order = load_order(WANTED, |name| {
            let Some(path) = self.files.get(name) else {
                return Ok(if self.builtin.contains(name) { Found::BuiltIn } else { Found::Missing });
            };
            let bytes = fs::read(path).map_err(ImageError::io("read", path))?;
            let dependencies =
                dependencies(&bytes).map_err(|reason| ImageError::Kernel(format!("module `{name}`: {reason}")))?;
            read.insert(name.to_owned(), bytes);
            Ok(Found::Module(dependencies))
        })?;
        Ok(order
            .into_iter()
            .filter_map(|name| {
                let bytes = read.remove(&name)?;
                let file_name = format!("{name}.ko");
                Some(Module { file_name, bytes })
            })
            .collect())
    }
}

/// Changes with what the guests need of a kernel.
pub(super) fn wanted_digest() -> String {
    digest::of_bytes(format!("{WANTED:?}").as_bytes())
}

/// What a kernel has under a module's name.
#[derive(Debug, Clone)]
enum Found {
    BuiltIn,
    Module(Vec<Dependency>),
    Missing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Dependency {
    name: String,
    need: Need,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Required,
    /// Skipped when the kernel has no such module: a soft dependency may also name an alias.
    Optional,
}

/// Every wanted module after all that it depends on.
fn load_order(
    wanted: &[(&str, Need)],
    mut find: impl FnMut(&str) -> Result<Found, ImageError>,
) -> Result<Vec<String>, ImageError> {
    let mut order = Vec::new();
    let mut states = BTreeMap::new();
    for &(name, need) in wanted {
        visit(name, need, "the guest", &mut find, &mut states, &mut order)?;
    }
    Ok(order)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Done,
}

fn visit(
    name: &str,
    need: Need,
    needed_by: &str,
    find: &mut impl FnMut(&str) -> Result<Found, ImageError>,
    states: &mut BTreeMap<String, State>,
    order: &mut Vec<String>,
) -> Result<(), ImageError> {
    match states.get(name) {
        Some(State::Done) => return Ok(()),
        Some(State::Open) => return Err(ImageError::ModuleCycle(name.to_owned())),
        None => {}
    }
    match find(name)? {
        Found::BuiltIn => {}
        Found::Missing if need == Need::Optional => {}
        Found::Missing => {
            return Err(ImageError::MissingModule { name: name.to_owned(), needed_by: needed_by.to_owned() });
        }
        Found::Module(dependencies) => {
            states.insert(name.to_owned(), State::Open);
            for dependency in &dependencies {
                visit(&dependency.name, dependency.need, name, find, states, order)?;
            }
            states.insert(name.to_owned(), State::Done);
            order.push(name.to_owned());
        }
    }
    Ok(())
}

/// A module's own account of what it needs, from its `.modinfo` section: strings `key=value`, each ended by a zero.
fn dependencies(elf: &[u8]) -> Result<Vec<Dependency>, String> {
    let file = object::File::parse(elf).map_err(|error| error.to_string())?;
    let section = file.section_by_name(".modinfo").ok_or("no .modinfo section")?;
    let info = section.data().map_err(|error| error.to_string())?;
    Ok(parse_modinfo(info))
}

fn parse_modinfo(info: &[u8]) -> Vec<Dependency> {
    let mut dependencies = Vec::new();
    let mut add = |name: &str, need| {
        let name = normalized(name);
        if !name.is_empty() {
            dependencies.push(Dependency { name, need });
        }
    };
    for entry in info.split(|&byte| byte == 0) {
        match str::from_utf8(entry).ok().and_then(|text| text.split_once('=')) {
            Some(("depends", names)) => names.split(',').for_each(|name| add(name, Need::Required)),
            Some(("softdep", rule)) => {
                let before = rule.split_whitespace();
                let before = before.skip_while(|&word| word != "pre:").skip(1);
                let before = before.take_while(|word| !word.ends_with(':'));
                before.for_each(|name| add(name, Need::Optional));
            }
            _ => {}
        }
    }
    dependencies
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.insert(module_name(&path), path);
        }
    }
    Ok(())
}

fn module_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    normalized(&stem.to_string_lossy())
}

/// Module names take `-` for `_` and the other way round.
fn normalized(name: &str) -> String {
    name.trim().replace('-', "_")
}

/// Both VMMs' devices are virtio over MMIO. Debian builds ext4 in, others do not, and it looks its checksum up by name.
const WANTED: &[(&str, Need)] = &[
    ("virtio", Need::Required),
    ("virtio_mmio", Need::Required),
    ("virtio_blk", Need::Required),
    ("crc32c_generic", Need::Optional),
    ("ext4", Need::Required),
    ("erofs", Need::Required),
    ("overlay", Need::Required),
    ("virtio_net", Need::Required),
    ("virtio_rng", Need::Optional),
];

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: Need = Need::Required;
    const OPTIONAL: Need = Need::Optional;

    fn graph(entries: &[(&str, Found)]) -> impl FnMut(&str) -> Result<Found, ImageError> + use<> {
        let graph: BTreeMap<_, _> = entries.iter().map(|(name, found)| ((*name).to_owned(), found.clone())).collect();
        move |name| Ok(graph.get(name).cloned().unwrap_or(Found::Missing))
    }

    fn needs(names: &[&str]) -> Found {
        let dependency = |name: &&str| Dependency { name: (*name).to_owned(), need: REQUIRED };
        Found::Module(names.iter().map(dependency).collect())
    }

    #[test]
    fn a_module_loads_once_and_after_what_it_needs() {
        let graph = graph(&[
            ("net", needs(&["ring", "failover"])),
            ("failover", needs(&["ring", "core"])),
            ("ring", needs(&[])),
            ("core", Found::BuiltIn),
            ("block", needs(&["ring"])),
        ]);
        let order = load_order(&[("net", REQUIRED), ("block", REQUIRED)], graph);
        assert_eq!(order.ok(), Some(["ring", "failover", "net", "block"].map(Into::into).into()));
    }

    #[test]
    fn a_cycle_is_refused_by_name() {
        let graph = graph(&[("a", needs(&["b"])), ("b", needs(&["c"])), ("c", needs(&["b"]))]);
        let order = load_order(&[("a", REQUIRED)], graph);
        assert!(matches!(order, Err(ImageError::ModuleCycle(name)) if name == "b"));
    }

    #[test]
    fn a_missing_module_is_refused_with_who_needs_it_unless_it_is_optional() {
        let entries = [("a", needs(&["gone"]))];
        let order = load_order(&[("a", REQUIRED)], graph(&entries));
        assert!(matches!(
            order,
            Err(ImageError::MissingModule { name, needed_by }) if name == "gone" && needed_by == "a"
        ));
        let order = load_order(&[("gone", OPTIONAL)], graph(&entries));
        assert_eq!(order.ok(), Some(vec![]));
    }

    #[test]
    fn modinfo_names_hard_and_soft_dependencies() {
        let info = b"license=GPL\0depends=virtio-ring,net_failover\0softdep=pre: crc32c post: late\0depends=\0";
        let dependency = |name: &str, need| Dependency { name: name.to_owned(), need };
        assert_eq!(
            parse_modinfo(info),
            [dependency("virtio_ring", REQUIRED), dependency("net_failover", REQUIRED), dependency("crc32c", OPTIONAL),]
        );
    }
}
