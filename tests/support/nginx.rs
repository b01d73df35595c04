//! Real Nginx web servers.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use lab::{Namespace, Process, wait_until};

use super::SOON;
use super::conversation::connect;

/// A running Nginx that serves a directory on port 80.
pub struct Nginx {
    pub process: Process,
}

impl Nginx {
    /// Serves the files of `root`, and takes uploads to it; every answer names the server in `X-Served-By`.
    pub fn start(namespace: &Namespace, name: &str, root: &Path) -> Result<Self> {
        let directory = namespace.directory().join(format!("nginx-{name}"));
        fs::create_dir_all(&directory)?;
        let config = directory.join("nginx.conf");
        fs::write(&config, configuration(name, root))?;
        let prefix = directory.display().to_string();
        let config = config.display().to_string();
        let process = namespace
            .start(&format!("nginx-{name}"), ["nginx", "-p", &prefix, "-e", "stderr", "-c", &config])?;
        let nginx = Self { process };
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        wait_until(SOON, &format!("{name} to listen"), || {
            connect(namespace, address, SOON).is_ok_and(|connected| connected.is_ok())
        })?;
        Ok(nginx)
    }
}

fn configuration(name: &str, root: &Path) -> String {
    format!(
        "daemon off; user root; pid nginx.pid; worker_processes 1;
         events {{ worker_connections 256; }}
         http {{
             access_log off; client_max_body_size 0; client_body_temp_path uploads;
             server {{
                 listen 80; listen [::]:80;
                 root {root}; dav_methods PUT;
                 add_header X-Served-By {name};
                 location /slow/ {{ alias {root}/; limit_rate 2m; add_header X-Served-By {name}; }}
             }}
         }}",
        root = root.display(),
    )
}
