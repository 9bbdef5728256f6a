//! The parts of a sandbox that are stored by pages.

/// A part of a sandbox that is stored by pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Space {
    /// The guest's memory.
    Memory,
    /// The sandbox's writable drive.
    Drive,
}

impl Space {
    /// Every space, in the order in which they are stored.
    pub const ALL: [Self; 2] = [Self::Memory, Self::Drive];

    /// The space's name, which its files start with.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Drive => "drive",
        }
    }

    pub(crate) fn code(self) -> u32 {
        match self {
            Self::Memory => 0,
            Self::Drive => 1,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|space| space.code() == code)
    }

    pub(crate) fn header_file(self) -> String {
        format!("{}.header", self.name())
    }

    pub(crate) fn data_file(self) -> String {
        format!("{}.data", self.name())
    }
}
