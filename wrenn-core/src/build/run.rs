//! A build from its recipe to the template that has its name.

use std::collections::BTreeMap;

use crate::build::at::At;
use crate::build::cache;
use crate::build::context::{Bounds, Context as FilesOf};
use crate::build::dockerfile::instruction::{Place, absolute};
use crate::build::event::BuildEventKind;
use crate::build::recipe::{Asked, Recipe, Stage as Planned, Start, Step, invalid};
use crate::build::stage::{Build, Label, Stage};
use crate::build::step::{Archives, CopyStep, Instruction, RunStep, Source, Words};
use crate::build::teller::Teller;
use crate::build::work::{Files, Work};
use crate::defaults::Defaults;
use crate::error::build::BuildFailure;
use crate::error::{Error, Result};
use crate::exec::collect::check_envs;
use crate::host::handle::Host;
use crate::id::TemplateName;
use crate::runtime::blocking;
use crate::sandbox::handle::Sandbox;
use crate::sandbox::template::{Taken, Template};

/// Builds a template, and gives it its name.
pub(super) async fn build(host: &Host, recipe: &Recipe, name: &str, teller: &Teller) -> Result<Template> {
    let name: TemplateName = name.parse()?;
    let site = &host.0.site;
    let (here, free, taken) = (site.clone(), name.clone(), recipe.taken);
    let check = move || match taken {
        Taken::Replaced => Template::check_no_image(&here, &free),
        Taken::Refused => Template::check_free(&here, &free),
    };
    blocking("look for the name", check).await??;
    let mut progress = Progress::new(host, recipe, name.clone(), teller)?;
    progress.stages(None).await?;
    progress.start().await?;
    let Some(last) = &mut progress.current else { return Err(Error::invalid("the recipe has no stage")) };
    let (generation, shape) = last.result(&progress.build).await?;
    let (here, defaults, named) = (site.clone(), last.defaults.clone(), name.clone());
    let publish = move || Template::publish(&here, &named, &generation, &shape, &defaults, taken);
    let template = blocking("publish the template", publish).await??;
    last.release();
    last.close().await;
    teller.tell(None, BuildEventKind::Published { template: name });
    cache::bound(site).await?;
    // The generation of a template that was replaced may be nobody's now.
    site.tidy();
    Ok(template)
}

/// Does the first steps of a recipe, and opens a sandbox where they end.
pub(super) async fn open_at(host: &Host, recipe: &Recipe, step: usize, teller: &Teller) -> Result<Sandbox> {
    let name: TemplateName = NAME_OF_OPENED.parse()?;
    let mut progress = Progress::new(host, recipe, name, teller)?;
    progress.stages(Some(step)).await?;
    let last = progress.current.take().ok_or_else(|| Error::invalid("the recipe has no stage"))?;
    last.into_sandbox(&progress.build).await
}

struct Progress<'a> {
    build: Build<'a>,
    plan: crate::build::recipe::Plan,
    done: BTreeMap<usize, (At, Defaults)>,
    current: Option<Stage>,
    /// How many steps are done.
    number: usize,
}

impl<'a> Progress<'a> {
    fn new(host: &'a Host, recipe: &'a Recipe, name: TemplateName, teller: &'a Teller) -> Result<Self> {
        let plan = recipe.plan()?;
        recipe.network.check()?;
        if recipe.ready.is_some() && recipe.start.is_none() {
            return Err(Error::invalid("a recipe with `ready` needs a start command: nothing would become ready"));
        }
        let build = Build { host, recipe, name, teller, steps: plan.steps };
        Ok(Self { build, plan, done: BTreeMap::new(), current: None, number: 0 })
    }

