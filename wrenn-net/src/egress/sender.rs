//! Packets that were made by hand.

use std::io;
use std::sync::Arc;

use crate::packet_socket::PacketSocket;

/// Sends packets that were made by hand. One that does not fit into the queue is lost, as in any network.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) packets: Arc<PacketSocket>,
    /// Whether anything can be sent by IPv6.
    pub(super) has_ipv6: bool,
}

impl Sender {
    /// Sends a packet to the guest.
    pub(super) fn to_guest(&self, packet: &[u8]) {
        note(self.packets.send_to_guest(packet));
    }

    /// Sends a packet of the guest's to the transparent listener.
    pub(super) fn to_listener(&self, packet: &[u8]) {
        note(self.packets.send_to_kernel(packet));
    }
}

fn note(sent: io::Result<()>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "a packet was not sent");
    }
}
