//! The authorities that Java trusts, which reads neither the system's bundle nor any of its own variables.
//!
//! A store is of the format that Java calls JKS (`sun.security.provider.JavaKeyStore`): a magic number, a version, the count
//! of the entries, those, and a SHA-1 that is keyed with the store's password. That of Debian, of Fedora and of Temurin is
//! such a one, with the password that all have. A store of another format or password is left as it is, and that is said.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, BufMut as _};
use sha1::{Digest as _, Sha1};

use crate::agent::{
    console::complain,
    disk::opened::{replace, short_bytes},
};

/// Makes each Java below `root` trust these certificates, in DER, and no longer those of an earlier call.
pub(super) fn trust_in(root: &Path, authorities: &[Vec<u8>]) {
    for path in stores(root) {
        if let Err(error) = change(&path, authorities) {
            complain(&format!("{} is left as it is: {error}", path.display()));
        }
    }
}

/// The stores that there are, without their other names.
fn stores(root: &Path) -> BTreeSet<PathBuf> {
    let homes = JAVA_HOMES.iter().filter_map(|parent| fs::read_dir(root.join(parent)).ok());
    let homes = homes.flat_map(|entries| entries.take(HOMES_MAX).flatten());
    let of_homes = homes.flat_map(|home| OF_A_HOME.map(|path| home.path().join(path)));
    let of_systems = OF_SYSTEMS.iter().map(|path| root.join(path));
    of_systems.chain(of_homes).filter_map(|path| fs::canonicalize(path).ok()).collect()
}

fn change(path: &Path, authorities: &[Vec<u8>]) -> io::Result<()> {
    let present = short_bytes(path, BYTES_MAX)?;
    let Some(wanted) = with_authorities(&present, authorities) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no JKS store with the usual password"));
    };
    replace(path, &present, &wanted)
}

/// A store with these at its end, and without those of an earlier call; `None` if it is none that is known here.
fn with_authorities(store: &[u8], authorities: &[Vec<u8>]) -> Option<Vec<u8>> {
    let (entries, digest) = store.split_last_chunk()?;
    let mut rest = entries;
    let begins_right = rest.try_get_u32().ok()? == MAGIC && rest.try_get_u32().ok()? == VERSION;
    if !begins_right || keyed_digest(entries) != *digest {
        return None;
    }
    let (mut kept, mut count) = (Vec::with_capacity(store.len()), 0_u32);
    for _ in 0..rest.try_get_u32().ok()? {
        let before = rest;
        let alias = take_entry(&mut rest)?;
        if !alias.starts_with(ALIAS.as_bytes()) {
            kept.extend_from_slice(&before[..before.len() - rest.len()]);
            count += 1;
        }
    }
    if !rest.is_empty() {
        return None;
    }
    for (number, der) in authorities.iter().enumerate() {
        kept.put_u32(CERTIFICATE);
        put_text(&mut kept, &format!("{ALIAS}{number}"));
        // When it was made. The same authorities give the same bytes.
        kept.put_u64(0);
        put_text(&mut kept, "X.509");
        kept.put_u32(u32::try_from(der.len()).ok()?);
        kept.extend_from_slice(der);
        count += 1;
    }
    let mut new = Vec::with_capacity(kept.len() + HEADER_AND_DIGEST_BYTES);
    [MAGIC, VERSION, count].into_iter().for_each(|number| new.put_u32(number));
    new.extend_from_slice(&kept);
    let digest = keyed_digest(&new);
    new.extend_from_slice(&digest);
    Some(new)
}

/// Takes one entry, and returns its alias.
fn take_entry<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let tag = rest.try_get_u32().ok()?;
    let alias = take_text(rest)?;
    let _made_at = rest.try_get_u64().ok()?;
    let certificates = match tag {
        CERTIFICATE => 1,
        PRIVATE_KEY => {
            take_long(rest)?;
            rest.try_get_u32().ok()?
        }
        _ => return None,
    };
    for _ in 0..certificates {
        let _kind = take_text(rest)?;
        take_long(rest)?;
    }
    Some(alias)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = rest.try_get_u16().ok()?;
    rest.split_off(..len.into())
}

fn take_long<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = rest.try_get_u32().ok()?;
    rest.split_off(..usize::try_from(len).ok()?)
}

/// `text` is of ASCII, which is the same in Java's form of UTF-8.
fn put_text(to: &mut Vec<u8>, text: &str) {
    to.put_u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
    to.extend_from_slice(text.as_bytes());
}

fn keyed_digest(entries: &[u8]) -> [u8; 20] {
    let mut digest = Sha1::new();
    PASSWORD.encode_utf16().for_each(|unit| digest.update([(unit >> 8) as u8, (unit & 0xff) as u8]));
    digest.update(b"Mighty Aphrodite");
    digest.update(entries);
    digest.finalize().into()
}

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const PRIVATE_KEY: u32 = 1;
const CERTIFICATE: u32 = 2;
/// That of every distribution's, and of every JDK's.
const PASSWORD: &str = "changeit";
const HEADER_AND_DIGEST_BYTES: usize = 12 + 20;
/// What the names of the host's begin with.
const ALIAS: &str = "wrenn-host-";

