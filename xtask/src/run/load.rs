//! Visitors who never rest: several at once, each request on a new connection, every outcome kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Namespace, wait_until};

use crate::run::http;
use crate::run::network::WWW;

const VISITORS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// One request for the front page, which passes every tier.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// Which web server and which application server answered with a 200; else what went wrong.
    pub(super) outcome: Result<[String; 2]>,
}

/// Lets visitors come from `client` for as long as `meanwhile` takes, and returns all their visits, with what
/// `meanwhile` returned. It is given the number of visits that ended so far.
///
/// # Errors
/// If the namespace cannot be entered, or by `meanwhile`.
pub(super) fn visit_during<T>(
    client: &Namespace,
    meanwhile: impl FnOnce(&AtomicUsize) -> Result<T>,
) -> Result<(Vec<Visit>, T)> {
    let (count, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let visitors: Vec<_> =
            (0..VISITORS).map(|_| scope.spawn(|| client.enter(|| visit_until(&is_over, &count)))).collect();
        let result = meanwhile(&count);
        is_over.store(true, Ordering::Relaxed);
        let mut visits = Vec::new();
        for visitor in visitors {
            visits.extend(visitor.join().expect("a visitor does not panic")?);
        }
        Ok((visits, result?))
    })
}

/// Waits until `more` visits have ended, counted from now.
///
/// # Errors
/// If they do not within a generous deadline.
pub(super) fn wait_for_visits(count: &AtomicUsize, more: usize) -> Result<()> {
    let goal = count.load(Ordering::Relaxed) + more;
    wait_until(PATIENCE, &format!("{more} visits"), || count.load(Ordering::Relaxed) >= goal)
}

/// How many of the visits each server answered: web servers and application servers by name.
pub(super) fn count_by_server(visits: &[Visit]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for server in visits.iter().filter_map(|visit| visit.outcome.as_ref().ok()).flatten() {
        *counts.entry(server.as_str()).or_default() += 1;
    }
    counts
}

fn visit_until(is_over: &AtomicBool, count: &AtomicUsize) -> Vec<Visit> {
    let mut visits = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let outcome = visit();
        visits.push(Visit { began, ended: Instant::now(), outcome });
        count.fetch_add(1, Ordering::Relaxed);
    }
    visits
}

fn visit() -> Result<[String; 2]> {
    let answer = http::get(WWW, "/")?;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(["X-Web-Server", "X-App-Server"].map(|header| answer.header(header).to_owned()))
}
