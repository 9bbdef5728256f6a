//! The server: from a data directory to an address, until it is told to stop.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use wrenn_core::Host;

use crate::api;
use crate::api::state::Context;
use crate::ops;
use crate::ops::peer::Peer;
use crate::ops::requests::follow;
use crate::ops::state::Ops;
use crate::proxy::door::{Door, door};
use crate::service::admission::Capacity;
use crate::service::builds::registries::Registries;
use crate::service::cut::Cut;
use crate::service::egress_proxy::Credentials;
use crate::service::rate::Rates;
use crate::service::readiness::Readiness;
use crate::service::sandboxes::Sandboxes;
use crate::service::sandboxes::tend::Chores;
use crate::service::secret::Secret;
use crate::service::webhooks::Webhooks;
use crate::service::webhooks::courier::Courier;
use crate::service::webhooks::target::Reach;
use crate::store::contract::Store;
use crate::store::postgres::Postgres;
use crate::store::sqlite::Sqlite;
use crate::tls::acceptor::Acceptor;
use crate::tls::certificate::{Certificate, Tls};

/// How a server is to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where it listens. Port 0 is any free one.
    pub listen: SocketAddr,
    /// Whether each request needs a key. Without, it listens for programs of this machine alone.
    pub needs_key: bool,
    /// The PostgreSQL database that has the records, by its URL; `None` for a file of the data directory.
    pub database_url: Option<String>,
    /// The domain below which each port of each sandbox has a name, `PORT-ID.DOMAIN`; `None` for `localhost`.
    pub domain: Option<String>,
    /// Where the certificate comes from that clients are shown; `None` for HTTP without TLS.
    pub tls: Option<Tls>,
    /// Which addresses clients' webhooks may have.
    pub webhooks_reach: Reach,
    /// What sandboxes may have of this machine together.
    pub capacity: Capacity,
    /// How many VMMs may [stand by](wrenn_core::HostBuilder::standbys).
    pub standbys: usize,
    /// What is done for sandboxes unasked.
    pub chores: Chores,
    /// Which registries builds of templates may pull images from.
    pub registries: Registries,
}

impl Options {
    /// How many VMMs may stand by where nothing is said.
    pub const STANDBYS: usize = 4;

    /// A server of that data directory as `wrenn-server serve` runs it where nothing is said: with keys, on port 8080 of this
    /// machine's loopback, and with twice its memory for all sandboxes together.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            needs_key: true,
            database_url: None,
            domain: None,
            tls: None,
            webhooks_reach: Reach::Public,
            capacity: Capacity::of_this_machine(2.0, 32.0, Duration::from_secs(20)),
            standbys: Self::STANDBYS,
            chores: Chores::default(),
            registries: Registries::default(),
        }
    }
}

/// A server that listens, and has taken over what an earlier one has left.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    listener: TcpListener,
    router: Router,
    sandboxes: Arc<Sandboxes>,
    chores: Chores,
    cut: Arc<Cut>,
    /// A permit for each stream that there may be.
    streams: Arc<Semaphore>,
    readiness: Arc<Readiness>,
    courier: Arc<Courier>,
    acceptor: Acceptor,
    certificate: Option<Arc<Certificate>>,
    /// Held for as long as the server is there.
    _lock: File,
}

