//! What the real daemon answers is what its description says, route by route, and whatever bytes come it stays up.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::SOON;
use crate::support::balancer::Balancer;
use crate::support::config::tcp_before;
use crate::support::echo::start_pair;
use crate::support::network::{Arms, Network};

#[test]
fn every_answer_is_as_described() -> Result<()> {
    let network = Network::new("api", Arms::Two)?;
    let _echoes = start_pair(&network)?;
    let services = tcp_before(&[(1, 1), (2, 1)], &[]);
    let balancer = Balancer::serve(&network, &services)?;
    let (code, description) = ask(&balancer, "GET", "/v1/openapi.json", "")?;
    ensure!(code == 200, "{code}: {description}");
    let mut answered = BTreeSet::new();
    for (method, route, path, body, expected) in requests(&services) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (code, answer) = ask(&balancer, method, path, &body)?;
        ensure!(code == expected, "{method} {path} {body}: {code}: {answer}");
        expect_described(&description, method, route, code, &answer)?;
        if code == 200 {
            answered.insert(route);
        }
    }
    let described = description["paths"].as_object().context("there are no paths")?;
    let left: Vec<_> = described.keys().filter(|path| !answered.contains(path.as_str())).collect();
    ensure!(left.is_empty(), "not compared with an answer: {left:?}");
    expect_to_survive_noise(&balancer)
}

/// Requests to every route, right ones and wrong ones: the method, the route, the path, the body, and the code of the
/// answer.
fn requests(services: &str) -> Vec<(&'static str, &'static str, &'static str, Value, u16)> {
    let say =
        |word: Value| json!({"service": "tcp-v4", "backends": ["web1"], "word": word, "for_seconds": 60});
    let disable = json!({"service": "tcp-v6", "word": "disable", "for_seconds": 60});
    let plan = json!({"name": "proposed.toml", "text": services});
    let backend = "/v1/services/{service}/backends/{backend}";
    vec![
        ("POST", "/v1/backends", "/v1/backends", say(json!("drain")), 200),
        ("POST", "/v1/backends", "/v1/backends", say(json!({"weight": 3})), 200),
        ("POST", "/v1/backends", "/v1/backends", say(json!("enable")), 409),
        ("POST", "/v1/backends", "/v1/backends", json!({"service": "tcp-v4"}), 422),
        (
            "POST",
            "/v1/backends",
            "/v1/backends",
            json!({"service": "tcp-v5", "backends": [], "word": "drain"}),
            404,
        ),
        ("POST", "/v1/services", "/v1/services", disable, 200),
        ("GET", "/v1/status", "/v1/status", Value::Null, 200),
        ("GET", backend, "/v1/services/tcp-v4/backends/web1", Value::Null, 200),
        ("GET", backend, "/v1/services/tcp-v4/backends/wbe1", Value::Null, 404),
        ("POST", "/v1/plan", "/v1/plan", plan, 200),
        ("POST", "/v1/probe", "/v1/probe", json!({"service": "tcp-v4", "end": false}), 200),
        ("POST", "/v1/probe", "/v1/probe", json!({"service": "tcp-v5", "end": true}), 409),
        ("POST", "/v1/reload", "/v1/reload", json!({}), 200),
        ("POST", "/v1/detach", "/v1/detach", json!({"interfaces": ["eth9"]}), 409),
        ("POST", "/v1/detach", "/v1/detach", json!({"interfaces": ["eth1"]}), 200),
    ]
}

/// What is no HTTP at all is not answered in JSON, but does no harm.
fn expect_to_survive_noise(balancer: &Balancer) -> Result<()> {
    for noise in [&b"\0\xff\r\n\r\n"[..], b"GET", b"POST /v1/backends HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"]
    {
        let mut stream = UnixStream::connect(balancer.socket())?;
        stream.write_all(noise)?;
    }
    balancer.status().map(drop)
}

fn expect_described(description: &Value, method: &str, route: &str, code: u16, answer: &Value) -> Result<()> {
    let operation = &description["paths"][route][method.to_lowercase()];
    let responses = &operation["responses"];
    let response = responses.get(code.to_string()).unwrap_or(&responses["default"]);
    let mut schema = response["content"]["application/json"]["schema"].clone();
    ensure!(schema.is_object(), "{method} {route} is not described: {operation}");
    schema["components"] = description["components"].clone();
    let validator = jsonschema::validator_for(&schema)?;
    let wrong: Vec<String> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
    ensure!(wrong.is_empty(), "{method} {route}: {answer} is not as described: {wrong:?}");
    Ok(())
}

/// The code and the body of the answer.
fn ask(balancer: &Balancer, method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
    let mut stream = UnixStream::connect(balancer.socket())?;
    stream.set_read_timeout(Some(SOON))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer}"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = serde_json::from_str(body).with_context(|| format!("no JSON: {answer}"))?;
    Ok((code.with_context(|| format!("no code: {head}"))?, body))
}
