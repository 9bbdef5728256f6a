//! A fake VMM for tests of the lifecycle alone: it runs nothing, fails where it is told to, and notes what it was
//! asked. Its agent answers every call with 204, over a real loopback connection.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use wrenn_net::SlotPool;
use wrenn_snapshot::{PAGE_BYTES, PageRange, SpaceWriter, WorkingSet};

use crate::agent::connector::Connector;
use crate::error::{Error, Result};
use crate::network::slot::{Network, Plug};
use crate::vmm::console::Console;
use crate::vmm::exit::Exit;
use crate::vmm::machine::{Machine, Standby, Vmm};
use crate::vmm::paging::{Paging, RestoreReport};
use crate::vmm::parts::{BootMedia, Parts, Restore};
use crate::vmm::phases::SavePhases;
use crate::vmm::saved::{Saved, SavedMemory};
use crate::vmm::shape::MachineShape;
use crate::vmm::tracking::Tracking;
use crate::vmm::ways::{Trackers, Ways};

/// What a machine can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Restore,
    Resume,
    SaveAhead,
    Stop,
    Save,
    Saved,
    Kill,
}

/// What the fake shall do and what it did. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    failures: HashMap<Op, usize>,
    hanging: HashSet<Op>,
    slow: HashMap<Op, Duration>,
    log: Vec<Op>,
    saves: u8,
    exits: Vec<watch::Sender<Option<Exit>>>,
    dying: Option<Op>,
}

impl Script {
    /// Makes the next `times` of `op` fail.
    pub(crate) fn fail(&self, op: Op, times: usize) {
        self.lock().failures.insert(op, times);
    }

    /// Makes every `op` from now on take for ever.
    pub(crate) fn hang(&self, op: Op) {
        self.lock().hanging.insert(op);
    }

    /// Makes every `op` from now on take so long.
    pub(crate) fn slow(&self, op: Op, time: Duration) {
        self.lock().slow.insert(op, time);
    }

    /// What was asked since the last call.
    pub(crate) fn take_log(&self) -> Vec<Op> {
        std::mem::take(&mut self.lock().log)
    }

    /// Makes every machine die at the next `op`, which fails of that.
    pub(crate) fn die_at(&self, op: Op) {
        self.lock().dying = Some(op);
    }

    /// Every machine dies by itself.
    pub(crate) fn die(&self) {
        for exit in &self.lock().exits {
            exit.send_replace(Some(Exit::Process("signal: 9 (SIGKILL)".to_owned())));
        }
    }

    /// The number of a save, from 0 on, at which it starts anew after 255.
    fn next_save(&self) -> u8 {
        let mut state = self.lock();
        let number = state.saves;
        state.saves = number.wrapping_add(1);
        number
    }

