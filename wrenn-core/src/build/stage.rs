//! One stage of a build: where it is, and the steps that take it further.
//!
//! ```text
//!            ┌──────────────── found: nothing runs ────────────────┐
//!  begin ─▶ At ── guest_step: key, lock ── perform ── capture ── keep ─▶ At ...
//!                                  │ (open, at the first that is not found)
//!                                  └─ failed: paused or killed
//! ```
//!
//! # Consistency
//! A step's lock is held from before its record is looked for until the next step's lock is held. So of two builds with the
//! same steps one does all of the work, and the other finds each step when it is done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wrenn_net::{Limits, NetworkPolicy};
use wrenn_snapshot::Generation;

use crate::build::at::At;
use crate::build::base::{PlainName, base};
use crate::build::cache;
use crate::build::command::{Log, Surroundings, run};
use crate::build::copying::{from_host, from_stage, make_directory};
use crate::build::dockerfile::BaseOf;
use crate::build::dockerfile::instruction::absolute;
use crate::build::event::BuildEventKind;
use crate::build::failure::Failure;
use crate::build::key::{Content, hex, key};
use crate::build::output::Redaction;
use crate::build::recipe::{Failed, Origin as Beginning, Recipe};
use crate::build::serving::start;
use crate::build::teller::Teller;
use crate::build::work::{Files, Work};
use crate::clock::unix_ms;
use crate::defaults::Defaults;
use crate::error::build::BuildFailure;
use crate::error::{Error, Result, chain};
use crate::guest::restore::Asking;
use crate::host::handle::Host;
use crate::id::{SandboxId, TemplateName};
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::start::{Origin, start as start_sandbox};
use crate::sandbox::template::{Template, load};
use crate::site::Site;
use crate::site::lock::FileLock;
use crate::site::records::StepRecord;
use crate::state::Fixed;
use crate::vmm::shape::MachineShape;

/// What all stages of a build share.
#[derive(Debug)]
pub(super) struct Build<'a> {
    pub(super) host: &'a Host,
    pub(super) recipe: &'a Recipe,
    /// The template's own name, which the guests of the build are told.
    pub(super) name: TemplateName,
    pub(super) teller: &'a Teller,
    pub(super) steps: usize,
}

/// The guest in which steps are done, at the place where the stage is.
#[derive(Debug)]
struct Open {
    sandbox: Sandbox,
    shape: MachineShape,
    network: NetworkPolicy,
}

#[derive(Debug)]
pub(super) struct Stage {
    pub(super) at: At,
    pub(super) defaults: Defaults,
    pub(super) shell: Vec<String>,
    /// The build arguments that are known to the steps.
    pub(super) arguments: BTreeMap<String, String>,
    /// Where a command runs that has no working directory; `None` for the home of its user.
    pub(super) directory: Option<&'static str>,
    /// Whether the command is the recipe's, and not its base's.
    pub(super) has_own_cmd: bool,
    /// Working directories that the guest may not have yet.
    pub(super) directories: Vec<String>,
    open: Option<Open>,
    /// That of the last step.
    lock: Option<FileLock>,
}

/// How a step is told of.
#[derive(Debug, Clone)]
pub(super) struct Label {
    pub(super) number: usize,
    pub(super) text: String,
    pub(super) line: Option<usize>,
}

