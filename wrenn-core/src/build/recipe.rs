//! What a build is asked to do.

use std::collections::{BTreeMap, BTreeSet};

use wrenn_net::NetworkPolicy;

use crate::build::context::Context;
use crate::build::dockerfile::lines::{Fault, Written};
use crate::build::dockerfile::{BaseOf, Dockerfile};
use crate::build::ready::Ready;
use crate::build::step::Instruction;
use crate::error::{Error, Result};
use crate::sandbox::template::{Taken, Wanted};

/// A recipe with the options of its build.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) origin: Origin,
    /// The steps that follow those of the origin.
    pub(super) added: Vec<Step>,
    pub(super) context: Context,
    pub(super) arguments: BTreeMap<String, String>,
    /// The templates that references of stages stand for.
    pub(super) bases: BTreeMap<String, String>,
    /// The values of a Dockerfile's secrets, by their ids.
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) target: Option<String>,
    pub(super) start: Option<Start>,
    pub(super) ready: Option<Ready>,
    pub(super) wanted: Wanted,
    pub(super) network: NetworkPolicy,
    /// The first step that is done anew whatever was done before.
    pub(super) fresh_from: Option<usize>,
    pub(super) failed: Failed,
    pub(super) taken: Taken,
}

/// What a recipe begins with.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    Base(String),
    Dockerfile(Dockerfile),
}

/// What is started before the snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Start {
    Line(String),
    /// The entry point and the command that the recipe has.
    Defaults,
}

/// What becomes of a sandbox in which a step has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failed {
    Killed,
    Paused,
}

/// A line of a recipe.
#[derive(Debug, Clone)]
pub(super) struct Step {
    /// For people.
    pub(super) text: String,
    /// That of the Dockerfile.
    pub(super) line: Option<usize>,
    pub(super) asked: Asked,
}

#[derive(Debug, Clone)]
pub(super) enum Asked {
    Plain(Instruction),
    /// With variables that are not expanded yet.
    Written(Written),
}

/// The stages of a recipe that its result needs, each after those that it needs.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) stages: Vec<Stage>,
    /// How many steps there are in all, a start included.
    pub(super) steps: usize,
    pub(super) globals: BTreeMap<String, String>,
}

#[derive(Debug)]
pub(super) struct Stage {
    /// Its number in the recipe, which is what others know it by.
    pub(super) number: usize,
    pub(super) base: BaseOf,
    pub(super) steps: Vec<Step>,
    /// The stages that it may copy from.
    pub(super) names: BTreeMap<String, usize>,
    /// Where a command runs that has no working directory; `None` for the home of its user.
    pub(super) directory: Option<&'static str>,
}

impl Recipe {
    /// What its stages begin with that is no other stage, each once.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub(super) fn references(&self) -> Result<Vec<String>> {
        let mut references = BTreeSet::new();
        for stage in self.plan()?.stages {
            if let BaseOf::Reference(reference, _) = stage.base {
                references.insert(reference);
            }
        }
        Ok(references.into_iter().collect())
    }

    /// The stages to build.
    ///
    /// # Errors
    /// [`Error::InvalidInput`] with the line of the Dockerfile.
    pub(super) fn plan(&self) -> Result<Plan> {
        let file = match &self.origin {
            Origin::Base(base) => return Ok(self.plan_of_one(base)),
            Origin::Dockerfile(file) => file,
        };
        let resolution = file.resolve(&self.arguments).map_err(invalid)?;
        let target = match &self.target {
            None => resolution.last,
            Some(name) => {
                let is_it = |stage: Option<&String>| stage.is_some_and(|stage| stage.eq_ignore_ascii_case(name));
                let found = resolution.stages.iter().position(|stage| is_it(stage.name.as_ref()));
                found.ok_or_else(|| Error::invalid(format!("the Dockerfile has no stage {name}")))?
            }
        };
        let mut needed = vec![false; resolution.stages.len()];
        let mut waiting = vec![target];
        while let Some(number) = waiting.pop() {
            if std::mem::replace(&mut needed[number], true) {
                continue;
            }
            let stage = &resolution.stages[number];
            if let BaseOf::Stage(base) = stage.base {
                waiting.push(base);
            }
            let names = resolution.names.get(number);
            let sources = stage.lines.iter().filter(|line| line.keyword == "COPY").filter_map(Written::copies_from);
            waiting.extend(sources.filter_map(|from| {
                let names = names?;
                names.get(&from.to_ascii_lowercase()).or_else(|| names.get(&from)).copied()
            }));
        }
        let mut stages = Vec::new();
        // What no stage of the file is comes first: it needs nothing.
        for number in (resolution.last + 1..needed.len()).chain(0..=resolution.last).filter(|number| needed[*number]) {
            let stage = &resolution.stages[number];
            let step =
                |line: &Written| Step { text: line.text(), line: Some(line.line), asked: Asked::Written(line.clone()) };
            let mut steps: Vec<Step> = stage.lines.iter().map(step).collect();
            if number == target {
                steps.extend(self.added.iter().cloned());
            }
            let names = resolution.names.get(number).cloned().unwrap_or_default();
            stages.push(Stage { number, base: stage.base.clone(), steps, names, directory: Some("/") });
        }
        // The target is the last one: stages after it are not needed.
        Ok(self.counted(stages, resolution.globals))
    }

    fn plan_of_one(&self, base: &str) -> Plan {
        let base = BaseOf::Reference(base.to_owned(), None);
        let stage = Stage { number: 0, base, steps: self.added.clone(), names: BTreeMap::new(), directory: None };
        self.counted(vec![stage], BTreeMap::new())
    }

    fn counted(&self, stages: Vec<Stage>, globals: BTreeMap<String, String>) -> Plan {
        let steps = stages.iter().map(|stage| stage.steps.len()).sum::<usize>() + usize::from(self.start.is_some());
        Plan { stages, steps, globals }
    }
}

pub(super) fn invalid(fault: Fault) -> Error {
    Error::invalid(format!("line {} of the Dockerfile: {}", fault.line, fault.problem))
}
