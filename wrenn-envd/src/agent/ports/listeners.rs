//! The kernel's list of sockets, `/proc/net/tcp` and `/proc/net/tcp6`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Which of the two files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Who listens. A line that is not understood is left out.
pub(super) fn parse(text: &str, family: Family) -> Vec<SocketAddr> {
    text.lines().skip(1).filter_map(|line| listener(line, family)).collect()
}

/// `0: 0100007F:1F90 00000000:0000 0A …`: its own address, the other end's, its state.
fn listener(line: &str, family: Family) -> Option<SocketAddr> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (own, _other, state) = (words.next()?, words.next()?, words.next()?);
    if state != LISTEN {
        return None;
    }
    let (address, port) = own.split_once(':')?;
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        // An IPv4 address in IPv6 clothes is an IPv4 address.
        Family::V6 => IpAddr::V6(v6(address)?).to_canonical(),
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

fn v6(text: &str) -> Option<Ipv6Addr> {
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    let mut bits = 0_u128;
    for at in (0..32).step_by(8) {
        bits = bits << 32 | u128::from(word(&text[at..at + 8])?);
    }
    Some(Ipv6Addr::from(bits))
}

/// Four bytes of an address, which the kernel prints as one number of the machine's own byte order.
fn word(text: &str) -> Option<u32> {
    let printed = u32::from_str_radix(text, 16).ok().filter(|_| text.len() == 8)?;
    Some(if cfg!(target_endian = "little") { printed.swap_bytes() } else { printed })
}

/// The number of the state, `TCP_LISTEN`.
const LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 20441 1 0000000000000000
   1: 00000000:C33F 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 19 1 0000000000000000
   2: 0100007F:1F90 0100007F:A0B2 01 00000000:00000000 00:00000000 00000000     0        0 20442 1 0000000000000000
   3: 3500007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 21 1
   4: nonsense
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000001000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000
   1: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000
   2: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000
";

    fn parsed(text: &str, family: Family) -> Vec<String> {
        parse(text, family).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reads_who_listens_and_nobody_else() {
        assert_eq!(parsed(TCP, Family::V4), ["127.0.0.1:8080", "0.0.0.0:49983", "127.0.0.53:53"]);
        assert_eq!(parsed(TCP6, Family::V6), ["[::1]:3000", "127.0.0.1:3001", "[2001:db8::1]:80"]);
        assert!(parse("", Family::V4).is_empty());
    }

    #[test]
    fn finds_a_listener_of_this_machine() {
        let ours = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
        assert!(parse(&text, Family::V4).contains(&ours.local_addr().unwrap()));
    }

    proptest! {
        #[test]
        fn reads_back_every_address(v6: bool, bits: u128, port: u16) {
            let words = words(bits);
            let (text, expected) = if v6 {
                let text = words.map(|word| format!("{:08X}", word.swap_bytes())).concat();
                (text, IpAddr::V6(Ipv6Addr::from(bits)).to_canonical())
            } else {
                (format!("{:08X}", words[3].swap_bytes()), IpAddr::V4(Ipv4Addr::from(words[3])))
            };
            let line = format!("head\n 0: {text}:{port:04X} 0:0 0A x\n");
            let family = if v6 { Family::V6 } else { Family::V4 };
            prop_assert_eq!(parse(&line, family), [SocketAddr::new(expected, port)]);
        }

        #[test]
        fn no_line_makes_it_panic(text in "(\\PC{0,60}\n){0,5}", hex in "[0-9A-Fa-f:]{0,50}") {
            for family in [Family::V4, Family::V6] {
                parse(&text, family);
                parse(&format!("head\n 0: {hex} 0:0 0A"), family);
            }
        }
    }

    /// The most significant word first.
    fn words(bits: u128) -> [u32; 4] {
        std::array::from_fn(|at| u32::try_from((bits >> (96 - 32 * at)) & u128::from(u32::MAX)).unwrap())
    }
}
