//! Tags: further names of templates, `NAME:TAG`, which each key gives for itself.

use std::collections::BTreeSet;

use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::sandboxes::Sandboxes;
use crate::service::templates;
use crate::store::records::TagRecord;

/// A name with a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tagged {
    /// The name, such as `base`.
    pub name: String,
    /// The tag, such as `stable`.
    pub tag: String,
}

/// What a name stands for with a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The tag, and the template by the library's name.
    pub record: TagRecord,
    /// The name that the template was built under, if it was built.
    pub built_as: Option<String>,
}

/// What stands for the template of the name itself, unless it is assigned.
pub const DEFAULT: &str = templates::DEFAULT;

impl Tagged {
    /// `NAME:TAG`, or `TAG` of the name. `None` if it can be no tag.
    #[must_use]
    pub fn of(name: &str, tag: &str) -> Option<Self> {
        let (name, tag) = tag.split_once(':').unwrap_or((name, tag));
        Some(Self { name: name.to_owned(), tag: normalized(tag)? })
    }

    /// Whether it stands for the template of its name as long as it is not assigned.
    #[must_use]
    pub fn is_implied(&self) -> bool {
        [templates::DEFAULT, templates::LATEST].contains(&&*self.tag)
    }
}

/// A tag as it is kept: in small letters. `None` if it can be none.
#[must_use]
pub fn normalized(tag: &str) -> Option<String> {
    templates::normalized(tag)
}

impl Sandboxes {
    /// The name of the template that a name, with or without a tag, stands for. Whether it is there is another question.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`] for a tag that is not assigned, [`ServiceError::Store`].
    pub async fn resolve(&self, owner: &str, name: &str) -> Result<String, ServiceError> {
        templates::resolve(self.store(), owner, name).await
    }

    /// Has names stand for the template that `target` stands for, and gives that one's name.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`], [`ServiceError::TooMany`], [`ServiceError::Store`], and those of
    /// [`templates`](Self::templates).
    pub async fn assign_tags(&self, owner: &str, target: &str, tags: &[Tagged]) -> Result<String, ServiceError> {
        let template = self.resolve(owner, target).await?;
        let is_there = self.all_templates(owner).await?.iter().any(|one| one.name().as_str() == template);
        if !is_there {
            return Err(ServiceError::NoSnapshot { name: target.to_owned() });
        }
        for name in tags.iter().map(|tagged| &tagged.name).collect::<BTreeSet<_>>() {
            let assigned = self.store().tags(owner, name).await?.into_iter().map(|record| record.tag);
            let new = tags.iter().filter(|tagged| tagged.name == *name).map(|tagged| tagged.tag.clone());
            if assigned.chain(new).collect::<BTreeSet<_>>().len() > TAGS_MAX {
                return Err(ServiceError::TooMany { of: "a name", what: "tags", max: TAGS_MAX });
            }
        }
        let record = |Tagged { name, tag }: &Tagged| TagRecord {
            owner: owner.to_owned(),
            name: name.clone(),
            tag: tag.clone(),
            template: template.clone(),
            created_at_ms: now_ms(),
        };
        self.store().set_tags(&tags.iter().map(record).collect::<Vec<_>>()).await?;
        Ok(template)
    }

    /// Has a name stand for nothing with these tags any more.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`] where the owner has no template and no tag of that name, and as
    /// [`templates`](Self::templates).
    pub async fn remove_tags(&self, owner: &str, name: &str, tags: &[Tagged]) -> Result<(), ServiceError> {
        self.tags(owner, name).await?;
        for Tagged { name, tag } in tags {
            self.store().remove_tag(owner, name, tag).await?;
        }
        Ok(())
    }

    /// The tags of a name, as [`tags`](Self::tags), with what their templates are called.
    ///
    /// # Errors
    /// As [`tags`](Self::tags).
    pub async fn assigned(&self, owner: &str, name: &str) -> Result<Vec<Assigned>, ServiceError> {
        let mut all = Vec::new();
        for record in self.tags(owner, name).await? {
            let source = self.store().snapshot(&record.template).await?.map(|template| template.source);
            let built_as =
                source.as_deref().and_then(|source| source.strip_prefix(templates::BUILD)).map(str::to_owned);
            all.push(Assigned { record, built_as });
        }
        Ok(all)
    }

    /// What a name stands for with one tag.
    ///
    /// # Errors
    /// As [`tags`](Self::tags), and [`ServiceError::NoSnapshot`] where the name has no such tag.
    pub async fn assigned_to(&self, owner: &str, tagged: &Tagged) -> Result<Assigned, ServiceError> {
        let found = self.assigned(owner, &tagged.name).await?.into_iter().find(|one| one.record.tag == tagged.tag);
        found.ok_or_else(|| ServiceError::NoSnapshot { name: format!("{}:{}", tagged.name, tagged.tag) })
    }

    /// The tags of a name, sorted, `default` among them where there is a template of that name.
    ///
    /// # Errors
    /// As [`remove_tags`](Self::remove_tags).
    pub async fn tags(&self, owner: &str, name: &str) -> Result<Vec<TagRecord>, ServiceError> {
        let mut tags = self.store().tags(owner, name).await?;
        let templates = self.templates(owner).await?;
        let template = templates.iter().find(|template| template.name().as_str() == name);
        if let Some(template) = template.filter(|_| tags.iter().all(|record| record.tag != DEFAULT)) {
            let since = template.created_at().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            tags.push(TagRecord {
                owner: owner.to_owned(),
                name: name.to_owned(),
                tag: DEFAULT.to_owned(),
                template: name.to_owned(),
                created_at_ms: since.and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or_default(),
            });
            tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        }
        if tags.is_empty() { Err(ServiceError::NoSnapshot { name: name.to_owned() }) } else { Ok(tags) }
    }
}

/// Of one name.
const TAGS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_of_its_name_or_says_its_own() {
        let tagged = |name: &str, tag: &str| Some(Tagged { name: name.to_owned(), tag: tag.to_owned() });
        assert_eq!(Tagged::of("base", " V1.0-rc_2"), tagged("base", "v1.0-rc_2"));
        assert_eq!(Tagged::of("base", "warm:stable"), tagged("warm", "stable"));
        for bad in ["", "a b", "a:b:c", "\u{e9}", "a/b", &"a".repeat(129)] {
            assert_eq!(Tagged::of("base", bad), None, "{bad}");
        }
    }
}
