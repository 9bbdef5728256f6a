//! Recipes of templates, and the start of their builds.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use wrenn_net::NetworkPolicy;

use crate::build::context::{Bounds, Context};
use crate::build::dockerfile::Dockerfile;
use crate::build::event::BuildEvent;
use crate::build::ready::Ready;
use crate::build::recipe::{Asked, Failed, Origin, Recipe, Start, Step, invalid};
use crate::build::run::{build, open_at};
use crate::build::step::{CopyStep, Instruction, RunStep};
use crate::build::teller::{OnEvent, Teller};
use crate::error::{Error, Result};
use crate::host::handle::Host;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::template::{Taken, Template, Wanted};

/// A recipe for a template, made by [`Template::builder`] or of a Dockerfile. Each call adds a step, or an option of the build.
///
/// A step that changes the guest leaves a snapshot, under a key: what the guest was before, the step itself, and the content of
/// the files that it copies. A build takes each step that was done before, by whatever recipe, from there, and begins with the
/// first that was not. `docs/templates.md` in the repository tells more.
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// use wrenn_core::{Ready, Sandbox, Template};
///
/// Template::builder("base")
///     .run("mkdir -p /home/user/app")
///     .copy("app", "/home/user/app")
///     .env("MODE", "production")
///     .workdir("/home/user/app")
///     .start("python3 server.py")
///     .ready(Ready::port(8000))
///     .build(host, "my-app")
///     .on_event(|event| eprintln!("{event}"))
///     .await?;
/// // Its server runs already.
/// let sandbox = Sandbox::create(host, "my-app").await?;
/// sandbox.connect(8000).await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing happens until it is built"]
pub struct TemplateBuilder {
    recipe: Recipe,
}

impl Template {
    /// A recipe that begins with the template `base`: an image, or a snapshot.
    pub fn builder(base: impl Into<String>) -> TemplateBuilder {
        TemplateBuilder::new(Origin::Base(base.into()), Context { directory: PathBuf::from("."), bounds: Bounds::Free })
    }

    /// The recipe of a Dockerfile. `context` is the directory whose files it copies.
    ///
    /// ```no_run
    /// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
    /// use wrenn_core::{Ready, Template};
    ///
    /// let recipe = Template::from_dockerfile("app/Dockerfile", "app")?;
    /// recipe.build_arg("VERSION", "3").start_from_image().ready(Ready::port(80)).build(host, "app").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidInput`] with the line, for an instruction that is malformed or not supported. [`Error::Failed`] where the
    /// file cannot be read.
    pub fn from_dockerfile(path: impl AsRef<Path>, context: impl Into<PathBuf>) -> Result<TemplateBuilder> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        Self::from_dockerfile_text(&text, context)
    }

    /// As [`from_dockerfile`](Self::from_dockerfile), of the text itself.
    ///
    /// ```
    /// use wrenn_core::Template;
    ///
    /// let recipe = Template::from_dockerfile_text("FROM base\nRUN echo hello > /hello", ".")?;
    /// let error = Template::from_dockerfile_text("FROM base\nVOLUME /data", ".").unwrap_err();
    /// assert_eq!(error.to_string(), "line 2 of the Dockerfile: VOLUME: is not supported");
    /// # Ok::<_, wrenn_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidInput`] with the line, for an instruction that is malformed or not supported.
    pub fn from_dockerfile_text(text: &str, context: impl Into<PathBuf>) -> Result<TemplateBuilder> {
        let file = Dockerfile::parse(text).map_err(invalid)?;
        let context = Context { directory: context.into(), bounds: Bounds::Confined };
        Ok(TemplateBuilder::new(Origin::Dockerfile(file), context))
    }
}

impl TemplateBuilder {
    fn new(origin: Origin, context: Context) -> Self {
        let recipe = Recipe {
            origin,
            added: Vec::new(),
            context,
            arguments: BTreeMap::new(),
            bases: BTreeMap::new(),
            secrets: BTreeMap::new(),
            target: None,
            start: None,
            ready: None,
            wanted: Wanted::default(),
            network: NetworkPolicy::default(),
            fresh_from: None,
            failed: Failed::Killed,
            taken: Taken::Replaced,
        };
        Self { recipe }
    }

    fn step(mut self, text: String, instruction: Instruction) -> Self {
        self.recipe.added.push(Step { text, line: None, asked: Asked::Plain(instruction) });
        self
    }

