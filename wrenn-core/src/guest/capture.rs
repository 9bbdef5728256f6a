//! The capture of a guest at one instant.

use std::sync::Arc;
use std::time::Instant;

use wrenn_snapshot::{Generation, Space, SpaceWriter};

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::guest::drive::{self, SavedDrive};
use crate::guest::lineage::Lineage;
use crate::guest::stopwatch::Stopwatch;
use crate::guest::then::{SaveReport, SaveSteps, Then};
use crate::runtime::blocking;
use crate::site::Site;
use crate::vmm::saved::{Begun, STATE_BLOB, Saved};

impl Guest {
    /// Publishes a generation of the guest as it is at one instant. Afterwards, and after a failure, the guest is
    /// stopped if [`is_halted`](Self::is_halted) says so: [`go_on`](Self::go_on) or [`kill`](Self::kill) comes next.
    pub(crate) async fn capture(&mut self, site: &Arc<Site>, then: Then) -> Result<Generation> {
        let (asked, mut watch, mut steps) = (Instant::now(), Stopwatch::start(), SaveSteps::default());
        let parent = match &mut self.lineage {
            Some(lineage) => Some(lineage.parent().await),
            None => None,
        };
        let store = site.store.clone();
        let begin = move || {
            let pending = store.begin(parent.as_ref())?;
            let [memory, drive] = [pending.space_writer(Space::Memory)?, pending.space_writer(Space::Drive)?];
            Ok::<_, Error>((pending, memory, drive))
        };
        let (mut pending, mut memory, drive_writer) = blocking("begin a snapshot", begin).await??;
        steps.begin = watch.lap();
        if then == Then::GoOn {
            if !self.machine.knows_drive() {
                drive::write_ahead(Arc::clone(&self.drive), site.data.path().to_owned()).await?;
            }
            memory = self.machine.save_ahead(memory).await?;
        }
        steps.ahead = watch.lap();
        self.freeze().await?;
        steps.freeze = watch.lap();
        let stopped = Instant::now();
        // Those that end meanwhile are still open in what is saved.
        self.manifest.connections = self.egress.as_ref().map(|egress| egress.connections()).unwrap_or_default();
        self.machine.stop().await?;
        let (Saved { memory, state }, drive) = self.save(site, memory, drive_writer, then).await?;
        // From here on the guest may run: what was saved has only to be stored and made durable.
        let stopped_for = stopped.elapsed();
        steps.stop = watch.lap();
        let (held_bytes, saving) = (memory.held_bytes(), drive.saving());
        let metadata = serde_json::to_vec(&self.manifest).map_err(|e| Error::failed("describe the guest")(e.into()))?;
        let publish = move || {
            pending.write_blob(STATE_BLOB, &state)?;
            pending.seal(memory.finish()?)?;
            pending.seal(drive.finish()?)?;
            Ok::<_, Error>(pending.publish(&metadata)?)
        };
        // Publishing starts before the guest goes on. A guest that writes more held pages than wrenn can copy aside
        // waits until they are stored, and its hooks may write much before its processes are thawed.
        let publishing = tokio::task::spawn_blocking(publish);
        let gone_on = if then == Then::GoOn { self.go_on().await } else { Ok(()) };
        steps.go_on = watch.lap();
        let frozen_for = steps.freeze + steps.stop + steps.go_on;
        // Publishing is waited for even where the guest did not go on, since the next capture must not find pages held
        // by this one; and the copying of the drive, which publishing waits for.
        let copied = self.machine.drive_saved().await;
        let published = publishing.await.map_err(|e| Error::failed("publish the snapshot")(e.into()))?;
        gone_on?;
        copied?;
        let generation = published?;
        steps.publish = watch.lap();
        steps.whole = asked.elapsed();
        let phases = self.machine.save_phases();
        let tracking = self.machine.tracking();
        self.save_report =
            Some(SaveReport { stopped_for, frozen_for, held_bytes, tracking, drive: saving, phases, steps });
        self.machine.saved();
        self.hand_on_working_set(site, generation.id()).await;
        match &mut self.lineage {
            Some(lineage) => lineage.go_on_from(generation.clone()),
            None => self.lineage = Some(Lineage::new(generation.clone(), None)),
        }
        if let (Some(lineage), Then::GoOn) = (&mut self.lineage, then) {
            lineage.shorten(site);
        }
        Ok(generation)
    }

    /// Saves a stopped guest as far as that has to be before it goes on.
    async fn save(
        &mut self,
        site: &Site,
        memory: SpaceWriter,
        drive: SpaceWriter,
        then: Then,
    ) -> Result<(Saved, SavedDrive)> {
        let compare = |drive| SavedDrive::of(Arc::clone(&self.drive), site.data.path().to_owned(), drive, then);
        if !self.machine.knows_drive() {
            // Both are waited for even if one fails: a machine whose save was cut short could not go on.
            let compared = compare(drive);
            let (saved, drive) = tokio::join!(self.machine.save(memory), compared);
            return Ok((saved?, drive?));
        }
        let saved = self.machine.save(memory).await?;
        match self.machine.save_drive(drive).await? {
            Begun::Saving(drive) => Ok((saved, SavedDrive::Saving(drive))),
            Begun::Unknown(drive) => Ok((saved, compare(*drive).await?)),
        }
    }

    /// Freezes the guest's processes, so that none runs in a copy before the copy has an identity of its own. From then
    /// on the guest counts as halted, even where this fails.
    async fn freeze(&mut self) -> Result<()> {
        self.halted = true;
        let freeze = self.agent.freeze();
        self.alive("freeze the guest", async { freeze.await.map_err(Error::agent("freeze its processes")) }).await
    }

    /// Lets a halted guest go on with its own identity.
    pub(crate) async fn go_on(&mut self) -> Result<()> {
        self.machine.resume().await?;
        let thaw = self.agent.thaw();
        self.alive("thaw the guest", async { thaw.await.map_err(Error::agent("thaw its processes")) }).await?;
        self.halted = false;
        Ok(())
    }
}
