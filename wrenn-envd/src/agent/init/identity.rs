//! What tells one guest from another: its host name, and its machine id.

use std::{fs, io, path::Path};

use super::step::{BootError, Step as _};

/// Gives the guest the name in its `/etc/hostname`, or `wrenn`.
pub(super) fn name_guest() -> Result<(), BootError> {
    fs::create_dir_all("/etc").step("make /etc")?;
    let stored = fs::read_to_string("/etc/hostname").unwrap_or_default();
    let name = stored.trim();
    let name = if is_hostname(name) { name } else { "wrenn" };
    set_hostname(name).step(format!("take the name {name}"))
}

/// Sets the host name for the kernel, and in `/etc/hostname` and `/etc/hosts`.
pub(in crate::agent) fn set_hostname(name: &str) -> io::Result<()> {
    if !is_hostname(name) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a host name has letters, digits, dots and hyphens"));
    }
    nix::unistd::sethostname(name)?;
    write_changed(Path::new("/etc/hostname"), &format!("{name}\n"))?;
    let hosts = fs::read_to_string("/etc/hosts").unwrap_or_default();
    write_changed(Path::new("/etc/hosts"), &with_name(&hosts, name))
}

/// Writes `/etc/machine-id`.
pub(in crate::agent) fn set_machine_id(id: &str) -> io::Result<()> {
    if id.len() != 32 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a machine id is 32 lower-case hexadecimal digits"));
    }
    write_changed(Path::new("/etc/machine-id"), &format!("{id}\n"))
}

fn is_hostname(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (1..=64).contains(&name.len()) && !name.starts_with(['-', '.']) && name.bytes().all(allowed)
}

/// `/etc/hosts` with `name` on wrenn's own line; the rest as it is. One that an image has made for the name stays.
fn with_name(hosts: &str, name: &str) -> String {
    let is_ours = |line: &str| line.split_ascii_whitespace().next() == Some(OWN_ADDRESS);
    let names = |line: &str| line.split_ascii_whitespace().skip(1).any(|word| word == name);
    if !hosts.lines().any(is_ours) && hosts.lines().any(|line| line.starts_with("127.") && names(line)) {
        return hosts.to_owned();
    }
    let mut lines: Vec<&str> = hosts.lines().filter(|line| !is_ours(line)).collect();
    if !lines.iter().any(|line| line.split_ascii_whitespace().skip(1).any(|word| word == "localhost")) {
        lines.insert(0, "127.0.0.1\tlocalhost");
    }
    let own = format!("{OWN_ADDRESS}\t{name}");
    lines.push(&own);
    lines.join("\n") + "\n"
}

/// Writes nothing when nothing would change: each write costs a block in the next pause.
fn write_changed(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    fs::write(path, text)
}

/// Debian's convention for a machine's own name.
const OWN_ADDRESS: &str = "127.0.1.1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_has_one_line_however_often_it_changes() {
        let once = with_name("", "one");
        assert_eq!(once, "127.0.0.1\tlocalhost\n127.0.1.1\tone\n");
        assert_eq!(with_name(&once, "two"), "127.0.0.1\tlocalhost\n127.0.1.1\ttwo\n");
        let kept = with_name("# mine\n::1 localhost ip6-localhost\n10.0.0.1 db\n", "x");
        assert_eq!(kept, "# mine\n::1 localhost ip6-localhost\n10.0.0.1 db\n127.0.1.1\tx\n");
        let images = "127.0.0.1 localhost wrenn\n";
        assert_eq!(with_name(images, "wrenn"), images);
        assert_eq!(with_name(&with_name(images, "one"), "wrenn"), "127.0.0.1 localhost wrenn\n127.0.1.1\twrenn\n");
    }

    #[test]
    fn a_name_cannot_smuggle_a_line() {
        for name in ["", "a b", "a\nb", "-a", ".a", "a/b", &"x".repeat(65)] {
            assert!(!is_hostname(name), "{name:?}");
        }
        assert!(is_hostname("sandbox-1.example"));
    }
}
