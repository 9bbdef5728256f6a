//! What a step does in its guest, with all that it needs.

use sha2::{Digest as _, Sha256};

use crate::build::at::At;
use crate::build::command::Surroundings;
use crate::build::context::Found;
use crate::build::key::text_of;
use crate::build::ready::Ready;
use crate::build::step::{CopyStep, RunStep};
use crate::defaults::Defaults;

#[derive(Debug, Clone)]
pub(super) enum Work {
    Run {
        step: Box<RunStep>,
        words: Vec<String>,
        /// Without the step's secrets.
        surroundings: Surroundings,
    },
    Copy {
        step: CopyStep,
        /// An absolute path.
        to: String,
        /// Whether the recipe's text says that the destination is a directory.
        names_directory: bool,
        /// Whether archives are unpacked.
        unpacks: bool,
        files: Files,
    },
    /// Working directories that no other step has made.
    Directories,
    Start {
        words: Vec<String>,
        surroundings: Surroundings,
        ready: Option<Ready>,
    },
}

/// The files of a copy.
#[derive(Debug, Clone)]
pub(super) enum Files {
    Host(Vec<Found>),
    Stage { at: Box<At>, defaults: Box<Defaults> },
}

impl Files {
    /// All that a copy's result depends on, but for its destination, its mode and its owner.
    pub(super) fn digest(&self, step: &CopyStep, names_directory: bool) -> String {
        let mut hasher = Sha256::new();
        hasher.update([u8::from(names_directory)]);
        match self {
            Self::Host(found) => found.iter().for_each(|found| found.digest(&mut hasher)),
            Self::Stage { at, .. } => {
                for text in [at.identity().to_owned()].into_iter().chain(step.paths()).chain(step.excludes.clone()) {
                    hasher.update((text.len() as u64).to_le_bytes());
                    hasher.update(text);
                }
            }
        }
        text_of(&hasher.finalize())
    }
}
