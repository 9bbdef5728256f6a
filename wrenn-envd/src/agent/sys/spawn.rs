//! A new process, without a copy of the agent.
//!
//! ```text
//!  a thread ---- clone (shares the memory, on a stack of its own) ---> become_it -> exec
//!    |  waits meanwhile                                                   |
//!    +<--------------------- goes on -------------------------------------+
//! ```
//!
//! The new process finds its directory and its program by itself, with its user's rights: a file system that does not answer
//! holds up the thread that starts the process, and no other.
//!
//! `fork`, which [`std::process::Command`] needs for most of this, copies the agent's page tables for a process that
//! throws them away. And a process that writes itself into its control group waits for every processor to pass through a
//! quiet moment, which takes longer than all the rest; one that is born there does not.

use std::{
    arch::asm,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs, io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr,
    sync::{Arc, LazyLock},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, SigmaskHow},
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Gid, Pid, Uid},
};

use super::{newborn::Newborn, watchdog};

/// A program, and what its process is when it begins: a session of its own, with every signal as usual, and killable
/// before the agent is.
#[derive(Debug)]
pub(in crate::agent) struct Program {
    /// Where it may be, each with a slash: the first one that can be executed is. A relative one lies under `cwd`.
    pub(in crate::agent) paths: Vec<CString>,
    /// From its name on.
    pub(in crate::agent) args: Vec<CString>,
    /// `NAME=value` each.
    pub(in crate::agent) envs: Vec<CString>,
    /// The directory it starts in, which is entered with the user's own rights.
    pub(in crate::agent) cwd: CString,
    /// Whether it starts in `/` where that directory is missing, or closed to the user.
    pub(in crate::agent) else_in_root: bool,
    pub(in crate::agent) uid: Uid,
    pub(in crate::agent) gid: Gid,
    /// Supplementary groups; `None` where the agent has no right to change who it is.
    pub(in crate::agent) groups: Option<Vec<Gid>>,
    /// The directory of its control group; `None` for the agent's own.
    pub(in crate::agent) control_group: Option<Arc<OwnedFd>>,
    /// Standard input, output and error.
    pub(in crate::agent) streams: [OwnedFd; 3],
    /// Whether its standard input is the terminal that controls it.
    pub(in crate::agent) at_terminal: bool,
}

/// Why a process was not started. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub(in crate::agent) enum StartError {
    /// No process can be made, or it cannot become what it should.
    #[error("no process can be made")]
    Process(#[source] io::Error),
    #[error("its directory cannot be entered")]
    Directory(#[source] io::Error),
    #[error("its program cannot be executed")]
    Program(#[source] io::Error),
    /// A file system did not answer, or its user has stopped it.
    #[error("it was stopped before it began, or its directory or its program did not answer")]
    HeldUp,
}

impl Program {
    /// Starts it, and returns its number once it runs, and not the agent any more. It is the caller's to reap, and by the time
    /// that it has a number `newborn` has it.
    ///
    /// It waits for the file systems that the directory and the program are in.
    ///
    /// # Errors
    ///
    /// Whoever reaps every child of the agent may have reaped this one too.
    pub(in crate::agent) fn start(&self, newborn: &Arc<Newborn>) -> Result<u32, StartError> {
        let (args, envs) = (pointers(&self.args), pointers(&self.envs));
        let watched = watchdog::watch(newborn).map_err(StartError::Process)?;
        let (pid, ignored, scores) = (newborn.place(), *IGNORED, *SCORES);
        let mut birth =
            Birth { program: self, args: &args, envs: &envs, pid, ignored, scores, joins_group: false, failure: None };
        let mut stack = Box::<[u8]>::new_uninit_slice(STACK_BYTES + size_of_val(args.as_slice()));
        let refused = |errno: Errno| StartError::Process(errno.into());
        // A handler of the agent's must not run in a process that shares its memory.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(refused)?;
        let made = birth.give(&mut stack);
        mask.thread_set_mask().map_err(refused)?;
        let pid = made.map_err(refused)?;
        let failure = match (watched.was_ended(), birth.failure) {
            (true, _) => StartError::HeldUp,
            (false, None) => {
                return u32::try_from(pid.as_raw()).map_err(|error| StartError::Process(io::Error::other(error)));
            }
            (false, Some((Step::Become, errno))) => refused(errno),
            (false, Some((Step::Directory, errno))) => StartError::Directory(errno.into()),
            (false, Some((Step::Program, errno))) => StartError::Program(errno.into()),
        };
        while waitpid(pid, None::<WaitPidFlag>) == Err(Errno::EINTR) {}
        Err(failure)
    }
}

/// What the new process was about when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Become,
    Directory,
    Program,
}

/// What the new process finds in the memory that it shares, and leaves there.
struct Birth<'a> {
    program: &'a Program,
    args: &'a [*const c_char],
    envs: &'a [*const c_char],
    /// Where the kernel writes the new process's number, before this one waits for it.
    pid: *mut c_int,
    /// The signals that it has to forget, a bit each.
    ignored: u32,
    /// Whether it has to say that it may be killed before others.
    scores: bool,
    /// Whether it has yet to enter its control group: the kernel is older than 5.7.
    joins_group: bool,
    /// Why it could not execute the program.
    failure: Option<(Step, Errno)>,
}

