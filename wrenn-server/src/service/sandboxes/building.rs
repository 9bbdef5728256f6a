//! Templates are built: of recipes that clients send, each under a name of its key's.
//!
//! ```text
//!  turn ──▶ base ──▶ share of the machine ──▶ files ──▶ record ──▶ wrenn-core's build ──▶ tags ──▶ older ones go
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{FutureExt as _, Stream};
use tokio::time::{MissedTickBehavior, interval};
use tracing::Instrument as _;
use wrenn_core::image::Image;
use wrenn_core::{BuildEvent, BuildEventKind, BuildStream, Error, Subject, Template, TemplateBuilder, TemplateName};

use crate::service::builds::files::WorkDir;
use crate::service::builds::log::Level;
use crate::service::builds::recipe::{BASE, Base, Ground, GroundKind, Labels, Recipe, from_template};
use crate::service::builds::registries::Registries;
use crate::service::builds::{Build, BuildStatus, Reason, Wanted, pulled, unpack};
use crate::service::clock::now_ms;
use crate::service::error::ServiceError;
use crate::service::events::EventKind;
use crate::service::sandboxes::Sandboxes;
use crate::service::sandboxes::kept_builds::cut_off;
use crate::service::tags::Tagged;
use crate::service::templates;
use crate::store::records::SnapshotRecord;

impl Sandboxes {
    /// Notes that a template is to be built. Its recipe comes then.
    ///
    /// # Errors
    /// [`ServiceError::BadBuild`] for a name or a tag that cannot be one, and for a size that no machine has;
    /// [`ServiceError::TooLarge`] for one that this server does not have; [`Error::AlreadyExists`] for the name of an image or
    /// of a snapshot; [`ServiceError::LimitReached`], [`ServiceError::StoredLimit`], and those of [`templates`](Self::templates).
    pub async fn request_build(&self, owner: &str, wanted: Wanted) -> Result<Arc<Build>, ServiceError> {
        self.take_nothing_more_while_closing()?;
        let name: TemplateName = wanted.name.parse().map_err(Error::from)?;
        let is_taken = self.templates(owner).await?.iter().any(|template| *template.name() == name);
        if is_taken {
            return Err(Error::AlreadyExists { subject: Subject::Template(name) }.into());
        }
        wanted.check()?;
        self.admission.check(wanted.vcpus.unwrap_or(0), wanted.memory_mib.unwrap_or(0))?;
        self.check_stored(owner).await?;
        let (build, forgotten) = self.builds.add(owner, wanted)?;
        for id in forgotten {
            self.store.remove_build(&id).await?;
        }
        self.keep_build(&build).await?;
        Ok(build)
    }

    /// Begins a build that was requested. It goes on when this has returned.
    ///
    /// # Errors
    /// [`ServiceError::NoBuild`], [`ServiceError::BuildBegun`], and [`ServiceError::BadBuild`] for a recipe that makes no sense,
    /// or has files that were not sent; [`ServiceError::Store`].
    ///
    /// # Cancel-Safety
    /// Cancelling may leave the build waiting, and then nothing comes of it until the server's end.
    pub async fn start_build(self: &Arc<Self>, owner: &str, id: &str, recipe: Recipe) -> Result<(), ServiceError> {
        self.take_nothing_more_while_closing()?;
        let build = self.build(owner, id)?;
        recipe.check().map_err(|why| ServiceError::BadBuild { why })?;
        for (hash, step) in recipe.hashes() {
            if !self.builds.files.is_there(owner, hash) {
                let why = format!("step {step} copies files that were not sent: send those of {hash}");
                return Err(ServiceError::BadBuild { why });
            }
        }
        if !build.go_on(&[BuildStatus::Requested], BuildStatus::Waiting, None) {
            return Err(ServiceError::BuildBegun { id: id.to_owned(), status: build.now().status.name() });
        }
        if let Err(error) = self.keep_build(&build).await {
            build.go_on(&[BuildStatus::Waiting], BuildStatus::Error, Some(reason(&error, None)));
            return Err(error);
        }
        let this = Arc::clone(self);
        self.builds.spawn(async move { this.carry_out(&build, &recipe).await }.in_current_span());
        Ok(())
    }

