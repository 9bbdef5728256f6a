//! `cargo xtask lab`: the tests that need a VMM with KVM, the real Firecracker above all. Where KVM serves they run as they
//! are; elsewhere in the lab, a virtual machine whose emulated processor has virtualization, and so a KVM.
//!
//! ```text
//! Tools::find -> HostKernel::prepare -> test_binaries::build -> Drive::write -> Machine::run -> exit status
//! ```

mod drive;
mod host_kernel;
mod initramfs;
mod libraries;
mod machine;
mod modules;
mod test_binaries;
mod tools;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use wrenn_core::image::Image;
use wrenn_core::{Acceleration, Host};

use crate::report::Report;
use crate::{setup, shell};
use drive::Drive;
use host_kernel::HostKernel;
use machine::Machine;
use test_binaries::{Selection, TestBinary};
pub(crate) use tools::{Tools, Vmm};

/// What to do in the lab.
#[derive(Debug)]
pub(crate) enum Job {
    /// Tests of `wrenn-core`: the named targets, with what belongs to the VMM; `arguments` choose among their tests.
    Tests { targets: Vec<String>, arguments: Vec<String> },
    /// A shell line.
    Command(String),
}

/// Where tests with Firecracker can run.
#[derive(Debug)]
pub(crate) enum Place {
    /// On this machine: its KVM serves.
    Here(Tools),
    /// In the lab.
    Machine(Tools),
    Nowhere,
}

impl Place {
    /// Looks for the VMM. Where KVM serves it, tests with it run as they are.
    pub(crate) async fn find(vmm: Vmm) -> Self {
        let Some(tools) = Tools::find(vmm, |name| std::env::var_os(name)) else { return Self::Nowhere };
        match Host::builder().driver(vmm.driver()).doctor().await.choice {
            Ok(choice) if choice.acceleration == Acceleration::Kvm => Self::Here(tools),
            _ => Self::Machine(tools),
        }
    }
}

/// `cargo xtask lab`. Returns the status of the job.
pub(crate) async fn run(vmm: Vmm, job: Job) -> anyhow::Result<i32> {
    if Tools::find(vmm, |name| std::env::var_os(name)).is_none() {
        println!("skipped: {}", vmm.missing());
        return Ok(0);
    }
    setup::run().await?;
    match (Place::find(vmm).await, job) {
        (Place::Here(tools), Job::Tests { targets, arguments }) => {
            println!("lab: KVM serves here, so the tests run as they are");
            Selection::new(vmm, &targets)?.run(&tools, &arguments)
        }
        (Place::Here(tools) | Place::Machine(tools), Job::Command(line)) => {
            in_machine(Job::Command(line), &tools, &mut |line| println!("{line}")).await
        }
        (Place::Machine(tools), job) => {
            let mut report = Report::default();
            let status = in_machine(job, &tools, &mut |line| report.show(line)).await?;
            report.print();
            Ok(status)
        }
        (Place::Nowhere, _) => anyhow::bail!("the VMM has gone meanwhile"),
    }
}

/// Does the job in the lab; `line` gets each line of its output as it comes.
///
/// An interrupt or a termination ends the virtual machine and removes its files.
pub(crate) async fn in_machine(job: Job, tools: &Tools, line: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
    let watch = |kind| signal(kind).context("signals cannot be watched");
    let (mut interrupted, mut terminated) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    tokio::select! {
        status = boot_and_do(job, tools, line) => status,
        _ = interrupted.recv() => anyhow::bail!("the lab was interrupted"),
        _ = terminated.recv() => anyhow::bail!("the lab was terminated"),
    }
}

async fn boot_and_do(job: Job, tools: &Tools, line: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
    let image = Image::open(&wrenn_core::default_data_dir(), "base")?;
    let kernel = HostKernel::prepare(&shell::target().join("lab"))?;
    let (binaries, script) = match job {
        Job::Tests { targets, arguments } => {
            let binaries = Selection::new(tools.vmm, &targets)?.build()?;
            let script = run_tests(drive::TESTS, &binaries, &arguments);
            (binaries, script)
        }
        Job::Command(command) => (Vec::new(), command),
    };
    let drive = Drive::write(&image, tools, &binaries, &tools.script(&script))?;
    println!("lab: starting a machine with an emulated KVM, and {} in it", tools.program().display());
    Machine { kernel: &kernel, base: &image.base(), drive: &drive }.run(line).await
}

/// A script that runs every binary, and fails with the status of the last one that failed.
fn run_tests(directory: &str, binaries: &[TestBinary], arguments: &[String]) -> String {
    let arguments: Vec<String> = arguments.iter().map(|argument| shell::quote(argument)).collect();
    let arguments = arguments.join(" ");
    let runs = binaries.iter().map(|TestBinary { name, .. }| {
        format!(
            "echo \"     Running {name} (in the lab)\"\n{directory}/{name} --show-output {arguments} || status=$?\n"
        )
    });
    format!("status=0\n{}exit $status\n", runs.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_binary_runs_and_a_failure_is_kept() {
        let binary = |name: &str| TestBinary { name: name.to_owned(), path: name.into() };
        let script = run_tests("/bin", &[binary("false"), binary("true")], &["it's".to_owned()]);
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
        assert!(script.contains(r"'it'\''s'"), "{script}");
    }
}
