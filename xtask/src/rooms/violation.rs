//! What can be wrong, and how it is told.

use std::fmt;

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At<File = String> {
    pub(super) file: File,
    pub(super) line: usize,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// A file names something through a re-export that is not the door of another room.
    Detour { at: At, path: String, through: At, has_it: Option<String> },
    /// Files import each other. Each step imports what the next one has, and the last what the first has.
    Circle(Vec<Step>),
    /// A file imports one of a room above its own.
    Upward { at: At, room: String, imported: String, above: Above },
    /// The order of rooms and the crate's modules are not the same.
    Order(String),
    /// A file has too many lines.
    Length { file: String, lines: usize, lines_max: usize },
}

/// A file in a circle, and the lines in which it imports the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) file: String,
    pub(super) lines: Vec<usize>,
}

/// What is above a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Above {
    Room(String),
    /// A room on the same line: they are not to know each other.
    Peer(String),
    /// The root file, which is above every room.
    Root,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detour { at, path, through, has_it } => {
                write!(f, "{at}: names {path} through {through}: ")?;
                match has_it {
                    Some(module) => write!(f, "name the module that has it, {module}"),
                    None => write!(f, "name the crate that has it"),
                }
            }
            Self::Circle(steps) => {
                write!(f, "a circle of {} files:", steps.len())?;
                for (index, step) in steps.iter().enumerate() {
                    let next = &steps[(index + 1) % steps.len()];
                    let lines: Vec<String> = step.lines.iter().map(usize::to_string).collect();
                    write!(f, "\n    {}:{} imports {}", step.file, lines.join(","), next.file)?;
                }
                Ok(())
            }
            Self::Upward { at, room, imported, above } => {
                write!(f, "{at}: imports {imported}, ")?;
                match above {
                    Above::Room(other) => write!(f, "and the room `{other}` is above `{room}`"),
                    Above::Peer(other) => write!(f, "and the room `{other}` is beside `{room}`, not below it"),
                    Above::Root => write!(f, "which is above every room"),
                }
            }
            Self::Order(what) => write!(f, "ARCHITECTURE.md: {what}"),
            Self::Length { file, lines, lines_max } => {
                write!(f, "{file}: {lines} lines, where {lines_max} are the limit: split it")
            }
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}