    /// A build of the owner's.
    ///
    /// # Errors
    /// [`ServiceError::NoBuild`].
    pub fn build(&self, owner: &str, id: &str) -> Result<Arc<Build>, ServiceError> {
        self.builds.find(owner, id).ok_or_else(|| ServiceError::NoBuild { id: id.to_owned() })
    }

    /// The builds of an owner, the newest first.
    #[must_use]
    pub fn builds(&self, owner: &str) -> Vec<Arc<Build>> {
        self.builds.of(owner)
    }

    /// Has a build end, if it is not over.
    ///
    /// # Errors
    /// [`ServiceError::NoBuild`]; [`ServiceError::Store`] where it has ended, and that was not kept.
    ///
    /// # Cancel-Safety
    /// As that error.
    pub async fn cancel_build(&self, owner: &str, id: &str) -> Result<(), ServiceError> {
        let build = self.build(owner, id)?;
        build.stop.cancel();
        if build.go_on(&[BuildStatus::Requested], BuildStatus::Cancelled, Some(cancelled())) {
            self.keep_build(&build).await?;
        }
        Ok(())
    }

    /// Whether the files of a hash were sent.
    #[must_use]
    pub fn has_files(&self, owner: &str, hash: &str) -> bool {
        self.builds.files.is_there(owner, hash)
    }

    /// Takes the files of a hash, which are an archive of `len` bytes.
    ///
    /// # Errors
    /// [`ServiceError::UploadTooLarge`], [`ServiceError::TooSlow`], [`ServiceError::BadBuild`], [`ServiceError::Disk`].
    pub async fn take_files<E>(
        &self,
        owner: &str,
        hash: &str,
        len: u64,
        bytes: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), ServiceError> {
        self.take_nothing_more_while_closing()?;
        self.builds.files.receive(owner, hash, len, bytes).await
    }

    /// The registries that builds may pull from.
    #[must_use]
    pub fn registries(&self) -> &Registries {
        &self.builds.registries
    }

    /// Removes all that was built under a name, with the name's tags. Sandboxes that were made of it stay, and builds of that
    /// name end.
    ///
    /// # Errors
    /// [`ServiceError::NoSnapshot`], [`ServiceError::Store`], and those of
    /// [`Host::remove_template`](wrenn_core::Host::remove_template).
    pub async fn remove_built(&self, owner: &str, name: &str) -> Result<(), ServiceError> {
        let of_name = self.builds.of(owner).into_iter().filter(|build| build.wanted.name == name && !build.is_over());
        let under_way: Vec<_> = of_name.collect();
        let built = self.built(owner).await?.into_iter().find(|built| built.name == name);
        if built.is_none() && under_way.is_empty() {
            return Err(ServiceError::NoSnapshot { name: name.to_owned() });
        }
        for build in under_way {
            self.cancel_build(owner, &build.id).await?;
        }
        for record in built.iter().flat_map(|built| &built.templates) {
            self.drop_template(owner, &record.name).await?;
        }
        for tag in built.iter().flat_map(|built| &built.tags) {
            self.store.remove_tag(owner, name, &tag.tag).await?;
        }
        Ok(())
    }

    /// Removes what builds that a server's end has cut off have left: records of templates, and clients' files. What is told of
    /// the builds is taken over.
    pub(super) async fn sweep_builds(self: &Arc<Self>) -> Result<(), ServiceError> {
        let this = Arc::clone(self);
        tokio::task::spawn_blocking(move || this.builds.files.sweep(true)).await?;
        let there: BTreeSet<String> =
            self.host.templates().await?.iter().map(|template| template.name().to_string()).collect();
        for record in self.store.snapshots().await? {
            if templates::is_made_by_builds(&record) && !there.contains(&record.name) {
                self.store.remove_snapshot(&record.name).await?;
            }
        }
        self.recall_builds(&there).await
    }

    /// Removes files that nobody has used for long, each hour, until it is dropped.
    pub(super) async fn tidy_files(self: Arc<Self>) {
        let mut ticks = interval(TIDIED_EACH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let this = Arc::clone(&self);
            tokio::task::spawn_blocking(move || this.builds.files.sweep(false)).await.ok();
        }
    }

