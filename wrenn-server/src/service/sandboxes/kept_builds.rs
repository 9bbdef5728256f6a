//! The records of builds: what is told of them after a server's end.

use std::collections::BTreeSet;

use crate::service::builds::log::Level;
use crate::service::builds::{Build, BuildStatus, Reason};
use crate::service::error::ServiceError;
use crate::service::events::EventKind;
use crate::service::sandboxes::Sandboxes;

impl Sandboxes {
    /// Notes how far a build is.
    pub(super) async fn keep_build(&self, build: &Build) -> Result<(), ServiceError> {
        let record = build.record().map_err(|source| {
            let remedy = "this is an error of the server: report it";
            crate::store::contract::StoreError { what: "written", remedy, source: source.into() }
        })?;
        Ok(self.store.set_build(&record).await?)
    }

    /// As [`keep_build`](Self::keep_build), where nobody waits for an answer.
    pub(super) async fn try_keep_build(&self, build: &Build) {
        if let Err(error) = self.keep_build(build).await {
            tracing::warn!(build = build.id, %error, "how far a build is was not kept");
        }
    }

    /// Takes over the builds of the server before. Those that were under way when it ended have failed by that, unless their
    /// template is `there` and its tags stand for it.
    pub(super) async fn recall_builds(&self, there: &BTreeSet<String>) -> Result<(), ServiceError> {
        let (recalled, forgotten) = self.builds.recall(&self.store.builds().await?);
        for id in forgotten {
            self.store.remove_build(&id).await?;
        }
        let under_way = [BuildStatus::Waiting, BuildStatus::Building];
        for build in recalled.iter().filter(|build| under_way.contains(&build.now().status)) {
            let is_made = there.contains(&build.template) && !self.store.tags_of(&build.template).await?.is_empty();
            if is_made {
                build.go_on(&under_way, BuildStatus::Ready, None);
            } else {
                self.drop_template(&build.owner, &build.template).await?;
                let reason = cut_off();
                build.tell(Level::Error, None, &reason.message);
                self.events.note_build(build, EventKind::BuildFailed, Some(&reason.brief())).await;
                build.go_on(&under_way, BuildStatus::Error, Some(reason));
            }
            self.keep_build(build).await?;
        }
        Ok(())
    }
}

/// Why a build has failed that was under way at the server's end.
pub(super) fn cut_off() -> Reason {
    let message =
        "the server ended before the build did: build it again, which goes on behind the steps that were done";
    Reason { message: message.to_owned(), step: None }
}
