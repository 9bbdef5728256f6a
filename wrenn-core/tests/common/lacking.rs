//! A machine that lacks something, for a program of its own: this test binary, started once more, in namespaces and
//! with rights from which something was taken.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use wrenn_core::{Host, Sandbox};

/// What is taken from the program.
#[derive(Default)]
pub(crate) struct Lacking {
    user: Option<u32>,
    /// Lines of a shell, run as root in a mount namespace of the program's own.
    lines: Vec<String>,
    capabilities: Vec<&'static str>,
    only: Option<&'static [&'static str]>,
    calls: Vec<&'static str>,
    variables: Vec<(&'static str, String)>,
    in_user_namespace: bool,
}

impl Lacking {
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    /// Runs a line of a shell first, for instance to mount something over a device.
    pub(crate) fn after(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// As if the directory were empty.
    pub(crate) fn without_directory(self, path: &str) -> Self {
        self.after(format!("mount -t tmpfs none {path}"))
    }

    pub(crate) fn without_capability(mut self, name: &'static str) -> Self {
        self.capabilities.push(name);
        self
    }

    pub(crate) fn with_only(mut self, capabilities: &'static [&'static str]) -> Self {
        self.only = Some(capabilities);
        self
    }

    /// A system call answers `EPERM`, as a container's seccomp profile has it.
    pub(crate) fn without_call(mut self, name: &'static str) -> Self {
        self.calls.push(name);
        self
    }

    pub(crate) fn variable(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    /// As on a machine that was never set up.
    pub(crate) fn without_qemu(self) -> Self {
        let hidden = "for at in $(which -a qemu-system-x86_64); do mount --bind /dev/null $at; done";
        self.variable("WRENN_QEMU", "").after(hidden)
    }

    /// A `/dev` like a container's: what every container has, and these.
    pub(crate) fn with_devices(self, devices: &[&str]) -> Self {
        let all = ["null", "zero", "full", "random", "urandom", "tty"].iter().chain(devices);
        let mut lines = "mount -t tmpfs none /mnt".to_owned();
        for device in all {
            let at = format!("/mnt/{device}");
            lines.push_str(&format!("\nmkdir -p $(dirname {at}); touch {at}; mount --bind /dev/{device} {at}"));
        }
        self.after(lines).after("mkdir /mnt/shm; mount --rbind /mnt /dev")
    }

    pub(crate) fn in_user_namespace(mut self) -> Self {
        self.in_user_namespace = true;
        self
    }

    /// The program is run by a user without any right of root's, to whom the data directory belongs.
    pub(crate) fn run_by(mut self, uid: u32) -> Self {
        self.user = Some(uid);
        self
    }

    /// Every user may open the device.
    pub(crate) fn with_device_for_all(self, device: &str) -> Self {
        let at = format!("/mnt/{}", device.replace('/', "-"));
        // A node of its own, since the mode of the host's is the host's.
        self.after(format!(
            "mountpoint -q /mnt || mount -t tmpfs none /mnt\n\
             mknod {at} c $(stat -c 'echo $((0x%t)) $((0x%T))' {device} | sh)\n\
             chmod 666 {at}; mount --bind {at} {device}"
        ))
    }

    /// What the opening of a host, and the first sandbox where that is wanted, come to.
    pub(crate) fn open(self, data_dir: &Path, then: Then) -> String {
        self.run("program_that_opens", data_dir, then)
    }

    /// Starts this test binary's test `program` there, which ends with [`program`], and returns what it came to.
    pub(crate) fn run(self, program: &str, data_dir: &Path, then: Then) -> String {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if self.in_user_namespace {
            command.args(["--user", "--map-root-user"]);
        }
        let lines = self.lines.join("\n");
        // Another user may have no way to the binary by its path.
        let me = std::env::current_exe().unwrap();
        command.args(["sh", "-e", "-c"]).arg(format!("exec 3< \"$0\"\n{lines}\nexec \"$@\"")).arg(me);
        let sets = match self.only {
            Some(only) => format!("-all,+{}", only.join(",+")),
            None => self.capabilities.iter().map(|name| format!("-{name}")).collect::<Vec<_>>().join(","),
        };
        if !sets.is_empty() {
            command.arg("setpriv").arg(format!("--bounding-set={sets}")).arg("--inh-caps=-all");
        }
        if let Some(uid) = self.user {
            std::os::unix::fs::chown(data_dir, Some(uid), Some(uid)).unwrap();
            let ids = [format!("--reuid={uid}"), format!("--regid={uid}")];
            command.arg("setpriv").args(ids).args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
        }
        command.arg("/proc/self/fd/3").args(["--exact", program, "--nocapture"]).current_dir("/");
        command.env("WRENN_TEST_DATA_DIR", data_dir).env("WRENN_TEST_DENY", self.calls.join(","));
        command.env("WRENN_TEST_THEN", then.name()).envs(self.variables);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().find_map(|line| line.split_once("came to: ")).map(|(_, said)| said.to_owned());
        said.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

/// What the program does with an open host.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    Run,
    /// What the doctor says of the network, and then as [`Then::Run`].
    TellOfNetworkAndRun,
}

impl Then {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "open",
            Self::Run => "run",
            Self::TellOfNetworkAndRun => "doctor",
        }
    }
}