    async fn carry_out(&self, build: &Build, recipe: &Recipe) {
        let began = Instant::now();
        let work = AssertUnwindSafe(self.make_template(build, recipe)).catch_unwind();
        let done = tokio::select! {
            biased;
            () = build.stop.cancelled() => {
                Err(if self.is_closing() { (BuildStatus::Error, cut_off()) } else { (BuildStatus::Cancelled, cancelled()) })
            }
            done = work => match done {
                Ok(done) => done.map_err(|reason| (BuildStatus::Error, reason)),
                // The panic is in the log.
                Err(_) => {
                    let message = "the server failed at it: its log says how".to_owned();
                    Err((BuildStatus::Error, Reason { message, step: None }))
                }
            },
        };
        let under_way = [BuildStatus::Waiting, BuildStatus::Building];
        let Err((status, reason)) = done else {
            build.tell(Level::Info, None, &format!("template {} is there", build.wanted.name));
            build.go_on(&under_way, BuildStatus::Ready, None);
            self.try_keep_build(build).await;
            self.meters.built(began.elapsed());
            self.events.note_build(build, EventKind::BuildSucceeded, None).await;
            return;
        };
        if let Err(error) = self.drop_template(&build.owner, &build.template).await {
            // The next server removes it, where nobody else does.
            tracing::warn!(%error, template = build.template, "what a build has left was not removed");
        }
        build.tell(Level::Error, reason.step.as_deref(), &reason.message);
        self.meters.not_built(status.name());
        self.events.note_build(build, EventKind::BuildFailed, Some(&reason.brief())).await;
        build.go_on(&under_way, status, Some(reason));
        self.try_keep_build(build).await;
    }

    /// Removes a template with its record, as far as they are there.
    pub(super) async fn drop_template(&self, owner: &str, name: &str) -> Result<(), ServiceError> {
        match templates::remove(&self.host, &*self.store, owner, name).await {
            Err(ServiceError::NoSnapshot { .. }) => Ok(()),
            done => done,
        }
    }

    async fn make_template(&self, build: &Build, recipe: &Recipe) -> Result<(), Reason> {
        let owner = &*build.owner;
        let _turn = self.builds.turns(owner).acquire_owned().await.map_err(|_| cancelled())?;
        let at = |step: &str| {
            let step = Some(step.to_owned());
            move |error: ServiceError| reason(&error, step)
        };
        let no_step = |error: ServiceError| reason(&error, None);
        self.check_stored(owner).await.map_err(no_step)?;
        let (builder, ground, empty) = self.base(build, recipe).await.map_err(at(BASE))?;
        let shape = templates::shape(&self.host, &*self.store, owner, &ground.template).await.map_err(at(BASE))?;
        let vcpus = build.wanted.vcpus.unwrap_or(shape.vcpus);
        let memory_mib = build.wanted.memory_mib.unwrap_or(shape.memory_mib);
        let terms = self.terms(owner).await.map_err(no_step)?;
        let _share = self.admission.admit(owner, &terms, vcpus, memory_mib).await.map_err(no_step)?;
        build.go_on(&[BuildStatus::Waiting], BuildStatus::Building, None);
        self.try_keep_build(build).await;
        self.meters.builds_started.inc();
        self.events.note_build(build, EventKind::BuildStarted, None).await;
        let (place, places) = self.unpacked(owner, recipe).await?;
        let (builder, labels) = recipe.compile(builder, &ground, &places);
        let builder = match build.wanted.vcpus {
            Some(vcpus) => builder.vcpus(vcpus),
            None => builder,
        };
        let builder = match build.wanted.memory_mib {
            Some(memory_mib) => builder.memory_mib(memory_mib),
            None => builder,
        };
        // The record comes first: without one, what is there would be everybody's.
        let record = SnapshotRecord {
            name: build.template.clone(),
            owner: owner.to_owned(),
            vcpus,
            memory_mib,
            disk_mib: shape.disk_mib,
            source: format!("{}{}", templates::BUILD, build.wanted.name),
            created_at_ms: now_ms(),
        };
        self.store.add_snapshot(&record).await.map_err(|error| no_step(error.into()))?;
        let hidden = [place.as_ref(), empty.as_ref()].into_iter().flatten().map(|place| place.path().to_owned());
        let hidden: Vec<PathBuf> = hidden.collect();
        self.built_by(build, builder, &labels).await.map_err(|reason| without(reason, &hidden))?;
        self.keep_if_there_is_room(owner, &build.template).await.map_err(no_step)?;
        let tagged = build.wanted.tags.iter().map(|tag| Tagged { name: build.wanted.name.clone(), tag: tag.clone() });
        self.assign_tags(owner, &build.template, &tagged.collect::<Vec<_>>()).await.map_err(no_step)?;
        if let Err(error) = self.forget_older(owner, &build.wanted.name).await {
            tracing::warn!(%error, "older builds of a template were not removed");
        }
        Ok(())
    }

