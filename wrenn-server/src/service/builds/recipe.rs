//! Recipes as clients send them, and as `wrenn-core` takes them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use wrenn_core::{CopyStep, Ready, RunStep, Template, TemplateBuilder};

use crate::service::builds::files::is_hash;
use crate::service::builds::registries::Reference;
use crate::store::records::Hidden;

/// What a build does.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What it begins with.
    pub base: Base,
    /// What is done then.
    pub steps: Vec<Step>,
    /// Whether all of it is done anew.
    pub is_fresh: bool,
    /// What runs in the template's sandboxes, as a line of shell.
    pub start: Option<String>,
    /// What is waited for then.
    pub ready: Option<When>,
}

/// What a build begins with.
#[derive(Debug, Clone)]
pub enum Base {
    /// A template, by its name, with or without a tag.
    Template(String),
    /// An image of a registry.
    Image(Reference, Option<Login>),
    /// What a Dockerfile says, whose steps come first.
    Dockerfile(String),
}

/// A login at a registry.
#[derive(Debug, Clone)]
pub struct Login {
    /// Who.
    pub user: String,
    /// The password.
    pub password: Hidden,
}

/// A step.
#[derive(Debug, Clone)]
pub struct Step {
    /// What it does.
    pub action: Action,
    /// Whether it is done anew, and all after it.
    pub is_fresh: bool,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// Runs a line of shell.
    Run {
        /// The line.
        line: String,
        /// As whom; `None` for the user of the recipe so far.
        user: Option<String>,
    },
    /// Copies files that were sent before.
    Copy {
        /// Their path within what was sent.
        from: String,
        /// Where to.
        to: String,
        /// Whose they are then; `None` for the user of the recipe so far.
        user: Option<String>,
        /// Their mode.
        mode: Option<u32>,
        /// By which they were sent.
        hash: String,
    },
    /// Sets variables.
    Env(Vec<(String, String)>),
    /// Sets the working directory.
    Workdir(String),
    /// Sets the user.
    User(String),
}

/// When what was started is ready.
#[derive(Debug, Clone)]
pub enum When {
    /// When a line of shell succeeds.
    Command(String),
    /// When a port takes connections.
    Port(u16),
    /// When a request is answered.
    Http(u16, String),
    /// After a while.
    After(Duration),
}

/// What a recipe's steps find in what it begins with.
#[derive(Debug, Clone, Default)]
pub(in crate::service) struct Ground {
    /// The template.
    pub(in crate::service) template: String,
    /// Its user.
    pub(in crate::service) user: Option<String>,
    pub(in crate::service) kind: GroundKind,
}

/// How much of what E2B's clients expect a template has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::service) enum GroundKind {
    /// All that it ever will.
    #[default]
    Snapshot,
    /// The user, and no working directory.
    Image,
    /// Neither.
    Pulled,
}

impl Recipe {
    /// What is wrong with it by itself.
    ///
    /// # Errors
    /// Just that.
    pub(in crate::service) fn check(&self) -> Result<(), String> {
        if self.steps.len() > STEPS_MAX {
            return Err(format!("the recipe has {} steps: {STEPS_MAX} at most", self.steps.len()));
        }
        for (number, step) in (1..).zip(&self.steps) {
            let bad = match &step.action {
                Action::Run { line, .. } if line.trim().is_empty() => Some("has no command"),
                Action::Copy { from, to, .. } if from.is_empty() || to.is_empty() => {
                    Some("needs a source and a destination")
                }
                Action::Copy { hash, .. } if !is_hash(hash) => Some("needs the SHA-256 of its files as `filesHash`"),
                Action::Copy { mode: Some(mode), .. } if *mode > 0o7777 => Some("has no mode of files"),
                Action::Workdir(path) | Action::User(path) if path.is_empty() => Some("says nothing"),
                _ => None,
            };
            if let Some(bad) = bad {
                return Err(format!("step {number} {bad}"));
            }
        }
        Ok(())
    }

    /// The hashes of its files, each with the first step that copies them.
    pub(in crate::service) fn hashes(&self) -> BTreeMap<&str, String> {
        let mut hashes = BTreeMap::new();
        for (number, step) in (1..).zip(&self.steps) {
            if let Action::Copy { hash, .. } = &step.action {
                hashes.entry(&**hash).or_insert_with(|| number.to_string());
            }
        }
        hashes
    }

