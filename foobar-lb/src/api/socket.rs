//! The socket that the API is served at: made, and removed at the end.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use super::routes::routes;
use crate::daemon::Event;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody answers there already.
    #[error("another foobar-lb is running: it answers at {}", path.display())]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// The path is taken by something else.
    #[error("{} is not a socket; set `socket` in [daemon] to another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen at {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The socket, removed when dropped.
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Socket {
    /// Listens; takes the place of a socket that nobody answers at any more.
    pub async fn bind(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
                use std::os::unix::fs::FileTypeExt;
                if !metadata.file_type().is_socket() {
                    return Err(Error::NotASocket { path: path.to_owned() });
                }
                if UnixStream::connect(path).await.is_ok() {
                    return Err(Error::Running { path: path.to_owned() });
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        let socket = Self { path: path.to_owned(), listener: Some(listener) };
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(socket)
    }

    /// Serves the API until `end`, and then until the requests under way are answered. To be called once.
    pub fn serve<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        events: mpsc::Sender<Event>,
        end: F,
    ) -> impl Future<Output = io::Result<()>> + use<F> {
        let listener = self.listener.take().expect("a socket is served once");
        let routes = routes(events);
        async move { axum::serve(listener, routes).with_graceful_shutdown(end).await }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
