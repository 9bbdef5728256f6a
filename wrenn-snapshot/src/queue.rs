//! In what order a page server acts on what the kernel told it. Pure: it makes no call and reads no clock.
//!
//! Discards come first, since a fault can be read before the discard that caused it, and while one is unread every
//! call answers `EAGAIN`. A page is in the queue once, whoever waits for it; a write outranks a read. What the kernel
//! put off is tried again when the caller says so: the kernel does not say it a second time.
//!
//! Addresses are those where granules start; whoever pushes an event rounds its address down.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::sys::uffd::{Access, Event};

/// Something to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The pages of `start..end` are zeros from now on.
    Remove { start: u64, end: u64 },
    /// Let writes to the granule at this address through.
    Unprotect { addr: u64 },
    /// Put the granule at this address in place.
    Install { addr: u64, access: Access },
}

/// What has to be done, and what was put off.
#[derive(Debug, Default)]
pub(crate) struct FaultQueue {
    removes: VecDeque<(u64, u64)>,
    /// Addresses in order of arrival; each is a key of one of the two maps below.
    order: VecDeque<(Kind, u64)>,
    installs: BTreeMap<u64, Access>,
    unprotects: BTreeSet<u64>,
    deferred: Vec<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Install,
    Unprotect,
}

impl FaultQueue {
    /// Takes in an event.
    pub(crate) fn push(&mut self, event: Event) {
        match event {
            Event::Removed { start, end } => self.removes.push_back((start, end)),
            Event::Missing { addr, access, .. } => self.want(addr, access),
            Event::Protected { addr } => self.unprotect(addr),
            Event::Other => {}
        }
    }

    /// What to do next. Call it once every event that waits has been pushed.
    pub(crate) fn next(&mut self) -> Option<Action> {
        if let Some((start, end)) = self.removes.pop_front() {
            return Some(Action::Remove { start, end });
        }
        let (kind, addr) = self.order.pop_front()?;
        match kind {
            Kind::Install => self.installs.remove(&addr).map(|access| Action::Install { addr, access }),
            Kind::Unprotect => self.unprotects.remove(&addr).then_some(Action::Unprotect { addr }),
        }
    }

    /// The kernel answered `EAGAIN` to this.
    pub(crate) fn defer(&mut self, action: Action) {
        if !self.deferred.contains(&action) {
            self.deferred.push(action);
        }
    }

    /// Queues what was put off again.
    pub(crate) fn retry_deferred(&mut self) {
        for action in std::mem::take(&mut self.deferred) {
            match action {
                Action::Install { addr, access } => self.want(addr, access),
                Action::Unprotect { addr } => self.unprotect(addr),
                Action::Remove { start, end } => self.removes.push_back((start, end)),
            }
        }
    }

    /// Whether anything waits for [`retry_deferred`](Self::retry_deferred): the caller has to wake itself.
    pub(crate) fn has_deferred(&self) -> bool {
        !self.deferred.is_empty()
    }

    fn want(&mut self, addr: u64, access: Access) {
        match self.installs.get_mut(&addr) {
            Some(queued) => *queued = access.max(*queued),
            None => {
                self.installs.insert(addr, access);
                self.order.push_back((Kind::Install, addr));
            }
        }
    }

    fn unprotect(&mut self, addr: u64) {
        if self.unprotects.insert(addr) {
            self.order.push_back((Kind::Unprotect, addr));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Access = Access::Read;
    const WRITE: Access = Access::Write;

    fn drain(queue: &mut FaultQueue) -> Vec<Action> {
        std::iter::from_fn(|| queue.next()).collect()
    }

    #[test]
    fn discards_come_before_the_faults_they_caused() {
        let mut queue = FaultQueue::default();
        queue.push(Event::Missing { addr: 0x1000, access: READ, thread: 0 });
        queue.push(Event::Removed { start: 0x1000, end: 0x3000 });
        let expected = [Action::Remove { start: 0x1000, end: 0x3000 }, Action::Install { addr: 0x1000, access: READ }];
        assert_eq!(drain(&mut queue), expected);
    }

    #[test]
    fn a_page_is_queued_once_and_a_write_outranks_a_read() {
        let mut queue = FaultQueue::default();
        for (addr, access) in [(0x1000, READ), (0x2000, READ), (0x1000, WRITE), (0x1000, READ)] {
            queue.push(Event::Missing { addr, access, thread: 0 });
        }
        let expected = [(0x1000, WRITE), (0x2000, READ)].map(|(addr, access)| Action::Install { addr, access });
        assert_eq!(drain(&mut queue), expected);
    }

    #[test]
    fn what_was_put_off_comes_back_without_a_new_event() {
        let mut queue = FaultQueue::default();
        queue.push(Event::Missing { addr: 0x1000, access: READ, thread: 0 });
        queue.push(Event::Protected { addr: 0x1000 });
        for action in drain(&mut queue) {
            queue.defer(action);
            queue.defer(action);
        }
        assert!(queue.has_deferred() && queue.next().is_none());
        queue.push(Event::Missing { addr: 0x1000, access: WRITE, thread: 0 });
        queue.retry_deferred();
        let expected = [Action::Install { addr: 0x1000, access: WRITE }, Action::Unprotect { addr: 0x1000 }];
        assert_eq!(drain(&mut queue), expected);
        assert!(!queue.has_deferred());
    }

    #[test]
    fn a_page_can_be_queued_again_once_it_was_taken() {
        let mut queue = FaultQueue::default();
        for _ in 0..2 {
            queue.push(Event::Missing { addr: 0x1000, access: READ, thread: 0 });
            assert_eq!(drain(&mut queue).len(), 1);
        }
    }
}
