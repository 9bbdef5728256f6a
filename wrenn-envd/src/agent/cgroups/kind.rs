/// Which share of the processor a process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Kind {
    /// A terminal, which somebody waits at.
    Pty,
    User,
}

impl Kind {
    /// The directory of the groups of that kind.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pty => "ptys",
            Self::User => "user",
        }
    }
}
