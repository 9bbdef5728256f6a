//! The copies of a build: from the host, and from the guest of another stage.

use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use tar::Builder;
use tokio::io::AsyncWrite;
use tokio_util::io::SyncIoBridge;

use crate::build::added::{is_archive, repack_added};
use crate::build::archive::{Placing, PlacingKind, pack, repack};
use crate::build::context::{Entry, Found, What};
use crate::build::failure::Failure;
use crate::build::glob::Glob;
use crate::build::ignore::Ignore;
use crate::build::step::CopyStep;
use crate::error::{Error, chain};
use crate::files::entry::FileKind;
use crate::files::handle::Files;
use crate::oci::Limits;
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;

/// Copies files of the host to `to`, an absolute path of the guest. `names_directory` tells whether that is a directory by its
/// text.
pub(super) async fn from_host(
    sandbox: &Sandbox,
    step: &CopyStep,
    found: Vec<Found>,
    to: &str,
    names_directory: bool,
    unpacks: bool,
) -> Result<(), Failure> {
    let is_directory = names_directory || found.len() > 1 || found.iter().any(|found| found.is_directory);
    let placing = placing(sandbox, step, to, is_directory).await?;
    let owner = step.owner.as_ref().map(|_| placing.owner);
    if is_directory && found.iter().all(|found| found.entries.is_empty()) {
        return make_directory(sandbox, to).await;
    }
    let (archives, plain) = if unpacks { divided(found).await? } else { (Vec::new(), found) };
    if !plain.is_empty() {
        let packed = move |stdin: &mut dyn io::Write| {
            let mut out = Builder::new(stdin);
            pack(&plain, &placing, &mut out)?;
            out.finish()
        };
        into_agent(sandbox, "/", packed).await?;
    }
    for archive in archives {
        make_directory(sandbox, to).await?;
        let repacked = move |stdin: &mut dyn io::Write| {
            let mut out = Builder::new(stdin);
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", archive.display()));
            repack_added(std::fs::File::open(&archive)?, owner, Limits::default(), &mut out).map_err(named)?;
            out.finish()
        };
        into_agent(sandbox, to, repacked).await?;
    }
    Ok(())
}

/// Copies what is in the guest of another stage.
pub(super) async fn from_stage(
    source: &Sandbox,
    sandbox: &Sandbox,
    step: &CopyStep,
    paths: &[String],
    to: &str,
    names_directory: bool,
) -> Result<(), Failure> {
    let files = source.files().as_user("root");
    let mut sources = Vec::new();
    for path in paths {
        sources.extend(expand(&files, path).await?);
    }
    let is_directory = names_directory || sources.len() > 1 || sources.iter().any(|source| source.is_directory);
    let placing = placing(sandbox, step, to, is_directory).await?;
    if sources.iter().any(|source| source.is_directory) {
        make_directory(sandbox, to).await?;
    }
    let excludes = Ignore::of(step.excludes.iter().map(String::as_str)).map_err(|bad| Failure::of(bad.0))?;
    for part in sources {
        let packed = files.pack(&part.real).await.map_err(failed)?;
        let (placing, excludes) = (placing.clone(), excludes.clone());
        let (name, is_directory) = (PathBuf::from(part.name), part.is_directory);
        let repacked = move |stdin: &mut dyn io::Write| {
            let mut out = Builder::new(stdin);
            let archive = BufReader::with_capacity(BUFFER_BYTES, SyncIoBridge::new(packed));
            let excluded = |path: &Path| path.to_str().is_some_and(|path| excludes.leaves_out(path));
            repack(archive, &name, is_directory, excluded, &placing, &mut out)?;
            out.finish()
        };
        into_agent(sandbox, "/", repacked).await?;
    }
    Ok(())
}

/// Makes a directory and those above it, where they are missing. They are root's.
pub(super) async fn make_directory(sandbox: &Sandbox, path: &str) -> Result<(), Failure> {
    let files = sandbox.files().as_user("root");
    match files.stat(path).await {
        Ok(entry) if entry.kind == FileKind::Directory => Ok(()),
        Ok(_) => Err(Failure::of(format!("{path} is no directory"))),
        Err(Error::NotFound { .. }) => Ok(files.make_dir(path).await?),
        Err(error) => Err(error.into()),
    }
}

