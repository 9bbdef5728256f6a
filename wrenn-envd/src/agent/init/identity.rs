//! What tells one guest from another: its host name, and its machine id.

use std::{fs, io, path::Path};

use super::step::{BootError, Step as _};
use crate::agent::{
    console::complain,
    disk::opened::{short_text, write_in_place},
};

/// Gives the guest the name in its `/etc/hostname`, or `wrenn`.
pub(super) fn name_guest() -> Result<(), BootError> {
    fs::create_dir_all("/etc").step("make /etc")?;
    let stored = short_text(Path::new("/etc/hostname"), BYTES_MAX).unwrap_or_default();
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
    name_in(Path::new("/etc/hosts"), name)
}

/// Gives `hosts` a line for the name. One that is no text of a sensible length stays as it is: it is somebody's own.
fn name_in(hosts: &Path, name: &str) -> io::Result<()> {
    match short_text(hosts, BYTES_MAX) {
        Ok(present) => write_changed(hosts, &with_name(&present, name)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => write_changed(hosts, &with_name("", name)),
        Err(error) => {
            complain(&format!("{} does not get the name {name}: {error}", hosts.display()));
            Ok(())
        }
    }
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
    if short_text(path, BYTES_MAX).is_ok_and(|old| old == text) {
        return Ok(());
    }
    write_in_place(path, text)
}

/// A list of tens of thousands of hosts.
const BYTES_MAX: u64 = 4 << 20;

/// Debian's convention for a machine's own name.
const OWN_ADDRESS: &str = "127.0.1.1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::disk::opened::{put_pipe, soon};

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
    fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let etc = tempfile::tempdir().unwrap();
        for name in ["hostname", "hosts"] {
            put_pipe(&etc.path().join(name));
        }
        let hostname = etc.path().join("hostname");
        soon(move || write_changed(&hostname, "name\n")).unwrap_err();
        let hosts = etc.path().join("hosts");
        soon(move || name_in(&hosts, "name")).unwrap();
        let plain = etc.path().join("plain");
        name_in(&plain, "name").unwrap();
        fs::write(&plain, fs::read_to_string(&plain).unwrap() + "# \u{e4}").unwrap();
        name_in(&plain, "other").unwrap();
        let expected = "127.0.0.1\tlocalhost\n# \u{e4}\n127.0.1.1\tother\n";
        assert_eq!(fs::read_to_string(&plain).unwrap(), expected);
        fs::write(&plain, b"\xff").unwrap();
        name_in(&plain, "name").unwrap();
        assert_eq!(fs::read(&plain).unwrap(), b"\xff", "what is no text is left alone");
    }

    #[test]
    fn a_name_cannot_smuggle_a_line() {
        for name in ["", "a b", "a\nb", "-a", ".a", "a/b", &"x".repeat(65)] {
            assert!(!is_hostname(name), "{name:?}");
        }
        assert!(is_hostname("sandbox-1.example"));
    }
}