    async fn go_through(&self, op: Op) -> Result<()> {
        self.perform(op)?;
        let slow = self.lock().slow.get(&op).copied();
        if let Some(time) = slow {
            tokio::time::sleep(time).await;
        }
        let hangs = self.lock().hanging.contains(&op);
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn perform(&self, op: Op) -> Result<()> {
        let mut state = self.lock();
        state.log.push(op);
        if state.dying.take_if(|dying| *dying == op).is_some() {
            drop(state);
            self.die();
            return Err(Error::failed("do as the script says")("No such process".into()));
        }
        match state.failures.get_mut(&op) {
            Some(times @ 1..) => {
                *times -= 1;
                Err(Error::failed("do as the script says")(format!("{op:?} fails").into()))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of a machine's memory. Each save finds one page written, the next one, and fills it with its number.
pub(crate) const PAGES: usize = 256;

#[derive(Debug)]
pub(crate) struct FakeVmm {
    script: Script,
    agent: SocketAddr,
}

impl FakeVmm {
    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let agent = listener.local_addr().unwrap();
        tokio::spawn(serve_agent(listener));
        Self { script, agent }
    }
}

async fn serve_agent(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let no_content = hyper::service::service_fn(|_| async {
            let mut answer = http::Response::new(Empty::<bytes::Bytes>::new());
            *answer.status_mut() = http::StatusCode::NO_CONTENT;
            Ok::<_, Infallible>(answer)
        });
        let server = hyper::server::conn::http1::Builder::new();
        tokio::spawn(server.serve_connection(TokioIo::new(stream), no_content));
    }
}

struct Loopback(SocketAddr);

impl Connector for Loopback {
    fn connect(&self, _port: u16) -> BoxFuture<'_, std::io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(self.0))
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    fn version(&self) -> &str {
        "fake 1"
    }

    fn ways(&self) -> Ways {
        Ways { lazy: Ok(()), tracking: Trackers::Vmm, maps_files: false }
    }

    async fn network(&self, _: &SlotPool) -> Result<Network> {
        Ok(Network { plug: Plug::Nothing, connector: Arc::new(Loopback(self.agent)), gate: None })
    }

    async fn boot(&self, _: &MachineShape, _: Parts, _: BootMedia) -> Result<Box<dyn Machine>> {
        Err(Error::failed("boot")("the fake restores only".into()))
    }

    async fn stand_by(&self, _: &MachineShape, _: Parts, _: Paging) -> Result<Box<dyn Standby>> {
        Ok(Box::new(FakeStandby(self.script.clone())))
    }

    fn stands_by_for_any(&self, _: Paging) -> bool {
        false
    }
}

#[derive(Debug)]
struct FakeStandby(Script);

#[async_trait]
impl Standby for FakeStandby {
    async fn restore(self: Box<Self>, _: Restore) -> Result<Box<dyn Machine>> {
        let Self(script) = *self;
        script.go_through(Op::Restore).await?;
        let (exit, exited) = watch::channel(None);
        script.lock().exits.push(exit.clone());
        Ok(Box::new(FakeMachine { script, console: Console::default(), exit, exited }))
    }

    fn has_ended(&self) -> bool {
        false
    }

    fn stood_by(&mut self) {}
}

#[derive(Debug)]
struct FakeMachine {
    script: Script,
    console: Console,
    exit: watch::Sender<Option<Exit>>,
    exited: watch::Receiver<Option<Exit>>,
}

#[async_trait]
impl Machine for FakeMachine {
    async fn resume(&mut self) -> Result<()> {
        self.script.go_through(Op::Resume).await
    }

    async fn stop(&mut self) -> Result<()> {
        self.script.go_through(Op::Stop).await
    }

    async fn save_ahead(&mut self, memory: SpaceWriter) -> Result<SpaceWriter> {
        self.script.go_through(Op::SaveAhead).await?;
        Ok(memory)
    }

    async fn save(&mut self, mut memory: SpaceWriter) -> Result<Saved> {
        self.script.go_through(Op::Save).await?;
        let number = self.script.next_save();
        let page = usize::from(number) * PAGE_BYTES;
        let mut view = vec![0; PAGES * PAGE_BYTES];
        view[page..page + PAGE_BYTES].fill(number);
        memory.add_dirty(&view, &[PageRange::new(number.into(), 1)])?;
        Ok(Saved { memory: SavedMemory::Written(memory), state: Vec::new() })
    }

    fn saved(&mut self) {
        // It cannot fail, and a script that says otherwise is a mistake of the test's.
        self.script.perform(Op::Saved).unwrap();
    }

    fn restore_report(&self) -> Option<RestoreReport> {
        None
    }

    fn tracking(&self) -> Tracking {
        Tracking::Vmm
    }

    fn save_phases(&self) -> SavePhases {
        SavePhases::default()
    }

    fn working_set(&self) -> Option<WorkingSet> {
        None
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    fn console(&self) -> &Console {
        &self.console
    }

    fn pid(&self) -> u32 {
        0
    }

    async fn kill(&mut self) {
        self.script.perform(Op::Kill).unwrap();
        self.exit.send_replace(Some(Exit::Process("killed".to_owned())));
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.exit.send_replace(Some(Exit::Process("dropped".to_owned())));
    }
}
