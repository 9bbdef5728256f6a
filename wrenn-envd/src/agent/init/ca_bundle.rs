//! The certificate authorities that the guest's TLS clients trust besides those of its image.
//!
//! They are a marked block of the system's bundle, and the same block is a file for `update-ca-certificates`, which makes
//! the bundle anew of such files. So a later request finds what an earlier one put there, whoever wrote the bundle last. Java
//! has stores of its own.

use std::{fs, io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::agent::{
    authorities::{BUNDLE, FROM_HOST},
    disk::opened::{replace, short_text},
    init::java_stores,
};

/// Makes the guest trust the authorities in `pem`, and no longer those of an earlier call.
pub(in crate::agent) fn set_ca_bundle(pem: &str) -> io::Result<()> {
    set_in(Path::new("/"), pem)
}

fn set_in(root: &Path, pem: &str) -> io::Result<()> {
    let Some(certificates) = certificates(pem) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not one or more certificates in PEM"));
    };
    let block = format!("{BEGIN}\n{}\n{END}\n", pem.trim());
    let bundle = root.join(BUNDLE);
    // A link is followed: other names of the bundle lead there, too.
    let bundle = fs::canonicalize(&bundle).unwrap_or(bundle);
    let present = match short_text(&bundle, BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    replace(&bundle, present.as_bytes(), with_block(&present, &block).as_bytes())?;
    let kept = root.join(FROM_HOST);
    let present = short_text(&kept, BYTES_MAX).unwrap_or_default();
    replace(&kept, present.as_bytes(), block.as_bytes())?;
    java_stores::trust_in(root, &certificates);
    Ok(())
}

/// The bundle with `block` at its end, and without an earlier one.
fn with_block(bundle: &str, block: &str) -> String {
    if bundle.ends_with(block) && bundle.matches(BEGIN).count() == 1 {
        return bundle.to_owned();
    }
    let (mut kept, mut is_ours) = (String::with_capacity(bundle.len() + block.len()), false);
    // A block that somebody has cut off is left as it is: what follows may be an image's own.
    let is_whole = bundle.matches(BEGIN).count() == bundle.matches(END).count();
    for line in bundle.lines() {
        is_ours |= is_whole && line == BEGIN;
        if !is_ours {
            kept.push_str(line);
            kept.push('\n');
        }
        is_ours &= line != END;
    }
    kept + block
}

/// The certificates in `pem`, in DER; `None` if it has none, or something else.
fn certificates(pem: &str) -> Option<Vec<Vec<u8>>> {
    let (mut rest, mut found) = (pem, Vec::new());
    while let Some(start) = rest.find("-----BEGIN ") {
        let body = rest[start..].strip_prefix("-----BEGIN CERTIFICATE-----")?;
        let (body, after) = body.split_once("-----END CERTIFICATE-----")?;
        let text: String = body.split_ascii_whitespace().collect();
        // A certificate is a sequence.
        found.push(STANDARD.decode(text).ok().filter(|der| der.first() == Some(&0x30))?);
        rest = after;
    }
    (!found.is_empty() && !pem.contains(BEGIN) && !pem.contains(END)).then_some(found)
}

/// Some thousands of authorities; all that browsers trust are a quarter of a MiB.
const BYTES_MAX: u64 = 4 << 20;

/// Readers of PEM skip what is outside of its blocks.
const BEGIN: &str = "# The host's authorities, of /init's caBundle: begin";
const END: &str = "# The host's authorities, of /init's caBundle: end";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;
    use crate::agent::disk::opened::{put_pipe, soon};

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
    }

    fn guest(bundle: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/ssl/certs")).unwrap();
        fs::write(root.path().join(BUNDLE), bundle).unwrap();
        root
    }

    #[test]
    fn the_bundle_has_one_block_however_often_it_changes() {
        let image = pem(&[0x30, 1]);
        let root = guest(&image);
        let bundle = || fs::read_to_string(root.path().join(BUNDLE)).unwrap();
        for (first, second) in [(2, 3), (4, 5)] {
            set_in(root.path(), &(pem(&[0x30, first]) + &pem(&[0x30, second]))).unwrap();
            let expected = format!("{image}{BEGIN}\n{}{}{END}\n", pem(&[0x30, first]), pem(&[0x30, second]));
            assert_eq!(bundle(), expected);
        }
        // As `update-ca-certificates` makes it: of the image's, and of the file that was left for it.
        let kept = fs::read_to_string(root.path().join(FROM_HOST)).unwrap();
        fs::write(root.path().join(BUNDLE), kept + &image).unwrap();
        set_in(root.path(), &pem(&[0x30, 6])).unwrap();
        assert_eq!(bundle(), format!("{image}{BEGIN}\n{}{END}\n", pem(&[0x30, 6])));
    }

    #[test]
    fn the_same_again_writes_nothing() {
        let root = guest(&pem(&[0x30, 1]));
        let inodes = || [BUNDLE, FROM_HOST].map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
        set_in(root.path(), &pem(&[0x30, 2])).unwrap();
        let before = inodes();
        set_in(root.path(), pem(&[0x30, 2]).trim_end()).unwrap();
        assert_eq!(inodes(), before);
        let mode = fs::metadata(root.path().join(BUNDLE)).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o644);
    }

    #[test]
    fn a_bundle_that_is_a_link_is_changed_where_it_is() {
        let root = guest("");
        let (link, real) = (root.path().join(BUNDLE), root.path().join("etc/real"));
        fs::rename(&link, &real).unwrap();
        symlink(&real, &link).unwrap();
        set_in(root.path(), &pem(&[0x30, 2])).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(real).unwrap().contains(&pem(&[0x30, 2])));
        let bare = tempfile::tempdir().unwrap();
        set_in(bare.path(), &pem(&[0x30, 2])).unwrap();
        assert!(bare.path().join(BUNDLE).is_file(), "an image without a bundle");
    }

    #[test]
    fn what_is_no_certificate_is_refused_and_a_broken_block_costs_nothing_of_the_images() {
        let root = guest("image\n");
        let key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        let garbled = pem(&[0x30, 1]).replace("MA", "M!");
        let cut = pem(&[0x30, 1]).replace("-----END", "");
        for bad in ["", "text", key, &(pem(&[0x30, 1]) + key), &garbled, &cut, &pem(b"x"), &(pem(&[0x30]) + BEGIN)] {
            assert_eq!(set_in(root.path(), bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
        assert_eq!(fs::read_to_string(root.path().join(BUNDLE)).unwrap(), "image\n");
        let broken = format!("{BEGIN}\ncut off\nimage\n");
        assert!(with_block(&broken, "new\n").contains("image\nnew\n"));
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
        let root = guest("");
        let (bundle, kept) = (root.path().join(BUNDLE), root.path().join(FROM_HOST));
        put_pipe(&bundle.with_file_name(".wrenn-new"));
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        put_pipe(&kept);
        let set = |root: &Path| {
            let root = root.to_owned();
            soon(move || set_in(&root, &pem(&[0x30, 1])))
        };
        set(root.path()).unwrap();
        assert!(fs::read_to_string(&bundle).unwrap().contains(BEGIN) && fs::metadata(&kept).unwrap().is_file());
        fs::remove_file(&bundle).unwrap();
        put_pipe(&bundle);
        assert_eq!(set(root.path()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