    /// Has `wrenn-core` build it, and notes what it tells.
    async fn built_by(&self, build: &Build, builder: TemplateBuilder, labels: &Labels) -> Result<Template, Reason> {
        // The library wants a function that lives as long as it likes.
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<BuildEvent>();
        let work = builder.build(&self.host, &*build.template).on_event(move |event| drop(tell.send(event)));
        let mut work = std::pin::pin!(work.into_future());
        let done = loop {
            tokio::select! {
                biased;
                Some(event) = told.recv() => note(build, labels, &event),
                done = &mut work => break done,
            }
        };
        while let Ok(event) = told.try_recv() {
            note(build, labels, &event);
        }
        done.map_err(|error| match error {
            Error::Build(failure) => {
                let mut message = format!("`{}` failed: {}", failure.text, failure.problem);
                for line in &failure.last_lines {
                    message = format!("{message}\n{line}");
                }
                Reason { message, step: Some(labels.of(failure.step)) }
            }
            error => reason(&error.into(), None),
        })
    }

    /// A recipe that begins with what it is to, what that has, and the directory that a Dockerfile is built in, which is empty.
    async fn base(
        &self,
        build: &Build,
        recipe: &Recipe,
    ) -> Result<(TemplateBuilder, Ground, Option<WorkDir>), ServiceError> {
        match &recipe.base {
            Base::Template(name) => {
                let ground = self.ground(&build.owner, name).await?;
                Ok((from_template(&ground.template), ground, None))
            }
            Base::Image(reference, login) => {
                let report = |line: String| build.tell(Level::Info, Some(BASE), &line);
                let (host, store) = (&self.host, &*self.store);
                let pulling = self.builds.pulling.read().await;
                let image = pulled(host, store, &build.owner, reference, login.as_ref(), report).await?;
                drop(pulling);
                let ground = self.ground(&build.owner, &image).await?;
                Ok((from_template(&image), Ground { kind: GroundKind::Pulled, ..ground }, None))
            }
            Base::Dockerfile(text) => {
                let empty = self.builds.files.work_dir()?;
                let mut builder = Template::from_dockerfile_text(text, empty.path())?;
                let mut last = Ground::default();
                for reference in builder.bases()? {
                    last = self.ground_of_dockerfile(build, &reference).await?;
                    builder = builder.base_is(reference, &last.template);
                }
                Ok((builder, Ground { kind: GroundKind::Snapshot, ..last }, Some(empty)))
            }
        }
    }

    /// A template of the owner's, or else an image of a registry.
    async fn ground_of_dockerfile(&self, build: &Build, reference: &str) -> Result<Ground, ServiceError> {
        match self.ground(&build.owner, reference).await {
            Err(ServiceError::NoSnapshot { .. }) => {}
            ground => return ground,
        }
        let reference = self.registries().allowed(reference).map_err(|why| ServiceError::BadBuild { why })?;
        let report = |line: String| build.tell(Level::Info, Some(BASE), &line);
        let pulling = self.builds.pulling.read().await;
        let image = pulled(&self.host, &*self.store, &build.owner, &reference, None, report).await?;
        drop(pulling);
        self.ground(&build.owner, &image).await
    }

