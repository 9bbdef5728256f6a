use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use futures::stream;

use super::tree;
use crate::{
    agent::{
        guest_path,
        identity::as_user,
        settings::Settings,
        users::{User, UserError},
    },
    proto::filesystem as wire,
};

/// `filesystem.Filesystem`.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) settings: Arc<Mutex<Settings>>,
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
        let (user, [source, destination]) = self.resolve(&context, [&request.source, &request.destination])?;
        let entry = as_user(user, move || tree::rename(&source, &destination)).await?;
        Response::ok(wire::MoveResponse { entry: entry.into(), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        context: RequestContext,
        request: ServiceRequest<'_, wire::ListDirRequest>,
    ) -> ServiceResult<impl Encodable<wire::ListDirResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let (user, [path]) = self.resolve(&context, [&request.path])?;
        let entries = as_user(user, move || tree::list(&path, request.depth.max(1))).await?;
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
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<wire::WatchDirResponse> + Send + use<>>> {
        Response::stream_ok(stream::once(async {
            Err::<wire::WatchDirResponse, _>(ConnectError::unimplemented("watching a directory"))
        }))
    }

    async fn create_watcher<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::CreateWatcherResponse> + Send + use<'a>> {
        Err::<Response<wire::CreateWatcherResponse>, _>(ConnectError::unimplemented("watching a directory"))
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<wire::GetWatcherEventsResponse> + Send + use<'a>> {
        Err::<Response<wire::GetWatcherEventsResponse>, _>(ConnectError::unimplemented("watching a directory"))
    }

    async fn remove_watcher<'a>(
        &'a self,
        _context: RequestContext,
        _request: ServiceRequest<'_, wire::RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<wire::RemoveWatcherResponse> + Send + use<'a>> {
        Err::<Response<wire::RemoveWatcherResponse>, _>(ConnectError::unimplemented("watching a directory"))
    }
}

impl Service {
    /// The caller's user, and the paths as that user means them.
    fn resolve<const N: usize>(
        &self,
        context: &RequestContext,
        texts: [&String; N],
    ) -> Result<(User, [PathBuf; N]), ConnectError> {
        let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let user = settings.user_of(context.headers()).map_err(|error| match error {
            UserError::Unknown { .. } => ConnectError::invalid_argument(error.to_string()),
            UserError::Unreadable(_) => ConnectError::internal(error.to_string()),
        })?;
        let mut paths = std::array::from_fn(|_| PathBuf::new());
        for (path, text) in paths.iter_mut().zip(texts) {
            *path = guest_path::resolve(text, &user, settings.default_workdir.as_deref())
                .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        }
        Ok((user, paths))
    }
}
