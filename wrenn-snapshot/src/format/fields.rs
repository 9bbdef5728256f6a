//! What the files of the format have in common: fixed-width fields behind a magic and a version.

use crate::damage::Damage;

/// Fixed-width fields, taken one after another. Past the end they are zeros; callers check lengths first.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// The fields after the magic and the version of a fixed part whose last four bytes are its own checksum, and the
    /// version. `lens` are the lengths that it has in each version, ascending.
    pub(crate) fn checked(
        bytes: &'a [u8],
        lens: [(u32, usize); 2],
        magic: &[u8; 8],
        what: &'static str,
    ) -> Result<(Self, u32), Damage> {
        let short = |len: usize| Damage::Length { expected: len as u64, actual: bytes.len() as u64 };
        let mut fields = Self(bytes.get(..lens[0].1).ok_or_else(|| short(lens[0].1))?);
        if fields.array::<8>() != *magic {
            return Err(Damage::Magic);
        }
        let version = fields.u32();
        let len = lens.into_iter().find(|(known, _)| *known == version).ok_or(Damage::Version(version))?.1;
        let fixed = bytes.get(..len).ok_or_else(|| short(len))?;
        fields.0 = &fixed[MAGIC_AND_VERSION..];
        let (covered, crc) = fixed.split_at(len - CRC_LEN);
        if crc32c::crc32c(covered) != Fields(crc).u32() {
            return Err(Damage::Checksum(what));
        }
        Ok((fields, version))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        if let Some((field, rest)) = self.0.split_at_checked(N) {
            array.copy_from_slice(field);
            self.0 = rest;
        }
        array
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// Refuses a file that is shorter or longer than it says.
pub(crate) fn check_len(expected: u64, actual: u64) -> Result<(), Damage> {
    if expected == actual { Ok(()) } else { Err(Damage::Length { expected, actual }) }
}

/// The version of files in which nothing is compressed.
pub(crate) const PLAIN: u32 = 1;
/// The version of the others.
pub(crate) const COMPRESSED: u32 = 2;
const MAGIC_AND_VERSION: usize = 12;
pub(crate) const ID_LEN: usize = 16;
pub(crate) const CRC_LEN: usize = 4;