    /// Runs a line of shell, or a [`RunStep`] with options. A step whose command does not end with 0 fails the build.
    ///
    /// What it leaves running goes on in the steps after it, and in the sandboxes of the template.
    pub fn run(self, step: impl Into<RunStep>) -> Self {
        let step = step.into();
        self.step(step.text(), Instruction::Run(Box::new(step)))
    }

    /// Copies a file or a directory of the host, as [`CopyStep::new`] tells.
    pub fn copy(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.copy_step(CopyStep::new(from, to))
    }

    /// Copies files of the host with options.
    pub fn copy_step(self, step: CopyStep) -> Self {
        self.step(step.text(), Instruction::Copy(step))
    }

    /// Sets a variable for the steps after it, and for all processes of the template's sandboxes.
    pub fn env(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        self.step(format!("ENV {name}={value}"), Instruction::Env(vec![(name, value)]))
    }

    /// The user of the steps after it and of the template's sandboxes, by name or number, perhaps with a group
    /// (`user:group`). Default: that of the base.
    pub fn user(self, user: impl Into<String>) -> Self {
        let user = user.into();
        self.step(format!("USER {user}"), Instruction::User(user))
    }

    /// The working directory of the steps after it and of the template's sandboxes. It is made where it is missing, and is
    /// root's then. A relative path is relative to the one before. Default: that of the base.
    pub fn workdir(self, path: impl Into<String>) -> Self {
        let path = path.into();
        self.step(format!("WORKDIR {path}"), Instruction::Workdir(path))
    }

    /// Runs a line of shell at the end, which goes on: the template's sandboxes have it running. Its process has the tag
    /// `start`, by which [`Sandbox::attach`](crate::Sandbox::attach) finds it.
    pub fn start(mut self, line: impl Into<String>) -> Self {
        self.recipe.start = Some(Start::Line(line.into()));
        self
    }

    /// Starts the entry point and the command that the Dockerfile, or the base, has. Without this, both are only noted in
    /// [`Template::defaults`].
    pub fn start_from_image(mut self) -> Self {
        self.recipe.start = Some(Start::Defaults);
        self
    }

    /// What the build waits for after the start. Default: nothing.
    pub fn ready(mut self, ready: Ready) -> Self {
        self.recipe.ready = Some(ready);
        self
    }

    /// How many virtual processors the build's guest and the template's sandboxes have: as
    /// [`SandboxBuilder::vcpus`](crate::SandboxBuilder::vcpus).
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.recipe.wanted.vcpus = Some(vcpus);
        self
    }

    /// The memory of the build's guest and of the template's sandboxes: as
    /// [`SandboxBuilder::memory_mib`](crate::SandboxBuilder::memory_mib).
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.recipe.wanted.memory_mib = Some(memory_mib);
        self
    }

    /// What the guest may reach during the build. Default: the public internet, and nothing else. Sandboxes of the template
    /// have what their creates say.
    pub fn network(mut self, policy: NetworkPolicy) -> Self {
        self.recipe.network = policy;
        self
    }

    /// The directory that the paths of copies are relative to. Default: that of this program; for a Dockerfile, what it was
    /// given.
    pub fn context(mut self, directory: impl Into<PathBuf>) -> Self {
        self.recipe.context.directory = directory.into();
        self
    }

    /// What the recipe begins with, as it names it, with what it copies from besides: templates' names, and no stages. Each is
    /// there once.
    ///
    /// ```
    /// use wrenn_core::Template;
    ///
    /// let recipe = Template::from_dockerfile_text("FROM python:3 AS made\nRUN make\nFROM base\nCOPY --from=made /a /a", ".")?;
    /// assert_eq!(recipe.bases()?, ["base", "python:3"]);
    /// # Ok::<_, wrenn_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidInput`] for stages of a Dockerfile that make no sense.
    pub fn bases(&self) -> Result<Vec<String>> {
        self.recipe.references()
    }

    /// Has a name of [`bases`](Self::bases) stand for a template. Default: for the template of that name.
    pub fn base_is(mut self, reference: impl Into<String>, template: impl Into<String>) -> Self {
        self.recipe.bases.insert(reference.into(), template.into());
        self
    }

    /// The value of a build argument, an `ARG` of a Dockerfile.
    pub fn build_arg(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.recipe.arguments.insert(name.into(), value.into());
        self
    }

    /// The value of a secret that a Dockerfile names by `RUN --mount=type=secret,id=ID,env=NAME`. See [`RunStep::secret`].
    pub fn secret(mut self, id: impl Into<String>, value: impl Into<String>) -> Self {
        self.recipe.secrets.insert(id.into(), value.into());
        self
    }

    /// The stage of a Dockerfile that becomes the template. Default: the last one.
    pub fn target(mut self, stage: impl Into<String>) -> Self {
        self.recipe.target = Some(stage.into());
        self
    }

    /// Whether the sandbox in which a step failed is paused, so that it can be resumed and looked into:
    /// [`BuildFailure::kept`](crate::BuildFailure::kept) has its id. Default: it is killed.
    pub fn keep_failed(mut self, keep: bool) -> Self {
        self.recipe.failed = if keep { Failed::Paused } else { Failed::Killed };
        self
    }

    /// Does every step anew.
    pub fn no_cache(self) -> Self {
        self.no_cache_from(1)
    }

    /// Does the step with this number, from 1 on, and all after it anew.
    pub fn no_cache_from(mut self, step: usize) -> Self {
        self.recipe.fresh_from = Some(step);
        self
    }

    /// Whether a snapshot of the same name is replaced. Its sandboxes go on, and paused ones can be resumed. An image is never
    /// replaced. Default: it is.
    pub fn replace(mut self, replace: bool) -> Self {
        self.recipe.taken = if replace { Taken::Replaced } else { Taken::Refused };
        self
    }

    /// Builds the template when it is awaited, and gives it this name.
    pub fn build(self, host: &Host, name: impl Into<String>) -> Build {
        Build { host: host.clone(), recipe: self.recipe, name: name.into(), on_event: Box::new(|_| {}) }
    }

    /// Does the first `step` steps of the recipe, and returns a sandbox that has what they leave: for a look at the place where
    /// the next one fails, for instance. Steps that were done before are taken from the cache.
    ///
    /// # Errors
    /// As [`Build`].
    ///
    /// # Cancel-Safety
    /// As [`Build`].
    pub async fn open_at(&self, host: &Host, step: usize) -> Result<Sandbox> {
        open_at(host, &self.recipe, step, &Teller::new(Box::new(|_| {}))).await
    }
}

