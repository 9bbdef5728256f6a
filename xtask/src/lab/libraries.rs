//! A program of the host's with its shared libraries, made to run on another system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::shell;

/// Copies QEMU to the lab of `tree`, with its libraries and its firmware. It finds both there, whatever the lab's system has:
/// wrenn starts it without any variables in its environment.
pub(super) fn carry_qemu(program: &Path, tree: &Path) -> anyhow::Result<()> {
    let (binary, libraries) = (tree.join("lab/bin/qemu-system-x86_64"), tree.join("lab/lib"));
    fs::create_dir_all(&libraries)?;
    copy(program, &binary)?;
    let list = output(Command::new("ldd").arg(program))?;
    let found = parse(&list);
    let mut loader = None;
    for path in found {
        let name = path.file_name().context("a library has no name")?;
        copy(&path, &libraries.join(name))?;
        if name.to_string_lossy().starts_with("ld-") {
            loader = Some(format!("/lab/lib/{}", name.to_string_lossy()));
        }
    }
    let mut patch = Command::new("patchelf");
    // Unlike a run path, this one holds for what the libraries need too.
    patch.args(["--force-rpath", "--set-rpath", "/lab/lib"]);
    if let Some(loader) = loader {
        patch.args(["--set-interpreter", &loader]);
    }
    shell::run(patch.arg(&binary)).context("QEMU for the lab needs `patchelf`: run `apt-get install patchelf`")?;
    carry_emulation(program, tree)?;
    carry_firmware(program, tree)
}

/// The emulation of processors is a module of its own in what distributions build. QEMU looks for it at the same place beside
/// its binary as on the host.
fn carry_emulation(program: &Path, tree: &Path) -> anyhow::Result<()> {
    let program = program.canonicalize().with_context(|| format!("there is no {}", program.display()))?;
    let prefix = program.ancestors().nth(2).context("QEMU is in no directory")?;
    for directory in MODULES {
        let module = Path::new(directory).join("accel-tcg-x86_64.so");
        if prefix.join(&module).is_file() {
            fs::create_dir_all(tree.join("lab").join(directory))?;
            copy(&prefix.join(&module), &tree.join("lab").join(&module))?;
        }
    }
    Ok(())
}

/// Of Debian, Fedora, and whoever builds it by hand.
const MODULES: [&str; 3] = ["lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu"];

/// QEMU looks for its firmware at the same place beside its binary as on the host: `bin/../share`.
fn carry_firmware(program: &Path, tree: &Path) -> anyhow::Result<()> {
    let list = output(Command::new(program).args(["-L", "help"]))?;
    for directory in list.lines().map(Path::new).filter(|directory| directory.is_dir()) {
        let in_share = directory.parent().is_some_and(|parent| parent.ends_with("share"));
        let Some(name) = directory.file_name().filter(|_| in_share) else { continue };
        let to = tree.join("lab/share").join(name);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            // Links lead to the other directories; one may lead to a package that is not installed.
            if entry.path().is_file() {
                copy(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

/// The files in what `ldd` prints: `NAME => PATH (ADDRESS)`, and for the loader `PATH (ADDRESS)`.
fn parse(list: &str) -> Vec<PathBuf> {
    let paths = list.lines().filter_map(|line| {
        let place = line.split_once("=>").map_or(line, |(_, place)| place);
        place.split_whitespace().next().filter(|path| path.starts_with('/'))
    });
    paths.map(PathBuf::from).collect()
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("{} cannot be copied", from.display()))?;
    Ok(())
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("`{program}` could not be started"))?;
    ensure!(output.status.success(), "`{program}` failed ({})", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_taken_from_the_list() {
        let list =
            "\tlinux-vdso.so.1 (0x1)\n\tlibz.so.1 => /lib/libz.so.1 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(parse(list), [Path::new("/lib/libz.so.1"), Path::new("/lib64/ld-linux-x86-64.so.2")]);
    }

    #[test]
    fn qemu_with_its_libraries_apart_runs_where_patchelf_is() {
        let found = |program: &str| Command::new(program).arg("--version").output().is_ok();
        if !found("patchelf") || !found("qemu-system-x86_64") {
            println!("skipped: qemu_with_its_libraries_apart_runs_where_patchelf_is: there is no patchelf or no QEMU");
            return;
        }
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join("lab/bin")).unwrap();
        let path = wrenn_core::find_in_path(&std::env::var_os("PATH").unwrap(), "qemu-system-x86_64").unwrap();
        carry_qemu(&path, tree.path()).unwrap();
        assert!(tree.path().join("lab/share/qemu/bios-microvm.bin").is_file());
        let lab = tree.path().join("lab");
        for module in MODULES.map(|directory| Path::new(directory).join("accel-tcg-x86_64.so")) {
            assert_eq!(lab.join(&module).is_file(), Path::new("/usr").join(&module).is_file(), "{}", module.display());
        }
        let loader = fs::read_dir(lab.join("lib")).unwrap().map(|entry| entry.unwrap().path());
        let loader =
            loader.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("ld-")).unwrap();
        let mut command = Command::new(loader);
        command.arg("--library-path").arg(lab.join("lib")).arg(lab.join("bin/qemu-system-x86_64")).arg("--version");
        assert!(output(&mut command).unwrap().contains("QEMU"));
    }
}