    /// What is there under a name, if the owner may begin with it.
    async fn ground(&self, owner: &str, name: &str) -> Result<Ground, ServiceError> {
        let name_of = templates::resolve(&*self.store, owner, name).await?;
        let found = self.all_templates(owner).await?.into_iter().find(|template| template.name().as_str() == name_of);
        let found = found.ok_or_else(|| ServiceError::NoSnapshot { name: name.to_owned() })?;
        if let Some(defaults) = found.defaults() {
            let user = defaults.user.clone();
            return Ok(Ground { template: name_of, user, kind: GroundKind::Snapshot });
        }
        let (data_dir, image) = (self.host.data_dir().to_owned(), name_of.clone());
        let image = tokio::task::spawn_blocking(move || Image::open(&data_dir, &image)).await?.map_err(Error::from)?;
        Ok(Ground { template: name_of, user: image.defaults().user.clone(), kind: GroundKind::Image })
    }

    /// Unpacks a recipe's files, each hash into a directory of its own.
    async fn unpacked(
        &self,
        owner: &str,
        recipe: &Recipe,
    ) -> Result<(Option<WorkDir>, BTreeMap<String, PathBuf>), Reason> {
        let mut places = BTreeMap::new();
        if recipe.hashes().is_empty() {
            return Ok((None, places));
        }
        let place = self.builds.files.work_dir().map_err(|error| reason(&error.into(), None))?;
        for (hash, step) in recipe.hashes() {
            let refused = |message: String| Reason { message, step: Some(step.clone()) };
            let archive =
                self.builds.files.open(owner, hash).map_err(|_| {
                    refused("its files are no longer there: build it again, which sends them".to_owned())
                })?;
            let into = place.path().join(hash);
            let to = into.clone();
            let unpack =
                move || std::fs::create_dir(&to).map_err(|error| error.to_string()).and_then(|()| unpack(archive, &to));
            let done = tokio::task::spawn_blocking(unpack).await;
            done.map_err(|error| reason(&error.into(), None))?.map_err(refused)?;
            places.insert(hash.to_owned(), into);
        }
        Ok((Some(place), places))
    }

    /// Removes all but the newest of a name's templates that no tag stands for.
    async fn forget_older(&self, owner: &str, name: &str) -> Result<(), ServiceError> {
        let built = self.built(owner).await?.into_iter().find(|built| built.name == name);
        for record in built.iter().flat_map(|built| &built.templates).skip(HISTORY_MAX) {
            if self.store.tags_of(&record.name).await?.is_empty() {
                self.drop_template(owner, &record.name).await?;
            }
        }
        Ok(())
    }
}

fn note(build: &Build, labels: &Labels, event: &BuildEvent) {
    let step = event.step.map(|number| labels.of(number));
    let tell = |level, message: &str| build.tell(level, step.as_deref(), message);
    match &event.kind {
        BuildEventKind::Line { stream: BuildStream::Stdout, text } => tell(Level::Info, text),
        BuildEventKind::Line { stream: BuildStream::Stderr, text } => tell(Level::Warn, text),
        BuildEventKind::Began { text, cached, .. } => {
            let step = step.as_deref().unwrap_or_default();
            tell(Level::Info, &format!("[{step}] {}{text}", if *cached { "CACHED " } else { "" }));
        }
        BuildEventKind::Warning { text } => tell(Level::Warn, text),
        BuildEventKind::Waiting => tell(Level::Info, "another build does this step: it is waited for"),
        BuildEventKind::ReadyWaiting => tell(Level::Info, "it was started, and is waited for until it is ready"),
        BuildEventKind::Ended { took, .. } => tell(Level::Debug, &format!("done in {:.2} s", took.as_secs_f64())),
        // The name there is the library's.
        _ => {}
    }
}

fn reason(error: &ServiceError, step: Option<String>) -> Reason {
    let (mut message, mut source) = (error.to_string(), std::error::Error::source(error));
    while let Some(cause) = source {
        let text = cause.to_string();
        // What is transparent has its cause's text.
        if !message.ends_with(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    Reason { message, step }
}

/// A reason that does not tell where on this machine files are.
fn without(mut reason: Reason, hidden: &[PathBuf]) -> Reason {
    for place in hidden.iter().filter_map(|place| place.to_str()) {
        reason.message = reason.message.replace(place, "the files that were sent");
    }
    reason
}

fn cancelled() -> Reason {
    Reason { message: "the build was cancelled".to_owned(), step: None }
}

/// Of one name, with what its tags stand for.
const HISTORY_MAX: usize = 10;
const TIDIED_EACH: Duration = Duration::from_secs(3600);