    /// Does all stages, or the first `most` steps.
    async fn stages(&mut self, most: Option<usize>) -> Result<()> {
        for planned in std::mem::take(&mut self.plan.stages) {
            if let Some(mut stage) = self.current.take() {
                stage.release();
                stage.close().await;
            }
            let stage = Stage::begin(&self.build, &planned.base, planned.directory, &self.done).await?;
            let stage = self.current.insert(stage);
            for step in &planned.steps {
                if most == Some(self.number) {
                    return Ok(());
                }
                self.number += 1;
                let label = Label { number: self.number, text: step.text.clone(), line: step.line };
                let context =
                    Context { build: &self.build, planned: &planned, done: &self.done, globals: &self.plan.globals };
                context.step(stage, step, &label).await?;
            }
            // Nothing else makes a working directory that is named last.
            if !stage.directories.is_empty() {
                let text = format!("WORKDIR {}", stage.directories.join(" "));
                let label = Label { number: self.number, text, line: None };
                stage.guest_step(&self.build, &label, &Work::Directories).await?;
            }
            self.done.insert(planned.number, (stage.at.clone(), stage.defaults.clone()));
        }
        Ok(())
    }

    /// Starts what the recipe asks for, last.
    async fn start(&mut self) -> Result<()> {
        let (recipe, Some(stage)) = (self.build.recipe, &mut self.current) else { return Ok(()) };
        let words = match &recipe.start {
            None => return Ok(()),
            Some(Start::Line(line)) => in_shell(line),
            Some(Start::Defaults) => [stage.defaults.entrypoint.clone(), stage.defaults.cmd.clone()].concat(),
        };
        if words.is_empty() {
            return Err(Error::invalid("the recipe has no ENTRYPOINT and no CMD to start"));
        }
        let text = match &recipe.start {
            Some(Start::Line(line)) => format!("START {line}"),
            _ => format!("START {words:?}"),
        };
        let label = Label { number: self.build.steps, text, line: None };
        let mut surroundings = stage.surroundings();
        // It is not to see build arguments, which are the build's alone.
        surroundings.env = stage.defaults.env.clone();
        let work = Work::Start { words, surroundings, ready: recipe.ready.clone() };
        stage.guest_step(&self.build, &label, &work).await
    }
}

/// What is known where a step stands.
struct Context<'a> {
    build: &'a Build<'a>,
    planned: &'a Planned,
    done: &'a BTreeMap<usize, (At, Defaults)>,
    globals: &'a BTreeMap<String, String>,
}

