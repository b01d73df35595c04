//! What `foobar-lb plan` says: each configuration of `tests/plan` against `in_force.toml`, and the exit code and text
//! that are expected of it, in `NAME.txt`. `UPDATE=1` rewrites those. What a running daemon says is for the traffic
//! tests.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

#[test]
fn plans_are_as_expected() {
    let update = env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    let configs = configs();
    assert!(configs.len() > 5, "the configurations are there");
    for config in configs {
        let actual = plan(&["--from", "in_force.toml", &config]);
        let path = directory().join(&config).with_extension("txt");
        if update {
            fs::write(&path, &actual).expect("it can be rewritten");
        } else if fs::read_to_string(&path).unwrap_or_default() != actual {
            wrong.push(format!("{}:\n{actual}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "not as expected; UPDATE=1 accepts:\n\n{}", wrong.join("\n"));
}

#[test]
fn another_limit_may_be_given() {
    let said = plan(&["--from", "in_force.toml", "too_much.toml", "--max-moved", "100%"]);
    assert!(said.starts_with("exit code 0"), "{said}");
    let said = plan(&["--from", "in_force.toml", "backends.toml", "--max-moved", "0.5%"]);
    assert!(said.starts_with("exit code 1") && said.contains("max_moved is 0.5%"), "{said}");
    let said = plan(&["--from", "in_force.toml", "backends.toml", "--max-moved", "half"]);
    assert!(said.starts_with("exit code 2") && said.contains("30% or 0.5%"), "{said}");
}

#[test]
fn programs_get_json() {
    let output = run(&["--from", "in_force.toml", "too_much.toml", "--json"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let service = &plan["services"][0];
    assert_eq!((&service["name"], &service["turn"]), (&"www".into(), &"changed".into()), "{plan:#}");
    assert!(service["slots_moved"].as_u64().is_some_and(|moved| moved > 5_000), "{plan:#}");
    assert_eq!(plan["unchanged"], 2);
    assert_eq!(output.status.code(), Some(1), "it would be refused: {plan:#}");
}

#[test]
fn without_a_daemon_there_is_nothing_to_compare_with() {
    let said = plan(&["nothing.toml", "--socket", "/nonexistent/foobar-lb.sock"]);
    assert!(said.starts_with("exit code 1"), "{said}");
    for words in ["no foobar-lb is running", "/nonexistent/foobar-lb.sock", "--from"] {
        assert!(said.contains(words), "{said}");
    }
    let said = plan(&["no_such_file.toml", "--socket", "/nonexistent/foobar-lb.sock"]);
    assert!(said.starts_with("exit code 2") && said.contains("no_such_file.toml"), "{said}");
}

fn configs() -> Vec<String> {
    let entries = fs::read_dir(directory()).expect("the directory is there");
    let names = entries.map(|entry| entry.expect("it can be read").file_name().into_string());
    let names = names.map(|name| name.expect("names are text"));
    let mut names: Vec<String> =
        names.filter(|name| name.ends_with(".toml") && name != "in_force.toml").collect();
    names.sort();
    names
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan")
}

fn run(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foobar-lb"));
    command.current_dir(directory()).arg("plan").args(words);
    command.output().expect("the binary can be run")
}

/// The exit code and all that is said.
fn plan(words: &[&str]) -> String {
    let Output { status, stdout, stderr } = run(words);
    let code = status.code().expect("it ends by itself");
    let said = [stderr, stdout].concat();
    format!("exit code {code}\n{}", String::from_utf8(said).expect("it is text"))
}
