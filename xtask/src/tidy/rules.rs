//! The house rules that a command can check. They are the invariants of ARCHITECTURE.md and the measures of the
//! code: whoever changes one changes it there and here.

use std::fmt;

use super::source::Source;

/// How much of something there may be: beyond the first number it is pointed out, beyond the second refused.
const FILE_LINES: (usize, usize) = (400, 600);
const FUNCTION_LINES: usize = 40;

/// Marks of unfinished work. In pieces, so that this file is not found.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// The files that may contain `unsafe`, or the directories of such.
const UNSAFE: &[&str] = &[
    "foobar-lb-ebpf/src/arrived.rs",
    "foobar-lb-ebpf/src/baseline.rs",
    "foobar-lb-ebpf/src/decap_main.rs",
    "foobar-lb-ebpf/src/full_tracking.rs",
    "foobar-lb-ebpf/src/generator.rs",
    "foobar-lb-ebpf/src/headers.rs",
    "foobar-lb-ebpf/src/main.rs",
    "foobar-lb-ebpf/src/packet.rs",
    "foobar-lb-ebpf/src/router.rs",
    "foobar-lb-ebpf/src/shell.rs",
    "foobar-lb-ebpf/src/shell/",
    "foobar-lb-ebpf/src/word.rs",
    "foobar-lb/benches/",
    "foobar-lb/src/bpf.rs",
    "foobar-lb/src/bpf/",
    "foobar-lb/tests/",
    "tests/xdp_pass.rs",
];

/// Who may not name what.
struct Boundary {
    /// Files, or directories with a slash at the end.
    inside: &'static [&'static str],
    except: &'static [&'static str],
    /// A path, from its beginning if that is a crate, else anywhere in a longer one.
    forbidden: &'static [&'static str],
    why: &'static str,
}

const BOUNDARIES: &[Boundary] = &[
    Boundary {
        inside: &["foobar-lb-ebpf/src/"],
        except: &[
            "foobar-lb-ebpf/src/arrived.rs",
            "foobar-lb-ebpf/src/baseline.rs",
            "foobar-lb-ebpf/src/decap_main.rs",
            "foobar-lb-ebpf/src/full_tracking.rs",
            "foobar-lb-ebpf/src/generator.rs",
            "foobar-lb-ebpf/src/main.rs",
            "foobar-lb-ebpf/src/router.rs",
            "foobar-lb-ebpf/src/shell.rs",
            "foobar-lb-ebpf/src/shell/",
        ],
        forbidden: &["aya", "aya_ebpf", "aya_log_ebpf", "foobar_lb", "std"],
        why: "the data path is built for host and kernel alike; its kernel shell is shell.rs and the programs",
    },
    Boundary {
        inside: &["foobar-lb/src/"],
        except: &["foobar-lb/src/bpf.rs", "foobar-lb/src/bpf/"],
        forbidden: &["aya", "aya_log"],
        why: "only bpf.rs knows how programs and maps are loaded",
    },
    Boundary {
        inside: &["foobar-lb/src/"],
        except: &["foobar-lb/src/decap/vips.rs", "foobar-lb/src/neighbour.rs", "foobar-lb/src/neighbour/"],
        forbidden: &["netlink_packet_core", "netlink_packet_route", "netlink_sys", "rtnetlink"],
        why: "only neighbour.rs speaks netlink, and on a backend decap/vips.rs",
    },
    Boundary {
        inside: &["foobar-lb/src/"],
        except: &[
            "foobar-lb/src/api.rs",
            "foobar-lb/src/api/",
            "foobar-lb/src/client.rs",
            "foobar-lb/src/config.rs",
            "foobar-lb/src/config/",
            "foobar-lb/src/words.rs",
        ],
        forbidden: &["serde"],
        why: "only config.rs, api.rs with its client, and words.rs have shapes that are read and written",
    },
    Boundary {
        inside: &[
            "foobar-lb/src/health/state.rs",
            "foobar-lb/src/image.rs",
            "foobar-lb/src/image/",
            "foobar-lb/src/maglev.rs",
            "foobar-lb/src/model.rs",
            "foobar-lb/src/plan.rs",
            "foobar-lb/src/state/",
        ],
        except: &[],
        forbidden: &[
            "tokio",
            "std::env",
            "std::fs",
            "std::io",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "std::net::ToSocketAddrs",
            "std::net::UdpSocket",
            "std::process",
            "std::thread",
            "Instant::now",
            "SystemTime",
        ],
        why: "it does no I/O and reads no clock: `now` is an argument",
    },
    Boundary {
        inside: &[
            "foobar-lb/src/api.rs",
            "foobar-lb/src/api/",
            "foobar-lb/src/health/",
            "foobar-lb/src/metrics.rs",
            "foobar-lb/src/neighbour.rs",
            "foobar-lb/src/neighbour/",
        ],
        except: &[],
        forbidden: &["crate::bpf", "super::bpf"],
        why: "only the daemon's one task touches maps; others send it an event",
    },
];

