//! The generations that the records of a data directory name, and the records that are damaged.
//!
//! # Damage
//! A record that cannot be used stops nothing: others are listed, and what no record needs is collected. What a damaged
//! record may need is kept. Those are the generations whose ids can still be found in its text; and where there are
//! none, every generation that is not a day younger than the record, since a record is written after what it names. A
//! record that is whole may name a generation that is damaged or gone: the store then keeps what that one may reach.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use wrenn_snapshot::{GenerationId, LocalStore};

use crate::error::{Error, Result};
use crate::id::{SandboxId, TemplateName};
use crate::site::data_dir::DataDir;
use crate::site::record;
use crate::site::records::{PausedRecord, StepRecord, TemplateRecord};

/// A record of a sandbox, a template or a step of a build that cannot be used, as [`Host::damaged_records`](crate::Host::damaged_records)
/// lists it. Mend the file, restore it from a copy, or remove it. Until then, the stored data that it may need stays on
/// disk.
///
/// ```
/// fn line(record: &wrenn_core::DamagedRecord) -> String {
///     format!("{}: {}", record.path.display(), record.reason)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DamagedRecord {
    /// The record's file.
    pub path: PathBuf,
    /// Why the record cannot be used.
    pub reason: String,
}

/// The generations that the records of a data directory name, and the damaged records.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    named: Vec<(PathBuf, GenerationId)>,
    damaged: Vec<Damaged>,
}

/// A record that cannot be read, and the ids that can still be found in its text.
#[derive(Debug)]
struct Damaged {
    record: DamagedRecord,
    /// Every word of the record's text that looks like a generation's id.
    ids: Vec<GenerationId>,
    modified: SystemTime,
}

/// What earlier surveys read, so that the next survey reads only new records.
#[derive(Debug, Default)]
pub(crate) struct Seen(HashMap<PathBuf, (Stamp, GenerationId)>);

/// Identifies the content of a record's file. Records are replaced by new files and never written to, so another
/// content has another stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
    len: u64,
}

/// The kind of a record, which its directory tells.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Sandbox,
    Snapshot,
    Boot,
    Step,
}

/// The damaged records of a data directory that need not be open, or be there. Blocks.
pub(crate) fn damaged_in(path: &Path) -> Result<Vec<DamagedRecord>> {
    let data = DataDir::at(path)?;
    let survey = Survey::of(&data, &mut Seen::default())?;
    let is_there = |id: GenerationId| {
        let found = data.generations().join(id.to_string()).is_dir();
        if found { Ok(()) } else { Err(wrenn_snapshot::Error::NotFound(id).to_string()) }
    };
    Ok(survey.damaged(is_there))
}

impl Survey {
    /// Looks at every record. Blocks.
    ///
    /// # Errors
    /// [`Error::Failed`] where a directory cannot be listed, or where not even the metadata of a file in it can be
    /// read.
    pub(crate) fn of(data: &DataDir, seen: &mut Seen) -> Result<Self> {
        let mut survey = Self::default();
        let mut still_there = HashMap::with_capacity(seen.0.len());
        let directories = [
            (Kind::Sandbox, data.sandboxes()),
            (Kind::Snapshot, data.templates()),
            (Kind::Boot, data.booted()),
            (Kind::Step, data.steps()),
        ];
        for (kind, directory) in directories {
            for stem in record::stems(&directory)? {
                let path = directory.join(format!("{stem}.json"));
                let Some((stamp, modified)) = stamp(&path)? else { continue };
                let known = seen.0.get(&path).filter(|(known, _)| *known == stamp).map(|(_, id)| *id);
                match known.map_or_else(|| kind.generation(&stem, &path), |id| Ok(Some(id))) {
                    Ok(Some(id)) => {
                        still_there.insert(path.clone(), (stamp, id));
                        survey.named.push((path, id));
                    }
                    Ok(None) => {}
                    Err(error) => survey.damaged.push(Damaged::new(path, modified, &error)),
                }
            }
        }
        seen.0 = still_there;
        Ok(survey)
    }