impl Server {
    /// Opens the data directory and the address.
    ///
    /// # Errors
    /// The machine lacks something, another server has the data directory, the address is taken, or the server would be open
    /// to other machines without keys. Each says what to do.
    pub async fn open(options: &Options) -> anyhow::Result<Self> {
        ensure!(
            options.needs_key || options.listen.ip().is_loopback(),
            "{} is no address of this machine alone, and whoever reaches it could run anything: listen on 127.0.0.1, or \
             leave out --no-auth and make a key with `wrenn-server keys create NAME`",
            options.listen.ip()
        );
        let listener = TcpListener::bind(options.listen).await.with_context(|| {
            format!("cannot listen on {}: choose another address or port with --listen", options.listen)
        })?;
        let lock = lock(&options.data_dir)?;
        let store = open_store(&options.data_dir, options.database_url.as_deref()).await?;
        let secret = secret(&options.data_dir)?;
        let (credentials, registries) = (Credentials::default(), options.registries.clone());
        let host = Host::builder().data_dir(&options.data_dir).standbys(options.standbys);
        let host = host.secrets(credentials.clone()).open().await?;
        let sandboxes = Sandboxes::open(host, Arc::clone(&store), options.capacity, registries, credentials).await?;
        let streams = Arc::new(Semaphore::new(STREAMS_MAX as usize));
        let (records, readiness) = (Arc::clone(&store), Arc::new(Readiness::new(Arc::clone(&store))));
        let courier = Courier::new(Arc::clone(&store), options.webhooks_reach);
        let context = Context {
            sandboxes: Arc::clone(&sandboxes),
            webhooks: Arc::new(Webhooks::new(Arc::clone(&store), options.webhooks_reach)),
            store,
            rates: Arc::new(Rates::default()),
            secret: Arc::clone(&secret),
            streams: Arc::clone(&streams),
            needs_key: options.needs_key,
            domain: options.domain.as_deref().map(Arc::from),
            scheme: if options.tls.is_some() { "https" } else { "http" },
        };
        let domain = options.domain.as_deref().unwrap_or("localhost").to_ascii_lowercase();
        let cut = Arc::new(Cut::open(&own_directory(&options.data_dir)?.join("cut.json")));
        let door_to = Door::new(Arc::clone(&sandboxes), secret, domain.into(), Arc::clone(&cut));
        let ops = Ops::new(records, Arc::clone(&sandboxes), Arc::clone(&readiness), options.needs_key);
        let router = api::router::router(context).merge(ops::router::router(ops.clone()));
        let router = router.layer(from_fn_with_state(door_to, door)).layer(from_fn_with_state(ops, follow));
        let (chores, address) = (options.chores, listener.local_addr()?);
        let certificate = certificate(options)?;
        let acceptor = Acceptor::new(certificate.clone())?;
        Ok(Self {
            address,
            listener,
            router,
            sandboxes,
            readiness,
            chores,
            cut,
            streams,
            courier,
            acceptor,
            certificate,
            _lock: lock,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether it is ready. Whoever has it leave before it is to stop gives load balancers time to turn away.
    #[must_use]
    pub fn readiness(&self) -> Arc<Readiness> {
        Arc::clone(&self.readiness)
    }

    /// The certificate of the authority that clients have to be told to trust, where it is the server's own.
    #[must_use]
    pub fn authority(&self) -> Option<&Path> {
        self.certificate.as_deref()?.authority()
    }

    /// Serves until `stop` is done. Then it takes nothing more, pauses what runs, and ends when the answers that are under way
    /// have gone out, within some seconds.
    ///
    /// # Errors
    /// Sandboxes that could not be paused, which are lost.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self {
            listener,
            router,
            sandboxes,
            readiness,
            chores,
            cut,
            streams,
            courier,
            acceptor,
            certificate,
            _lock,
            ..
        } = self;
        let tending = sandboxes.tend(chores);
        let courier = tokio::spawn(courier.run(sandboxes.events().listen()));
        let renewal = certificate.map(|certificate| tokio::spawn(certificate.keep_fresh()));
        let (connections, slots) = (GracefulShutdown::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        let mut http = auto::Builder::new(TokioExecutor::new());
        http.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
        http.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
        let closing = CancellationToken::new();
        let all = Served { router, http, acceptor, closing: closing.clone() };
        let mut stop = std::pin::pin!(stop);
        loop {
            let accept = async {
                // Whoever comes while there is none waits in the kernel's queue.
                let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
                listener.accept().await.map(|(stream, peer)| (stream, Peer(peer), slot))
            };
            let (stream, peer, slot) = tokio::select! {
                () = &mut stop => break,
                accepted = accept => match accepted {
                    Ok(accepted) => accepted,
                    // Such as a want of descriptors, which passes.
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(BREATH).await;
                        continue;
                    }
                },
            };
            stream.set_nodelay(true).ok();
            let (served, watcher) = (all.clone(), connections.watcher());
            tokio::spawn(async move {
                if let Err(error) = served.carry(stream, peer, watcher).await {
                    tracing::debug!(%error, "a connection ended");
                }
                drop(slot);
            });
        }
        readiness.leave();
        closing.cancel();
        drop(listener);
        let lost = sandboxes.close().await;
        drop(tending);
        courier.abort();
        renewal.inspect(tokio::task::JoinHandle::abort);
        let answers = async { tokio::join!(connections.shutdown(), streams.acquire_many(STREAMS_MAX)) };
        tokio::time::timeout(ANSWERS_MAX, answers).await.ok();
        if let Err(error) = cut.save() {
            tracing::warn!(%error, "clients that attach again may miss some output");
        }
        if !lost.is_empty() {
            let lost: Vec<String> = lost.iter().map(|(id, error)| format!("{id}: {error}")).collect();
            bail!("these sandboxes could not be paused, and are lost:\n{}", lost.join("\n"));
        }
        Ok(())
    }
}

/// What each connection is served with.
#[derive(Clone)]
struct Served {
    router: Router,
    http: auto::Builder<TokioExecutor>,
    acceptor: Acceptor,
    /// What has not begun when the server ends does not begin.
    closing: CancellationToken,
}

impl Served {
    /// Serves a connection until it ends, or until its watcher has it end.
    async fn carry(
        self,
        stream: TcpStream,
        peer: Peer,
        watcher: Watcher,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = tokio::select! {
            begun = self.acceptor.begin(stream) => begun?,
            () = self.closing.cancelled() => return Ok(()),
        };
        let service = self.router.map_request(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            request
        });
        let service = TowerToHyperService::new(service);
        let connection = self.http.serve_connection_with_upgrades(TokioIo::new(stream), service);
        watcher.watch(connection.into_owned()).await
    }
}

