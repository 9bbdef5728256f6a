use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::timeout;

use super::{
    listing,
    tree::{self, Named},
    watch::{Watches, options::WatchOptions, outbox::Events, watchers::Watchers},
};
use crate::{
    agent::{
        disk::{spelling::meant, threads::as_user},
        guest_path,
        keepalive::keepalive,
        settings::Settings,
        users::{User, UserError},
    },
    proto::filesystem::{
        self as wire,
        watch_dir_response::{Event, KeepAlive, StartEvent},
    },
};

/// `filesystem.Filesystem`.
#[derive(Debug)]
pub(crate) struct Service {
    settings: Arc<Mutex<Settings>>,
    watches: Watches,
    watchers: Watchers,
}

impl wire::Filesystem for Service {
    async fn stat<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::StatRequest>,
    ) -> ServiceResult<impl Encodable<wire::StatResponse> + Send + use<'a>> {
        let (user, [path]) = self.resolve(&context, [&request.to_owned_message().path])?;
        let entry = as_user(user, move || tree::stat(&path)).await?;
        Response::ok(wire::StatResponse { entry: entry.into(), ..Default::default() })
    }

    async fn make_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::MakeDirResponse> + Send + use<'a>> {
        let (user, [path]) = self.resolve(&context, [&request.to_owned_message().path])?;
        let entry = as_user(user, move || tree::make_dir(&path)).await?;
        Response::ok(wire::MakeDirResponse { entry: entry.into(), ..Default::default() })
    }

    async fn r#move<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::MoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::MoveResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let named = if request.destination.ends_with('/') { Named::Directory } else { Named::Anything };
        let (user, [source, destination]) = self.resolve(&context, [&request.source, &request.destination])?;
        let entry = as_user(user, move || tree::rename(&source, &destination, named)).await?;
        Response::ok(wire::MoveResponse { entry: entry.into(), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListDirResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let (user, [path]) = self.resolve(&context, [&request.path])?;
        let entries = as_user(user, move || listing::list(&path, request.depth.max(1))).await?;
        Response::ok(wire::ListDirResponse { entries, ..Default::default() })
    }

    async fn remove<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveResponse> + Send + use<'a>> {
        let (user, [path]) = self.resolve(&context, [&request.to_owned_message().path])?;
        as_user(user, move || tree::remove(&path)).await?;
        Response::ok(wire::RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WatchDirResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let (user, [path]) = self.resolve(&context, [&request.path])?;
        let options = WatchOptions {
            path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        Response::stream_ok(responses(self.watches.start(user, options).await?, keepalive(&context)))
    }

    async fn create_watcher<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::CreateWatcherResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let (user, [path]) = self.resolve(&context, [&request.path])?;
        let options = WatchOptions {
            path,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let watcher_id = self.watchers.insert(self.watches.start(user, options).await?);
        Response::ok(wire::CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<wire::GetWatcherEventsResponse> + Send + use<'a>> {
        let events = self.watchers.take(&request.to_owned_message().watcher_id)?;
        Response::ok(wire::GetWatcherEventsResponse { events, ..Default::default() })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _context: RequestContext,
        request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveWatcherResponse> + Send + use<'a>> {
        self.watchers.remove(&request.to_owned_message().watcher_id)?;
        Response::ok(wire::RemoveWatcherResponse::default())
    }
}

impl Service {
    pub(crate) fn new(settings: Arc<Mutex<Settings>>) -> Self {
        Self { settings, watches: Watches::default(), watchers: Watchers::default() }
    }

    /// The caller's user, and the paths as that user means them.
    fn resolve<const N: usize>(
        &self,
        context: &RequestContext,
        texts: [&String; N],
    ) -> Result<(User, [PathBuf; N]), ConnectError> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let user = settings.user_of(context.headers()).map_err(|error| match error {
            UserError::Unknown { .. } | UserError::UnknownGroup { .. } => {
                ConnectError::invalid_argument(error.to_string())
            }
            UserError::Unreadable(_) => ConnectError::internal(error.to_string()),
        })?;
        let mut paths = std::array::from_fn(|_| PathBuf::new());
        for (path, text) in paths.iter_mut().zip(texts) {
            let resolved = guest_path::resolve(text, &user, settings.default_workdir.as_deref());
            *path = meant(resolved.map_err(|error| ConnectError::invalid_argument(error.to_string()))?);
        }
        Ok((user, paths))
    }
}

/// The start, what happens, and signs of life in between; the end when the directory is gone.
fn responses(
    events: Events,
    keepalive: Duration,
) -> impl Stream<Item = Result<wire::WatchDirResponse, ConnectError>> + Send {
    let start = stream::iter([Ok(response(StartEvent::default()))]);
    let rest = stream::unfold(events, move |mut events| async move {
        let item = match timeout(keepalive, events.recv()).await {
            Ok(Some(Ok(event))) => Ok(response(event)),
            Ok(Some(Err(error))) => Err(error.into()),
            Ok(None) => return None,
            Err(_elapsed) => Ok(response(KeepAlive::default())),
        };
        Some((item, events))
    });
    start.chain(rest)
}

fn response(event: impl Into<Event>) -> wire::WatchDirResponse {
    wire::WatchDirResponse { event: Some(event.into()), ..Default::default() }
}
