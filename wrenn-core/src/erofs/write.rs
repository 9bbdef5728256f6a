//! A tree, written behind the content that is in the file already.
//!
//! ```text
//! Order::of -> Plan::make: each inode's place -> write_blocks -> write_inodes -> superblock
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use crate::erofs::directory::{self, Entry};
use crate::erofs::format::{BLOCK, BLOCK_BYTES, FileType, Form, Header, SLOT, Superblock};
use crate::erofs::tree::{Inode, InodeId, Kind, Time, Tree};
use crate::erofs::xattr;

/// Where a file's content is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// In the file that is written to, from the start of this block on. What follows it in its last block is zero.
    Blocks(u32),
    /// Elsewhere: it is asked for, and put beside the inode if there is room. For short files.
    Elsewhere { source: u32, offset: u64 },
}

/// Gives the bytes of a [`Content::Elsewhere`]: the source, the offset, and what to fill.
pub(crate) type Read<'a> = dyn FnMut(u32, u64, &mut [u8]) -> io::Result<()> + 'a;

/// Writes `tree` to `file`, whose blocks from 1 to before `end` have the content of files. Returns the file's length in
/// bytes. Fails with [`io::ErrorKind::FileTooLarge`] where the format cannot say what the tree has.
pub(crate) fn write(tree: &Tree<Content>, file: &File, end: u32, read: &mut Read<'_>) -> io::Result<u64> {
    let order = Order::of(tree);
    let plan = Plan::make(tree, &order, end)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    out.seek(SeekFrom::Start(u64::from(end) * BLOCK))?;
    plan.write_blocks(&mut out, read)?;
    let meta_bytes = plan.write_inodes(&mut out, read)?;
    out.flush()?;
    let blocks = plan.meta_block.checked_add(block_count(meta_bytes)?).ok_or_else(too_large)?;
    let superblock = Superblock {
        root_nid: u16::try_from(plan.nid(Tree::<Content>::ROOT)).map_err(|_| too_large())?,
        inodes: order.inodes.len() as u64,
        time: plan.time,
        blocks,
        meta_block: plan.meta_block,
    };
    file.write_all_at(&superblock.encode(), 0)?;
    let bytes = u64::from(blocks) * BLOCK;
    file.set_len(bytes)?;
    Ok(bytes)
}

/// The inodes that have a name, the root first and then directory by directory.
struct Order {
    inodes: Vec<InodeId>,
    /// By [`InodeId::index`], as the others.
    links: Vec<u32>,
    parents: Vec<InodeId>,
}

impl Order {
    fn of(tree: &Tree<Content>) -> Self {
        let root = Tree::<Content>::ROOT;
        let mut order = Self { inodes: vec![root], links: vec![0; tree.len()], parents: vec![root; tree.len()] };
        order.links[root.index()] = 2;
        let mut next = 0;
        while let Some(&id) = order.inodes.get(next) {
            for (_, child) in tree.entries(id) {
                let links = &mut order.links[child.index()];
                if *links == 0 {
                    order.inodes.push(child);
                    order.parents[child.index()] = id;
                }
                if matches!(tree.inode(child).kind, Kind::Directory(_)) {
                    *links = 2;
                    order.links[id.index()] += 1;
                } else {
                    *links += 1;
                }
            }
            next += 1;
        }
        order
    }
}

/// Where everything goes.
struct Plan<'a> {
    tree: &'a Tree<Content>,
    order: &'a Order,
    time: Time,
    /// As [`Order::inodes`].
    places: Vec<Place>,
    /// By [`InodeId::index`]: bytes from the first inode's block.
    positions: Vec<u64>,
    meta_block: u32,
}

struct Place {
    id: InodeId,
    position: u64,
    form: Form,
    size: u64,
    xattrs: Vec<u8>,
    /// Whether the content is beside the inode.
    inline: bool,
    /// The first block, where it is not.
    block: Option<u32>,
    /// Whether that block is to be written.
    write: bool,
}

impl<'a> Plan<'a> {
    fn make(tree: &'a Tree<Content>, order: &'a Order, end: u32) -> io::Result<Self> {
        let time = usual_time(tree, order);
        let (mut packer, mut next_block) = (Packer::new(), end);
        let mut positions = vec![0; tree.len()];
        let mut places = Vec::with_capacity(order.inodes.len());
        for &id in &order.inodes {
            let inode = tree.inode(id);
            let size = size(tree, id, inode);
            let xattrs = xattr::encode(&inode.meta.xattrs).ok_or_else(too_large)?;
            let form = Form::of(&inode.meta, size, order.links[id.index()], time);
            let head = form.bytes() + xattrs.len();
            let given = match inode.kind {
                Kind::File { content: Content::Blocks(block), .. } => Some(block),
                _ => None,
            };
            let tail = usize::try_from(size).ok().filter(|tail| given.is_none() && head + tail <= BLOCK_BYTES);
            let write = given.is_none() && tail.is_none();
            let block = if write { Some(take_blocks(&mut next_block, size)?) } else { given };
            let position = packer.place(head, tail.unwrap_or(0));
            positions[id.index()] = position;
            let inline = tail.is_some_and(|bytes| bytes > 0);
            places.push(Place { id, position, form, size, xattrs, inline, block, write });
        }
        Ok(Self { tree, order, time, places, positions, meta_block: next_block })
    }

    fn nid(&self, id: InodeId) -> u64 {
        self.positions[id.index()] / SLOT
    }

    /// What is too long to be beside its inode.
    fn write_blocks(&self, out: &mut impl Write, read: &mut Read<'_>) -> io::Result<()> {
        for place in self.places.iter().filter(|place| place.write) {
            let content = self.content(place, read)?;
            out.write_all(&content)?;
            pad(out, content.len().next_multiple_of(BLOCK_BYTES) - content.len())?;
        }
        Ok(())
    }

