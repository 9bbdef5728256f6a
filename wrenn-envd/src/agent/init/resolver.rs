//! Whom the guest asks for names.

use std::{fs, io, net::IpAddr, path::Path};

use crate::agent::disk::opened::{short_text, write_anew};

/// Writes `/etc/resolv.conf`. A link there, as to a resolver that does not run, is replaced.
pub(in crate::agent) fn set_nameservers(servers: &[IpAddr]) -> io::Result<()> {
    set_in(Path::new("/etc"), servers)
}

fn set_in(etc: &Path, servers: &[IpAddr]) -> io::Result<()> {
    let (path, new) = (etc.join("resolv.conf"), etc.join(".resolv.conf.wrenn"));
    let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
    let text = resolv_conf(servers);
    // Each write costs a block in the next pause.
    if is_file && short_text(&path, BYTES_MAX).is_ok_and(|old| old == text) {
        return Ok(());
    }
    write_anew(&new, text.as_bytes())?;
    fs::rename(new, path)
}

fn resolv_conf(servers: &[IpAddr]) -> String {
    servers.iter().take(SERVERS_MAX).map(|server| format!("nameserver {server}\n")).collect()
}

/// What is longer is not ours.
const BYTES_MAX: u64 = 64 << 10;

/// More are not asked by the usual resolvers.
const SERVERS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::disk::opened::{put_pipe, soon};

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let etc = tempfile::tempdir().unwrap();
        let stub = etc.path().join("stub");
        fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink(&stub, etc.path().join("resolv.conf")).unwrap();
        let servers = ["9.9.9.9", "2620:fe::fe", "1.1.1.1", "8.8.8.8"].map(|server| server.parse().unwrap());
        set_in(etc.path(), &servers).unwrap();
        let text = "nameserver 9.9.9.9\nnameserver 2620:fe::fe\nnameserver 1.1.1.1\n";
        assert_eq!(fs::read_to_string(etc.path().join("resolv.conf")).unwrap(), text);
        assert_eq!(fs::read_to_string(stub).unwrap(), "nameserver 127.0.0.53\n");
        set_in(etc.path(), &[]).unwrap();
        assert_eq!(fs::read_to_string(etc.path().join("resolv.conf")).unwrap(), "");
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let etc = tempfile::tempdir().unwrap();
        put_pipe(&etc.path().join(".resolv.conf.wrenn"));
        put_pipe(&etc.path().join("resolv.conf"));
        let path = etc.path().to_owned();
        soon(move || set_in(&path, &["1.1.1.1".parse().unwrap()])).unwrap();
        assert_eq!(fs::read_to_string(etc.path().join("resolv.conf")).unwrap(), "nameserver 1.1.1.1\n");
    }
}
