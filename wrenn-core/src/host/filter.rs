//! Which sandboxes a listing is about.

use std::collections::BTreeMap;

use crate::id::TemplateName;
use crate::state::{SandboxInfo, SandboxState};

/// Which sandboxes [`Host::sandboxes`](crate::Host::sandboxes) lists: those that meet every condition of the filter. A
/// filter without a condition lists all.
///
/// ```
/// use wrenn_core::{SandboxFilter, SandboxState};
///
/// let idle = SandboxFilter::new().state(SandboxState::Paused).label("owner", "ada");
/// assert_ne!(idle, SandboxFilter::new());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    state: Option<SandboxState>,
    template: Option<TemplateName>,
    labels: BTreeMap<String, String>,
}

impl SandboxFilter {
    /// A filter without a condition, which lists all sandboxes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lists only sandboxes in this state.
    #[must_use]
    pub fn state(mut self, state: SandboxState) -> Self {
        self.state = Some(state);
        self
    }

    /// Lists only sandboxes that were created from this template.
    #[must_use]
    pub fn template(mut self, template: TemplateName) -> Self {
        self.template = Some(template);
        self
    }

    /// Lists only sandboxes whose label `name` has this value. Where this is called for several labels, every one of
    /// them has to match.
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
