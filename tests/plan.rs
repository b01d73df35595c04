//! What a reload would do is told beforehand by the running balancer, and one that would move too much is refused.

use anyhow::{Context, Result, ensure};

use crate::support::balancer::Balancer;
use crate::support::config::tcp_before;
use crate::support::conversation::{Conversation, Protocol, open_with};
use crate::support::echo::{Echo, start_pair};
use crate::support::network::{Arms, BACKEND_PORT, Family, Network, VIP, VIP_PORT};

const PAIR: [(u8, u16); 2] = [(1, 1), (2, 1)];
const ALL: [(u8, u16); 3] = [(1, 1), (2, 1), (3, 1)];

#[test]
fn a_plan_tells_what_a_reload_then_does() -> Result<()> {
    let network = Network::new("plan", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let _web3 = Echo::start(&network.add_backend(3)?, "web3", BACKEND_PORT)?;
    let keys = ["remember = \"all\"", "table_size = 1009"];
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &keys))?;
    let mut flows = Family::BOTH
        .map(|family| open_with(&network.client, Protocol::Tcp, VIP.port(family, VIP_PORT), "web1"))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;

    balancer.plan(&tcp_before(&PAIR, &keys), &[])?.expect(0, &["nothing changes"])?;
    let wider = tcp_before(&ALL, &keys);
    balancer.plan(&wider, &[])?.expect(0, &["2 changed", "+ web3  10.0.1.13:8080", "33.", "of 1009"])?;
    let smaller = tcp_before(&[(2, 1)], &keys);
    balancer.plan(&smaller, &[])?.expect(0, &["- web1  10.0.1.11:8080: no new flows", "at most 1h"])?;
    let plan = balancer.plan(&smaller, &["--json"])?;
    let plan: serde_json::Value = serde_json::from_str(&plan.output).context("it is JSON")?;
    for service in plan["services"].as_array().context("there are services")? {
        let remembered = service["backends"][0]["flows"].as_u64();
        ensure!(remembered >= Some(1), "no flow is remembered on web1: {plan:#}");
        ensure!(service["flows_on_moved"].as_u64() >= remembered, "all of web1's slots move: {plan:#}");
    }
    let wrong = smaller.replace("weight = 1", "weight = 1001");
    balancer.plan(&wrong, &[])?.expect(2, &["foobar-lb.toml:", "1001"])?;

    let names = |status: &crate::support::balancer::Status| status.backends("web3").count();
    ensure!(names(&balancer.status()?) == 0, "a plan has changed something");
    flows.iter_mut().try_for_each(|flow| flow.expect_answer_from("web1"))?;
    balancer.write_services(&smaller)?;
    balancer.reload()?.expect(0, &["in force: ", " writes, 5", "% of the slots of tcp-v4 moved"])?;
    flows.iter_mut().try_for_each(|flow| flow.expect_answer_from("web1"))
}

#[test]
fn a_reload_that_moves_too_much_is_refused_whole() -> Result<()> {
    let network = Network::new("plan-limit", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let keys = ["max_moved = \"20%\"", "table_size = 1009"];
    let balancer = Balancer::serve(&network, &tcp_before(&PAIR, &keys))?;
    let vip = VIP.port(Family::V4, VIP_PORT);
    let mut flow: Conversation = open_with(&network.client, Protocol::Tcp, vip, "web1")?;

    // What the new file says of the limit does not count yet.
    let much = tcp_before(&[(2, 1)], &["max_moved = \"100%\"", "table_size = 1009"]);
    let numbers = ["service `tcp-v4`", "of 1009 slots (5", "max_moved is 20%"];
    balancer.plan(&much, &[])?.expect(1, &numbers)?;
    balancer.reload()?.expect(1, &numbers)?;
    balancer.reload_with(&["--max-moved", "30%"])?.expect(1, &["max_moved is 30%"])?;
    let status = balancer.status()?;
    ensure!(status.backends("web1").all(|backend| backend.admin == "enabled"), "something was taken in");
    ensure!(
        status.reload_failure.unwrap_or_default().contains("max_moved is 30%"),
        "the status does not tell"
    );
    flow.expect_answer_from("web1")?;

    balancer.reload_with(&["--max-moved", "60%"])?.expect(0, &["in force"])?;
    ensure!(balancer.status()?.reload_failure.is_none(), "the failure is still shown");
    flow.expect_answer_from("web1")?;
    // A service that goes is moved whole; there is a limit of 100 % now, which allows that.
    let one = tcp_before(&[(2, 1)], &["max_moved = \"0%\"", "table_size = 1009"]);
    balancer.reconfigure(&one)?;
    let none = one.split("[[service]]").take(2).collect::<Vec<_>>().join("[[service]]");
    balancer.write_services(&none)?;
    balancer.reload()?.expect(1, &["service `tcp-v6`", "100.0 %", "max_moved is 0%"])?;
    balancer.reload_with(&["--force"])?.expect(0, &["in force"])?;
    flow.expect_answer_from("web1")
}
