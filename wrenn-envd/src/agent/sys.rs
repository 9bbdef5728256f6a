//! The system calls that neither `std` nor `nix` has a safe face for.
#![expect(unsafe_code, reason = "raw system calls; this module alone holds them")]

mod check;
#[cfg(target_arch = "x86_64")]
mod interval_timer;
mod ipv6;
mod newborn;
mod signal;
mod spawn;
pub(super) mod terminal;
mod watchdog;

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
};

use check::check;
#[cfg(target_arch = "x86_64")]
pub(super) use interval_timer::stop_interval_timer;
pub(super) use ipv6::{add_address_v6, add_default_route_v6};
use libc::{c_int, c_short};
pub(super) use newborn::Newborn;
use nix::sys::signalfd::SignalFd;
pub(super) use signal::{SignalNumber, signal_group};
pub(super) use spawn::{Program, StartError};
use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdRegisterError},
};

/// Takes the exit status of any one child that has ended; `None` when none has.
pub(super) fn wait_any() -> io::Result<Option<(u32, ExitStatus)>> {
    let mut status: c_int = 0;
    // SAFETY: `status` is a live `c_int` that the call writes to.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        0 => Ok(None),
        pid => match u32::try_from(pid) {
            Ok(pid) => Ok(Some((pid, ExitStatus::from_raw(status)))),
            Err(_) => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ECHILD) => Ok(None),
                error => Err(error),
            },
        },
    }
}

/// Lets the runtime watch a pipe's reading end, which must not block. What cannot be watched comes back with the reason.
pub(super) fn watch(pipe: File) -> Result<AsyncFd<File>, AsyncFdRegisterError<File>> {
    // SAFETY: a `File` owns its descriptor, and is that same descriptor until it is dropped.
    unsafe { AsyncFd::register_with_interest(pipe, Interest::READABLE) }
}

/// Lets the runtime watch for signals, which must not block.
pub(super) fn watch_signals(signals: SignalFd) -> io::Result<AsyncFd<SignalFd>> {
    // SAFETY: a `SignalFd` owns its descriptor, and is that same descriptor until it is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(signals, Interest::READABLE) };
    Ok(watched?)
}

/// Has a connection take no more to send while it has so many bytes that it has not sent once.
pub(super) fn limit_unsent(connection: impl AsFd, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of_val(&bytes)).map_err(io::Error::other)?;
    let (fd, level, name) = (connection.as_fd().as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT);
    // SAFETY: the option takes one `c_int`, which is live.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const bytes).cast(), length) })
}

/// How many bytes can be read from a pipe or a terminal without waiting.
pub(super) fn readable_bytes(pipe: impl AsFd) -> io::Result<usize> {
    let mut bytes: c_int = 0;
    // SAFETY: FIONREAD writes one `c_int` to `bytes`, which is live.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    check(result)?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Credits `bytes` (at most 64 are used) to the kernel's random generator, and makes it reseed at once.
pub(super) fn reseed_kernel_rng(device: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

    /// `struct rand_pool_info` of `linux/random.h`, with room for a whole pool.
    #[repr(C)]
    struct RandPoolInfo {
        entropy_count_bits: c_int,
        size_bytes: c_int,
        bytes: [u8; 64],
    }

    let length = bytes.len().min(64);
    let size_bytes = c_int::try_from(length).unwrap_or(0);
    let mut info = RandPoolInfo { entropy_count_bits: size_bytes * 8, size_bytes, bytes: [0; 64] };
    info.bytes[..length].copy_from_slice(&bytes[..length]);
    let device = device.as_fd().as_raw_fd();
    // SAFETY: RNDADDENTROPY reads a `rand_pool_info` whose `size_bytes` bytes lie within `info.bytes`.
    check(unsafe { libc::ioctl(device, RNDADDENTROPY, &raw const info) })?;
    // SAFETY: RNDRESEEDCRNG takes no argument.
    check(unsafe { libc::ioctl(device, RNDRESEEDCRNG) })
}

/// Flushes the file system that `directory` is in, and makes its writers wait. One that is frozen stays so.
pub(super) fn freeze_file_system(directory: impl AsFd) -> io::Result<()> {
    const FIFREEZE: libc::Ioctl = 0xC004_5877;
    // SAFETY: FIFREEZE reads no argument.
    match check(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), FIFREEZE, 0) }) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        done => done,
    }
}

/// Lets a frozen file system's writers go on. One that is not frozen is left alone.
pub(super) fn thaw_file_system(directory: impl AsFd) -> io::Result<()> {
    const FITHAW: libc::Ioctl = 0xC004_5878;
    // SAFETY: FITHAW reads no argument.
    match check(unsafe { libc::ioctl(directory.as_fd().as_raw_fd(), FITHAW, 0) }) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        done => done,
    }
}

/// A socket for the interface calls below.
pub(super) fn interface_socket() -> io::Result<OwnedFd> {
    Ok(std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.into())
}

/// Brings an interface up.
pub(super) fn bring_up(socket: impl AsFd, interface: &str) -> io::Result<()> {
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_flags = c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(c_short::MAX);
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` whose flags are set.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// Gives an interface its address and netmask.
pub(super) fn set_address(socket: impl AsFd, interface: &str, address: Ipv4Addr, mask: Ipv4Addr) -> io::Result<()> {
    let socket = socket.as_fd().as_raw_fd();
    let mut request = interface_request(interface)?;
    request.ifr_ifru.ifru_addr = socket_address(address);
    // SAFETY: SIOCSIFADDR reads an `ifreq` whose address is set.
    check(unsafe { libc::ioctl(socket, libc::SIOCSIFADDR, &raw const request) })?;
    request.ifr_ifru.ifru_netmask = socket_address(mask);
    // SAFETY: SIOCSIFNETMASK reads an `ifreq` whose netmask is set.
    check(unsafe { libc::ioctl(socket, libc::SIOCSIFNETMASK, &raw const request) })
}

/// Sends everything that has no nearer route to `gateway`.
pub(super) fn add_default_route(socket: impl AsFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: `rtentry` is plain data, for which all zeroes is a value.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: SIOCADDRT reads an `rtentry`.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCADDRT, &raw const route) })
}

fn interface_request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::try_from(from).map_err(|_| io::ErrorKind::InvalidInput)?;
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: a `sockaddr_in` is one of the shapes that a `sockaddr` has, and has its size.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}
