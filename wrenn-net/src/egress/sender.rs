//! Packets that were made by hand.

use std::io;
use std::sync::Arc;

use crate::packet_socket::PacketSocket;
use crate::rules::LOOPBACK_INDEX;
use crate::slot::GUEST_LINK;
use crate::sys;

/// Sends packets that were made by hand, and begin with their IP header. One that does not fit into the queue is lost, as in
/// any network.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) packets: Arc<PacketSocket>,
    /// The guest's link.
    pub(super) tap: u32,
    /// Whether anything can be sent by IPv6.
    pub(super) has_ipv6: bool,
}

impl Sender {
    /// Sends a packet to the guest.
    pub(super) fn to_guest(&self, packet: &[u8]) {
        self.send(self.tap, GUEST_LINK, packet);
    }

    /// Sends a packet of the guest's to the transparent listener: as one that comes by the loopback, and is marked.
    pub(super) fn to_listener(&self, packet: &[u8]) {
        self.send(LOOPBACK_INDEX, LOOPBACK_LINK, packet);
    }

    fn send(&self, link: u32, neighbour: [u8; 6], packet: &[u8]) {
        let send = || -> io::Result<()> { sys::send_by_link(self.packets.socket()?, link, neighbour, packet) };
        let sent = match send() {
            // The socket may have yet to tell that the tap was down for a while, which it does once.
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => send(),
            sent => sent,
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "a packet was not sent");
        }
    }
}

/// The loopback has no hardware address.
const LOOPBACK_LINK: [u8; 6] = [0; 6];
