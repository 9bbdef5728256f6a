//! `cargo xtask test`: the tests, and by name what was skipped.

use std::io::{BufRead, BufReader};

use anyhow::{Context, ensure};

use crate::lab::{self, Job, Kernel, Place, Vmm};
use crate::report::Report;
use crate::{setup, shell};

pub(crate) async fn run(quick: bool, filter: &[String]) -> anyhow::Result<()> {
    if quick {
        setup::for_building()?;
    } else {
        setup::run().await?;
    }
    let mut command = shell::cargo_command();
    command.args(["test", "--workspace", "--all-features", "--no-fail-fast"]).args(filter);
    // One pipe, so that the lines of both streams stay in order.
    let (output, ours) = std::io::pipe().context("no pipe for the tests' output")?;
    command.args(["--", "--show-output"]).stdout(ours.try_clone()?).stderr(ours);
    if quick {
        command.env("WRENN_TEST_VM", "0");
    }
    let mut child = command.spawn().context("cargo could not be started")?;
    // The command holds the pipe's other end, whose closing ends the reading.
    drop(command);
    let mut report = Report::default();
    for line in BufReader::new(output).lines() {
        report.show(&line.context("the tests' output could not be read")?);
    }
    let status = child.wait()?;
    // A filter is cargo's, and may say anything; `cargo xtask lab` has one of its own.
    let in_lab = if quick || !filter.is_empty() { 0 } else { lab(&mut report).await? };
    report.print();
    ensure!(status.success(), "tests failed ({status})");
    ensure!(in_lab == 0, "tests failed in the lab (status {in_lab})");
    Ok(())
}

/// The tests with Firecracker, unless they have run with the others, or cannot.
async fn lab(report: &mut Report) -> anyhow::Result<i32> {
    match Place::find(Vmm::Firecracker).await {
        Place::Here(_) => Ok(0),
        Place::Nowhere => {
            report.leave_out(Vmm::Firecracker.missing());
            Ok(0)
        }
        Place::Machine(tools) => {
            let job = Job::Tests { targets: Vec::new(), arguments: Vec::new() };
            report.enter_lab();
            lab::in_machine(job, Kernel::default(), &tools, &mut |line| report.show(line)).await
        }
    }
}