/// The program. It does nothing where it was not started by [`Lacking::open`].
pub(crate) fn program() {
    let Some(data_dir) = std::env::var_os("WRENN_TEST_DATA_DIR") else { return };
    // Before there are threads, which inherit it.
    deny(&std::env::var("WRENN_TEST_DENY").unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let said = runtime.block_on(async {
        let host = match Host::open(&data_dir).await {
            Ok(host) => host,
            Err(error) => return format!("refused, {}: {error}", error.code()),
        };
        let then = std::env::var("WRENN_TEST_THEN").unwrap();
        if then == "open" {
            return "open".to_owned();
        }
        let told = if then == "doctor" { of_network(Path::new(&data_dir)).await } else { String::new() };
        let sandbox = Sandbox::create(&host, "base").await.unwrap();
        let said = super::run(&sandbox, "echo hello").await;
        let paging = sandbox.restore_report().await.unwrap().paging;
        let sandbox = sandbox.pause().await.unwrap().resume().await.unwrap();
        let again = super::run(&sandbox, "echo again").await;
        sandbox.kill().await.unwrap();
        format!("{told}{said} {again} {paging:?}")
    });
    println!("came to: {said}");
}

async fn of_network(data_dir: &Path) -> String {
    let diagnosis = Host::builder().data_dir(data_dir).doctor().await;
    diagnosis.findings.iter().find(|finding| finding.subject == "network").unwrap().found.clone() + "; "
}

/// Instead of a call's name: the calls of `socket` for IPv6.
pub(crate) const IPV6: &str = "IPv6";
/// Instead of a call's name: the calls of `clone` that make a user namespace.
pub(crate) const USER_NAMESPACES: &str = "user namespaces";

fn deny(names: &str) {
    let calls = names.split(',').filter(|name| !["", USER_NAMESPACES, IPV6].contains(name));
    let numbers = calls.map(|name| match name {
        "mount" => libc::SYS_mount,
        "pidfd_getfd" => libc::SYS_pidfd_getfd,
        "ptrace" => libc::SYS_ptrace,
        "userfaultfd" => libc::SYS_userfaultfd,
        "unshare" => libc::SYS_unshare,
        other => panic!("{other} is not in this list"),
    });
    let mut rules: BTreeMap<i64, _> = numbers.map(|number| (number, Vec::new())).collect();
    let first_is = |how, value| {
        let is = SeccompCondition::new(0, SeccompCmpArgLen::Qword, how, value).unwrap();
        vec![SeccompRule::new(vec![is]).unwrap()]
    };
    if names.contains(USER_NAMESPACES) {
        let flag = libc::CLONE_NEWUSER.unsigned_abs().into();
        rules.insert(libc::SYS_clone, first_is(SeccompCmpOp::MaskedEq(flag), flag));
    }
    if names.contains(IPV6) {
        rules.insert(libc::SYS_socket, first_is(SeccompCmpOp::Eq, libc::AF_INET6.unsigned_abs().into()));
    }
    if rules.is_empty() {
        return;
    }
    let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, TargetArch::x86_64).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}