/// The build of a template, made by [`TemplateBuilder::build`], and done when it is awaited.
///
/// ```no_run
/// # async fn demo(host: &wrenn_core::Host) -> wrenn_core::Result<()> {
/// use wrenn_core::{BuildEventKind, Template};
///
/// let (log, mut lines) = tokio::sync::mpsc::unbounded_channel();
/// let build = Template::builder("base").run("make").build(host, "app").on_event(move |event| drop(log.send(event)));
/// let building = tokio::spawn(async move { build.await });
/// while let Some(event) = lines.recv().await {
///     println!("{:?} {event}", event.at);
/// }
/// // `building.abort()` would have cancelled it.
/// let template = building.await.expect("it does not panic")?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// [`Error::Build`] with the step that failed. [`Error::InvalidInput`] for a recipe that makes no sense, [`Error::NotFound`] for
/// an unknown base, [`Error::AlreadyExists`] for the name of an image. Otherwise those of
/// [`SandboxBuilder::create`](crate::SandboxBuilder::create) and [`Sandbox::snapshot`](crate::Sandbox::snapshot).
///
/// # Cancel-Safety
/// Cancelling ends the guest. The steps that were done are kept, and the next build goes on from there. The name is what it was.
#[must_use = "nothing happens until it is awaited"]
pub struct Build {
    host: Host,
    recipe: Recipe,
    name: String,
    on_event: OnEvent,
}

impl Build {
    /// A function that is called with each event of the build. It should not wait: the build waits for it. Default: none.
    pub fn on_event(mut self, on_event: impl FnMut(BuildEvent) + Send + 'static) -> Self {
        self.on_event = Box::new(on_event);
        self
    }
}

impl IntoFuture for Build {
    type Output = Result<Template>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let teller = Teller::new(self.on_event);
            // What a build that is cancelled has captured, and not recorded, is nobody's.
            let _tidy = Tidy(&self.host);
            build(&self.host, &self.recipe, &self.name, &teller).await
        })
    }
}

/// Asks for a collection at the end of a build, however it ends.
struct Tidy<'a>(&'a Host);

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        self.0.0.site.tidy();
    }
}

impl fmt::Debug for Build {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Build").field("recipe", &self.recipe).field("name", &self.name).finish_non_exhaustive()
    }
}
