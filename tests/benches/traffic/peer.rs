//! Other balancers, as their manuals have them for this: the same VIP, the same two servers in turn, and nothing that
//! would cost them time, as logs do.

use std::fs;
use std::net::SocketAddr;

use anyhow::Result;
use lab::{Namespace, Process, wait_until};

use super::support::SOON;
use super::support::conversation::connect;
use super::support::network::{Family, VIP, VIP_PORT, WEB1, WEB2};

/// HAProxy, which hands TCP on.
pub fn start_haproxy(namespace: &Namespace) -> Result<Process> {
    let config = write(namespace, "haproxy.cfg", &haproxy())?;
    start_proxy(namespace, "haproxy", ["haproxy", "-db", "-f", &config])
}

/// Nginx, which does.
pub fn start_nginx_stream(namespace: &Namespace) -> Result<Process> {
    let config = write(namespace, "stream.conf", &nginx_stream())?;
    let prefix = namespace.directory().display().to_string();
    start_proxy(namespace, "nginx-stream", ["nginx", "-p", &prefix, "-e", "stderr", "-c", &config])
}

/// The kernel's destination NAT, of TCP and UDP alike.
pub fn load_nftables(namespace: &Namespace) -> Result<()> {
    let rules = write(namespace, "dnat.nft", &nftables())?;
    namespace.run(["nft", "-f", &rules])?;
    // Flows that are over would fill the table of connections, which all of the machine's namespaces share.
    namespace.set_sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1")
}

/// Proxies have to have the VIP.
fn start_proxy<const N: usize>(namespace: &Namespace, name: &str, words: [&str; N]) -> Result<Process> {
    namespace.add_address("lo", &format!("{}/32", VIP.v4()))?;
    let process = namespace.start(name, words)?;
    wait_until(SOON, &format!("{name} to listen"), || {
        connect(namespace, vip(), SOON).is_ok_and(|connected| connected.is_ok())
    })?;
    Ok(process)
}

fn haproxy() -> String {
    format!(
        "global
             maxconn 4000
         defaults
             mode tcp
             timeout connect 5s
             timeout client 1m
             timeout server 1m
         frontend www
             bind {}
             default_backend web
         backend web
             balance roundrobin
             server web1 {}
             server web2 {}
",
        vip(),
        web1(),
        web2(),
    )
}

fn nginx_stream() -> String {
    format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
         daemon off; user root; pid stream.pid; worker_processes auto;
         events {{ worker_connections 4000; }}
         stream {{
             upstream web {{ server {}; server {}; }}
             server {{ listen {}; proxy_pass web; }}
         }}",
        web1(),
        web2(),
        vip(),
    )
}

fn nftables() -> String {
    format!(
        "table ip nat {{
             chain prerouting {{
                 type nat hook prerouting priority dstnat
                 ip daddr {} dnat to numgen inc mod 2 map {{ 0 : {}, 1 : {} }}
             }}
         }}",
        VIP.v4(),
        WEB1.v4(),
        WEB2.v4(),
    )
}

fn write(namespace: &Namespace, name: &str, text: &str) -> Result<String> {
    let file = namespace.directory().join(name);
    fs::write(&file, text)?;
    Ok(file.display().to_string())
}

fn vip() -> SocketAddr {
    VIP.port(Family::V4, VIP_PORT)
}

fn web1() -> SocketAddr {
    WEB1.port(Family::V4, VIP_PORT)
}

fn web2() -> SocketAddr {
    WEB2.port(Family::V4, VIP_PORT)
}