/// Something against the rules.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub line: usize,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Warning,
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Everything in a file that is against the rules, in no order.
pub fn check(source: &Source) -> Vec<Finding> {
    [check_opening, check_length, check_functions, check_finished, check_unsafe, check_boundaries]
        .into_iter()
        .flat_map(|rule| rule(source))
        .collect()
}

fn check_opening(source: &Source) -> Vec<Finding> {
    if source.text.starts_with("//!") {
        return vec![];
    }
    vec![error(1, "begins without `//!`: say what the file is for and what it leaves to others")]
}

fn check_length(source: &Source) -> Vec<Finding> {
    let (notable, limit) = FILE_LINES;
    let lines = source.text.lines().count();
    let what = format!("{lines} lines, more than {notable}: look for the missing noun");
    match lines {
        _ if lines > limit => vec![error(lines, what)],
        _ if lines > notable => vec![warning(lines, what)],
        _ => vec![],
    }
}

fn check_functions(source: &Source) -> Vec<Finding> {
    let long = source.functions.iter().filter(|function| function.length > FUNCTION_LINES);
    long.map(|function| {
        warning(
            function.line,
            format!("`{}` has {} lines, more than {FUNCTION_LINES}", function.name, function.length),
        )
    })
    .collect()
}

fn check_finished(source: &Source) -> Vec<Finding> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mark = |line: &str| {
        let word = line.split(|c| !is_word(c)).find(|word| UNFINISHED.contains(word))?;
        Some(format!("{word}: finish it, or open an issue"))
    };
    source
        .text
        .lines()
        .enumerate()
        .filter_map(|(before, line)| Some(error(before + 1, mark(line)?)))
        .collect()
}

fn check_unsafe(source: &Source) -> Vec<Finding> {
    if is_in(source.name, UNSAFE) {
        return vec![];
    }
    let what = "`unsafe` outside the files that may have it (xtask/src/tidy/rules.rs)";
    source.unsafes.iter().map(|&line| error(line, what)).collect()
}

fn check_boundaries(source: &Source) -> Vec<Finding> {
    let mut findings = vec![];
    for boundary in BOUNDARIES {
        if !is_in(source.name, boundary.inside) || is_in(source.name, boundary.except) {
            continue;
        }
        for named in &source.paths {
            if boundary.forbidden.iter().any(|forbidden| names(&named.path, forbidden)) {
                findings.push(error(named.line, format!("names `{}`, but {}", named.path, boundary.why)));
            }
        }
    }
    findings
}

/// Whether a path is or contains the forbidden one. A crate is one only at the beginning.
fn names(path: &str, forbidden: &str) -> bool {
    let starts = path.strip_prefix(forbidden).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let is_crate = forbidden.chars().all(|c| c.is_lowercase() || c == '_');
    starts || !is_crate && format!("{path}::").contains(&format!("::{forbidden}::"))
}

/// Whether a file is listed, or in a directory that is.
fn is_in(name: &str, list: &[&str]) -> bool {
    list.iter().any(|listed| name == *listed || listed.ends_with('/') && name.starts_with(listed))
}

fn error(line: usize, what: impl Into<String>) -> Finding {
    Finding { severity: Severity::Error, line, what: what.into() }
}

