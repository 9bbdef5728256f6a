//! The manifest: what a generation consists of.

use bincode::{Decode, Encode};

use crate::{
    compression::Codec,
    damage::Damage,
    format::{
        fields::{COMPRESSED, Fields, ID_LEN, PLAIN, check_len},
        header::HEADER_BYTES_MAX,
    },
    id::GenerationId,
    page::{PageSize, whole_pages},
    space::Space,
};

/// The contents of a `manifest` file: what a generation consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) id: GenerationId,
    pub(crate) parent: Option<GenerationId>,
    pub(crate) created_unix_ms: u64,
    pub(crate) spaces: Vec<SpaceRecord>,
    pub(crate) blobs: Vec<BlobRecord>,
    pub(crate) metadata: Vec<u8>,
}

/// What a manifest says of a space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SpaceRecord {
    pub(crate) space: Space,
    pub(crate) page_count: u32,
    pub(crate) header_len: u64,
    pub(crate) header_crc: u32,
    /// The length of the data file in bytes.
    pub(crate) data_len: u64,
    /// How many pages are in it.
    pub(crate) data_pages: u32,
    pub(crate) codec: Option<Codec>,
}

/// What a manifest says of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct BlobRecord {
    pub(crate) name: String,
    pub(crate) len: u64,
    pub(crate) crc: u32,
}

/// [`Manifest`] as `bincode` has it: numbers and bytes alone. `S` is a space as the version has it.
#[derive(Encode, Decode)]
struct ManifestRecord<S> {
    id: [u8; ID_LEN],
    parent: Option<[u8; ID_LEN]>,
    created_unix_ms: u64,
    spaces: Vec<S>,
    blobs: Vec<BlobRecord>,
    metadata: Vec<u8>,
}

/// A space in version 1.
#[derive(Encode, Decode)]
struct RawSpaceRecord {
    kind: u32,
    page_bytes: u32,
    page_count: u32,
    header_len: u64,
    header_crc: u32,
    data_len: u64,
}

/// A space in version 2.
#[derive(Encode, Decode)]
struct RawPackedRecord {
    space: RawSpaceRecord,
    data_pages: u32,
    /// 0 if the data file is not compressed.
    codec: u32,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, Damage> {
        self.check()?;
        let version = self.version();
        let record = match version {
            PLAIN => bincode::encode_to_vec(self.record::<RawSpaceRecord>(), bincode_config()),
            _ => bincode::encode_to_vec(self.record::<RawPackedRecord>(), bincode_config()),
        };
        let record = record.map_err(|_| Damage::Cap("manifest length"))?;
        if record.len() > RECORD_BYTES_MAX {
            return Err(Damage::Cap("manifest length"));
        }
        let mut bytes = Vec::with_capacity(MANIFEST_FIXED + record.len());
        bytes.extend_from_slice(MANIFEST_MAGIC);
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&(record.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&record).to_le_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes.extend_from_slice(&record);
        Ok(bytes)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let lens = [(PLAIN, MANIFEST_FIXED), (COMPRESSED, MANIFEST_FIXED)];
        let (mut fixed, version) = Fields::checked(bytes, lens, MANIFEST_MAGIC, "fixed part")?;
        if fixed.u32() != 0 {
            return Err(Damage::Contents("a reserved field is not 0"));
        }
        let record_len = fixed.u64();
        let record_crc = fixed.u32();
        if record_len > RECORD_BYTES_MAX as u64 {
            return Err(Damage::Cap("manifest length"));
        }
        check_len(MANIFEST_FIXED as u64 + record_len, bytes.len() as u64)?;
        let record = &bytes[MANIFEST_FIXED..];
        if crc32c::crc32c(record) != record_crc {
            return Err(Damage::Checksum("record"));
        }
        let manifest = match version {
            PLAIN => Self::of_record::<RawSpaceRecord>(record)?,
            _ => Self::of_record::<RawPackedRecord>(record)?,
        };
        manifest.check()?;
        if manifest.version() != version {
            return Err(Damage::Contents("a version that it has no need of"));
        }
        Ok(manifest)
    }

    /// What it is written in: an older program can read what has no need of a newer version.
    fn version(&self) -> u32 {
        if self.spaces.iter().any(|space| space.codec.is_some()) { COMPRESSED } else { PLAIN }
    }

    fn record<'a, S: From<&'a SpaceRecord>>(&'a self) -> ManifestRecord<S> {
        ManifestRecord {
            id: *self.id.as_bytes(),
            parent: self.parent.map(|parent| *parent.as_bytes()),
            created_unix_ms: self.created_unix_ms,
            spaces: self.spaces.iter().map(S::from).collect(),
            blobs: self.blobs.clone(),
            metadata: self.metadata.clone(),
        }
    }