    /// Returns how many bytes it has written.
    fn write_inodes(&self, out: &mut impl Write, read: &mut Read<'_>) -> io::Result<u64> {
        let mut places: Vec<(u32, &Place)> = (1..).zip(&self.places).collect();
        places.sort_by_key(|(_, place)| place.position);
        let mut at = 0;
        for (number, place) in places {
            pad(out, usize::try_from(place.position - at).map_err(|_| too_large())?)?;
            let mut bytes = self.header(place, number);
            bytes.extend(&place.xattrs);
            if place.inline {
                bytes.extend(self.content(place, read)?);
            }
            out.write_all(&bytes)?;
            at = place.position + bytes.len() as u64;
        }
        let end = at.next_multiple_of(BLOCK);
        pad(out, usize::try_from(end - at).map_err(|_| too_large())?)?;
        Ok(end)
    }

    fn header(&self, place: &Place, number: u32) -> Vec<u8> {
        let inode = self.tree.inode(place.id);
        let at = match &inode.kind {
            Kind::CharDevice(device) | Kind::BlockDevice(device) => device.encode(),
            _ => place.block.unwrap_or(0),
        };
        let header = Header {
            meta: &inode.meta,
            file_type: FileType::of(&inode.kind),
            form: place.form,
            inline: place.inline,
            xattr_bytes: place.xattrs.len(),
            size: place.size,
            nlink: self.order.links[place.id.index()],
            at,
            number,
        };
        header.encode()
    }

    fn content(&self, place: &Place, read: &mut Read<'_>) -> io::Result<Vec<u8>> {
        match &self.tree.inode(place.id).kind {
            Kind::File { content: Content::Elsewhere { source, offset }, .. } => {
                let mut bytes = vec![0; usize::try_from(place.size).map_err(|_| too_large())?];
                read(*source, *offset, &mut bytes)?;
                Ok(bytes)
            }
            Kind::Symlink(target) => Ok(target.clone()),
            Kind::Directory(_) => {
                let parent = self.order.parents[place.id.index()];
                let entries = names(self.tree, place.id, parent).into_iter().map(|(name, id)| Entry {
                    name,
                    nid: self.nid(id),
                    file_type: FileType::of(&self.tree.inode(id).kind),
                });
                Ok(directory::encode(&entries.collect::<Vec<_>>()))
            }
            _ => Ok(Vec::new()),
        }
    }
}

/// The time that most files have, which is then left out of their inodes.
fn usual_time(tree: &Tree<Content>, order: &Order) -> Time {
    let mut counts: HashMap<Time, usize> = HashMap::new();
    for &id in &order.inodes {
        *counts.entry(tree.inode(id).meta.mtime).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    most.map(|(time, _)| time).unwrap_or_default()
}

fn size(tree: &Tree<Content>, id: InodeId, inode: &Inode<Content>) -> u64 {
    match &inode.kind {
        Kind::File { size, .. } => *size,
        Kind::Directory(_) => directory::size(names(tree, id, id).into_iter().map(|(name, _)| name)),
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

/// The names in a directory, the two that every directory has included.
fn names(tree: &Tree<Content>, id: InodeId, parent: InodeId) -> Vec<(&[u8], InodeId)> {
    let mut names: Vec<(&[u8], InodeId)> = tree.entries(id).collect();
    names.extend([(&b"."[..], id), (b"..", parent)]);
    names.sort_unstable();
    names
}

/// Places inodes so that neither an inode nor the content beside it crosses the end of a block.
struct Packer {
    /// The end of what is placed.
    end: u64,
    /// Where the latest blocks have room: the start of it, and how much.
    gaps: Vec<(u64, usize)>,
}

impl Packer {
    /// The first slot stays empty: programs take a file with the number 0 for one that was removed.
    fn new() -> Self {
        Self { end: BLOCK, gaps: vec![(SLOT, BLOCK_BYTES - Form::Compact.bytes())] }
    }

    /// `head` is the inode with its attributes, which may be longer than a block.
    fn place(&mut self, head: usize, tail: usize) -> u64 {
        let needed = head + tail;
        let best =
            self.gaps.iter().enumerate().filter(|(_, (_, room))| *room >= needed).min_by_key(|(_, (_, room))| *room);
        let position = match best.map(|(index, _)| index) {
            Some(index) => self.gaps.swap_remove(index).0,
            None => self.end,
        };
        let after = (position + needed as u64).next_multiple_of(SLOT);
        self.end = self.end.max(after.next_multiple_of(BLOCK));
        let room = usize::try_from(after.next_multiple_of(BLOCK) - after).unwrap_or(0);
        if room >= Form::Compact.bytes() {
            self.gaps.push((after, room));
            if self.gaps.len() > GAPS_MAX {
                self.gaps.remove(0);
            }
        }
        position
    }
}

/// The first of the blocks that `bytes` take.
fn take_blocks(next: &mut u32, bytes: u64) -> io::Result<u32> {
    let first = *next;
    *next = first.checked_add(block_count(bytes)?).ok_or_else(too_large)?;
    Ok(first)
}

fn block_count(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes.div_ceil(BLOCK)).map_err(|_| too_large())
}

fn pad(out: &mut impl Write, mut bytes: usize) -> io::Result<()> {
    while bytes > 0 {
        let some = bytes.min(ZEROS.len());
        out.write_all(&ZEROS[..some])?;
        bytes -= some;
    }
    Ok(())
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "an EROFS file system cannot be that large")
}

const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
const BUFFER_BYTES: usize = 1 << 20;
/// So that files of one directory stay near each other.
const GAPS_MAX: usize = 32;
