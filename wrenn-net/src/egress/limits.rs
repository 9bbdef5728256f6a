//! How much one guest may have of its host.

use serde::{Deserialize, Serialize};

use crate::policy::PolicyError;

/// How much one guest may have of its host at once.
///
/// ```
/// use wrenn_net::Limits;
///
/// let few = Limits { connections: 16, ..Limits::default() };
/// # assert_ne!(few, Limits::default());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// TCP connections that are open. Each costs two descriptors and, while data flows, 128 KiB. Default: 1024; fewer where
    /// the [budget](crate::Budget) has fewer for one guest.
    pub connections: usize,
    /// Connections that are being made. More wait in the guest, which asks again. Default: 128.
    pub dials: usize,
    /// UDP flows: pairs of a port of the guest and an address. Each costs a descriptor. The one that was used least
    /// recently makes room for a new one. Default: 512; fewer where the budget has fewer for one guest.
    pub flows: usize,
    /// Flows of echo requests: pairs of an identifier of the guest's and an address. Each costs a descriptor, for a minute. The one that was
    /// used least recently makes room for a new one. Default: 64; fewer where the budget has fewer for one guest.
    pub echoes: usize,
    /// Questions to DNS that are not answered yet. More are lost, and asked again. Default: 64.
    pub questions: usize,
    /// Connections, flows, questions and flows of echo requests that are begun in a second, refused ones among them. More are lost, and a guest
    /// tries them again. Default: 1000.
    pub begun_per_second: u32,
    /// Bytes of data from the guest that are carried in a second, of all connections and flows together. An eighth of them
    /// may go at once. TCP waits, and datagrams beyond it are lost. Default: no limit.
    pub bytes_out_per_second: Option<u64>,
    /// The same of data to the guest. Default: no limit.
    pub bytes_in_per_second: Option<u64>,
}

impl Limits {
    /// Whether the guest can do anything with them.
    ///
    /// # Errors
    /// One of them is 0.
    pub fn check(&self) -> Result<(), PolicyError> {
        let zero = |is_zero: bool, limit: &'static str| match is_zero {
            true => Err(PolicyError::NoneAtAll { limit }),
            false => Ok(()),
        };
        zero(self.connections == 0, "connections")?;
        zero(self.dials == 0, "dials")?;
        zero(self.flows == 0, "flows")?;
        zero(self.echoes == 0, "echoes")?;
        zero(self.questions == 0, "questions")?;
        zero(self.begun_per_second == 0, "begun_per_second")?;
        zero(self.bytes_out_per_second == Some(0), "bytes_out_per_second")?;
        zero(self.bytes_in_per_second == Some(0), "bytes_in_per_second")
    }

    /// The limits of a guest that may have no more than so many descriptors.
    pub(super) fn within(self, descriptors: usize) -> Self {
        let connections = self.connections.min(descriptors / 4).max(1);
        let echoes = self.echoes.min(descriptors / 16).max(1);
        Self { connections, flows: self.flows.min((descriptors / 2).saturating_sub(echoes)).max(1), echoes, ..self }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            dials: 128,
            flows: 512,
            echoes: 64,
            questions: 64,
            begun_per_second: 1000,
            bytes_out_per_second: None,
            bytes_in_per_second: None,
        }
    }
}
