//! The kernel that is inside of a bzImage: what Firecracker boots.
//!
//! The boot protocol gives the place of the payload, which the distribution's build compressed; Debian's cloud kernel
//! with LZ4, in the older frame format of the `lz4` program (`lz4 -l`). After its last block come 4 bytes with the size
//! of what it unpacks to. <https://docs.kernel.org/arch/x86/boot.html>

use std::io;

/// Unpacks an ELF kernel from a bzImage; an ELF kernel is returned as it is.
///
/// # Errors
/// It is neither, is damaged, or is compressed in another way than LZ4.
pub(crate) fn unpack(kernel: Vec<u8>) -> io::Result<Vec<u8>> {
    if kernel.starts_with(ELF) {
        return Ok(kernel);
    }
    let payload = payload(&kernel).ok_or_else(|| wrong("it is no bzImage with a payload"))?;
    let (blocks, size) = payload.split_last_chunk::<4>().ok_or_else(|| wrong("its payload is cut off"))?;
    let size = usize::try_from(u32::from_le_bytes(*size)).map_err(io::Error::other)?;
    if size > SIZE_BYTES_MAX {
        return Err(wrong("its payload would not fit a small machine"));
    }
    let blocks = blocks.strip_prefix(LZ4_LEGACY).ok_or_else(|| {
        wrong("its payload is not compressed with LZ4: build the image with Debian's cloud kernel, or give a vmlinux")
    })?;
    let unpacked = unpack_blocks(blocks, size)?;
    if unpacked.len() != size || !unpacked.starts_with(ELF) {
        return Err(wrong("its payload does not unpack to an ELF kernel"));
    }
    Ok(unpacked)
}

fn unpack_blocks(mut blocks: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::with_capacity(size);
    while !blocks.is_empty() {
        let (len, rest) = blocks.split_first_chunk::<4>().ok_or_else(|| wrong("a block is cut off"))?;
        let len = usize::try_from(u32::from_le_bytes(*len)).map_err(io::Error::other)?;
        let (block, rest) = rest.split_at_checked(len).ok_or_else(|| wrong("a block is cut off"))?;
        let room = (size - unpacked.len().min(size)).min(BLOCK_BYTES_MAX);
        let block = lz4_flex::block::decompress(block, room);
        unpacked.extend(block.map_err(|error| wrong(&format!("a block is damaged: {error}")))?);
        blocks = rest;
    }
    Ok(unpacked)
}

/// `payload_offset` and `payload_length` of the setup header; the offset counts from the protected-mode code, which
/// follows `setup_sects` sectors and the boot sector.
fn payload(kernel: &[u8]) -> Option<&[u8]> {
    if kernel.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *kernel.get(0x1f1)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let number = |at: usize| -> Option<usize> {
        let bytes = kernel.get(at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let start = (sectors + 1) * 512 + number(0x248)?;
    kernel.get(start..start.checked_add(number(0x24c)?)?)
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel cannot be unpacked: {why}"))
}

const ELF: &[u8] = b"\x7fELF";
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
/// Of that frame format.
const BLOCK_BYTES_MAX: usize = 8 << 20;
/// Debian's has 43 MiB.
const SIZE_BYTES_MAX: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage around `kernel`, in blocks of `block_bytes`.
    fn bzimage(kernel: &[u8], block_bytes: usize) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for block in kernel.chunks(block_bytes) {
            let packed = lz4_flex::block::compress(block);
            payload.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            payload.extend(packed);
        }
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        let mut image = vec![0; 2 * 512 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image.extend(b"what follows");
        image
    }

    fn kernel() -> Vec<u8> {
        let body = (0..20_000_u32).flat_map(|word| (word / 7).to_le_bytes());
        ELF.iter().copied().chain(body).collect()
    }

    #[test]
    fn the_kernel_comes_out_as_it_went_in() {
        assert_eq!(unpack(bzimage(&kernel(), 8 << 10)).unwrap(), kernel());
        assert_eq!(unpack(kernel()).unwrap(), kernel(), "an unpacked one is left as it is");
    }

    #[test]
    fn what_is_cut_off_or_tampered_with_is_refused() {
        let image = bzimage(&kernel(), 8 << 10);
        for len in (0..image.len() - b"what follows".len()).step_by(97) {
            assert!(unpack(image[..len].to_vec()).is_err(), "{len} bytes");
        }
        for at in (0x1f1..image.len() - b"what follows".len()).step_by(31) {
            let mut tampered = image.clone();
            tampered[at] ^= 0x55;
            // What is not noticed is the kernel's content, not its shape.
            if let Ok(unpacked) = unpack(tampered) {
                assert_eq!(unpacked.len(), kernel().len());
            }
        }
    }

    #[test]
    fn another_compression_is_refused_by_name() {
        let mut image = bzimage(&kernel(), 8 << 10);
        let at = 2 * 512 + 16;
        image[at..at + 4].copy_from_slice(&[0x28, 0xb5, 0x2f, 0xfd]);
        assert!(unpack(image).unwrap_err().to_string().contains("LZ4"));
    }

    #[test]
    fn the_images_own_kernel_unpacks() {
        let path = crate::default_data_dir().join("images/base/vmlinuz");
        let Ok(kernel) = std::fs::read(&path) else {
            println!("skipped: the_images_own_kernel_unpacks: there is no {}: run `cargo xtask setup`", path.display());
            return;
        };
        assert!(unpack(kernel).unwrap().len() > 16 << 20);
    }
}
