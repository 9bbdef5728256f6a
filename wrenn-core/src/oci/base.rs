//! The base: the content that is left of the layers, and then the file system's own blocks.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::erofs::{self, BLOCK, Content, InodeId, Tree};
use crate::oci::cache::{Layer, segment};
use crate::oci::entry::Place;
use crate::oci::error::OciError;
use crate::oci::merge::{LayerContent, Merge};
use crate::oci::package_list::{self, PackageList};

/// Writes the image of `layers`, the lowest first, to the new file `path`, and says which packages it has. It is not made
/// durable. Where the file system can, it shares the layers' blocks.
pub(super) fn write(layers: &[Arc<Layer>], path: &Path) -> Result<PackageList, OciError> {
    let mut merge = Merge::new();
    for layer in layers {
        let fault = |(path, fault): (Vec<u8>, _)| OciError::entry(&layer.digest.to_string(), &path, fault);
        merge.apply(&layer.entries).map_err(fault)?;
    }
    let packages = package_list::read(&merge, layers).map_err(OciError::io("read the packages of", path))?;
    let file =
        File::options().read(true).write(true).create_new(true).open(path).map_err(OciError::io("create", path))?;
    fill(layers, merge.finish(), &file).map_err(OciError::io("write", path))?;
    Ok(packages)
}

fn fill(layers: &[Arc<Layer>], tree: Tree<LayerContent>, file: &File) -> io::Result<()> {
    let ranges = Range::of(&tree);
    let mut blocks = vec![0; tree.len()];
    let mut next = 1_u32;
    let mut runs: Vec<Run> = Vec::new();
    for range in ranges {
        let count = u32::try_from(range.bytes.div_ceil(BLOCK)).map_err(|_| too_large())?;
        blocks[range.id.index()] = next;
        match runs.last_mut().filter(|run| run.layer == range.layer && run.offset + run.bytes == range.offset) {
            Some(run) => run.bytes += u64::from(count) * BLOCK,
            None => runs.push(Run {
                layer: range.layer,
                offset: range.offset,
                bytes: u64::from(count) * BLOCK,
                to: u64::from(next) * BLOCK,
            }),
        }
        next = next.checked_add(count).ok_or_else(too_large)?;
    }
    let layer = |number: u32| usize::try_from(number).ok().and_then(|number| layers.get(number));
    for run in &runs {
        run.copy(&layer(run.layer).ok_or_else(too_large)?.data, file)?;
    }
    let tree = tree.map(|id, _, content| match content.stored.place {
        Place::Data(_) => Content::Blocks(blocks[id.index()]),
        Place::Small(offset) => Content::Elsewhere { source: content.layer, offset },
    });
    erofs::write(&tree, file, next, &mut |source, offset, bytes| {
        layer(source).ok_or_else(too_large)?.small.read_exact_at(bytes, offset)
    })?;
    Ok(())
}

/// A file's content in its layer.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Range {
    layer: u32,
    offset: u64,
    bytes: u64,
    id: InodeId,
}

impl Range {
    /// Of the files that have a name, in the order of their layers.
    fn of(tree: &Tree<LayerContent>) -> Vec<Self> {
        let (mut ranges, mut seen) = (Vec::new(), vec![false; tree.len()]);
        let mut pending = vec![Tree::<LayerContent>::ROOT];
        while let Some(id) = pending.pop() {
            if std::mem::replace(&mut seen[id.index()], true) {
                continue;
            }
            pending.extend(tree.entries(id).map(|(_, child)| child));
            if let erofs::Kind::File { size, content } = &tree.inode(id).kind
                && let Place::Data(offset) = content.stored.place
            {
                ranges.push(Self { layer: content.layer, offset, bytes: *size, id });
            }
        }
        ranges.sort();
        ranges
    }
}

/// What can be copied at once.
struct Run {
    layer: u32,
    offset: u64,
    bytes: u64,
    to: u64,
}

impl Run {
    /// Holes stay holes.
    fn copy(&self, from: &File, to: &File) -> io::Result<()> {
        let (mut position, end) = (self.offset, self.offset + self.bytes);
        while let Some((start, stop)) = segment(from, position, end)? {
            copy(from, start, to, self.to + (start - self.offset), stop - start)?;
            position = stop;
        }
        Ok(())
    }
}

/// `copy_file_range` shares blocks by itself where the file system can.
fn copy(from: &File, mut start: u64, to: &File, mut at: u64, mut bytes: u64) -> io::Result<()> {
    while bytes > 0 {
        let some = usize::try_from(bytes).unwrap_or(usize::MAX).min(COPY_BYTES_MAX);
        let (mut source, mut sink) = (start, at);
        let count = match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut sink), some) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(from, start, to, at, bytes);
            }
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        start += count as u64;
        at += count as u64;
        bytes -= count as u64;
    }
    Ok(())
}

fn copy_by_hand(from: &File, mut start: u64, to: &File, mut at: u64, mut bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while bytes > 0 {
        let count = usize::try_from(bytes).map_or(buffer.len(), |bytes| bytes.min(buffer.len()));
        from.read_exact_at(&mut buffer[..count], start)?;
        to.write_all_at(&buffer[..count], at)?;
        start += count as u64;
        at += count as u64;
        bytes -= count as u64;
    }
    Ok(())
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "an EROFS file system cannot be that large")
}

const COPY_BYTES_MAX: usize = 1 << 30;