/// The records: in a PostgreSQL database where there is a URL of one, else in the data directory.
///
/// # Errors
/// They cannot be opened.
pub async fn open_store(data_dir: &Path, database_url: Option<&str>) -> anyhow::Result<Arc<dyn Store>> {
    let directory = own_directory(data_dir)?;
    Ok(match database_url {
        Some(url) => Arc::new(Postgres::open(url).await?),
        None => Arc::new(Sqlite::open(&directory.join("records.sqlite")).await?),
    })
}

fn certificate(options: &Options) -> anyhow::Result<Option<Arc<Certificate>>> {
    let Some(tls) = &options.tls else { return Ok(None) };
    let directory = own_directory(&options.data_dir)?.join("tls");
    let domain = options.domain.as_deref().unwrap_or("localhost");
    Ok(Some(Arc::new(Certificate::open(tls, &directory, domain, options.listen.ip())?)))
}

fn secret(data_dir: &Path) -> anyhow::Result<Arc<Secret>> {
    let path = own_directory(data_dir)?.join("secret");
    let secret = Secret::open(&path).with_context(|| {
        format!("{} cannot be used: restore it from a copy, or remove it, which makes other tokens", path.display())
    });
    Ok(Arc::new(secret?))
}

fn lock(data_dir: &Path) -> anyhow::Result<File> {
    let path = own_directory(data_dir)?.join("lock");
    let file = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("another wrenn-server has {}: end it, or name another directory with --data-dir", data_dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// The server's own directory, for its user alone: it has the keys' digests.
fn own_directory(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let path = data_dir.join("server");
    let made = std::fs::create_dir_all(data_dir).and_then(|()| DirBuilder::new().mode(0o700).create(&path));
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).with_context(|| {
            format!("{} cannot be made: run as a user who may, or name another one with --data-dir", path.display())
        }),
        _ => Ok(path),
    }
}

/// Each has a descriptor. One that says nothing is closed after [`HEAD_MAX`].
const CONNECTIONS_MAX: usize = 1024;
/// A stream is no longer one of the connections.
const STREAMS_MAX: u32 = 1024;
/// For a request's line and headers.
const HEAD_MAX: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// For the answers that are under way when the server ends.
const ANSWERS_MAX: Duration = Duration::from_secs(10);
const BREATH: Duration = Duration::from_millis(50);