    fn of_record<S: Decode<()>>(record: &[u8]) -> Result<Self, Damage>
    where
        SpaceRecord: TryFrom<S, Error = Damage>,
    {
        let (raw, used): (ManifestRecord<S>, usize) = bincode::decode_from_slice(record, bincode_config())
            .map_err(|_| Damage::Contents("the record does not decode"))?;
        if used != record.len() {
            return Err(Damage::Contents("bytes follow the record"));
        }
        Ok(Self {
            id: GenerationId::from_bytes(raw.id),
            parent: raw.parent.map(GenerationId::from_bytes),
            created_unix_ms: raw.created_unix_ms,
            spaces: raw.spaces.into_iter().map(SpaceRecord::try_from).collect::<Result<_, _>>()?,
            blobs: raw.blobs,
            metadata: raw.metadata,
        })
    }

    fn check(&self) -> Result<(), Damage> {
        if self.metadata.len() > METADATA_BYTES_MAX {
            return Err(Damage::Cap("metadata length"));
        }
        if self.blobs.len() > BLOBS_MAX {
            return Err(Damage::Cap("blob count"));
        }
        if self.spaces.windows(2).any(|pair| pair[0].space >= pair[1].space) {
            return Err(Damage::Contents("spaces are out of order"));
        }
        if self.spaces.iter().any(|space| space.header_len > HEADER_BYTES_MAX) {
            return Err(Damage::Cap("header length"));
        }
        if !self.blobs.iter().all(|blob| is_blob_name(&blob.name)) {
            return Err(Damage::Contents("a blob's name is not a plain name"));
        }
        let mut names: Vec<_> = self.blobs.iter().map(|blob| &blob.name).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Damage::Contents("two blobs have one name"));
        }
        Ok(())
    }
}

impl From<&SpaceRecord> for RawSpaceRecord {
    fn from(record: &SpaceRecord) -> Self {
        Self {
            kind: record.space.code(),
            page_bytes: PageSize::KIB_4.bytes(),
            page_count: record.page_count,
            header_len: record.header_len,
            header_crc: record.header_crc,
            data_len: record.data_len,
        }
    }
}

impl From<&SpaceRecord> for RawPackedRecord {
    fn from(record: &SpaceRecord) -> Self {
        let codec = record.codec.map_or(0, Codec::code);
        Self { space: RawSpaceRecord::from(record), data_pages: record.data_pages, codec }
    }
}

impl TryFrom<RawSpaceRecord> for SpaceRecord {
    type Error = Damage;

    fn try_from(raw: RawSpaceRecord) -> Result<Self, Damage> {
        let data_pages = whole_pages(raw.data_len).ok_or(Damage::Contents("a data file is not whole pages"))?;
        Self::new(&raw, data_pages, None)
    }
}

impl TryFrom<RawPackedRecord> for SpaceRecord {
    type Error = Damage;

    fn try_from(raw: RawPackedRecord) -> Result<Self, Damage> {
        if raw.codec != 0 {
            let codec = Codec::from_code(raw.codec).ok_or(Damage::Contents("unknown kind of compression"))?;
            return Self::new(&raw.space, raw.data_pages, Some(codec));
        }
        let plain = Self::try_from(raw.space)?;
        if plain.data_pages != raw.data_pages {
            return Err(Damage::Contents("a data file has not as many pages as it says"));
        }
        Ok(plain)
    }
}

impl SpaceRecord {
    fn new(raw: &RawSpaceRecord, data_pages: u32, codec: Option<Codec>) -> Result<Self, Damage> {
        if PageSize::from_bytes(raw.page_bytes).is_none() {
            return Err(Damage::Contents("unsupported page size"));
        }
        Ok(Self {
            space: Space::from_code(raw.kind).ok_or(Damage::Contents("unknown kind of space"))?,
            page_count: raw.page_count,
            header_len: raw.header_len,
            header_crc: raw.header_crc,
            data_len: raw.data_len,
            data_pages,
            codec,
        })
    }
}

/// Whether a blob may be called `name`: it becomes part of a file's name.
pub(crate) fn is_blob_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=BLOB_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

fn bincode_config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<RECORD_BYTES_MAX>()
}

const MANIFEST_MAGIC: &[u8; 8] = b"WRENNGEN";
pub(crate) const MANIFEST_FIXED: usize = 32;

pub(crate) const METADATA_BYTES_MAX: usize = 1 << 20;
const RECORD_BYTES_MAX: usize = METADATA_BYTES_MAX + (1 << 18);
pub(crate) const MANIFEST_BYTES_MAX: u64 = (MANIFEST_FIXED + RECORD_BYTES_MAX) as u64;
pub(crate) const BLOBS_MAX: usize = 64;
const BLOB_NAME_BYTES_MAX: usize = 64;
