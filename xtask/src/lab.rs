//! `cargo xtask lab`: the tests that need a VMM with KVM, the real Firecracker above all. Where KVM serves they run as they
//! are; elsewhere in the lab, a virtual machine whose emulated processor has virtualization, and so a KVM.
//!
//! ```text
//! Tools::find -> HostKernel::prepare -> test_binaries::build -> Plan::of -> Drive::write -> Machine::run -> exit status
//!                                                               ▲                            │
//!                                                               └── the machine has died ◀───┘
//! ```
//!
//! The emulation of virtualization has faults, so a machine can crash or stand still, and a guest in it can. Each machine,
//! and each test in it, has a bound; a new machine runs what is left; and a test that was running or that failed gets a
//! second try, of which a line tells.

mod drive;
mod host_kernel;
mod initramfs;
mod libraries;
mod machine;
mod modules;
mod monitor;
mod patience;
mod plan;
mod progress;
mod test_binaries;
mod tools;

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use wrenn_core::Host;
use wrenn_core::image::Image;

use crate::report::Report;
use crate::{setup, shell};
use drive::Drive;
use host_kernel::HostKernel;
pub(crate) use host_kernel::Kernel;
use machine::{End, Machine};
use patience::Patience;
use plan::Plan;
use progress::{Event, TEST_MAX};
use test_binaries::{Selection, TestBinary};
pub(crate) use tools::{Acceleration, Tools, Vmm};

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
            Ok(choice) if choice.acceleration == wrenn_core::Acceleration::Kvm => Self::Here(tools),
            _ => Self::Machine(tools),
        }
    }
}

/// What is to run where.
#[derive(Debug)]
pub(crate) struct Errand {
    pub(crate) vmm: Vmm,
    pub(crate) acceleration: Acceleration,
    /// The lab's own. Where one is named, the job is done in the lab, wherever else it could be.
    pub(crate) kernel: Option<Kernel>,
    pub(crate) job: Job,
}

/// `cargo xtask lab`. Returns the status of the job.
pub(crate) async fn run(errand: Errand) -> anyhow::Result<i32> {
    let Errand { vmm, acceleration, kernel, job } = errand;
    anyhow::ensure!(
        vmm == Vmm::Qemu || acceleration == Acceleration::Kvm,
        "Firecracker emulates no processor: leave --acceleration out, or add --vmm qemu"
    );
    if Tools::find(vmm, |name| std::env::var_os(name)).is_none() {
        println!("skipped: {}", vmm.missing());
        return Ok(0);
    }
    setup::run().await?;
    let place = match Place::find(vmm).await {
        Place::Machine(tools) if acceleration == Acceleration::Tcg && kernel.is_none() => Place::Here(tools),
        Place::Here(tools) if kernel.is_some() => Place::Machine(tools),
        place => place,
    };
    let kernel = kernel.unwrap_or_default();
    match (place, job) {
        (Place::Here(tools), Job::Tests { targets, arguments }) => {
            println!("lab: sandboxes run here, so the tests run as they are");
            Selection::new(vmm, &targets)?.run(&tools.accelerated_by(acceleration), &arguments)
        }
        (Place::Here(tools) | Place::Machine(tools), Job::Command(line)) => {
            let tools = tools.accelerated_by(acceleration);
            in_machine(Job::Command(line), kernel, &tools, &mut |line| println!("{line}")).await
        }
        (Place::Machine(tools), job) => {
            let mut report = Report::default();
            let tools = tools.accelerated_by(acceleration);
            let status = in_machine(job, kernel, &tools, &mut |line| report.show(line)).await?;
            report.print();
            Ok(status)
        }
        (Place::Nowhere, _) => anyhow::bail!("the VMM has gone meanwhile"),
    }
}

/// Does the job in the lab; `line` gets each line of its output as it comes.
///
/// An interrupt or a termination ends the virtual machine and removes its files.
pub(crate) async fn in_machine(
    job: Job,
    kernel: Kernel,
    tools: &Tools,
    line: &mut dyn FnMut(&str),
) -> anyhow::Result<i32> {
    let watch = |kind| signal(kind).context("signals cannot be watched");
    let (mut interrupted, mut terminated) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    tokio::select! {
        status = boot_and_do(job, kernel, tools, line) => status,
        _ = interrupted.recv() => anyhow::bail!("the lab was interrupted"),
        _ = terminated.recv() => anyhow::bail!("the lab was terminated"),
    }
}

