//! What each key has built, by the names that it was built under.

use std::collections::BTreeMap;

use crate::service::builds::build_id;
use crate::service::error::ServiceError;
use crate::service::sandboxes::Sandboxes;
use crate::service::templates;
use crate::store::records::{SnapshotRecord, TagRecord};

/// A name that templates were built under.
#[derive(Debug, Clone)]
pub struct Built {
    /// The name.
    pub name: String,
    /// What was built, the newest first; one at least.
    pub templates: Vec<SnapshotRecord>,
    /// What the name stands for by its tags, sorted by these.
    pub tags: Vec<TagRecord>,
}

impl Built {
    /// What the name stands for without a tag, or else the newest.
    #[must_use]
    pub fn foremost(&self) -> Option<&SnapshotRecord> {
        let tag = self.tags.iter().find(|record| record.tag == templates::DEFAULT);
        let tagged = tag.and_then(|tag| self.templates.iter().find(|record| record.name == tag.template));
        tagged.or_else(|| self.templates.first())
    }
}

impl Sandboxes {
    /// The names that an owner's templates were built under, sorted.
    ///
    /// # Errors
    /// [`ServiceError::Store`].
    pub async fn built(&self, owner: &str) -> Result<Vec<Built>, ServiceError> {
        let mut names: BTreeMap<String, Vec<SnapshotRecord>> = BTreeMap::new();
        for record in self.store.snapshots().await?.into_iter().filter(|record| record.owner == owner) {
            let Some(name) = record.source.strip_prefix(templates::BUILD) else { continue };
            // One whose build goes on is none yet.
            let is_done = self.builds.find(owner, &build_id(&record.name)).is_none_or(|build| build.is_over());
            if is_done {
                names.entry(name.to_owned()).or_default().push(record);
            }
        }
        let mut all = Vec::with_capacity(names.len());
        for (name, mut templates) in names {
            templates.sort_by_key(|record| std::cmp::Reverse(record.created_at_ms));
            let tags = self.store.tags(owner, &name).await?;
            all.push(Built { name, templates, tags });
        }
        Ok(all)
    }

    /// What was built under a name.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`] where nothing was, [`ServiceError::Store`].
    pub async fn built_under(&self, owner: &str, name: &str) -> Result<Built, ServiceError> {
        let built = self.built(owner).await?.into_iter().find(|built| built.name == name);
        built.ok_or_else(|| ServiceError::NoSnapshot { name: name.to_owned() })
    }

    /// The template that a build has made under a name, by the library's name.
    ///
    /// # Errors
    /// As [`built_under`](Self::built_under), and [`ServiceError::NoBuild`] where the build is not among what is kept.
    pub async fn template_of_build(&self, owner: &str, name: &str, id: &str) -> Result<String, ServiceError> {
        let built = self.built_under(owner, name).await?;
        let found = built.templates.into_iter().find(|record| build_id(&record.name) == id);
        found.map(|record| record.name).ok_or_else(|| ServiceError::NoBuild { id: id.to_owned() })
    }
}