    /// The same for `wrenn-core`, and the client's name for each step. `places` has the directories with the files of each hash.
    pub(in crate::service) fn compile(
        &self,
        mut builder: TemplateBuilder,
        ground: &Ground,
        places: &BTreeMap<String, PathBuf>,
    ) -> (TemplateBuilder, Labels) {
        let mut labels: Vec<String> = Vec::new();
        let mut user = ground.user.clone();
        if ground.kind == GroundKind::Pulled {
            builder = builder.run(RunStep::exec(["/bin/sh", "-c", ADD_USER]).user("root")).user(USER);
            labels.extend([BASE.to_owned(), BASE.to_owned()]);
            user = Some(USER.to_owned());
        }
        if ground.kind != GroundKind::Snapshot && user.as_deref() == Some(USER) {
            builder = builder.workdir(HOME);
            labels.push(BASE.to_owned());
        }
        let mut fresh_from = self.is_fresh.then_some(1);
        for (number, step) in (1..).zip(&self.steps) {
            if step.is_fresh && fresh_from.is_none() {
                fresh_from = Some(labels.len() + 1);
            }
            let mut count = 1;
            builder = match step.action.clone() {
                Action::Run { line, user } => {
                    let run = RunStep::new(line);
                    builder.run(match user {
                        Some(user) => run.user(user),
                        None => run,
                    })
                }
                Action::Copy { from, to, user: owner, mode, hash } => {
                    // What the client has matched is all that there is: a pattern of several levels is that of the lowest
                    // directory above it.
                    let from = from.split_once("**").map_or(&*from, |(above, _)| above).trim_end_matches('/');
                    let from = if from.is_empty() { "." } else { from };
                    let owner = owner.or_else(|| user.clone()).unwrap_or_else(|| "root".to_owned());
                    let copy = CopyStep::new(from, to).owner(owner);
                    let copy = match places.get(&hash) {
                        Some(place) => copy.within(place),
                        None => copy,
                    };
                    builder.copy_step(match mode {
                        Some(mode) => copy.mode(mode),
                        None => copy,
                    })
                }
                Action::Env(pairs) => {
                    count = pairs.len();
                    pairs.into_iter().fold(builder, |builder, (name, value)| builder.env(name, value))
                }
                Action::Workdir(path) => builder.workdir(path),
                Action::User(name) => {
                    user = Some(name.clone());
                    builder.user(name)
                }
            };
            labels.extend(std::iter::repeat_n(number.to_string(), count));
        }
        builder = self.started(builder);
        if let Some(from) = fresh_from {
            builder = builder.no_cache_from(from);
        }
        let is_dockerfile = matches!(self.base, Base::Dockerfile(_));
        (builder, Labels((!is_dockerfile).then_some(labels)))
    }

    fn started(&self, builder: TemplateBuilder) -> TemplateBuilder {
        let ready = self.ready.as_ref().map(|when| match when {
            When::Command(line) => Ready::command(line).limit(READY_MAX),
            When::Port(port) => Ready::port(*port).limit(READY_MAX),
            When::Http(port, path) => Ready::http(*port, path).limit(READY_MAX),
            When::After(time) => Ready::after((*time).min(READY_MAX)),
        });
        match (&self.start, ready, &self.ready) {
            (Some(line), Some(ready), _) => builder.start(line).ready(ready),
            (Some(line), None, _) => builder.start(line).ready(Ready::after(START)),
            // Something of a step before is to be ready.
            (None, _, Some(When::Command(line))) => {
                builder.run(RunStep::new(format!("until {{ {line}\n}}; do sleep 0.2; done")).limit(READY_MAX))
            }
            (None, Some(ready), _) if matches!(self.base, Base::Dockerfile(_)) => {
                builder.start_from_image().ready(ready)
            }
            (None, ..) => builder,
        }
    }
}

/// The names that a recipe's client has for its steps.
#[derive(Debug, Clone)]
pub(in crate::service) struct Labels(Option<Vec<String>>);

impl Labels {
    /// That of a step by its number in `wrenn-core`, from 1 on. What the recipe has no step for is its end. A Dockerfile's steps
    /// have their numbers.
    pub(in crate::service) fn of(&self, number: usize) -> String {
        let Some(labels) = &self.0 else { return number.to_string() };
        number.checked_sub(1).and_then(|at| labels.get(at)).map_or(FINALIZE, |label| label).to_owned()
    }
}