fn warning(line: usize, what: impl Into<String>) -> Finding {
    Finding { severity: Severity::Warning, line, what: what.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in a file of that name, without the advice.
    fn findings(name: &str, text: &str) -> Vec<(Severity, usize)> {
        let source = Source::parse(name, text).unwrap();
        check(&source).into_iter().map(|finding| (finding.severity, finding.line)).collect()
    }

    fn assert_refused(name: &str, text: &str) {
        let text = format!("//! A file.\n{text}");
        assert_eq!(findings(name, &text), [(Severity::Error, 2)], "{name}: {text}");
    }

    fn assert_accepted(name: &str, text: &str) {
        let text = format!("//! A file.\n{text}");
        assert_eq!(findings(name, &text), [], "{name}: {text}");
    }

    #[test]
    fn wants_an_opening() {
        assert_eq!(findings("a.rs", "use b;"), [(Severity::Error, 1)]);
        assert_accepted("a.rs", "use b;");
    }

    #[test]
    fn limits_files() {
        let lines = |count: usize| format!("//! A file.\n{}", "\n".repeat(count - 1));
        assert_eq!(findings("a.rs", &lines(400)), []);
        assert_eq!(findings("a.rs", &lines(401)), [(Severity::Warning, 401)]);
        assert_eq!(findings("a.rs", &lines(601)), [(Severity::Error, 601)]);
    }

    #[test]
    fn points_out_long_functions() {
        let function = |lines: usize| format!("//! A file.\nfn f() {{{}}}", "\n".repeat(lines - 1));
        assert_eq!(findings("a.rs", &function(40)), []);
        assert_eq!(findings("a.rs", &function(41)), [(Severity::Warning, 2)]);
    }

    #[test]
    fn refuses_unfinished_work() {
        for mark in UNFINISHED {
            assert_refused("a.rs", &format!("// {mark}: later"));
            assert_accepted("a.rs", &format!("// A{mark}S"));
        }
    }

    #[test]
    fn keeps_unsafe_where_it_may_be() {
        assert_refused("foobar-lb/src/daemon.rs", "fn f() { unsafe { g() } }");
        assert_accepted("foobar-lb-ebpf/src/packet.rs", "fn f() { unsafe { g() } }");
        assert_accepted("foobar-lb/tests/program/main.rs", "fn f() { unsafe { g() } }");
    }

    #[test]
    fn keeps_the_data_path_free_of_the_kernel_and_the_host() {
        for path in ["aya_ebpf::maps::Array", "std::fmt", "foobar_lb::model", "aya::Ebpf"] {
            assert_refused("foobar-lb-ebpf/src/flow.rs", &format!("use {path};"));
        }
        assert_accepted("foobar-lb-ebpf/src/flow.rs", "use core::fmt;");
        assert_accepted("foobar-lb-ebpf/src/flow.rs", "#[cfg(test)] mod tests { use std::fmt; }");
        assert_accepted("foobar-lb-ebpf/src/main.rs", "use aya_ebpf::maps::Array;");
    }

    #[test]
    fn keeps_crates_in_their_files() {
        assert_refused("foobar-lb/src/daemon.rs", "use aya::Ebpf;");
        assert_accepted("foobar-lb/src/bpf.rs", "use aya::Ebpf;");
        assert_refused("foobar-lb/src/daemon.rs", "use rtnetlink::Handle;");
        assert_accepted("foobar-lb/src/neighbour/netlink.rs", "use rtnetlink::Handle;");
        assert_refused("foobar-lb/src/health/mod.rs", "use serde::Serialize;");
        assert_accepted("foobar-lb/src/api.rs", "use serde::Serialize;");
    }

    #[test]
    fn keeps_pure_modules_pure() {
        for path in
            ["tokio::time", "std::fs::File", "std::{fs}", "std::net::{TcpStream}", "std::time::SystemTime"]
        {
            assert_refused("foobar-lb/src/plan.rs", &format!("use {path};"));
        }
        assert_refused("foobar-lb/src/health/state.rs", "fn f() { g(Instant::now()) }");
        assert_refused("foobar-lb/src/health/state.rs", "fn f() { g(std::time::Instant::now()) }");
        assert_accepted("foobar-lb/src/health/state.rs", "use std::time::Instant; fn f(now: Instant) {}");
        assert_accepted("foobar-lb/src/model.rs", "use std::net::{IpAddr, SocketAddr};");
        assert_accepted("foobar-lb/src/health/mod.rs", "use tokio::time;");
    }

    #[test]
    fn keeps_maps_to_the_daemon() {
        assert_refused("foobar-lb/src/health/mod.rs", "use crate::bpf::Maps;");
        assert_refused("foobar-lb/src/api.rs", "use crate::{bpf};");
        assert_accepted("foobar-lb/src/daemon.rs", "use crate::bpf::Maps;");
    }
}