/// Of Debian, Ubuntu and Alpine, and of Fedora.
const OF_SYSTEMS: [&str; 2] = ["etc/ssl/certs/java/cacerts", "etc/pki/ca-trust/extracted/java/cacerts"];
/// Where one directory is one Java: that of packages, that of Temurin's container images, and those of archives.
const JAVA_HOMES: [&str; 4] = ["usr/lib/jvm", "usr/java", "opt/java", "opt"];
/// From version 9 on, and before.
const OF_A_HOME: [&str; 2] = ["lib/security/cacerts", "jre/lib/security/cacerts"];
/// A directory may have anything in it.
const HOMES_MAX: usize = 100;
/// All that browsers trust are a quarter of a MiB.
const BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;

    fn certificate(entry: &str, der: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u32(CERTIFICATE);
        put_text(&mut bytes, entry);
        bytes.put_u64(1_700_000_000_000);
        put_text(&mut bytes, "X.509");
        bytes.put_u32(u32::try_from(der.len()).unwrap());
        bytes.extend_from_slice(der);
        bytes
    }

    fn private_key() -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u32(PRIVATE_KEY);
        put_text(&mut bytes, "key");
        bytes.put_u64(0);
        bytes.put_u32(3);
        bytes.extend_from_slice(b"key");
        bytes.put_u32(1);
        put_text(&mut bytes, "X.509");
        bytes.put_u32(1);
        bytes.put_u8(0x30);
        bytes
    }

    fn store(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        [MAGIC, VERSION, u32::try_from(entries.len()).unwrap()].into_iter().for_each(|number| bytes.put_u32(number));
        bytes.extend_from_slice(&entries.concat());
        let digest = keyed_digest(&bytes);
        [&bytes[..], &digest].concat()
    }

    #[test]
    fn the_hosts_come_beside_the_images_and_in_place_of_earlier_ones() {
        let images = [certificate("debian:a.pem", &[0x30, 1]), private_key()];
        let first = with_authorities(&store(&images), &[vec![0x30, 2], vec![0x30, 3]]).unwrap();
        let second = with_authorities(&first, &[vec![0x30, 4]]).unwrap();
        let direct = with_authorities(&store(&images), &[vec![0x30, 4]]).unwrap();
        assert!(first.len() > second.len() && second == direct);
        assert_eq!(with_authorities(&second, &[vec![0x30, 4]]).unwrap(), second, "the same again");
        assert_eq!(with_authorities(&second, &[]).unwrap(), store(&images), "and none");
    }

    #[test]
    fn what_is_no_such_store_is_left_as_it_is() {
        let good = store(&[certificate("a", &[0x30])]);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut changed = good[..good.len() - 20].to_vec();
            change(&mut changed);
            let digest = keyed_digest(&changed);
            [&changed[..], &digest].concat()
        };
        assert_eq!(with(&|_| {}), good);
        let of_password = [&good[..good.len() - 1], &[good.last().unwrap() ^ 1]].concat();
        for (bad, why) in [
            (Vec::new(), "empty"),
            (b"PKCS".to_vec(), "short"),
            (of_password, "another password"),
            (with(&|bytes| bytes[7] = 1), "an older version"),
            (with(&|bytes| bytes[11] = 2), "an entry is missing"),
            (with(&|bytes| bytes[8] = 0xff), "as many as there can be"),
            (with(&|bytes| bytes[15] = 3), "an entry of another kind"),
            (with(&|bytes| bytes.push(0)), "something follows"),
            (with(&|bytes| bytes.truncate(20)), "cut"),
        ] {
            assert_eq!(with_authorities(&bad, &[vec![0x30]]), None, "{why}");
        }
    }

    #[test]
    fn each_store_is_changed_once_by_whichever_names_it_has() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        let (system, temurin, odd) =
            (at(OF_SYSTEMS[0]), at("opt/java/openjdk/lib/security/cacerts"), at("opt/odd/lib"));
        let images = store(&[certificate("a", &[0x30])]);
        for path in [&system, &temurin] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, &images).unwrap();
        }
        fs::create_dir_all(at("usr/lib/jvm/java-17/lib/security")).unwrap();
        symlink(&system, at("usr/lib/jvm/java-17/lib/security/cacerts")).unwrap();
        symlink("java-17", at("usr/lib/jvm/default")).unwrap();
        fs::create_dir_all(odd.join("security/cacerts")).unwrap();
        assert_eq!(stores(root.path()).len(), 3);
        trust_in(root.path(), &[vec![0x30, 2]]);
        let wanted = with_authorities(&images, &[vec![0x30, 2]]).unwrap();
        for path in [&system, &temurin] {
            assert_eq!(fs::read(path).unwrap(), wanted, "{}", path.display());
        }
        assert!(odd.join("security/cacerts").is_dir(), "what is no file is left");
    }

    #[test]
    fn java_itself_reads_the_store() {
        let keytool = |args: &[&str]| {
            let output = Command::new("keytool").args(args).args(["-storepass", "changeit"]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
            (text, output.stdout)
        };
        if Command::new("keytool").arg("-version").output().is_err() {
            println!("skipped: java_itself_reads_the_store: `keytool` is not here: install `default-jre-headless`");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("own");
        let own = own.to_str().unwrap();
        let make = ["-genkeypair", "-keystore", own, "-storetype", "JKS", "-keyalg", "EC", "-keypass", "changeit"];
        keytool(&[&make[..], &["-alias", "own", "-dname", "CN=wrenn"]].concat());
        let (_, der) = keytool(&["-exportcert", "-keystore", own, "-alias", "own"]);
        let systems = root.path().join(OF_SYSTEMS[0]);
        fs::create_dir_all(systems.parent().unwrap()).unwrap();
        // With a private key in it, as no system's has.
        fs::copy(own, &systems).unwrap();
        trust_in(root.path(), &[der]);
        let (listed, _) = keytool(&["-list", "-v", "-keystore", systems.to_str().unwrap(), "-alias", "wrenn-host-0"]);
        assert!(listed.contains("trustedCertEntry") && listed.contains("CN=wrenn"), "{listed}");
        let (listed, _) = keytool(&["-list", "-keystore", systems.to_str().unwrap()]);
        assert!(listed.contains("contains 2 entries"), "{listed}");
    }
}
