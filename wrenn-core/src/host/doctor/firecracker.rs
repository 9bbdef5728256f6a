//! Firecracker and its jailer, as the doctor tells of them.

use crate::error::chain;
use crate::host::builder::HostBuilder;
use crate::host::choice::Installed;
use crate::host::doctor::finding::Finding;

/// Whether there is a Firecracker that wrenn can drive, and its jailer beside it.
pub(super) async fn findings(host: &HostBuilder) -> Vec<Finding> {
    const WHAT: &str = "firecracker";
    match host.firecracker_installed().await {
        Ok(Some(installed)) => vec![of_itself(&installed), of_its_jailer(&installed)],
        Ok(None) => vec![Finding::lacking(
            WHAT,
            "it is not installed",
            "put a released binary on the PATH, or name it in WRENN_FIRECRACKER: it is what production runs on; \
             releases are at https://github.com/firecracker-microvm/firecracker/releases",
        )],
        Err(error) => vec![Finding::lacking(WHAT, chain(&error), "the text above says what to do")],
    }
}

fn of_itself(installed: &Installed) -> Finding {
    let found = format!("{}, at {}", installed.version, installed.program.display());
    match installed.flaws.as_slice() {
        [] => Finding::good("firecracker", found),
        flaws => Finding::lacking("firecracker", found, format!("update it: {}", flaws.join("; "))),
    }
}

fn of_its_jailer(installed: &Installed) -> Finding {
    const WHAT: &str = "jailer";
    match &installed.jailer {
        Ok((jailer, version)) if *version == installed.version => {
            Finding::good(WHAT, format!("{version}, at {}", jailer.display()))
        }
        Ok((jailer, version)) => Finding::lacking(
            WHAT,
            format!("{version}, at {}, and Firecracker is {}", jailer.display(), installed.version),
            "install both from one release",
        ),
        Err(error) => {
            Finding::lacking(WHAT, chain(error), "with it Firecracker runs in a root and a control group of its own")
        }
    }
}
