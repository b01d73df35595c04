//! `cargo xtask run --once`: what the site and its balancer promise, proved by real requests from a visitor's
//! namespace, and printed as a table.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::wait_until;

use crate::run::http;
use crate::run::load::{Visit, count_by_server, visit_during, wait_for_visits};
use crate::run::network::WWW;
use crate::run::site::Site;

/// How long a change that the health check has to notice may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How many visits show which servers answer.
const SAMPLE: usize = 400;
/// How many visits follow the verdict of the health check, none of which may fail.
const VISITS_AFTER: usize = 1000;

/// One line of the table.
struct Finding {
    promise: &'static str,
    /// What was measured, or why it did not hold.
    measured: Result<String>,
}

/// Proves every promise, prints the table, and says whether all of it held.
///
/// # Errors
/// If a step could not be taken, so that nothing is known.
pub(super) fn prove(site: &mut Site) -> Result<bool> {
    let mut findings = Vec::from(prove_service(site)?);
    findings.extend(prove_failure(site)?);
    findings.push(Finding { promise: "web1 returns when Nginx starts again", measured: prove_return(site) });
    findings.push(Finding { promise: "a write survives in MySQL", measured: prove_write(site) });
    for Finding { promise, measured } in &findings {
        match measured {
            Ok(measured) => println!("   held     {promise:<40} {measured}"),
            Err(error) => println!("   FAILED   {promise:<40} {error:#}"),
        }
    }
    Ok(findings.iter().all(|finding| finding.measured.is_ok()))
}

fn prove_service(site: &Site) -> Result<[Finding; 2]> {
    let (visits, ()) = visit_during(&site.network.client, |count| wait_for_visits(count, SAMPLE))?;
    let prove_both = |servers: [&str; 2]| {
        refuse_failures(&visits, |_| true)?;
        let counts = count_by_server(&visits);
        let [first, second] = servers.map(|server| counts.get(server).copied().unwrap_or_default());
        let measured =
            format!("{} {first} and {} {second} of {} visits", servers[0], servers[1], visits.len());
        ensure!(first > 0 && second > 0, "{measured}");
        Ok(measured)
    };
    Ok([
        Finding { promise: "both web servers serve", measured: prove_both(["web1", "web2"]) },
        Finding { promise: "both application servers serve", measured: prove_both(["app1", "app2"]) },
    ])
}

/// `kill -9` of Nginx on web1, master and workers, under load.
fn prove_failure(site: &mut Site) -> Result<[Finding; 2]> {
    let Site { network, web: [web1, _], balancer, .. } = site;
    let (visits, (killed, down)) = visit_during(&network.client, |count| {
        wait_for_visits(count, SAMPLE)?;
        let killed = Instant::now();
        web1.kill()?;
        balancer.wait_for(web1.name(), false, PATIENCE)?;
        let down = Instant::now();
        wait_for_visits(count, VISITS_AFTER)?;
        Ok((killed, down))
    })?;

    let prove_verdict = || {
        refuse_failures(&visits, |visit| visit.ended < killed)?;
        let failed = visits.iter().filter(|visit| visit.outcome.is_err() && visit.began < down).count();
        let took = (down - killed).as_secs_f64();
        Ok(format!("after {took:.2} s; {failed} visits failed until then"))
    };
    let prove_verdict_holds = || {
        refuse_failures(&visits, |visit| visit.began >= down)?;
        let after = visits.iter().filter(|visit| visit.began >= down);
        let count = after.clone().count();
        let seconds = after.map(|visit| visit.ended - down).max().unwrap_or_default().as_secs_f64();
        Ok(format!("0 of {count} visits in {seconds:.1} s"))
    };
    Ok([
        Finding { promise: "kill -9 of Nginx on web1: turned down", measured: prove_verdict() },
        Finding { promise: "from then on no visit fails", measured: prove_verdict_holds() },
    ])
}

fn prove_return(site: &mut Site) -> Result<String> {
    let Site { network, web: [web1, _], balancer, .. } = site;
    let started = Instant::now();
    web1.restart()?;
    balancer.wait_for(web1.name(), true, PATIENCE)?;
    let took = started.elapsed().as_secs_f64();
    let (visits, ()) = visit_during(&network.client, |count| wait_for_visits(count, SAMPLE))?;
    refuse_failures(&visits, |_| true)?;
    let served = count_by_server(&visits).get(web1.name()).copied().unwrap_or_default();
    ensure!(served > 0, "it is up, but answered none of {} visits", visits.len());
    Ok(format!("after {took:.2} s; answered {served} of {} visits", visits.len()))
}

/// An entry is read back by every server, in the database itself, and after the database was restarted.
fn prove_write(site: &mut Site) -> Result<String> {
    let message = format!("proof-{}", std::process::id());
    site.network.client.enter(|| write_entry(&message))??;
    site.network.client.enter(|| read_by_everyone(&message))??;
    let stored = || -> Result<()> {
        let statement = format!("SELECT COUNT(*) FROM foobar.entries WHERE message = '{message}'");
        let count = site.ask_database(&statement)?;
        ensure!(count.trim() == "1", "the database has {} such entries", count.trim());
        Ok(())
    };
    stored()?;
    site.restart_database().context("the database was restarted")?;
    site.network.client.enter(|| read_by_everyone(&message))?.context("after a restart of mysqld")?;
    Ok("read by web1, web2, app1, app2 and in the database, and again after mysqld was restarted".to_owned())
}

fn write_entry(message: &str) -> Result<()> {
    let answer = http::post(WWW, "/entries", &format!("name=xtask&message={message}"))?;
    ensure!(answer.status == 303, "the entry was answered with status {}", answer.status);
    Ok(())
}

/// Reads entries until every web server and every application server has shown the one with this message.
fn read_by_everyone(message: &str) -> Result<()> {
    let mut missing: BTreeSet<_> = ["web1", "web2", "app1", "app2"].map(str::to_owned).into();
    let mut last_error = None;
    let all = wait_until(PATIENCE, "the entry to be read by every server", || {
        match http::get(WWW, "/api/entries") {
            Ok(answer) if answer.status == 200 && answer.body.contains(message) => {
                for header in ["X-Web-Server", "X-App-Server"] {
                    missing.remove(answer.header(header));
                }
            }
            Ok(answer) => last_error = Some(format!("status {}: {}", answer.status, answer.body)),
            Err(error) => last_error = Some(format!("{error:#}")),
        }
        missing.is_empty()
    });
    all.with_context(|| format!("not read by {missing:?}; last failure: {last_error:?}"))
}

/// Complains of the first failed visit among those that `concern` names.
fn refuse_failures(visits: &[Visit], concern: impl Fn(&Visit) -> bool) -> Result<()> {
    let concerned: Vec<_> = visits.iter().filter(|visit| concern(visit)).collect();
    let failures: Vec<_> = concerned.iter().filter_map(|visit| visit.outcome.as_ref().err()).collect();
    let Some(first) = failures.first() else { return Ok(()) };
    bail!("{} of {} visits failed, the first with: {first:#}", failures.len(), concerned.len())
}