impl Birth<'_> {
    fn give(&mut self, stack: &mut [MaybeUninit<u8>]) -> Result<Pid, Errno> {
        match self.clone_anew(stack) {
            Err(Errno::EINVAL | Errno::E2BIG | Errno::ENOSYS) => {
                self.joins_group = self.program.control_group.is_some();
                self.ignored = u32::MAX;
                self.clone_here(stack)
            }
            made => made,
        }
    }

    /// With what the kernel can do since 5.7: the process is born into its group, and without the agent's handlers.
    fn clone_anew(&mut self, stack: &mut [MaybeUninit<u8>]) -> Result<Pid, Errno> {
        const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        // SAFETY: `clone_args` is plain data, for which all zeroes is a value.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = u64::from(FLAGS.cast_unsigned()) | CLONE_CLEAR_SIGHAND;
        args.parent_tid = self.pid.addr() as u64;
        args.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
        args.stack = stack.as_ptr().addr() as u64;
        args.stack_size = (top_of(stack) - stack.as_ptr().addr()) as u64;
        if let Some(group) = &self.program.control_group {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = u64::from(group.as_raw_fd().cast_unsigned());
        }
        // SAFETY: `args` is live, asks for shared memory and for a wait, and its stack is unused and aligned at its end.
        unsafe { self.clone_with(libc::SYS_clone3, (&raw const args).addr(), size_of_val(&args)) }
    }

    fn clone_here(&mut self, stack: &mut [MaybeUninit<u8>]) -> Result<Pid, Errno> {
        let flags = (FLAGS | libc::SIGCHLD).cast_unsigned() as usize;
        // SAFETY: it asks for shared memory and for a wait, and the stack is unused and aligned at its end.
        unsafe { self.clone_with(libc::SYS_clone, flags, top_of(stack)) }
    }

    /// # Safety
    ///
    /// `call` is `clone` or `clone3`, and its first two arguments ask for a process that shares the memory, that this
    /// thread waits for, and that has an unused, aligned stack of at least [`STACK_BYTES`].
    unsafe fn clone_with(&mut self, call: libc::c_long, first: usize, second: usize) -> Result<Pid, Errno> {
        let result: libc::c_long;
        // SAFETY: the caller vouches for the arguments. The new process begins behind `syscall` as this one does, on its
        // own stack, and goes on to `become_it`, which does not return. This thread stands still until the other has
        // left the memory, so what `self` refers to stays; every register but those two that `syscall` itself uses is
        // this thread's own.
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, r12",
                "call r13",
                "ud2",
                "2:",
                inlateout("rax") call => result,
                in("rdi") first,
                in("rsi") second,
                // The third of `clone`'s; `clone3` has two.
                in("rdx") self.pid,
                in("r10") 0_usize,
                in("r8") 0_usize,
                in("r12") ptr::from_mut(self).cast::<c_void>(),
                in("r13") become_it as extern "C" fn(*mut c_void) -> !,
                lateout("rcx") _,
                lateout("r11") _,
            );
        }
        match c_int::try_from(result) {
            Ok(pid) if pid > 0 => Ok(Pid::from_raw(pid)),
            result => Err(Errno::from_raw(-result.unwrap_or(-libc::EIO))),
        }
    }

    /// Becomes what the program wants, and then the program; returns why it could not.
    fn go(&self) -> (Step, Errno) {
        if let Err(errno) = self.enter() {
            return (Step::Become, errno);
        }
        match self.enter_directory() {
            Err(errno) => (Step::Directory, errno),
            Ok(()) => (Step::Program, self.execute()),
        }
    }

    /// Becomes the process that the program wants, with its user's rights.
    ///
    /// This runs in memory that belongs to another process: it may make system calls and nothing else. It allocates
    /// nothing, takes no lock, and cannot panic. The C library's `setuid` and its like speak to all threads, which are not
    /// this process's, and so may not be called.
    fn enter(&self) -> Result<(), Errno> {
        let program = self.program;
        for (stream, number) in program.streams.iter().zip(0..) {
            // SAFETY: both are descriptors, of which the second may be taken.
            Errno::result(unsafe { libc::dup2(stream.as_raw_fd(), number) })?;
        }
        // SAFETY: it takes no argument.
        Errno::result(unsafe { libc::setsid() })?;
        forget_signals(self.ignored);
        if program.at_terminal {
            // SAFETY: TIOCSCTTY takes a number; 0 says that no terminal is taken from another session.
            Errno::result(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) })?;
        }
        if let Some(group) = program.control_group.as_ref().filter(|_| self.joins_group) {
            write_to(group.as_raw_fd(), c"cgroup.procs", c"0")?;
        }
        if self.scores {
            // A kernel without the file has no out-of-memory score to set.
            let _ = write_to(libc::AT_FDCWD, c"/proc/self/oom_score_adj", c"100");
        }
        if let Some(groups) = &program.groups {
            // SAFETY: a `Gid` is laid out as the number that it is, and the list is live.
            Errno::result(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
            // SAFETY: it takes a number.
            Errno::result(unsafe { libc::syscall(libc::SYS_setgid, program.gid.as_raw()) })?;
            // SAFETY: it takes a number.
            Errno::result(unsafe { libc::syscall(libc::SYS_setuid, program.uid.as_raw()) })?;
        }
        SigSet::empty().thread_set_mask()
    }

    /// Goes to the directory that the program starts in.
    fn enter_directory(&self) -> Result<(), Errno> {
        let entered = change_directory(&self.program.cwd);
        match entered {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) if self.program.else_in_root => change_directory(c"/"),
            entered => entered,
        }
    }

    /// Becomes the first of the program's paths that can be executed; returns why none can.
    fn execute(&self) -> Errno {
        let mut failure = Errno::ENOENT;
        for path in &self.program.paths {
            // SAFETY: all are live; both lists end with a null pointer, and their strings with a NUL.
            unsafe { libc::execvpe(path.as_ptr(), self.args.as_ptr(), self.envs.as_ptr()) };
            match Errno::last() {
                // One of the others may be what is meant.
                Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV | Errno::ESTALE | Errno::ETIMEDOUT => {}
                Errno::EACCES => failure = Errno::EACCES,
                other => return other,
            }
        }
        failure
    }
}

