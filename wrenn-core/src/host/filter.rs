//! Which sandboxes a listing is about.

use std::collections::BTreeMap;

use crate::id::TemplateName;
use crate::state::{SandboxInfo, SandboxState};

/// Which sandboxes [`Host::sandboxes`](crate::Host::sandboxes) lists: those that meet every condition. Without any
/// condition, all of them.
///
/// ```
/// use wrenn_core::{SandboxFilter, SandboxState};
///
/// let idle = SandboxFilter::new().state(SandboxState::Paused).label("owner", "ada");
/// # let _ = idle;
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    state: Option<SandboxState>,
    template: Option<TemplateName>,
    labels: BTreeMap<String, String>,
}

impl SandboxFilter {
    /// All sandboxes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those in this state.
    #[must_use]
    pub fn state(mut self, state: SandboxState) -> Self {
        self.state = Some(state);
        self
    }

    /// Those that were created from this template.
    #[must_use]
    pub fn template(mut self, template: TemplateName) -> Self {
        self.template = Some(template);
        self
    }

    /// Those whose label `name` has this value. Several labels must all have theirs.
    #[must_use]
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    pub(crate) fn admits(&self, info: &SandboxInfo) -> bool {
        self.state.is_none_or(|state| state == info.state)
            && self.template.as_ref().is_none_or(|template| *template == info.template)
            && self.labels.iter().all(|(name, value)| info.labels.get(name) == Some(value))
    }
}