    /// The generations that records name, but for one record.
    pub(crate) fn named_by_others(&self, own: Option<&Path>) -> Vec<GenerationId> {
        let others = self.named.iter().filter(|(path, _)| Some(&**path) != own).map(|(_, id)| *id);
        distinct(others.chain(self.damaged.iter().flat_map(|damaged| damaged.ids.iter().copied())))
    }

    /// The generations that a collection of `store` has to keep: those that are named, and those that a damaged record
    /// may need.
    pub(crate) fn roots(&self, store: &LocalStore) -> Result<Vec<GenerationId>> {
        let listed: HashSet<GenerationId> = store.list()?.into_iter().collect();
        let mut roots: HashSet<GenerationId> = self.named.iter().map(|(_, id)| *id).collect();
        for damaged in &self.damaged {
            let named = damaged.ids.iter().filter(|id| listed.contains(id)).count();
            roots.extend(damaged.ids.iter().filter(|id| listed.contains(id)));
            if named == 0 {
                roots.extend(listed.iter().filter(|id| may_be_older(store.root(), **id, damaged.modified)));
            }
        }
        Ok(roots.into_iter().collect())
    }

    /// How many records cannot be read.
    pub(crate) fn damaged_count(&self) -> usize {
        self.damaged.len()
    }

    /// The records that cannot be read, and those whose generation is damaged, as `is_there` says. Sorted by path.
    pub(crate) fn damaged(&self, is_there: impl Fn(GenerationId) -> Result<(), String>) -> Vec<DamagedRecord> {
        let unreadable = self.damaged.iter().map(|damaged| damaged.record.clone());
        let mut answers = HashMap::new();
        let dangling = self.named.iter().filter_map(|(path, id)| {
            let answer = answers.entry(*id).or_insert_with(|| is_there(*id));
            let reason = answer.as_ref().err()?.clone();
            Some(DamagedRecord { path: path.clone(), reason })
        });
        let mut all: Vec<DamagedRecord> = unreadable.chain(dangling).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }
}

impl Damaged {
    fn new(path: PathBuf, modified: SystemTime, error: &Error) -> Self {
        let source = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let reason = format!("{error}{source}");
        let ids = fs::read(&path).map(|bytes| ids_in(&bytes)).unwrap_or_default();
        Self { record: DamagedRecord { path, reason }, ids, modified }
    }
}

impl Kind {
    /// The generation that a record of this kind names; `None` where there is no record any more.
    fn generation(self, stem: &str, path: &Path) -> Result<Option<GenerationId>> {
        match self {
            Self::Sandbox => {
                let id: SandboxId = stem.parse()?;
                let Some(record) = record::read::<PausedRecord>(path)? else { return Ok(None) };
                if record.fixed.id != id {
                    return Err(Error::invalid(format!(
                        "it is the record of {}, under another's name",
                        record.fixed.id
                    )));
                }
                Ok(Some(record.generation))
            }
            Self::Snapshot => {
                stem.parse::<TemplateName>()?;
                Ok(record::read::<TemplateRecord>(path)?.map(|record| record.generation))
            }
            Self::Boot => Ok(record::read::<TemplateRecord>(path)?.map(|record| record.generation)),
            Self::Step => Ok(record::read::<StepRecord>(path)?.map(|record| record.generation)),
        }
    }
}

/// What distinguishes a file's content from what it was before, and when that was written; `None` where there is no
/// file.
fn stamp(path: &Path) -> Result<Option<(Stamp, SystemTime)>> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("look at", path)(error)),
    };
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    let stamp = Stamp { inode: metadata.ino(), changed, len: metadata.len() };
    Ok(Some((stamp, metadata.modified().map_err(Error::io("look at", path))?)))
}

/// Every run of 32 hexadecimal digits.
fn ids_in(bytes: &[u8]) -> Vec<GenerationId> {
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric());
    words.filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok()).collect()
}