fn change_directory(path: &CStr) -> Result<(), Errno> {
    // SAFETY: the path ends with a NUL.
    Errno::result(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

/// Where the new process begins.
extern "C" fn become_it(birth: *mut c_void) -> ! {
    // SAFETY: it is the `Birth` of the thread that waits for this process, and which does not touch it meanwhile.
    let birth = unsafe { &mut *birth.cast::<Birth>() };
    birth.failure = Some(birth.go());
    // SAFETY: it ends this process at once, and touches nothing of the other's.
    unsafe { libc::_exit(127) }
}

/// Takes back what whoever started the agent wanted ignored, which exec would keep: else a shell's `&` before the agent
/// would make every program in it deaf to Ctrl-C. And from here on no handler of the agent's can run.
fn forget_signals(signals: u32) {
    for signal in (1..32).filter(|signal| signals & (1 << signal) != 0) {
        // SAFETY: the default is no handler, so that nothing is called. Two of them cannot be set, and need not be.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The signals that the agent ignores, a bit each. They are the same for all its life.
static IGNORED: LazyLock<u32> =
    LazyLock::new(|| (1..32).filter(|signal| is_ignored(*signal)).map(|signal| 1 << signal).sum());

fn is_ignored(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it only writes the present one to `action`, which is live.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all zeroes are an action too.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Whether a process does not begin with the score that it should have: `init` of a guest has it, for its children's sake.
/// A visit to `/proc` makes a directory there for a process that may be gone in a moment.
static SCORES: LazyLock<bool> =
    LazyLock::new(|| fs::read_to_string("/proc/self/oom_score_adj").is_ok_and(|score| score.trim() != "100"));

fn write_to(directory: RawFd, path: &CStr, text: &CStr) -> Result<(), Errno> {
    // SAFETY: the path ends with a NUL.
    let file = Errno::result(unsafe { libc::openat(directory, path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) })?;
    // SAFETY: the text is live, and that long.
    let written = Errno::result(unsafe { libc::write(file, text.as_ptr().cast(), text.count_bytes()) });
    // SAFETY: it was opened here, and nobody else has it.
    unsafe { libc::close(file) };
    written.map(drop)
}

/// As exec takes them. They live as long as `texts`.
fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}

/// Where a stack begins, which grows down.
fn top_of(stack: &[MaybeUninit<u8>]) -> usize {
    stack.as_ptr_range().end.addr() & !15
}

/// It shares the memory, this thread waits for it, and knows its number before that.
const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID;

/// What [`Birth::enter`] and `execvpe` need. The latter also copies the arguments, for a script without an interpreter.
const STACK_BYTES: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Read as _,
        os::unix::fs::PermissionsExt as _,
        path::Path,
    };

    use nix::sys::wait::WaitStatus;

    use super::*;

    fn program(path: &Path, args: &[&str], stdout: OwnedFd) -> Program {
        let text = |text: &str| CString::new(text).unwrap();
        let null = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        Program {
            paths: vec![text(path.to_str().unwrap())],
            args: args.iter().map(|arg| text(arg)).collect(),
            envs: vec![c"A=one".to_owned()],
            cwd: c"/usr".to_owned(),
            else_in_root: false,
            uid: nix::unistd::getuid(),
            gid: nix::unistd::getgid(),
            groups: None,
            control_group: None,
            streams: [null(), stdout, null()],
            at_terminal: false,
        }
    }

    /// What it writes, once it has ended well.
    fn output(path: &Path, args: &[&str]) -> String {
        let (mut reader, writer) = io::pipe().unwrap();
        let pid = program(path, args, writer.into()).start(&Arc::default()).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let pid = Pid::from_raw(pid.try_into().unwrap());
        assert_eq!(waitpid(pid, None), Ok(WaitStatus::Exited(pid, 0)), "{text}");
        text
    }

    #[test]
    fn a_process_begins_as_it_was_asked_to() {
        let line = "echo $0 $1 $A $(pwd); ps -o pid=,sid= $$ | { read p s; [ $p = $s ] && echo leads; }; cat /proc/self/oom_score_adj; grep SigIgn /proc/self/status";
        // SAFETY: the standard library has ignored it already.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let text = output(Path::new("/bin/sh"), &["/bin/sh", "-c", line, "zero", "first"]);
        let (text, ignored) = text.split_once("SigIgn:").unwrap();
        assert_eq!(text, "zero first one /usr\nleads\n100\n");
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_eq!(ignored & (u64::MAX >> 33), 0, "{ignored:x}");
    }

    #[test]
    fn a_script_without_an_interpreter_gets_every_argument() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        fs::write(&script, "echo $#\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(output(&script, &["x"; 20_001]), "20000\n");
    }

    #[test]
    fn what_cannot_be_executed_leaves_nothing_to_reap() {
        let directory = tempfile::tempdir().unwrap();
        let writer = || io::pipe().unwrap().1.into();
        let error = |program: Program| match program.start(&Arc::default()).unwrap_err() {
            StartError::Directory(error) => ("directory", error.raw_os_error()),
            StartError::Program(error) => ("program", error.raw_os_error()),
            other => panic!("{other}"),
        };
        assert_eq!(
            error(program(&directory.path().join("none"), &["none"], writer())),
            ("program", Some(libc::ENOENT))
        );
        assert_eq!(error(program(Path::new("/etc/passwd"), &["x"], writer())), ("program", Some(libc::EACCES)));
        let mut nowhere = program(Path::new("/bin/true"), &["true"], writer());
        nowhere.cwd = c"/nowhere".to_owned();
        assert_eq!(error(nowhere), ("directory", Some(libc::ENOENT)));
        let children = fs::read_to_string(format!("/proc/self/task/{}/children", nix::unistd::gettid())).unwrap();
        assert_eq!(children, "");
    }

    #[test]
    fn the_first_path_that_can_be_executed_is() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut found = program(Path::new("/nowhere/sh"), &["sh", "-c", "pwd"], writer.into());
        found.paths.extend([c"/etc/passwd/sh".to_owned(), c"/etc/passwd".to_owned(), c"./sh".to_owned()]);
        found.cwd = c"/bin".to_owned();
        let pid = found.start(&Arc::default()).unwrap();
        drop(found);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        waitpid(Pid::from_raw(pid.try_into().unwrap()), None).unwrap();
        assert!(text.ends_with("bin\n"), "{text}");
    }

    #[test]
    fn a_user_who_stops_whatever_it_may_does_not_stop_the_agent() {
        if !nix::unistd::Uid::effective().is_root() {
            println!("skipped: a_user_who_stops_whatever_it_may_does_not_stop_the_agent: only root starts as others");
            return;
        }
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap().into();
        let as_user = move |path: &str, args: &[&str]| Program {
            uid: Uid::from_raw(61_234),
            gid: Gid::from_raw(61_234),
            groups: Some(Vec::new()),
            ..program(Path::new(path), args, null())
        };
        let line = "import os, signal\nwhile True:\n  try: os.kill(-1, signal.SIGSTOP)\n  except OSError: pass";
        let stopper = as_user("/usr/bin/python3", &["python3", "-c", line]).start(&Arc::default()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let (done, finished) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for _ in 0..2000 {
                if let Ok(pid) = as_user("/bin/true", &["true"]).start(&Arc::default()) {
                    let pid = Pid::from_raw(pid.try_into().unwrap());
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
                    waitpid(pid, None).unwrap();
                }
            }
            done.send(()).unwrap();
        });
        let finished = finished.recv_timeout(std::time::Duration::from_secs(30));
        let stopper = Pid::from_raw(stopper.try_into().unwrap());
        nix::sys::signal::kill(stopper, nix::sys::signal::Signal::SIGKILL).unwrap();
        waitpid(stopper, None).unwrap();
        assert!(finished.is_ok(), "the agent waits for a process that is stopped");
    }
}