impl Build<'_> {
    pub(super) fn site(&self) -> &Arc<Site> {
        &self.host.0.site
    }

    pub(super) fn tell(&self, step: usize, kind: BuildEventKind) {
        self.teller.tell(Some(step), kind);
    }

    /// Restores a guest from where a stage is.
    async fn open(&self, at: &At, defaults: &Defaults) -> Result<Open> {
        let site = self.site();
        let (generation, shape) = match at {
            At::Base { template, .. } => {
                let found = Template::generation(site, template, self.recipe.wanted).await?;
                (found.generation, found.shape)
            }
            At::Step { record, generation, .. } => (generation.clone(), record.shape.clone()),
        };
        let network = self.recipe.network.clone();
        let fixed = Fixed {
            id: SandboxId::random(),
            template: self.name.clone(),
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mib,
            envs: defaults.env.clone(),
            defaults: Defaults { workdir: None, ..defaults.clone() },
            labels: [(LABEL.to_owned(), self.name.to_string())].into(),
            lifetime: None,
            created_at_ms: unix_ms(),
            network: network.clone(),
            network_limits: Limits::default(),
            published: Vec::new(),
        };
        let shared =
            start_sandbox(&self.host.0, generation, fixed, Origin::Created, Asking::loaded(Instant::now())).await?;
        Ok(Open { sandbox: Sandbox::new(shared, Arc::clone(&self.host.0)), shape, network })
    }
}

impl Stage {
    /// A stage at its beginning. `done` has the stages before it.
    pub(super) async fn begin(
        build: &Build<'_>,
        of: &BaseOf,
        directory: Option<&'static str>,
        done: &BTreeMap<usize, (At, Defaults)>,
    ) -> Result<Self> {
        let (at, defaults) = match of {
            BaseOf::Stage(number) => {
                done.get(number).cloned().ok_or_else(|| Error::invalid("a stage needs a later one"))?
            }
            BaseOf::Reference(reference, line) => {
                let found = async {
                    let reference = build.recipe.bases.get(reference).unwrap_or(reference);
                    let plain = match build.recipe.origin {
                        Beginning::Base(_) => PlainName::Template,
                        Beginning::Dockerfile(_) => PlainName::Image,
                    };
                    let template = base(build.host, reference, plain, build.teller).await?;
                    let found = Template::base(build.site(), &template, build.recipe.wanted).await?;
                    Ok((At::Base { template, key: found.key }, found.defaults))
                };
                found.await.map_err(|error| at_line(error, *line))?
            }
        };
        let shell = ["/bin/sh", "-c"].map(str::to_owned).to_vec();
        Ok(Self {
            at,
            defaults,
            shell,
            arguments: BTreeMap::new(),
            directory,
            has_own_cmd: false,
            directories: Vec::new(),
            open: None,
            lock: None,
        })
    }

    /// The environment of a step: the build arguments, and over them the variables.
    pub(super) fn values(&self) -> BTreeMap<String, String> {
        let mut values = self.arguments.clone();
        values.extend(self.defaults.env.clone());
        values
    }

    pub(super) fn surroundings(&self) -> Surroundings {
        Surroundings {
            user: self.defaults.user.clone(),
            directory: self.defaults.workdir.clone().or_else(|| self.directory.map(str::to_owned)),
            env: self.values(),
        }
    }

    /// The absolute path of a destination, and whether its text says that it is a directory.
    pub(super) fn destination(&self, to: &str) -> (String, bool) {
        let is_directory = to.ends_with('/') || to.rsplit('/').next().is_some_and(|name| name == "." || name == "..");
        (absolute(self.defaults.workdir.as_deref().unwrap_or("/"), to), is_directory)
    }

