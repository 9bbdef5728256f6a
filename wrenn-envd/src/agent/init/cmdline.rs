use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use super::step::{BootError, Step as _};

/// What the host says on the kernel's command line.
///
/// ```text
/// wrenn.base=/dev/vda wrenn.drive=/dev/vdb wrenn.addr=169.254.0.21/30 wrenn.gw=169.254.0.22
/// wrenn.addr6=fec0::15/126 wrenn.gw6=fec0::16
/// ```
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cmdline {
    /// The block device of the read-only base image, EROFS or ext4.
    pub(super) base: PathBuf,
    /// The block device of the writable drive, ext4.
    pub(super) drive: PathBuf,
    pub(super) network: Option<Network>,
    /// Absent: `eth0` has no IPv6.
    pub(super) network_v6: Option<NetworkV6>,
    /// Whom to ask for names: `wrenn.dns=9.9.9.9,1.1.1.1`. Empty: what the image has in `/etc/resolv.conf`.
    pub(super) nameservers: Vec<IpAddr>,
    /// Whether the VMM has a metadata service: `wrenn.mmds=1`.
    pub(super) has_mmds: bool,
}

/// How `eth0` is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    pub(super) address: Ipv4Addr,
    pub(super) netmask: Ipv4Addr,
    pub(super) gateway: Option<Ipv4Addr>,
}

/// The same, by IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NetworkV6 {
    pub(super) address: Ipv6Addr,
    pub(super) prefix_length: u8,
    pub(super) gateway: Option<Ipv6Addr>,
}

impl Cmdline {
    /// Reads `/proc/cmdline`.
    pub(super) fn read() -> Result<Self, BootError> {
        let text = fs::read_to_string("/proc/cmdline").step("read /proc/cmdline")?;
        Self::parse(&text)
            .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))
            .step("read the command line")
    }

    fn parse(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            text.split_ascii_whitespace()
                .find_map(|word| word.strip_prefix("wrenn.")?.strip_prefix(key)?.strip_prefix('='))
        };
        let device = |key: &str| value(key).map(PathBuf::from).ok_or_else(|| format!("wrenn.{key} is missing"));
        let gateway =
            value("gw").map(|gw| gw.parse().map_err(|_| format!("wrenn.gw={gw} is no address"))).transpose()?;
        let network = value("addr").map(|addr| parse_network(addr, gateway)).transpose()?;
        let gateway_v6 =
            value("gw6").map(|gw| gw.parse().map_err(|_| format!("wrenn.gw6={gw} is no address"))).transpose()?;
        let network_v6 = value("addr6").map(|addr| parse_network_v6(addr, gateway_v6)).transpose()?;
        let nameservers = value("dns").map_or(Ok(Vec::new()), |dns| {
            let servers = dns.split(',').map(str::parse).collect::<Result<_, _>>();
            servers.map_err(|_| format!("wrenn.dns={dns} is no list of addresses"))
        })?;
        let has_mmds = match value("mmds") {
            None | Some("0") => false,
            Some("1") => true,
            Some(other) => return Err(format!("wrenn.mmds={other} is neither 0 nor 1")),
        };
        Ok(Self { base: device("base")?, drive: device("drive")?, network, network_v6, nameservers, has_mmds })
    }
}

fn parse_network(addr: &str, gateway: Option<Ipv4Addr>) -> Result<Network, String> {
    let refused = || format!("wrenn.addr={addr} is no address/prefix");
    let (address, prefix) = addr.split_once('/').ok_or_else(refused)?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(refused)?;
    let netmask = Ipv4Addr::from(u32::MAX.checked_shl(32 - prefix).unwrap_or(0));
    Ok(Network { address: address.parse().map_err(|_| refused())?, netmask, gateway })
}

fn parse_network_v6(addr: &str, gateway: Option<Ipv6Addr>) -> Result<NetworkV6, String> {
    let refused = || format!("wrenn.addr6={addr} is no address/prefix");
    let (address, prefix) = addr.split_once('/').ok_or_else(refused)?;
    let prefix_length = prefix.parse().ok().filter(|prefix| *prefix <= 128).ok_or_else(refused)?;
    Ok(NetworkV6 { address: address.parse().map_err(|_| refused())?, prefix_length, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_host_writes() {
        let text =
            "console=ttyS0 wrenn.base=/dev/vda wrenn.drive=/dev/vdb wrenn.addr=169.254.0.21/30 wrenn.gw=169.254.0.22\n";
        let cmdline = Cmdline::parse(text).unwrap();
        assert_eq!((cmdline.base.as_path(), cmdline.drive.as_path()), ("/dev/vda".as_ref(), "/dev/vdb".as_ref()));
        let network = cmdline.network.unwrap();
        assert_eq!(network.address, crate::protocol::GUEST_ADDRESS);
        assert_eq!(network.netmask, Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(network.gateway, Some(crate::protocol::TAP_ADDRESS));
        assert_eq!(cmdline.network_v6, None);
        let both = format!("{text} wrenn.addr6=fec0::15/126 wrenn.gw6=fec0::16");
        let (address, gateway) = ("fec0::15".parse().unwrap(), "fec0::16".parse().ok());
        let expected = NetworkV6 { address, prefix_length: 126, gateway };
        assert_eq!(Cmdline::parse(&both).unwrap().network_v6, Some(expected));
        let named = Cmdline::parse("wrenn.dns=9.9.9.9,2620:fe::fe wrenn.base=a wrenn.drive=b").unwrap();
        assert_eq!((named.nameservers.len(), cmdline.nameservers.len()), (2, 0));
        assert!(!cmdline.has_mmds && Cmdline::parse("wrenn.mmds=1 wrenn.base=a wrenn.drive=b").unwrap().has_mmds);
    }

    #[test]
    fn says_what_is_wrong() {
        let refusal = |text: &str| Cmdline::parse(text).unwrap_err();
        assert_eq!(refusal("wrenn.base=/dev/vda"), "wrenn.drive is missing");
        assert_eq!(
            refusal("wrenn.addr=1.2.3.4/33 wrenn.base=a wrenn.drive=b"),
            "wrenn.addr=1.2.3.4/33 is no address/prefix"
        );
        assert_eq!(
            refusal("wrenn.dns=1.1.1.1,x wrenn.base=a wrenn.drive=b"),
            "wrenn.dns=1.1.1.1,x is no list of addresses"
        );
        assert_eq!(refusal("wrenn.gw=x wrenn.base=a wrenn.drive=b"), "wrenn.gw=x is no address");
        assert_eq!(refusal("wrenn.gw6=1.1.1.1 wrenn.base=a wrenn.drive=b"), "wrenn.gw6=1.1.1.1 is no address");
        assert_eq!(
            refusal("wrenn.addr6=fec0::15/129 wrenn.base=a wrenn.drive=b"),
            "wrenn.addr6=fec0::15/129 is no address/prefix"
        );
        assert_eq!(Cmdline::parse("wrenn.base=a wrenn.drive=b").unwrap().network, None);
    }
}
