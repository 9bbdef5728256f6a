//! What one guest's connections are intercepted with.

use std::fmt;
use std::sync::Arc;

use crate::egress::intercept::interceptor::Interceptor;
use crate::egress::secret::SecretSource;

/// What intercepts the connections of one guest, and whom it asks for that guest's secrets.
#[derive(Clone)]
pub(in crate::egress) struct Interception {
    pub(in crate::egress) interceptor: Arc<Interceptor>,
    pub(in crate::egress) secrets: Arc<dyn SecretSource>,
}

impl fmt::Debug for Interception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interception").field("interceptor", &self.interceptor).finish_non_exhaustive()
    }
}