    /// Does a step in the guest, or finds what it has left.
    pub(super) async fn guest_step(&mut self, build: &Build<'_>, label: &Label, work: &Work) -> Result<()> {
        let began = Instant::now();
        let site = build.site();
        let key = key(self.at.identity(), &self.directories, &self.content(build, work));
        let is_fresh = build.recipe.fresh_from.is_some_and(|from| label.number >= from);
        let told = |cached| BuildEventKind::Began { text: label.text.clone(), steps: build.steps, cached };
        let lock = match self.turn(build, label, &key, is_fresh).await? {
            Turn::Found(record, generation) => {
                build.tell(label.number, told(true));
                build.tell(label.number, BuildEventKind::Ended { took: began.elapsed(), stored_bytes: 0 });
                self.close().await;
                self.go_to(&key, record, generation);
                self.lock = None;
                return Ok(());
            }
            Turn::Do(lock) => lock,
        };
        // The step before this one may be another's now.
        self.lock = Some(lock);
        build.tell(label.number, told(false));
        let open = match self.open.take() {
            Some(open) => open,
            None => build.open(&self.at, &self.defaults).await?,
        };
        let open = self.open.insert(open);
        let performed = perform(build, label, open, work, &self.directories).await;
        if let Err(failure) = performed {
            return Err(self.fail(build, label, failure).await);
        }
        let generation = open.sandbox.capture().await?;
        let shape = open.shape.clone();
        let measured = generation.clone();
        let stored_bytes = blocking("measure the step", move || measured.bytes_on_disk()).await??;
        let text = label.text.clone();
        let record = StepRecord { generation: generation.id(), shape, created_at_ms: unix_ms(), stored_bytes, text };
        let (record, generation) = cache::keep(site, &key, record, generation).await?;
        self.go_to(&key, record, generation);
        build.tell(label.number, BuildEventKind::Ended { took: began.elapsed(), stored_bytes });
        Ok(())
    }

    fn go_to(&mut self, key: &str, record: StepRecord, generation: Generation) {
        // A step that is done anew leaves another generation under its key, and those after it are done anew too.
        let identity = format!("{key}:{}", record.generation);
        self.at = At::Step { identity, record, generation };
        self.directories.clear();
    }

