//! The socket that the API is served at: made, and removed at the end.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use futures::{FutureExt, future::try_join_all};
use nix::unistd::{Gid, Group, chown};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

use super::{
    operator::Peer,
    routes::{Rights, routes},
};
use crate::{config, daemon::Event};

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
    /// There is no such group.
    #[error(
        "there is no group `{group}` on this machine: make it (`groupadd --system {group}`), or set `socket_group` in \
         [daemon] to one that is there"
    )]
    NoGroup {
        /// Its name.
        group: String,
    },
    /// Whether there is such a group cannot be told.
    #[error("cannot look up the group `{group}`")]
    Group {
        /// Its name.
        group: String,
        /// What the system said.
        source: io::Error,
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

/// The socket, and the one for reading only where there is one; removed when dropped.
pub struct Socket {
    entrances: Vec<Entrance>,
}

impl Socket {
    /// Listens; takes the place of sockets that nobody answers at any more.
    pub async fn bind(config: &config::Daemon) -> Result<Self, Error> {
        let group = config.socket_group.as_deref().map(find_group).transpose()?;
        let mut entrances = vec![Entrance::bind(&config.socket, Rights::Change).await?];
        entrances[0].admit(group)?;
        if let Some(path) = &config.read_only_socket {
            let entrance = Entrance::bind(path, Rights::Read).await?;
            entrance.allow(EVERYBODY)?;
            entrances.push(entrance);
        }
        Ok(Self { entrances })
    }

    /// Serves the API until `end`, and then until the requests under way are answered. To be called once.
    pub fn serve<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        events: mpsc::Sender<Event>,
        end: F,
    ) -> impl Future<Output = io::Result<()>> + use<F> {
        let end = end.shared();
        let serving: Vec<_> = self
            .entrances
            .iter_mut()
            .map(|entrance| {
                let listener = entrance.listener.take().expect("a socket is served once");
                let routes = routes(events.clone(), entrance.rights);
                let service = routes.into_make_service_with_connect_info::<Peer>();
                axum::serve(listener, service).with_graceful_shutdown(end.clone()).into_future()
            })
            .collect();
        async move { try_join_all(serving).await.map(drop) }
    }
}

/// Root and the group.
const GROUP: u32 = 0o660;
/// To connect is to write.
const EVERYBODY: u32 = 0o666;

struct Entrance {
    path: PathBuf,
    rights: Rights,
    listener: Option<UnixListener>,
}

impl Entrance {
    async fn bind(path: &Path, rights: Rights) -> Result<Self, Error> {
        let failed = |source| Error::Listen { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Ok(metadata) => {
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
        Ok(Self { path: path.to_owned(), rights, listener: Some(listener) })
    }

    /// Lets the group in, too. The owner is changed first: the mode is for the group that it is meant for.
    fn admit(&self, group: Option<Gid>) -> Result<(), Error> {
        if let Some(group) = group {
            chown(&self.path, None, Some(group))
                .map_err(|errno| Error::Listen { path: self.path.clone(), source: errno.into() })?;
        }
        self.allow(GROUP)
    }

    fn allow(&self, mode: u32) -> Result<(), Error> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))
            .map_err(|source| Error::Listen { path: self.path.clone(), source })
    }
}

impl Drop for Entrance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn find_group(name: &str) -> Result<Gid, Error> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(Error::NoGroup { group: name.to_owned() }),
        Err(errno) => Err(Error::Group { group: name.to_owned(), source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path, more: &str) -> config::Daemon {
        let text = format!("[daemon]\nsocket = \"{}/lb.sock\"\n{more}", directory.display());
        let service = "[[service]]\nname = \"a\"\naddress = \"203.0.113.1:80\"\n\
                       [[service.backend]]\nname = \"b\"\naddress = \"10.0.0.1:80\"\n";
        config::parse(&format!("{text}\n{service}"), "test.toml")
            .unwrap_or_else(|error| panic!("{error}"))
            .daemon
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn each_socket_lets_in_whom_it_is_for() {
        let directory = tempfile::tempdir().unwrap();
        let read_only = directory.path().join("read-only.sock");
        let more = format!("read_only_socket = \"{}\"", read_only.display());
        let socket = Socket::bind(&config(directory.path(), &more)).await.unwrap();
        assert_eq!(mode(&directory.path().join("lb.sock")), GROUP);
        assert_eq!(mode(&read_only), EVERYBODY);
        drop(socket);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "a socket is left");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_refused_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lb.sock");
        fs::write(&path, "mine").unwrap();
        let error = Socket::bind(&config(directory.path(), "")).await.err().unwrap();
        assert!(matches!(error, Error::NotASocket { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[tokio::test]
    async fn a_group_that_is_not_there_is_refused_before_anything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let more = "socket_group = \"no-such-group\"";
        let error = Socket::bind(&config(directory.path(), more)).await.err().unwrap().to_string();
        assert!(error.contains("no-such-group") && error.contains("groupadd"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_socket_that_is_answered_at_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Socket::bind(&config(directory.path(), "")).await.unwrap();
        let error = Socket::bind(&config(directory.path(), "")).await.err().unwrap();
        assert!(matches!(error, Error::Running { .. }), "{error}");
        assert!(directory.path().join("lb.sock").exists());
    }
}