/// Whether a generation may have been there when a record was written; true where its age cannot be found out.
fn may_be_older(root: &Path, id: GenerationId, record: SystemTime) -> bool {
    let modified = |entry: io::Result<fs::DirEntry>| entry?.metadata()?.modified();
    let files = || fs::read_dir(root.join(id.to_string()))?.map(modified).collect::<io::Result<Vec<_>>>();
    // Files may be added to a published generation, but none is written again. So its oldest file has its age.
    let oldest = files().ok().and_then(|files| files.into_iter().min());
    oldest.is_none_or(|oldest| oldest <= record + CLOCK_SLACK)
}

fn distinct(ids: impl Iterator<Item = GenerationId>) -> Vec<GenerationId> {
    ids.collect::<HashSet<_>>().into_iter().collect()
}

/// How far the clock may have been set back between the writing of a generation and the writing of its record.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, DataDir) {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::create(dir.path()).unwrap();
        (dir, data)
    }

    #[test]
    fn ids_are_found_in_what_is_left_of_a_record() {
        let id = GenerationId::random();
        assert_eq!(ids_in(format!("{{\"generation\": \"{id}\", \"x").as_bytes()), [id]);
        assert_eq!(ids_in(&format!("\u{0}{id}").as_bytes()[..20]), []);
    }

    #[test]
    fn a_record_that_was_replaced_is_read_again() {
        let (_dir, data) = directory();
        let path = data.booted().join("one.json");
        let mut seen = Seen::default();
        let (mut ids, mut found) = (Vec::new(), Vec::new());
        for _ in 0..20 {
            let id = GenerationId::random();
            let shape = serde_json::json!({ "vcpus": 1, "memory_mib": 128, "acceleration": "tcg", "tsc_khz": null });
            record::write(&path, &serde_json::json!({ "generation": id.to_string(), "shape": shape })).unwrap();
            ids.push(vec![id]);
            found.push(Survey::of(&data, &mut seen).unwrap().named_by_others(None));
        }
        assert_eq!(found, ids);
    }

    #[test]
    fn an_unreadable_record_keeps_what_was_there_before_it() {
        let (dir, data) = directory();
        let store = LocalStore::open(data.generations()).unwrap();
        let publish = || store.begin(None).unwrap().publish(b"").unwrap().id();
        let (old, young) = (publish(), publish());
        let torn = data.booted().join("torn.json");
        fs::write(&torn, "").unwrap();
        // All three are given their times: a machine's clock may be set while its tests run.
        let written = SystemTime::now();
        let set = |path: &Path, time| fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
        set(&torn, written);
        for (id, time) in [(old, written), (young, written + CLOCK_SLACK + Duration::from_secs(60))] {
            for file in fs::read_dir(dir.path().join("generations").join(id.to_string())).unwrap() {
                set(&file.unwrap().path(), time);
            }
        }
        let survey = Survey::of(&data, &mut Seen::default()).unwrap();
        assert_eq!(survey.damaged_count(), 1, "{survey:?}");
        assert_eq!(HashSet::from_iter(store.list().unwrap()), HashSet::from([old, young]));
        assert_eq!(survey.roots(&store).unwrap(), [old], "{survey:?}");
        assert_eq!(store.collect(&survey.roots(&store).unwrap()).unwrap(), [young]);
    }

    #[test]
    fn what_is_damaged_is_named_with_its_reason() {
        let (_dir, data) = directory();
        fs::write(data.sandboxes().join("copy.json"), "{}").unwrap();
        fs::write(data.templates().join("torn.json"), "{\"gen").unwrap();
        fs::write(data.booted().join("newer.json"), "{\"version\": 2}").unwrap();
        fs::write(data.steps().join("cut.json"), "{\"text\": \"RUN").unwrap();
        let damaged = Survey::of(&data, &mut Seen::default()).unwrap().damaged(|_| Ok(()));
        let said: Vec<String> = damaged.iter().map(|damaged| damaged.reason.clone()).collect();
        assert!(said[0].contains("version 2"), "{said:?}");
        assert!(said[1].contains("not a sandbox id"), "{said:?}");
        assert!(said[2].contains("cut.json"), "{said:?}");
        assert!(said[3].contains("torn.json"), "{said:?}");
    }
}