/// A recipe for `wrenn-core` that begins with a template.
pub(in crate::service) fn from_template(name: &str) -> TemplateBuilder {
    Template::builder(name)
}

/// E2B's names of what comes before the first step, and after the last.
pub(in crate::service) const BASE: &str = "base";
const FINALIZE: &str = "finalize";
/// Who and where E2B's clients expect to be.
const USER: &str = "user";
const HOME: &str = "/home/user";
const STEPS_MAX: usize = 1000;
/// What was started and is not said to be ready at any time.
const START: Duration = Duration::from_secs(1);
const READY_MAX: Duration = Duration::from_secs(300);

/// Makes the user, with nothing but a shell, on what has an `/etc/passwd`.
const ADD_USER: &str = r#"set -eu
has() { while IFS=: read -r name _; do if [ "$name" = user ]; then return 0; fi; done < "$1"; return 1; }
taken() {
  for table in /etc/passwd /etc/group; do
    while IFS=: read -r _ _ its _; do if [ "$its" = "$1" ]; then return 0; fi; done < "$table"
  done
  return 1
}
[ -e /etc/group ] || : > /etc/group
if ! has /etc/passwd; then
  id=1000
  while taken "$id"; do id=$((id + 1)); done
  shell=/bin/sh
  if [ -x /bin/bash ]; then shell=/bin/bash; fi
  has /etc/group || echo "user:x:$id:" >> /etc/group
  echo "user:x:$id:$id::/home/user:$shell" >> /etc/passwd
  if [ -e /etc/shadow ]; then echo 'user:*:19000:0:99999:7:::' >> /etc/shadow; fi
  mkdir -p /home/user
  chown "$id:$id" /home/user
fi
if command -v sudo > /dev/null 2>&1; then
  mkdir -p /etc/sudoers.d
  echo 'user ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/user
  chmod 440 /etc/sudoers.d/user
fi
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(steps: Vec<Action>) -> Recipe {
        let steps = steps.into_iter().map(|action| Step { action, is_fresh: false }).collect();
        Recipe { base: Base::Template("base".into()), steps, is_fresh: false, start: None, ready: None }
    }

    #[test]
    fn a_step_has_its_clients_name_whatever_comes_before_and_in_between() {
        let env = Action::Env(vec![("A".into(), "1".into()), ("B".into(), "2".into())]);
        let run = |line: &str| Action::Run { line: line.into(), user: None };
        let all = recipe(vec![run("a"), env, run("b")]);
        let labels = |kind| {
            let ground = Ground { template: "t".into(), user: Some("user".into()), kind };
            let (_, Labels(labels)) = all.compile(from_template("t"), &ground, &BTreeMap::new());
            labels.expect("names").join(" ")
        };
        assert_eq!(labels(GroundKind::Snapshot), "1 2 2 3");
        assert_eq!(labels(GroundKind::Image), "base 1 2 2 3");
        assert_eq!(labels(GroundKind::Pulled), "base base base 1 2 2 3");
        let (_, labels) = all.compile(from_template("t"), &Ground::default(), &BTreeMap::new());
        assert_eq!(
            (&*labels.of(1), &*labels.of(3), &*labels.of(5), &*labels.of(0)),
            ("1", "2", "finalize", "finalize")
        );
    }

    #[test]
    fn what_makes_no_sense_is_said_with_its_step() {
        let copy = |from: &str, hash: &str, mode| {
            let (from, to) = (from.to_owned(), "/a".to_owned());
            recipe(vec![Action::Copy { from, to, user: None, mode, hash: hash.to_owned() }])
        };
        assert_eq!(copy("a", &"0".repeat(64), Some(0o755)).check(), Ok(()));
        for bad in [
            copy("", &"0".repeat(64), None),
            copy("a", "../x", None),
            copy("a", &"0".repeat(64), Some(0o10000)),
            recipe(vec![Action::Run { line: " ".into(), user: None }]),
            recipe(vec![Action::Workdir(String::new())]),
        ] {
            assert!(bad.check().expect_err("it is bad").starts_with("step 1 "));
        }
        assert!(recipe(vec![Action::Env(vec![]); STEPS_MAX + 1]).check().is_err());
    }
}
