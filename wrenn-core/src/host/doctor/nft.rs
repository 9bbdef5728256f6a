//! Whether the kernel has nftables: it is asked for its ruleset's generation, by netlink.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// `Ok` if it answers.
pub(super) fn answers() -> io::Result<()> {
    let netfilter = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(&request())], &[], MsgFlags::empty(), Some(&kernel))?;
    let mut answer = [0; 512];
    let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    check(answer.get(..len).unwrap_or_default())
}

/// `struct nlmsghdr` and `struct nfgenmsg` (include/uapi/linux/netlink.h, nfnetlink.h). Netlink's numbers are the
/// host's; x86-64 is little-endian.
fn request() -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(20_u32.to_le_bytes());
    message.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_le_bytes());
    message.extend(NLM_F_REQUEST.to_le_bytes());
    message.extend([0; 8]); // sequence and port
    message.extend([0; 4]); // family, version and resource
    message
}

fn check(answer: &[u8]) -> io::Result<()> {
    let half = |at: usize| answer.get(at..at + 2).and_then(|half| half.try_into().ok()).map(u16::from_le_bytes);
    match half(4) {
        Some(NLMSG_ERROR) => {
            let code = answer.get(16..20).and_then(|word| word.try_into().ok()).map_or(0, i32::from_le_bytes);
            Err(io::Error::from_raw_os_error(-code))
        }
        Some(kind) if kind >> 8 == NFNL_SUBSYS_NFTABLES => Ok(()),
        _ => Err(io::Error::other("something else answered")),
    }
}

const NLM_F_REQUEST: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_GETGEN: u16 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_an_answer() {
        let mut refusal = vec![0; 20];
        refusal[4..6].copy_from_slice(&NLMSG_ERROR.to_le_bytes());
        refusal[16..20].copy_from_slice(&(-libc::EOPNOTSUPP).to_le_bytes());
        assert_eq!(check(&refusal).unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        refusal[4..6].copy_from_slice(&(NFNL_SUBSYS_NFTABLES << 8 | 15).to_le_bytes());
        check(&refusal).unwrap();
        assert!(check(&[]).is_err());
    }
}
