//! Where a release of Firecracker is to be had, and whether a file is what the release published.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

/// How to install the release that wrenn is tested with. wrenn downloads nothing by itself.
pub(crate) fn how_to_install() -> String {
    let (archive, inside) = (format!("firecracker-v{RELEASE}-x86_64.tgz"), format!("release-v{RELEASE}-x86_64"));
    let from = format!("https://github.com/firecracker-microvm/firecracker/releases/download/v{RELEASE}");
    format!(
        "wrenn drives Firecracker 1.16 and later, and is tested with {RELEASE}. As root, and with both files from its \
         release:\n\n\
         curl --fail --location --remote-name {from}/{archive}\n\
         curl --fail --location --remote-name {from}/{archive}.sha256.txt\n\
         wrenn-server firecracker --check {archive}\n\
         tar --extract --gzip --file {archive}\n\
         install {inside}/firecracker-v{RELEASE}-x86_64 /usr/local/bin/firecracker\n\
         install {inside}/jailer-v{RELEASE}-x86_64 /usr/local/bin/jailer\n"
    )
}

/// Checks a file against a hash: `published`, else the one in `FILE.sha256.txt`, which is published beside an archive,
/// else the one in the `SHA256SUMS` beside it, which is in the archive. Returns what was checked against which.
pub(crate) fn check(file: &Path, published: Option<&str>) -> anyhow::Result<String> {
    let (published, by) = match published {
        Some(hash) => (hash.to_owned(), "the hash that was given".to_owned()),
        None => beside(file)?,
    };
    let published = published.to_ascii_lowercase();
    let is_hash = published.len() == 64 && published.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(is_hash, "{by} is no SHA-256, which has 64 hexadecimal digits: {published}");
    let found = hash_of(file)?;
    if found != published {
        bail!(
            "{} is not what was published: do not install it, and download it again\n  found     {found}\n  published \
             {published}, by {by}",
            file.display()
        );
    }
    Ok(format!("{} is what was published, by {by}", file.display()))
}

/// The hash of a file by one of the lists that a release has.
fn beside(file: &Path) -> anyhow::Result<(String, String)> {
    let name = file.file_name().and_then(|name| name.to_str()).context("the path has no file's name")?;
    let lists = [file.with_file_name(format!("{name}.sha256.txt")), file.with_file_name("SHA256SUMS")];
    for list in &lists {
        let Some(text) = read_if_there(list)? else { continue };
        if let Some(hash) = listed(&text, name) {
            return Ok((hash.to_owned(), list.display().to_string()));
        }
    }
    let [one, other] = lists.map(|list| list.display().to_string());
    bail!(
        "nothing says which hash {name} has: put {name}.sha256.txt from the release beside it, or give the hash with \
         `--sha256`; looked in {one} and {other}"
    )
}

fn read_if_there(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

/// The hash of `name` in what `sha256sum` printed: a hash, two characters, and a path, on each line.
fn listed<'a>(sums: &'a str, name: &str) -> Option<&'a str> {
    sums.lines().find_map(|line| {
        let (hash, path) = line.split_once([' ', '\t'])?;
        let path = PathBuf::from(path.trim_start_matches([' ', '*']));
        (path.file_name()?.to_str()? == name).then_some(hash)
    })
}

fn hash_of(file: &Path) -> anyhow::Result<String> {
    let cannot = || format!("{} cannot be read", file.display());
    let mut hash = Sha256::new();
    let mut opened = File::open(file).with_context(cannot)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match std::io::Read::read(&mut opened, &mut buffer).with_context(cannot)? {
            0 => break,
            len => hash.update(&buffer[..len]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What the repository's lab runs.
const RELEASE: &str = "1.16.1";

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf hello | sha256sum`
    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn a_file_is_checked_against_what_its_release_published() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let (archive, binary) = (dir.path().join("firecracker.tgz"), dir.path().join("firecracker-v1-x86_64"));
        for file in [&archive, &binary] {
            fs::write(file, "hello")?;
        }
        let text = format!("{:#}", check(&archive, None).unwrap_err());
        assert!(text.contains("firecracker.tgz.sha256.txt") && text.contains("--sha256"), "{text}");
        fs::write(dir.path().join("firecracker.tgz.sha256.txt"), format!("{HELLO}  firecracker.tgz\n"))?;
        check(&archive, None)?;
        fs::write(
            dir.path().join("SHA256SUMS"),
            format!("{}  ./jailer\n{HELLO}  ./firecracker-v1-x86_64\n", "0".repeat(64)),
        )?;
        assert!(check(&binary, None)?.contains("SHA256SUMS"));
        check(&binary, Some(&HELLO.to_uppercase()))?;
        Ok(())
    }

    #[test]
    fn another_file_is_refused_with_both_hashes() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let archive = dir.path().join("firecracker.tgz");
        fs::write(&archive, "hellO")?;
        fs::write(dir.path().join("firecracker.tgz.sha256.txt"), format!("{HELLO}  firecracker.tgz\n"))?;
        let text = check(&archive, None).unwrap_err().to_string();
        assert!(text.contains("do not install it") && text.contains(HELLO), "{text}");
        assert!(check(&archive, Some("2cf24d")).unwrap_err().to_string().contains("64 hexadecimal digits"));
        assert!(check(&dir.path().join("nothing"), Some(HELLO)).is_err());
        Ok(())
    }

    #[test]
    fn the_commands_check_what_they_download_before_they_install_it() {
        let text = how_to_install();
        let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("{word}: {text}"));
        assert!(at(".tgz.sha256.txt") < at("--check") && at("--check") < at("install release"));
        assert!(
            text.contains("https://github.com/firecracker-microvm/firecracker/releases/download/v1.16.1/"),
            "{text}"
        );
    }
}
