//! Where the agent is found, and which protocol it speaks.

use std::net::Ipv4Addr;

/// The TCP port that the agent listens on; E2B's clients expect it.
pub const AGENT_PORT: u16 = 49983;

/// The address of every guest, in its own network namespace.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);

/// The address of the host's end of every guest's tap.
pub const TAP_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);

/// The length of the prefix that [`GUEST_ADDRESS`] and [`TAP_ADDRESS`] share.
pub const GUEST_PREFIX_LENGTH: u8 = 30;

/// The header that carries the sandbox's access token.
pub const ACCESS_TOKEN_HEADER: &str = "x-access-token";

/// The header of the answer to `POST /init` that carries [`PROTOCOL_VERSION`].
pub const VERSION_HEADER: &str = "x-envd-version";

/// The header of the answer to `POST /init` that names what the agent can do beyond E2B's protocol: names with commas between
/// them. An agent that is older than the header sends none.
pub const FEATURES_HEADER: &str = "x-wrenn-features";

/// The feature of [`FEATURES_HEADER`] that `/files/pack` and `/files/unpack` are.
pub const ARCHIVES_FEATURE: &str = "archives";

/// The version of E2B's agent protocol that is implemented here; clients switch features on by it.
///
/// 0.5.7 brought uploads as `application/octet-stream`, 0.6.2 the metadata of files, 0.6.3 entries in a watch's events, and
/// 0.6.4 watches of network file systems. What came after it is not here.
pub const PROTOCOL_VERSION: &str = "0.6.4";