    /// Waits, without a thread, for other builds that do the step.
    async fn turn(&self, build: &Build<'_>, label: &Label, key: &str, is_fresh: bool) -> Result<Turn> {
        let (site, mut has_told) = (build.site(), false);
        loop {
            if !is_fresh && let Some((record, generation)) = cache::find(site, key).await? {
                return Ok(Turn::Found(record, generation));
            }
            if let Some(lock) = cache::try_lock(site, key).await? {
                // The last holder may have done the step since it was looked for.
                return match cache::find(site, key).await? {
                    Some((record, generation)) if !is_fresh => Ok(Turn::Found(record, generation)),
                    _ => Ok(Turn::Do(lock)),
                };
            }
            if !std::mem::replace(&mut has_told, true) {
                build.tell(label.number, BuildEventKind::Waiting);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn content<'a>(&'a self, build: &'a Build<'_>, work: &'a Work) -> Content<'a> {
        match work {
            Work::Run { step, words, surroundings } => Content::Run {
                words,
                user: surroundings.user.as_deref(),
                directory: surroundings.directory.as_deref(),
                env: &surroundings.env,
                secrets: step.secrets.iter().map(|(name, value)| (name.as_str(), hex(value.as_bytes()))).collect(),
                network: step.network.as_ref().unwrap_or(&build.recipe.network),
            },
            Work::Copy { step, to, names_directory, unpacks, files } => Content::Copy {
                to,
                mode: step.mode,
                owner: step.owner.as_deref(),
                unpacks: *unpacks,
                files: files.digest(step, *names_directory),
            },
            Work::Directories => Content::Directories,
            Work::Start { words, surroundings, ready } => Content::Start {
                words,
                user: surroundings.user.as_deref(),
                directory: surroundings.directory.as_deref(),
                env: &surroundings.env,
                ready: ready.as_ref().map(|ready| &ready.check),
                network: &build.recipe.network,
            },
        }
    }

    async fn fail(&mut self, build: &Build<'_>, label: &Label, failure: Failure) -> Error {
        let (problem, code, last_lines, source) = match failure {
            Failure::Host(error) => {
                self.close().await;
                return error;
            }
            Failure::Step { problem, code, last_lines, source } => (problem, code, last_lines, source),
        };
        let mut kept = None;
        if build.recipe.failed == Failed::Paused
            && let Some(open) = self.open.take()
        {
            match open.sandbox.pause().await {
                Ok(paused) => kept = Some(paused.id().clone()),
                Err(error) => tracing::warn!(error = chain(&error), "the sandbox in which a step failed was not kept"),
            }
        }
        self.close().await;
        let (step, text, line) = (label.number, label.text.clone(), label.line);
        let source = source.map(|source| source as Box<dyn std::error::Error + Send + Sync>);
        Error::Build(Box::new(BuildFailure { step, text, line, problem, code, last_lines, kept, source }))
    }

    /// Ends the guest.
    pub(super) async fn close(&mut self) {
        if let Some(open) = self.open.take()
            && let Err(error) = open.sandbox.kill().await
        {
            tracing::warn!(error = chain(&error), "a build's sandbox was not killed");
        }
    }

    /// Lets other builds do what follows this stage's last step.
    pub(super) fn release(&mut self) {
        self.lock = None;
    }

    /// What the stage has come to.
    pub(super) async fn result(&self, build: &Build<'_>) -> Result<(Generation, MachineShape)> {
        match &self.at {
            At::Base { template, .. } => {
                let found = Template::generation(build.site(), template, build.recipe.wanted).await?;
                Ok((found.generation, found.shape))
            }
            At::Step { record, .. } => Ok((load(build.site(), record.generation).await?, record.shape.clone())),
        }
    }

    /// A sandbox at the place where the stage is, with the defaults that the recipe has there.
    pub(super) async fn into_sandbox(mut self, build: &Build<'_>) -> Result<Sandbox> {
        self.close().await;
        Ok(build.open(&self.at, &self.defaults).await?.sandbox)
    }
}

enum Turn {
    Found(StepRecord, Generation),
    Do(FileLock),
}

async fn perform(
    build: &Build<'_>,
    label: &Label,
    open: &mut Open,
    work: &Work,
    directories: &[String],
) -> Result<(), Failure> {
    for directory in directories {
        make_directory(&open.sandbox, directory).await?;
    }
    let network = match work {
        Work::Run { step, .. } => step.network.as_ref().unwrap_or(&build.recipe.network),
        _ => &build.recipe.network,
    };
    if open.network != *network {
        open.sandbox.set_network(network.clone()).await?;
        open.network = network.clone();
    }
    let sandbox = &open.sandbox;
    match work {
        Work::Directories => Ok(()),
        Work::Run { step, words, surroundings } => {
            let secrets = Redaction::new(step.secrets.values().map(String::as_str));
            let mut surroundings = surroundings.clone();
            surroundings.env.extend(step.secrets.clone());
            let command = surroundings.command(sandbox, words)?;
            run(command, Some(step.limit), Log::new(build.teller, label.number, &secrets)).await
        }
        Work::Copy { step, to, names_directory, unpacks, files } => match files {
            Files::Host(found) => from_host(sandbox, step, found.clone(), to, *names_directory, *unpacks).await,
            Files::Stage { at, defaults } => {
                let source = build.open(at, defaults).await?.sandbox;
                let paths = step.paths();
                let copied = from_stage(&source, sandbox, step, &paths, to, *names_directory).await;
                source.kill().await?;
                copied
            }
        },
        Work::Start { words, surroundings, ready } => {
            start(build.teller, label.number, sandbox, words, surroundings, ready.as_ref()).await
        }
    }
}

fn at_line(error: Error, line: Option<usize>) -> Error {
    match (error, line) {
        (Error::InvalidInput { subject, message }, Some(line)) => {
            Error::InvalidInput { subject, message: format!("line {line} of the Dockerfile: {message}") }
        }
        (Error::NotFound { subject, message }, Some(line)) => {
            Error::NotFound { subject, message: format!("line {line} of the Dockerfile: {message}") }
        }
        (error, _) => error,
    }
}

/// The label of a build's sandboxes, whose value is the name of the template.
const LABEL: &str = "wrenn.build";
const POLL: Duration = Duration::from_millis(20);