async fn placing(sandbox: &Sandbox, step: &CopyStep, to: &str, is_directory: bool) -> Result<Placing, Failure> {
    let files = sandbox.files().as_user("root");
    let is_directory = is_directory
        || match files.stat(to).await {
            Ok(entry) => entry.kind == FileKind::Directory,
            Err(Error::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
    let owner = match &step.owner {
        Some(owner) => owner_of(&files, owner).await?,
        None => (0, 0),
    };
    let kind = if is_directory { PlacingKind::Directory } else { PlacingKind::File };
    Ok(Placing { to: PathBuf::from(to), kind, mode: step.mode, owner })
}

/// The numbers of `user:group`. A user by name has the group of its entry, and one by number the group of that number.
async fn owner_of(files: &Files, owner: &str) -> Result<(u64, u64), Failure> {
    let (user, group) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let entry = |table: &str, name: &str| {
        let row = table.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut numbers = row.split(':').skip(2).map(|field| field.parse::<u64>().ok());
        Some((numbers.next().flatten()?, numbers.next().flatten()))
    };
    let (uid, own_group) = match user.parse::<u64>() {
        Ok(uid) => (uid, Some(uid)),
        Err(_) => {
            let passwd = read(files, "/etc/passwd").await?;
            entry(&passwd, user).ok_or_else(|| Failure::of(format!("the guest has no user {user}")))?
        }
    };
    let gid = match group {
        None => own_group.unwrap_or(uid),
        Some(group) => match group.parse::<u64>() {
            Ok(gid) => gid,
            Err(_) => {
                let groups = read(files, "/etc/group").await?;
                entry(&groups, group).ok_or_else(|| Failure::of(format!("the guest has no group {group}")))?.0
            }
        },
    };
    Ok((uid, gid))
}

async fn read(files: &Files, path: &str) -> Result<String, Failure> {
    match files.read(path).await {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(Error::NotFound { .. }) => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}

/// A source in the guest of another stage.
struct Part {
    name: String,
    /// Where a link leads to.
    real: String,
    is_directory: bool,
}

async fn expand(files: &Files, pattern: &str) -> Result<Vec<Part>, Failure> {
    let mut paths = vec![String::new()];
    for name in pattern.split('/').filter(|name| !name.is_empty()) {
        let mut next = Vec::new();
        for path in paths {
            let here = format!("{path}/{name}");
            if !Glob::is_pattern(name) || files.exists(&here).await? {
                next.push(here);
                continue;
            }
            let glob = Glob::new(name).map_err(|bad| Failure::of(bad.0))?;
            let directory = if path.is_empty() { "/".to_owned() } else { path };
            let mut found: Vec<String> = files.list(&directory).await?.into_iter().map(|entry| entry.name).collect();
            found.retain(|name| glob.matches(name));
            found.sort();
            next.extend(found.iter().map(|name| format!("{}/{name}", directory.trim_end_matches('/'))));
        }
        paths = next;
    }
    let mut parts = Vec::new();
    for path in paths {
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let entry = files.stat(&path).await?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let real = entry.symlink_target.unwrap_or(path);
        parts.push(Part { name, real, is_directory: entry.kind == FileKind::Directory });
    }
    if parts.is_empty() {
        return Err(Failure::of(format!("{pattern}: the other stage has no such file")));
    }
    Ok(parts)
}

/// The paths of those sources that are archives, and the other sources.
async fn divided(found: Vec<Found>) -> Result<(Vec<PathBuf>, Vec<Found>), Failure> {
    let divide = move || {
        let (mut archives, mut plain) = (Vec::new(), Vec::new());
        for found in found {
            match file_of(&found).map(|path| is_archive(&path).map(|is_archive| (path, is_archive))).transpose()? {
                Some((path, true)) => archives.push(path),
                _ => plain.push(found),
            }
        }
        Ok((archives, plain))
    };
    let divided: io::Result<_> = blocking("look for archives", divide).await?;
    divided.map_err(|error| Failure::of(format!("look for archives: {error}")))
}

/// The path of a source that is a file of the host.
fn file_of(found: &Found) -> Option<PathBuf> {
    match found.entries.as_slice() {
        [Entry { what: What::File { from, .. }, .. }] if !found.is_directory => Some(from.clone()),
        _ => None,
    }
}

/// Has the guest's agent unpack what `write` writes below a directory.
async fn into_agent(
    sandbox: &Sandbox,
    directory: &str,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
) -> Result<(), Failure> {
    let archive = sandbox.files().as_user("root").unpack(directory).await?;
    let written: Result<_, Failure> = blocking("pack the files", move || Ok(written(archive, write))).await?;
    written?.map_err(|error| match error.downcast::<Error>() {
        Ok(error) => failed(error),
        Err(error) => Failure::of(chain(&error)),
    })
}

/// What an agent has refused.
fn failed(error: Error) -> Failure {
    match error {
        Error::Agent { .. } | Error::InvalidInput { .. } | Error::NotFound { .. } => Failure::of(chain(&error)),
        error => error.into(),
    }
}

fn written(to: impl AsyncWrite + Unpin, write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffered = BufWriter::with_capacity(BUFFER_BYTES, SyncIoBridge::new(to));
    write(&mut buffered)?;
    buffered.flush()?;
    buffered.into_inner().map_err(io::IntoInnerError::into_error)?.shutdown()
}

/// Each piece costs a call of the guest's agent.
const BUFFER_BYTES: usize = 512 << 10;