impl Context<'_> {
    async fn step(&self, stage: &mut Stage, step: &Step, label: &Label) -> Result<()> {
        let instruction = match &step.asked {
            Asked::Plain(instruction) => instruction.clone(),
            Asked::Written(written) => {
                let values = stage.values();
                let (stages, secrets) = (&self.planned.names, &self.build.recipe.secrets);
                let place = Place { values: &values, shell: &stage.shell, stages, secrets };
                written.instruction(&place).map_err(invalid)?
            }
        };
        let is_plain = matches!(step.asked, Asked::Plain(_));
        match instruction {
            Instruction::Run(run) => {
                let work = self.run(stage, run);
                stage.guest_step(self.build, label, &work).await
            }
            Instruction::Copy(copy) => {
                let work = self.copy(stage, copy, label).await?;
                stage.guest_step(self.build, label, &work).await
            }
            other => {
                let (text, steps) = (label.text.clone(), self.build.steps);
                self.build.tell(label.number, BuildEventKind::Began { text, steps, cached: true });
                if let Instruction::Nothing(Some(text)) = &other {
                    self.build.tell(label.number, BuildEventKind::Warning { text: text.clone() });
                }
                self.note(stage, other, is_plain)?;
                let (took, stored_bytes) = (std::time::Duration::ZERO, 0);
                self.build.tell(label.number, BuildEventKind::Ended { took, stored_bytes });
                Ok(())
            }
        }
    }

    /// Notes what changes nothing of the guest.
    fn note(&self, stage: &mut Stage, instruction: Instruction, is_plain: bool) -> Result<()> {
        let defaults = &mut stage.defaults;
        match instruction {
            Instruction::Env(pairs) => {
                let pairs: BTreeMap<String, String> = pairs.into_iter().collect();
                check_envs(&pairs)?;
                defaults.env.extend(pairs);
            }
            Instruction::Arg(name, default) => {
                let given = self.build.recipe.arguments.get(&name).cloned();
                if let Some(value) = given.or(default).or_else(|| self.globals.get(&name).cloned()) {
                    stage.arguments.insert(name, value);
                }
            }
            Instruction::User(user) => defaults.user = Some(user),
            Instruction::Workdir(path) => {
                let path = absolute(defaults.workdir.as_deref().unwrap_or("/"), &path);
                defaults.workdir = Some(path.clone());
                stage.directories.push(path);
            }
            Instruction::Expose(ports) => {
                defaults.exposed_ports.extend(ports);
                defaults.exposed_ports.sort();
                defaults.exposed_ports.dedup();
            }
            Instruction::Entrypoint(words) => {
                // A base's command is for the base's entry point.
                if !stage.has_own_cmd && !is_plain {
                    defaults.cmd.clear();
                }
                defaults.entrypoint = words;
            }
            Instruction::Cmd(words) => (defaults.cmd, stage.has_own_cmd) = (words, true),
            Instruction::StopSignal(signal) => defaults.stop_signal = Some(signal),
            Instruction::Shell(words) => stage.shell = words,
            Instruction::Nothing(_) | Instruction::Run(_) | Instruction::Copy(_) => {}
        }
        Ok(())
    }

    fn run(&self, stage: &Stage, step: Box<RunStep>) -> Work {
        let words = match &step.words {
            Words::Shell(line) => in_shell(line),
            Words::Exec(words) => words.clone(),
        };
        let mut surroundings = stage.surroundings();
        surroundings.env.extend(step.env.clone());
        surroundings.user = step.user.clone().or(surroundings.user);
        Work::Run { step, words, surroundings }
    }

    async fn copy(&self, stage: &Stage, step: CopyStep, label: &Label) -> Result<Work> {
        let (to, names_directory) = stage.destination(&step.to);
        let files = match step.from {
            Some(number) => {
                let done = self.done.get(&number).cloned();
                let (at, defaults) = done.ok_or_else(|| Error::invalid("a stage needs a later one"))?;
                Files::Stage { at: Box::new(at), defaults: Box::new(defaults) }
            }
            None => {
                let context = match step.within.clone() {
                    Some(directory) => FilesOf { directory, bounds: Bounds::Confined },
                    None => self.build.recipe.context.clone(),
                };
                let (sources, excludes) = (step.sources.clone(), step.excludes.clone());
                let find = move || {
                    let mut found = Vec::new();
                    for source in &sources {
                        match source {
                            Source::Path(path) => found.extend(context.find(path, &excludes)?),
                            Source::Inline { name, content } => {
                                found.push(crate::build::context::Found::inline(name, content));
                            }
                        }
                    }
                    Ok(found)
                };
                let found: Result<_, String> = blocking("find the files", find).await?;
                Files::Host(found.map_err(|problem| failure(label, problem))?)
            }
        };
        let unpacks = step.archives == Archives::Unpacked;
        let names_directory = names_directory || step.sources.len() > 1;
        Ok(Work::Copy { step, to, names_directory, unpacks, files })
    }
}

fn failure(label: &Label, problem: String) -> Error {
    let (step, text, line) = (label.number, label.text.clone(), label.line);
    let failure =
        BuildFailure { step, text, line, problem, code: None, last_lines: Vec::new(), kept: None, source: None };
    Error::Build(Box::new(failure))
}

/// The words that run a line of shell, as [`Sandbox::exec`] has them.
fn in_shell(line: &str) -> Vec<String> {
    ["/bin/bash", "-c", line].map(str::to_owned).to_vec()
}

const NAME_OF_OPENED: &str = "build";