async fn boot_and_do(job: Job, kernel: Kernel, tools: &Tools, line: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
    let image = Image::open(&wrenn_core::default_data_dir(), "base")?;
    let kernel = HostKernel::prepare(&shell::target().join("lab"), kernel)?;
    let lab = Lab { tools, kernel, image, patience: Patience::now().for_slower(tools.slowness()) };
    match job {
        Job::Tests { targets, arguments } => {
            let binaries = Selection::new(tools.vmm, &targets)?.build()?;
            lab.run_tests(&binaries, &arguments, line).await
        }
        Job::Command(command) => match lab.boot(&[], &command, COMMAND_MAX, line, &mut |_| {}).await? {
            End::Status(status) => Ok(status),
            End::Died { why, seen } => anyhow::bail!("the lab's machine has died: {why}\n{seen}"),
        },
    }
}

/// What every machine of a run is made of.
struct Lab<'a> {
    tools: &'a Tools,
    kernel: HostKernel,
    image: Image,
    patience: Patience,
}

impl Lab<'_> {
    /// Boots a machine that runs `script`, and follows it to its end.
    async fn boot(
        &self,
        binaries: &[TestBinary],
        script: &str,
        run_max: Duration,
        line: &mut dyn FnMut(&str),
        event: &mut dyn FnMut(Event),
    ) -> anyhow::Result<End> {
        let drive = Drive::write(&self.image, self.tools, binaries, &self.tools.script(script, self.patience))?;
        println!("lab: starting a machine with an emulated KVM, and {} in it", self.tools.program().display());
        let started = Instant::now();
        let base = self.image.base();
        let machine = Machine { kernel: &self.kernel, base: &base, drive: &drive, patience: self.patience, run_max };
        let end = machine.run(line, event).await?;
        println!("lab: the machine ran for {} s", started.elapsed().as_secs());
        Ok(end)
    }

    /// Runs each test to its end, in another machine when one dies.
    async fn run_tests(
        &self,
        binaries: &[TestBinary],
        arguments: &[String],
        line: &mut dyn FnMut(&str),
    ) -> anyhow::Result<i32> {
        let test_max = self.patience.times(TEST_MAX);
        println!(
            "lab: a test may take {} s (this machine's load: {} to a processor)",
            test_max.as_secs(),
            self.patience
        );
        let mut plan = Plan::of(binaries, arguments, test_max)?;
        let another_max = self.patience.times(run_max(plan.waiting()));
        let started = Instant::now();
        for machine in 1.. {
            let script = plan.script(drive::TESTS);
            let runs = plan.runs();
            let run_max = run_max(plan.waiting());
            match self.boot(binaries, &script, run_max, line, &mut |event| plan.take(event)).await? {
                End::Status(status) if plan.runs() == runs => anyhow::bail!("the lab ran no test ({status})"),
                End::Status(_) => {}
                End::Died { why, seen } => {
                    println!("lab: machine {machine} has died: {why}\n{seen}");
                    if let Some(test) = plan.interrupt(&format!("the machine died: {why}")) {
                        println!("lab: it was running {test}");
                    }
                }
            }
            let late = started.elapsed() > another_max;
            if plan.waiting() > 0 && (late || machine == MACHINES_MAX) {
                let seconds = started.elapsed().as_secs();
                plan.give_up(&format!("it had no turn in {seconds} s and {machine} machine(s)"));
            }
            if plan.waiting() == 0 {
                break;
            }
            println!("lab: {} tests are left for another machine", plan.waiting());
        }
        plan.account().iter().for_each(|said| line(said));
        Ok(plan.status())
    }
}

/// With more deaths than this the lab is not worth its time.
const MACHINES_MAX: u32 = 5;
/// How long so many tests may take, in however many machines: the longest of them takes two minutes, most take a few
/// seconds.
fn run_max(tests: usize) -> Duration {
    STARTS_MAX + EACH_MAX * u32::try_from(tests).unwrap_or(u32::MAX)
}

const STARTS_MAX: Duration = Duration::from_secs(20 * 60);
const EACH_MAX: Duration = Duration::from_secs(90);
/// Of a shell line instead of tests.
const COMMAND_MAX: Duration = Duration::from_secs(30 * 60);
