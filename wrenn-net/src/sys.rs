//! The ioctls of taps, what sockets have no safe call for, and work in another user namespace.
#![expect(unsafe_code, reason = "ioctl, setsockopt, bind, clone, and zeroed structures of C")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, clone};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::getpid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::packet_socket::PacketSocket;

nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
nix::ioctl_write_int_bad!(tunsetpersist, libc::TUNSETPERSIST);
nix::ioctl_write_int_bad!(tunsetowner, libc::TUNSETOWNER);

/// Makes the tap `name` in the calling thread's namespace, and attaches `tun` as its only queue.
pub(crate) fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    // SAFETY: `ifreq` is plain old data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "the tap's name is a constant that fits");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_le_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and `request` is an initialised `ifreq` that outlives the call.
    unsafe { tunsetiff(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Lets the tap outlive its queue, and the user `uid` open another.
pub(crate) fn leave_tap(queue: &OwnedFd, uid: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open; the argument is a number, of which the kernel takes the 32 bits of an id.
    unsafe { tunsetowner(queue.as_raw_fd(), uid.cast_signed()) }?;
    // SAFETY: the descriptor is open; the argument is a number.
    unsafe { tunsetpersist(queue.as_raw_fd(), 1) }?;
    Ok(())
}

/// Has a packet socket see the packets that come by one link alone, those that `filter` lets through.
pub(crate) fn watch_link(socket: &OwnedFd, link: u32, filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: libc::c_ushort::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the instructions that `program` points to are alive during the call, which copies them and writes none.
    unsafe { set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program) }?;
    // Otherwise it would see what is sent to the guest, too.
    // SAFETY: the kernel copies a number.
    unsafe { set_option(socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1_i32) }?;
    let address = link_address(link, libc::ETH_P_ALL, [0; 6])?;
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: `address` is an initialised `sockaddr_ll` of that length, and outlives the call.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    Errno::result(bound)?;
    Ok(())
}

/// Sends a packet, which begins with its IP header, by a link of the socket's namespace to a neighbour there.
pub(crate) fn send_by_link(socket: &OwnedFd, link: u32, neighbour: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let protocol = if packet.first().is_some_and(|first| first >> 4 == 6) { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
    let address = link_address(link, protocol, neighbour)?;
    let len = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    let (bytes, to) = (packet.as_ptr().cast(), (&raw const address).cast());
    // SAFETY: the packet and `address`, an initialised `sockaddr_ll` of that length, outlive the call, which writes neither.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), bytes, packet.len(), 0, to, len) };
    Errno::result(sent)?;
    Ok(())
}

/// Sets an option to a value of C.
///
/// # Safety
/// The option takes a `T`, whose pointers the kernel may follow.
unsafe fn set_option<T>(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(value)).map_err(io::Error::other)?;
    // SAFETY: `value` has that length and outlives the call; the rest is the caller's promise.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    Errno::result(set)?;
    Ok(())
}

/// A packet socket's address: a link, a protocol (`ETH_P_…`), and who is there.
fn link_address(link: u32, protocol: libc::c_int, neighbour: [u8; 6]) -> io::Result<libc::sockaddr_ll> {
    // SAFETY: `sockaddr_ll` is plain old data, for which all zeros is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::c_ushort::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    // In the order of the network: this host is little-endian.
    address.sll_protocol = libc::c_ushort::try_from(protocol).map_err(io::Error::other)?.swap_bytes();
    address.sll_ifindex = link.cast_signed();
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&neighbour);
    Ok(address)
}

/// Has tokio watch when a packet socket can be read.
pub(crate) fn watch_packets(socket: Arc<PacketSocket>) -> io::Result<AsyncFd<Arc<PacketSocket>>> {
    // SAFETY: a packet socket has its descriptor, and the same one, until it is dropped, and tokio drops it after its watch.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// Has tokio watch when a socket can be read.
pub(crate) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays what it is, and open, until it is dropped, and tokio drops it after its watch.
    unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)
}

/// Does `work` in a process that has the memory, the descriptors and the thread-local variables of the calling thread, which
/// waits for its end. Unlike a thread it can enter a user namespace, which a program of several threads cannot. `flags` name
/// the namespaces that are made for it.
///
/// The work may do what a thread may, but for starting threads: such a thread would outlive its process.
///
/// # Errors
/// The kernel makes no such process, or it was killed.
pub(crate) fn in_a_process<T>(flags: CloneFlags, work: impl FnOnce() -> T) -> io::Result<T> {
    let (mut work, mut done, parent) = (Some(work), None, getpid());
    let body = || {
        // Whoever kills the program ends this as well.
        let dies_with_it = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_ok() && nix::unistd::getppid() == parent;
        if let (true, Some(work)) = (dies_with_it, work.take()) {
            done = Some(catch_unwind(AssertUnwindSafe(work)));
        }
        0
    };
    let mut stack = vec![0; STACK_BYTES];
    // The program's handlers of signals are not for this process, which would run them in its name.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let flags = flags | CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_FILES;
    // SAFETY: `CLONE_VFORK` keeps this thread from running until the process has ended, so nothing that it borrows is used by
    // two at once, and the stack and the result outlive it. It has the thread-local variables of this thread alone: locks that
    // it takes are this thread's, as far as anybody can see. No panic leaves it.
    let made = unsafe { clone(Box::new(body), &mut stack, flags, None) };
    // It sends no signal at its end, so that only a wait that asks for such finds it.
    let ended = made.and_then(|pid| waitpid(pid, Some(WaitPidFlag::__WALL)));
    mask.thread_set_mask()?;
    match ended {
        // Somebody else in this program has waited for whatever ends. By now it has ended.
        Ok(_) | Err(Errno::ECHILD) => {}
        Err(errno) => return Err(errno.into()),
    }
    match done {
        Some(Ok(done)) => Ok(done),
        Some(Err(panic)) => resume_unwind(panic),
        None => Err(io::Error::other("the process in the user namespace was ended")),
    }
}

/// `include/uapi/linux/if_packet.h`; since Linux 4.20.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// More than the making of a slot takes in a build without optimization. Only what is touched costs memory.
const STACK_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_returns_opens_and_panics_with_is_the_callers() {
        let mask = SigSet::thread_get_mask().expect("a mask");
        let (pid, file) =
            in_a_process(CloneFlags::empty(), || (getpid(), File::open("/dev/null"))).expect("it is made");
        assert_ne!(pid, getpid());
        assert!(file.and_then(|file| file.metadata()).is_ok(), "the descriptor is this program's too");
        let none = CloneFlags::empty();
        let panicked = catch_unwind(|| in_a_process(none, || -> () { panic!("{}", "in the other process") }));
        let panic = panicked.expect_err("it is resumed here");
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("in the other process"));
        assert_eq!(SigSet::thread_get_mask().expect("a mask"), mask);
    }

    #[test]
    fn a_process_that_is_killed_is_an_error_and_not_a_wait() {
        let killed = in_a_process(CloneFlags::empty(), || nix::sys::signal::kill(getpid(), Signal::SIGKILL));
        assert!(killed.is_err_and(|error| error.to_string().contains("was ended")));
    }
}
